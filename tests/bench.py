"""How fast, and how far from the fastest this machine could be. Not run by `make test`.

    python tests/bench.py lm                          a training step on running text
    python tests/bench.py lm --lengths lengths.json   rows of these lengths (a JSON list)
    python tests/bench.py gen [--ends 24]             writing; rows end after so many tokens on average
    python tests/bench.py rm --lengths lengths.json   a step of the reward model
    python tests/bench.py ppo                         an iteration: rollout and update
    python tests/bench.py growth                      twice the rows, the prompt, the width, ...
    python tests/bench.py compare OURS.jsonl THEIRS.jsonl
    python tests/bench.py lm --who transformers       somebody else's, where it is installed; also: nanogpt
                                                      (NANOGPT=the path of its model.py)
    python tests/bench.py gen --who transformers      with its static cache
    ... --device cuda --bf16 [--compile]              on a GPU

Each of the first five prints a line of JSON: median seconds, real tokens a second, peak memory above
what the imports took, and the share of this machine's matmul peak that the step's multiplications
reach. `compare` reads such lines, ours and another program's, and prints the ratio of the medians
of tokens_per_s; alternate the two programs, for machines drift.
"""
import argparse
import importlib.util
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))
import ppo  # noqa: E402
import reward  # noqa: E402
import sft  # noqa: E402
from data import Batches  # noqa: E402
from model import ModelConfig, build, generate  # noqa: E402
from runtime import adam, optimizer_step  # noqa: E402
from runtime.world import World  # noqa: E402

NUMBERS = dict(layers=4, dim=256, heads=4, vocab=4096, rows=16, length=176, prompt=128, resp=48,
               ends=0, steps=8, warmup=2, threads=2, epochs=4, minibatches=1, micro=0)


def world_of(a):
    """Where the work is done, and with which arithmetic."""
    return World(0, 1, torch.device(a.device), a.bf16)


def now(a):
    """Seconds, once the device has done all that it was told."""
    if a.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(a):
    """The most memory this process has used on the device, MB."""
    if a.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def matmul_peak(a, seconds=1.0):
    """Multiply-adds of a large matmul in this arithmetic, in FLOP/s: what the device does at best."""
    n = 8192 if a.device == "cuda" else 2048
    kind = torch.bfloat16 if a.bf16 else torch.float32
    x, y = (torch.randn(n, n, device=a.device, dtype=kind) for _ in range(2))
    best, until = 0.0, now(a) + seconds
    while time.perf_counter() < until:
        began = now(a)
        x @ y
        best = max(best, 2 * n ** 3 / (now(a) - began))
    return best


def context_of(a):
    return max(a.length, a.prompt + a.resp, 1024)


def network(a, head="lm", seed=0):
    config = ModelConfig(a.vocab, a.layers, a.dim, a.heads, context_of(a), head)
    return build(config, seed, world_of(a))


def compiled(a, net):
    """The network as `--compile` makes it."""
    if a.compile:
        net.compile(dynamic=True)
    return net


def text(a, count, seed):
    """`count` random tokens, none of them <|endoftext|>."""
    return np.random.default_rng(seed).integers(0, a.vocab - 1, count).tolist()


def row_lengths(a):
    """Batches of row lengths, one a step: all alike, or --lengths grouped as training groups them."""
    if not a.lengths:
        return [[a.length] * a.rows] * (a.warmup + a.steps)
    lengths = json.loads(Path(a.lengths).read_text())
    batches = Batches(lengths, a.rows, seed=0)
    return [[lengths[i] for i in batches.at(step)] for step in range(a.warmup + a.steps)]


# ---------------------------------------------- the work: each gives (step, real tokens of a step)

def lm(a):
    net, batches = network(a), row_lengths(a)
    model, optimizer = compiled(a, net), adam([net])

    def step(i):
        rows = [text(a, n, j) for j, n in enumerate(batches[i])]
        count = sum(len(row) - 1 for row in rows)
        with world_of(a).mixed():
            loss = sft.nll(model, [(row[:1], row[1:]) for row in rows]) / count
        loss.backward()
        optimizer_step({"norm": net}, optimizer, 1e-4, i)
    return step, [sum(batch) for batch in batches]


def somebody_elses(a):
    """The network of nanoGPT, or of transformers, of this shape: tokens (B, T) -> logits (B, T, V)."""
    if a.who == "nanogpt":
        spec = importlib.util.spec_from_file_location("nanogpt", os.environ["NANOGPT"])
        theirs = importlib.util.module_from_spec(spec)
        sys.modules["nanogpt"] = theirs                          # its dataclass looks itself up
        spec.loader.exec_module(theirs)
        return theirs.GPT(theirs.GPTConfig(context_of(a), a.vocab, a.layers, a.heads, a.dim, 0.0))
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    from transformers import GPT2Config, GPT2LMHeadModel
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=a.vocab, n_positions=context_of(a), n_embd=a.dim, n_layer=a.layers,
        n_head=a.heads, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=a.vocab - 2,
        eos_token_id=a.vocab - 2, pad_token_id=a.vocab - 1))


def their_lm(a):
    """The same step of somebody else's network: full rows, cross-entropy of every next token."""
    net = somebody_elses(a).to(a.device)
    model = torch.compile(net) if a.compile else net
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)

    def step(i):
        tokens = torch.tensor([text(a, a.length, j) for j in range(a.rows)])
        tokens = tokens.to(a.device)                                     # (B, T)
        with world_of(a).mixed():
            if a.who == "nanogpt":
                _, loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            else:
                loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step, [a.rows * a.length] * (a.warmup + a.steps)


def their_gen(a):
    """transformers' generate with its static cache; it can't stop row by row: no row ends."""
    from transformers import GenerationConfig
    net = somebody_elses(a).to(a.device).eval()
    if a.bf16:
        net = net.bfloat16()
    how = GenerationConfig(
        max_new_tokens=a.resp, min_new_tokens=a.resp, do_sample=True, top_k=0, top_p=1.0,
        temperature=0.7, pad_token_id=a.vocab - 1, eos_token_id=None, use_cache=True,
        **({"cache_implementation": "static"} if a.compile else {}))

    def step(i):
        queries = [text(a, n, j) for j, n in enumerate(prompt_lengths(a))]
        tokens = torch.full((a.rows, a.prompt), a.vocab - 1)             # padding on their left
        for row, query in zip(tokens, queries, strict=True):
            row[a.prompt - len(query):] = torch.tensor(query)
        tokens = tokens.to(a.device)
        with torch.no_grad():
            net.generate(tokens, attention_mask=(tokens != a.vocab - 1).long(),
                         generation_config=how)
    return step, [a.rows * a.resp] * (a.warmup + a.steps)


def rm(a):
    net, batches = network(a, "scalar"), row_lengths(a)
    model, optimizer = compiled(a, net), adam([net])

    def step(i):
        rows = [text(a, n, j) for j, n in enumerate(batches[i])]
        part = [reward.Pair(one[:-9], one[-9:], other[-9:])
                for one, other in zip(rows[::2], rows[1::2], strict=True)]
        with world_of(a).mixed():
            chosen, rejected = reward.score_pairs(model, part)
        reward.pairwise_loss(chosen, rejected).backward()
        optimizer_step({"norm": net}, optimizer, 1e-4, i)
    # A pair's two rows share the query, so they are as long as the first of them.
    return step, [2 * sum(batch[::2]) for batch in batches]


def numbers(a, rows, seed=0):
    """Uniforms from which no row ends, or, with --ends, row i after about that many tokens: the
    last id of the vocabulary is <|endoftext|>, and the largest number picks the last id."""
    rng = np.random.default_rng(seed)
    u = 0.9 * rng.random((rows, a.resp))                             # (B, R)
    if a.ends:
        last = rng.integers(1, 2 * a.ends - 1, rows).clip(max=a.resp - 1)
        u[np.arange(rows), last] = 1 - 1e-12
    return torch.from_numpy(u)


def prompt_lengths(a):
    return [a.prompt - (i * 37) % (a.prompt // 2) for i in range(a.rows)]


def gen(a):
    net = network(a)
    queries = [text(a, n, i) for i, n in enumerate(prompt_lengths(a))]
    u, said = numbers(a, a.rows), []

    def step(i):
        with world_of(a).mixed():
            tokens, _ = generate(net, queries, a.resp, 0.7, u)
        said.append(int((tokens != a.vocab).sum()))
    return step, said


def ppo_iteration(a):
    cfg = ppo.Config(response_length=a.resp, batch=a.rows, epochs=a.epochs, rollout_batch=a.rows,
                     minibatches=a.minibatches, micro_batch=a.micro or a.rows, temperature=1.0, lr=1e-4)
    world = world_of(a)
    policy, critic = network(a), network(a, "scalar", 1)
    reference, judge = network(a), network(a, "scalar", 1)
    trained = compiled(a, policy), compiled(a, critic)
    optimizer, seconds, said = adam([policy, critic], eps=1e-5), [], []
    ppo.uniforms = lambda *purpose: numbers(a, a.rows)

    def step(i):
        began = now(a)
        queries = [text(a, a.prompt, (i, row)) for row in range(a.rows)]
        batch = ppo.roll_out(policy, reference, critic, judge, queries, range(a.rows), i, cfg, world)
        written = now(a)
        advantage, returns = ppo.gae(ppo.token_rewards(batch, cfg.kl_coef), batch.value, ppo.GAMMA,
                                     ppo.LAMBDA)
        batch = batch._replace(advantage=ppo.whiten(advantage, batch.is_response), returns=returns)
        ppo.update(*trained, optimizer, batch, 1e-4, i, cfg, world)
        seconds.append((written - began, now(a) - written))
        said.append(int(batch.is_response.sum()))
    step.seconds = seconds
    return step, said


WORK = {"lm": lm, "gen": gen, "rm": rm, "ppo": ppo_iteration}
THEIRS = {"lm": their_lm, "gen": their_gen}


# -------------------------------------------------------------------------------------- measuring

def measure(what, a):
    """One line: what was asked for, and what came out."""
    torch.set_num_threads(a.threads)
    before = peak_memory(a)
    step, tokens = (WORK if a.who == "ours" else THEIRS)[what](a)
    times = []
    for i in range(a.warmup + a.steps):
        began = now(a)
        step(i)
        times.append(now(a) - began)
    memory = peak_memory(a) - before
    tokens, times = tokens[a.warmup:a.warmup + a.steps], times[a.warmup:]
    found = {"s": statistics.median(times), "tokens_per_s": sum(tokens) / sum(times),
             "peak_mb": memory}
    if hasattr(step, "seconds"):
        found["rollout_s"], found["update_s"] = map(statistics.median,
                                                    zip(*step.seconds[a.warmup:], strict=True))
    with FlopCounterMode(display=False) as counter:
        step(a.warmup)
    found["of_matmul_peak"] = counter.get_total_flops() / found["s"] / matmul_peak(a)
    return {"what": what, **vars(a), **{k: round(v, 5) for k, v in found.items()}}


def growth(a):
    """Time for twice (and four times) as much of one thing, over the time before doubling."""
    for what, name, values in (
            ("lm", "rows", (8, 16, 32)), ("lm", "length", (88, 176, 352)),
            ("lm", "dim", (128, 256, 512)), ("lm", "vocab", (2048, 4096, 8192)),
            ("gen", "rows", (32, 64, 128)), ("gen", "prompt", (64, 128, 256)),
            ("gen", "resp", (24, 48, 96)), ("ppo", "resp", (24, 48, 96))):
        seconds = [measure(what, argparse.Namespace(**{**vars(a), name: value}))
                   for value in values]
        key = "rollout_s" if what == "ppo" else "s"
        ratios = [f"{y[key] / x[key]:.2f}" for x, y in zip(seconds, seconds[1:], strict=False)]
        print(f"{what:4} {name:7} {' -> '.join(map(str, values)):16} time x {', x '.join(ratios)}")


def compare(ours, theirs):
    """Ratio of the medians of tokens_per_s over all lines of each file; memory likewise."""
    found = []
    for path in (ours, theirs):
        lines = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
        found.append(statistics.median(line["tokens_per_s"] for line in lines))
        print(f"{path}: {len(lines)} runs, median {found[-1]:,.0f} tokens/s, from "
              f"{min(line['tokens_per_s'] for line in lines):,.0f}")
    print(f"ours / theirs: {found[0] / found[1]:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*WORK, "growth", "compare"])
    parser.add_argument("files", nargs="*")
    for name, value in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lengths", default="")
    parser.add_argument("--who", default="ours", choices=["ours", "transformers", "nanogpt"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    a = parser.parse_args()
    what, files = a.what, a.files
    del a.what, a.files
    if what == "compare":
        compare(*files)
    elif what == "growth":
        growth(a)
    else:
        print(json.dumps(measure(what, a)))


if __name__ == "__main__":
    main()
