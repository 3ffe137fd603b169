"""Appendix. What ails a run? The known diseases of this kind of training, read off its logs.

    python -m tools.doctor runs/demo

Reads log.jsonl and config.json of every stage in a run's folder, or of one stage's, and the report
where there is one, and says in words what it sees: the figure, where health ends, the step, the
paper's passage, what to try. Exit code 0: healthy; 1: something was found. While a script trains,
its log asks the same table of checks, and each disease warns once beside the progress bar.

A check is a measure - a function of a log's lines that returns the step at which a figure was at
its worst, and the figure - and a limit. All limits stand in one table, CHECKS, at the end. They lie
between what healthy runs reach (the toy demo's; those that the paper and its reproductions report)
and what runs do that were damaged on purpose (tests/test_doctor.py).

Read after: ppo.py, whose log has most to tell.
"""
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from runtime import Problem, config_of, entry, flag, log_line, parse
from runtime.health import CHECKS, examine, stage_of


@dataclass(frozen=True)
class Config:
    run: str = flag("", "folder of a run, or of one stage of it; the flag's name may be left out")


def read_log(path):
    """The lines of a log.jsonl, without a last one that is still being written.

    Raises: Problem naming a line before it that is no JSON object with a step.
    """
    texts, lines = Path(path).read_text(errors="replace").splitlines(), []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(log_line(text))
        except (ValueError, RecursionError):
            if number < len(texts):
                raise Problem(f"{path}, line {number}: not a line of a training log: delete "
                              "it") from None
    return lines


def patients(folder):
    """What there is to examine in a folder: [(name, stage, lines, flags)].

    Raises: Problem when it holds no log.
    """
    folder, found = Path(folder), []
    if not folder.is_dir():
        raise Problem(f"{folder} is no folder: name a run, such as runs/demo, or one stage of it")
    for log in sorted([*folder.glob("log.jsonl"), *folder.glob("*/log.jsonl")],
                      key=lambda path: path.stat().st_mtime):
        flags = config_of(log.parent)["flags"]
        if stage_of(flags):
            found.append((log.parent.name, stage_of(flags), read_log(log), flags))
    if not found:
        raise Problem(f"{folder} holds no stage with a log.jsonl: name a run, such as runs/demo")
    for path in folder.glob("*/report.json"):
        try:
            found.append((path.parent.name, "report", json.loads(path.read_text()), {}))
        except ValueError as error:
            raise Problem(f"{path} is damaged ({error}): run evaluate.py again") from None
    return found


def main(argv=None):
    """Print what was looked at and what was found. Raises: SystemExit(1) when something was."""
    argv = sys.argv[1:] if argv is None else argv
    named = ["--run"] * (bool(argv) and not argv[0].startswith("-"))
    cfg, sick = parse(Config, {}, named + argv, __doc__), 0
    if not cfg.run:
        raise Problem("which run? python -m tools.doctor runs/demo")
    for name, stage, lines, flags in patients(cfg.run):
        found = examine(stage, lines, flags)
        sick += len(found)
        looked = dict.fromkeys(c.name for c in CHECKS if stage in c.stages.split())
        what = f"{len(lines)} lines" if stage != "report" else "a report"
        print(f"{name} ({what}): " + (f"{len(found)} found" if found else
                                      "healthy; looked for " + ", ".join(looked)))
        for finding in found:
            print(f"\n  {finding}\n    paper: {finding.check.passage}\n"
                  f"    try: {finding.check.remedy}\n")
    if sick:
        raise SystemExit(1)


if __name__ == "__main__":
    entry(main)
