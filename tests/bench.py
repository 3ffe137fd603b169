"""How fast, and how far from the fastest this machine could be. Not run by `make test`.

    python tests/bench.py lm                          a training step on running text
    python tests/bench.py lm --lengths lengths.json   rows of these lengths (a JSON list)
    python tests/bench.py gen [--ends 24]             writing; rows end after so many tokens on average
    python tests/bench.py rm --lengths lengths.json   a step of the reward model
    python tests/bench.py ppo                         an iteration: rollout and update
    python tests/bench.py growth                      twice the rows, the prompt, the width, ...
    python tests/bench.py compare OURS.jsonl THEIRS.jsonl

Each of the first five prints a line of JSON: median seconds, real tokens a second, peak memory above
what the imports took, and the share of this machine's matmul peak that the step's multiplications
reach. `compare` reads such lines, ours and another program's, and prints the ratio of the medians
of tokens_per_s; alternate the two programs, for machines drift.
"""
import argparse
import json
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
from runtime import ALONE, adam, optimizer_step  # noqa: E402

NUMBERS = dict(layers=4, dim=256, heads=4, vocab=4096, rows=16, length=176, prompt=128, resp=48,
               ends=0, steps=8, warmup=2, threads=2, epochs=4, minibatches=1)


def peak_memory():
    """The most memory this process has held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def matmul_peak(seconds=1.0):
    """Multiply-adds of a large fp32 matmul, in FLOP/s: what the machine can do at best."""
    a, b, best = torch.randn(2048, 2048), torch.randn(2048, 2048), 0.0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * 2048 ** 3 / (time.perf_counter() - began))
    return best


def network(a, head="lm", seed=0):
    context = max(a.length, a.prompt + a.resp, 1024)
    return build(ModelConfig(a.vocab, a.layers, a.dim, a.heads, context, head), seed)


def compiled(a, net):
    return torch.compile(net, dynamic=True) if a.compile else net


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
        (sft.nll(model, [(row[:1], row[1:]) for row in rows]) / count).backward()
        optimizer_step({"norm": net}, optimizer, 1e-4, i)
    return step, [sum(batch) for batch in batches]


def rm(a):
    net, batches = network(a, "scalar"), row_lengths(a)
    model, optimizer = compiled(a, net), adam([net])

    def step(i):
        rows = [text(a, n, j) for j, n in enumerate(batches[i])]
        part = [(one[:-9], one[-9:], other[-9:]) for one, other in zip(rows[::2], rows[1::2],
                                                                       strict=True)]
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


def gen(a):
    net = network(a)
    queries = [text(a, a.prompt - (i * 37) % (a.prompt // 2), i) for i in range(a.rows)]
    u, said = numbers(a, a.rows), []

    def step(i):
        tokens, _ = generate(net, queries, a.resp, 0.7, u)
        said.append(int((tokens != a.vocab).sum()))
    return step, said


def ppo_iteration(a):
    cfg = ppo.Config(response_length=a.resp, batch=a.rows, epochs=a.epochs, rollout_batch=a.rows,
                     minibatches=a.minibatches, micro_batch=a.rows, temperature=1.0, lr=1e-4)
    policy, critic = network(a), network(a, "scalar", 1)
    reference, judge = network(a), network(a, "scalar", 1)
    trained = compiled(a, policy), compiled(a, critic)
    optimizer, seconds, said = adam([policy, critic], eps=1e-5), [], []
    ppo.uniforms = lambda *purpose: numbers(a, a.rows)

    def step(i):
        began = time.perf_counter()
        queries = [text(a, a.prompt, (i, row)) for row in range(a.rows)]
        batch = ppo.roll_out(policy, reference, critic, judge, queries, range(a.rows), i, cfg, ALONE)
        written = time.perf_counter()
        advantage, returns = ppo.gae(ppo.token_rewards(batch, cfg.kl_coef), batch.value, ppo.GAMMA,
                                     ppo.LAMBDA)
        batch = batch._replace(advantage=ppo.whiten(advantage, batch.is_response), returns=returns)
        ppo.update(*trained, optimizer, batch, 1e-4, i, cfg, ALONE)
        seconds.append((written - began, time.perf_counter() - written))
        said.append(int(batch.is_response.sum()))
    step.seconds = seconds
    return step, said


WORK = {"lm": lm, "gen": gen, "rm": rm, "ppo": ppo_iteration}


# -------------------------------------------------------------------------------------- measuring

def measure(what, a):
    """One line: what was asked for, and what came out."""
    torch.set_num_threads(a.threads)
    before = peak_memory()
    step, tokens = WORK[what](a)
    times = []
    for i in range(a.warmup + a.steps):
        began = time.perf_counter()
        step(i)
        times.append(time.perf_counter() - began)
    memory = peak_memory() - before
    tokens, times = tokens[a.warmup:a.warmup + a.steps], times[a.warmup:]
    found = {"s": statistics.median(times), "tokens_per_s": sum(tokens) / sum(times),
             "peak_mb": memory}
    if hasattr(step, "seconds"):
        found["rollout_s"], found["update_s"] = map(statistics.median,
                                                    zip(*step.seconds[a.warmup:], strict=True))
    with FlopCounterMode(display=False) as counter:
        step(a.warmup)
    found["of_matmul_peak"] = counter.get_total_flops() / found["s"] / matmul_peak()
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
