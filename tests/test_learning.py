"""Golden learning curves: every stage of a tiny pipeline ends where it did when it was known to work.

A change that hurts learning without breaking a formula's test (a schedule, a sign, a forgotten
<|endoftext|>) moves a figure out of its band; the damages below prove it. Speed is looked at as
well, in units of a matrix product on the same machine: a slower step warns, and never fails.
"""
import os
import statistics
import time
import warnings

import pytest
import torch
import village
from test_sft import log_of

import model
import ppo
import reward
import sft
from runtime import adam, optimizer_step

# (stage, figure, step; "end": mean of the last three lines): lowest and highest that pass. The bands
# are several times wider than what other thread counts and weights rounded otherwise gave.
BANDS = {
    ("supervised", "tokens", 0): (159, 159),
    ("supervised", "lr", 70): (0.00529, 0.0053),
    ("supervised", "loss", 0): (6.27, 6.40),
    ("supervised", "valid_loss", 34): (0.835, 0.89),
    ("supervised", "valid_loss", 69): (0.415, 0.446),
    ("supervised", "valid_loss", 139): (0.24, 0.262),
    ("reward", "lr", 20): (0.00305, 0.00306),
    ("reward", "loss", 0): (0.695, 0.73),
    ("reward", "valid_loss", 19): (0.38, 0.404),
    ("reward", "valid_loss", 39): (0.416, 0.437),
    ("reward", "valid_accuracy", 39): (0.83, 0.88),
    ("ppo", "lr", 6): (0.00074, 0.00076),
    ("ppo", "value_loss", 0): (3.02, 3.28),
    ("ppo", "clip_fraction", 0): (0.128, 0.148),
    ("ppo", "entropy", 0): (0.48, 0.53),
    ("ppo", "score", "end"): (2.0, 2.85),
    ("ppo", "kl", "end"): (2.4, 5.5),
    ("ppo", "length", "end"): (7.6, 9.6),
    ("ppo", "eot_rate", "end"): (0.93, 1.0),
}


def figure(log, key, when):
    """A figure of a stage's log at a step, or the mean over its last three lines."""
    if when == "end":
        return statistics.fmean(line[key] for line in log[-3:])
    return next(line[key] for line in log if line["step"] == when)


def outside(stage, folder):
    """The figures of a stage that left their bands: {(figure, when): value}."""
    log = log_of(folder)
    seen = {(key, when): figure(log, key, when) for s, key, when in BANDS if s == stage}
    return {(key, when): value for (key, when), value in seen.items()
            if not BANDS[stage, key, when][0] <= value <= BANDS[stage, key, when][1]}


@pytest.mark.parametrize("stage", village.STAGES)
def test_a_stage_learns_as_it_did(stage, home):
    assert not outside(stage, home / stage)


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
        "supervised", put(sft, "encode_response", lambda honest: lambda *a: honest(*a)[:-1]),
        {("tokens", 0), ("valid_loss", 69)}),
    "chosen and rejected swapped": (
        "reward", put(reward, "pairwise_loss", lambda honest: lambda a, b: honest(b, a)),
        {("valid_accuracy", 39)}),
    "reward at one learning rate": (
        "reward", put(reward, "cosine", lambda honest: flat), {("valid_loss", 39), ("lr", 20)}),
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
    folder = village.run(stage, home / "village", tmp_path, supervised=home / "supervised",
                         rewarded=home / "reward")
    assert seen <= outside(stage, folder).keys()


# ------------------------------------------------------------------------------------------ speed

RECORD = {"a training step": 28.0, "16 summaries": 15.0}   # products of 512 x 512 by 512 x 512


def seconds(f, patience=1.0):
    """The quickest of as many calls as fit, after one that warms up, in this process's own time:
    what else the machine does meanwhile does not count."""
    f()
    quickest, end = float("inf"), time.process_time() + patience
    while time.process_time() < end:
        began = time.process_time()
        f()
        quickest = min(quickest, time.process_time() - began)
    return quickest


def costs():
    """What RECORD counts, here and now."""
    net = model.build(model.sized("toy", 1024))
    optimizer, draw = adam([net]), torch.Generator().manual_seed(0)
    queries = torch.randint(1000, (16, 48), generator=draw).tolist()
    rows = model.lay_out(queries, queries, net.config.n_vocab)
    u = torch.rand(16, 16, generator=draw).double().numpy()
    square = torch.randn(512, 512, generator=draw)

    def learn():
        (sft.nll(net, rows) / rows.is_response.sum()).backward()
        optimizer_step({"norm": net}, optimizer, 1e-4, 0)

    @torch.no_grad()
    def write():
        model.generate(net, queries, 16, 1.0, u)

    product = seconds(lambda: square @ square)
    return {"a training step": seconds(learn) / product, "16 summaries": seconds(write) / product}


def compare(now, record=RECORD):
    """Warn of each cost that is more than one and a half times the recorded one."""
    for what, cost in now.items():
        if cost > 1.5 * record[what]:
            warnings.warn(f"{what} costs {cost:.0f} matrix products, {cost / record[what]:.1f} times "
                          "what it did", stacklevel=2)


def test_a_slower_step_warns():
    now = costs()
    compare(now)                                                    # a warning here is the message
    with pytest.warns(UserWarning, match="16 summaries costs .* 2.0 times"):
        compare(now, {**now, "16 summaries": now["16 summaries"] / 2})
