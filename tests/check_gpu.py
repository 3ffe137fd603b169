"""What a renter of GPUs runs before paying for a night: two minutes, one line a check.

    make check-gpu                         (GPUS=8 SIZE=1.3b PARALLEL=fsdp; on a CPU: SIZE=toy)

Random weights and random text; nothing is read or written. Exit code 1 when a check fails.
"""
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model import SIZES, build, generate, lay_out, sized, token_logp, uniforms  # noqa: E402
from runtime import (  # noqa: E402
    ALONE,
    Common,
    Machine,
    accumulate,
    adam,
    flag,
    generator,
    optimizer_step,
)
from runtime.flags import entry, parse  # noqa: E402
from runtime.world import join_world  # noqa: E402
from sft import nll  # noqa: E402
from tools import plan  # noqa: E402

VOCABULARY = 50257


@dataclass(frozen=True)
class Config(Machine):
    size: str = flag("gpt2", "a row of model.py's table: what the night shall train")
    twin: str = flag("gpt2", "a size that fits one process whole, to compare 1 process with all")
    rows: int = flag(8, "rows a process, of the paper's shape")
    query_length: int = flag(512, "tokens of a post")
    response_length: int = flag(48, "tokens of a summary")
    peak: float = flag(0.0, "the device's peak in TFLOP/s, to say how much of it is used")
    checkpointing: bool = flag(False, "compute each layer's inside twice rather than remember it")


def random_rows(cfg, n, seed=0):
    """(query, response) token lists of n rows of nonsense."""
    draw = generator(seed, "check")
    longest = min(cfg.query_length, SIZES[cfg.size].context - cfg.response_length)
    lengths = draw.integers(longest // 2, longest, n)
    return [(draw.integers(VOCABULARY - 1, size=q).tolist(),
             draw.integers(VOCABULARY - 1, size=cfg.response_length).tolist()) for q in lengths]


def first_step(size, rows, world, cfg):
    """Loss and gradient norm of one step on a global batch of rows."""
    network = build(sized(size, VOCABULARY), 0, world)
    model, loss = world.parallelize(network, Common(checkpointing=cfg.checkpointing)), 0.0
    count = sum(len(r) for _, r in rows)
    for part in accumulate(world.share(rows), 2, model):
        with world.mixed():
            share = nll(model, part)
        (share / count * world.size).backward()
        loss += share.detach() / count
    norm = optimizer_step({"norm": network}, adam([network]), 0.0, 0)["norm"]
    return float(world.sum(torch.as_tensor(loss, device=world.device))), norm


def other(world, **changes):
    """The same world but for some of its fields."""
    return type(world)(**{**vars(world), **changes})


def decoding(cfg, world):
    """Largest difference of log-probs between decoding with the cache and a full forward, nats."""
    network = build(sized(cfg.size, VOCABULARY), 0, world)
    queries = [q for q, _ in random_rows(cfg, 4)]
    u = uniforms(0, "check", 0, range(4), 24)
    with torch.no_grad(), world.mixed(), world.gathered(network):
        said, logp = generate(network, queries, 24, u=u)
        kept = [[t for t in row if t < VOCABULARY] for row in said.tolist()]
        rows = lay_out(queries, kept, VOCABULARY, 24).to(world.device)
        again = token_logp(network(rows.tokens, at=rows.columns), rows.targets)
        began = clock(world)
        generate(network, queries * 16, 48, u=uniforms(0, "check", 1, range(64), 48))
        seconds = clock(world) - began
    return float((again - logp)[rows.is_response].abs().max()), 64 * 48 / seconds


def clock(world):
    """Seconds, when the device has done all it was told."""
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def training(cfg, world):
    """Seconds a step of cfg.rows rows a process, and the most memory it took, bytes (CUDA only)."""
    network = build(sized(cfg.size, VOCABULARY), 0, world)
    model = world.parallelize(network, Common(checkpointing=cfg.checkpointing))
    optimizer, rows, times = adam([network]), random_rows(cfg, cfg.rows, 1 + world.rank), []
    count = sum(len(response) for _, response in rows)
    for step in range(5):
        began = clock(world)
        with world.mixed():
            loss = nll(model, rows) / count
        loss.backward()
        optimizer_step({"norm": network}, optimizer, 1e-5, step)
        times.append(clock(world) - began)
    parameters = sum(p.numel() for p in network.parameters())
    tokens = sum(len(q) + len(r) for q, r in rows)
    return sorted(times[1:])[2], tokens, 6 * parameters * tokens


def main():
    """All checks, one line each."""
    cfg, failed = parse(Config, {}, None, __doc__), []
    with join_world(cfg) as world:
        def say(name, shown, good=None):
            mark = "     " if good is None else "ok   " if good else "FAIL "
            failed.extend([name] * (good is False))
            print(f"{mark}{name:58} {shown}", flush=True)

        say("processes, device, parallel", f"{world.size} x {world.device.type}, {cfg.parallel}")
        exact, half = other(world, bf16=False), other(world, bf16=True)
        gap, _ = decoding(cfg, exact)
        say("decoding with a cache against a full forward, fp32", f"{gap:.1e} nats", gap < 1e-3)
        gap, speed = decoding(cfg, world)
        say("the same in the precision of training", f"{gap:.1e} nats", gap < 0.2)
        say("tokens a second written by one process, 64 rows", f"{speed:,.0f}")

        rows = random_rows(cfg, 4 * world.size)
        loss, norm = first_step(cfg.size, rows, exact, cfg)
        rough, about = first_step(cfg.size, rows, half, cfg)
        say("loss in bf16 against fp32", f"{rough:.4f}, {loss:.4f}", abs(rough / loss - 1) < 0.01)
        say("gradient norm, likewise", f"{about:.4f}, {norm:.4f}", abs(about / norm - 1) < 0.1)
        one = first_step(cfg.twin, rows, other(ALONE, device=world.device), cfg)
        all_ = first_step(cfg.twin, rows, exact, cfg)
        for name, a, b in zip(("loss", "gradient norm"), one, all_, strict=True):
            say(f"{name} of 1 process against {world.size} ({cfg.twin})", f"{a:.6f}, {b:.6f}",
                abs(a / b - 1) < 1e-3)

        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds, tokens, flops = training(cfg, world)
        say(f"a training step, {cfg.rows} rows a process", f"{seconds:.2f} s")
        say("tokens a second read by one process", f"{tokens / seconds:,.0f}")
        used = flops / seconds / 1e12
        say("arithmetic", f"{used:.2f} TFLOP/s" +
            (f", {used / cfg.peak:.0%} of the peak" if cfg.peak else ""))
        planned = sum(plan.needs(plan.Config(
            cfg.size, "sft", world.size, parallel=cfg.parallel, checkpointing=cfg.checkpointing,
            precision="bf16" if world.bf16 else "fp32"), cfg.rows, 1)[0].values()) / 1e9
        if world.device.type == "cuda":
            most = torch.cuda.max_memory_allocated() / 1e9
            say("most memory, and what plan.py says", f"{most:.1f}, {planned:.1f} GB",
                most < 1.15 * planned)
        else:
            say("memory that plan.py says (not measured on a CPU)", f"{planned:.2f} GB")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    entry(main)
