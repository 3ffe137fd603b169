"""Appendix. What the sweep of figures.py found: curves with intervals, fits, and verdicts.

    a number a post (measured.json) -> means over posts and worlds -> curves, claims, reference.json

Nothing here looks at a network or draws a line, so tests can ask it about a few made-up numbers.
Over-optimisation is fitted as Gao, Schulman and Hilton (2022) do:

    d = sqrt(KL)       best of n: gain = d (alpha - beta d)       PPO: gain = d (alpha - beta ln d)

    python -m tools.figures compare runs/figures reference/toy.json    # are yours within the bands?

Read after: figures.py.    Read before: figures_draw.py.
"""
import json
import math
from pathlib import Path

import numpy as np

from evaluate import AXIS_NAMES, wins
from runtime import Problem, generator
from tools.lengths import length_controlled
from tools.report import cell, table

RESAMPLES = 1000
POLICIES = ("pretrained", "supervised", "human_feedback")
FRONTIER = (0.05, 0.1, 0.2, 0.4, 0.8)      # figure 10: prices of a nat of KL, in the toy world
EXACT = (0.15, 0.3, 0.6, 1.2, 2.4)         # and in the exact language


# -------------------------------------------------------------------- 1. means and their intervals

class Unmeasured(Exception):
    """A figure needs something that the sweep has not measured yet."""


class Found:
    """What the sweep measured: found[name] is a list, one dict a seed."""

    def __init__(self, measured):
        self.seeds = measured["seeds"]
        self.frontier, self.exact = measured.get("frontier", []), measured.get("exact", [])

    def __getitem__(self, name):
        if not (self.seeds and all(name in seed for seed in self.seeds)):
            raise Unmeasured(name)
        return [seed[name] for seed in self.seeds]

    def arrays(self, name, get):
        """One float array a seed: of key `get`, or of whatever a function makes of the dict."""
        get = get if callable(get) else lambda found, key=get: found[key]
        return [np.asarray(get(found), float) for found in self[name]]


def resampled(samples, resamples=RESAMPLES):
    """The mean, and what it would have been with other posts and other worlds.

    samples: one (n, ...) array a seed, a row a post (of labels: a pair). Rows are drawn with
    replacement within each seed, and seeds too where there are several (three are few: then the
    interval is rather too short).
    Arrays of as many posts get the same draws, so differences of two results are paired.
    Returns: (...), (resamples, ...).
    """
    rng, means = generator(0, "figures"), []
    for rows in samples:
        n = len(rows)
        counts = rng.multinomial(n, np.full(n, 1 / n), resamples)                    # (R, n)
        means.append(np.tensordot(counts / n, rows, 1))                              # (R, ...)
    means = np.stack(means)                                                          # (S, R, ...)
    drawn = rng.integers(len(means), size=means.shape[:2])                           # (S, R)
    return (np.mean([rows.mean(0) for rows in samples], 0),
            means[drawn, np.arange(resamples)].mean(0))


def point(at, x, mean, draws):
    """A point of a curve: {"at": its name, "x", "value", "low", "high"}; None for what is infinite.

    mean: (). draws: (R,).
    """
    low, high = np.quantile(draws, [0.025, 0.975], method="nearest")
    return {"at": str(at)} | {key: float(value) if math.isfinite(value) else None for key, value in
                              dict(x=x, value=mean, low=low, high=high).items()}


def points(at, x, mean, draws):
    """A curve. at, x, mean: K each. draws: (R, K)."""
    return [point(*some) for some in zip(at, x, mean, np.moveaxis(draws, -1, 0), strict=True)]


# ------------------------------------------------------------------ 2. figures, as curves of points
#
# Each takes (found, cfg) and returns {curve: [point, ...]}.

def sizes_of(cfg):
    return cfg.sizes.split(",")


def base_of(cfg):
    return sizes_of(cfg)[len(sizes_of(cfg)) // 2]


def taught(cfg):
    """The point that asks the base size's reward model of all labels."""
    return f"agree-{base_of(cfg)}-{cfg.labels.split(',')[-1]}"


def figure_1(found, cfg):
    """Preference against model size."""
    curves = {}
    for who in POLICIES:
        for size in sizes_of(cfg):
            name = f"greedy-{size}-{who}"
            curves.setdefault(who.replace("_", " "), []).append(point(
                size, found[name][0]["parameters"], *resampled(found.arrays(name, "win"))))
    return curves


SEEN = ("win_rate", "predicted_win_rate", "gold", "rm", "kl")


def training(found, name):
    """PPO's measured steps: steps, mean (5, S), draws (R, 5, S), in the order of SEEN."""
    steps = [row["step"] for row in found[name][0]["rows"]]
    seen = found.arrays(name, lambda one: np.moveaxis(
        [[row[key] for row in one["rows"]] for key in SEEN], -1, 0))                 # (n, 5, S)
    return steps, *resampled(seen)


def best_of_n(found):
    """The same of the best of n by the reward model: n, mean (5, S), draws (R, 5, S)."""
    n = np.array(found["pool"][0]["n"])
    kl = np.log(n) - (n - 1) / n
    mean, draws = resampled(found.arrays("pool", lambda one: np.moveaxis(
        [one["by"]["reward model"][key] for key in SEEN[:4]], -1, 0)))               # (P, 4, S)
    return n.tolist(), np.vstack([mean, kl]), np.concatenate(
        [draws, np.broadcast_to(kl, (len(draws), 1, len(n)))], 1)


def ways_of_optimising(found, cfg):
    """{what figure 2 calls it: (steps or n, mean, draws)}, PPO at each beta and best of n."""
    ways = {f"beta {float(b):g}": training(found, f"samples-beta{float(b):g}")
            for b in cfg.betas.split(",")}
    return {**ways, "best of n": best_of_n(found)}


def figure_2(found, cfg):
    """Over-optimisation."""
    curves = {}
    for way, (at, mean, draws) in ways_of_optimising(found, cfg).items():
        for key, name in enumerate(("actual", "predicted", "gold", "rm")):
            curves[f"{way} {name}"] = points(at, mean[4], mean[key], draws[:, key])
    return curves


def fit_gao(kl, gain, form):
    """alpha, beta of gain = d (alpha - beta d) for "best of n", d (alpha - beta ln d) for "ppo".

    kl: (S,) nats, above 0. gain: (S,) above the supervised policy. Linear least squares.
    """
    d = np.sqrt(kl)
    basis = np.stack([d, -d * (d if form == "best of n" else np.log(d))], 1)
    return np.linalg.lstsq(basis, gain, rcond=None)[0]


def peak_of(alpha, beta, form):
    """(KL, gain) where the fitted curve turns; infinite when it does not."""
    if beta <= 0 or alpha / beta > 50:
        return math.inf, math.inf
    d = alpha / (2 * beta) if form == "best of n" else math.exp(alpha / beta - 1)
    return d * d, alpha * d / 2 if form == "best of n" else beta * d


def fitted(found, cfg):
    """Gao's fits to the gold grades of beta 0 and of best of n: {way: {name: point}}.

    peak: KL of the fitted curve's. measured: KL of the best measured policy, chosen among each
    draw's own. unpeaked: share of the draws whose fitted curve never turns.
    """
    ways, fits = ways_of_optimising(found, cfg), {}
    for way, form in ((f"beta {min(map(float, cfg.betas.split(','))):g}", "ppo"),
                      ("best of n", "best of n")):
        _, mean, draws = ways[way]

        def one(seen, form=form):
            gold, kl = seen[2], seen[4]
            far = kl > 0.05                              # ln d of the start is minus infinity
            alpha, beta = fit_gao(kl[far], gold[far] - gold[0], form)
            return alpha, beta, *peak_of(alpha, beta, form), kl[gold.argmax()]
        center, drawn = one(mean), np.array([one(seen) for seen in draws])
        names = ("alpha", "beta", "peak", "peak gain", "measured")
        fits[way] = {name: point(name, 0, center[i], drawn[:, i]) for i, name in enumerate(names)}
        fits[way]["unpeaked"] = float(np.isinf(drawn[:, 2]).mean())
    return fits


def right(margin, choices):
    """Share of each pair's labels that a margin (of the second text) foretells; ties are half.

    margin: (n,). choices: (n, 2), 0 or 1. Returns: (n,).
    """
    return wins(np.asarray(margin)[:, None] * (2 * np.asarray(choices) - 1), 0).mean(1)


def kinds(found, seed, *wanted):
    """(n,) bool: which labelled pairs are of these kinds."""
    return np.isin(found["prefer"][seed]["kind"], wanted)


def agreement(found, name, get, *wanted):
    """right() on labelled pairs of some kinds. get: dict of `name` -> margin. One array a seed."""
    return [right(get(one), people["choices"])[kinds(found, seed, *wanted)] for
            seed, (one, people) in enumerate(zip(found[name], found["prefer"], strict=True))]


SAMPLED = ("supervised", "reference")          # the kinds of pairs that reward models learned from


def figure_3(found, cfg):
    """Accuracy of reward models against labels and size, beside people and the gold judge."""
    curves, labels = {}, [int(n) for n in cfg.labels.split(",")]
    for size in sizes_of(cfg):
        for n in labels:
            name = f"agree-{size}-{n}"
            curves.setdefault(size, []).append(point(n, n, *resampled(
                agreement(found, name, lambda one: one["margin"], *SAMPLED))))
    same = [np.equal(*np.array(people["choices"]).T)[kinds(found, seed, *SAMPLED)]
            for seed, people in enumerate(found["prefer"])]
    for line, samples in (("one labeller", same), ("gold judge", agreement(
            found, "prefer", lambda one: one["margin"]["gold"], *SAMPLED))):
        curves[line] = [point(n, n, *resampled(samples)) for n in (labels[0], labels[-1])]
    return curves


def figure_4(found, cfg):
    """Best of n by different choosers, as the gold judge sees it."""
    n = found["pool"][0]["n"]
    return {by: points(n, n, *resampled(found.arrays("pool", lambda one, by=by: np.transpose(
        one["by"][by]["win_rate"])))) for by in found["pool"][0]["by"]}


NEWS = {"pretrained": "pretrained", "supervised": "supervised\n(posts)",
        "human_feedback": "human feedback\n(posts)", "supervised_news": "supervised\n(news)",
        "lead_3": "lead-3", "reference": "reference"}


def figure_5(found, cfg):
    """Transfer to news: the grade, and the grade above the worst for each 100 characters."""
    curves = {"overall": [], "per 100 characters": []}
    for i, who in enumerate(NEWS):
        mean, draws = resampled(found.arrays(f"greedy-news-{who}", lambda one: np.stack(
            [one["overall"], one["characters"]], 1)))
        curves["overall"].append(point(who, i, mean[0], draws[:, 0]))
        curves["per 100 characters"].append(point(who, i, 100 * (mean[0] - 1) / mean[1],
                                                  100 * (draws[:, 0] - 1) / draws[:, 1]))
    return curves


def of_base(cfg):
    """{policy: name of its greedy measurement} for the four systems at the base size."""
    return {**{who: f"greedy-{base_of(cfg)}-{who}" for who in POLICIES},
            "reference": "greedy-reference"}


def figure_6(found, cfg):
    """Grades on the paper's axes."""
    return {who.replace("_", " "): [point(axis, i, *resampled(found.arrays(name, axis)))
                                    for i, axis in enumerate(AXIS_NAMES)]
            for who, name in of_base(cfg).items()}


def figure_7(found, cfg):
    """Grade against length, in fifths of a policy's summaries; preference at equal length."""
    curves, ratios, won = {}, {}, {}
    for who, name in of_base(cfg).items():
        if who == "reference":
            continue
        ratios[who] = found.arrays(name, lambda one: np.log(np.maximum(1, one["characters"]))
                                   - np.log(one["authors_characters"]))
        won[who], curve = found.arrays(name, "win"), []
        edges = np.quantile(np.concatenate(ratios[who]), [0, .2, .4, .6, .8, 1])
        for i, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
            # The last fifth is closed; a fifth is empty where many summaries are equally long.
            inside = [(r >= low) & ((r < high) | (i == 4)) for r in ratios[who]]
            grades = found.arrays(name, "overall")
            if all(some.any() for some in inside):
                x = np.exp(np.concatenate([r[s] for r, s in zip(ratios[who], inside, strict=True)]))
                curve.append(point(i, x.mean(), *resampled(
                    [g[s] for g, s in zip(grades, inside, strict=True)])))
        curves[f"{who.replace('_', ' ')} grade"] = curve
    raw = {who: resampled(some) for who, some in won.items()}
    for who, (center, draws) in at_equal_length(won, ratios).items():
        curves[who.replace("_", " ")] = [point("as written", 0, *raw[who]),
                                         point("at equal length", 1, center, draws)]
    return curves


def at_equal_length(won, ratios, resamples=100):
    """evaluate.py's length-controlled win rates with draws: {policy: (mean, (R,))}.

    won, ratios: {policy: one (n,) array a seed}.
    """
    rng, n = generator(0, "length"), [len(w) for w in next(iter(won.values()))]

    def fit(rows):
        def pick(of):
            return {who: np.concatenate([of[who][seed][kept] for seed, kept in rows])
                    for who in of}
        return length_controlled(pick(won), pick(ratios))
    center = fit([(seed, slice(None)) for seed in range(len(n))])
    drawn = [fit([(seed, rng.integers(n[seed], size=n[seed]))
                  for seed in rng.integers(len(n), size=len(n))]) for _ in range(resamples)]
    return {who: (center[who], np.array([one[who] for one in drawn])) for who in won}


def figure_8(found, cfg):
    """Is the reward model right when people are sure, and as often as it says?

    Labels are counted, two of each pair; pairs are drawn, for the two of one are not independent.
    """
    margins = found.arrays(taught(cfg), "margin")
    people = found["prefer"]
    agreed = [wins(m[:, None] * (2 * np.array(p["choices"]) - 1), 0)
              for m, p in zip(margins, people, strict=True)]                         # (n, 2)
    sure = [np.abs(np.array(p["confidence"]) - 5) for p in people]
    claimed = [np.stack(2 * [1 / (1 + np.exp(-np.abs(m)))], 1) for m in margins]
    edges = np.quantile(np.concatenate(claimed), np.linspace(0, 1, 7))
    edges[-1] += 1

    def bins(values, cuts):
        for at, (low, high) in enumerate(cuts):
            inside = [(v >= low) & (v < high) for v in values]
            if all(some.any() for some in inside):
                x = np.concatenate([v[s] for v, s in zip(values, inside, strict=True)]).mean()
                sums, draws = resampled([                    # labels that are right, and all
                    np.stack([(a * s).sum(1), s.sum(1)], 1)[s.any(1)]
                    for a, s in zip(agreed, inside, strict=True)])             # (2,), (R, 2)
                yield point(at, x, sums[0] / sums[1], draws[:, 0] / draws[:, 1])
    return {"by people's confidence": list(bins(sure, [(i, i + 1) for i in range(1, 5)])),
            "by its own": list(bins(claimed, list(zip(edges, edges[1:], strict=False))))}


CRITICS = {"reward": "own network, from the reward model", "policy": "own network, from the policy",
           "shared": "shared with the policy"}


def figure_9(found, cfg):
    """Score while PPO trains, with three kinds of critics; and what the judge says at the end."""
    curves = {}
    for critic, told in CRITICS.items():
        runs = found[f"samples-critic-{critic}"]
        score, std = (np.mean([run["log"][key] for run in runs], 0)
                      for key in ("score", "score_std"))
        wide = 1.96 * std / math.sqrt(runs[0]["batch"] * len(runs))
        curves[told] = [{"at": str(e), "x": e, "value": v, "low": v - w, "high": v + w}
                        for e, v, w in zip(runs[0]["log"]["episodes"], score.tolist(),
                                           wide.tolist(), strict=True)]
        steps, mean, draws = training(found, f"samples-critic-{critic}")
        curves[f"{told}: win rate"] = [point("end", steps[-1], mean[0, -1], draws[:, 0, -1])]
    return curves


TRADED = {"gold": "grade", "win_rate": "preferred", "rm": "reward"}


def means_of(world):
    """One world of figure 10: what its points found, as means over posts, for that is all it needs.

    {"PPO": {"gold", "win_rate", "rm", "kl": (5,)}, "best of n": the same, (7,), and "n"}
    """
    last = [world[f"beta{beta:g}"]["rows"][-1] for beta in FRONTIER]
    by, n = world["pool"]["by"]["reward model"], np.array(world["pool"]["n"])
    return {"PPO": {key: [np.mean(row[key]) for row in last] for key in (*TRADED, "kl")},
            "best of n": {"n": n.tolist(), "kl": np.log(n) - (n - 1) / n,
                          **{key: np.mean(by[key], 1) for key in TRADED}}}


def over_worlds(values):
    """The mean over worlds, and the two ends of its 95 % interval by Student's t, as `point` wants
    its draws. values: (k, ...), a row a world. Returns: (...), (2, ...); infinite ends if k = 1."""
    k, values = len(values), np.asarray(values, float)
    wide = (T_95[min(k, 10) - 2] * values.std(0, ddof=1) / math.sqrt(k) if k > 1
            else np.full(values.shape[1:], math.inf))
    return values.mean(0), np.stack([values.mean(0) - wide, values.mean(0) + wide])


def gap(seen, best, key):
    """What a way of optimising lacks: its values minus those of `best` at the same KL, (K,); nan
    beyond the largest KL of `best`. seen, best: {"kl", key: (K,)}; KL rises in `best`.

    Between its points `best` is a line in sqrt(KL), as it nearly is (Gao et al. 2022).
    """
    def root(kl):
        return np.sqrt(np.maximum(kl, 0))
    return np.subtract(seen[key], np.interp(root(seen["kl"]), root(best["kl"]), best[key],
                                            right=math.nan))


def gaps(found, key):
    """PPO minus best of n at equal KL: of each beta of which all worlds have it, (k,), a world."""
    of_worlds = np.array([gap(one["PPO"], one["best of n"], key) for one in found.frontier])
    return {beta: of_beta for beta, of_beta in zip(FRONTIER, of_worlds.T, strict=True)
            if np.isfinite(of_beta).all()}


def figure_10(found, cfg):
    """Reward against KL: PPO at five betas, and best of n."""
    worlds, exact, curves = found.frontier, found.exact, {}
    if not (worlds and exact):
        raise Unmeasured("--frontier")

    def line(name, ways, key, at):
        """ways: {"kl", key} of each world."""
        kl = np.mean([one["kl"] for one in ways], 0)
        curves[name] = points(at, kl, *over_worlds([one[key] for one in ways]))
        return dict(zip(at, kl, strict=True))
    ours, best = ([one[way] for one in worlds] for way in ("PPO", "best of n"))
    kl = line("PPO KL", ours, "kl", FRONTIER)
    for key, told in TRADED.items():
        line(f"PPO {told}", ours, key, FRONTIER)
        line(f"best of n {told}", best, key, best[0]["n"])
        curves[f"PPO minus best of n {told}"] = [
            point(beta, kl[beta], *over_worlds(some)) for beta, some in gaps(found, key).items()]
    # Languages are as posts: pi* of one beta in all of them is the best policy of its mean KL.
    for way in ("pi*", "best of n", "PPO"):
        line(f"exact {way}", [one[way] for one in exact], "reward", exact[0][way]["at"])
    for way in ("best of n", "PPO"):
        line(f"exact {way} minus pi*", [
            {"kl": one[way]["kl"], "gap": gap(one[way], start_at_0(one), "reward")}
            for one in exact], "gap", exact[0][way]["at"])
    return curves


def start_at_0(exact):
    """pi* of one language, from the supervised policy on."""
    return {"kl": [0, *exact["pi*"]["kl"]],
            "reward": [exact["best of n"]["reward"][0], *exact["pi*"]["reward"]]}


FIGURES = {1: figure_1, 2: figure_2, 3: figure_3, 4: figure_4, 5: figure_5, 6: figure_6,
           7: figure_7, 8: figure_8, 9: figure_9, 10: figure_10}


# ------------------------------------------------------------------------------------ 3. the claims
#
# Each takes (found, cfg) and yields (claim, point of what has to be above 0, how to show it).

def claim_order(found, cfg):
    """Human feedback > references > supervised > pretrained, at every size."""
    for size in sizes_of(cfg):
        (pre, pre_draws), (sup, sup_draws), (fed, fed_draws) = (
            resampled(found.arrays(f"greedy-{size}-{who}", "win")) for who in POLICIES)
        yield f"{size}: human feedback beats references", fed - .5, fed_draws - .5, "+.1%"
        yield f"{size}: references beat supervised", .5 - sup, .5 - sup_draws, "+.1%"
        yield f"{size}: supervised beats pretrained", sup - pre, sup_draws - pre_draws, "+.1%"


def claim_overoptimisation(found, cfg):
    """At the lowest beta the truth falls from its own peak while the reward model's score rises.

    The peak is looked for on every other post and measured on the rest, or it would be a lucky one.
    """
    beta = min(map(float, cfg.betas.split(",")))
    gold, rm = (found.arrays(f"samples-beta{beta:g}", lambda one, key=key: np.transpose(
        [row[key] for row in one["rows"]])) for key in ("gold", "rm"))               # (n, S) each
    top = int(np.mean([g[::2].mean(0) for g in gold], 0).argmax())
    for words, values, sign in (("grade falls from its peak to the end", gold, -1),
                                ("reward model's score still rises there", rm, 1)):
        yield f"beta {beta:g}: {words}", *resampled(
            [sign * (v[1::2, -1] - v[1::2, top]) for v in values]), "+.2f"


def slopes(found, cfg):
    """Accuracy per doubling of labels and of parameters: mean (2,), draws (R, 2)."""
    labels, x, y = [int(n) for n in cfg.labels.split(",")], [], []
    for size in sizes_of(cfg):
        for n in labels:
            name = f"agree-{size}-{n}"
            x.append([1, math.log2(n), math.log2(found[name][0]["parameters"])])
            y.append(agreement(found, name, lambda one: one["margin"], *SAMPLED))
    mean, draws = resampled([np.stack(one, 1) for one in zip(*y, strict=True)])      # (K,), (R, K)
    solve = np.linalg.pinv(np.array(x))[1:]                                          # (2, K)
    return solve @ mean, draws @ solve.T


def claim_scaling(found, cfg):
    """Accuracy grows with data and with size."""
    mean, draws = slopes(found, cfg)
    for i, (what, several) in enumerate((("labels", cfg.labels), ("parameters", cfg.sizes))):
        if "," in several:                      # of a single one there is no slope
            yield (f"reward model's accuracy per doubling of {what}", mean[i], draws[:, i], "+.2%")


def claim_choosers(found, cfg):
    """Best of n by the reward model beats best of n by ROUGE in the judge's eyes."""
    n = found["pool"][0]["n"][-1]
    yield (f"best of {n}: by reward model beats by ROUGE", *resampled(found.arrays(
        "pool", lambda one: np.subtract(*(one["by"][by]["win_rate"][-1]
                                          for by in ("reward model", "ROUGE"))))), "+.1%")


def claim_transfer(found, cfg):
    """Feedback about posts helps with news."""
    (fed, fed_draws), (sup, sup_draws) = (
        resampled(found.arrays(f"greedy-news-{who}", "overall"))
        for who in ("human_feedback", "supervised"))
    yield ("news: human feedback (posts) beats supervised (posts)", fed - sup,
           fed_draws - sup_draws, "+.2f")


def claim_agreement(found, cfg):
    """The reward model foretells people better than ROUGE, on either policy's samples."""
    best = taught(cfg)
    for kind in ("supervised", "feedback"):
        ours = agreement(found, best, lambda one: one["margin"], kind)
        theirs = agreement(found, "prefer", lambda one: one["margin"]["ROUGE"], kind)
        yield (f"{kind} samples: reward model foretells people better than ROUGE", *resampled(
            [a - b for a, b in zip(ours, theirs, strict=True)]), "+.1%")


def claim_critic(found, cfg):
    """A critic of its own, begun as the reward model, ends with the better policy."""
    _, ours, our_draws = training(found, "samples-critic-reward")
    for critic in ("policy", "shared"):
        _, theirs, draws = training(found, f"samples-critic-{critic}")
        yield (f"critic from the reward model beats {CRITICS[critic]}",
               ours[2, -1] - theirs[2, -1], our_draws[:, 2, -1] - draws[:, 2, -1], "+.2f")


def claim_frontier(found, cfg):
    """At equal KL PPO is not below best of n."""
    for key, form in (("gold", "+.2f"), ("win_rate", "+.1%")):
        for beta, some in gaps(found, key).items() if len(found.frontier) > 1 else ():
            yield (f"beta {beta:g}: PPO above best of n at equal KL, {TRADED[key]}",
                   *over_worlds(some), form)       # of a single world there is no interval


CLAIMS = {claim_order: 1, claim_overoptimisation: 2, claim_scaling: 3, claim_choosers: 4,
          claim_transfer: 5, claim_agreement: 8, claim_critic: 9, claim_frontier: 10}


def judge_claims(found, cfg):
    """Every claim that can be judged: [{"claim", "figure", "value", "low", "high", "verdict"}].

    A claim holds when the whole interval is above 0, is refused when it is below, else is open.
    """
    judged = []
    for claim, figure in CLAIMS.items():
        try:
            for words, mean, draws, form in list(claim(found, cfg)):
                p = point(words, 0, mean, draws)
                verdict = "holds" if p["low"] > 0 else "refused" if p["high"] < 0 else "open"
                judged.append({"claim": words, "figure": figure, "form": form, "verdict": verdict,
                               **{key: p[key] for key in ("value", "low", "high")}})
        except Unmeasured:
            continue
    return judged


# ------------------------------------------------------------------------------------ 4. references

T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)     # Student's t, 1 to 9 degrees


def draw_up(found, cfg, say=lambda text: None):
    """Every figure that can be had: {number: {curve: [point, ...]}}. say: told what cannot."""
    figures = {}
    for number, figure in FIGURES.items():
        try:
            figures[number] = figure(found, cfg)
        except Unmeasured as gap:
            say(f"figure {number} has to wait for {gap}")
    return figures


def numbers_of(figures, cfg):
    """Every point of the figures by a name of its own: {name: point}.

    What `make demo` measures likewise has the name that report.json has for it.
    """
    named = {}
    for number, curves in figures.items():
        named |= {f"figure {number}: {curve}: {p['at']}".replace("\n", " "): p
                  for curve, some in curves.items() for p in some}
        if number == 1:
            named |= {f"policies.{curve.replace(' ', '_')}.win_rate": p for curve, some in
                      curves.items() for p in some if p["at"] == base_of(cfg)}
        if number == 6:
            named |= {f"policies.{curve.replace(' ', '_')}.axes.{p['at']}": p
                      for curve, some in curves.items() for p in some}
    return named


def reference(measured, cfg):
    """What somebody else's sweep is compared with: {"seeds", "numbers": {name: [low, high]}}.

    A band is where the number of one more sweep of one seed would fall 19 times in 20. Of several
    seeds, Student's prediction interval:

        mean +- t * sd * sqrt(1 + 1/seeds)

    Of a single seed, its own interval, wider by sqrt(2) for the other's noise; that knows posts,
    but neither worlds nor training runs, and PPO's differ by more: record three seeds or more.
    """
    seeds = [numbers_of(draw_up(Found({"seeds": [seed]}), cfg), cfg) for seed in measured["seeds"]]
    k, bands = len(seeds), {}
    for name, p in seeds[0].items() if seeds else ():
        values = [seed[name]["value"] for seed in seeds if name in seed]
        if len(values) < k or None in (*values, p["low"], p["high"]):
            continue
        if k > 1:
            wide = T_95[min(k, 10) - 2] * np.std(values, ddof=1) * math.sqrt(1 + 1 / k)
            band = np.mean(values) - wide, np.mean(values) + wide
        else:
            band = (p["value"] - math.sqrt(2) * (p["value"] - p["low"]),
                    p["value"] + math.sqrt(2) * (p["high"] - p["value"]))
        bands[name] = [round(float(end), 4) for end in band]
    return {"seeds": k, "numbers": bands}


def flat(report, prefix=""):
    """A nested dict's numbers by dotted names."""
    if isinstance(report, dict):
        return {name: value for key, inner in report.items()
                for name, value in flat(inner, f"{prefix}.{key}" if prefix else key).items()}
    return {prefix: report} if isinstance(report, int | float) else {}


def read_json(path, what):
    """A file's JSON. what: for the message when it is not there."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path}: there is no {what}") from None
    except ValueError as error:
        raise Problem(f"{path} is damaged ({error})") from None


def hold_against(run, recorded):
    """Print which of a run's numbers lie in the recorded bands.

    run: folder of a sweep (curves.json) or of a demo (report/report.json). recorded: a file that
    the sweep calls reference.json. Returns: [(name, value, low, high, within)].
    Raises: Problem when either is missing, or they have no number in common.
    """
    known = read_json(recorded, "file of recorded bands: a sweep writes reference.json")
    path = Path(run) / "curves.json"
    if path.exists():
        numbers = {name: p["value"] for name, p in read_json(path, "")["numbers"].items()}
    else:
        numbers = flat(read_json(Path(run) / "report" / "report.json", "report of this run, nor "
                                 "curves.json of a sweep"))
    found = [(name, numbers[name], low, high, low <= numbers[name] <= high)
             for name, (low, high) in known["numbers"].items() if numbers.get(name) is not None]
    if not found:
        raise Problem(f"{run} and {recorded} have no number in common")
    print(table([["number", "yours", "recorded band", ""]], [
        [name, cell(float(value), ".3f"), f"{low:.3f} to {high:.3f}",
         "within" if within else "outside"] for name, value, low, high, within in found]))
    inside = sum(within for *_, within in found)
    print(f"\n{inside} of {len(found)} numbers within the bands, recorded from {known['seeds']} "
          "seed" + "s" * (known["seeds"] > 1) + "; one in twenty outside is to be expected")
    return found
