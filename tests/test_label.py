"""Chapter 6: from pairs to comparisons."""
import json

import pytest

import label
import toy
from data import read_comparisons, write_jsonl
from runtime import Problem


def toy_pairs(count=60):
    """The author's summary against a perfect one, of toy posts."""
    pairs = []
    for i in range(count):
        facts, post = toy.draw(0, "train", i)
        reference = post.pop("summary")
        pairs.append({"info": post, "batch": "pairs", "reference": reference,
                      "split": ("train", "valid1", "valid2")[i % 3],
                      "summaries": [{"text": " " + reference, "policy": "ref", "note": None},
                                    {"text": toy.ideal(facts), "policy": "ideal", "note": None}]})
    return [p for p in pairs if p["summaries"][0]["text"].strip() != p["summaries"][1]["text"]]


def real_pair(first, second, reference="the cat sat on the mat", **more):
    """A pair about a post that is not of the toy world."""
    post = {"id": "t3_1", "subreddit": "cats", "title": "mat", "post": "My cat sat there."}
    return {"info": post, "batch": "b", "split": "train", "reference": reference,
            "summaries": [{"text": t, "policy": "p", "note": None} for t in (first, second)]} | more


def simulate(folder, pairs, *flags):
    write_jsonl(folder / "pairs.jsonl", pairs)
    label.main(["simulate", "--pairs", str(folder / "pairs.jsonl"),
                "--out", str(folder / "comparisons.jsonl"), *flags])
    return read_comparisons(folder / "comparisons.jsonl")


def test_comparisons_are_openais_records(tmp_path, capsys):
    pairs = toy_pairs()
    found = simulate(tmp_path, pairs)
    assert len(found) == len(pairs)
    for pair, c in zip(pairs, found, strict=True):
        assert list(c) == ["info", "summaries", "choice", "worker", "batch", "split", "extra"]
        assert c["info"] == pair["info"] and "summary" not in c["info"]
        assert [set(s) for s in c["summaries"]] == [{"text", "policy", "note"}] * 2
        for mine, theirs in zip(pair["summaries"], c["summaries"], strict=True):
            assert theirs["text"] == " " + mine["text"].strip()      # one leading space, not two
        strong = c["extra"]["confidence"]
        assert strong > 5 if c["choice"] else strong < 5
        assert c["split"] == pair["split"]
    assert "agree on" in capsys.readouterr().out


def test_simulated_people_prefer_the_better_summary_more_often_than_not(tmp_path):
    found = simulate(tmp_path, toy_pairs())
    assert sum(c["choice"] for c in found) / len(found) > 0.7        # 1: the perfect one
    assert len({c["worker"] for c in found}) > 3


def test_same_seed_same_labels(tmp_path):
    one = simulate(tmp_path, toy_pairs(), "--seed", "1")
    assert one == simulate(tmp_path, toy_pairs(), "--seed", "1")
    assert one != simulate(tmp_path, toy_pairs(), "--seed", "2")


def test_agreement_splits_and_seconds_are_written_down(tmp_path):
    found = simulate(tmp_path, toy_pairs())
    known = json.loads((tmp_path / "comparisons.config.json").read_text())
    assert 0.5 < known["agreement"] <= 1 and known["seconds"] >= 0
    assert sum(known["splits"].values()) == known["comparisons"] == len(found)


def test_rouge_prefers_what_is_closer_to_the_author_and_leaves_ties_out(tmp_path):
    close, far, same = "the cat sat on a mat", "dogs bark", "cats purr"
    found = simulate(tmp_path, [real_pair(close, far), real_pair(far, close), real_pair(far, same)],
                     "--labeller", "rouge")
    assert [c["choice"] for c in found] == [0, 1]
    assert [c["extra"]["confidence"] for c in found] == [1, 9]
    assert json.loads((tmp_path / "comparisons.config.json").read_text())["agreement"] is None


def test_rouge_is_surer_of_larger_differences():
    wide, narrow = (label.ask_rouge(real_pair("the cat sat on the mat", b), 0, 0)["confidence"]
                    for b in ("dogs bark", "the cat sat on the mats"))
    assert wide == 1 < narrow < 5


@pytest.mark.parametrize("pair, words", [
    (real_pair("a", " a "), "line 1: the two summaries are the same"),
    (real_pair("a", "b", summaries=[]), "line 1: field 'summaries'"),
    (real_pair("a", "b", info="x"), "line 1: field 'info'"),
    (real_pair("a", "b", split=3), "line 1: field 'split'"),
    (real_pair("a", "b", reference=""), "no summary by its author"),
    (real_pair("a", "b"), "prefers neither"),
])
def test_a_bad_pair_is_named_by_file_and_line(tmp_path, pair, words):
    with pytest.raises(Problem, match=words):
        simulate(tmp_path, [pair], "--labeller", "rouge")
    assert not (tmp_path / "comparisons.jsonl").exists()


def test_toy_labellers_refuse_posts_from_elsewhere(tmp_path):
    with pytest.raises(Problem, match="--labeller rouge"):
        simulate(tmp_path, [real_pair("a", "b")])


@pytest.mark.parametrize("argv", [[], ["rank"], ["simulate"], ["simulate", "--labeller", "me"]])
def test_a_command_that_makes_no_sense_is_a_problem(argv):
    with pytest.raises(Problem):
        label.main(argv)


def test_no_pairs_is_a_problem(tmp_path):
    with pytest.raises(Problem, match="holds no pairs"):
        simulate(tmp_path, [])
    with pytest.raises(Problem, match="cannot be read"):
        label.main(["simulate", "--pairs", str(tmp_path / "none"), "--out", str(tmp_path / "x")])
