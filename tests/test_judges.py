"""Judges of tools/: programs and people; another policy; and another reward model as a judge."""
import json
import re
import shutil
import sys

import numpy as np
import pytest
from test_label import keep_answers
from test_sample import make_checkpoint, make_data

import evaluate
import label
import sample
from data import read_comparisons
from runtime import ALONE, Problem
from sample import load_checkpoint, score_texts
from tools import judges, overoptimisation, pairs
from tools import report as pages
from tools.judges import Command
from tools.label_stats import numbers
from tools.label_store import Store

POSTS = [{"id": f"t{i}", "subreddit": "advice", "title": "what now", "post": "my cat sold my bike",
          "summary": "a cat"} for i in range(100)]
OURS = ["x" * (i % 7 + 1) for i in range(100)]
THEIRS = ["y" * (i % 5 + 2) for i in range(100)]
LONGER = re.search(r"A whole judge:\n\n((?:    .+\n)+)", judges.__doc__)[1].replace("\n    ", "\n")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of random weights with labels in a database, another reward model, and foreign/, which
    reads another tokenizer."""
    folder = tmp_path_factory.mktemp("judges")
    data, run = make_data(folder / "data", posts=60), folder / "run"
    make_checkpoint(run / "supervised", data)
    make_checkpoint(run / "reward", data, "scalar")
    make_checkpoint(run / "ppo", data, seed=1, episodes=40, batch=10, kl_coef=0.05, temperature=0.9)
    make_checkpoint(folder / "other", data, "scalar", seed=3)
    make_checkpoint(folder / "foreign", make_data(folder / "more", vocab=270), "scalar")
    pairs.main(["--policy", str(run / "supervised"), "--others", str(run / "ppo"), "--pairs", "60",
                "--device", "cpu", "--with-reference", "0.5", "--out", str(run / "pairs.jsonl")])
    label.main(["simulate", "--pairs", str(run / "pairs.jsonl"),
                "--out", str(run / "comparisons.jsonl")])
    keep_answers(folder / "labels.db", read_comparisons(run / "pairs.jsonl", shape=label.PAIR),
                 read_comparisons(run / "comparisons.jsonl"))
    (folder / "longer.py").write_text(LONGER.strip())
    return folder


def command(program, tmp_path, jobs=4, patience=20.0, seed=0):
    path = tmp_path / "judge.py"
    path.write_text(program)
    return Command([sys.executable, "-S", str(path)], seed, jobs, patience, ALONE)


def compared(judge, n=100, ours=OURS, theirs=THEIRS):
    return judge.compare(POSTS[:n], ours[:n], theirs[:n])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Best of 4 at most."""
    monkeypatch.setattr(overoptimisation, "POOL", 4)


def report_of(world, out, *flags):
    """report.json of tools.judges, with its pages."""
    judges.main(["--run", str(world / "run"), "--device", "cpu", "--out", str(out),
                 *map(str, flags)])
    pages.main(["--run", str(world / "run"), "--device", "cpu", "--out", str(out)])
    return json.loads((out / "report.json").read_text())


# ---------------------------------------------------------------------------------- a program

def test_the_example_of_the_docstring_wins_exactly_where_ours_is_longer(tmp_path):
    assert len(LONGER.strip().splitlines()) == 4
    found = compared(command(LONGER.strip(), tmp_path), 35)
    assert found.tolist() == [(np.sign(len(a) - len(b)) + 1) / 2
                              for a, b in zip(OURS[:35], THEIRS[:35], strict=True)]


def test_a_judge_that_always_says_a_prefers_ours_where_ours_was_a_and_that_is_half(tmp_path):
    """It says A, and notes which text that was: ours are made of x."""
    program = ("import json, sys\nasked = json.load(sys.stdin)\nopen(sys.argv[0] + asked['id'], "
               "'w').write(asked['summary_a'])\nprint('A')")
    found = compared(command(program, tmp_path), 100)
    was_a = [(tmp_path / f"judge.py{p['id']}").read_text()[0] == "x" for p in POSTS[:100]]
    assert found.tolist() == was_a
    assert abs(found.mean() - 0.5) < 3 * 0.5 / 100 ** 0.5
    again = compared(command(program, tmp_path, jobs=1), 20)
    assert again.tolist() == was_a[:20]                        # whoever else is asked about
    other = compared(command(program, tmp_path, seed=1), 20)
    assert other.tolist() != was_a[:20]


def test_what_a_program_reads_is_the_whole_post_and_both_summaries(tmp_path):
    program = ("import json, sys\nasked = json.load(sys.stdin)\n"
               "assert set(asked) == {'id', 'title', 'subreddit', 'post', 'summary_a', 'summary_b'}\n"
               "assert asked['post'] == 'my cat sold my bike', asked\nprint('tie')")
    assert compared(command(program, tmp_path), 3).tolist() == [0.5] * 3


def test_the_same_text_is_a_tie_about_which_nobody_is_asked(tmp_path):
    assert compared(command("raise SystemExit('asked')", tmp_path), 5, OURS, OURS).tolist() == [.5] * 5


@pytest.mark.parametrize("said, ours_as_a", [
    ("A", 1), ("b", 0), (" Tie.", 0.5), ("**A**:\nclear", 1), ("(B)\nA is too long.", 0),
    ("\n\ufeff'A'.", 1)])
def test_an_answer_stands_alone_on_the_first_line(said, ours_as_a, tmp_path):
    first = compared(command("print('A')", tmp_path), 1)[0] == 1
    found = compared(command(f"print({ascii(said)})", tmp_path), 1)[0]
    assert found == (ours_as_a if first else 1 - ours_as_a)


@pytest.mark.parametrize("said", [
    "A tie", "A is worse than B, so my answer is B", "A and B are equally good", "A, no: B", "A/B",
    "A?", "A > B", "**A** is shorter", "Answer: A", "Not A", "a cat\nA", "tied", "AB", "-"])
def test_an_answer_among_other_words_is_refused_in_one_line(said, tmp_path):
    with pytest.raises(Problem, match="A, B or tie, alone on its first line; it says") as found:
        compared(command(f"print({said!r})", tmp_path), 1)
    assert "\n" not in str(found.value) and repr(said.splitlines()[0]) in str(found.value)


@pytest.mark.parametrize("program, words", [
    ("raise ValueError('no key')", r"post 't0': failed with exit code 1; it says 'ValueError: no key'"),
    ("print('B'); raise SystemExit(3)", "exit code 3; it says 'B'"),
    ("", "post 't0': should answer A, B or tie, alone on its first line; it says 'nothing'"),
    ("print('Both are good')", "it says 'Both are good'"),
    ("import time; time.sleep(30)", r"post 't0': no answer within 0.5 s: raise --patience"),
])
def test_a_program_that_fails_is_named_with_the_post_in_one_line_and_the_rest_is_not_asked(
        program, words, tmp_path, monkeypatch):
    asked, honest = [], judges.subprocess.run
    monkeypatch.setattr(judges.subprocess, "run",
                        lambda *args, **more: (asked.append(1), honest(*args, **more))[1])
    with pytest.raises(Problem, match=words) as found:
        compared(command(program, tmp_path, patience=0.5 if "sleep" in program else 20, jobs=2))
    assert "\n" not in str(found.value)
    assert 0 < len(asked) < 20                               # of 100: those that had begun


def test_a_report_by_a_program_has_the_win_rates_and_leaves_out_what_needs_grades(world, tmp_path):
    judge = f"command:{sys.executable} -S {world / 'longer.py'}"
    report = report_of(world, tmp_path, "--judge", judge, "--against", world / "run/supervised")
    gold = report_of(world, tmp_path / "gold")
    assert report["judge"] == judge and set(report) == set(gold) | {"against"}
    for name, row in report["policies"].items():
        assert set(row) == set(gold["policies"][name]) and row["n"] == 8
        assert set(row["axes"].values()) == {None}
        assert row["rouge_l"] == gold["policies"][name]["rouge_l"]
    assert report["policies"]["reference"]["win_rate"] == 0.5
    rates = report["against_supervised"]
    assert rates["reference"]["win_rate"] == 1 - report["policies"]["supervised"]["win_rate"]
    assert report["against"]["win_rate"] == rates["human_feedback"]["win_rate"]
    assert report["overoptimisation"] == [] and report["reward_model"]["ceiling"] is None
    assert report["reward_model"]["accuracy"] == gold["reward_model"]["accuracy"]
    page = (tmp_path / "report.md").read_text()
    assert "does not grade" in page and "Pleasing" not in page and "agrees with -" not in page


def test_all_is_said_by_the_same_judge_when_a_tool_or_the_chapter_asks_it(world, tmp_path):
    report = report_of(world, tmp_path / "a")
    evaluate.main(["--run", str(world / "run"), "--device", "cpu", "--out", str(tmp_path / "b")])
    pages.main(["--run", str(world / "run"), "--device", "cpu", "--out", str(tmp_path / "b")])
    other = json.loads((tmp_path / "b/report.json").read_text())
    assert {**other, "seconds": 0} == {**report, "seconds": 0}


def test_a_judge_of_ones_own_is_a_row_of_the_table(world, tmp_path, monkeypatch):
    def short(posts, texts):
        return {"overall": np.array([-len(text) for text in texts])}
    monkeypatch.setitem(judges.JUDGES, "short", evaluate.Judge(short))
    report = report_of(world, tmp_path, "--judge", "short")
    assert report["judge"] == "short"
    lines = [json.loads(line) for line in (tmp_path / "summaries.jsonl").read_text().splitlines()]
    assert report["policies"]["reference"]["axes"]["overall"] == pytest.approx(
        -np.mean([len(said["reference"]) for said in lines]), abs=1e-4)
    monkeypatch.delitem(judges.JUDGES, "short")
    with pytest.raises(Problem, match="judge 'short' is unknown"):
        judges.load_judge("short", [])


def test_another_judges_report_is_not_overwritten_unasked(world, tmp_path):
    out = shutil.copytree(world / "run", tmp_path / "run") / "report"
    say = ["--run", str(tmp_path / "run"), "--device", "cpu"]
    judges.main(say)                                           # gold's, in the usual place
    kept = (out / "report.json").read_text()
    with pytest.raises(Problem, match="is the report of the judge gold: name another --out"):
        judges.main([*say, "--judge", "rouge"])
    assert (out / "report.json").read_text() == kept
    judges.main([*say, "--judge", "rouge", "--out", str(out)])
    assert json.loads((out / "report.json").read_text())["judge"] == "rouge"
    judges.main([*say, "--judge", "rouge"])                    # its own
    with pytest.raises(Problem, match="is the report of the judge rouge"):
        judges.main(say)                                       # auto: gold
    for damaged in ("{", "[" * 10_000, "[]"):
        (out / "report.json").write_text(damaged)
        judges.main([*say, "--judge", "gold"])


def test_against_itself_a_policy_ties(world, tmp_path, capsys):
    report = report_of(world, tmp_path, "--against", world / "run/ppo")
    assert (f"`{world}/run/ppo` is preferred to `{world}/run/ppo` on 50.0% [50, 50] of 8 posts (in "
            "brackets the 95 % interval)\n") in capsys.readouterr().out
    assert report["against"]["win_rate"] == 0.5 and report["against"]["n"] == 8
    assert "is preferred to" in (tmp_path / "report.md").read_text()
    said = json.loads((tmp_path / "summaries.jsonl").read_text().splitlines()[0])
    assert said["against"] == said["human_feedback"]


@pytest.mark.parametrize("flags, words", [
    (["--against", "/nowhere"], "/nowhere is no checkpoint folder"),
    (["--data", "/nowhere"], "/nowhere"), (["--out", "{tmp}/file/x"], "file"),
    (["--judge", "command:{python} {tmp}/broken.py"], "exit code 1; it says 'no key'"),
    (["reward"], "another tokenizer")])
def test_everything_is_read_before_the_first_summary_and_the_first_paid_call(
        world, tmp_path, flags, words, monkeypatch):
    run = shutil.copytree(world / "run", tmp_path / "run")
    (tmp_path / "file").write_text("")
    (tmp_path / "calls").write_text("")
    (tmp_path / "broken.py").write_text("raise SystemExit('no key')")
    (tmp_path / "paid.py").write_text(f"open({str(tmp_path / 'calls')!r}, 'a').write('x')\nprint('A')")
    if flags == ["reward"]:
        make_checkpoint(run / "reward", make_data(tmp_path / "foreign", vocab=280), "scalar")
    flags = [f.format(tmp=tmp_path, python=sys.executable) for f in flags if "-" in f or "/" in f]
    if "--judge" not in flags:
        flags += ["--judge", f"command:{sys.executable} -S {tmp_path}/paid.py"]
    if "--out" not in flags:
        flags += ["--out", str(run / "report")]
    monkeypatch.setattr(sample, "summarise", None)
    monkeypatch.setattr(judges, "summarise", None)
    with pytest.raises((Problem, OSError), match=words):
        judges.main(["--run", str(run), "--device", "cpu", *flags])
    assert (tmp_path / "calls").read_text() == ""
    assert not (run / "report/report.json").exists()


# --------------------------------------------------------------------- another reward model, people

def test_the_grade_of_another_reward_model_is_its_score(world, tmp_path):
    report = report_of(world, tmp_path, "--judge", f"reward:{world / 'other'}")
    posts = sample.held_out(world / "data")
    scores = score_texts(load_checkpoint(world / "other", head="scalar"), posts,
                         [p["summary"].strip() for p in posts])
    assert report["policies"]["reference"]["axes"]["overall"] == pytest.approx(np.mean(scores), abs=1e-4)
    assert len(report["overoptimisation"]) == 4 and report["reward_model"]["ceiling"] is not None


def test_a_reward_model_judges_texts_whatever_its_tokenizer(world, tmp_path):
    report = report_of(world, tmp_path, "--judge", f"reward:{world / 'foreign'}")
    scores = score_texts(load_checkpoint(world / "foreign", head="scalar"),
                         posts := sample.held_out(world / "data"), [p["summary"] for p in posts])
    assert report["policies"]["reference"]["axes"]["overall"] == pytest.approx(np.mean(scores), abs=1e-4)


def test_the_runs_own_reward_model_as_the_judge_sees_what_it_foretold(world, tmp_path):
    report = report_of(world, tmp_path, "--judge", f"reward:{world / 'run/reward'}")
    for row in report["overoptimisation"]:
        assert row["gold"] == pytest.approx(row["rm"], abs=1e-4)
    assert report["reward_model"]["ceiling"] == report["reward_model"]["accuracy"]


def test_what_people_say_is_what_label_stats_says(world, tmp_path, capsys):
    report = report_of(world, tmp_path, "--judge", f"labels:{world / 'labels.db'}")
    known = {(r["policy"], r["against"]): r for r in numbers(Store(world / "labels.db"))["policies"]}
    assert len(report["labels"]) == 6                # three policies, each against two others
    for row in report["labels"]:
        truth = known[row["policy"], row["against"]]
        assert row["n"] == truth["n"] > 0
        assert [row["share"], *row["95"]] == pytest.approx([truth["share"], *truth["95"]], abs=1e-4)
    for name, theirs in (("supervised", "supervised_t1"), ("human_feedback", "ppo_t1")):
        truth, row = known[theirs, "ref"], report["policies"][name]
        assert (row["n"], row["win_rate"]) == (truth["n"], pytest.approx(truth["share"], abs=1e-4))
        assert row["rouge_l"] is None
    assert report["against_supervised"]["human_feedback"]["n"] == known["ppo_t1", "supervised_t1"]["n"]
    assert "ppo_t1" in (tmp_path / "report.md").read_text() and "ppo_t1" in capsys.readouterr().out
    assert (tmp_path / "report.png").exists()


def test_people_who_are_held_are_not_quoted(world, tmp_path):
    keep_answers(tmp_path / "l.db", read_comparisons(world / "run/pairs.jsonl", shape=label.PAIR),
                 read_comparisons(world / "run/comparisons.jsonl"))
    before, store = judges.people_say(tmp_path / "l.db", {})["labels"], Store(tmp_path / "l.db")
    name, *others = store.states()
    theirs = sum(a["labeller"] == name for a in store.answers())
    store.set_state(name, "held")
    rows = judges.people_say(tmp_path / "l.db", {})["labels"]     # (of a run without supervised, too)
    assert 0 < sum(r["n"] for r in before) - sum(r["n"] for r in rows) <= 2 * theirs
    for other in others:
        store.set_state(other, "held")
    with pytest.raises(Problem, match="nobody has compared .* held labellers aside"):
        judges.people_say(tmp_path / "l.db", {"supervised": "supervised"})


def test_people_may_have_been_asked_about_a_policy_that_is_not_here(world, tmp_path):
    run = shutil.copytree(world / "run", tmp_path / "run")
    for stage in ("supervised", "ppo"):
        (run / stage / "model.pt").unlink()
    flags = ("--judge", f"labels:{world / 'labels.db'}")
    whole, left = report_of(world, tmp_path / "a", *flags), report_of(tmp_path, tmp_path / "b", *flags)
    assert left["labels"] == whole["labels"]
    assert left["policies"]["supervised"] == whole["policies"]["supervised"]
    assert set(left["policies"]) == {"supervised", "reference"}


def test_people_who_were_asked_nothing_are_not_quoted(world, tmp_path):
    Store(tmp_path / "new.db").close()
    with pytest.raises(Problem, match="nobody has compared"):
        report_of(world, tmp_path, "--judge", f"labels:{tmp_path / 'new.db'}")


@pytest.mark.parametrize("flags, words", [
    (["--judge", "me"], "--judge me is unknown"), (["--jobs", "2"], "--jobs and --patience are for"),
    (["--judge", "reward:/nowhere"], "nowhere"), (["--judge", "reward:"], "no checkpoint folder"),
    (["--judge", "reward:{world}/run/ppo"], "holds a policy"),
    (["--judge", "command:no-such-program -x"], "there is no program 'no-such-program'"),
    (["--judge", "command: "], "there is no program"),
    (["--judge", "command:say 'A"], "cannot be split into words"),
    (["--judge", "labels:/nowhere.db"], "/nowhere.db: there is no such file"),
    (["--judge", "labels:{world}/longer.py"], "cannot be used as a database"),
    (["--judge", "labels:{world}/labels.db", "--against", "x"], "--against"),
    (["--judge", "labels:{world}/labels.db", "--run", "/nowhere"], "nowhere"),
    (["--jobs", "0"], "--jobs"), (["--patience", "0"], "--patience"),
])
def test_a_mistake_is_answered_in_one_line(world, tmp_path, flags, words):
    with pytest.raises(Problem, match=words) as found:
        report_of(world, tmp_path / "out", *(f.format(world=world) for f in flags))
    assert "\n" not in str(found.value) and not (tmp_path / "out").exists()
