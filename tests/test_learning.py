"""Golden learning curves: every stage of a tiny pipeline ends where it did when it was known to work.

A change that hurts learning without breaking a formula's test (a schedule, a sign, a forgotten
<|endoftext|>) moves a figure out of its band; the damages below prove it. What a step costs is looked
at as well, in operations and multiplications: they are the same on every machine.
"""
import os
import statistics

import pytest
import torch
import village
from test_sft import log_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import data
import model
import ppo
import reward
import sample
import sft
from runtime import adam, optimizer_step
from runtime.world import compute_again

# PPO pays six times the village's price for KL: near the supervised policy a token that rounding
# chose otherwise is soon forgotten (at 0.1 the last KL is anything from 2.2 to 4.5).
FLAGS = {"ppo": "--kl-coef 0.6"}

# (stage, figure, step; "end": mean of the last ten lines): lowest and highest that pass. Beside them,
# least .. median .. most of 40 runs that differ by rounding alone (tests/population.py); what torch's
# kernels for AVX2 and for none, and torch 2.11 and 2.15, give is the same to a hundredth.
BANDS = {
    ("supervised", "tokens", 0): (159, 159),             # 159
    ("supervised", "lr", 70): (0.00529, 0.0053),         # .00529
    ("supervised", "loss", 0): (6.27, 6.40),             # 6.335 .. 6.335 .. 6.335
    ("supervised", "valid_loss", 34): (0.835, 0.89),     # .8627 .. .8627 .. .8627
    ("supervised", "valid_loss", 69): (0.415, 0.446),    # .4305 .. .4305 .. .4305
    ("supervised", "valid_loss", 139): (0.24, 0.262),    # .2505 .. .2505 .. .2505
    ("reward", "lr", 20): (0.00305, 0.00306),            # .00306
    ("reward", "loss", 0): (0.695, 0.73),                # .7128 .. .7128 .. .7128
    ("reward", "valid_loss", 9): (0.53, 0.57),           # .5504 .. .5504 .. .5505
    ("reward", "valid_loss", 19): (0.38, 0.404),         # .3918 .. .3918 .. .3919
    ("reward", "valid_loss", 39): (0.416, 0.437),        # .4250 .. .4251 .. .4251
    ("reward", "valid_accuracy", 39): (0.83, 0.88),      # .8563 .. .8563 .. .8563
    ("ppo", "lr", 6): (0.00074, 0.00076),                # .00075
    ("ppo", "value_loss", 0): (3.02, 3.28),              # 3.114 .. 3.114 .. 3.115
    ("ppo", "clip_fraction", 0): (0.128, 0.146),         # .1342 .. .1342 .. .1342
    ("ppo", "entropy", 0): (0.48, 0.53),                 # .4987 .. .4987 .. .4987
    ("ppo", "score", "end"): (1.6, 2.1),                 # 1.810 .. 1.875 .. 1.924
    ("ppo", "kl", "end"): (1.0, 2.2),                    # 1.335 .. 1.448 .. 1.561
    ("ppo", "length", "end"): (7.5, 9.2),                # 8.188 .. 8.327 .. 8.519
    ("ppo", "eot_rate", "end"): (0.92, 1.0),             # .9594 .. .9695 .. .9766
}


def figure(log, key, when):
    """A figure of a stage's log at a step, or the mean over its last ten lines."""
    if when == "end":
        return statistics.fmean(line[key] for line in log[-10:])
    return next(line[key] for line in log if line["step"] == when)


def outside(stage, folder):
    """The figures of a stage that left their bands: {(figure, when): value}."""
    log = log_of(folder)
    seen = {(key, when): figure(log, key, when) for s, key, when in BANDS if s == stage}
    return {(key, when): value for (key, when), value in seen.items()
            if not BANDS[stage, key, when][0] <= value <= BANDS[stage, key, when][1]}


def train(stage, home, out):
    """Run a stage into out/stage, from home's earlier ones. Returns: its folder."""
    return village.run(stage, home / "village", out, FLAGS.get(stage, ""),
                       supervised=home / "supervised", rewarded=home / "reward")


@pytest.mark.parametrize("stage", village.STAGES)
def test_a_stage_learns_as_it_did(stage, home, tmp_path):
    assert not outside(stage, train(stage, home, tmp_path) if stage in FLAGS else home / stage)


def flat(step, steps, peak, *warmup):
    """A schedule that never falls."""
    return peak


def put(module, name, wrap):
    """A damage: wrap(function) takes a function's place."""
    return lambda patch: patch.setattr(module, name, wrap(getattr(module, name)))


DAMAGES = {        # name: (stage, damage, figures that must leave their bands)
    "imitation at one learning rate": (
        "supervised", put(sft, "cosine", lambda honest: flat), {("valid_loss", 139), ("lr", 70)}),
    "summaries without end": (
        "supervised", put(data, "encode_response", lambda honest: lambda *a: honest(*a)[:-1]),
        {("tokens", 0), ("valid_loss", 69)}),
    "chosen and rejected swapped": (
        "reward", put(reward, "pairwise_loss", lambda honest: lambda a, b: honest(b, a)),
        {("valid_accuracy", 39)}),
    "reward at one learning rate": (
        "reward", put(reward, "cosine", lambda honest: flat), {("valid_loss", 9), ("lr", 20)}),
    "advantages turned round": (
        "ppo", put(ppo, "whiten", lambda honest: lambda *a: -honest(*a)),
        {("score", "end"), ("kl", "end"), ("length", "end"), ("eot_rate", "end")}),
    "advantages not whitened": (
        "ppo", put(ppo, "whiten", lambda honest: lambda a, keep: a), {("clip_fraction", 0)}),
    "ppo at one learning rate": ("ppo", put(ppo, "linear", lambda honest: flat), {("lr", 6)}),
    "no price on KL": (
        "ppo", put(ppo, "token_rewards", lambda honest: lambda r, beta: honest(r, 0.0)),
        {("kl", "end")}),
    "values one token late": (
        "ppo", put(ppo, "gae", lambda honest: lambda r, v, *a: honest(r, v.roll(1, 1), *a)),
        {("value_loss", 0), ("clip_fraction", 0)}),
}
QUICK = ("summaries without end", "chosen and rejected swapped", "advantages turned round")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.skipif(
    "SLOW" not in os.environ, reason="half a minute in all: set SLOW=1")) for name in DAMAGES])
def test_damage_leaves_the_bands(name, home, tmp_path, monkeypatch):
    stage, damage, seen = DAMAGES[name]
    damage(monkeypatch)
    assert seen <= outside(stage, train(stage, home, tmp_path)).keys()


# ----------------------------------------------------------------------------------- what it costs

RECORD = {"a training step": (427, 3472883712), "16 summaries": (1981, 613416960)}      # laying out, too


class Calls(TorchDispatchMode):
    """Within, `n` counts the operations that torch is asked for."""
    n = 0

    def __torch_dispatch__(self, operation, types, args=(), more=None):
        self.n += 1
        return operation(*args, **(more or {}))


def cost(act):
    """Operations of act(), and multiplications and additions in its matrix products (torch 2.15
    counts those of the fused attention too, which are left out)."""
    with Calls() as calls:
        act()
    with FlopCounterMode(display=False) as counter:
        act()
    return calls.n, sum(n for name, n in counter.get_flop_counts()["Global"].items()
                        if "attention" not in str(name))


def costs(checkpointing=False):
    """What RECORD counts, now."""
    net = model.build(model.sized("toy", 1024))
    if checkpointing:
        compute_again(net)
    optimizer, draw = adam([net]), torch.Generator().manual_seed(0)
    queries = torch.randint(1000, (16, 48), generator=draw).tolist()
    rows = list(zip(queries, queries, strict=True))
    u = torch.rand(16, 16, generator=draw).double().numpy()

    def learn():
        (sft.nll(net, rows) / (16 * 48)).backward()
        optimizer_step({"norm": net}, optimizer, 1e-4, 0)

    @torch.no_grad()
    def write():
        sample.generate(net, queries, 16, 1.0, u)

    learn()                                            # Adam's moments come to life
    return {"a training step": cost(learn), "16 summaries": cost(write)}


def dearer(now):
    """What costs a tenth more operations, or a hundredth more work in matrix products, than it did."""
    return {what for what, (calls, work) in now.items()
            if calls > 1.1 * RECORD[what][0] or work > 1.01 * RECORD[what][1]}


def test_a_step_costs_no_more_than_it_did():
    assert not dearer(costs())
    assert dearer(costs(checkpointing=True)) == {"a training step"}      # every block computed twice
