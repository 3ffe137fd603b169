"""The sweep of figures.py: what is done once is not done again; known truths come out of it again."""
import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from test_house import check

import evaluate
import ppo
import reward
import toy
from runtime import ALONE, Problem, generator
from tools import figures, figures_draw, figures_numbers
from tools.figures import DAMAGES, Points, Sweep, list_points, run_all
from tools.figures_numbers import (
    FRONTIER,
    Found,
    fit_gao,
    judge_claims,
    peak_of,
    reference,
    resampled,
    right,
)

BETAS = (0, 0.05)
CFG = Sweep(sizes="small,middle,large", labels="100,200,400", few=200, betas="0,0.05")


# ------------------------------------------------------------------------------ made-up measurements

def coins(rng, p, n):
    return (rng.random(n) < p).astype(float).tolist()


def run_of(rng, beta, n, fall, steps=9):
    """PPO's measured steps, of Gao's own shape: with `fall` the grade turns at KL 4 of 16."""
    kl = [16 * (step / (steps - 1)) ** 2 / (1 + 20 * beta) for step in range(steps)]
    bend = 1 / (1 + math.log(2)) if fall and not beta else 0.02      # peak at d = exp(1 / bend - 1)
    rows = []
    for step, nats in enumerate(kl):
        d = math.sqrt(nats)
        gold = 2.5 + (d * (1 - bend * math.log(d)) if d else 0)
        rows.append({"step": 5 * step, "kl": rng.normal(nats, 0.1, n).tolist(),
                     "gold": rng.normal(gold, 0.3, n).tolist(),
                     "rm": rng.normal(d, 0.3, n).tolist(), "win_rate": coins(rng, gold / 7, n),
                     "predicted_win_rate": [1 / (1 + math.exp(-d))] * n})
    log = {"episodes": [256, 512], "score": [0.1, 0.9 - beta], "score_std": [1.0, 1.0],
           "kl": [0.0, 1.0], "explained_variance": [0.0, 0.5]}
    return {"beta": beta, "batch": 256, "rows": rows, "log": log}


def greedy_of(rng, p, n, i):
    return {"win": coins(rng, p, n), **{axis: rng.normal(1 + 6 * p, 0.2, n).tolist()
                                        for axis in evaluate.AXIS_NAMES},
            "characters": rng.integers(60, 140, n).tolist(), "authors_characters": [100] * n,
            "parameters": 1e5 * 3 ** i, "rm": [p] * n, "texts": [f"It is p = {p}."] * 2,
            "posts": ["My sister sold my bike.\nHelp | me."] * 2}


def town(seed, n=200, truth=True):
    """One seed's measurements, in which every claim is true, or every one is false."""
    rng, found = generator(seed, "test"), {}
    for i, size in enumerate(("small", "middle", "large")):
        for who, p in zip(("pretrained", "supervised", "human_feedback"),
                          (0.03, 0.3, 0.85) if truth else (0.9, 0.7, 0.2), strict=True):
            found[f"greedy-{size}-{who}"] = greedy_of(rng, p, n, i)
    found["greedy-reference"] = greedy_of(rng, 0.5, n, 0)
    found["greedy-overoptimised"] = greedy_of(rng, 0.1, n, 0)
    for who, p in zip(("pretrained", "supervised", "human_feedback", "supervised_news", "lead_3",
                       "reference"), (0.1, 0.3, 0.6 if truth else 0.2, 0.7, 0.8, 0.75), strict=True):
        found[f"greedy-news-{who}"] = greedy_of(rng, p, n, 0)
    for beta in BETAS:
        found[f"samples-beta{beta:g}"] = run_of(rng, beta, n, fall=truth)
    for critic, beta in (("reward", 0), ("policy", 0.1), ("shared", 0.3)):
        found[f"samples-critic-{critic}"] = run_of(rng, beta if truth else 0.4 - beta, n, False)
    sizes, best = [1, 2, 4, 8], (0.8, 0.55) if truth else (0.5, 0.75)
    found["pool"] = {"n": sizes, "by": {by: {key: [
        rng.normal(0.4 + (p - 0.4) * k / 3, 0.1, n).tolist() for k in range(4)]
        for key in figures_numbers.SEEN[:4]} for by, p in zip(
            ("reward model", "ROUGE", "log-prob", "length"), (*best, 0.45, 0.3), strict=True)}}
    kind = ["supervised", "reference", "feedback"] * n
    choices = rng.integers(2, size=(3 * n, 1)).repeat(2, 1)

    def margin(p):
        """Of a judge that is right about a label with probability p."""
        return ((2 * choices[:, 0] - 1) * np.where(rng.random(3 * n) < p, 1, -1)
                * rng.random(3 * n)).tolist()
    rouge = 0.55 if truth else 0.9
    found["prefer"] = {"kind": kind, "choices": choices.tolist(),
                       "confidence": (5 + (2 * choices - 1) * rng.integers(1, 5, (3 * n, 1))).tolist(),
                       "margin": {"ROUGE": margin(rouge), "log-prob": margin(0.5),
                                  "length": margin(0.5), "gold": margin(0.9)}}
    for i, size in enumerate(("small", "middle", "large")):
        for k, labels in enumerate((100, 200, 400)):
            better = 0.05 * (i + k) * (1 if truth else -1)
            found[f"agree-{size}-{labels}"] = agree_of(margin(0.7 + better), rng, i, n)
    return found


def agree_of(margin, rng, i, n):
    return {"margin": margin, "parameters": 1e5 * 3 ** i, "comparisons": 100,
            "damage": {kind: rng.normal(0.5, 1, n).tolist() for kind in DAMAGES}}


def frontier_of(seed, short):
    """One world of figure 10: a nat of KL buys PPO less than best of n, by `short` at every KL."""
    rng = generator(seed, "test frontier")
    level, kl, n = rng.normal(0, 0.1), 0.3 / np.array(FRONTIER) ** 0.7, 2 ** np.arange(7)

    def seen(kl, short):
        return {"kl": kl.tolist(), "gold": (2.5 + level + np.sqrt(kl) - short).tolist(),
                "win_rate": (0.4 + 0.2 * np.sqrt(kl) - short / 5).tolist(), "rm": kl.tolist()}
    return {"PPO": seen(kl, rng.normal(short, 0.02, 5)),
            "best of n": seen(np.log(n) - (n - 1) / n, 0) | {"n": n.tolist()}}


def language_of(*costs):
    """A made-up language, where KL buys pi*, best of n and PPO so much reward."""
    return {way: {"at": [1, 2, 4], "kl": [0.0, 1.0, 2.0], "reward": [0, cost, 1.4 * cost]}
            for way, cost in zip(("pi*", "best of n", "PPO"), costs, strict=True)}


@pytest.fixture(scope="module")
def true():
    return {"seeds": [town(0)], "frontier": [frontier_of(seed, -0.2) for seed in range(3)],
            "exact": [language_of(1, 0.9, 0.99), language_of(2, 1.9, 2)]}


# --------------------------------------------------------------------------------------- the points

def by_name(points):
    return {p.name: p.path for p in points}


def test_a_point_is_known_by_its_command_and_by_all_that_led_to_it():
    before, other = by_name(list_points(CFG)), by_name(list_points(Sweep(
        sizes=CFG.sizes, labels=CFG.labels, few=200, betas="0,0.05", iterations=16)))
    changed = {name for name in before if before[name] != other[name]}
    assert changed == {"s0/ppo-beta0", "s0/samples-beta0", "s0/ppo-beta0.05",
                       "s0/samples-beta0.05", "s0/greedy-overoptimised"}


def test_another_beta_costs_one_run_and_its_measurement():
    before, after = by_name(list_points(CFG)), by_name(list_points(Sweep(
        sizes=CFG.sizes, labels=CFG.labels, few=200, betas="0,0.05,0.1")))
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"s0/ppo-beta0.1", "s0/samples-beta0.1"}


def test_the_same_sweep_elsewhere_has_the_same_hashes_and_a_seed_more_keeps_the_first():
    def names(points):
        return {p.path.name for p in points}
    first = list_points(CFG)
    elsewhere = list_points(Sweep(out="/else/where", **{
        k: v for k, v in vars(CFG).items() if k not in ("out", "seeds")}, seeds=2))
    assert names(first) < names(elsewhere) and 2 * len(first) == len(elsewhere)
    assert len(names(first)) == len(first)


def test_the_frontier_shares_the_sweeps_networks_and_comes_a_world_at_a_time():
    alone = list_points(Sweep(seeds=0, frontier=2))
    names = [p.name for p in alone]
    assert [p.name[:2] for p in alone] == sorted(p.name[:2] for p in alone)
    both = {p.path for p in list_points(Sweep())} & {p.path for p in alone}
    assert {path.name.split("-")[0] for path in both} == {"data", "pretrained", "supervised"}
    assert sum("frontier-ppo" in name for name in names) == 2 * len(FRONTIER) == 10
    assert all(p.needs(next(q for q in alone if q.name == "s1/frontier-reward"))
               for p in alone if p.name.startswith("s1/frontier-ppo"))


def test_every_point_stands_after_those_it_needs_and_every_command_parses(monkeypatch):
    points = list_points(Sweep(frontier=1))
    for i, point in enumerate(points):
        assert not any(point.needs(later) for later in points[i:])
        assert (i == 0 or point.name == "s0/frontier-exact"
                or any(point.needs(earlier) for earlier in points[:i]))
        for command in point.commands:
            if not command.startswith("-m tools.figures"):
                script, *words = command.removeprefix("-m ").split()
                check(script, words, monkeypatch)
            else:
                figures.parse(figures.Measure, {}, command.split()[3:], "")
    assert {p.name for p in points if p.needs(points[0])} >= {"s0/pretrained-toy", "s0/prefer"}


@pytest.mark.parametrize("more, match", [
    (dict(few=7), "--few 7"), (dict(labels="1,x"), "comma"), (dict(scale=2.0), "--scale"),
    (dict(seeds=0), "--seeds"), (dict(frontier=-1), "--frontier")])
def test_a_sweep_that_cannot_be_is_refused_in_one_line(more, match):
    with pytest.raises(Problem, match=match):
        list_points(Sweep(**more))


# -------------------------------------------------------------------------------------- carrying out

STAND_IN = """
import signal, sys, time
from pathlib import Path
words = sys.argv[1:]
out, say = Path(words[words.index("--out") + 1]), words[0]
out.mkdir(parents=True, exist_ok=True)
with open(out.parent / "calls", "a") as calls:
    print(say, file=calls)
if "wait" in words:
    signal.signal(signal.SIGTERM, lambda *_: (out / "saved").write_text("") or sys.exit(143))
    (out.parent / "waiting").write_text("")
    time.sleep(60)
if "fail" in words and not (out.parent / "mended").exists():
    sys.exit("error: no luck")
assert all(Path(w).exists() for w in words if w.startswith("/") and w != str(out)), words
(out / "model.pt").write_text(say)
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """add(name, words) lists a point whose script writes its name into `calls`; go() runs all."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(figures, "ROOT", tmp_path)

    class Work(Points):
        def point(self, name, words=""):
            return self.add(f"s0/{name}", f"stand_in.py {name} {words} --out OUT")

        def go(self, jobs=2):
            with open(tmp_path / "lock", "w") as lock:
                run_all(self, jobs, lock.fileno())

        @property
        def calls(self):
            return (self.root / "s0" / "calls").read_text().split()
    return Work(tmp_path)


def test_points_run_side_by_side_after_those_they_need_and_once(work, capsys):
    a = work.point("a")
    b, c = work.point("b", a), work.point("c", a)
    work.point("d", f"{b} {c}")
    work.go()
    assert work.calls[0] == "a" and work.calls[-1] == "d" and len(work.calls) == 4
    assert "4 of 4" in capsys.readouterr().out
    work.point("e", b)
    work.go()
    assert work.calls[4:] == ["e"]


def test_a_failure_names_the_log_and_the_command_and_the_rest_waits(work):
    a = work.point("a", "fail")
    work.point("b", a)
    with pytest.raises(Problem, match=r"s0/a .*no luck.*a-\w+\.log.*python stand_in.py a fail"):
        work.go()
    assert work.calls == ["a"]
    (work.root / "s0" / "mended").write_text("")
    work.go()
    assert work.calls == ["a", "a", "b"]


def test_what_cannot_resume_starts_from_nothing(work):
    a = work.point("a")
    a.mkdir(parents=True)
    (a / "half").write_text("")
    work.go(jobs=1)
    assert not (a / "half").exists() and (a / "model.pt").exists()


def test_being_stopped_is_passed_on_and_the_sweep_goes_on_later(work):
    """Ctrl-C or SIGTERM: what runs may save its state, and nothing is left running."""
    a = work.point("a", "wait --resume")
    code = ("from tools import figures; from tools.figures import *; "
            f"figures.ROOT = figures.Path({str(work.root.parent)!r}); "
            f"p = Points({str(work.root.parent)!r}); "
            "p.add('s0/a', 'stand_in.py a wait --resume --out OUT'); "
            f"run_all(p, 1, os.open({str(work.root.parent)!r}, os.O_RDONLY))")
    sweep = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE,
                             env={**os.environ, "OMP_NUM_THREADS": "1"})
    waiting = a.parent / "waiting"
    for _ in range(1200):
        if waiting.exists() or sweep.poll() is not None:
            break
        time.sleep(0.1)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(60) != 0 and (a / "saved").exists() and not (a / "model.pt").exists()


def test_two_sweeps_do_not_work_in_one_folder(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(Problem, match="another sweep"):
        figures.main(["sweep", "--out", str(tmp_path)])
    os.close(handle)


# ------------------------------------------------------------------------------------- the statistics

def test_fits_find_the_parameters_again_and_their_peak_is_the_curves():
    kl = np.linspace(0.1, 30, 40)
    d = np.sqrt(kl)
    for form, gain in (("ppo", d * (1.3 - 0.6 * np.log(d))), ("best of n", d * (1.3 - 0.2 * d))):
        alpha, beta = fit_gao(kl, gain, form)
        assert (alpha, beta) == pytest.approx((1.3, 0.6 if form == "ppo" else 0.2))
        fine = np.linspace(0.01, 60, 200_000)
        curve = [figures_draw.gain(x, alpha, beta, form) for x in fine[::50]]
        at, height = peak_of(alpha, beta, form)
        assert height == pytest.approx(max(curve), rel=1e-4)
        assert at == pytest.approx(fine[::50][int(np.argmax(curve))], rel=0.02)
    assert peak_of(1.0, -0.1, "ppo") == (math.inf, math.inf)


def test_the_fitted_peak_lies_where_the_made_up_one_does(true):
    fit = figures_numbers.fitted(Found(true), CFG)["beta 0"]
    assert fit["peak"]["low"] < 4 < fit["peak"]["high"] and fit["peak"]["value"] == pytest.approx(4, 0.1)
    assert fit["measured"]["value"] == pytest.approx(4, abs=2.3) and fit["unpeaked"] == 0


def test_intervals_are_the_textbooks_and_wider_between_towns_that_differ():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(400, 2))
    mean, draws = resampled([one])
    assert mean == pytest.approx(one.mean(0)) and draws.shape == (1000, 2)
    assert draws.std(0) == pytest.approx(one.std(0) / 20, rel=0.1)
    mean, draws = resampled([one, one + 1, one + 2])
    assert mean == pytest.approx(one.mean(0) + 1)
    assert draws.std(0) == pytest.approx([math.sqrt(2 / 3 / 3)] * 2, rel=0.15)


def test_differences_of_separate_results_are_paired():
    posts = np.random.default_rng(0).normal(size=300)
    (_, a), (_, b) = resampled([posts]), resampled([posts + 0.1])
    assert (b - a).std() < 1e-12 < a.std()


def test_agreement_counts_labels_and_halves_ties():
    assert right([1.0, -1.0, 0.0, 2.0], [[1, 1], [1, 0], [0, 1], [0, 0]]).tolist() == [1, .5, .5, 0]


def test_two_like_labels_of_a_pair_are_no_two_witnesses(true):
    """Where both labels of every pair are alike, the second narrows no interval of figure 8."""
    curves, found = figures_numbers.figure_8(Found(true), CFG), true["seeds"][0]
    margin = np.array(found[figures_numbers.taught(CFG)]["margin"])
    choice = np.array(found["prefer"]["choices"])
    agreed = evaluate.wins(margin * (2 * choice[:, 0] - 1), 0)
    sure = np.abs(np.array(found["prefer"]["confidence"])[:, 0] - 5)
    for p in curves["by people's confidence"]:
        mean, draws = resampled([agreed[sure == int(p["at"]) + 1]])
        wanted = figures_numbers.point(p["at"], int(p["at"]) + 1, mean, draws)
        assert p == pytest.approx(wanted)


def test_accuracy_is_over_the_wanted_kinds_of_pairs(true):
    found = Found(true)
    everything = figures_numbers.agreement(found, "prefer", lambda one: one["margin"]["gold"],
                                           "supervised", "reference", "feedback")
    some = figures_numbers.agreement(found, "prefer", lambda one: one["margin"]["gold"], "feedback")
    assert len(everything[0]) == 600 and len(some[0]) == 200
    assert everything[0].mean() == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize("truth, verdict", [(True, "holds"), (False, "refused")])
def test_claims_are_judged_by_their_intervals_both_ways(truth, verdict):
    judged = judge_claims(Found({
        "seeds": [town(seed, truth=truth) for seed in range(2)],
        "frontier": [frontier_of(seed, -0.2 if truth else 0.2) for seed in range(3)]}), CFG)
    assert len(judged) == 9 + 2 + 2 + 1 + 1 + 2 + 2 + 2 * 5
    wrong = [c for c in judged if c["verdict"] != verdict]
    if not truth:          # without a fall, the score rises all the same, or the peak is the end
        wrong = [c for c in wrong if not c["claim"].startswith("beta 0")]
        fall, = (c for c in judged if "falls" in c["claim"])
        assert fall["verdict"] != "holds"
    assert not wrong, wrong


def test_a_claim_that_noise_could_make_is_open():
    noisy = town(0)
    rng = np.random.default_rng(0)
    for who in ("human_feedback", "supervised"):
        noisy[f"greedy-news-{who}"]["overall"] = rng.normal(3, 1, 200).tolist()
    judged = judge_claims(Found({"seeds": [noisy]}), CFG)
    assert next(c for c in judged if "news" in c["claim"])["verdict"] == "open"


def test_slopes_are_per_doubling(true):
    mean, _ = figures_numbers.slopes(Found(true), CFG)
    assert mean == pytest.approx([0.05, 0.05 / math.log2(3)], abs=0.012)


def test_policies_are_compared_at_equal_kl_and_not_beyond(true):
    best = {"kl": [0, 1, 4], "gold": [2, 3, 4]}                     # 2 + sqrt(KL)
    ours = {"kl": [0, 0.25, 2.25, 4.5, -0.1], "gold": [2, 2, 3.5, 9, 1]}
    assert figures_numbers.gap(ours, best, "gold") == pytest.approx(
        [0, -0.5, 0, math.nan, -1], nan_ok=True)
    assert list(figures_numbers.gaps(Found(true), "gold")) == [0.05, 0.1, 0.2, 0.4, 0.8]
    far = {"seeds": [], "frontier": [frontier_of(seed, 0) for seed in range(2)]}
    far["frontier"][1]["PPO"]["kl"][0] = 9.0                       # in one world, so there is no mean
    assert list(figures_numbers.gaps(Found(far), "gold")) == [0.1, 0.2, 0.4, 0.8]


def test_intervals_over_worlds_are_students_and_a_single_world_has_none():
    mean, ends = figures_numbers.over_worlds([[1.0, 5], [2, 5], [3, 5]])
    assert mean.tolist() == [2, 5] and ends[:, 1].tolist() == [5, 5]
    assert ends[:, 0] == pytest.approx([2 - 4.30 / math.sqrt(3), 2 + 4.30 / math.sqrt(3)])
    one = {"seeds": [], "frontier": [frontier_of(0, 0.2)], "exact": [language_of(1, 0.9, 0.99)]}
    p = figures_numbers.figure_10(Found(one), CFG)["PPO grade"][0]
    assert p["low"] is p["high"] is None and not judge_claims(Found(one), CFG)


# ------------------------------------------------------------------------------------------- drawing

def test_figures_and_report_are_drawn_from_measurements_alone(true, tmp_path, capsys):
    cfg = Sweep(**{**vars(CFG), "out": str(tmp_path)})
    figures_draw.draw_everything(true, cfg)
    for number in range(1, 11):
        assert (tmp_path / f"figure{number}.png").read_bytes()[:4] == b"\x89PNG"
        assert b"<svg" in (tmp_path / f"figure{number}.svg").read_bytes()
    report = (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").read_text().count("data:image/png") == 10
    assert "Not measured yet" not in report and report.count("![") == 10
    assert "over-optimised" in report and "swapped roles" in report
    assert " holds |" in report and "holds" in capsys.readouterr().out
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert curves["numbers"]["policies.supervised.win_rate"]["value"] == pytest.approx(
        np.mean(true["seeds"][0]["greedy-middle-supervised"]["win"]), abs=1e-9)
    assert len(curves["figures"]) == 10 and curves["seeds"] == 1


def test_what_is_not_measured_yet_is_left_out(tmp_path, capsys):
    some = {name: one for name, one in town(0, n=40).items() if name.startswith(("greedy", "pool"))}
    figures_draw.draw_everything({"seeds": [some]}, Sweep(**{**vars(CFG), "out": str(tmp_path)}))
    assert (tmp_path / "figure1.png").exists() and not (tmp_path / "figure2.png").exists()
    assert (tmp_path / "report.md").read_text().count("Not measured yet") == 5
    assert "figure 2 has to wait for samples-beta0" in capsys.readouterr().out


def test_measured_json_alone_is_enough_to_draw(tmp_path):
    """And what the repository keeps of figure 10 is such a file."""
    shutil.copy(ROOT / "reference/frontier.json", tmp_path / "measured.json")
    figures.main(["draw", "--out", str(tmp_path)])
    curves = json.loads((tmp_path / "curves.json").read_text())["figures"]["10"]
    assert (tmp_path / "figure10.png").exists() and not (tmp_path / "figure1.png").exists()
    assert [p["at"] for p in curves["best of n grade"]] == "1 2 4 8 16 32 64".split()
    told = (ROOT / "docs/FIGURES.md").read_text()
    for p in curves["PPO KL"]:
        assert f"| {p['at']} | {p['value']:.2f} [" in told, p        # the page's table is this file's


def test_without_matplotlib_the_numbers_are_kept(true, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Problem, match="pip install matplotlib"):
        figures_draw.draw_everything(true, Sweep(**{**vars(CFG), "out": str(tmp_path)}))
    assert (tmp_path / "report.md").exists() and (tmp_path / "reference.json").exists()


# ----------------------------------------------------------------------------------------- comparing

def test_a_run_is_held_against_recorded_bands(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "curves.json").write_text(json.dumps(
        {"numbers": figures_numbers.numbers_of(
            figures_numbers.draw_up(Found({"seeds": [town(7, n=80)]}), CFG), CFG)}))
    for k in (1, 3):
        recorded = tmp_path / f"recorded{k}.json"
        bands = reference({"seeds": [town(seed, n=80) for seed in range(k)]}, CFG)
        recorded.write_text(json.dumps(bands))
        figures.main(["compare", str(tmp_path / "mine"), str(recorded)])
        said = capsys.readouterr().out
        assert f"recorded from {k} seed" in said
        inside, total = (int(said.splitlines()[-1].split()[i]) for i in (0, 2))
        assert total > 100 and inside / total > 0.8
    bands["numbers"]["policies.supervised.win_rate"] = [0.8, 0.9]
    recorded.write_text(json.dumps(bands))
    figures.main(["compare", str(tmp_path / "mine"), str(recorded)])
    line, = (x for x in capsys.readouterr().out.splitlines() if "policies.supervised.win" in x)
    assert "outside" in line and "0.800 to 0.900" in line


def test_a_demos_report_is_compared_by_the_same_names(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text(json.dumps(
        {"policies": {"supervised": {"win_rate": 0.3, "axes": {"overall": 9.0}}}, "judge": "gold"}))
    bands = {"seeds": 1, "numbers": {"policies.supervised.win_rate": [0.25, 0.4], "figure 9": [0, 1],
                                     "policies.supervised.axes.overall": [2.0, 3.0]}}
    (tmp_path / "bands.json").write_text(json.dumps(bands))
    found = figures_numbers.hold_against(tmp_path, tmp_path / "bands.json")
    assert [(name, within) for name, *_, within in found] == [
        ("policies.supervised.win_rate", True), ("policies.supervised.axes.overall", False)]


def test_bands_over_seeds_are_prediction_intervals():
    rng, inside = np.random.default_rng(0), []
    for _ in range(300):
        values = rng.normal(size=4)
        bands = [figures_numbers.T_95[1] * np.std(values[:3], ddof=1) * math.sqrt(4 / 3)]
        inside.append(abs(values[3] - values[:3].mean()) <= bands[0])
    assert 0.92 <= np.mean(inside) <= 0.98


@pytest.mark.parametrize("words, match", [
    (["compare"], "RUN REFERENCE"), (["compare", "/no", "/nowhere"], "/nowhere"),
    (["compare", "--run", "/no"], "RUN REFERENCE")])
def test_a_comparison_that_cannot_be_is_answered_in_one_line(words, match):
    with pytest.raises(Problem, match=match):
        figures.main(words)


# ----------------------------------------------------------------------------------------- measuring

def test_every_damage_makes_an_ideal_summary_worse():
    seen = dict.fromkeys(DAMAGES, 0)
    for row in range(60):
        facts, post = toy.make_record(0, "test", row)
        best = toy.gold(post, toy.ideal(facts)).overall
        for kind, spoil in DAMAGES.items():
            text = spoil(facts, toy.seeded(0, kind, row))
            assert (text is None) == (kind == "swapped roles" and facts.owner == "me")
            if text:
                seen[kind] += 1
                assert toy.gold(post, text).overall < best, (kind, text)
    assert min(seen.values()) > 3 and best == 7


@pytest.fixture(scope="module")
def language():
    """The exact language of seed 1, PPO at one beta."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "EXACT", (1.2,))
        return figures.exact(figures.Measure(seed=1, posts=128), ALONE)


def test_the_best_of_n_is_chosen_as_often_as_among_samples():
    rng, p = np.random.default_rng(0), np.array([0.1, 0.2, 0.3, 0.4])
    reward = np.array([2.0, 1, 1, 0])
    drawn = rng.choice(4, (40_000, 3), p=p)
    best = drawn[np.arange(len(drawn)), reward[drawn].argmax(1)]         # of equals the first drawn
    often = np.bincount(best) / len(best)
    of_1, of_3 = figures.chosen_of([1, 3], p, reward)
    assert of_1 == pytest.approx(p) and of_3 == pytest.approx(often, abs=0.01)


def test_pi_star_is_the_best_policy_of_its_kl_and_ppo_finds_it(language):
    star, best = language["pi*"], language["best of n"]
    far = np.array(star["at"]) > 0.2                 # with less beta there is nothing left to win
    beta, kl, reward = (np.array(star[key])[far] for key in ("at", "kl", "reward"))
    assert len(beta) > 40 and (np.diff(kl) > 0).all() and (np.diff(reward) > 0).all()
    # Along the frontier another nat costs beta: d reward / d KL = beta.
    slope = np.diff(reward) / np.diff(kl)
    assert (slope < beta[:-1]).all() and (slope > beta[1:]).all()
    n = np.array(best["at"])
    assert (best["kl"] <= np.log(n) - (n - 1) / n + 1e-9).all() and abs(best["kl"][0]) < 1e-9
    behind = figures_numbers.gap(best, figures_numbers.start_at_0(language), "reward")
    assert (behind < 1e-6).all() and behind[3] < -0.01
    ppo = figures_numbers.gap(language["PPO"], figures_numbers.start_at_0(language), "reward")
    assert -0.03 < ppo[0] < 0.001 and language["PPO"]["kl"][0] > 0.2


def test_numbers_are_written_as_plain_json():
    made = figures.plain({"a": np.array([1.23456789, 2.0]), "b": [np.float32(0.5), 3, "x", None]})
    assert made == {"a": [1.2346, 2.0], "b": [0.5, 3, "x", None]}
    json.dumps(made)


def test_a_tiny_sweep_from_nothing_draws_every_figure_and_goes_on_where_it_was(tmp_path, monkeypatch,
                                                                             capsys):
    monkeypatch.setitem(ppo.PRESETS["toy"], "batch", 8)
    zero = reward.zero_at_references
    monkeypatch.setattr(reward, "zero_at_references", lambda model, tokenizer, posts, *more:
                        zero(model, tokenizer, posts[:8], *more))
    line = ["sweep", "--out", str(tmp_path), "--jobs", "0", "--sizes", "toy-small", "--labels",
            "32,64", "--few", "64", "--betas", "0", "--iterations", "500", "--snapshots", "2",
            "--scale", "0.004", "--frontier", "1"]
    monkeypatch.setattr(figures, "EXACT", (1.2,))
    figures.main(line)
    assert all((tmp_path / f"figure{number}.png").exists() for number in range(1, 11))
    report = (tmp_path / "report.md").read_text()
    assert "Not measured" not in report and "over-optimised" in report
    commands = (tmp_path / "commands.sh").read_text()
    assert "python ppo.py --preset toy" in commands and "python -m tools.figures samples" in commands
    measured = json.loads((tmp_path / "measured.json").read_text())
    (frontier,), (language,) = measured["frontier"], measured["exact"]
    assert language["PPO"]["at"] == [1.2]
    assert len(frontier["PPO"]["gold"]) == 5 and frontier["best of n"]["n"] == [1, 2, 4]
    measured, = measured["seeds"]
    rows = measured["samples-beta0"]["rows"]
    assert [row["step"] for row in rows] == [0, 1, 2] and np.mean(rows[0]["kl"]) == 0
    assert len(measured["pool"]["by"]["ROUGE"]["gold"]) == 3 and set(DAMAGES) == set(
        measured["agree-toy-small-64"]["damage"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("points/s0/*.json")}
    lost = next(path for path in before if path.name.startswith("pool-"))
    lost.unlink()
    capsys.readouterr()
    monkeypatch.setattr(figures, "draw", lambda cfg: None)
    figures.main(line)
    assert "1 of 1  s0/pool" in capsys.readouterr().out
    assert {p for p in before if p.stat().st_mtime_ns != before[p]} == {lost}
