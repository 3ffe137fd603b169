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

BOOK = ["data", "toy", "model", "sft", "sample", "label", "reward", "ppo", "evaluate"]
RUNTIME = sorted(f"runtime/{path.stem}" for path in (ROOT / "runtime").glob("*.py"))
TOOLS = sorted(f"tools/{path.stem}" for path in (ROOT / "tools").glob("*.py"))
AFTER = sorted(f"docs/tutorial/after/{path.stem}" for path in (ROOT / "docs/tutorial/after").glob("*.py"))
FILES = [*RUNTIME, *BOOK, *TOOLS, *AFTER]          # docs/tutorial/after/ stands on chapters, as tools do
TUTORIAL = sorted(f"docs/tutorial/{path.stem}" for path in (ROOT / "docs/tutorial").glob("*.py"))


def tree_of(name):
    return ast.parse((ROOT / f"{name}.py").read_text())


def modules_of(name):
    """Every module that a file imports, wherever in the file it does, and every name out of one."""
    found = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def imports_of(name):
    """The files of ours that a file imports."""
    found = {module.replace(".", "/") for module in modules_of(name)}
    return {file for file in FILES if file in found or file.removesuffix("/__init__") in found}


def allowed(name):
    """The files that a file may import: arrows point downwards only, and to earlier chapters."""
    if name in RUNTIME:
        return set(RUNTIME)
    if name in BOOK:
        return {"runtime/__init__", *BOOK[:BOOK.index(name)]}
    return set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_downwards(name):
    assert imports_of(name) <= allowed(name)


def test_no_files_import_each_other_in_a_circle():
    seen = {}

    def walk(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in seen:
            seen[name] = [walk(other, [*path, name]) for other in sorted(imports_of(name))
                          if other != "runtime/__init__"]
    for name in FILES:
        walk(name, [])


def test_the_chapters_use_fifteen_names_of_runtime_and_its_first_page_lists_them():
    used = {module.removeprefix("runtime.") for name in BOOK for module in modules_of(name)
            if module.startswith("runtime.")}
    assert used == set(re.findall(r"^    (\w+)  +\w", runtime.__doc__.split("A World")[0], re.MULTILINE))
    assert len(used) == 15


def test_a_chapter_fits_400_lines_and_runtime_1400():
    lines = {name: len((ROOT / f"{name}.py").read_text().splitlines()) for name in FILES}
    assert all(lines[name] <= 400 for name in BOOK), lines
    assert sum(lines[name] for name in BOOK) <= 2600
    assert sum(lines[name] for name in RUNTIME) <= 1400 and len(RUNTIME) <= 7
    assert len((ROOT / "README.md").read_text().split()) <= 1200


def test_nothing_else_stands_at_the_root():
    assert sorted(path.stem for path in ROOT.glob("*.py")) == sorted(BOOK)
    assert [path.name for path in [*ROOT.glob("*.md"), *ROOT.glob("*.html")]] == ["README.md"]


@pytest.mark.parametrize("name", ["ppo", "reward", "sft", "model", "data", *RUNTIME])
def test_the_gold_judge_stays_with_those_who_measure(name):
    assert not imports_of(name) & {"toy", "evaluate", "label"}
    assert not any("gold" in (getattr(node, "id", ""), getattr(node, "attr", ""))
                   for node in ast.walk(tree_of(name)))


def test_every_package_that_a_script_imports_is_named_in_the_requirements():
    named, more = (set(re.findall(r"^[a-z]+", (ROOT / f"requirements{end}.txt").read_text(), re.M))
                   for end in ("", "-dev"))
    foreign = {module.split(".")[0] for name in FILES for module in modules_of(name)}
    foreign -= {*sys.stdlib_module_names, *BOOK, "runtime", "tools", "docs"}
    assert foreign - named == {"matplotlib", "nbclient", "nbformat"} <= more and named <= foreign


@pytest.mark.parametrize("name", [*FILES, *TUTORIAL])
def test_no_line_is_longer_than_100_columns(name):
    lines = (ROOT / f"{name}.py").read_text().splitlines()
    assert not [f"{name}.py:{i}" for i, line in enumerate(lines, 1) if len(line) > 100]


@pytest.mark.parametrize("name", FILES)
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
    modules = [name.removesuffix("/__init__").replace("/", ".") for name in FILES]
    code = "import sys; sys.path.insert(0, sys.argv[1]); import " + ", ".join(modules)
    done = subprocess.run([sys.executable, "-B", "-c", code, str(ROOT)], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*FILES, *TUTORIAL])
def test_the_top_level_holds_definitions_only(name):
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
               ast.AugAssign)
    body = tree_of(name).body[1:] or [ast.Assign()]                # after the docstring
    *body, last = body
    if isinstance(last, ast.If):
        act = ast.unparse(last).removeprefix("if __name__ == '__main__':\n    ")
        assert act in ("entry(main)", "main()", "print(__doc__)")
    else:
        body.append(last)
    assert all(isinstance(node, allowed) for node in body)


# ----------------------------------------------------------------------------------------- presets

PAPER = [                # ../shared/PAPER.md, section 4; appendix B.1 of the paper
    (sft, "1.3b", "summary", dict(lr=6.35e-5, batch=128, steps=0, warmup=0, query_length=512)),
    (sft, "6.7b", "summary", dict(lr=2.83e-5, batch=128, steps=0, warmup=0, query_length=512)),
    (sft, "1.3b", "all", dict(lr=2e-4, batch=512, query_length=2000, response_length=48)),
    (sft, "6.7b", "all", dict(lr=1.2e-4, batch=512, query_length=2000, response_length=48)),
    (reward, "1.3b", None, dict(lr=1.5e-5, batch=64, query_length=512, response_length=128)),
    (reward, "6.7b", None, dict(lr=5e-6, batch=64, query_length=512, response_length=128)),
    *((ppo, size, None, dict(
        lr=lr, batch=batch, episodes=1_000_000, epochs=4, kl_coef=0.05,
        # where the paper is silent: DESIGN 5
        minibatches=1, clip_ratio=0.2, missing_eot=-1.0,
        temperature=0.7, query_length=512, response_length=48)) for size, lr, batch in (
            ("1.3b", 1.5e-5, 512), ("6.7b", 7e-6, 256))),
]


def flags_of(script, preset, loss_on=None):
    typed = ["--preset", preset] + (["--loss-on", loss_on] if loss_on else [])
    for field in dataclasses.fields(script.Config):
        typed += [f"--{field.name}", "x"] if field.default is ... else []
    return runtime.flags.parse(script.Config, script.PRESETS, typed, "", "loss_on" if loss_on else None)


@pytest.mark.parametrize("script, preset, loss_on, values", PAPER)
def test_presets_have_the_papers_numbers(script, preset, loss_on, values):
    cfg = dataclasses.asdict(flags_of(script, preset, loss_on))
    assert {name: cfg[name] for name in values} == values
    if script is sft:
        assert cfg["size"] == preset
    assert reward.EPOCHS == 1
    if script is ppo:
        assert (ppo.GAMMA, ppo.LAMBDA, ppo.VF_COEF) == (1.0, 0.95, 0.1)


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
    """(script, arguments) of each `python X.py`, `python -m tools.X` (or docs.X) or torchrun line in
    the code blocks of a page."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            found = re.match(r"\s*(?:\$ )?(?:\w+=\S+ )*(?:srun )?(?:torchrun|(?:\S*/)?python3?) (.*)", line)
            words = shlex.split(found[1], comments=True) if found else []
            script = next((i for i, word in enumerate(words)
                           if word.endswith(".py") or word.startswith(("tools.", "docs."))), None)
            if script is not None:
                rest = itertools.takewhile(lambda word: word not in ("|", ">", "&", "&&", ";"),
                                           words[script + 1:])
                yield words[script], list(rest)


def check(script, arguments, monkeypatch):
    """Parse a command line with the script's own parser, and go no further."""
    if script.removesuffix(".py") in TUTORIAL:                      # takes a seed, or nothing
        assert not arguments or re.fullmatch(r"\d+", " ".join(arguments))
        return
    module = importlib.import_module(script.removesuffix(".py"))
    if (script, arguments) == ("tools.plan", ["sizes"]):           # prints its table
        return

    def stopping(parse):
        def parsed(*args, **more):
            parse(*args, **more)
            raise Parsed
        return parsed

    def saved_flags(path, config_class):          # the file of a run that nobody made here
        return {field.name: "d" for field in dataclasses.fields(config_class)
                if field.default is ... and field.name != "out"}
    with monkeypatch.context() as patch:
        patch.setattr(runtime.flags, "saved_flags", saved_flags)
        patch.setattr(runtime.world, "parse", stopping(runtime.flags.parse))             # in `launch`
        if hasattr(module, "parse"):
            patch.setattr(module, "parse", stopping(runtime.flags.parse))
        elif not hasattr(module, "launch"):
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
torchrun --nproc_per_node=8 ppo.py --out o --preset 1.3b --policy p --reward r --data d
python -m tools.tokenizer --data d --vocab 300
make demo
```
"""


def test_commands_are_found_and_parsed(monkeypatch):
    found = list(commands(PAGE))
    assert [script for script, _ in found] == ["sft.py", "label.py", "ppo.py", "tools.tokenizer"]
    assert found[0][1] == ["--preset", "toy", "--data", "d", "--loss-on", "all", "--out", "o"]
    assert found[1][1][-2:] == ["--out", "o"] and found[2][1][2] == "--preset"
    for script, arguments in found:
        check(script, arguments, monkeypatch)
    for script, arguments in (("sft.py", ["--nonsense", "1"]), ("label.py", ["nonsense"]),
                              ("tools.tokenizer", ["nonsense"])):
        with pytest.raises(runtime.Problem):
            check(script, arguments, monkeypatch)


@pytest.mark.parametrize("page", ["README.md", *(str(page.relative_to(ROOT)) for page in
                                                 (ROOT / "docs").glob("**/*.md")),
                                  *(f"{name}.py" for name in [*FILES, *TUTORIAL])])
def test_every_command_of_the_pages_and_of_the_docstrings_parses(page, monkeypatch):
    text = (ROOT / page).read_text()
    if page.endswith(".py"):
        shown = re.findall(r"^ *(?:Try it: +)?(python (?:[\w/]+\.py|-m (?:tools|docs)\.).*?)(?:  +\(?[^- ].*)?$",
                           re.sub(r" *\\\n\s*", " ", ast.get_docstring(ast.parse(text))),
                           re.MULTILINE)
        assert shown or page.startswith(("runtime", "tools/__init__"))
        text = "\n".join(["```", *shown, "```", ""])
    for script, arguments in commands(text):
        check(script, arguments, monkeypatch)


@pytest.mark.parametrize("script, words, answer", [
    ("data", "tokenizer --data d --vocab 300", "python -m tools.tokenizer --data d --vocab 300"),
    ("data", "download tldr", "python -m tools.download tldr"),
    ("data", "describe data/tldr", "python -m tools.download describe data/tldr"),
    ("model", "plan --size 1.3b", "python -m tools.plan --size 1.3b"),
    ("model", "export runs/a --out b", "python -m tools.convert export runs/a --out b"),
    ("sample", "--policy a --others b --pairs 4", "python -m tools.pairs --policy a --others b --pairs 4"),
    ("label", "me --pairs a --out b", "python -m tools.labelling me --pairs a --out b"),
    ("label", "serve --db a", "python -m tools.labelling serve --db a"),
    ("label", "stats --db a", "python -m tools.labelling stats --db a"),
    ("evaluate", "doctor runs/a", "python -m tools.doctor runs/a"),
    ("evaluate", "compare runs/a b", "python -m tools.figures compare runs/a b"),
    ("evaluate", "--run a --against b", "python -m tools.judges --run a --against b"),
    ("evaluate", "--run a --judge labels:b", "python -m tools.judges --run a --judge labels:b"),
    ("evaluate", "--run a --judge rouge", "python -m tools.judges --run a --judge rouge"),
    ("label", "simulate --pairs a --labeller rouge --out b",
     "python -m tools.rouge simulate --pairs a --labeller rouge --out b")])
def test_a_command_that_has_moved_answers_with_its_new_spelling(script, words, answer):
    with pytest.raises(runtime.Problem, match=f"has moved: {answer}$"):
        importlib.import_module(script).main(words.split())
