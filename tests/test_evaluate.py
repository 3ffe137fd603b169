"""Chapter 9: the statistics against brute force, and a whole report."""
import itertools
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from test_sample import make_checkpoint, make_data

import evaluate
import label
import ppo
import sample
import toy
from data import encode_query, encode_response
from evaluate import bootstrap, log_prob, wins
from model import lay_out, load_model, token_logp
from runtime import Problem, write
from runtime.files import save_tensors
from tools import judges, overoptimisation, rouge
from tools import report as pages
from tools.lengths import length_controlled
from tools.overoptimisation import best_of
from tools.report import copied


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run of random weights: run/ with every stage, and the same run half done."""
    folder = tmp_path_factory.mktemp("evaluate")
    data, run = make_data(folder / "data", posts=60), folder / "run"
    make_checkpoint(run / "pretrained", data)
    make_checkpoint(run / "supervised", data)
    make_checkpoint(run / "reward", data, "scalar")
    make_checkpoint(run / "ppo", data, seed=1, episodes=40, batch=10, kl_coef=0.05, temperature=0.9)
    save_tensors(run / "ppo/snapshots/step-000002.pt", load_model(run / "supervised").state_dict())
    save_tensors(run / "ppo/critic.pt", load_model(run / "reward").state_dict())
    write(run / "ppo/log.jsonl", [{"step": i, "episodes": 10 * i, "score": i, "kl": i}
                                        for i in range(4)])
    sample.main(["--policy", str(run / "supervised"), "--pairs", "60", "--device", "cpu",
                 "--out", str(run / "pairs.jsonl")])
    label.main(["simulate", "--pairs", str(run / "pairs.jsonl"),
                "--out", str(run / "comparisons.jsonl")])
    make_checkpoint(folder / "half/supervised", data)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Best of 4 at most."""
    monkeypatch.setattr(overoptimisation, "POOL", 4)


def report_of(world, *flags, run="run", also=()):
    """report.json after evaluate.py (or tools.judges, of other judges) and tools.report, whose own
    flags are `also`."""
    (judges if "--judge" in flags else evaluate).main(["--run", str(world / run), "--device", "cpu", *map(str, flags)])
    out = dict(zip(flags[::2], flags[1::2], strict=True)).get("--out", world / run / "report")
    pages.main(["--run", str(world / run), "--out", str(out), "--device", "cpu", *map(str, also)])
    return json.loads((out / "report.json").read_text())


def log_ratio(policy, reference, *rows):
    return log_prob(policy, *rows) - log_prob(reference, *rows)


# ------------------------------------------------------------------------------------- statistics

def test_a_tie_counts_half():
    assert wins([2, 1, 1], [1, 1, 2]).tolist() == [1, 0.5, 0]


def test_the_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for i in range(200):
        values = rng.choice([0, 0.5, 1], size=80, p=[0.3, 0.2, 0.5])           # mean 0.6, with ties
        low, high = bootstrap(values, i, resamples=300)[1]
        hits += low <= 0.6 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_the_bootstrap_is_of_its_seed_and_its_error_is_the_textbooks():
    values = np.random.default_rng(0).normal(size=500)
    assert bootstrap(values, 1) == bootstrap(values, 1) != bootstrap(values, 2)
    assert bootstrap(values, 1)[0] == pytest.approx(values.std() / math.sqrt(500), rel=0.05)


def test_several_values_of_one_post_are_not_independent():
    values, rng = [0.0, 1, 1, 0.5, 0, 1, 0, 0, 1, 0, 0], np.random.default_rng(0)
    posts = [f"t{i}" for i in range(len(values))]
    assert bootstrap(values, 0, posts) == bootstrap(values, 0)
    assert bootstrap(10 * values, 0, 10 * posts)[1] == pytest.approx(bootstrap(values, 0)[1])
    assert bootstrap(10 * values, 0)[0] < 0.4 * bootstrap(values, 0)[0]
    hits = 0
    for i in range(200):                      # posts of 1 to 9 labels, which all say the same
        mine = np.repeat(rng.random(60) < 0.6, counts := rng.integers(1, 10, 60))
        low, high = bootstrap(mine, i, np.repeat(range(60), counts).tolist(), resamples=300)[1]
        hits += low <= 0.6 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_length_control_recovers_a_planted_effect():
    rng, planted, preferred, ratio = np.random.default_rng(0), {"a": 0.4, "b": -0.8}, {}, {}
    for name, constant in planted.items():
        ratio[name] = rng.normal(0.5 if name == "a" else -0.3, 0.4, 20_000)    # a is long, b short
        p = 1 / (1 + np.exp(-(constant + 2.0 * ratio[name])))
        preferred[name] = (rng.random(20_000) < p).astype(float)
    found = length_controlled(preferred, ratio)
    assert preferred["a"].mean() > 0.75                                        # length helps a
    for name, constant in planted.items():
        assert found[name] == pytest.approx(1 / (1 + math.exp(-constant)), abs=0.015)


def test_without_a_length_effect_length_control_changes_nothing():
    won = {"a": np.array([1, 0.5, 0.5, 1, 0, 1])}
    assert length_controlled(won, {"a": np.zeros(6)})["a"] == pytest.approx(4 / 6, abs=1e-3)


def test_length_control_survives_a_policy_that_never_wins_or_never_loses():
    won = {"never": np.zeros(50), "always": np.ones(50)}
    found = length_controlled(won, {name: np.linspace(-1, 1, 50) for name in won})
    assert found["never"] < 0.01 and found["always"] > 0.99


def test_best_of_n_equals_enumeration_of_every_subset():
    rng = np.random.default_rng(0)
    scores, values = rng.normal(size=(3, 6)), rng.normal(size=(3, 6))
    for n in range(1, 7):
        for row in range(3):
            picks = [max(some, key=lambda i: scores[row, i])
                     for some in itertools.combinations(range(6), n)]
            assert best_of(scores, values, n)[row] == pytest.approx(values[row, picks].mean())


def test_of_4_samples_the_best_of_2_has_the_weights_of_the_docstring():
    found = best_of(np.arange(4.0)[None].repeat(4, 0), np.eye(4), 2)
    assert found == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])


def test_copied_counts_word_pairs_in_the_posts_order():
    assert copied("my dog ate it", "Yesterday my dog ate my shoe") == pytest.approx(2 / 3)
    assert copied("ate my shoe. my dog", "my dog ate my shoe") == 2 / 4       # not both orders
    assert copied("a cat", "my dog ate my shoe") == 0
    assert copied("", "my dog") == copied("dog", "my dog") == 0
    assert copied("My dog ate", "my dog ate") == 1
    assert copied("a b a b", "a b") == 1 / 3                             # not one place twice


def test_kl_is_the_difference_of_two_models_log_probabilities(world):
    a, b = (sample.load_checkpoint(world / "run" / name) for name in ("ppo", "supervised"))
    queries, responses = [[5, 6, 7], [8]], [[9, 10], [11, 12, 13]]
    found = log_ratio(a, b, queries, responses, 0.7)
    for row, (q, r) in enumerate(zip(queries, responses, strict=True)):
        tokens, n = torch.tensor([q + r]), len(q)
        logp = [token_logp(m(tokens)[:, n - 1:-1], torch.tensor([r]), 0.7).sum()
                for m in (a.model, b.model)]
        assert found[row] == pytest.approx((logp[0] - logp[1]).item(), abs=1e-4)
    assert log_ratio(a, a, queries, responses, 0.7).tolist() == [0, 0]


# ---------------------------------------------------------------------------------------- reports

def test_a_report_has_the_promised_keys(world, tmp_path):
    report = report_of(world, "--out", tmp_path)
    assert set(report["policies"]) == {"pretrained", "supervised", "human_feedback", "reference"}
    for name, p in report["policies"].items():
        assert p["n"] == 8 and p["win_rate_95"][0] <= p["win_rate"] <= p["win_rate_95"][1]
        assert set(p["axes"]) == {"coverage", "accuracy", "coherence", "overall"}
        assert {"length", "length_controlled_win_rate", "rouge_l", "kl"} <= set(p)
        assert (p["kl"] is None) == (name in ("pretrained", "reference"))
    assert report["policies"]["reference"]["win_rate"] == 0.5
    assert report["policies"]["reference"]["rouge_l"] == 1
    assert set(report["reward_model"]) == {"accuracy", "accuracy_95", "n", "posts", "ceiling"}
    rows = report["overoptimisation"]
    assert [(r["method"], r["n"], r["step"]) for r in rows] == [
        ("ppo", None, 2), ("ppo", None, 4), ("best_of_n", 1, None), ("best_of_n", 2, None),
        ("best_of_n", 4, None)]
    assert all(list(r) == ["method", "beta", "n", "kl", "step", "rm", "gold", "win_rate",
                           "predicted_win_rate"] for r in rows)
    assert rows[0]["kl"] == 0 < rows[1]["kl"]             # this snapshot is still supervised
    assert rows[2]["rm"] < rows[3]["rm"] < rows[4]["rm"]       # more to choose from
    assert list(report["seconds"]) == ["pretrained", "supervised", "labels", "reward", "ppo",
                                       "evaluate", "total"]
    assert report["seconds"]["total"] == pytest.approx(sum(list(report["seconds"].values())[:-1]),
                                                       abs=1e-3)
    for name in ("report.md", "report.png", "report.svg"):
        assert (tmp_path / name).stat().st_size > 500
    shown = (tmp_path / "report.html").read_text()
    assert "human feedback" in shown and "final, iteration 4" in shown and "image/png" in shown


def test_evaluate_alone_writes_the_numbers_and_prints_a_row_for_each_policy(world, tmp_path, capsys):
    evaluate.main(["--run", str(world / "run"), "--device", "cpu", "--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "summaries.jsonl"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["overoptimisation"] is None             # left to tools.report
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("policy"))
    assert "beats author" in lines[head] and max(map(len, lines[:-1])) <= 100
    for name, line in zip(report["policies"], lines[head + 1:], strict=False):
        assert line.startswith(name) and f"{report['policies'][name]['win_rate']:.1%}" in line


def test_every_column_that_is_printed_has_its_sentence_at_the_top(world, tmp_path, capsys):
    evaluate.main(["--run", str(world / "half"), "--device", "cpu", "--out", str(tmp_path)])
    printed = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("policy"))
    columns = re.split(r"\s{2,}", printed)[1:]
    assert columns == re.findall(r"^    (\S+(?: \w+)*)  +\S+ .*$", evaluate.__doc__.split(
        "are printed:")[1].split("PPO is trained")[0], re.MULTILINE)


def test_an_unfinished_run_reports_what_exists(world):
    report = report_of(world, run="half")
    assert set(report["policies"]) == {"supervised", "reference"}
    assert report["reward_model"] is None and report["overoptimisation"] == []


def test_the_difference_is_between_win_rates_on_the_same_posts(world, tmp_path):
    report = report_of(world, "--out", tmp_path)
    hf, supervised = (report["policies"][n]["win_rate"] for n in ("human_feedback", "supervised"))
    assert report["difference"]["mean"] == pytest.approx(hf - supervised, abs=1e-4)


def settled(run, stage, **flags):
    """Give a stage's config.json these flags."""
    path = run / stage / "config.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | {"flags": known["flags"] | flags}))


def test_each_policy_is_measured_with_its_own_settings(world, tmp_path):
    shutil.copytree(world / "run", tmp_path / "run")
    own = dict(response_length=5, query_length=200, fill=True)
    settled(tmp_path / "run", "ppo", **own)
    report = report_of(tmp_path)
    ours, theirs = (sample.load_checkpoint(tmp_path / "run" / n) for n in ("ppo", "supervised"))
    posts = sample.held_out(world / "data")
    posts = [posts[i] for i in evaluate.generator(0, "evaluate").permutation(len(posts))]
    queries = [encode_query(ours.tokenizer, p, 200, fill=True) for p in posts]
    written = sample.respond(ours, queries, 0.9, 0, "kl")
    kl = log_ratio(ours, theirs, queries, written, 0.9).mean()
    rows = report["overoptimisation"]
    assert report["policies"]["human_feedback"]["kl"] == pytest.approx(kl, abs=1e-4)
    assert rows[1]["kl"] == pytest.approx(kl, abs=1e-4) and rows[0]["kl"] == 0

    settled(tmp_path / "run", "supervised", response_length=7, query_length=250)
    other = report_of(tmp_path)
    assert other["overoptimisation"][:2] == rows[:2]            # PPO's rows do not know of it,
    assert other["overoptimisation"][2:] != rows[2:]            # the supervised policy's do
    for name in ("human_feedback", "pretrained", "reference"):
        alike = {"against_supervised", "length_controlled_win_rate"}
        assert ({k: v for k, v in other["policies"][name].items() if k not in alike}
                == {k: v for k, v in report["policies"][name].items() if k not in alike})
    assert other["policies"]["supervised"]["length"] != report["policies"]["supervised"]["length"]


def test_the_ceiling_is_of_the_folder_that_the_labelled_posts_came_from(world, tmp_path):
    """Another seed's world has the same ids, news has other ones, and a folder of strangers needs
    no train.jsonl; a folder that is gone is said to be."""
    run = shutil.copytree(world / "run", tmp_path / "run")
    other, news = tmp_path / "other", tmp_path / "news"
    for split, count in (("train", 60), ("test", 8)):
        write(other / f"{split}.jsonl", [toy.make_record(1, split, i)[1] for i in range(count)])
        write(news / f"{split}.jsonl", [
            {"id": f"n{i}", "site": "cnn", "title": "t", "article": "My cat left. It is so.",
             "summary": "my cat left"} for i in range(count)])
    shutil.copytree(other, tmp_path / "strangers")
    (tmp_path / "strangers/train.jsonl").unlink()
    found = {name: report_of(tmp_path, "--judge", "rouge", "--data", folder) for name, folder in
             (("own", world / "data"), *((n, tmp_path / n) for n in ("other", "news", "strangers")))}
    ceiling, = {report["reward_model"]["ceiling"] for report in found.values()}
    assert 0 < ceiling < 1 and not any(report["notes"] for report in found.values())
    labels = [c for c in evaluate.data.read_comparisons(run / "comparisons.jsonl", "valid2")]
    wins_of = rouge.JUDGES["rouge"].compare(
        [toy_post(c["info"]["id"], world) for c in labels],
        *([c["summaries"][c["choice"] ^ side]["text"] for c in labels] for side in (0, 1)))
    assert ceiling == pytest.approx(wins_of.mean(), abs=1e-5)

    for stage in ("supervised", "reward", "pretrained"):
        settled(run, stage, data=str(tmp_path / "gone"))
    report = report_of(tmp_path, "--judge", "rouge", "--data", other)
    told = f"For 10 of 10 labels there is no opinion of the judge.*{tmp_path}/gone or {other}"
    assert report["reward_model"]["ceiling"] is None and report["reward_model"]["n"] == 10
    assert re.search(told, report["notes"][0]) and report["notes"][0] in page_of(tmp_path)
    report = report_of(tmp_path, "--judge", "rouge", "--data", world / "data")      # moved there
    assert report["reward_model"]["ceiling"] == ceiling and not report["notes"]


def page_of(folder):
    return (folder / "run/report/report.md").read_text()


def toy_post(name, world):
    return next(p for p in evaluate.data.read_posts(world / "data", "train") if p["id"] == name)


def test_a_label_written_ten_times_is_one_label_to_the_interval(world, tmp_path):
    lines = [c for c in evaluate.data.read_comparisons(world / "run/comparisons.jsonl")
             if c["split"] == "valid2"]
    run = shutil.copytree(world / "run", tmp_path / "run")
    once, often = ([many(some, run / "comparisons.jsonl"), report_of(tmp_path)["reward_model"]][1]
                   for some in (lines, 10 * lines))
    assert often == once | {"n": 10 * once["n"]} and once["posts"] == once["n"] == len(lines)


def many(records, path):
    write(path, records)
    return path


def test_without_labels_held_out_there_is_a_report_that_says_so(world, tmp_path):
    lines = [c for c in evaluate.data.read_comparisons(world / "run/comparisons.jsonl")
             if c["split"] != "valid2"]
    run = shutil.copytree(world / "run", tmp_path / "run")
    many(lines, run / "comparisons.jsonl")
    report = report_of(tmp_path)
    assert report["reward_model"] is None and len(report["overoptimisation"]) == 5
    assert re.search("reward model is not tried on labels: .* split valid2", report["notes"][0])
    assert len(report["notes"]) == 1 and report["notes"][0] in page_of(tmp_path)


NETWORKS = ("pretrained/model.pt", "supervised/model.pt", "ppo/model.pt", "reward/model.pt")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_is_not_finite_is_named_before_the_first_summary(
        world, tmp_path, name, value, monkeypatch):
    run = shutil.copytree(world / "run", tmp_path / "run")
    weights = torch.load(run / name)
    weights["wpe.weight"][-1, -1] = value                 # a column that no short post reaches
    save_tensors(run / name, weights)
    monkeypatch.setattr(sample, "summarise", None)
    with pytest.raises(Problem, match=f"{run / name}: weight wpe.weight is not finite") as found:
        report_of(tmp_path)
    assert "\n" not in str(found.value) and not (run / "report").exists()


def test_a_number_that_overflows_ends_the_evaluation(world, tmp_path):
    run = shutil.copytree(world / "run", tmp_path / "run")
    weights = torch.load(run / "reward/model.pt")
    weights["head.weight"][:] = 3e38
    save_tensors(run / "reward/model.pt", weights)
    with pytest.raises(Problem, match=f"{run / 'reward'}: scores that are not finite"):
        report_of(tmp_path)
    shutil.copy(world / "run/reward/model.pt", run / "reward/model.pt")
    weights = torch.load(run / "ppo/model.pt")
    weights["norm.weight"][:] = 3e38
    save_tensors(run / "ppo/model.pt", weights)
    with pytest.raises(Problem, match="report.json is not written: a number for it is not finite"):
        report_of(tmp_path)
    assert not (run / "report/report.json").exists()


def test_a_step_that_fails_leaves_the_summaries_and_no_half_report(world, tmp_path, monkeypatch):
    def fail(*args):
        raise Problem("no more")
    for step in ("compare", "sample_with_kl", "reward_accuracy"):
        with monkeypatch.context() as patch, pytest.raises(Problem, match="no more"):
            patch.setattr(evaluate, step, fail)
            report_of(world, "--out", tmp_path / step)
        lines = (tmp_path / step / "summaries.jsonl").read_text().splitlines()
        assert len(lines) == 8 and len(json.loads(lines[0])) == 5
        assert not (tmp_path / step / "report.json").exists()


def test_what_is_left_open_is_filled_by_the_report_alone(world, tmp_path):
    open_keys = {"length_controlled_win_rate", "rouge_1", "rouge_2", "rouge_l", "copied"}
    evaluate.main(["--run", str(world / "run"), "--device", "cpu", "--out", str(tmp_path)])
    before = json.loads((tmp_path / "report.json").read_text())
    pages.main(["--run", str(world / "run"), "--out", str(tmp_path), "--device", "cpu"])
    after = json.loads((tmp_path / "report.json").read_text())
    assert before.keys() == after.keys() and after["reward_model"]["ceiling"] is not None
    for name, row in before["policies"].items():
        filled = {key for key in row if row[key] != after["policies"][name][key]}
        assert row.keys() == after["policies"][name].keys() and filled == open_keys
    texts = [json.loads(line) for line in (tmp_path / "summaries.jsonl").read_text().splitlines()]
    posts = {p["id"]: p for p in sample.held_out(world / "data")}
    shared = [rouge.rouge(line["supervised"], posts[line["id"]]["summary"])["rouge_l"] for line in texts]
    assert after["policies"]["supervised"]["rouge_l"] == pytest.approx(np.mean(shared), abs=1e-5)
    assert after["policies"]["reference"]["length_controlled_win_rate"] == pytest.approx(.5, abs=.01)


def test_what_costs_most_is_asked_last(world, tmp_path, monkeypatch):
    """A judge's answers may be paid for: nothing that can fail comes after them."""
    done = []

    def noted(name, step):
        return lambda *args: [done.append(name), step(*args)][1]
    for name in ("sample_with_kl", "reward_accuracy", "compare"):
        monkeypatch.setattr(evaluate, name, noted(name, getattr(evaluate, name)))
    evaluate.main(["--run", str(world / "run"), "--device", "cpu", "--out", str(tmp_path)])
    assert sorted(done[:2]) == ["reward_accuracy", "sample_with_kl"] and done[2:] == ["compare"]


def test_real_posts_are_judged_by_rouge(world, tmp_path):
    """Renamed toy posts are real ones: nobody beats the author, and rouge agrees with itself."""
    data = make_data(tmp_path / "data", posts=60)
    for path in data.glob("*.jsonl"):
        path.write_text(path.read_text().replace('"id": "toy', '"id": "t3'))
    run = tmp_path / "run"
    make_checkpoint(run / "supervised", data)
    make_checkpoint(run / "ppo", data, seed=1, episodes=4, batch=2, kl_coef=0.05, temperature=1.0)
    make_checkpoint(run / "reward", data, "scalar")
    sample.main(["--policy", str(run / "supervised"), "--pairs", "60", "--device", "cpu",
                 "--out", str(run / "pairs.jsonl"), "--with-reference", "1"])
    rouge.main(["--pairs", str(run / "pairs.jsonl"), "--out", str(run / "comparisons.jsonl")])
    with pytest.raises(Problem, match="tools.judges has others, such as --judge rouge"):
        report_of(tmp_path)
    report = report_of(tmp_path, "--judge", "auto")
    assert report["judge"] == "rouge" and report["reward_model"]["ceiling"] == 1
    assert report["policies"]["human_feedback"]["win_rate"] == 0
    assert report["policies"]["human_feedback"]["axes"]["coverage"] is None
    assert 0 <= report["against_supervised"]["human_feedback"]["win_rate"] <= 1
    with pytest.raises(Problem, match="--judge rouge"):
        report_of(tmp_path, "--judge", "gold")


def test_kl_of_the_report_is_the_one_that_ppo_logs(world):
    """The same row's summary, temperature and networks: sum over tokens of log pi - log pi_sft."""
    networks = [sample.load_checkpoint(world / "run" / n) for n in ("ppo", "supervised")]
    tokenizer = networks[0].tokenizer
    post = {"subreddit": "a", "title": "b", "post": "My sister sold my bike."}
    query = encode_query(tokenizer, post, 300)
    response = encode_response(tokenizer, "she did", 12)
    rows = lay_out([query], [response], tokenizer.n_vocab)
    logp = [token_logp(c.model(rows.tokens, at=rows.columns), rows.targets, 0.9).detach()
            for c in networks]
    zero = torch.zeros(1)
    rollout = ppo.Rollout(*rows, *logp, logp[0], zero)
    total = ppo.token_rewards(rollout, kl_coef=1.0).sum().item()
    found = log_ratio(*networks, [query], [response], 0.9)
    assert found[0] == pytest.approx(-total, 1e-4)


def test_stages_of_two_runs_are_not_mixed(world, tmp_path):
    other = make_data(tmp_path / "data", vocab=280)
    make_checkpoint(tmp_path / "run/supervised", world / "data")
    make_checkpoint(tmp_path / "run/ppo", other)
    with pytest.raises(Problem, match="another tokenizer"):
        report_of(tmp_path)


@pytest.mark.parametrize("flags, words", [
    ([], "--run is missing"), (["--run", "/nowhere"], "nowhere/supervised"),
    (["--posts", "0"], "--posts"),
    (["--judge", "rouge"], "has moved: python -m tools.judges .* --judge rouge$"),
    (["--data", "/nowhere"], "/nowhere"), (["--out", "{file}/x"], "file"),
    (["--judge", "reward:d"], "has moved: python -m tools.judges .* --judge reward:d$"),
    (["--against", "d"], "--against has moved: python -m tools.judges .*--against d$"),
    (["--judge", "command:a b"], "has moved: python -m tools.judges .* --judge 'command:a b'$"),
    (["--judge=labels:d"], "has moved: python -m tools.judges .* --judge=labels:d$"),
])
def test_a_mistake_is_answered_in_one_line_before_the_first_summary(world, tmp_path, monkeypatch,
                                                                    flags, words):
    (tmp_path / "file").write_text("")
    flags = [flag.format(file=tmp_path / "file") for flag in flags]
    monkeypatch.setattr(sample, "summarise", None)
    named = [] if "--run" in flags or not flags else ["--run", str(world / "half")]
    with pytest.raises((Problem, OSError), match=words):
        evaluate.main([*named, "--device", "cpu", *flags])


def test_everything_is_read_before_the_first_summary(world, tmp_path, monkeypatch):
    run = shutil.copytree(world / "run", tmp_path / "run")
    make_checkpoint(run / "reward", make_data(tmp_path / "foreign", vocab=280), "scalar")
    monkeypatch.setattr(sample, "summarise", None)
    with pytest.raises(Problem, match="another tokenizer"):
        report_of(tmp_path)
    assert not (run / "report").exists()


@pytest.mark.parametrize("step", ["reward_accuracy", "sample_with_kl", "compare"])
def test_summaries_are_kept_and_the_judge_is_asked_last(world, tmp_path, monkeypatch, step):
    def fail(*args):
        raise Problem("no more")
    asked = []
    monkeypatch.setattr(evaluate.Judge, "compare", lambda *args: asked.append(args))
    monkeypatch.setattr(evaluate, step, fail)
    with pytest.raises(Problem, match="no more"):
        report_of(world, "--out", tmp_path)
    assert len((tmp_path / "summaries.jsonl").read_text().splitlines()) == 8
    assert not asked and not (tmp_path / "report.json").exists()


def test_a_label_whose_title_is_too_long_is_told_before_anything_is_written(world, tmp_path,
                                                                             monkeypatch):
    post = {"id": "long", "subreddit": "a", "title": "word " * 2000, "post": "b"}
    monkeypatch.setattr(evaluate, "labels_of", lambda *_: [{"info": post}])
    with pytest.raises(Problem, match="post 'long': takes more than"):
        report_of(world, "--out", tmp_path)
    assert not (tmp_path / "summaries.jsonl").exists()
