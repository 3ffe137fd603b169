"""Appendix. What a stage will need before a machine is rented: memory, time, disk, the command.

    python -m tools.plan sizes                     what the sizes of model.py hold
    python -m tools.plan --size 6.7b --stage ppo --gpus 8 --memory 80 --parallel fsdp

Counted from the code, tensor by tensor: what is trained costs 16 bytes a parameter (fp32 weight,
gradient, Adam's two moments), what is frozen 2 (bf16); the rest is what a forward pass leaves
behind for the backward pass, and the logits. Batch sizes and lengths are those of the presets.

Read after: model.py, and the scripts whose presets it reads.
"""
import importlib
import sys
from dataclasses import dataclass, fields
from functools import cache
from typing import NamedTuple

import torch

from model import GPT, SIZES, sized
from runtime import Problem, flag
from runtime.flags import entry, parse

VOCABULARY = 50257                             # GPT-2's
NEAREST = {"toy-tiny": "toy", "toy-small": "toy", "toy-large": "toy", "3b": "1.3b",
           "13b": "6.7b", "gpt2-medium": "gpt2", "gpt2-large": "gpt2", "gpt2-xl": "gpt2"}
                                               # whose preset a size without one borrows (or toy)
EXAMPLES = {"sft": 116_722, "reward": 64_832}  # the paper's posts and comparisons, for one pass
MARGIN = 0.1                                   # of memory, for fragmentation, NCCL, CUDA itself


@dataclass(frozen=True)
class Config:
    size: str = flag("1.3b", "a row of model.py's table")
    stage: str = flag("ppo", "which script", choices=("sft", "reward", "ppo"))
    gpus: int = flag(1, "processes, one a GPU")
    memory: float = flag(80.0, "memory of one, GB")
    parallel: str = flag("ddp", "as in the scripts", choices=("ddp", "fsdp"))
    checkpointing: bool = flag(False, "as in the scripts")
    precision: str = flag("bf16", "as in the scripts", choices=("bf16", "fp32"))
    micro_batch: int = flag(None, "rows a training forward pass; none: the most that fit",
                            least=1)
    rollout_batch: int = flag(None, "summaries written at once; none: the most that fit", least=1)
    vocabulary: int = flag(VOCABULARY, "tokens the tokenizer has")
    peak: float = flag(989.0, "TFLOP/s of one GPU at its best (H100, bf16)")
    utilisation: float = flag(0.35, "share of the peak that training reaches")
    bandwidth: float = flag(3.35, "TB/s of one GPU's memory, which bounds decoding (H100)")
    network: float = flag(200.0, "GB/s at which weights and gradients travel between GPUs")


class Counted(NamedTuple):
    """A network's parameters: all of them, one block's, and those outside the blocks."""
    all: int
    block: int
    root: int


class Work(NamedTuple):
    """What a stage does, from its preset."""
    preset: str
    batch: int
    query: int           # tokens
    response: int
    rows: int            # rows of the network for each row of the batch: a comparison has two
    steps: int           # optimizer steps, PPO: iterations
    passes: int          # over each batch
    networks: tuple      # heads of the trained networks


@cache
def counted(size, vocabulary, head):
    """Exact, from the network itself on the meta device."""
    with torch.device("meta"):
        network = GPT(sized(size, vocabulary, head))
    total = sum(p.numel() for p in network.parameters())
    block = sum(p.numel() for p in network.blocks[0].parameters())
    return Counted(total, block, total - block * len(network.blocks))


def work(cfg):
    """The stage's Work."""
    script = importlib.import_module(cfg.stage)
    preset = cfg.size if cfg.size in script.PRESETS else NEAREST.get(cfg.size, "toy")
    by = {"by": "loss_on"} if cfg.stage == "sft" else {}
    needed = [f"--{field.name}=x" for field in fields(script.Config) if field.default is ...]
    flags = parse(script.Config, script.PRESETS, ["--preset", preset, *needed], "", **by)
    if cfg.stage == "ppo":
        return Work(preset, flags.batch, flags.query_length, flags.response_length, 1,
                    flags.episodes // flags.batch, flags.epochs, ("lm", "scalar"))
    reward = cfg.stage == "reward"
    steps = getattr(flags, "steps", 0) or EXAMPLES[cfg.stage] // flags.batch
    return Work(preset, flags.batch, flags.query_length, flags.response_length, 1 + reward, steps,
                1, ("scalar",) if reward else ("lm",))


# ------------------------------------------------------------------------------------------ memory

def activations(size, rows, T, R, bf16):
    """Bytes that one network's forward pass keeps for the backward pass: (a block, the last block).

    In units of rows * T * C values, a block keeps: its input; the normed input, read by q and by
    kv; q, k, v; what attention found; the sum; the normed sum; and the MLP's inside, 4 wide, before
    and after gelu. fp32: 16 values of 4 bytes. Under bf16 the stream stays in fp32 (input, sum),
    and q and kv each cast the normed input for themselves: 2 * 4 + 15 * 2 bytes. The last block
    keeps its MLP and q on the R read columns only.
    """
    wide = 2 if bf16 else 4
    each = (2 * 4 + 15 * wide) if bf16 else 16 * wide              # bytes for each of T and C
    looked_at = 4 + (1 + bf16) * wide + 2 * wide                   # the last block's, on T columns
    column = rows * size.width
    return (column * T * each + rows * size.heads * T * 4,         # and attention's log-sums, fp32
            column * (T * looked_at + R * (each - looked_at + 4 + wide)))


def backward(cfg, rows, T, R, heads):
    """What a micro-batch costs on top of the networks: (kept by the forward pass, temporary) in
    bytes, at the worst of the moments at which memory may be highest.
    """
    size, V, bf16 = SIZES[cfg.size], cfg.vocabulary, cfg.precision == "bf16"
    block, last = activations(size, rows, T, R, bf16)
    logits, embedding = 4 * rows * R * V * ("lm" in heads), 4 * V * size.width * ("lm" in heads)
    inputs = len(heads) * size.layers * rows * T * size.width * 4
    # 1. The head is differentiated: logits, their softmax, its gradient; then the embedding's.
    head = max(3 * logits, 2 * logits + embedding)
    if cfg.checkpointing:
        # 2. A block inside was computed again and is differentiated, 4 wide.
        again = max(block, last) + 4 * rows * T * size.width * (2 if bf16 else 4)
        moments = [(inputs, head), (inputs, again + embedding)]
    else:
        moments = [(len(heads) * ((size.layers - 1) * block + last), head)]
    # 3. At the end: the tied embedding's gradient from the head, padded, and from the tokens.
    return max([*moments, (0, 3 * embedding)], key=sum)


def needs(cfg, micro, rollout):
    """Bytes in one process: {what: bytes}, while learning and (PPO) while writing."""
    job, size, bf16 = work(cfg), SIZES[cfg.size], cfg.precision == "bf16"
    sharded = cfg.parallel == "fsdp" and cfg.gpus > 1
    share, wide, T = cfg.gpus if sharded else 1, 2 if bf16 else 4, job.query + job.response
    nets = [counted(cfg.size, cfg.vocabulary, head) for head in job.networks]
    trained = sum(net.all for net in nets)
    if sharded:      # every root, two blocks (one is on its way), and one unit's gradient
        unit = max(nets[0].block, nets[0].root)
        gathered = wide * (sum(net.root for net in nets) + 2 * nets[0].block) + (wide + 4) * unit
    else:            # autocast's copies
        gathered = 2 * trained if bf16 else 0
    fixed = {"weights": 4 * trained / share, "Adam": 8 * trained / share}
    if cfg.stage == "ppo":
        fixed["frozen"] = wide * trained / share
    kept, temporary = backward(cfg, micro * job.rows, T, 1 if cfg.stage == "reward" else
                               job.response, job.networks)
    learning = {**fixed, "gradients": 4 * trained / share, "gathered": gathered,
                "activations": kept, "temporary": temporary}
    if cfg.stage != "ppo":
        return learning, {}
    C, V, policy = size.width, cfg.vocabulary, wide * nets[0].all if sharded or bf16 else 0
    copy = 4 * V * C * bf16                       # the head's weights in fp32, where kept in bf16
    column, root = 10 * C * 4, wide * nets[0].root * sharded        # a column in a block; a root
    decoding = {**fixed, "gathered": policy, "temporary": copy * sharded + rollout * max(
        24 * V, job.query * column), "KV cache": size.layers * 2 * rollout * T * C * wide}
    # Scoring comes after the cache has gone. FSDP2 leaves a root gathered when no backward follows:
    # the reference's beside its logits, at last all three frozen or valuing ones and one arriving.
    scoring = {**fixed, "gathered": policy, "KV cache": 0,
               "temporary": max(4 * root + rollout * T * column,
                                root + copy + 2 * 4 * rollout * job.response * V)}
    writing = max(decoding, scoring, key=lambda part: sum(part.values()))
    return learning, writing


def largest(fits, limit):
    """The largest n up to `limit`, a power of two, that fits; 0 when not even 1 does."""
    n = 1 << max(0, int(limit).bit_length() - 1)
    while n and not fits(n):
        n //= 2
    return n


def choose(cfg):
    """Micro-batch and rollout batch: as typed, or the largest that fit (0: none does)."""
    room, mine = cfg.memory * 1e9 * (1 - MARGIN), work(cfg).batch // cfg.gpus
    micro = cfg.micro_batch or largest(
        lambda n: sum(needs(cfg, n, 1)[0].values()) <= room, mine)
    rollout = cfg.rollout_batch or largest(
        lambda n: sum(needs(cfg, 1, n)[1].values()) <= room, mine)
    return micro, rollout


# -------------------------------------------------------------------------------------------- time

def forward_flops(size, vocabulary, head, rows, T, R):
    """Floating-point operations of one forward pass: two for each weight and token it meets, and
    attention's T^2, halved since it is causal; the last block and the head on R columns."""
    C = size.width
    blocks = (size.layers - 1) * (24 * C * C * T + 2 * C * T * T)
    last = 4 * C * C * T + 20 * C * C * R + 4 * C * T * R
    return rows * (blocks + last + (2 * C * vocabulary * R if head == "lm" else 0))


def time_of(cfg, micro, rollout):
    """FLOPs a step and seconds a step, learning and writing apart: (flops, learn, write)."""
    job, size = work(cfg), SIZES[cfg.size]
    T, rate = job.query + job.response, cfg.gpus * cfg.peak * 1e12 * cfg.utilisation
    forward = sum(forward_flops(size, cfg.vocabulary, head, job.batch * job.rows, T, job.response)
                  for head in job.networks)
    learn = job.passes * (4 if cfg.checkpointing else 3) * forward
    # FSDP gathers bf16 weights twice and reduces fp32 gradients once a micro-batch; DDP reduces
    # once a step. It overlaps with computing, so the longer of the two counts.
    times = -(-job.batch // (cfg.gpus * micro)) if cfg.parallel == "fsdp" else 1
    params = sum(counted(cfg.size, cfg.vocabulary, head).all for head in job.networks)
    travel = 8 * params * times * job.passes / (cfg.network * 1e9) * (cfg.gpus > 1)
    learning = max(learn / rate, travel)
    if cfg.stage != "ppo":
        return learn, learning, 0.0
    scoring = 2 * forward + forward_flops(size, cfg.vocabulary, "lm", job.batch, job.query, 1)
    # Decoding reads every weight and the cache once a token, whatever the number of rows.
    chunks = -(-job.batch // (cfg.gpus * max(1, rollout)))
    wide = 2 if cfg.precision == "bf16" else 4
    cache = size.layers * 2 * max(1, rollout) * T * size.width * wide
    read = counted(cfg.size, cfg.vocabulary, "lm").all * wide + cache
    write = scoring / rate + chunks * job.response * read / (cfg.bandwidth * 1e12 * 0.6)
    return learn + scoring, learning, write


# ------------------------------------------------------------------------------------------ output

def command(cfg, micro, rollout):
    """The line to type."""
    job = work(cfg)
    nodes = -(-cfg.gpus // 8)
    where = ("--standalone " if nodes == 1 else
             f"--nnodes={nodes} --rdzv_backend=c10d --rdzv_id=night1 --rdzv_endpoint=HOST:29500 ")
    inputs = {"sft": "--data DATA --loss-on summary --init RUN/pretrained --out RUN/supervised",
              "reward": "--init RUN/supervised --comparisons RUN/comparisons.jsonl "
                        "--out RUN/reward",
              "ppo": "--policy RUN/supervised --reward RUN/reward --data DATA --out RUN/ppo"}
    flags = [f"--preset {job.preset}", *(["--parallel fsdp"] if cfg.parallel == "fsdp" else []),
             *(["--checkpointing"] if cfg.checkpointing else []), f"--micro-batch {micro}",
             *([f"--rollout-batch {rollout}"] if cfg.stage == "ppo" else [])]
    return (f"torchrun {where}--nproc_per_node={min(8, cfg.gpus)} {cfg.stage}.py "
            f"{' '.join(flags)} {inputs[cfg.stage]}")


def remedy(cfg):
    """What would make it fit, the cheapest first; None when nothing tried does."""
    tries = [("--checkpointing", dict(checkpointing=True)),
             ("--parallel fsdp", dict(parallel="fsdp")),
             ("--parallel fsdp --checkpointing", dict(parallel="fsdp", checkpointing=True))]
    tries += [(f"--gpus {n} --parallel fsdp --checkpointing",
               dict(gpus=n, parallel="fsdp", checkpointing=True))
              for n in (2 ** k for k in range(1, 11)) if n > cfg.gpus]
    for words, changes in tries:
        free = {**vars(cfg), "micro_batch": None, "rollout_batch": None}
        if all(choose(Config(**{**free, **changes}))):
            return words
    return None


def print_sizes():
    """The table of sizes, with GPT-2's vocabulary."""
    print(f"{'size':12} {'layers':>6} {'width':>6} {'heads':>6} {'context':>8} {'parameters':>15}")
    for name, (layers, width, heads, context) in SIZES.items():
        with torch.device("meta"):
            count = sum(p.numel() for p in GPT(sized(name, 50257)).parameters())
        print(f"{name:12} {layers:6} {width:6} {heads:6} {context:8} {count:15,}")


def main(argv=None):
    """Print the plan; or, with the word `sizes`, what the sizes hold."""
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["sizes"]:
        print_sizes()
        return None
    cfg = parse(Config, {}, argv, __doc__)
    sized(cfg.size, cfg.vocabulary)                    # complains about an unknown size
    job = work(cfg)
    if min(cfg.peak, cfg.utilisation, cfg.bandwidth, cfg.network) <= 0:
        raise Problem("--peak, --utilisation, --bandwidth and --network must be above 0")
    if cfg.gpus < 1 or job.batch % cfg.gpus or cfg.memory <= 0:
        raise Problem(f"--gpus {cfg.gpus}, --memory {cfg.memory:g}: both count from 1, and the "
                      f"batch of {job.batch} has to divide over the GPUs")
    if cfg.gpus > 8 and cfg.gpus % 8:
        raise Problem(f"--gpus {cfg.gpus}: beyond one machine, whole machines of 8")
    micro, rollout = choose(cfg)
    learning, writing = needs(cfg, max(1, micro), max(1, rollout))
    print(f"{cfg.stage}.py, {cfg.size}, {cfg.gpus} x {cfg.memory:g} GB, {cfg.parallel}, "
          f"{cfg.precision}{', checkpointing' * cfg.checkpointing}; hyper-parameters of --preset "
          f"{job.preset}\n")
    for head in job.networks:
        print(f"parameters, {head} head {counted(cfg.size, cfg.vocabulary, head).all:20,}")
    print(f"\n{'GB in one process':24}{'learning':>10}{'writing' if writing else '':>10}")
    names = dict.fromkeys([*learning, *writing])
    for name in names:
        cells = (f"{part[name] / 1e9:10.2f}" if name in part else f"{'-' if part else '':>10}"
                 for part in (learning, writing))
        print(f"{name:24}" + "".join(cells))
    sums = [sum(part.values()) / 1e9 for part in (learning, writing)]
    print(f"{'sum':24}" + "".join(f"{s:10.2f}" if s else "" for s in sums))
    room = cfg.memory * (1 - MARGIN)
    good = max(sums) <= room
    print(f"\nof {cfg.memory:g} GB, {room:g} are counted on: " + (
        f"fits with micro-batch {micro}" + f", rollout batch {rollout}" * (cfg.stage == "ppo")
        if good else f"does not fit; try {remedy(cfg) or 'more GPUs'}"))
    trained = sum(counted(cfg.size, cfg.vocabulary, head).all for head in job.networks)
    print(f"disk: {12 * trained / 1e9:.1f} GB a training state, two are kept; final weights "
          f"{4 * trained / 1e9:.1f} GB, as much of rank 0's host memory while they are gathered")
    if good:
        flops, learn, write = time_of(cfg, micro, rollout)
        hours = job.steps * (learn + write) / 3600
        what = "an iteration" if cfg.stage == "ppo" else "a step"
        print(f"time: {flops / 1e15:.3g} PFLOP and {learn + write:.1f} s {what}"
              + f" (writing {write:.1f} s)" * (cfg.stage == "ppo") +
              f", {job.steps:,} of them: {hours:.1f} hours, at {cfg.utilisation:.0%} of "
              f"{cfg.peak:g} TFLOP/s\n\n{command(cfg, micro, rollout)}")


if __name__ == "__main__":
    entry(main)
