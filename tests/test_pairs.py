"""tools/pairs.py: pairs by several policies, of the best of n, chosen by uncertainty."""
import json
import shutil

import pytest
from test_sample import make_checkpoint, make_data

import sample
from data import read_posts
from runtime import Problem
from sample import load_checkpoint
from tools import pairs as tool


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """data/, policy/, reward/, and foreign/, which reads another tokenizer."""
    folder = tmp_path_factory.mktemp("pairs")
    data = make_data(folder / "data")
    make_checkpoint(folder / "policy", data)
    make_checkpoint(folder / "reward", data, "scalar")
    make_checkpoint(folder / "foreign", make_data(folder / "otherdata", posts=10, vocab=270))
    return folder


def run(world, *flags, script=tool):
    script.main(["--policy", str(world / "policy"), "--device", "cpu", *map(str, flags)])


def pairs(world, out, *flags, script=tool):
    run(world, "--pairs", 20, "--out", out, *flags, script=script)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_pairs_of_one_policy_are_those_of_the_chapter(world, tmp_path):
    one, other = (pairs(world, tmp_path / script.__name__ / "p.jsonl", "--seed", 3, script=script)
                  for script in (tool, sample))
    assert one == other


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


def test_versus_sets_the_policy_against_others_and_the_author_only(world, tmp_path):
    other = make_checkpoint(tmp_path / "ppo", world / "data", seed=1)
    flags = ("--others", other, "--versus", "--with-reference", 0.5)
    found = pairs(world, tmp_path / "pairs.jsonl", *flags)
    rivals = [tuple(s["policy"] for s in pair["summaries"]) for pair in found]
    assert len(found) == 20 and all(two.count("policy_t1") == 1 for two in rivals)
    counts = {name: sum(name in two for two in rivals) for name in ("ppo_t1", "ref")}
    assert counts["ppo_t1"] + counts["ref"] == 20 and min(counts.values()) >= 5
    assert 4 < sum(two[0] == "policy_t1" for two in rivals) < 16              # places are drawn
    assert found == pairs(world, tmp_path / "again" / "pairs.jsonl", *flags)
    for pair in found:                                    # names stay with their texts
        for summary in pair["summaries"]:
            assert (summary["policy"] == "ref") == (summary["text"].strip() == pair["reference"])


def test_the_best_of_n_in_a_pair_is_the_one_the_reward_model_likes(world, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "score_texts", lambda r, records, texts, *more: list(map(len, texts)))
    drawn = []
    honest = tool.summarise

    def spy(*args, **how):
        texts = honest(*args, **how)
        if how["purpose"] == "pairs best":
            drawn.append([texts[i:i + 4] for i in range(0, len(texts), 4)])
        return texts
    monkeypatch.setattr(tool, "summarise", spy)
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
    fixed = [p["info"]["id"] for p in every[:5] if p["split"] != "train"]
    train = sorted((p for p in every if p["split"] == "train"), key=margin)
    assert len(kept) == 5 and set(fixed) <= set(kept_ids)         # held-out pairs are not selected
    assert set(kept_ids) == {*fixed, *(p["info"]["id"] for p in train[:5 - len(fixed)])}
    order = [p["info"]["id"] for p in every]
    assert kept_ids == sorted(kept_ids, key=order.index)


@pytest.mark.parametrize("count, flags", [
    (10, ["--by", "uncertainty"]), (39, ["--by", "uncertainty"]), (39, []), (40, [])])
def test_a_post_of_which_one_text_comes_costs_no_more_than_its_own_pair(
        world, tmp_path, monkeypatch, capsys, count, flags):
    mute, honest = read_posts(world / "data", "train")[7]["id"], tool.summarise
    monkeypatch.setattr(tool, "summarise", lambda policy, posts, **how: [
        "nothing" if post["id"] == mute else text
        for post, text in zip(posts, honest(policy, posts, **how), strict=True)])
    out = tmp_path / "pairs.jsonl"
    needed = ["--reward", world / "reward"] if {"--by", "--best-of"} & set(flags) else []
    run(world, "--pairs", count, "--out", out, *needed, *flags)
    ids = [json.loads(line)["info"]["id"] for line in out.read_text().splitlines()]
    assert len(ids) == min(count, 39) and mute not in ids
    assert ("warning: 39 pairs, not 40" in capsys.readouterr().err) == (count == 40)


@pytest.mark.parametrize("flags, words", [
    (["--out", "{tmp}/file/p"], "cannot be written"), (["--out", "{tmp}"], "exists already"),
    (["--out", "{tmp}/p", "--best-of", "2", "--reward", "{tmp}/short"], "more than 20 tokens"),
    (["--out", "{tmp}/p", "--others", "{tmp}/brief"], "more than 20 tokens")])
def test_what_pairs_need_is_looked_at_before_the_first_is_written(
        world, tmp_path, monkeypatch, flags, words):
    (tmp_path / "file").write_text("in the way")
    make_checkpoint(tmp_path / "short", world / "data", "scalar", query_length=20)
    make_checkpoint(tmp_path / "brief", world / "data", query_length=20)
    monkeypatch.setattr(sample, "respond", lambda *more, **how: pytest.fail("somebody wrote"))
    with pytest.raises(Problem, match=words):
        run(world, "--pairs", 5, *(flag.format(tmp=tmp_path) for flag in flags))
    assert {p.name for p in tmp_path.iterdir()} == {"file", "short", "brief"}


@pytest.mark.parametrize("flags, words", [
    (["--pairs", "41"], "has only 40"), (["--pairs", "0"], "--pairs"), ([], "--pairs is missing"),
    (["--pairs", "4", "--best-of", "4"], "--reward"),
    (["--pairs", "4", "--reward", "x"], "--reward does nothing without --best-of"),
    (["--pairs", "4", "--candidates", "9"], "--candidates does nothing without --by"),
    (["--pairs", "4", "--temperature", "0"], "--temperature"),
    (["--pairs", "4", "--temperature", "1e-6"], "two different"),
    (["--pairs", "4", "--by", "uncertainty"], "whose uncertainty"),
    (["--pairs", "4", "--versus"], "against whom"),
    (["--pairs", "4", "--others", "{world}/nowhere"], "nowhere"),
    (["--pairs", "4", "--others", "{world}/reward"], "swapped"),
    (["--pairs", "4", "--others", "{world}/foreign"], "another tokenizer"),
])
def test_a_mistake_is_answered_in_one_line(world, tmp_path, flags, words):
    with pytest.raises(Problem) as problem:
        run(world, "--out", tmp_path / "p", *(f.format(world=world) for f in flags))
    assert words in str(problem.value) and "\n" not in str(problem.value)
    assert not (tmp_path / "p").exists()
