"""Chapter 4: which tokens count, and that stopping and micro-batching change nothing."""
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import write_posts

import data
import model
import sft
from runtime import Problem, config_of
from runtime.flags import parse
from tools import doctor
from tools.tokenizer import train_tokenizer

SHORT = "--query-length 80 --response-length 16 --batch 8 --device cpu"
ALL = "--loss-on all --query-length 24"               # rows of 24 + 16 tokens


def line(data_dir, out, more="", rows=SHORT):
    return f"--data {data_dir} --size tiny {rows} --out {out} {more}".split()


def log_of(out):
    return [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()]


def weights_of(out, name="model.pt"):
    return torch.load(out / name, weights_only=True)


class Killed(Exception):
    """What the tests raise to end a process without a word."""


@pytest.fixture
def gradients(monkeypatch):
    """Ends a training script at its first optimizer step, and keeps the gradients it had."""
    kept = []

    def stop(networks, *_):
        kept.append(torch.cat([p.grad.flatten() for network in networks.values()
                               for p in network.parameters()]))
        raise Killed
    monkeypatch.setattr(sft, "optimizer_step", stop)
    return kept


@pytest.fixture
def often(monkeypatch):
    """A line in the log at every step, and a validation loss at every fourth."""
    monkeypatch.setattr(sft, "LOG_EVERY", 1)
    monkeypatch.setattr(sft, "EVAL_EVERY", 4)


@pytest.fixture
def first_step(monkeypatch):
    """Keeps the rows of every batch that a training script lays out."""
    kept = []

    def lay_out(queries, responses, pad):
        kept.append((queries, responses))
        return model.lay_out(queries, responses, pad)
    monkeypatch.setattr(sft, "lay_out", lay_out)
    return kept


@pytest.mark.parametrize("loss_on", [ALL, "--loss-on summary"])
def test_micro_batching_changes_no_gradient(float64, data_dir, tmp_path, gradients, loss_on):
    for micro in (8, 3, 1):
        with pytest.raises(Killed):
            sft.main(line(data_dir, tmp_path / f"{micro}",
                          f"{loss_on} --micro-batch {micro}"))
    whole = gradients[0]
    assert whole.norm() > 0.1
    assert all((whole - cut).norm() < 1e-9 * whole.norm() for cut in gradients[1:])


def test_only_summary_tokens_count(data_dir, tmp_path, tokenizer, first_step):
    sft.main(line(data_dir, tmp_path / "run", "--steps 1 --lr 0 --seed 5 --micro-batch 3"))
    net = model.build(model.sized("tiny", tokenizer.n_vocab), 5)
    rows = [row for part in first_step[:3] for row in zip(*part, strict=True)]
    assert len(rows) == 8
    nats, tokens = 0.0, 0
    for query, response in rows:
        logp = net(torch.tensor([query + response]))[0].log_softmax(-1)
        for i, token in enumerate(response, len(query)):
            nats, tokens = nats - logp[i - 1, token].item(), tokens + 1
        assert response[-1] == tokenizer.eot_token and tokenizer.eot_token not in query
        assert tokenizer.decode(query).endswith("TL;DR:")
    logged, = log_of(tmp_path / "run")
    assert logged["tokens"] == tokens and logged["loss"] == pytest.approx(nats / tokens, rel=1e-5)


def test_summaries_that_are_cut_end_all_the_same_and_the_doctor_counts_them(data_dir, tmp_path,
                                                                            tokenizer, capsys):
    texts = [post["summary"] for post in data.read_posts(data_dir, "train")]
    sizes = sorted(len(tokenizer.encode_ordinary(" " + text)) for text in texts)
    limit = sizes[len(sizes) // 2]
    cut = sum(size >= limit for size in sizes)         # one place is <|endoftext|>'s, as in 2020
    assert 0 < cut < len(texts)
    sft.main(line(data_dir, tmp_path / "run", f"--steps 1 --response-length {limit}"))
    with pytest.raises(SystemExit):
        doctor.main([str(tmp_path / "run")])
    said, = re.findall(r"summaries are cut: .* lost their end = ([\d.]+) ", capsys.readouterr().out)
    assert float(said) == pytest.approx(cut / 44, rel=1e-2)
    for text in texts:
        row = data.encode_response(tokenizer, text, limit)
        assert row[-1] == tokenizer.eot_token and len(row) <= limit
    sft.main(line(data_dir, tmp_path / "whole", f"--steps 1 --response-length {sizes[-1] + 1}"))
    doctor.main([str(tmp_path / "whole")])
    assert "summaries are cut" in capsys.readouterr().out         # it was looked for


@pytest.mark.parametrize("length", [2, 40, 1000])
def test_every_token_of_running_text_is_predicted_once(data_dir, tokenizer, length):
    eot, texts = tokenizer.eot_token, data.pretraining_texts(data_dir)[:9]
    rows = sft.running_rows(tokenizer, texts, length)
    before, predicted = [eot], []
    for query, response in rows:
        assert len(query) == 1 and 1 <= len(response) <= length - 1
        assert query == before[-1:]              # the token before: another row's last, or an end
        before, predicted = response, predicted + response
    assert predicted == [token for text in texts
                         for token in tokenizer.encode_ordinary(text) + [eot]]
    assert not any(eot in response[:-1] for _, response in rows)        # no two texts in a row


def test_a_post_with_endoftext_in_it_trains_as_text(tmp_path, posts, tokenizer):
    odd = [{**p, "post": "so <|endoftext|> they said.", "summary": "<|endoftext|> indeed"}
           for p in posts[:8]]
    for split in ("train", "valid"):
        write_posts(tmp_path / "data", split, odd)
    data.save_tokenizer(tokenizer, tmp_path / "data")
    cfg = parse(sft.Config, {}, line(tmp_path / "data", tmp_path / "run"), "")
    for name, more in (("summary", ""), ("all", f"{ALL} --batch 4")):
        sft.main(line(tmp_path / "data", tmp_path / name, f"--steps 2 {more}"))
    for query, response in sft.summary_rows(tokenizer, odd, cfg):
        assert tokenizer.eot_token not in query + response[:-1]
        assert "so <|endoftext|> they" in tokenizer.decode(query)
        assert data.decode_response(tokenizer, response).startswith("<|endof")
    rows = sft.running_rows(tokenizer, data.pretraining_texts(tmp_path / "data"), 40)
    assert sum(r.count(tokenizer.eot_token) for _, r in rows) == len(odd)          # the ends alone


def test_what_starts_from_a_network_of_filled_posts_fills_too(data_dir, tmp_path, tokenizer,
                                                              first_step, capsys):
    sft.main(line(data_dir, tmp_path / "a", "--steps 1 --fill"))
    sft.main(line(data_dir, tmp_path / "b", f"--steps 1 --init {tmp_path / 'a'}"))
    space, = tokenizer.encode_ordinary(" ")
    queries = [query for part, _ in first_step for query in part]
    assert len(queries) == 2 * (8 + 8) and all(len(q) == 80 and q[0] == space for q in queries)
    assert config_of(tmp_path / "b")["flags"]["fill"]
    assert "warning" not in capsys.readouterr().err
    with pytest.raises(Problem, match="with spaces to 80 tokens .*: give that --query-length"):
        sft.main(line(data_dir, tmp_path / "c",
                      f"--steps 1 --init {tmp_path / 'b'} --query-length 90"))


def kill_at(monkeypatch, module, at):
    """Makes a training script die without a word in its `at`-th optimizer step."""
    calls, descend = [], module.optimizer_step

    def dies(*args):
        calls.append(args)
        if len(calls) == at:
            raise Killed
        return descend(*args)
    monkeypatch.setattr(module, "optimizer_step", dies)


@pytest.mark.parametrize("loss_on", [ALL, "--loss-on summary"])
def test_an_interrupted_run_resumes_bit_for_bit(data_dir, tmp_path, monkeypatch, often, loss_on):
    more = f"{loss_on} --steps 11 --lr 1e-2 --warmup 2 --save-every 3 --weight-decay 0.1"
    sft.main(line(data_dir, tmp_path / "whole", more))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, sft, at=9)
        sft.main(line(data_dir, tmp_path / "broken", more))
    assert max(p.name for p in (tmp_path / "broken" / "state").iterdir()) == "step-00000006"
    sft.main(line(data_dir, tmp_path / "broken", more + " --resume"))
    ours, theirs = (weights_of(tmp_path / name) for name in ("broken", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    ours, theirs = (log_of(tmp_path / name) for name in ("broken", "whole"))
    assert [{**a, "seconds": 0} for a in ours] == [{**b, "seconds": 0} for b in theirs]
    assert len(ours) == 11 and len({entry["lr"] for entry in ours}) > 8


def test_resuming_a_finished_run_changes_nothing(data_dir, tmp_path):
    sft.main(line(data_dir, tmp_path / "run", "--steps 2"))
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    sft.main(line(data_dir, tmp_path / "run", "--steps 2 --resume"))
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_the_loss_falls_and_a_pretrained_network_starts_lower(data_dir, tmp_path, tokenizer, often):
    everything = f"{ALL} --steps 60 --lr 1e-2"
    sft.main(line(data_dir, tmp_path / "pretrained", everything))
    losses = [entry["loss"] for entry in log_of(tmp_path / "pretrained")]
    assert abs(losses[0] - math.log(tokenizer.n_vocab)) < 1 and losses[-1] < 0.4 * losses[0]
    summaries = "--steps 30 --lr 1e-2"
    sft.main(line(data_dir, tmp_path / "fresh", summaries))
    sft.main(line(data_dir, tmp_path / "grown", f"{summaries} --init {tmp_path / 'pretrained'}"))
    fresh, grown = log_of(tmp_path / "fresh"), log_of(tmp_path / "grown")
    assert grown[0]["loss"] < 0.8 * fresh[0]["loss"]
    assert grown[-1]["loss"] < grown[0]["loss"] and grown[-1]["valid_loss"] < 2


def test_the_validation_loss_is_a_mean_over_tokens(data_dir, tmp_path, tokenizer, world):
    cfg = parse(sft.Config, {}, line(data_dir, tmp_path, "--micro-batch 3"), "")
    rows = sft.summary_rows(tokenizer, data.read_posts(data_dir, "valid"), cfg)
    net = model.build(model.sized("tiny", tokenizer.n_vocab))
    nats = [sft.nll(net, [row]).item() for row in rows[:7]]
    expected = sum(nats) / sum(len(r) for _, r in rows[:7])
    assert sft.validate(net, rows[:7], cfg, world) == {
        "valid_loss": pytest.approx(expected, rel=1e-5)}


@pytest.mark.parametrize("more, match", [
    ("--query-length 150", "166 tokens do not fit this network's context of 160"),
    ("--loss-on all --query-length 145", "161 tokens do not fit"),
    ("--query-length 12", "12 .*tokens"),
    ("--batch 1000", "44 rows are no batch of 1000: give more data, or lower --batch"),
    ("--loss-on all --query-length 144 --batch 64",
     "43 rows are no batch of 64: give more data, or lower --batch"),
    ("--init nowhere", "nowhere"),
    ("--size huge", "huge"),
    ("--data nowhere", "nowhere"),
    ("--response-length 1", "--response-length is 1: a number of 2 or more is expected"),
])
def test_flags_that_cannot_work_are_problems(data_dir, tmp_path, more, match):
    with pytest.raises(Problem, match=match) as caught:
        sft.main(line(data_dir, tmp_path / "run", more))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_data_that_cannot_work_is_a_problem(data_dir, tmp_path, posts, tokenizer):
    def fails(match):
        with pytest.raises(Problem, match=match):
            sft.main(line(tmp_path / "data", tmp_path / "run", "--steps 1"))

    with pytest.raises(Problem, match="--data is missing"):
        sft.main(["--out", str(tmp_path / "run"), "--device", "cpu"])
    fails("no such tokenizer")
    data.save_tokenizer(tokenizer, tmp_path / "data")
    fails("train.jsonl")
    write_posts(tmp_path / "data", "train", posts[:8])
    write_posts(tmp_path / "data", "valid", [])
    fails("valid.jsonl")
    write_posts(tmp_path / "data", "valid", [posts[0], {**posts[1], "summary": " "}])
    fails("valid.jsonl, line 2: .*summary")
    write_posts(tmp_path / "data", "pretrain", [{"id": "1", "text": "my cat " * 99}])
    with pytest.raises(Problem, match="^0 rows are no batch of 8: give more data"):    # the one is held out
        sft.main(line(tmp_path / "data", tmp_path / "run", ALL))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_brings_its_own_tokenizer(data_dir, posts, tmp_path, supervised, tokenizer):
    for split in ("train", "valid"):
        write_posts(tmp_path / "other", split, posts[:8])
    data.save_tokenizer(train_tokenizer(data.full_texts(data_dir), 310), tmp_path / "other")
    sft.main(line(tmp_path / "other", tmp_path / "run", f"--init {supervised} --steps 1"))
    assert data.same_tokenizer(data.load_tokenizer(tmp_path / "run"), tokenizer)


def test_a_reward_model_is_no_start_for_imitation(data_dir, tmp_path, reward_model):
    with pytest.raises(Problem, match="has a head 'scalar', not 'lm': give another"):
        sft.main(line(data_dir, tmp_path / "run", f"--init {reward_model}"))


def test_the_learning_rate_rises_to_its_peak_and_falls_to_0():
    assert [sft.cosine(s, 10, 1.0, 4) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert sft.cosine(0, 8, 2.0, 0) == 2.0 and sft.cosine(4, 8, 2.0, 0) == pytest.approx(1.0)
    assert sft.cosine(8, 8, 2.0, 0) == pytest.approx(0)
    assert 0 < sft.cosine(7, 8, 2.0, 0) < 0.1
    falling = [sft.cosine(s, 50, 1.0, 5) for s in range(5, 51)]
    assert falling == sorted(falling, reverse=True)


def test_the_docstrings_example_of_running_text():
    words = SimpleNamespace(eot_token="end", encode_ordinary_batch=lambda texts, num_threads: [
        text.split() for text in texts])
    assert sft.running_rows(words, ["a b c d e"], 4) == [
        (["end"], ["a", "b", "c"]), (["c"], ["d", "e", "end"])]


def test_a_gradient_that_is_not_finite_stops_and_keeps_the_state(data_dir, tmp_path, monkeypatch):
    def poison(net, rows):
        calls.append(1)
        return sft_nll(net, rows) * (math.nan if len(calls) == 6 else 1)
    calls, sft_nll = [], sft.nll
    monkeypatch.setattr(sft, "nll", poison)
    with pytest.raises(Problem, match="step 5"):
        sft.main(line(data_dir, tmp_path / "run", "--steps 8 --save-every 2"))
    monkeypatch.undo()
    assert (tmp_path / "run" / "state" / "step-00000004").is_dir()
    sft.main(line(data_dir, tmp_path / "run", "--steps 8 --save-every 2 --resume"))
    assert all(w.isfinite().all() for w in weights_of(tmp_path / "run").values())
