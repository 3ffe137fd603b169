"""Chapter 5: what a policy writes, and what the command refuses."""
import dataclasses
import io
import json

import numpy as np
import pytest

import sample
import toy
from data import (
    fields_of,
    full_texts,
    load_tokenizer,
    read_posts,
    save_tokenizer,
)
from model import ModelConfig, build
from runtime import Problem, write
from runtime.files import save_tensors, write_config
from sample import Config, load_checkpoint, respond, split_of, summarise
from tools import overoptimisation
from tools.tokenizer import train_tokenizer


def make_data(folder, posts=40, vocab=300):
    """A few toy posts in three splits, and a tokenizer of their own."""
    folder.mkdir(parents=True)
    for split, count in (("train", posts), ("valid", 8), ("test", 8)):
        write(folder / f"{split}.jsonl", [toy.make_record(0, split, i)[1] for i in range(count)])
    save_tokenizer(train_tokenizer(full_texts(folder), vocab), folder)
    return folder


def make_checkpoint(folder, posts, head="lm", seed=0, **flags):
    """A checkpoint folder of random weights, as a training script would leave it."""
    tokenizer = load_tokenizer(posts)
    model = build(ModelConfig(tokenizer.n_vocab, 1, 16, 2, 400, head), seed)
    flags = dict(data=str(posts), query_length=300, response_length=12) | flags
    save_tensors(folder / "model.pt", model.state_dict())
    save_tokenizer(tokenizer, folder)
    write_config(folder / "config.json", Config(policy=""), model=vars(model.config), seconds=1.5)
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | {"flags": flags}))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """data/, policy/, reward/, and other/, a reward model of another tokenizer."""
    folder = tmp_path_factory.mktemp("sample")
    data = make_data(folder / "data")
    other = make_data(folder / "otherdata", posts=10, vocab=270)
    make_checkpoint(folder / "policy", data)
    make_checkpoint(folder / "reward", data, "scalar")
    make_checkpoint(folder / "other", other, "scalar")
    make_checkpoint(folder / "wordy", data, response_length=400)
    return folder


def run(world, *flags):
    sample.main(["--policy", str(world / "policy"), "--device", "cpu", *map(str, flags)])


def pairs(world, out, *flags):
    run(world, "--pairs", 20, "--out", out, *flags)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_pairs_take_no_other_files_place(world, tmp_path):
    (tmp_path / "p").write_text("pairs")
    with pytest.raises(Problem, match="p exists already: name another --out"):
        run(world, "--pairs", 20, "--out", tmp_path / "p", "--policy", "is not even looked at")
    assert (tmp_path / "p").read_text() == "pairs"


def test_what_a_row_says_depends_on_no_other_row(world):
    policy = load_checkpoint(world / "policy")
    model, posts = policy.model.double(), read_posts(world / "data", "train")[:9]
    policy, how = policy._replace(model=model), dict(temperature=1.0, seed=3)
    together = summarise(policy, posts, **how)
    alone = [summarise(policy, [p], rows=[i], **how)[0] for i, p in enumerate(posts)]
    assert together == alone == summarise(policy, posts, rows_at_once=2, **how)
    assert len(set(together)) > 5


def test_greedy_needs_no_seed_and_samples_do(world):
    policy, queries = load_checkpoint(world / "policy"), [[1, 2, 3], [4, 5]]
    assert respond(policy, queries, seed=0) == respond(policy, queries, seed=1)
    assert respond(policy, queries, 1.0, seed=0) != respond(policy, queries, 1.0, seed=1)


def test_after_worked_examples_the_answer_is_one_line(world, monkeypatch):
    policy = load_checkpoint(world / "policy")
    posts = read_posts(world / "data", "train")
    asked = []

    def fake(policy, queries, **how):
        asked.extend(queries)
        return [policy.tokenizer.encode_ordinary(" One line.\n\n=====\n\nSubreddit:")]

    monkeypatch.setattr(sample, "respond", fake)
    policy.model.config = dataclasses.replace(policy.model.config, context=2012)
    assert summarise(policy, posts[:1], posts[1:2]) == ["One line."]
    assert posts[1]["summary"] in policy.tokenizer.decode(asked[0])


def test_pairs_are_two_different_samples_of_training_posts(world, tmp_path):
    found = pairs(world, tmp_path / "pairs.jsonl", "--with-reference", 0)
    train = {p["id"]: p for p in read_posts(world / "data", "train")}
    assert len(found) == 20 == len({p["info"]["id"] for p in found})
    for pair in found:
        a, b = pair["summaries"]
        assert a["text"] != b["text"] and a["text"].startswith(" ")
        assert a["policy"] == b["policy"] == "policy_t1" and a["note"] is None
        post = train[pair["info"]["id"]]
        assert pair["reference"] == post["summary"]
        assert pair["info"] == {field: post[field] for field in fields_of(post)}
        assert pair["split"] == split_of(post)
    known = json.loads((tmp_path / "pairs.config.json").read_text())
    assert known["seconds"] >= 0 and known["flags"]["pairs"] == 20 and known["temperature"] == 1


def test_same_seed_same_pairs(world, tmp_path):
    one, two, other = (pairs(world, tmp_path / name, "--seed", seed)
                       for name, seed in (("p.jsonl", 1), ("b/p.jsonl", 1), ("c/p.jsonl", 2)))
    assert one == two != other


def test_some_pairs_set_the_reference_against_a_sample(world, tmp_path):
    found = pairs(world, tmp_path / "pairs.jsonl", "--with-reference", 1)
    places = [[s["policy"] for s in pair["summaries"]].index("ref") for pair in found]
    assert set(places) == {0, 1}                                     # shown first or second
    for pair, place in zip(found, places, strict=True):
        assert pair["summaries"][place]["text"] == " " + pair["reference"]


def test_a_post_never_changes_its_split():
    splits = [split_of({"id": f"post-{i}"}) for i in range(5000)]
    shares = [splits.count(name) / 5000 for name in ("train", "valid1", "valid2")]
    assert shares == pytest.approx([0.80, 0.08, 0.12], abs=0.02)
    assert splits[:3] == [split_of({"id": f"post-{i}"}) for i in range(3)]


@pytest.mark.parametrize("count", [39, 40])
def test_a_post_of_which_one_text_comes_costs_no_more_than_its_own_pair(
        world, tmp_path, monkeypatch, capsys, count):
    mute, honest = read_posts(world / "data", "train")[7]["id"], sample.summarise
    monkeypatch.setattr(sample, "summarise", lambda policy, posts, **how: [
        "nothing" if post["id"] == mute else text
        for post, text in zip(posts, honest(policy, posts, **how), strict=True)])
    run(world, "--pairs", count, "--out", tmp_path / "pairs.jsonl")
    ids = [json.loads(line)["info"]["id"] for line in
           (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(ids) == 39 and mute not in ids
    assert ("warning: 39 pairs, not 40" in capsys.readouterr().err) == (count == 40)


def test_the_kl_of_the_best_of_n_is_that_of_its_formula():
    """Of n samples out of many equally probable ones, without equal scores."""
    for n in (1, 2, 16):
        u = (np.arange(200000) + .5) / 200000
        density = n * u ** (n - 1)
        assert np.mean(density * np.log(density)) == pytest.approx(np.log(n) - (n - 1) / n, abs=1e-3)
    assert "2.773 - .938 = 1.835" in overoptimisation.__doc__
    assert round(np.log(16) - 15 / 16, 3) == 1.835 and np.log(60000) - 1 == pytest.approx(10, abs=.01)


def test_a_random_held_out_post_is_shown_with_both_summaries(world, capsys):
    run(world, "--seed", 5, "--reward", world / "reward")
    said = capsys.readouterr().out
    post, = [p for p in read_posts(world / "data", "test") if p["post"] in said]
    assert post["summary"] in said and post["title"] in said and said.count("(score ") == 2
    run(world, "--seed", 5, "--reward", world / "reward")
    assert capsys.readouterr().out == said


def test_the_best_of_n_comes_first_and_has_the_highest_score(world, capsys, monkeypatch):
    monkeypatch.setattr(sample, "summarise", lambda *a, **k: [f"text {i}" for i in range(4)])
    monkeypatch.setattr(sample, "score_texts", lambda r, records, texts: [.1, .2, 9., .3])
    run(world, "--post", "My sister sold my bike.", "--best-of", 4, "--reward", world / "reward")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "text 2  (score +9.00)" and said[-1] == "text 0  (score +0.10)"


def test_a_policy_that_is_only_pretrained_is_shown_examples(world, tmp_path, monkeypatch):
    policy, shown = make_checkpoint(tmp_path / "p", world / "data", loss_on="all"), []
    monkeypatch.setattr(sample, "summarise", lambda p, records, examples, **how: shown.extend(
        examples) or ["a"])
    sample.main(["--policy", str(policy), "--device", "cpu", "--post", "a"])
    assert len(shown) == 3 and shown == sample.worked_examples(world / "data", seed=0)
    run(world, "--post", "a")
    assert len(shown) == 3


def test_a_post_from_a_file_and_from_standard_input_are_one(world, tmp_path, capsys, monkeypatch):
    (tmp_path / "post.txt").write_text("My sister sold my bike.\n")
    run(world, "--post-file", tmp_path / "post.txt")
    said = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"My sister sold my bike.\n")))
    run(world, "--post-file", "-")
    assert capsys.readouterr().out == said


def test_a_post_in_foreign_words_is_warned_of(world, capsys):
    run(world, "--post", "Zebras quack phenomenally.")
    assert "warning: 3 of the post's words (zebras, quack, phenomenally" in capsys.readouterr().err
    run(world, "--post", "My sister sold my bike.")
    assert "warning" not in capsys.readouterr().err


def test_a_typed_post_may_begin_with_its_title():
    cfg = Config(policy="", post="TITLE: my bike\n\nMy sister sold it.")
    assert sample.post_of(cfg, "") == {"id": "typed", "subreddit": "relationships", "title": "my bike",
                                       "post": "My sister sold it."}


@pytest.mark.parametrize("flags, words", [
    (["--post-file", "{tmp}/none.txt"], "none.txt cannot be read"),
    (["--post-file", "{tmp}/binary"], "binary cannot be read"),
    (["--post-file", "{tmp}/blank"], "is blank"),
    (["--post", "  "], "is blank"),
    (["--post", ""], "is blank"),
    (["--post", "a", "--best-of", "4"], "--reward"),
    (["--best-of", "0"], "--best-of is 0"),
    (["--post", "a", "--reward", "{world}/other"], "tokenizer"),
    (["--post", "a", "--reward", "{world}/policy"], "swapped"),
    (["--post", "a", "--policy", "{world}/reward"], "swapped"),
    (["--post", "a", "--policy", "{world}/nowhere"], "nowhere"),
    (["--post", "a", "--policy", ""], "--policy is missing"),
    (["--post", "a", "--policy", "{world}/wordy"], "takes more than 0 tokens"),
    (["--data", "{tmp}/nowhere"], "nowhere"),
    (["--pairs", "4"], "--out"),
    (["--pairs", "4", "--out", "{tmp}/p", "--temperature", "0"], "--temperature"),
    (["--pairs", "4", "--out", "{tmp}/p", "--temperature", "1e-6"], "two different"),
    (["--pairs", "many"], "--pairs"),
    (["--out", "{tmp}/p"], "need each other"),
    (["--pairs", "4", "--out", "{tmp}/p", "--post", "a"], "no --post"),
    (["--pairs", "4", "--out", "{tmp}/p", "--best-of", "2", "--reward", "{world}/reward"],
     "tools.pairs"),
    (["--pairs", "4", "--out", "{tmp}/p", "--temperature", "-1"], "--temperature"),
])
def test_a_mistake_is_answered_in_one_line(world, tmp_path, flags, words):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "blank").write_text(" \n")
    with pytest.raises(Problem) as problem:
        run(world, *(f.format(tmp=tmp_path, world=world) for f in flags))
    assert words in str(problem.value) and "\n" not in str(problem.value)
    assert not (tmp_path / "p").exists()
