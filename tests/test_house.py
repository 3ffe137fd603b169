"""The house rules: what may import what, how long a line is, that shown commands exist."""
import argparse
import ast
import contextlib
import dataclasses
import importlib
import itertools
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

import ppo
import reward
import runtime
import sft

READING_ORDER = ["runtime", "data", "toy", "model", "sft", "sample", "label_store", "label_stats",
                 "label_site", "label", "reward", "ppo", "judges", "evaluate"]
APPENDICES = {"convert", "doctor", "download", "figures", "figures_draw", "figures_numbers",
              "microscope", "plan"}        # beside the reading path: opened inside a function only
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
CHAPTERS = [name for name in READING_ORDER if name in SCRIPTS]


def tree_of(name):
    return ast.parse((ROOT / f"{name}.py").read_text())


def imports_of(name):
    """Names of every module a file imports, wherever in the file it does."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_imports_only_chapters_before_it(name):
    ours = set(imports_of(name)) & set(SCRIPTS) - APPENDICES
    assert ours <= set(READING_ORDER[:READING_ORDER.index(name)])
    at_the_top = {node.module for node in tree_of(name).body if isinstance(node, ast.ImportFrom)}
    assert not at_the_top & APPENDICES


@pytest.mark.parametrize("name", ["ppo", "reward", "sft", "model", "runtime", "data"])
def test_the_gold_judge_stays_with_those_who_measure(name):
    assert not set(imports_of(name)) & {"toy", "judges", "evaluate", "label"}
    assert not any("gold" in (getattr(node, "id", ""), getattr(node, "attr", ""))
                   for node in ast.walk(tree_of(name)))


def test_every_package_that_a_script_imports_is_named_in_the_requirements():
    named, more = (set(re.findall(r"^[a-z]+", (ROOT / f"requirements{end}.txt").read_text(), re.M))
                   for end in ("", "-dev"))
    foreign = {module for name in SCRIPTS for module in imports_of(name)}
    foreign -= {*sys.stdlib_module_names, *SCRIPTS}
    assert foreign - named == {"matplotlib"} <= more and named <= foreign


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_line_is_longer_than_100_columns(name):
    lines = (ROOT / f"{name}.py").read_text().splitlines()
    assert not [f"{name}.py:{i}" for i, line in enumerate(lines, 1) if len(line) > 100]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_public_function_of_more_than_5_lines_says_what_it_does(name):
    tree, bare = tree_of(name), []
    assert ast.get_docstring(tree)
    for owner in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
        for node in owner.body:
            if (isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
                    and node.end_lineno - node.lineno > 4 and not ast.get_docstring(node)):
                bare.append(f"{name}.py:{node.lineno} {node.name}")
    assert not bare


def test_importing_a_script_runs_nothing(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import " + ", ".join(CHAPTERS)
    done = subprocess.run([sys.executable, "-B", "-c", code, str(ROOT)], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_top_level_holds_definitions_only(name):
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
               ast.AugAssign)
    body = tree_of(name).body[1:]                                  # after the docstring
    *body, last = body
    if isinstance(last, ast.If):
        assert ast.unparse(last) == "if __name__ == '__main__':\n    entry(main)"
    else:
        body.append(last)
    assert all(isinstance(node, allowed) for node in body)


# ----------------------------------------------------------------------------------------- presets

PAPER = [                # ../shared/PAPER.md, section 4; appendix B.1 of the paper
    (sft, "1.3b", "summary", dict(lr=6.35e-5, batch=128, steps=0, warmup=0, query_length=512)),
    (sft, "6.7b", "summary", dict(lr=2.83e-5, batch=128, steps=0, warmup=0, query_length=512)),
    (sft, "1.3b", "all", dict(lr=2e-4, batch=512, block_length=2048)),
    (sft, "6.7b", "all", dict(lr=1.2e-4, batch=512, block_length=2048)),
    (reward, "1.3b", None, dict(lr=1.5e-5, batch=64, epochs=1.0, warmup=0, query_length=512)),
    (reward, "6.7b", None, dict(lr=5e-6, batch=64, epochs=1.0, warmup=0, query_length=512)),
    *((ppo, size, None, dict(
        lr=lr, batch=batch, episodes=1_000_000, epochs=4, gamma=1.0, lam=0.95, kl_coef=0.05,
        # where the paper is silent: DESIGN 5
        minibatches=1, clip_ratio=0.2, clip_value=0.2, vf_coef=0.1, missing_eot=-1.0,
        temperature=0.7, query_length=512, response_length=48)) for size, lr, batch in (
            ("1.3b", 1.5e-5, 512), ("6.7b", 7e-6, 256))),
]


def flags_of(script, preset, loss_on=None):
    typed = ["--preset", preset] + (["--loss-on", loss_on] if loss_on else [])
    return runtime.parse(script.Config, script.PRESETS, typed, "", "loss_on" if loss_on else None)


@pytest.mark.parametrize("script, preset, loss_on, values", PAPER)
def test_presets_have_the_papers_numbers(script, preset, loss_on, values):
    cfg = dataclasses.asdict(flags_of(script, preset, loss_on))
    assert {name: cfg[name] for name in values} == values
    if script is sft:
        assert cfg["size"] == preset


def test_every_script_has_every_preset_and_each_can_be_had():
    names = ["toy", "laptop", "gpt2", "1.3b", "6.7b"]
    for script, loss_on in ((sft, "all"), (sft, "summary"), (reward, None), (ppo, None)):
        assert list(script.PRESETS) == names
        for name in names:
            cfg = flags_of(script, name, loss_on)
            assert cfg.batch % cfg.micro_batch == 0 or cfg.batch < cfg.micro_batch


def test_every_flag_has_a_line_of_help():
    for script in (sft, reward, ppo):
        for field in dataclasses.fields(script.Config):
            assert len(field.metadata["help"]) > 3 and "\n" not in field.metadata["help"]


# ------------------------------------------------------------------------------------------ README

class Parsed(BaseException):
    """Raised where a script would begin its work."""


def commands(text):
    """(script, arguments) of each `python X.py` or torchrun line in the code blocks of a page."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            found = re.match(r"\s*(?:\$ )?(?:\w+=\S+ )*(?:srun )?(?:torchrun|(?:\S*/)?python3?) (.*)", line)
            words = shlex.split(found[1], comments=True) if found else []
            script = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
            if script is not None:
                rest = itertools.takewhile(lambda word: word not in ("|", ">", "&", "&&", ";"),
                                           words[script + 1:])
                yield words[script], list(rest)


def check(script, arguments, monkeypatch):
    """Parse a command line with the script's own parser, and go no further."""
    module = importlib.import_module(script.removesuffix(".py"))
    if script == "model.py" and not arguments:     # prints its table
        return

    def stopping(parse):
        def parsed(*args, **more):
            parse(*args, **more)
            raise Parsed
        return parsed
    with monkeypatch.context() as patch:
        if hasattr(module, "parse") and arguments[:1] != ["doctor"]:
            patch.setattr(module, "parse", stopping(runtime.parse))
        else:
            patch.setattr(argparse.ArgumentParser, "parse_args",
                          stopping(argparse.ArgumentParser.parse_args))
        with contextlib.suppress(Parsed):
            module.main(arguments)
            raise AssertionError(f"{script} ran without parsing its flags")


PAGE = """
    python not.py in a code block
```sh
$ python sft.py --preset toy --data d \\
      --loss-on all --out o          # a comment
SEED=1 .venv/bin/python label.py simulate --pairs p --out o | tail -1
torchrun --nproc_per_node=8 ppo.py --preset 1.3b --batch 512
python data.py tokenizer --data d --vocab 300
make demo
```
"""


def test_commands_are_found_and_parsed(monkeypatch):
    found = list(commands(PAGE))
    assert [script for script, _ in found] == ["sft.py", "label.py", "ppo.py", "data.py"]
    assert found[0][1] == ["--preset", "toy", "--data", "d", "--loss-on", "all", "--out", "o"]
    assert found[1][1][-2:] == ["--out", "o"] and found[2][1][0] == "--preset"
    for script, arguments in found:
        check(script, arguments, monkeypatch)
    for script, arguments in (("sft.py", ["--nonsense", "1"]), ("label.py", ["nonsense"])):
        with pytest.raises(runtime.Problem):
            check(script, arguments, monkeypatch)
    with pytest.raises(SystemExit):
        check("data.py", ["nonsense"], monkeypatch)


@pytest.mark.parametrize("page", [*(page.name for page in ROOT.glob("*.md")),
                                  *(f"{name}.py" for name in SCRIPTS)])
def test_every_command_of_the_pages_and_of_the_docstrings_parses(page, monkeypatch):
    text = (ROOT / page).read_text()
    if page.endswith(".py"):
        shown = re.findall(r"^ *(?:Try it: +)?(python \w+\.py.*?)(?:  +\(?[^- ].*)?$",
                           re.sub(r" *\\\n\s*", " ", ast.get_docstring(ast.parse(text))),
                           re.MULTILINE)
        assert shown or page == "runtime.py"
        text = "\n".join(["```", *shown, "```", ""])
    for script, arguments in commands(text):
        check(script, arguments, monkeypatch)


def test_every_command_of_the_outer_loop_parses_and_learns_from_all_labels_so_far(monkeypatch):
    told = subprocess.run(["make", "-n", "rounds", "ROUNDS=2", "RUN=r", "DATA=d"], cwd=ROOT,
                          capture_output=True, text=True, check=True).stdout
    found = list(commands(f"```\n{told.replace('$((4000 / 2))', '2000')}\n```\n"))
    assert [script for script, _ in found].count("ppo.py") == 2
    for script, arguments in found:
        check(script, arguments, monkeypatch)
    learned = [words[words.index("--comparisons") + 1] for name, words in found if name == "reward.py"]
    assert learned == ["r/rounds-2/1/comparisons.jsonl",
                       "r/rounds-2/1/comparisons.jsonl,r/rounds-2/2/comparisons.jsonl"]
