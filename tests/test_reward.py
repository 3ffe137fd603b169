"""Chapter 7: a pairwise loss, the token that is read, and a zero for the scores."""
import ast
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, write_comparisons, write_posts
from test_sft import Killed, kill_at, log_of, weights_of

import data
import ppo
import reward
import sft
from model import lay_out, load_model, score
from reward import encode, pairwise_loss, score_pairs, zero_at_references
from runtime import Problem, config_of
from runtime.flags import parse
from sample import load_checkpoint, score_texts
from tools import doctor


def line(supervised, comparisons, out, more=""):
    return (f"--init {supervised} --comparisons {comparisons} --query-length 80 --device cpu "
            f"--response-length 16 --batch 8 --lr 3e-3 --out {out} {more}").split()


def config(more=""):
    return parse(reward.Config, {}, ("--init i --comparisons c --out o --query-length 80 "
                                     f"--response-length 16 {more}").split(), "")


def encoded(tokenizer, comparisons):
    return [encode(tokenizer, comparison, config()) for comparison in comparisons]


@pytest.fixture
def often(monkeypatch):
    """A line in the log at every step, and held-out accuracy at every fourth."""
    monkeypatch.setattr(reward, "LOG_EVERY", 1)
    monkeypatch.setattr(reward, "EVAL_EVERY", 4)


# ------------------------------------------------------------------------------------------- loss

def test_a_tie_costs_ln_2():
    scores = torch.tensor([-3.0, 0.0, 7.5])
    assert pairwise_loss(scores, scores).item() == pytest.approx(math.log(2))


def test_the_loss_is_the_cross_entropy_of_a_two_way_softmax():
    draw = torch.Generator().manual_seed(0)
    chosen, rejected = 3 * torch.randn(2, 50, generator=draw, dtype=torch.float64)
    first = torch.zeros(50, dtype=torch.long)
    expected = F.cross_entropy(torch.stack([chosen, rejected], 1), first)
    assert pairwise_loss(chosen, rejected).item() == pytest.approx(expected.item(), rel=1e-12)
    assert pairwise_loss(torch.tensor([-200.0]), torch.tensor([100.0])).item() == 300   # not inf


def test_the_loss_is_antisymmetric_and_only_differences_matter():
    a, b = torch.tensor([0.3], dtype=torch.float64), torch.tensor([1.7], dtype=torch.float64)
    wins, loses = pairwise_loss(a, b).exp() ** -1, pairwise_loss(b, a).exp() ** -1
    assert (wins + loses).item() == pytest.approx(1)           # sigmoid(x) + sigmoid(-x)
    assert (pairwise_loss(a, b) - pairwise_loss(b, a)).item() == pytest.approx((b - a).item())
    assert pairwise_loss(a + 5, b + 5).item() == pytest.approx(pairwise_loss(a, b).item())
    of_a, of_b = torch.autograd.grad(pairwise_loss(a.requires_grad_(), b.requires_grad_()), (a, b))
    assert of_a.item() == -of_b.item() == pytest.approx(wins.item() - 1)


def test_the_docstrings_numbers():
    seen = []
    for row in re.findall(r"^ +([\d.]+) +([\d.]+) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", reward.__doc__,
                          re.MULTILINE):
        chosen, rejected, *expected = map(float, row)
        chosen, rejected = (torch.tensor([x], requires_grad=True) for x in (chosen, rejected))
        loss = pairwise_loss(chosen, rejected)
        loss.backward()
        d = chosen.item() - rejected.item()
        assert [d, 1 / (1 + math.exp(-d)), loss.item(), chosen.grad.item(), rejected.grad.item()
                ] == pytest.approx(expected, abs=0.005)
        seen.append(row)
    assert len(seen) == 3


def test_logistic_noise_on_a_difference_of_scores_makes_its_sigmoid():
    """What `toy.decide` draws is what the loss supposes."""
    noise = np.random.default_rng(0).logistic(size=200_000)
    for d in (-1.5, 0.0, 0.9):
        assert (d + noise > 0).mean() == pytest.approx(1 / (1 + math.exp(-d)), abs=0.005)


def test_scores_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="4, 1.*4,"):
        pairwise_loss(torch.zeros(4, 1), torch.zeros(4))


# -------------------------------------------------------------------------------------- the score

def test_a_pairs_scores_are_those_of_each_row_alone(reward_model, comparisons, tokenizer):
    net = load_model(reward_model)
    rows = encoded(tokenizer, data.read_comparisons(comparisons, "valid1"))
    rows = [pair._replace(chosen=2 * pair.chosen) for pair in rows[:3]] + rows[3:7]     # unequal
    chosen, rejected = score_pairs(net, rows)
    for i, (query, a, b) in enumerate(rows):
        for ours, response in ((chosen[i], a), (rejected[i], b)):
            assert response[-1] == tokenizer.eot_token       # the last real token is the end itself
            everywhere = net(torch.tensor([query + response]))[0]
            assert abs(ours - everywhere[-1]) < 1e-5
            assert (everywhere[-1] - everywhere[:-1]).abs().min() > 1e-4       # no other token's


def test_a_comparison_becomes_query_chosen_rejected(comparisons, tokenizer):
    records = data.read_comparisons(comparisons, "train")
    for record, (query, chosen, rejected) in zip(
            records, encoded(tokenizer, records), strict=True):
        assert query == data.encode_query(tokenizer, record["info"], 80)
        better, worse = record["summaries"][::-1] if record["choice"] else record["summaries"]
        assert data.decode_response(tokenizer, chosen) == better["text"].strip()
        assert data.decode_response(tokenizer, rejected) == worse["text"].strip()
        assert "my mother" in better["text"]                  # both choices occur, one habit


def test_accuracy_counts_right_pairs_and_half_of_ties(reward_model, comparisons, tokenizer, world):
    net = load_model(reward_model)
    rows = encoded(tokenizer, data.read_comparisons(comparisons, "valid1"))
    chosen, rejected = score_pairs(net, rows)
    assert reward.validate(net, rows, config("--micro-batch 5"), world) == {
        "valid_accuracy": pytest.approx((chosen > rejected).float().mean().item()),
        "valid_loss": pytest.approx(-F.logsigmoid(chosen - rejected).mean().item(), rel=1e-5)}
    ties = [pair._replace(rejected=pair.chosen) for pair in rows]
    assert reward.validate(net, ties, config(), world) == {
        "valid_accuracy": 0.5, "valid_loss": pytest.approx(math.log(2))}


def test_pairs_that_are_cut_and_equal_once_cut_are_counted_by_the_doctor(supervised, comparisons,
                                                                         tmp_path, capsys):
    records = [json.loads(text) for text in comparisons.read_text().splitlines()]
    for record in records[:12]:
        for summary in record["summaries"]:
            summary["text"] = " a friend and the others and" + summary["text"]
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    reward.main(line(supervised, path, tmp_path / "run", "--response-length 8"))
    flags = config_of(tmp_path / "run")["flags"]
    assert doctor.equal_once_cut([], flags) == [(0, 12 / 48)]
    (_, share), = doctor.cut([], flags)
    assert 24 / 96 <= share <= 1
    with pytest.raises(SystemExit):
        doctor.main([str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "pairs are equal once cut: share of comparisons that teach nothing = 0.25 " in said
    reward.main(line(supervised, comparisons, tmp_path / "whole"))
    flags = config_of(tmp_path / "whole")["flags"]
    assert doctor.cut([], flags) == [(0, 0)] == doctor.equal_once_cut([], flags)
    assert doctor.cut([], flags | {"comparisons": str(tmp_path / "gone")}) == []


def test_a_tie_is_half_right_in_the_log_as_in_validation(supervised, comparisons, tmp_path,
                                                         monkeypatch, often):
    monkeypatch.setattr(reward, "score_pairs", lambda *args: (score_pairs(*args)[0],) * 2)
    reward.main(line(supervised, comparisons, tmp_path / "run"))
    for entry in log_of(tmp_path / "run"):
        assert entry["accuracy"] == 0.5 and entry["loss"] == pytest.approx(math.log(2))
    assert entry["valid_accuracy"] == 0.5


def test_references_score_0_on_average_and_no_difference_changes(reward_model, data_dir, tokenizer,
                                                                world):
    net, posts = load_model(reward_model), data.read_posts(data_dir, "train")
    queries = [data.encode_query(tokenizer, p, 80) for p in posts]
    responses = [data.encode_response(tokenizer, p["summary"], 16) for p in posts]
    assert abs(score(net, queries, responses).mean()) < 1e-5        # already, by reward.py itself
    with torch.no_grad():
        net.head.bias += 3
    before = score(net, queries, responses)
    moved = zero_at_references(net, tokenizer, posts, config("--micro-batch 3"), world)
    after = score(net, queries, responses)
    assert moved == pytest.approx(3, abs=1e-5) and abs(after.mean()) < 1e-5
    assert (after.diff() - before.diff()).abs().max() < 1e-5


def test_config_says_which_mean_was_taken_away(supervised, comparisons, data_dir, tokenizer, tmp_path):
    reward.main(line(supervised, comparisons, tmp_path / "run", "--lr 0"))
    posts = data.read_posts(data_dir, "train")
    rows = sft.summary_rows(tokenizer, posts, config())
    new = load_model(supervised, head="scalar")                       # as training began, and ended
    mean = score(new, [query for query, _ in rows], [response for _, response in rows]).mean()
    assert config_of(tmp_path / "run")["mean_taken_away"] == pytest.approx(mean.item(), abs=1e-5)


# ------------------------------------------------------------------------------------------- loop

def test_micro_batching_changes_no_gradient(float64, supervised, comparisons, tmp_path,
                                            monkeypatch):
    kept = []

    def stop(modules, *_):
        kept.append(torch.cat([p.grad.flatten() for m in modules.values()
                               for p in m.parameters()]))
        raise Killed
    monkeypatch.setattr(reward, "optimizer_step", stop)
    for micro in (8, 3, 1):
        with pytest.raises(Killed):
            reward.main(line(supervised, comparisons, tmp_path / f"{micro}", f"--micro-batch {micro}"))
    assert kept[0].norm() > 0.1
    assert all((kept[0] - cut).norm() < 1e-9 * kept[0].norm() for cut in kept[1:])


def test_it_starts_as_the_supervised_policy_with_a_fresh_head(supervised, comparisons, tmp_path):
    for seed in (0, 1):
        reward.main(line(supervised, comparisons, tmp_path / str(seed), f"--lr 0 --seed {seed}"))
    old, a, b = weights_of(supervised), weights_of(tmp_path / "0"), weights_of(tmp_path / "1")
    assert all(torch.equal(a[k], old[k]) for k in old) and a.keys() - old.keys() == {
        "head.weight", "head.bias"}
    assert not torch.equal(a["head.weight"], b["head.weight"])


def test_a_model_that_reads_the_sum_serves_where_any_other_does(supervised, comparisons, data_dir,
                                                               tokenizer, posts, tmp_path):
    """Its folder says so: no other script has to be told."""
    out = tmp_path / "reward"
    reward.main(line(supervised, comparisons, out, "--head sum"))
    assert config_of(out)["model"]["head"] == "sum"
    checkpoint = load_checkpoint(out, head="scalar")
    texts = [post["summary"] for post in posts[:9]]
    together = score_texts(checkpoint, posts[:9], texts)
    assert np.std(together) > 0 and together == pytest.approx(
        [score_texts(checkpoint, [p], [t])[0] for p, t in zip(posts, texts, strict=False)], abs=1e-5)
    references = score_texts(checkpoint, *zip(*((p, p["summary"]) for p in data.read_posts(
        data_dir, "train")), strict=True))
    assert abs(np.mean(references)) < 1e-4
    with pytest.raises(Problem, match="holds a reward model, not a policy"):
        load_checkpoint(out)
    assert load_model(out, head="scalar").config.head == "sum"         # it stays what it was made as
    ppo.main(f"--policy {supervised} --reward {out} --data {data_dir} --query-length 80 --device cpu "
             f"--response-length 16 --episodes 16 --batch 8 --out {tmp_path / 'ppo'}".split())
    first = log_of(tmp_path / "ppo")[0]
    assert config_of(tmp_path / "ppo")["model"]["head"] == "lm" and np.isfinite(first["value_loss"])
    assert load_model(tmp_path / "ppo").config.head == "lm"
    with pytest.raises(Problem, match="has a head 'sum', not 'scalar': give another"):
        reward.main(line(out, comparisons, tmp_path / "again"))       # not silently another head
    with pytest.raises(Problem, match="has a head 'sum', not 'lm'"):
        sft.main(f"--init {out} --data {data_dir} --device cpu --out {tmp_path / 'sft'}".split())


def test_an_interrupted_run_resumes_bit_for_bit(supervised, comparisons, tmp_path, monkeypatch,
                                                often):
    more = "--save-every 3"
    monkeypatch.setattr(reward, "EPOCHS", 2)
    reward.main(line(supervised, comparisons, tmp_path / "whole", more))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, reward, at=9)
        reward.main(line(supervised, comparisons, tmp_path / "broken", more))
    reward.main(line(supervised, comparisons, tmp_path / "broken", more + " --resume"))
    ours, theirs = (weights_of(tmp_path / name) for name in ("broken", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    ours, theirs = (log_of(tmp_path / name) for name in ("broken", "whole"))
    assert [{**a, "seconds": 0} for a in ours] == [{**b, "seconds": 0} for b in theirs]
    assert [entry["step"] for entry in ours] == list(range(12))


def test_it_learns_what_its_labeller_likes(supervised, posts, tmp_path, monkeypatch, often):
    monkeypatch.setattr(reward, "EPOCHS", 2)
    path = write_comparisons(tmp_path / "comparisons.jsonl", posts, 464, 64)
    reward.main(line(supervised, path, tmp_path / "run", "--lr 1e-2"))
    log = log_of(tmp_path / "run")
    assert sum(entry["loss"] for entry in log[:4]) / 4 == pytest.approx(math.log(2), abs=0.2)
    assert log[-1]["valid_accuracy"] > 0.9 and log[-1]["valid_loss"] < 0.3


def test_a_reward_model_of_a_policy_that_knows_filled_posts_fills_too(data_dir, comparisons,
                                                                      tokenizer, tmp_path,
                                                                      monkeypatch):
    sft.main(f"--data {data_dir} --size tiny --query-length 80 --response-length 16 --batch 8 "
             f"--steps 1 --fill --device cpu --out {tmp_path / 'policy'}".split())
    asked, encode_query = [], data.encode_query

    def watch(*args):
        asked.append(encode_query(*args))
        return asked[-1]
    monkeypatch.setattr(data, "encode_query", watch)
    reward.main(line(tmp_path / "policy", comparisons, tmp_path / "run"))
    assert len(asked) == 48 + 12 + 44           # to learn from, held out, to score 0 on average
    assert all(len(query) == 80 for query in asked)
    assert config_of(tmp_path / "run")["flags"]["fill"]


def test_only_the_first_comparisons_are_learned_from(supervised, comparisons, tmp_path):
    reward.main(line(supervised, comparisons, tmp_path / "limit", "--limit 24"))
    records = [json.loads(text) for text in comparisons.read_text().splitlines()]
    held_out = [r for r in records if r["split"] == "valid1"]
    fewer = [r for r in records if r["split"] == "train"][:24] + held_out
    path = tmp_path / "fewer.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in fewer))
    reward.main(line(supervised, path, tmp_path / "fewer"))
    ours, theirs = weights_of(tmp_path / "limit"), weights_of(tmp_path / "fewer")
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


# -------------------------------------------------------------------------------------- bad input

def test_input_that_cannot_work_is_a_problem(supervised, comparisons, tmp_path, data_dir):
    lines = comparisons.read_text().splitlines()
    path = tmp_path / "some.jsonl"

    def fails(match, wrong, more="", init=supervised):
        path.write_text("\n".join(wrong))
        with pytest.raises(Problem, match=match) as caught:
            reward.main(line(init, path, tmp_path / "run", more))
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()

    def changed(k, **fields):
        return lines[:k] + [json.dumps({**json.loads(lines[k]), **fields})] + lines[k + 1:]

    same = [{"text": " a", "policy": "sup", "note": None}] * 2
    fails(r"no pairs of split 'valid1', only of \['train'\]: ",
          [text for text in lines if '"valid1"' not in text])
    fails("train", [text for text in lines if '"valid1"' in text])
    fails("some.jsonl", [])
    fails("some.jsonl, line 3", [*lines[:2], lines[2][:50], *lines[3:]])
    fails("some.jsonl, line 5.*choice", changed(4, choice=2))
    fails("some.jsonl, line 6", changed(5, summaries=same))
    fails("some.jsonl, line 1.*title", changed(0, info={"id": "t", "subreddit": "s", "post": "p"}))
    fails("48 rows are no batch of 100: give more data, or lower --batch", lines, "--batch 100")
    fails("166 tokens do not fit", lines, "--query-length 150")
    fails("nowhere", lines, "--data nowhere")
    fails("is no checkpoint folder", lines, init=tmp_path / "nowhere")
    for name in ("init", "comparisons"):
        words = line(supervised, path, tmp_path / "run")
        at = words.index(f"--{name}")
        with pytest.raises(Problem, match=f"--{name} is missing"):
            reward.main(words[:at] + words[at + 2:])
    shutil.copytree(supervised, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "model.pt").unlink()
    fails("model.pt is missing", lines, init=tmp_path / "unfinished")
    write_posts(tmp_path / "posts", "train", [])
    fails("train.jsonl", lines, f"--data {tmp_path / 'posts'}")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(supervised, comparisons, tmp_path,
                                                                 monkeypatch):
    def poison(chosen, rejected):
        calls.append(1)
        return pairwise_loss(chosen, rejected) * (math.nan if len(calls) == 4 else 1)
    calls = []
    monkeypatch.setattr(reward, "pairwise_loss", poison)
    with pytest.raises(Problem, match="step 3"):
        reward.main(line(supervised, comparisons, tmp_path / "run", "--save-every 2"))
    assert (tmp_path / "run" / "state" / "step-00000002").is_dir()
    assert not (tmp_path / "run" / "model.pt").exists()


def test_the_gold_judge_is_out_of_reach():
    for node in ast.walk(ast.parse((ROOT / "reward.py").read_text())):
        names = [a.name for a in getattr(node, "names", [])] if isinstance(
            node, ast.Import | ast.ImportFrom) else []
        assert "toy" not in names and "gold" not in names and getattr(node, "module", "") != "toy"


def test_a_score_does_not_depend_on_the_way_it_is_asked(reward_model, tokenizer, posts):
    net = load_model(reward_model)
    queries = [data.encode_query(tokenizer, p, 80) for p in posts[:5]]
    responses = [data.encode_response(tokenizer, p["summary"], 16) for p in posts[:5]]
    rows = lay_out(queries, responses, tokenizer.n_vocab)
    by_hand = net(rows.tokens, at=rows.last)[:, 0]
    assert torch.equal(by_hand, score(net, queries, responses))
