"""Appendix A: flags, randomness, files, and stopping in the middle."""
import dataclasses
import errno
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import tqdm
from conftest import ROOT
from torch import nn

import ppo
import runtime
import sft
from runtime import (
    Common,
    Machine,
    Problem,
    Run,
    accumulate,
    adam,
    flag,
    generator,
    optimizer_step,
    write,
)
from runtime.flags import parse
from runtime.world import join_world
from sample import uniforms
from sft import cosine


@dataclasses.dataclass(frozen=True)
class Config(Common):
    out: str = flag("run", "a folder")
    steps: int = flag(8, "how long")
    lr: float = flag(0.1, "how fast; 100 % of it")
    mode: str = flag("slow", "how", choices=("slow", "fast"))
    micro_batch: int = flag(4, "what fits", least=1)


PRESETS = {"big": dict(steps=100, lr=0.5), "small": dict(steps=1)}
BY_MODE = {"big": dict(slow=dict(steps=100), fast=dict(steps=10, lr=0.7))}


# ------------------------------------------------------------------------------------------ flags

def flags(line, presets=PRESETS, by=None):
    return parse(Config, presets, line.split(), "doc", by)


def test_typed_flags_win_over_the_preset_and_the_preset_over_defaults():
    assert flags("") == Config()
    assert flags("--preset big") == Config(steps=100, lr=0.5)
    assert flags("--lr 2 --preset big --micro-batch 1") == Config(steps=100, lr=2.0, micro_batch=1)
    assert flags("--preset big", BY_MODE, "mode") == Config(steps=100)
    fast = flags("--preset big --mode fast", BY_MODE, "mode")
    assert fast == Config(steps=10, lr=0.7, mode="fast")
    assert flags("--preset big --lr 0.1 --mode fast", BY_MODE, "mode").lr == 0.1
    assert flags("--resume").resume and not flags("").resume


@pytest.mark.parametrize("line", [
    "--lrr 1", "--preset huge", "--mode medium", "--steps many", "--steps", "--st 3", "stray",
    "--resume yes"])
def test_a_wrong_flag_is_a_problem_of_one_line(line):
    with pytest.raises(Problem) as caught:
        flags(line)
    assert any(word in str(caught.value) for word in line.split())
    assert "\n" not in str(caught.value) and "--help" in str(caught.value)


@pytest.mark.parametrize("typed, lr", [("", "1.5e-05"), ("--preset toy", "0.00015"),
                                       ("--preset=6.7b --lr 1", "7e-06")])
def test_help_shows_the_values_of_the_preset_that_was_typed(typed, lr, capsys):
    with pytest.raises(SystemExit):
        ppo.main([*typed.split(), "--help"])
    assert f"initial learning rate; falls linearly to 0 (default: {lr})" in " ".join(
        capsys.readouterr().out.split())


def test_help_lists_every_flag_with_its_words(capsys):
    with pytest.raises(SystemExit) as caught:
        flags("--help")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in shown
        assert field.metadata["help"] in shown


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        flags("").lr = 1


def test_a_flag_that_is_needed_may_not_be_empty():
    for typed in ([], ["--out", ""]):
        with pytest.raises(Problem, match="^--out is missing: this run's own folder.*--help lists"):
            parse(Common, {}, typed, "doc")


# -------------------------------------------------------------------------------- --config FILE

def saved(path, **flags):
    """A config.json that holds these flags."""
    path.write_text(json.dumps({"flags": flags, "torch": "2"}))
    return path


def test_a_config_wins_over_the_preset_and_typed_flags_over_the_config(tmp_path):
    file = saved(tmp_path / "config.json", lr=2, mode="fast", out="a", resume=True)
    assert flags(f"--config {file}") == Config(lr=2, mode="fast")       # neither --out nor --resume
    assert flags(f"--lr 3 --config {file} --out b") == Config(lr=3, mode="fast", out="b")
    assert flags(f"--preset big --config {file}") == Config(steps=100, lr=2, mode="fast")
    of_fast = flags(f"--preset big --config {file}", BY_MODE, "mode")    # mode stands in the file
    assert of_fast == Config(steps=10, lr=2, mode="fast")
    of_slow = flags(f"--preset big --config {file} --mode slow", BY_MODE, "mode")
    assert of_slow == Config(steps=100, lr=2, mode="slow")


def test_a_preset_that_a_config_leaves_nothing_to_say_is_a_problem(tmp_path):
    file = saved(tmp_path / "config.json", **dataclasses.asdict(Config()))
    assert flags(f"--config {file}") == Config()
    with pytest.raises(Problem, match="--config holds every flag of --preset"):
        flags(f"--config {file} --preset big")


@pytest.mark.parametrize("content, told", [
    ({"steps": "8"}, "steps is '8': int is expected"),
    ({"steps": True}, "steps is True: int is expected"),
    ({"steps": 8.5}, "steps is 8.5: int is expected"),
    ({"lr": None}, "lr is None: float is expected"),
    ({"compile": "no"}, "compile is 'no': bool is expected"),
    ({"mode": "medium"}, "mode is 'medium': slow or fast is expected"),
    ({"mode": ["slow"]}, r"mode is \['slow'\]: slow or fast"),
    ({"data": ["a"]}, "'data' is no flag of this script: is it another script's"),
    ({"lr": float("nan")}, "--lr is nan: a number of 0 or more"), ({"lr": -1}, "--lr is -1: a number"),
    ({"micro_batch": 0}, "--micro-batch is 0"), (None, "is not as runs/demo"), ([1], "is not as runs/demo")])
def test_a_config_of_something_else_is_a_problem_of_one_line(tmp_path, content, told):
    (tmp_path / "config.json").write_text(json.dumps({"flags": content}))
    with pytest.raises(Problem, match=told) as caught:
        flags(f"--config {tmp_path}/config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"model": {}}'])
def test_a_config_that_is_no_config_is_a_problem_of_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(Problem, match=f"--config {tmp_path}/config.json is not as runs/demo"):
        flags(f"--config {tmp_path}/config.json")


def test_a_config_that_is_missing_is_told_without_an_error_number(tmp_path, capsys):
    with pytest.raises(SystemExit):
        runtime.flags.entry(lambda: flags(f"--config {tmp_path}/none.json"))
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/none.json: No such file or directory:")


def test_help_shows_the_values_of_the_config(tmp_path, capsys):
    file = saved(tmp_path / "config.json", lr=0.25)
    with pytest.raises(SystemExit):
        flags(f"--config {file} --help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "how fast; 100 % of it (default: 0.25)" in shown and "--config FILE" in shown


def test_a_run_can_be_had_again_from_its_own_config(tmp_path, data_dir):
    first, again = tmp_path / "first", tmp_path / "again"
    sft.main(["--data", str(data_dir), "--query-length", "80", "--response-length", "16", "--batch",
              "4", "--steps", "3", "--lr", "0.002", "--seed", "5", "--device", "cpu", "--out", str(first)])
    sft.main(["--config", str(first / "config.json"), "--out", str(again)])
    assert (first / "model.pt").read_bytes() == (again / "model.pt").read_bytes()
    ours, theirs = ([{**line, "seconds": 0} for line in log_of(out)] for out in (first, again))
    assert ours == theirs and len(ours) == 2
    known, other = (runtime.config_of(out)["flags"] for out in (first, again))
    assert known | {"out": str(again)} == other
    with pytest.raises(Problem, match="first already holds a run: add --resume"):
        sft.main(["--config", str(first / "config.json"), "--out", str(first)])
    with pytest.raises(Problem, match="--out is missing"):
        sft.main(["--config", str(first / "config.json")])
    sft.main(["--config", str(again / "config.json"), "--out", str(again), "--resume"])     # is finished
    with pytest.raises(Problem, match="'loss_on' is no flag of this script"):
        ppo.main(["--config", str(first / "config.json"), "--out", str(tmp_path / "ppo")])
    assert not (tmp_path / "ppo").exists()


# ------------------------------------------------------------------------------------- progress

def test_in_a_pipe_a_bar_is_a_line_now_and_then(world, capsys, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: clock[0])
    with world.bar(100, "sft", "step", leave=True) as bar:
        for _ in range(100):
            clock[0] += 1
            bar.set_postfix({"loss": 0.5}, refresh=False)
            bar.update()
    said = capsys.readouterr().err
    assert "\r" not in said and "\n\n" not in said
    assert [line.split("|")[0] for line in said.splitlines()] == [
        "sft:   0%", "sft:  30%", "sft:  60%", "sft:  90%", "sft: 100%"]
    assert "100/100" in said.splitlines()[-1] and "loss=0.5" in said.splitlines()[-1]


def test_in_a_pipe_a_short_bar_that_does_not_stay_says_nothing(world, capsys, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: clock[0])
    for n, lines in ((20, 0), (40, 1)):
        with world.bar(n, "pairs") as bar:
            for _ in range(n):
                clock[0] += 1
                bar.update()
        said = capsys.readouterr().err
        assert len(said.splitlines()) == lines and "\r" not in said


def test_a_terminal_sees_one_line_that_is_written_over(world, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with world.bar(3, "sft", leave=True) as bar:
        bar.update(3)
    said = capsys.readouterr().err
    assert said.startswith("\rsft:   0%") and said.count("\n") == 1


def test_only_the_first_process_shows_progress(capsys):
    with runtime.world.World(1, 2, torch.device("cpu")).bar(3, "sft", leave=True) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_problems_leave_one_line_and_exit_code_2(capsys):
    def main():
        raise Problem("what, where, what to do")

    with pytest.raises(SystemExit) as caught:
        runtime.flags.entry(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: what, where, what to do\n"


@pytest.mark.parametrize("device", ["tpu", "cuda:9", "mps"])
def test_a_device_that_is_not_here_is_a_problem(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is here")
    with (pytest.raises(Problem, match="--device"),
          join_world(parse(Machine, {}, ["--device", device], ""))):
        pass


# ------------------------------------------------------------------------------------- randomness

def test_uniforms_of_a_row_do_not_depend_on_other_rows():
    everyone = uniforms(3, "rollout", 5, range(10), 7)
    assert everyone.shape == (10, 7) and everyone.dtype == np.float64
    assert (uniforms(3, "rollout", 5, [7, 2], 7) == everyone[[7, 2]]).all()
    assert (uniforms(3, "rollout", 5, range(10), 4) == everyone[:, :4]).all()
    assert uniforms(3, "rollout", 5, [], 7).shape == (0, 7)


def test_uniforms_differ_by_seed_purpose_step_and_row():
    drawn = [uniforms(*a, 50)[0] for a in (
        (0, "rollout", 0, [0]), (1, "rollout", 0, [0]), (0, "minibatch", 0, [0]),
        (0, "rollout", 1, [0]), (0, "rollout", 0, [1]), (2 ** 40, "rollout", 0, [0]))]
    assert len({x.tobytes() for x in drawn}) == 6
    assert np.abs(np.corrcoef(drawn) - np.eye(6)).max() < 0.5
    assert generator(-1, "a").random() != generator(0, "a").random()


def test_uniforms_are_uniform():
    u = uniforms(0, "rollout", 0, range(500), 100)
    assert 0 <= u.min() and u.max() < 1
    share = np.histogram(u, 20, (0, 1))[0] / u.size
    chi_square = ((share - 0.05) ** 2 / 0.05).sum() * u.size
    assert chi_square < 50                      # 19 degrees of freedom: 1 in 10,000
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 0.02


# ----------------------------------------------------------------------------------------- descent

def test_the_optimizer_holds_every_parameter_once_and_only_matrices_decay(tiny):
    nets = [tiny(), tiny(head="scalar")]
    optimizer = adam(nets, 0.95, 1e-5, weight_decay=0.1)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    wanted = [p for net in nets for p in net.parameters()]
    assert sorted(map(id, held)) == sorted(map(id, wanted)) and len(set(map(id, held))) == len(held)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for net in nets:
        for name, p in net.named_parameters():
            assert decay[id(p)] == (0.1 if p.ndim == 2 and name not in ("wte.weight", "wpe.weight")
                                    else 0), name
    assert all(g["betas"] == (0.9, 0.95) and g["eps"] == 1e-5 for g in optimizer.param_groups)


def test_a_gradient_that_is_not_finite_is_a_problem_and_moves_nothing(tiny):
    for bad in (math.nan, math.inf):
        nets = [tiny(), tiny(head="scalar")]
        optimizer = adam(nets)
        before = [p.clone() for net in nets for p in net.parameters()]
        for net in nets:
            net(torch.zeros(2, 3, dtype=torch.long)).sum().backward()
        nets[1].head.weight.grad[0, 0] = bad
        with pytest.raises(Problem, match="step 7: .*" + str(bad)):
            optimizer_step(dict(enumerate(nets)), optimizer, 0.1, 7)
        after = [p for net in nets for p in net.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_each_network_is_clipped_by_itself():
    nets = [nn.Linear(1, 1, bias=False) for _ in range(2)]
    optimizer = torch.optim.SGD([p for net in nets for p in net.parameters()], lr=0.0)
    for net, slope in zip(nets, (0.5, 100.0), strict=True):
        net.weight.data.zero_()
        net.weight.grad = torch.full((1, 1), slope)
    assert optimizer_step(dict(enumerate(nets)), optimizer, 1.0, 0) == {0: 0.5, 1: 100.0}    # norms before clipping
    assert nets[0].weight.item() == -0.5
    assert nets[1].weight.item() == pytest.approx(-1.0, rel=1e-4)
    assert nets[0].weight.grad is None
    nets[1].weight.grad = torch.full((1, 1), 100.0)
    optimizer_step({1: nets[1]}, optimizer, 1.0, 1, 0)                           # clip 0: never
    assert nets[1].weight.item() == pytest.approx(-101.0, rel=1e-4)


def test_a_weight_of_two_networks_is_clipped_once_with_the_first():
    nets = [nn.ModuleDict({"trunk": nn.Linear(1, 1, bias=False)}) for _ in range(2)]
    trunk = nets[1]["trunk"] = nets[0]["trunk"]
    head = nets[1]["head"] = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD([trunk.weight, head.weight], lr=0.0)
    for weight, slope in ((trunk.weight, 40.0), (head.weight, 300.0)):
        weight.data.zero_()
        weight.grad = torch.full((1, 1), slope)
    assert optimizer_step(dict(enumerate(nets)), optimizer, 1.0, 0) == {0: 40.0, 1: 300.0}
    assert [trunk.weight.item(), head.weight.item()] == pytest.approx([-1.0, -1.0], rel=1e-4)


def test_micro_batches_are_the_rows_in_order():
    assert list(accumulate(list(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(accumulate([], 3)) == []


# ------------------------------------------------------------------------------------------- files

def test_a_report_with_a_number_that_is_not_finite_is_refused_in_one_line(tmp_path):
    (tmp_path / "report.json").write_text("old")
    for odd in (math.nan, math.inf):
        with pytest.raises(Problem, match="report.json is not written: .* not finite"):
            write(tmp_path / "report.json", {"policies": [{"kl": odd}]})
    assert (tmp_path / "report.json").read_text() == "old"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file.txt"
    write(path, "old ä")
    assert path.read_text() == "old ä" and [p.name for p in path.parent.iterdir()] == ["file.txt"]

    def fails(*_):
        raise OSError("disk full")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(Problem, match="file.txt cannot be written .disk full."):
        write(path, "new")
    assert path.read_text() == "old ä" and [p.name for p in path.parent.iterdir()] == ["file.txt"]
    monkeypatch.undo()
    write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"


class Killed(Exception):
    """What the tests raise to end a process without a word."""


def little_run(out, world, line="", die_at=None, fast=False):
    """Eight steps of something that looks like training. Returns: the final weights."""
    cfg = flags(f"--out {out} --save-every 2 {line}")
    net = nn.Linear(2, 1, bias=False)
    net.weight.data.fill_(1.0)
    optimizer = adam([net])
    run = Run(cfg, world, {"model": net}, optimizer, model={})
    if run.finished:
        return torch.load(pathlib.Path(out) / "model.pt", weights_only=True)["weight"]
    for step in run.steps(cfg.steps):
        if step == die_at:
            raise Killed
        net(torch.ones(1, 2)).square().sum().backward()
        optimizer_step({"norm": net}, optimizer, cosine(step, cfg.steps, cfg.lr, 0), step)
        run.log(step, weight=net.weight[0, 0].item())
        run.save_if_due(step)
    run.finish(model=net)
    return net.weight.detach()


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_folder_that_holds_a_run_is_left_alone_without_resume(tmp_path, world):
    out = tmp_path / "run"
    little_run(out, world)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(Problem, match="already holds a run: add --resume"):
        little_run(out, world)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_resume_refuses_other_flags_but_not_free_ones(tmp_path, world):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        little_run(out, world, die_at=5)
    with pytest.raises(Problem, match="was started with --lr 0.1, not 0.2"):
        little_run(out, world, "--resume --lr 0.2")
    with pytest.raises(Problem, match="--seed 0, not 1"):
        little_run(out, world, "--resume --seed 1")
    moved = out.rename(tmp_path / "elsewhere")
    little_run(moved, world, "--resume --micro-batch 1 --save-every 1 --device cpu")


@pytest.mark.parametrize("die_at", [1, 2, 5, 7])
def test_resume_goes_on_as_if_nothing_had_happened_and_doubles_no_line(tmp_path, world, die_at):
    expected = little_run(tmp_path / "whole", world)
    out = tmp_path / "broken"
    with pytest.raises(Killed):
        little_run(out, world, die_at=die_at)
    with open(out / "log.jsonl", "a") as f:
        f.write('{"step": 9, "wei')                             # a line that death cut short
    assert torch.equal(little_run(out, world, "--resume"), expected)
    ours, theirs = log_of(out), log_of(tmp_path / "whole")
    assert [line["step"] for line in ours] == list(range(8))
    assert [line["weight"] for line in ours] == [line["weight"] for line in theirs]
    seconds = [line["seconds"] for line in ours]
    assert seconds == sorted(seconds)


def test_resume_starts_a_run_that_never_was(tmp_path, world):
    little_run(tmp_path / "run", world, "--resume")
    assert len(log_of(tmp_path / "run")) == 8


def test_a_finished_run_keeps_its_weights_and_throws_its_state_away(tmp_path, world):
    out = tmp_path / "run"
    weight = little_run(out, world)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "log.jsonl", "model.pt"]
    assert torch.equal(torch.load(out / "model.pt", weights_only=True)["weight"], weight)
    known = runtime.config_of(out)
    assert known["flags"]["lr"] == 0.1 and known["torch"] == torch.__version__
    assert set(known) >= {"flags", "commit", "torch", "model", "seconds"}


def test_a_resumed_run_keeps_the_commit_that_it_began_with(tmp_path, world):
    path = tmp_path / "run/config.json"
    with pytest.raises(Killed):
        little_run(tmp_path / "run", world, die_at=5)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "an older one"}))
    little_run(tmp_path / "run", world, "--resume")
    assert runtime.config_of(tmp_path / "run")["commit"] == "an older one"


@pytest.mark.skipif(not shutil.which("git"), reason="no git here")
def test_a_config_says_when_the_code_was_changed_since_its_commit(tmp_path, monkeypatch):
    code = tmp_path / "files.py"
    code.write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(runtime.files, "__file__", str(code))

    def commit():
        runtime.files.write_config(tmp_path / "config.json", runtime.Common(out="x"))
        return runtime.config_of(tmp_path)["commit"]
    clean = commit()
    assert len(clean) == 40
    code.write_text("2")
    assert commit() == clean + "-dirty"
    subprocess.run(["git", "-C", str(tmp_path), *who, "tag", "-a", "v1", "-m", "a"], check=True)
    assert commit() == clean + "-dirty"                        # not the tag's name
    monkeypatch.setattr(runtime.files.shutil, "which", lambda name: None)
    assert commit() is None


def test_a_finished_run_that_is_resumed_says_so_and_changes_nothing(tmp_path, world, capsys):
    out = tmp_path / "run"
    little_run(out, world)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    little_run(out, world, "--resume")
    assert capsys.readouterr().out == f"{out} is finished: nothing is left to do\n"
    with pytest.raises(Problem, match="was started with --steps 8, not 9"):
        little_run(out, world, "--resume --steps 9")
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_the_last_two_states_are_kept(tmp_path, world):
    with pytest.raises(Killed):
        little_run(tmp_path / "run", world, die_at=7)
    kept = sorted(p.name for p in (tmp_path / "run" / "state").iterdir())
    assert kept == ["step-00000004", "step-00000006"]


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, world, capsys):
    expected, out = little_run(tmp_path / "whole", world), tmp_path / "broken"
    with pytest.raises(Killed):
        little_run(out, world, die_at=7)
    newest, older = (out / "state" / f"step-0000000{n}" for n in (6, 4))
    piece, = newest.glob("*.distcp")
    piece.write_bytes(piece.read_bytes()[:100])
    assert torch.equal(little_run(out, world, "--resume"), expected)
    said = capsys.readouterr().err
    assert f"{newest} is damaged ({piece.name} is not" in said and "from the state before" in said
    assert [line["step"] for line in log_of(out)] == list(range(8))


def test_damaged_states_alone_are_a_problem(tmp_path, world):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        little_run(out, world, die_at=7)
    for piece in out.glob("state/*/*"):
        piece.write_bytes(b"")
    with pytest.raises(Problem, match="is damaged .*no older one"):
        little_run(out, world, "--resume")


def test_what_is_no_number_is_null_in_the_log(tmp_path, world):
    run = Run(flags(f"--out {tmp_path}/run"), world, {}, None)
    for step in run.steps(1):
        run.log(step, fine=1.5, odd=math.nan)
    assert log_of(tmp_path / "run")[0] | {"seconds": 0} == {
        "step": 0, "fine": 1.5, "odd": None, "seconds": 0}


def test_a_state_half_written_is_not_taken_up(tmp_path, world, monkeypatch):
    out, save = tmp_path / "run", runtime.run.dcp.save

    def dies(state, checkpoint_id, **more):
        if (out / "state" / "step-00000002").exists():
            checkpoint_id.mkdir()
            (checkpoint_id / "half").write_text("x")
            raise Killed
        save(state, checkpoint_id=checkpoint_id, **more)
    monkeypatch.setattr(runtime.run.dcp, "save", dies)
    with pytest.raises(Killed):
        little_run(out, world)
    monkeypatch.undo()
    assert torch.equal(little_run(out, world, "--resume"), little_run(tmp_path / "whole", world))


@pytest.mark.parametrize("file", ["half", "done.json"])
def test_a_full_disk_keeps_no_half_written_state(tmp_path, world, monkeypatch, file):
    out, save, write = tmp_path / "run", runtime.run.dcp.save, runtime.run.write

    def full(path, act):
        if path.parent.name == "writing-00000004" and path.name == file:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x" * 1000)
            raise OSError(errno.ENOSPC, "No space left on device")
        return act()
    monkeypatch.setattr(runtime.run.dcp, "save", lambda state, checkpoint_id, **more: full(
        checkpoint_id / "half", lambda: save(state, checkpoint_id=checkpoint_id, **more)))
    monkeypatch.setattr(runtime.run, "write", lambda path, content: full(
        pathlib.Path(path), lambda: write(path, content)))
    with pytest.raises(Problem, match="step-00000004 cannot be written .No space left on device"):
        little_run(out, world)
    assert [p.name for p in (out / "state").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    assert torch.equal(little_run(out, world, "--resume"), little_run(tmp_path / "whole", world))


@pytest.mark.parametrize("every, kept", [(2, ["step-00000004", "step-00000006"]),
                                         (3, ["step-00000003", "step-00000006"])])
def test_weights_that_are_not_finite_in_the_last_step_are_not_saved(tmp_path, world, monkeypatch,
                                                                    every, kept):
    out, descend = tmp_path / "run", optimizer_step

    def diverging(nets, optimizer, lr, step):
        return descend(nets, optimizer, math.inf if step == 7 else lr, step)
    monkeypatch.setitem(globals(), "optimizer_step", diverging)
    with pytest.raises(Problem, match="step 7: the weights of the model are not finite"):
        little_run(out, world, f"--save-every {every}")
    assert sorted(p.name for p in (out / "state").iterdir()) == kept
    assert not (out / "model.pt").exists()


def test_ctrl_c_saves_says_how_to_go_on_and_fails(tmp_path, supervised, data_dir):
    out = tmp_path / "run"
    line = (f"--data {data_dir} --init {supervised} --query-length 80 --response-length 16 "
            "--batch 8 --steps 100000 --save-every 100000 --device cpu "
            f"--out {out}").split()
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; import sft; sft.LOG_EVERY = 1; sft.main()"
    child = subprocess.Popen([sys.executable, "-c", code, *line], text=True,
                             stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.time() + 240
        while not ((out / "log.jsonl").exists() and len(log_of(out)) >= 3):
            assert child.poll() is None and time.time() < deadline
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=120)[1]
    finally:
        child.kill()
    assert child.returncode == 130
    assert "--resume" in said.splitlines()[-1] and "Traceback" not in said
    state, = (out / "state").iterdir()
    done = len(log_of(out))
    assert state.name == f"step-{done:08d}" and f"stopped after step {done} of 100000" in said


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_after_a_whole_step(tmp_path, world, monkeypatch, number, code):
    expected = little_run(tmp_path / "whole", world)
    out, descend = tmp_path / "run", optimizer_step

    def interrupted(nets, optimizer, lr, step):
        if step == 4:
            os.kill(os.getpid(), number)
        return descend(nets, optimizer, lr, step)
    monkeypatch.setitem(globals(), "optimizer_step", interrupted)
    with pytest.raises(SystemExit) as caught:
        little_run(out, world)
    assert caught.value.code == code
    assert (out / "state" / "step-00000005").is_dir() and not (out / "model.pt").exists()
    monkeypatch.undo()
    assert torch.equal(little_run(out, world, "--resume"), expected)
    assert [line["step"] for line in log_of(out)] == list(range(8))


def test_a_second_ctrl_c_means_now(tmp_path, world, monkeypatch):
    def impatient(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    monkeypatch.setitem(globals(), "optimizer_step", impatient)
    with pytest.raises(KeyboardInterrupt):
        little_run(tmp_path / "run", world)


def test_signals_mean_what_they_meant_before_once_the_steps_are_done(tmp_path, world):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    little_run(tmp_path / "run", world)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
