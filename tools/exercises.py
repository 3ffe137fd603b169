"""Appendix. Write the book's central functions yourself: exercises that say what is wrong.

    python -m tools.exercises start          makes exercises/: the chapters, some functions empty
    python -m tools.exercises check gae      is it right? If not: the smallest case that shows it
    python -m tools.exercises hint gae       three hints, one at a time
    python -m tools.exercises solution gae   the difference between yours and ours
    python -m tools.exercises check          the state of all; check ppo.py: of those in a file

The list, in a good order: docs/tutorial/EXERCISES.md. What is taken out is found in the chapters
themselves, at `start`; so the exercises follow the book when it changes. One exercise never needs
another: all other functions are ours while one is checked. With all of them solved, `make demo` in
that folder trains as in this one.

    exercises/ppo.py ...         a project like this one, to work in
    exercises/.exercises/        our chapters (ours/), and which hints were given (hints.json)

Read after: whichever chapter an exercise is from.
"""
import ast
import contextlib
import difflib
import json
import os
import shutil
import sys
import textwrap
import types
from dataclasses import dataclass
from functools import reduce
from importlib.machinery import SourceFileLoader
from pathlib import Path
from unittest import mock

from runtime import Problem, flag, write
from runtime.flags import check_new, entry, parse
from tools import exercises_labels as of_labels
from tools import exercises_ppo as of_ppo
from tools import exercises_text as of_text
from tools.exercises_check import TOLD, judge, rows_of, show

ROOT = Path(__file__).resolve().parent.parent
EXERCISES = [                                  # in the order of docs/tutorial/EXERCISES.md
    of_text.Merge, of_text.Attention, of_text.LayOut, of_text.TokenLogp, of_text.Nll,
    of_text.Choose, of_text.Last, of_text.Score, of_labels.PairwiseLoss, of_labels.BestOf,
    of_ppo.Prepare, of_ppo.TokenRewards, of_ppo.Gae, of_ppo.Whiten, of_ppo.PolicyLoss,
    of_ppo.ValueLoss, of_ppo.MinibatchLoss, of_labels.Bootstrap, of_text.LongestCommonSubsequence]
NAMES = {exercise.name(): exercise for exercise in EXERCISES}
# What a folder needs to be a project: the chapters, and what they and `make demo` use.
COPIED = ("*.py", "toy.json", "Makefile", "requirements*.txt", ".gitignore", "runtime/*.py",
          "tools/*.py", "tools/*.html")
STATE = ".exercises"


@dataclass(frozen=True)
class Config:
    out: str = flag("exercises", "the folder to work in (not needed inside of it)", what="DIR")


# ------------------------------------------------------------------------- functions in source text

def find(tree, function):
    """The node of "gae" or of "Rows.last" in a parsed chapter; None when there is none."""
    def inside(node, name):
        return next((child for child in getattr(node, "body", ())
                     if isinstance(child, ast.FunctionDef | ast.ClassDef) and child.name == name),
                    None)
    return reduce(inside, function.split("."), tree)


def source_of(text, function):
    """The lines of a function, decorators included; none when it is not there."""
    node = find(ast.parse(text), function)
    if node is None:
        return []
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return text.splitlines()[first - 1:node.end_lineno]


def taken_out(node, exercise):
    """(first, last) lines, from 1, of what an exercise leaves to be written."""
    if exercise.assigned:
        return [(line.lineno, line.end_lineno) for line in node.body if isinstance(line, ast.Assign)
                and any(isinstance(name, ast.Name) and name.id in exercise.assigned
                        for target in line.targets for name in ast.walk(target))]
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return [(first.end_lineno + 1 if documented else first.lineno, node.end_lineno)]


def empty(text, exercises):
    """A chapter's text without what these exercises ask for. Docstrings and signatures stay."""
    lines, tree = text.splitlines(), ast.parse(text)
    for exercise in exercises:
        node = find(tree, exercise.function)
        (first, last), *more = taken_out(node, exercise)
        for i, j in more:
            lines[i - 1:j] = [None] * (j - i + 1)
        hole = [f"# {line}" for line in textwrap.wrap(exercise.told, 90)]
        hole.append(f'raise NotImplementedError("exercise {exercise.name()}: not written yet")')
        indent = " " * (node.col_offset + 4)
        lines[first - 1] = "\n".join(indent + line for line in hole)     # others' lines stay put
        lines[first:last] = [None] * (last - first)
    return "\n".join(line for line in lines if line is not None) + "\n"


def filled(theirs, ours, exercise):
    """The text of a chapter in which one function is ours."""
    old, new = source_of(theirs, exercise.function), source_of(ours, exercise.function)
    return theirs.replace("\n".join(old), "\n".join(new), 1)


# ------------------------------------------------------------------------------------- the commands

def start(folder):
    """Make the folder: a project like this one, in which the exercises' functions are empty."""
    if (ROOT / STATE).exists():
        raise Problem(f"{ROOT} is a folder of exercises already: `start` in the project itself")
    check_new(folder)
    chapters = list(dict.fromkeys(exercise.chapter for exercise in EXERCISES))
    for path in sorted(path for pattern in COPIED for path in ROOT.glob(pattern)):
        where = path.relative_to(ROOT)
        is_ours = path.parent == ROOT or where.with_suffix("").as_posix() in chapters
        for base in [folder, *([folder / STATE / "ours"] if is_ours else [])]:
            (base / where).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, base / where)
    for chapter in chapters:
        path = folder / f"{chapter}.py"
        write(path, empty(path.read_text("utf-8"), [e for e in EXERCISES if e.chapter == chapter]))
    if (ROOT / ".venv").exists():              # its packages serve both, where links are allowed
        with contextlib.suppress(OSError, NotImplementedError):
            (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
    write(folder / STATE / "hints.json", "{}")
    first = EXERCISES[0]
    print(f"{folder}: {len(EXERCISES)} exercises. The first: write `{first.function}` in "
          f"{folder / first.chapter}.py, then\n    python -m tools.exercises check {first.name()}")


def load(path, name):
    """A chapter as a module of its own, made from a file."""
    module = types.ModuleType(name)
    module.__file__ = str(path)
    with mock.patch.object(sys, "dont_write_bytecode", True):
        SourceFileLoader(name, str(path)).exec_module(module)
    return module


def place(module, function):
    """Where a function of "gae" or "Rows.last" stands: its owner, and its name there."""
    *owners, name = function.split(".")
    return reduce(getattr, owners, module), name


def verdict_on(exercise, folder):
    """The Verdict on the student's function, or one line that says why there is none."""
    path, ours = folder / f"{exercise.chapter}.py", folder / STATE / "ours"
    known_as = path.stem
    try:
        with mock.patch.object(sys, "path", [str(ours), *sys.path]):   # other chapters are ours
            honest = load(ours / f"{exercise.chapter}.py", f"our_{known_as}")
            module = load(path, f"your_{known_as}")
        function = getattr(*place(module, exercise.function))
        for other in EXERCISES:                # and so are the other exercises in this one
            if other.chapter == exercise.chapter and other is not exercise:
                owner, name = place(module, other.function)
                setattr(owner, name, getattr(*place(honest, other.function)))
    except SyntaxError as error:
        return f"{path}, line {error.lineno}: {error.msg}"
    except Exception as error:                 # of the chapter's own lines, or no such function
        return f"{path}: {type(error).__name__}: {error}"
    return judge(exercise, function, str(path))


def check(exercise, folder):
    """Say whether one is solved; if not, the smallest case that shows it. Returns: whether."""
    name, verdict = exercise.name(), verdict_on(exercise, folder)
    if isinstance(verdict, str):
        print(f"{name}: cannot be read\n\n    {verdict}")
        return False
    if verdict.state == "solved":
        print(f"{name}: right, on all {len(exercise.cases())} cases")
        return True
    if verdict.state == "empty":
        print(f"{name}: empty. Write `{exercise.function}` in {folder / exercise.chapter}.py "
              f"({exercise.question})")
        return False
    print(f"{name}: not yet right. The smallest case that shows it:\n")
    rows = [*verdict.rows, *rows_of("expected", verdict.expected), *rows_of("got", verdict.got)]
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        print(f"    {label:{width}}  {text}")
    for mistake, meaning in verdict.mistakes:
        print(f"\n{verdict.how[0].upper()}{verdict.how[1:]}: {mistake}.")
        print(textwrap.indent(textwrap.fill(meaning, 92), "    "))
    if verdict.how.startswith("on this case"):
        print("\nOn other cases it is not: there is one more mistake, or it is a different one.")
    elif not verdict.mistakes and getattr(verdict.got, "kind", "") not in TOLD:
        print(f"\nNo typical mistake gives this. For a hint: python -m tools.exercises hint {name}")
    return False


def check_all(exercises, folder):
    """The state of several, a line each."""
    hints, solved = json.loads((folder / STATE / "hints.json").read_text("utf-8")), 0
    print(f"{'chapter':24}{'exercise':28}{'state':10}{'hints':>5}  what it is")
    for exercise in exercises:
        verdict, name = verdict_on(exercise, folder), exercise.name()
        if isinstance(verdict, str):
            state, what = "broken", verdict
        else:
            state = verdict.state
            what = ", ".join(dict.fromkeys(mistake for mistake, _ in verdict.mistakes))
            if verdict.how.startswith("on this case"):
                what = f"on one case: {what}"
            elif state == "broken" and not what:
                what = show(verdict.got)
            elif state == "empty":
                what = exercise.question
        solved += state == "solved"
        print(f"{exercise.chapter:24}{name:28}{state:10}{hints.get(name, 0):5}  {what}".rstrip())
    print(f"\n{solved} of {len(exercises)} solved" + (
        f": now `make demo` in {folder} trains with your functions" if solved == len(EXERCISES)
        else ""))


def hint(exercise, folder):
    """Give the next of three hints, or all once more."""
    path, name = folder / STATE / "hints.json", exercise.name()
    given = json.loads(path.read_text("utf-8"))
    count = given.get(name, 0)
    if count == len(exercise.hints):
        print(f"{name}: all three hints again; then python -m tools.exercises solution {name}")
    first, last = (0, count) if count == len(exercise.hints) else (count, count + 1)
    for i in range(first, last):
        print(textwrap.fill(f"{i + 1}. {exercise.hints[i]}", 96, subsequent_indent="   "))
    write(path, json.dumps(given | {name: last}))


def solution(exercise, folder):
    """Show the difference between the student's function and ours, in diff's way."""
    file = f"{exercise.chapter}.py"
    theirs, ours = (source_of((base / file).read_text("utf-8"), exercise.function)
                    for base in (folder, folder / STATE / "ours"))
    lines = list(difflib.unified_diff(theirs, ours, "yours", "ours", n=1000, lineterm=""))
    print("\n".join(lines) or f"{exercise.name()}: yours is ours, letter by letter")


def meant(name, command):
    """The exercises that a name means: one, those of a file, or, without a name, all."""
    if name is None:
        found = EXERCISES
    elif name.endswith(".py"):
        found = [e for e in EXERCISES if Path(name).stem == Path(e.chapter).name]
    else:
        found = [e for e in EXERCISES if e.name() == name.split(".")[-1]]    # also "Rows.last"
    if not found:
        raise Problem(f"exercise {name!r} is unknown: one of {', '.join(NAMES)}")
    if command in ("hint", "solution") and len(found) > 1:
        raise Problem(f"{command} of which exercise? Name one of "
                      f"{', '.join(exercise.name() for exercise in found)}")
    return found


def main(argv=None):
    """Run the command that the first word names; the second may name an exercise."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or [None]
    if command in ("-h", "--help"):
        print(__doc__)
        return
    name = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if command not in ("start", "check", "hint", "solution"):
        asked = f"command {command!r} is unknown:" if command else "which command?"
        raise Problem(f"{asked} python -m tools.exercises start | check | hint | solution")
    exercises = meant(name, command)
    cfg = parse(Config, {}, rest, __doc__)
    folder = Path("." if os.path.isdir(STATE) else cfg.out)
    if command == "start":
        start(Path(cfg.out))
        return
    if not (folder / STATE).is_dir():
        raise Problem(f"{folder} is no folder of exercises: `python -m tools.exercises start` "
                      "makes one, and --out names it")
    folder = folder.resolve()
    if len(exercises) > 1:
        check_all(exercises, folder)
    elif command == "check":
        if not check(*exercises, folder):
            raise SystemExit(1)
    else:
        {"hint": hint, "solution": solution}[command](*exercises, folder)


if __name__ == "__main__":
    entry(main)
