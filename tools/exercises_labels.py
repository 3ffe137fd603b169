"""Appendix. The exercises of chapters 7 and 9: a loss from labels, and how sure a comparison is.

Each class is one exercise (tools/exercises_check.py says what that is). No chapter is imported
here: an oracle that used the book's own functions could not find fault with them.

    python -m tools.exercises check pairwise_loss

Read after: reward.py, evaluate.py.
"""
import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

from tools.exercises_check import Exercise, Raised, same
from tools.exercises_text import draw


class PairwiseLoss(Exercise):
    chapter, function = "reward", "pairwise_loss"
    question = "How surprised is the reward model by a label?"
    hints = (
        "Bradley-Terry: P(chosen is preferred) = sigmoid(chosen - rejected). The loss is minus its "
        "log, the mean over pairs.",
        "log(sigmoid(d)) is -inf for d = -200. F.logsigmoid(d) is not: it is -200.",
        "First raise ValueError when the shapes differ. Then: -F.logsigmoid(chosen - rejected)"
        ".mean()")

    def cases():
        """chosen, rejected: (B,)."""
        t = torch.tensor
        return [(t([1.2]), t([0.3])), (t([1.2, 0.7, 0.3]), t([0.3, 0.7, 1.2])),
                (t([0.0, 1.0]), t([200.0, 1.0])), (torch.zeros(2, 1), torch.zeros(2))]

    def oracle(chosen, rejected):
        """One pair at a time: -log sigmoid(d) = log(1 + exp(-d))."""
        if chosen.shape != rejected.shape:
            raise ValueError
        losses = [max(-d, 0) + math.log1p(math.exp(-abs(d))) for d in (chosen - rejected).tolist()]
        return torch.tensor(sum(losses) / len(losses))

    def of(loss):
        """What most mistakes start from: the shapes are checked."""
        def wrong(chosen, rejected):
            if chosen.shape != rejected.shape:
                raise ValueError
            return loss(chosen, rejected)
        return wrong

    mistakes = [
        ("chosen and rejected swapped", "this teaches to prefer what the labeller rejected.",
         of(lambda c, r: -F.logsigmoid(r - c).mean())),
        ("minus forgotten", "a log-probability is below 0; the loss is minus that.",
         of(lambda c, r: F.logsigmoid(c - r).mean())),
        ("sum for mean", "`loss_and_right` multiplies by the number of pairs.",
         of(lambda c, r: -F.logsigmoid(c - r).sum())),
        ("log base", "nats are wanted, natural logarithms, not bits.",
         of(lambda c, r: -F.logsigmoid(c - r).mean() / math.log(2))),
        ("log forgotten", "this is minus the probability of the label.",
         of(lambda c, r: -torch.sigmoid(c - r).mean())),
        ("log sigmoid forgotten", "the log of the probability is wanted, not its logit.",
         of(lambda c, r: -(c - r).mean())),
        ("each score by itself", "a label says which one is better, not that either is good.",
         of(lambda c, r: -(F.logsigmoid(c) + F.logsigmoid(-r)).mean())),
        ("log outside the mean", "the mean of logs, not the log of the mean probability.",
         of(lambda c, r: -torch.sigmoid(c - r).mean().log())),
        ("log of 0", "for a large difference sigmoid is 0, and its log -inf; use F.logsigmoid.",
         of(lambda c, r: -torch.sigmoid(c - r).log().mean())),
        ("shapes not checked", "(B, 1) minus (B,) is (B, B), every pair with every other.",
         lambda chosen, rejected: -F.logsigmoid(chosen - rejected).mean())]


class BestOf(Exercise):
    chapter, function = "tools/overoptimisation", "best_of"
    question = "How good is the best of n, without wasting samples?"
    hints = (
        "Sort each row's values by their scores. The i-th lowest of N is the best of n when the "
        "other n - 1 come from the i - 1 below it.",
        "There are C(N, n) choices, and in C(i - 1, n - 1) of them the i-th lowest wins.",
        "weights = [math.comb(i, n - 1) for i in range(N)] / math.comb(N, n); np.take_along_axis("
        "values, scores.argsort(1, kind='stable'), 1) @ weights")

    def cases():
        """scores, values: (P, N); n."""
        scores, values = np.array([[0.3, 0.1, 0.9, 0.5]]), np.array([[1.0, 5.0, 2.0, 4.0]])
        return [(scores, values, 4), (scores, values, 2), (scores, values, 1),
                (draw(3, 5).numpy(), draw(3, 5, seed=1).numpy(), 3)]

    def oracle(scores, values, n):
        """All choices of n, one after another."""
        found = []
        for score, value in zip(scores, values, strict=True):
            chosen = [max(some, key=lambda i: score[i])
                      for some in itertools.combinations(range(len(score)), n)]
            found.append(np.mean([value[i] for i in chosen]))
        return np.array(found)

    def with_replacement(scores, values, n):
        N = scores.shape[1]
        weights = [((i + 1) / N) ** n - (i / N) ** n for i in range(N)]
        return np.take_along_axis(values, scores.argsort(1), 1) @ np.array(weights)

    mistakes = [
        ("best value for best score", "the reward model chooses, so its choice is what counts.",
         lambda scores, values, n: BestOf.oracle(values, values, n)),
        ("only the first n", "correct on average, but it wastes the other samples.",
         lambda scores, values, n: BestOf.oracle(scores[:, :n], values[:, :n], n)),
        ("drawn with replacement", "the n samples are different ones.",
         with_replacement),
        ("worst of n", "the lowest score was kept.",
         lambda scores, values, n: BestOf.oracle(-scores, values, n)),
        ("best of all N", "n of them are drawn; here n has no effect.",
         lambda scores, values, n: BestOf.oracle(scores, values, scores.shape[1])),
        ("mean of all", "n has no effect.",
         lambda scores, values, n: values.mean(1))]


class Bootstrap(Exercise):
    chapter, function, results = "evaluate", "bootstrap", ("error", "interval")
    question = "How sure is a win rate?"
    told = ("Random numbers: rng = generator(seed, \"bootstrap\"), then rng.integers. Returns the "
            "standard error and [low, high].")
    hints = (
        "Draw n posts with replacement, take the mean of their values; do so `resamples` times. "
        "The standard deviation of these means is the standard error.",
        "The 95 % interval goes from the 2.5 % to the 97.5 % quantile of the means.",
        "If posts have several values, draw posts, not values: for each post keep the sum and the "
        "number of its values; a mean is the drawn sums' sum over the drawn numbers' sum.")

    def cases():
        """values, seed, about: of which post each value is."""
        values = np.array([0.1, 0.9, 0.4, 0.7, 0.25, 0.55])
        several = np.array([0.9, 0.8, 1, 0.1, 0.2, 0.05, 0.6, 0.7, 0.3, 0.45])
        return [(values, 3, None), (several, 3, list("aaabbbccde"))]

    def run(function, values, seed, about):
        """Twice, with the same seed."""
        found, again = function(values, seed, about), function(values, seed, about)
        return {"the same twice": found == again, "error": float(found["error"]),
                "interval": [float(end) for end in found["interval"]]}

    def close(got, expected):
        """It is drawn, so about equal is enough: by a tenth of the error."""
        if isinstance(got, Raised | bool) or isinstance(expected, Raised | bool):
            return same(got, expected)
        error = expected["error"]
        near = [abs(a - b) for a, b in zip(got["interval"], expected["interval"], strict=True)]
        return (got["the same twice"] == expected["the same twice"] and max(near) < 0.35 * error
                and abs(got["error"] - error) < 0.1 * error)

    def exact(values, about):
        """The means of all draws: each of n posts, n times."""
        posts = sorted(set(about)) if about else range(len(values))
        about = about or list(posts)
        sums = np.array([sum(v for v, p in zip(values, about, strict=True) if p == post)
                         for post in posts])
        sizes = np.array([about.count(post) for post in posts])
        draws = np.array(list(itertools.product(range(len(posts)), repeat=len(posts))))
        return sums[draws].sum(1) / sizes[draws].sum(1)

    def oracle(values, seed, about, low=0.025):
        """From all n^n draws that there are, not from some."""
        means = Bootstrap.exact(values, about)
        return means.std(), np.quantile(means, [low, 1 - low]).tolist()

    def by_luck(values, rng, resamples=2000):
        """Values drawn, not posts."""
        drawn = rng.integers(len(values), size=(resamples, len(values)))
        means = values[drawn].mean(1)
        return np.std(means), np.quantile(means, [0.025, 0.975]).tolist()

    def post_means(values, about):
        """One value a post, however many it has."""
        return np.array([np.mean([v for v, p in zip(values, about, strict=True) if p == post])
                         for post in sorted(set(about))]) if about else values

    mistakes = [
        ("error of one value", "the standard deviation of the values, not of their mean.",
         lambda values, seed, about:
             (np.std(values), np.quantile(values, [0.025, 0.975]).tolist())),
        ("posts ignored", "values of one post go together, so the interval is too narrow.",
         lambda values, seed, about: Bootstrap.by_luck(values, np.random.default_rng(0))),
        ("mean of the posts' means", "posts with more values count more: the values are pooled.",
         lambda values, seed, about:
             Bootstrap.oracle(Bootstrap.post_means(values, about), seed, None)),
        ("one standard error", "the interval goes 1.96 of them to each side, 95 %, not 68 %.",
         lambda values, seed, about: Bootstrap.oracle(values, seed, about, low=0.16)),
        ("not repeatable", "random numbers follow from the seed, so a report can be repeated.",
         lambda values, seed, about: Bootstrap.by_luck(values, np.random.default_rng()))]
