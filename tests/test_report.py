"""A report's pages: what they show, and what is kept when one of them cannot be made."""
import json
import math
import os
import re
import shutil
from datetime import date

import numpy as np
import pytest
import torch
from test_evaluate import report_of, small, world  # noqa: F401

from runtime import Problem, write
from runtime.files import save_tensors
from tools import report as pages
from tools.report import cell, table


@pytest.fixture
def evaluated(world, tmp_path):  # noqa: F811
    """A run of its own, evaluated."""
    shutil.copytree(world / "run", tmp_path / "run")
    if not (world / "kept").exists():
        report_of(world, "--out", world / "kept")
    shutil.copytree(world / "kept", tmp_path / "run/report")
    for path in (tmp_path / "run/report").glob("report.*"):
        if path.suffix != ".json":
            path.unlink()
    return tmp_path / "run"


def pages_of(run, *flags):
    pages.main(["--run", str(run), "--device", "cpu", *map(str, flags)])
    return json.loads((run / "report/report.json").read_text())


def test_made_twice_a_report_says_the_same(evaluated):
    first = pages_of(evaluated)
    kept = {path.name: path.read_bytes() for path in (evaluated / "report").iterdir()}
    assert pages_of(evaluated) == first
    assert kept == {path.name: path.read_bytes() for path in (evaluated / "report").iterdir()}
    assert set(kept) == {"report.json", "report.md", "report.html", "report.png", "report.svg",
                         "summaries.jsonl"}


def test_the_title_names_the_run_its_seed_its_day_and_its_commit(evaluated):
    config = evaluated / "supervised/config.json"
    known = json.loads(config.read_text())
    write(config, known | {"commit": "abcdef0123", "flags": known["flags"] | {"seed": 7}})
    os.utime(evaluated / "report/summaries.jsonl", (0, 1e9))
    pages_of(evaluated)
    text = (evaluated / "report/report.md").read_text()
    day = date.fromtimestamp(1e9).isoformat()
    assert text.startswith(f"# Report: run run, seed 7, {day}, commit abcdef0\n")
    write(config, known | {"commit": None, "flags": {k: v for k, v in known["flags"].items()
                                                     if k != "seed"}})
    pages_of(evaluated)
    text = (evaluated / "report/report.md").read_text()
    assert text.startswith(f"# Report: run run, {day}\n")


def test_a_reader_meets_words_and_is_told_what_is_greedy_and_what_sampled(evaluated):
    report = pages_of(evaluated)
    text = (evaluated / "report/report.md").read_text()
    for key in ("win_rate", "predicted_win_rate", "rouge_l", "human_feedback", "best_of_n", " rm ",
                "| gold"):
        assert key not in text
    greedy, sampled = text.index("## Greedy summaries"), text.index(": sampled summaries\n")
    assert greedy < text.index("| policy") < sampled
    assert "*sample*" in text[sampled:] and "temperature 0.9" in text[sampled:]
    ppo, = re.findall(r"\| PPO, beta 0.05, iteration 4 .*", text)
    row = report["overoptimisation"][1]
    assert f"{row['win_rate']:.1%}" in ppo and f"{row['predicted_win_rate']:.1%}" in ppo
    stages = re.findall(r"^\| (\w.*?) +\| +([\d-]+) \|$", text.split("## Seconds")[1], re.M)
    assert [name for name, _ in stages] == list(pages.STAGES.values())
    assert stages[-1][1] == f"{report['seconds']['total']:.0f}"


def test_the_picture_is_told_in_words_with_its_values(evaluated):
    report = pages_of(evaluated)
    text, = re.findall(r"^!\[(.*)\]\(report.png\)$", (evaluated / "report/report.md").read_text(),
                       re.MULTILINE)
    rate = report["policies"]["human_feedback"]["win_rate"]
    assert f"human feedback {rate:.0%}" in text
    assert "30 summaries" in text and "score goes from 0.0 to 3.0" in text


def test_under_rouge_no_column_is_zero_by_construction(evaluated):
    path = evaluated / "report/report.json"
    report = json.loads(path.read_text())
    for row in report["policies"].values():
        row["win_rate"] = 0.0
    write(path, report | {"judge": "rouge"})
    pages_of(evaluated)
    text = (evaluated / "report/report.md").read_text()
    header = next(line for line in text.split("\n") if line.startswith("| policy"))
    assert re.split(r"\s*\|\s*", header)[2:-1] == ["beats supervised", "ROUGE-L", "copied", "tokens",
                                                   "KL"]
    assert "**beats author**" not in text and "minus how often" not in text
    assert "preferred to those by the supervised policy" in text
    sampled = text.split("sampled summaries\n")[1]
    assert re.search(r"predicted to beat author \| ROUGE-L \|", sampled)


def test_side_by_side_are_the_first_posts_and_those_that_human_feedback_loses():
    posts = {f"p{i}": {"id": f"p{i}", "title": f"t{i}", "post": "x", "summary": "aa"}
             for i in range(40)}
    judge = pages.Judge(lambda posts, texts: {"overall": np.array([len(t) for t in texts])})
    said = [{"id": f"p{i}", "supervised": "aaa", "human_feedback": "a" * (1 + i % 4),
             "reference": "aa"} for i in range(40)] + [{"id": "gone"}]
    found = pages.side_by_side({"judge": "gold"}, judge, posts, said)
    assert (found["rival"], found["lost"], found["n"]) == ("author", 10, 40)      # a tie is no loss
    assert [p["title"] for p in found["posts"]] == [f"t{i}" for i in range(40)
                                                    if i < 10 or i % 4 == 0]
    assert [p["loses"] for p in found["posts"]] == [
        int(p["title"][1:]) % 4 == 0 for p in found["posts"]]
    assert found["posts"][1]["said"] == {"author": ["aa", 2], "supervised": ["aaa", 3],
                                         "human feedback": ["aa", 2]}
    found = pages.side_by_side({"judge": "rouge"}, judge, posts, said)
    assert (found["rival"], found["lost"]) == ("supervised policy", 20)
    found = pages.side_by_side({"judge": "command:x"}, None, posts, said)
    assert found["lost"] is None and len(found["posts"]) == 10
    assert found["posts"][0]["said"]["author"] == ["aa", None]
    assert pages.side_by_side({"judge": "labels:x"}, None, {}, []) is None


def test_overoptimisation_is_measured_once(evaluated, monkeypatch):
    path = evaluated / "report/report.json"
    rows = json.loads(path.read_text())["overoptimisation"]
    assert [(row["method"], row["step"], row["n"]) for row in rows] == [
        ("ppo", 2, None), ("ppo", 4, None), ("best_of_n", None, 1), ("best_of_n", None, 2),
        ("best_of_n", None, 4)]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"overoptimisation": None}))
    assert pages_of(evaluated)["overoptimisation"] == rows        # the same bits, measured again
    monkeypatch.setattr(pages, "overoptimisation", None)          # and not a third time
    assert pages_of(evaluated)["overoptimisation"] == rows


@pytest.mark.parametrize("fault, words", [("cut", "step-000002.pt is damaged"),
                                          ("not finite", "step-000002.pt: weight .* is not finite")])
def test_a_faulty_snapshot_is_named_before_the_first_page(evaluated, fault, words):
    path = evaluated / "ppo/snapshots/step-000002.pt"
    if fault == "cut":
        write(path, path.read_bytes()[:-20])
    else:
        weights = torch.load(path)
        weights["wpe.weight"][-1, -1] = math.nan
        save_tensors(path, weights)
    report = evaluated / "report/report.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | {"overoptimisation": None}))
    with pytest.raises(Problem, match=words):
        pages_of(evaluated)
    assert not (evaluated / "report/report.md").exists()


def axis_record(policy, **axes):
    return {"info": {}, "split": "valid2", "worker": "ann", "batch": "b",
            "summary": {"text": " x", "policy": policy, "note": None, "axes": axes}}


def test_peoples_grades_reach_the_report(evaluated, tmp_path):
    write(tmp_path / "axes.jsonl", [axis_record("ref", overall=7, coverage=2),
                                          axis_record("ref", overall=4), axis_record("sup")])
    report = pages_of(evaluated, "--axes", tmp_path / "axes.jsonl")
    assert report["human_axes"]["ref"]["overall"] == {"mean": 5.5, "95": [4, 7], "n": 2}
    assert report["human_axes"]["ref"]["coverage"]["n"] == 1
    assert "5.50 (2)" in (evaluated / "report/report.md").read_text()
    write(tmp_path / "axes.jsonl", [axis_record("ref", overall=g) | {"info": {"id": name}}
                                          for name, g in (("a", 7), ("a", 7), ("b", 4), ("b", 4))])
    report = pages_of(evaluated, "--axes", tmp_path / "axes.jsonl")
    assert report["human_axes"]["ref"]["overall"] == {"mean": 5.5, "95": [4, 7], "n": 4}
    write(tmp_path / "axes.jsonl", [axis_record("ref"), {"summary": {"text": "no axes"}}])
    with pytest.raises(Problem, match="axes.jsonl, line 2: is no axis record"):
        pages_of(evaluated, "--axes", tmp_path / "axes.jsonl")


def test_a_table_is_aligned_and_shows_what_is_missing_as_a_dash():
    lines = table([["policy", "rate"]], [["a", cell(0.5, ".1%", [0.4, 0.61])], ["b", cell(None)]])
    assert len({len(line) for line in lines.split("\n")}) == 1
    assert "50.0% [40, 61]" in lines and lines.split("\n")[-1].endswith(" - |")


def test_without_matplotlib_the_numbers_are_kept(evaluated, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(Problem, match="pip install matplotlib"):
        pages_of(evaluated)
    assert all((evaluated / f"report/report.{kind}").exists() for kind in ("json", "md", "html"))


def test_a_full_disk_leaves_no_empty_picture(evaluated, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure

    def full(self, f, **how):
        f.write(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(Problem, match="report.png cannot be written .No space left"):
        pages_of(evaluated)
    assert sorted(path.name for path in (evaluated / "report").iterdir()) == [
        "report.html", "report.json", "report.md", "summaries.jsonl"]


@pytest.mark.parametrize("name, words", [
    ("ppo/critic.pt", "critic.pt is damaged"), ("not finite", "weight wpe.weight is not finite")])
def test_without_the_microscope_the_other_pages_are_made(evaluated, name, words):
    if name == "not finite":
        weights = torch.load(evaluated / "ppo/critic.pt")
        weights["wpe.weight"][-1, -1] = math.nan
        save_tensors(evaluated / "ppo/critic.pt", weights)
    else:
        write(evaluated / name, (evaluated / name).read_bytes()[:-20])
    with pytest.raises(Problem, match=words):
        pages_of(evaluated)
    assert all((evaluated / f"report/report.{kind}").exists() for kind in ("md", "png", "svg"))
    assert "final, iteration" not in (evaluated / "report/report.html").read_text()


@pytest.mark.parametrize("path, text, words", [
    ("report/report.json", None, "report.json is missing: `python evaluate.py --run .*` writes it"),
    ("report/report.json", "{", "report.json is damaged"),
    ("report/report.json", "{}", "report.json is damaged"),
    ("report/summaries.jsonl", "[", "summaries.jsonl, line 1"),
    ("ppo/log.jsonl", '{"step": 1}\n{"st', "log.jsonl, line 2")])
def test_everything_is_read_before_the_first_page(evaluated, path, text, words):
    (evaluated / path).unlink()
    if text:
        (evaluated / path).write_text(text)
    with pytest.raises(Problem, match=words):
        pages_of(evaluated)
    assert not (evaluated / "report/report.md").exists()
