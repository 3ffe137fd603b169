"""Chapter 5: what a policy writes, and what the command refuses."""
import io
import json
import shutil

import pytest

import sample
import toy
from data import (
    fields_of,
    full_texts,
    load_tokenizer,
    read_posts,
    save_tokenizer,
    train_tokenizer,
    write_jsonl,
)
from model import ModelConfig, build
from runtime import Problem, save_tensors, write_config
from sample import Config, load_checkpoint, respond, split_of, summarise


def make_data(folder, posts=40, vocab=300):
    """A few toy posts in three splits, and a tokenizer of their own."""
    folder.mkdir(parents=True)
    for split, count in (("train", posts), ("valid", 8), ("test", 8)):
        write_jsonl(folder / f"{split}.jsonl", [toy.make_record(0, split, i)[1] for i in range(count)])
    save_tokenizer(train_tokenizer(full_texts(folder), vocab), folder)
    return folder


def make_checkpoint(folder, posts, head="lm", seed=0, **flags):
    """A checkpoint folder of random weights, as a training script would leave it."""
    tokenizer = load_tokenizer(posts)
    model = build(ModelConfig(tokenizer.n_vocab, 1, 16, 2, 400, head), seed)
    flags = dict(data=str(posts), query_length=300, response_length=12) | flags
    save_tensors(folder / "model.pt", model.state_dict())
    save_tokenizer(tokenizer, folder)
    write_config(folder / "config.json", Config(), model=vars(model.config), seconds=1.5)
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
    make_checkpoint(folder / "foreign", other)
    return folder


def run(world, *flags):
    sample.main(["--policy", str(world / "policy"), "--device", "cpu", *map(str, flags)])


def pairs(world, out, *flags):
    run(world, "--pairs", 20, "--out", out, *flags)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_pairs_take_no_other_files_place(world, tmp_path):
    (tmp_path / "p").write_text("pairs")
    with pytest.raises(Problem, match="p exists already: name another --out"):
        run(world, "--pairs", 20, "--out", tmp_path / "p", "--others", "is not even looked at")
    assert (tmp_path / "p").read_text() == "pairs"


def test_what_a_row_says_depends_on_no_other_row(world):
    policy = load_checkpoint(world / "policy")
    model, posts = policy.model.double(), read_posts(world / "data", "train")[:9]
    how = dict(limit_query=300, limit_response=12, temperature=1.0, seed=3)
    together = summarise(model, policy.tokenizer, posts, **how)
    alone = [summarise(model, policy.tokenizer, [p], rows=[i], **how)[0]
             for i, p in enumerate(posts)]
    assert together == alone == summarise(model, policy.tokenizer, posts, rows_at_once=2, **how)
    assert len(set(together)) > 5


def test_greedy_needs_no_seed_and_samples_do(world):
    policy = load_checkpoint(world / "policy")
    queries = [[1, 2, 3], [4, 5]]
    assert respond(policy.model, queries, 8, seed=0) == respond(policy.model, queries, 8, seed=1)
    assert respond(policy.model, queries, 8, 1.0, seed=0) != respond(policy.model, queries, 8, 1.0,
                                                                     seed=1)


def test_after_worked_examples_the_answer_is_one_line(world, monkeypatch):
    policy = load_checkpoint(world / "policy")
    posts = read_posts(world / "data", "train")
    asked = []

    def fake(model, queries, length, **how):
        asked.extend(queries)
        return [policy.tokenizer.encode_ordinary(" One line.\n\n=====\n\nSubreddit:")]

    monkeypatch.setattr(sample, "respond", fake)
    assert summarise(policy.model, policy.tokenizer, posts[:1], examples=posts[1:2],
                     limit_query=2000, limit_response=12) == ["One line."]
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
    assert known["seconds"] >= 0 and known["flags"]["pairs"] == 20


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


def test_pairs_of_several_policies_mix_them(world, tmp_path, float64):
    other = make_checkpoint(tmp_path / "ppo", world / "data", seed=1)
    (other / "snapshots").mkdir()
    shutil.copy(other / "model.pt", other / "snapshots" / "step-00000010.pt")
    found = pairs(world, tmp_path / "pairs.jsonl", "--others", f"{other},"
                  f"{other}/snapshots/step-00000010.pt", "--best-of", 3, "--reward",
                  world / "reward", "--with-reference", 0.2)
    seen = {s["policy"] for pair in found for s in pair["summaries"]}
    assert seen == {"policy_t1", "ppo_t1", "ppo_step-00000010_t1", "policy_bo3", "ref"}
    same = [len({s["policy"] for s in pair["summaries"]}) == 1 for pair in found]
    assert any(same) and not all(same)
    assert all(a["text"] != b["text"] for a, b in (pair["summaries"] for pair in found))
    alone = {p["info"]["id"]: p for p in pairs(world, tmp_path / "alone.jsonl",
                                               "--with-reference", 0)}
    for pair in found:       # a policy's sample does not depend on who else takes part
        for mine, theirs in zip(pair["summaries"], alone[pair["info"]["id"]]["summaries"],
                                strict=True):
            if "ref" not in [s["policy"] for s in pair["summaries"]]:
                assert (mine == theirs) == (mine["policy"] == "policy_t1")


def test_the_best_of_n_in_a_pair_is_the_one_the_reward_model_likes(world, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "score_texts", lambda r, records, texts, *more: list(map(len, texts)))
    drawn = []
    honest = sample.summarise

    def spy(*args, **how):
        texts = honest(*args, **how)
        if how["purpose"] == "pairs best":
            drawn.append([texts[i:i + 4] for i in range(0, len(texts), 4)])
        return texts
    monkeypatch.setattr(sample, "summarise", spy)
    found = pairs(world, tmp_path / "pairs.jsonl", "--best-of", 4, "--reward", world / "reward",
                  "--with-reference", 0)
    best = {max(four, key=len) for some in drawn for four in some}
    texts = [s["text"][1:] for p in found for s in p["summaries"] if s["policy"] == "policy_bo4"]
    assert len(texts) > 5 and set(texts) <= best


def test_by_uncertainty_keeps_what_the_reward_model_finds_hardest(world, tmp_path, float64):
    flags = ("--seed", 3, "--with-reference", 0)
    run(world, "--pairs", 20, "--out", tmp_path / "all.jsonl", *flags)
    run(world, "--pairs", 5, "--by", "uncertainty", "--reward", world / "reward",
        "--out", tmp_path / "some.jsonl", *flags)
    every, kept = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
                   for name in ("all.jsonl", "some.jsonl"))
    reward = load_checkpoint(world / "reward", head="scalar")

    def margin(pair):
        a, b = sample.score_texts(reward, [pair["info"]] * 2, [s["text"] for s in pair["summaries"]])
        return abs(a - b)
    kept_ids = [p["info"]["id"] for p in kept]
    held = [p["info"]["id"] for p in every[:5] if p["split"] != "train"]
    train = sorted((p for p in every if p["split"] == "train"), key=margin)
    assert len(kept) == 5 and set(held) <= set(kept_ids)         # held-out pairs are not selected
    assert set(kept_ids) == {*held, *(p["info"]["id"] for p in train[:5 - len(held)])}
    order = [p["info"]["id"] for p in every]
    assert kept_ids == sorted(kept_ids, key=order.index)


@pytest.mark.parametrize("count, flags", [
    (10, ["--by", "uncertainty"]), (39, ["--by", "uncertainty"]), (39, []), (40, [])])
def test_a_post_of_which_one_text_comes_costs_no_more_than_its_own_pair(
        world, tmp_path, monkeypatch, capsys, count, flags):
    mute, honest = read_posts(world / "data", "train")[7]["id"], sample.summarise
    monkeypatch.setattr(sample, "summarise", lambda model, tokenizer, posts, **how: [
        "nothing" if post["id"] == mute else text
        for post, text in zip(posts, honest(model, tokenizer, posts, **how), strict=True)])
    out = tmp_path / "pairs.jsonl"
    run(world, "--pairs", count, "--out", out, "--reward", world / "reward", *flags)
    ids = [json.loads(line)["info"]["id"] for line in out.read_text().splitlines()]
    assert len(ids) == min(count, 39) and mute not in ids
    assert ("warning: 39 pairs, not 40" in capsys.readouterr().err) == (count == 40)


@pytest.mark.parametrize("flags, words", [
    (["--out", "{tmp}/file/p"], "cannot be written"), (["--out", "{tmp}"], "exists already"),
    (["--out", "{tmp}/p", "--reward", "{tmp}/short"], "more than 20 tokens"),
    (["--out", "{tmp}/p", "--others", "{tmp}/brief"], "more than 20 tokens")])
def test_what_pairs_need_is_looked_at_before_the_first_is_written(
        world, tmp_path, monkeypatch, flags, words):
    (tmp_path / "file").write_text("in the way")
    make_checkpoint(tmp_path / "short", world / "data", "scalar", query_length=20)
    make_checkpoint(tmp_path / "brief", world / "data", query_length=20)
    monkeypatch.setattr(sample, "respond", lambda *more, **how: pytest.fail("somebody wrote"))
    with pytest.raises(Problem, match=words):
        run(world, "--pairs", 5, *(flag.format(tmp=tmp_path) for flag in flags))
    with pytest.raises(Problem, match="more than 20 tokens"):
        run(world, "--post", "a", "--title", "a b " * 20, "--reward", tmp_path / "short")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "short", "brief"}


def test_a_post_never_changes_its_split():
    splits = [split_of({"id": f"post-{i}"}) for i in range(5000)]
    shares = [splits.count(name) / 5000 for name in ("train", "valid1", "valid2")]
    assert shares == pytest.approx([0.80, 0.08, 0.12], abs=0.02)
    assert splits[:3] == [split_of({"id": f"post-{i}"}) for i in range(3)]


def test_a_random_held_out_post_is_shown_with_both_summaries(world, capsys):
    run(world, "--seed", 5, "--reward", world / "reward")
    said = capsys.readouterr().out
    post, = [p for p in read_posts(world / "data", "test") if p["post"] in said]
    assert post["summary"] in said and post["title"] in said and said.count("(score ") == 2
    run(world, "--seed", 5, "--reward", world / "reward")
    assert capsys.readouterr().out == said


def test_best_of_n_keeps_the_highest_score(world, capsys, monkeypatch):
    monkeypatch.setattr(sample, "summarise", lambda *a, **k: [f"text {i}" for i in range(4)])
    monkeypatch.setattr(sample, "score_texts", lambda r, records, texts: [.1, .2, 9., .3])
    run(world, "--post", "My sister sold my bike.", "--best-of", 4, "--reward", world / "reward")
    said = capsys.readouterr().out
    assert said.startswith("text 2") and "+9.00" in said and "+0.10" in said


def test_a_post_from_a_file_and_from_standard_input_are_one(world, tmp_path, capsys, monkeypatch):
    (tmp_path / "post.txt").write_text("My sister sold my bike.\n")
    run(world, "--post-file", tmp_path / "post.txt")
    said = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"My sister sold my bike.\n")))
    run(world, "--post-file", "-")
    assert capsys.readouterr().out == said


def test_a_post_of_foreign_words_is_warned_about(world, capsys):
    run(world, "--post", read_posts(world / "data", "train")[0]["post"])
    assert capsys.readouterr().err == ""
    run(world, "--post", "Quantenmechanik beschreibt Elektronen als Wellen")
    assert "warning: 5 of the post's 5 words" in capsys.readouterr().err


def test_a_policy_without_its_posts_is_not_held_against_them(world, tmp_path, capsys):
    policy = make_checkpoint(tmp_path / "policy", world / "data", data=str(tmp_path / "gone"))
    sample.main(["--policy", str(policy), "--device", "cpu", "--post", "Quantenmechanik"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("flags, words", [
    (["--post-file", "{tmp}/none.txt"], "none.txt cannot be read"),
    (["--post-file", "{tmp}/binary"], "binary cannot be read"),
    (["--post-file", "{tmp}/blank"], "blank is blank"),
    (["--post", "  "], "--post is blank"),
    (["--post", ""], "--post is blank"),
    (["--post", "a", "--post-file", "b"], "one is enough"),
    (["--post", "a", "--best-of", "4"], "--reward"),
    (["--best-of", "0"], "--best-of 0"),
    (["--post", "a", "--reward", "{world}/other"], "tokenizer"),
    (["--post", "a", "--reward", "{world}/policy"], "swapped"),
    (["--post", "a", "--policy", "{world}/reward"], "swapped"),
    (["--post", "a", "--policy", "{world}/nowhere"], "nowhere"),
    (["--post", "a", "--policy", ""], "--policy is missing"),
    (["--post", "a", "--response-length", "400"], "no room"),
    (["--data", "{tmp}/nowhere"], "nowhere"),
    (["--pairs", "41", "--out", "{tmp}/p"], "has only 40"),
    (["--pairs", "4"], "--out"),
    (["--pairs", "4", "--out", "{tmp}/p", "--temperature", "0"], "--temperature"),
    (["--pairs", "4", "--out", "{tmp}/p", "--temperature", "1e-6"], "two different"),
    (["--pairs", "many"], "--pairs"),
    (["--pairs", "4", "--out", "{tmp}/p", "--by", "uncertainty"], "whose uncertainty"),
    (["--pairs", "4", "--out", "{tmp}/p", "--others", "{world}/nowhere"], "nowhere"),
    (["--pairs", "4", "--out", "{tmp}/p", "--others", "{world}/reward"], "swapped"),
    (["--pairs", "4", "--out", "{tmp}/p", "--others", "{world}/foreign"], "another tokenizer"),
])
def test_a_mistake_is_answered_in_one_line(world, tmp_path, flags, words):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "blank").write_text(" \n")
    with pytest.raises(Problem) as problem:
        run(world, *(f.format(tmp=tmp_path, world=world) for f in flags))
    assert words in str(problem.value) and "\n" not in str(problem.value)
    assert not (tmp_path / "p").exists()
