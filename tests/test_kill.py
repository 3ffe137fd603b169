"""Kill it anywhere: what is on the disk is always enough to end with the same bits.

Two harnesses. The exhaustive one ends a little run before, within and after *every* operation on a
file that it makes, and resumes. The other starts the real stages, alone and in two processes, and
sends SIGKILL at random moments. KILLS=40 is the long form: it prints the table of SCALING.md.
"""
import builtins
import contextlib
import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from test_distributed import free_port, ranks
from test_runtime import Killed, little_run, log_of

import ppo
import reward
import runtime
import sft
from runtime import Problem

KILLS = int(os.environ.get("KILLS", 0))          # KILLS=40 for the long version
STRIDE = 1 if KILLS else 3                       # of the operations tried where all take long
CALLS = [(os, name) for name in ("replace", "fsync", "mkdir", "unlink", "rmdir", "open")]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


# --------------------------------------------------------------------------- every single operation

class Torn:
    """An open file whose first write is two: half of the bytes, then the rest."""

    def __init__(self, file, note):
        self.file, self.note, self.whole = file, note, True

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def write(self, content):
        half = len(content) // 2 if self.whole else 0
        if self.whole:
            self.whole = False
            self.file.write(content[:half])
            self.file.flush()
            self.note()
        self.file.write(content[half:])
        return len(content)


@contextlib.contextmanager
def counting(act):
    """Within, act(n) is called before the n-th operation on files; half-way counts as one."""
    count, patch = [0], pytest.MonkeyPatch()

    def note():
        count[0] += 1
        act(count[0])

    def noted(call):
        def noting(*args, **more):
            note()
            return call(*args, **more)
        return noting

    def opened(path, mode="r", *args, **more):
        if not set(mode) & set("wax+") or not isinstance(path, str | Path):
            return real(path, mode, *args, **more)
        note()
        return Torn(real(path, mode, *args, **more), note)
    real = builtins.open
    for module, name in CALLS:
        patch.setattr(module, name, noted(getattr(module, name)))
    patch.setattr(builtins, "open", opened)
    try:
        yield count
    finally:
        patch.undo()


def dying(at, out, world, line):
    """A little run in a process of its own that ends, as by SIGKILL, at its at-th operation:
    nothing is unwound, no buffer written. Returns: its exit code, 9 when it was ended."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with counting(lambda n: n == at and os._exit(9)):
                little_run(out, world, line)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sound(out, expected, whole):
    """Assert that a run ended as the uninterrupted one, with nothing else in its folder."""
    assert torch.equal(torch.load(out / "model.pt", weights_only=True)["weight"], expected)
    ours, theirs = ([{**line, "seconds": 0} for line in log_of(folder)] for folder in (out, whole))
    assert ours == theirs
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "log.jsonl", "model.pt"]


SIX = "--steps 6 "                                 # states after 2, 4 and 6 steps, of which two stay


@pytest.fixture
def whole(tmp_path, world, monkeypatch):
    """An uninterrupted little run, its weights, and the number of its operations on files. (No
    waiting for the disk here: SIGKILL takes nothing from the kernel's memory.)"""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(runtime.files.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=""))
    with counting(lambda n: None) as count:
        expected = little_run(tmp_path / "whole", world, SIX)
    return tmp_path / "whole", expected, count[0]


def test_a_run_ended_at_any_operation_on_a_file_resumes_bit_for_bit(tmp_path, world, whole):
    folder, expected, _ = whole
    out = tmp_path / "run"
    for at in itertools.count(1):
        code = dying(at, out, world, SIX)
        little_run(out, world, SIX + "--resume")
        sound(out, expected, folder)
        shutil.rmtree(out)
        if code != 9:
            break
    assert at > 80                    # 3 states, a final save, 6 lines of log, ...: all were tried


def test_a_resumed_run_ended_at_any_operation_resumes_too(tmp_path, world, whole):
    folder, expected, _ = whole
    with pytest.raises(Killed):
        little_run(tmp_path / "half", world, SIX, die_at=5)
    (tmp_path / "half/log.jsonl").open("a").write('{"step": 5, "wei')
    for at in itertools.count(1, STRIDE):
        out = shutil.copytree(tmp_path / "half", tmp_path / "run")
        code = dying(at, out, world, SIX + "--resume")
        little_run(out, world, SIX + "--resume")
        sound(out, expected, folder)
        shutil.rmtree(out)
        if code != 9:
            break
    assert at > 40


def test_a_disk_that_refuses_any_one_operation_costs_one_line_and_no_state(tmp_path, world, whole,
                                                                           capsys):
    folder, expected, operations = whole
    out, refused = tmp_path / "run", 0
    tried = range(1, operations + 1, STRIDE)
    for at in tried:
        number = (errno.ENOSPC, errno.EROFS)[at % 2]              # full, read-only

        def refuse(n, at=at, number=number):
            if n == at:
                raise OSError(number, os.strerror(number), "somewhere")
        with counting(refuse), contextlib.suppress(SystemExit):
            runtime.flags.entry(lambda: little_run(out, world, SIX))
        told = (capsys.readouterr().err.splitlines() or [""])[-1]
        assert not list(out.rglob("*.part"))
        if not (out / "model.pt").exists():                       # (tidying up may fail in silence)
            assert told.startswith("error: ") and os.strerror(number) in told
            states = sorted(out.glob("state/step-*"))[-2:]        # a third may be half deleted
            assert all((p / "done.json").exists() for p in states)
            refused += 1
        little_run(out, world, SIX + "--resume")
        sound(out, expected, folder)
        shutil.rmtree(out)
    assert refused > 0.7 * len(tried)


def test_a_file_too_large_for_its_place_leaves_the_last_state(tmp_path, world, supervised):
    """The kernel's own refusal (a limit on the size of files), not ours; and in one line."""
    out = tmp_path / "run"
    line = f"--data {tmp_path} --size toy --query-length 80 --steps 9 --batch 1 --device cpu".split()
    for split in ("train", "valid"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(
            {"id": "1", "subreddit": "a", "title": "b", "post": "c", "summary": "d"}) + "\n")
    shutil.copy(supervised / "tokenizer.tiktoken", tmp_path)
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 1000; exec {sys.executable} {ROOT}/sft.py {' '.join(line)} "
                       f"--save-every 1 --out {out}"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        f"error: {out}/state/step-00000001 cannot be written (File too large)")
    assert "File too large" in done.stderr and not list(out.rglob("*.part"))


def test_two_processes_never_train_in_one_folder(tmp_path, world, whole):
    out, (hold, held) = tmp_path / "run", os.pipe()
    pid = os.fork()
    if pid == 0:
        def stay(*_):
            os.write(held, b"x")
            time.sleep(60)
        runtime.Run.save_if_due = stay
        with contextlib.suppress(BaseException):
            little_run(out, world, SIX)
        os._exit(0)
    assert os.read(hold, 1) == b"x"
    with pytest.raises(Problem, match="another process still trains there"):
        little_run(out, world, SIX + "--resume")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    little_run(out, world, SIX + "--resume")             # the kernel let go of it
    sound(out, whole[1], whole[0])


# ---------------------------------------------------------------------------- the real stages, shot

STAGES = {"pretraining": sft, "summary": sft, "reward": reward, "ppo": ppo}


@pytest.fixture
def line(data_dir, supervised, reward_model, comparisons, monkeypatch):
    """line(stage, out): a short run's command line, with a state to save every other step."""
    for script, constants in ((sft, dict(LOG_EVERY=1, EVAL_EVERY=4, EVAL_ROWS=4)),
                              (reward, dict(LOG_EVERY=1, EVAL_EVERY=5, EVAL_ROWS=4, ZERO_ROWS=8))):
        for name, value in constants.items():
            monkeypatch.setattr(script, name, value)

    def words(stage, out):
        imitate = (f"--data {data_dir} --size tiny --batch 8 --lr 1e-3 --steps 12 ")
        return (f"--device cpu --save-every 2 --query-length 80 --response-length 16 --out {out} "
                "--resume " * (stage != "ppo") + {
            "pretraining": imitate + "--loss-on all --query-length 24",
            "summary": imitate + "--weight-decay 0.1",
            "reward": f"--init {supervised} --comparisons {comparisons} --batch 4 --lr 1e-3",
            "ppo": f"--device cpu --save-every 2 --query-length 80 --response-length 16 --out {out}"
                   f" --resume --policy {supervised} --reward {reward_model} --data {data_dir} "
                   "--batch 4 --episodes 48 --minibatches 2 --lr 1e-3 --snapshot-every 5",
        }[stage]).split()
    return words


class Life:
    """One process, or two of torchrun's, at work on a stage.

    warm: forked from here, which has torch imported already; else started from nothing, so that
    the interpreter and the imports may be hit too (2 processes: by torchrun itself).
    """

    def __init__(self, stage, argv, processes, warm):
        main, self.codes = STAGES[stage].main, {}
        if warm:
            self.children = fork(processes, main, argv)
        else:
            start = Path(argv[argv.index("--out") + 1]).parent / "start.py"
            start.write_text(f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
                             f"import torch, model, runtime, {STAGES[stage].__name__} as stage\n"
                             "torch.set_num_threads(1)\n"
                             "model.SIZES['tiny'] = model.Size(2, 16, 2, 160)\n"
                             + "".join(f"stage.{name} = {getattr(STAGES[stage], name)}\n"
                                       for name in ("LOG_EVERY", "EVAL_EVERY", "EVAL_ROWS",
                                                    "ZERO_ROWS") if hasattr(STAGES[stage], name))
                             + "runtime.flags.entry(stage.main)\n")
            torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2",
                        f"--master_port={free_port()}"] if processes == 2 else []
            self.process = subprocess.Popen(               # (kept, or Python would wait for it)
                [sys.executable, *torchrun, str(start), *argv], stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
            self.children = [self.process.pid]

    def wait(self, seconds):
        """The exit codes once all have ended, or None after so many seconds."""
        deadline = time.monotonic() + seconds
        while len(self.codes) < len(self.children):
            for pid in self.children:
                if pid not in self.codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    self.codes[pid] = os.waitstatus_to_exitcode(ended[1])
            if len(self.codes) < len(self.children):
                if time.monotonic() > deadline:
                    return None
                time.sleep(0.004)
        return list(self.codes.values())

    def kill(self, rng):
        """SIGKILL: mostly to all at once, as a machine dies; of two sometimes to one alone, or to
        torchrun alone, whose workers then live on for a while."""
        mine = [pid for pid in self.children if pid not in self.codes]
        pids = mine + [worker for pid in mine for worker in workers_of(pid)]
        if len(pids) > 1 and rng.random() < 0.4:
            pids = [rng.choice(pids)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.wait(10) is None:                  # one waits for the other: torchrun ends it, too
            for pid in set(self.children) - self.codes.keys():
                os.kill(pid, signal.SIGKILL)
            assert self.wait(60) is not None


def workers_of(pid):
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def fork(processes, main, argv):
    """Process ids of ranks that run main(argv), quiet, as torchrun would have started them."""
    port, children = free_port() if processes > 1 else 0, []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            if processes > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR":
                               "127.0.0.1", "WORLD_SIZE": str(processes), "MASTER_PORT": str(port)}
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                runtime.flags.entry(lambda: main(argv))
                code = 0
            except SystemExit as left:
                code = left.code
            finally:
                os._exit(code)
        children.append(pid)
    return children


def numbers(out):
    """The log without what a clock said."""
    return [{k: v for k, v in json.loads(text).items() if "second" not in k}
            for text in (out / "log.jsonl").read_text().splitlines()]


def bits(out):
    """Every final weight's bytes, of policy, critic and snapshots."""
    return {f"{path.relative_to(out)} {name}": t.numpy().tobytes() for path in out.rglob("*.pt")
            for name, t in torch.load(path, weights_only=True).items()}


def shoot(stage, processes, more, line, tmp_path, kills, cold, rng):
    """Kill and resume until `kills` have hit, a new run whenever one gets done.

    cold: share of lives that begin with the interpreter. Returns: the table's row as a dict.
    """
    argv = [*line(stage, tmp_path / "whole"), *more]
    began = time.monotonic()
    assert set(Life(stage, argv, processes, warm=True).wait(300)) == {0}
    lasts = {True: time.monotonic() - began}
    truth, log = bits(tmp_path / "whole"), numbers(tmp_path / "whole")
    row = {"stage": stage, "processes": processes, "kills": 0, "cold": 0, "within a write": 0,
           "runs": 0, "resumed": 0, "bits different": 0, "steps lost or doubled": 0}
    while row["kills"] < kills:
        out = tmp_path / f"run-{row['runs']}"
        argv = [*line(stage, out), *more]
        for life in range(50):
            warm = rng.random() >= cold
            if not warm and False not in lasts:
                began = time.monotonic()
                other = [*line(stage, tmp_path / "cold"), *more]
                assert set(Life(stage, other, processes, False).wait(300)) == {0}
                lasts[False] = time.monotonic() - began
            last = life >= 4 or row["kills"] >= kills
            alive = Life(stage, argv, processes, warm)
            codes = alive.wait(300 if last else rng.uniform(0, 1.05) * lasts[warm])
            if codes is None:
                alive.kill(rng)
                row["kills"] += 1
                row["cold"] += not warm
                row["within a write"] += bool([*out.rglob("*.part"), *out.glob("state/writing*")])
            elif set(codes) == {0}:
                break
            else:                                  # a worker that outlives its torchrun has it yet
                time.sleep(0.5)
        row["runs"] += 1
        row["resumed"] += (out / "model.pt").exists()
        found = bits(out)
        row["bits different"] += sum(found.get(name) != value for name, value in truth.items())
        row["steps lost or doubled"] += numbers(out) != log
        assert found.keys() == truth.keys() and not [*out.rglob("*.part"), *out.glob("state")]
        shutil.rmtree(out)
    return row


def show(rows):
    print("\n" + " | ".join(rows[0]) + "\n" + "-|-".join("-" * len(k) for k in rows[0]))
    for row in rows:
        print(" | ".join(f"{value:>{len(key)}}" for key, value in row.items()))


def good(row):
    return (row["resumed"] == row["runs"] and not row["bits different"]
            and not row["steps lost or doubled"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_random_moments_ends_with_the_same_bits(stage, line, tmp_path):
    row = shoot(stage, 1, [], line, tmp_path, 2, 0, random.Random(stage))
    assert good(row), row


@pytest.mark.parametrize("how", ["ddp", pytest.param("fsdp", marks=pytest.mark.skipif(
    "SLOW" not in os.environ, reason="ten seconds: set SLOW=1"))])
def test_two_processes_go_back_from_a_damaged_state_and_say_so_once(how, line, tmp_path, capfd,
                                                                    monkeypatch):
    whole, out = ([*line("summary", tmp_path / name), "--parallel", how] for name in ("a", "b"))
    assert ranks(2, sft.main, whole) == [0, 0]
    yields = runtime.Run.steps

    def steps(run, total):
        for step in yields(run, total):
            if step == 7:
                os._exit(9)
            yield step
    with monkeypatch.context() as patch:
        patch.setattr(runtime.Run, "steps", steps)
        assert ranks(2, sft.main, out) == [9, 9]
    part = max((tmp_path / "b/state/step-00000006").glob("*.distcp"))       # one rank's piece
    part.write_bytes(part.read_bytes()[:-1])
    capfd.readouterr()
    assert ranks(2, sft.main, out) == [0, 0]
    assert capfd.readouterr().err.count(f"{part.name} is not") == 1
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")


@pytest.mark.skipif(not KILLS, reason="the long form: KILLS=40")
@pytest.mark.parametrize("processes, more", [(1, ""), (2, "--parallel ddp"), (2, "--parallel fsdp")])
@pytest.mark.parametrize("stage", STAGES)
def test_the_long_form(stage, processes, more, line, tmp_path, capsys):
    row = shoot(stage, processes, more.split(), line, tmp_path, KILLS, 0.1, random.Random(KILLS))
    row["processes"] = f"{processes} {more[11:]}"
    with capsys.disabled():
        show([row])
    assert good(row), row
