"""tools/side.py: one post, every policy's summary, and numbers that are the chapters' own."""
import re
import shutil

import pytest
from test_sample import make_checkpoint, make_data

import sample
from data import read_posts
from evaluate import log_prob
from runtime import Problem
from sample import load_checkpoint, score_texts, summarise, worked_examples
from tools import side

ROW = re.compile(r"^(the author's|pretrained|supervised|human feedback|best of \d+) +score +(\S+) +"
                 r"(\d+) tokens +log-ratio +(\S+)\n  ((?:.|\n)*?)\n$", re.MULTILINE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of random weights: pretrained/, supervised/, reward/, ppo/, beside its data/."""
    folder = tmp_path_factory.mktemp("side")
    data = make_data(folder / "data")
    make_checkpoint(folder / "run/pretrained", data, seed=1, loss_on="all")
    make_checkpoint(folder / "run/supervised", data, seed=2)
    make_checkpoint(folder / "run/ppo", data, seed=3, temperature=0.9)
    make_checkpoint(folder / "run/reward", data, "scalar", seed=4)
    return folder / "run"


def told(run, capsys, *flags):
    """What is printed, and {who: (score, tokens, log-ratio, text)}."""
    capsys.readouterr()
    side.main(["--run", str(run), "--device", "cpu", *map(str, flags)])
    text = capsys.readouterr().out
    rows = {who: (score, int(tokens), ratio, " ".join(said.split()))
            for who, score, tokens, ratio, said in ROW.findall(text)}
    return text, rows


def test_every_summary_stands_there_with_the_chapters_numbers(run, capsys):
    text, rows = told(run, capsys, "--seed", 5, "--best-of", 4)
    assert list(rows) == ["the author's", "pretrained", "supervised", "human feedback", "best of 4"]
    name = re.match(r"post (\S+) of .*, held out", text)[1]
    post, = (p for p in read_posts(run.parent / "data", "test") if p["id"] == name)
    assert post["post"] in text and "--seed 6 takes another" in text
    supervised, ppo = (load_checkpoint(run / stage) for stage in ("supervised", "ppo"))
    reward = load_checkpoint(run / "reward", head="scalar")
    drawn = summarise(supervised, [post] * 4, seed=5, temperature=0.7)
    texts = [post["summary"].strip(),
             *summarise(load_checkpoint(run / "pretrained"), [post],
                        worked_examples(run.parent / "data", 5)),
             *summarise(supervised, [post]), *summarise(ppo, [post]),
             max(drawn, key=lambda text: score_texts(reward, [post], [text])[0])]
    for said, (score, tokens, ratio, shown) in zip(texts, rows.values(), strict=True):
        assert shown == " ".join(said.split())
        assert float(score) == pytest.approx(score_texts(reward, [post], [said])[0], abs=.0051)
        assert tokens == len(ppo.tokenizer.encode_ordinary(" " + said))
        ours, theirs = (log_prob(who, who.queries([post]), ppo.responses([said]), 0.9)
                        for who in (ppo, supervised))
        assert float(ratio) == pytest.approx((ours - theirs).item(), abs=.0051)


def test_another_seed_is_another_post_and_a_typed_one_has_no_author(run, capsys):
    posts = {re.match(r"post (\S+)", told(run, capsys, "--seed", seed, "--best-of", 1)[0])[1]
             for seed in range(6)}
    assert len(posts) > 1
    text, rows = told(run, capsys, "--post", "My sister sold my bike.", "--best-of", 1)
    assert list(rows) == ["pretrained", "supervised", "human feedback"]
    assert text.startswith("SUBREDDIT") and "My sister sold my bike." in text


def test_a_run_half_done_shows_what_there_is(run, capsys, tmp_path):
    shutil.copytree(run / "supervised", tmp_path / "half/supervised")
    _, rows = told(tmp_path / "half", capsys)
    assert list(rows) == ["the author's", "supervised"]
    assert [row[::2][:2] for row in rows.values()] == [("-", "-")] * 2


@pytest.mark.parametrize("flags, words", [
    (["--run", "{run}/ppo"], "did you mean {run}?"), (["--run", "nowhere"], "nowhere/supervised"),
    (["--run", "{run}", "--post", " "], "blank"), (["--run", "{run}", "--best-of", "0"], "--best-of"),
    (["--run", "{run}", "--data", "none"], "none"), ([], "--run is missing")])
def test_a_mistake_is_answered_in_one_line(run, flags, words):
    with pytest.raises(Problem) as problem:
        side.main([flag.format(run=run) for flag in flags])
    assert words.format(run=run) in str(problem.value) and "\n" not in str(problem.value)


def test_sample_answers_a_run_with_this_command():
    with pytest.raises(Problem, match="--run has moved: python -m tools.side .*--run runs/demo$"):
        sample.main(["--run", "runs/demo"])
