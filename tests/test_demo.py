"""The pipeline of tools/demo.py, and that no file of ours needs what only some systems have."""
import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_house import FILES, check, commands
from test_kill import bits, numbers
from test_runtime import little_run

import runtime
from runtime import Run
from tools import demo

# ------------------------------------------------------------------------------ the list of stages


def stages(*argv):
    return demo.stages_of(*demo.flags(argv))


def typed(stage_list):
    """(script, words) of each command, as test_house reads them."""
    lines = [f"python {demo.shlex.join(command)}" for stage in stage_list for command in stage.commands]
    return list(commands("```\n" + "\n".join(lines) + "\n```\n"))


@pytest.mark.parametrize("argv", ["", "--quick", "--rounds 2", "--rounds 3 --by uncertainty --seed 4"])
def test_every_command_parses(argv, monkeypatch):
    found = typed(stages(*argv.split()))
    rounds = int((re.findall(r"--rounds (\d)", argv) or [1])[0])
    assert len(found) == 4 + 6 * rounds
    for script, words in found:
        check(script, words, monkeypatch)


def test_every_file_that_a_stage_needs_is_made_by_one_before_it():
    for argv in ([], ["--quick"], ["--rounds", "3"]):
        made = set()
        for stage in stages(*argv):
            assert made >= set(stage.sources)
            assert made >= {folder / "model.pt" for folder, _ in stage.copies}
            made.add(stage.made)
        assert len(made) == len(stages(*argv))                     # no two make the same file


def test_the_outer_loop_learns_from_all_labels_so_far():
    learned = [words[words.index("--comparisons") + 1]
               for script, words in typed(stages("--rounds", "2", "--run", "r", "--data", "d"))
               if script == "reward.py"]
    assert learned == ["r/rounds-2/1/comparisons.jsonl",
                       "r/rounds-2/1/comparisons.jsonl,r/rounds-2/2/comparisons.jsonl"]


def test_several_rounds_read_the_sum_and_write_less_before_the_last():
    def of(script, flag, *argv):
        return [words[words.index(flag) + 1] if flag in words else None
                for name, words in typed(stages(*argv)) if name == script]
    for argv, heads, episodes in (((), [None], [None]), (("--rounds", "1"), [None], [None]),
                                  (("--rounds", "3"), ["sum"] * 3, ["1024", "1024", None]),
                                  (("--quick", "--rounds", "2"), ["sum"] * 2, ["1024", "1536"])):
        assert of("reward.py", "--head", *argv) == heads
        assert of("ppo.py", "--episodes", *argv) == episodes


unix = pytest.mark.skipif(not hasattr(os, "killpg"), reason="takes away what only Unix has")
make = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


@make
@pytest.mark.parametrize("target, argv", [
    ("demo", []), ("quick", ["--quick"]), ("rounds", ["--rounds", "3", "--by", "random"])])
def test_make_hands_every_variable_on(target, argv):
    told = subprocess.run(["make", "-n", target, "SEED=7", "DATA=d", "RUN=r", "NETWORK=toy-tiny", "PAIRS=9",
                           "POSTS=8"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (script, words), = commands(f"```\n{told}\n```\n")
    ours, scale = demo.flags(words)
    theirs, same = demo.flags([*argv, *("--seed 7 --data d --run r --network toy-tiny --pairs 9 "
                                        "--posts 8").split()])
    assert script == "tools.demo" and ours == theirs and scale == same


@make
def test_make_alone_lists_its_targets():
    told = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony, = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.findall(r"^make ([\w-]+)  ", told, re.MULTILINE) == [
        name for name in phony.split() if name != "help"]


# ---------------------------------------------------------------------- when a stage is done, and progress

@pytest.fixture
def house(tmp_path, monkeypatch, capfd):
    """go(): three stages in a folder, which each add their name to `calls`; returns what was said."""
    (tmp_path / "work.py").write_text(
        "import os, sys, pathlib; name, *more = sys.argv[1:]; pathlib.Path(name).parent.mkdir(exist_ok=True)\n"
        "open('calls', 'a').write(name[0])\n"
        "if not more: pathlib.Path(name).write_text(name)\n"
        "code = int(more[0]) if more else 0\n"
        "os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)\n")
    monkeypatch.chdir(tmp_path)
    a, b, c = (Path(f"{name}/file") for name in "abc")
    three = [demo.Stage("first", a, (), ([str(tmp_path / "work.py"), "a/file"],), 60),
             demo.Stage("second", b, (a,), ([str(tmp_path / "work.py"), "b/file"],), 120),
             demo.Stage("third", c, (a, b), ([str(tmp_path / "work.py"), "c/file"],), 240)]

    def go(changed=None):
        Path("calls").write_text("")
        code = 0
        try:
            demo.carry_out([*three[:1], changed or three[1], *three[2:]], "AGAIN")
        except SystemExit as left:
            code = left.code
        said = capfd.readouterr()
        return code, Path("calls").read_text(), said.out, said.err
    go.three = three
    return go


def test_what_is_finished_is_not_done_again(house):
    code, calls, said, _ = house()
    assert (code, calls) == (0, "abc")
    assert re.findall(r"stage (\d of \d): (\w+), (about \d+ min|less than a minute) left", said)[0] == (
        "1 of 3", "first", "about 7 min")
    assert house()[:3] == (0, "", "")
    Path("b/file").unlink()
    assert house()[1] == "bc"                       # and what is made of it
    os.utime("a/file", ns=(time.time_ns() + 10 ** 9,) * 2)
    assert house()[:2] == (0, "bc")
    assert house()[:2] == (0, "bc")                 # a file from the future: once more, as make


def test_the_time_left_is_scaled_by_what_the_finished_stages_took(house):
    said = house()[2]
    # The first took no 60 s: with 20 s to begin with, all goes about 4 times as fast.
    assert "stage 2 of 3: second, about 2 min left" in said
    assert "stage 3 of 3: third, less than a minute left" in said


def test_a_stage_that_fails_ends_all_and_names_the_command_that_goes_on(house):
    failing = house.three[1]._replace(commands=(house.three[1].commands[0] + ["3"],))
    code, calls, _, error = house(failing)
    assert (code, calls) == (2, "ab") and not Path("c/file").exists()
    assert error == ("error: stage 2, second, ended with exit code 3: see what it says above; then "
                     "`AGAIN` goes on from here\n")
    assert house()[:2] == (0, "bc")


@pytest.mark.parametrize("end", ["130", pytest.param("-15", marks=unix)])
def test_a_stage_that_was_interrupted_leaves_no_file_that_looks_finished(house, end):
    """130 is what a script answers that Ctrl-C ended; -15: it died of SIGTERM."""
    stopped = house.three[1]._replace(commands=(*house.three[1].commands,
                                                house.three[1].commands[0] + [end]))
    code, calls, _, error = house(stopped)
    assert (code, calls, error) == (130, "abb", "stopped: `AGAIN` goes on from here\n")
    assert not Path("b/file").exists()
    assert house()[:2] == (0, "bc")


def test_links_name_the_seed_asked_for_last_and_nothing_of_anybodys_is_replaced(tmp_path, monkeypatch):
    alias = tmp_path / "runs/demo"
    for seed in (0, 1):
        (tmp_path / f"runs/demo-{seed}").mkdir(parents=True)
        assert demo.point(alias, tmp_path / f"runs/demo-{seed}")
        assert alias.resolve() == (tmp_path / f"runs/demo-{seed}").resolve()

    def refuse(*args, **more):
        raise OSError("a required privilege is not held by the client")
    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", refuse)
        assert not demo.point(alias, tmp_path / "runs/demo-0") and not alias.exists()
    alias.mkdir()
    with pytest.raises(SystemExit):
        demo.check_free(alias, tmp_path / "runs/demo-0")
    assert not demo.point(alias, tmp_path / "runs/demo-0") and alias.is_dir()


def test_where_one_link_is_in_the_way_none_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/toy").mkdir(parents=True)                # `python toy.py` has made it
    with pytest.raises(SystemExit):
        demo.main([])
    assert "data/toy is in the way of a link" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_missing_package_and_a_wrong_flag_are_one_line(monkeypatch, capsys):
    def missing(name):
        raise demo.importlib.metadata.PackageNotFoundError(name)
    with monkeypatch.context() as patch:
        patch.setattr(demo.importlib.metadata, "version", missing)
        for act in (demo.check_python, lambda: demo.flags(["--quik"])):
            with pytest.raises(SystemExit) as left:
                act()
            assert left.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: torch is not installed for ") and "requirements.txt" in first
    assert second == "error: unrecognized arguments: --quik (--help lists every flag)"


# ------------------------------------------------------------------------------------------ any system

def calls(name):
    """Every call in a file: (what is called, its words by position, its words by name)."""
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func), [ast.unparse(a) for a in node.args], {
                k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("name", FILES)
def test_every_text_file_is_opened_with_its_encoding(name):
    """Without, Windows takes another; and a process's output is a text, too."""
    for node, called, args, given in calls(name):
        where = f"{name}.py:{node.lineno}: {ast.unparse(node)}"
        if called in ("open", "os.fdopen") or called.endswith("_path.open"):
            mode = given.get("mode", args[1] if len(args) > 1 else "'r'")
            assert "b" in mode or "encoding" in given, where
        elif called.split(".")[-1] in ("read_text", "write_text") and "." in called:
            first = called.endswith("write_text")                        # the text comes first
            assert len(args) > first or "encoding" in given, where
        assert "text" not in given or not called.startswith("subprocess"), where


# What Windows, others, and `pip install -r requirements.txt` do not have. With LC_ALL=C and no UTF-8 a
# file is ASCII unless its encoding is named.
POOR = """
import fcntl, os, signal, subprocess, sys, types

def locking(handle, mode, length):
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, length)      # wants a file, not a folder
    except BlockingIOError as error:
        raise PermissionError(13, "Permission denied") from error

def symlink(*args, **more):
    raise OSError(22, "A required privilege is not held by the client")

class Ours:                        # torch wants these signals; ours are the first to do without
    def find_spec(name, path=None, target=None):
        if name in ("runtime.flags", "tools.demo"):
            for signal_name in {"SIGTERM", "SIGKILL", "setitimer"} & set(dir(signal)):
                delattr(signal, signal_name)

sys.modules |= {"fcntl": None, "matplotlib": None, "msvcrt": types.SimpleNamespace(locking=locking, LK_NBLCK=2)}
sys.meta_path.insert(0, Ours)
os.symlink = symlink
del os.killpg, os.sched_getaffinity
"""
SHRUNK = """
import sys
from tools import demo
demo.QUICK = demo.Scale(300, 10, 30, 60, 512, 4, demo.QUICK.seconds)
demo.main(["--quick", "--network", "toy-tiny", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def poor(tmp_path_factory):
    """The environment of a process on a system that lacks much: no make, no git, no links, ..."""
    folder = tmp_path_factory.mktemp("poor")
    (folder / "sitecustomize.py").write_text(POOR)
    return {**{name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "LC_"))},
            "PATH": str(folder), "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "LC_ALL": "C",
            "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def copy_of_the_project(folder):
    for path in [*ROOT.glob("*.py"), ROOT / "toy.json", ROOT / "requirements.txt", ROOT / "Makefile",
                 *(ROOT / "runtime").glob("*"), *(ROOT / "tools").glob("*")]:
        if path.is_file():
            (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, folder / path.relative_to(ROOT))
    (folder / "shrunk.py").write_text(SHRUNK)
    return folder


@unix
def test_every_module_can_be_imported_where_much_is_missing(poor):
    modules = [name.removesuffix("/__init__").replace("/", ".") for name in FILES]
    code = "import signal, " + ", ".join(modules) + "; assert not hasattr(signal, 'SIGTERM')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=poor, check=True)


@pytest.fixture(scope="module")
def whole(poor, tmp_path_factory):
    """A little pipeline that nobody interrupted, where much is missing: its folder, what it said."""
    folder = copy_of_the_project(tmp_path_factory.mktemp("whole"))
    done = subprocess.run([sys.executable, "shrunk.py"], cwd=folder, env=poor, capture_output=True,
                          encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


def files_of(folder):
    """All that a pipeline made: weights bit by bit, texts, numbers without what a clock said."""
    run, found = folder / "runs/quick-0", {}
    for name in ("pretrained", "supervised", "reward", "ppo"):
        found |= {(name, key): value for key, value in bits(run / name).items()}
        found[name, "log"] = numbers(run / name)
        assert not (run / name / "state").exists()
    for name in ("pairs.jsonl", "comparisons.jsonl", "report/summaries.jsonl"):
        found[name] = (run / name).read_bytes()
    found["report"] = json.loads((run / "report/report.json").read_text()) | {"seconds": None}
    return found


@unix
def test_the_pipeline_runs_where_much_is_missing_and_says_how_far_it_is(whole):
    folder, said, complaints = whole
    assert re.findall(r"^stage (\d) of 9: ", said, re.MULTILINE) == [str(n) for n in range(1, 10)]
    assert "The report, for a browser: runs/quick-0/report/report.html" in said
    tries = list(commands(f"```\n{said.rpartition('Now try:')[2]}\n```\n"))
    assert [script for script, _ in tries] == ["tools.side", "tools.play"]
    assert complaints.count("error: ") == 1 and "pip install matplotlib" in complaints      # no more
    assert "Token microscope" in (folder / "runs/quick-0/report/report.html").read_text("utf-8")
    assert (folder / "runs/quick-0/ppo/lock").exists()             # of msvcrt: fcntl is not there
    assert "\r" not in said + complaints                           # no terminal, so no bars
    assert not any(set('<>:"|?*') & set(path.name) for path in folder.rglob("*"))      # Windows' rule


@unix
def test_an_interrupted_pipeline_goes_on_and_ends_with_the_same_files(whole, tmp_path):
    folder, run = copy_of_the_project(tmp_path), tmp_path / "runs/quick-0"
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    for seen in (run / "supervised/log.jsonl", run / "reward/config.json", run / "ppo/log.jsonl",
                 run / "report/report.json", None):
        pipeline = subprocess.Popen([sys.executable, "shrunk.py"], cwd=folder, text=True,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                    start_new_session=True, env={**env, "OMP_NUM_THREADS": "1"})
        while seen and not seen.exists():
            assert pipeline.poll() is None
            time.sleep(0.01)
        if seen:
            os.killpg(pipeline.pid, signal.SIGINT)                 # as Ctrl-C on a terminal
        told = pipeline.communicate()[1]
        assert pipeline.returncode == (130 if seen else 0), told
        if seen:
            assert re.match(r"stopped: `.* -m tools.demo.*` goes on from here", told.splitlines()[-1])
            assert "--resume goes on" not in told
            assert not (run / "report/report.html").exists()
    assert (run / "ppo/model.pt").stat().st_mtime < (run / "report/report.html").stat().st_mtime
    assert files_of(folder) == files_of(whole[0])


def test_a_bar_shows_whole_numbers(tmp_path, world, monkeypatch):
    shown = []
    monkeypatch.setattr(runtime.world.tqdm, "set_postfix", lambda bar, values, refresh: shown.append(values))
    monkeypatch.setattr(Run, "log", (lambda log: lambda run, step, **values: log(
        run, step, **values, tokens=1880, kl=99.96, lr=0.00297))(Run.log))
    little_run(tmp_path / "run", world, "--steps 1 ")
    assert {name: shown[0][name] for name in ("tokens", "kl", "lr")} == {
        "tokens": "1,880", "kl": "100", "lr": "0.00297"}
