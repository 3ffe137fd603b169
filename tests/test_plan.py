"""What plan.py predicts, against what torch's own trackers of memory count."""
import importlib
import os
from dataclasses import fields

import pytest
import torch
import torch.distributed as dist
from test_distributed import ranks
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

import model
import runtime
from runtime import Problem
from runtime.world import World, compute_again
from tools import plan


def of(tracker, kind):
    """{category: bytes} on the CPU, now or at the peak."""
    snapshot, = tracker.get_tracker_snapshot(kind).values()
    return {str(key).split(".")[-1]: value for key, value in snapshot.items()}


def steps(net, optimizer, rows, tracker, world):
    """A step that brings Adam's moments to life, then, tracked, two micro-batches.

    Returns: what is held between the last forward and its backward pass.
    """
    with tracker:
        for micro in range(3):
            with world.mixed():
                logits = net(rows.tokens, at=rows.columns)      # every row is as long as the others
                loss = -model.token_logp(logits, rows.targets).sum()
            held = of(tracker, "current")
            loss.backward()
            if micro == 0:
                optimizer.step()
                optimizer.zero_grad()
            if micro < 2:
                tracker.reset_mod_stats()
    return held


def rows_of(query, response, n, vocabulary):
    return model.lay_out([[1] * query] * n, [[2] * response] * n, vocabulary)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("size, vocabulary, n", [("toy", 1024, 16), ("laptop", 4096, 8)])
def test_the_peak_of_a_real_step_is_foretold(size, vocabulary, n, checkpointing, world,
                                             monkeypatch):
    net = model.build(model.sized(size, vocabulary))
    if checkpointing:
        compute_again(net)
    optimizer = torch.optim.AdamW(net.parameters(), foreach=False)
    tracker = MemTracker()
    tracker.track_external(net, optimizer)
    steps(net, optimizer, rows_of(200, 40, n, vocabulary), tracker, world)
    cfg = plan.Config(size=size, stage="sft", checkpointing=checkpointing, precision="fp32",
                      vocabulary=vocabulary)
    job = plan.work(cfg)._replace(query=200, response=40)
    monkeypatch.setattr(plan, "work", lambda _: job)
    expected = sum(plan.needs(cfg, n, 1)[0].values())
    assert expected == pytest.approx(of(tracker, "peak")["Total"], rel=0.15)


@pytest.mark.parametrize("size", ["gpt2", *(pytest.param(size, marks=pytest.mark.skipif(
    "SLOW" not in os.environ, reason="half a minute: set SLOW=1")) for size in ("1.3b", "6.7b"))])
def test_eight_imaginary_gpus_hold_what_the_plan_says(size, monkeypatch):
    """FSDP2 on fake ranks and fake tensors: weights, gradients, Adam, activations, each by itself."""
    def act():
        dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
        world = World(0, 8, torch.device("cpu"), bf16=True, parallel="fsdp")
        with monkeypatch.context() as patch:           # memory only later, and then a fake one
            patch.setattr(torch.nn.Module, "to_empty", lambda self, **_: self)
            net = model.skeleton(model.sized(size, plan.VOCABULARY), world)
        with FakeTensorMode(allow_non_fake_inputs=True):
            net.to_empty(device="cpu")
            optimizer = torch.optim.AdamW(net.parameters(), foreach=False)
            tracker = FSDPMemTracker(net, optimizer)
            held = steps(net, optimizer, rows_of(512, 48, 4, plan.VOCABULARY), tracker, world)
        expected, _ = plan.needs(plan.Config(size=size, stage="sft", gpus=8, parallel="fsdp"), 4, 1)
        now, peak = of(tracker, "current"), of(tracker, "peak")
        assert now["SHARDED_PARAM"] == pytest.approx(expected["weights"], rel=0.01)
        assert now["SHARDED_GRAD"] == pytest.approx(expected["gradients"], rel=0.01)
        assert now["OPT"] == pytest.approx(expected["Adam"], rel=0.01)
        print(size, held["ACT"], expected["activations"], peak["Total"], sum(expected.values()))
        assert held["ACT"] == pytest.approx(expected["activations"], rel=0.15)
        assert peak["Total"] == pytest.approx(sum(expected.values()), rel=0.15)
    assert ranks(1, act) == [0]


@pytest.mark.parametrize("flags, says", [
    ("--size 1.3b --stage ppo --gpus 1", "fits with micro-batch"),
    ("--size 6.7b --stage ppo --gpus 8 --parallel fsdp --checkpointing", "--parallel fsdp"),
    ("--size 13b --stage ppo --gpus 64 --parallel fsdp --checkpointing", "--nnodes=8"),
    ("--size 6.7b --stage ppo --gpus 8", "does not fit; try --parallel fsdp"),
    ("--size 6.7b --stage reward --gpus 1", "does not fit; try --gpus"),
    ("--size 13b --stage sft --gpus 8 --parallel fsdp", "fits with micro-batch"),
])
def test_plans_are_believable(flags, says, capsys):
    plan.main(flags.split())
    said = capsys.readouterr().out
    assert says in said
    if "does not fit" not in said:
        columns = [line.split()[-1] for line in said.splitlines() if line.startswith("sum")]
        assert all(float(column) <= 72 for column in columns) and "torchrun" in said


def test_the_command_of_a_plan_parses():
    import ppo
    cfg = plan.Config(size="6.7b", gpus=8, parallel="fsdp", checkpointing=True)
    line = plan.command(cfg, 4, 32).split("ppo.py ")[1]
    assert runtime.flags.parse(ppo.Config, ppo.PRESETS, line.split(), "").micro_batch == 4


def test_a_size_of_ones_own_borrows_the_toys_preset(monkeypatch, capsys):
    monkeypatch.setitem(plan.sized.__globals__["SIZES"], "mine", plan.sized.__globals__["Size"](4, 96, 4, 512))
    for stage in ("sft", "reward", "ppo"):
        plan.main(["--size", "mine", "--stage", stage])
        assert "fits with micro-batch" in capsys.readouterr().out


@pytest.mark.parametrize("flags, match", [("--size 5b", "unknown"), ("--gpus 7", "divide"),
                                          ("--memory 0", "--memory"), ("--stage x", "--stage")])
def test_plans_of_nothing_are_problems(flags, match):
    with pytest.raises(Problem, match=match):
        plan.main(flags.split())


def test_sharding_in_two_holds_little_more_than_half():
    """--preset laptop: weights, gradients and Adam of one of two ranks against one process."""
    whole, half = (sum(plan.needs(plan.Config(size="laptop", stage="sft", gpus=n, parallel="fsdp",
                                              vocabulary=4096), 1, 1)[0][key]
                       for key in ("weights", "gradients", "Adam")) for n in (1, 2))
    assert half == pytest.approx(whole / 2)

    def act():
        dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
        world = World(0, 2, torch.device("cpu"), parallel="fsdp")
        net = model.build(model.sized("laptop", 4096), 0, world)
        optimizer = torch.optim.AdamW(net.parameters(), foreach=False)
        tracker = FSDPMemTracker(net, optimizer)
        steps(net, optimizer, rows_of(60, 8, 2, 4096), tracker, world)
        now = of(tracker, "current")
        held = now["SHARDED_PARAM"] + now["SHARDED_GRAD"] + now["OPT"]
        print(f"held {held / whole:.4f} of {whole / 1e6:.1f} MB", flush=True)
        assert held <= 0.6 * whole
    assert ranks(1, act) == [0]


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("size, how", [("1.3b", {}), ("6.7b", dict(
    parallel="fsdp", checkpointing=True))])
def test_the_papers_presets_fit_eight_gpus_of_80_gb(size, how, stage):
    """SCALING.md's commands, with the micro-batches that the presets bring."""
    script = importlib.import_module(stage)
    by = {"by": "loss_on"} if stage == "sft" else {}
    needed = [f"--{field.name}=x" for field in fields(script.Config) if field.default is ...]
    flags = runtime.flags.parse(script.Config, script.PRESETS, ["--preset", size, *needed], "", **by)
    learning, writing = plan.needs(plan.Config(size, stage, 8, **how), flags.micro_batch,
                                   getattr(flags, "rollout_batch", 1))
    assert max(sum(learning.values()), sum(writing.values())) < 72e9
