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

from tools.exercises_check import Exercise, Raised, mistake, same
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
                (t([0.0]), t([200.0])), (torch.zeros(2, 1), torch.zeros(2))]

    def oracle(chosen, rejected):
        """One pair at a time: -log sigmoid(d) = log(1 + exp(-d))."""
        if chosen.shape != rejected.shape:
            raise ValueError("shapes differ")
        losses = [max(-d, 0) + math.log1p(math.exp(-abs(d))) for d in (chosen - rejected).tolist()]
        return torch.tensor(sum(losses) / len(losses))

    def difference(chosen, rejected):
        """What most mistakes start from."""
        if chosen.shape != rejected.shape:
            raise ValueError
        return chosen - rejected

    @mistake
    def swapped(chosen, rejected):
        """chosen and rejected swapped: this teaches to prefer what the labeller rejected."""
        return -F.logsigmoid(-PairwiseLoss.difference(chosen, rejected)).mean()

    @mistake
    def summed(chosen, rejected):
        """sum for mean: `loss_and_right` multiplies by the number of pairs."""
        return -F.logsigmoid(PairwiseLoss.difference(chosen, rejected)).sum()

    @mistake
    def in_bits(chosen, rejected):
        """log base: nats are wanted, natural logarithms, not bits."""
        return -F.logsigmoid(PairwiseLoss.difference(chosen, rejected)).mean() / math.log(2)

    @mistake
    def no_log(chosen, rejected):
        """log forgotten: this is minus the probability of the label."""
        return -torch.sigmoid(PairwiseLoss.difference(chosen, rejected)).mean()

    @mistake
    def log_of_mean(chosen, rejected):
        """log outside the mean: the mean of logs, not the log of the mean probability."""
        d = PairwiseLoss.difference(chosen, rejected)
        return -(F.logsigmoid(d).logsumexp(0) - math.log(len(d)))

    @mistake
    def overflows(chosen, rejected):
        """log of 0: for a large difference sigmoid is 0, and its log -inf; use F.logsigmoid."""
        return -torch.sigmoid(PairwiseLoss.difference(chosen, rejected)).log().mean()

    @mistake
    def broadcast(chosen, rejected):
        """shapes not checked: (B, 1) minus (B,) is (B, B), every pair with every other."""
        return -F.logsigmoid(chosen - rejected).mean()


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

    @mistake
    def best_value(scores, values, n):
        """best value for best score: the reward model chooses, so its choice is what counts."""
        return BestOf.oracle(values, values, n)

    @mistake
    def first_n(scores, values, n):
        """only the first n: correct on average, but it wastes the other samples."""
        return BestOf.oracle(scores[:, :n], values[:, :n], n)

    @mistake
    def with_replacement(scores, values, n):
        """drawn with replacement: the n samples are different ones."""
        N = scores.shape[1]
        weights = [((i + 1) / N) ** n - (i / N) ** n for i in range(N)]
        return np.take_along_axis(values, scores.argsort(1), 1) @ np.array(weights)

    @mistake
    def worst(scores, values, n):
        """worst of n: the lowest score was kept."""
        return BestOf.oracle(-scores, values, n)

    @mistake
    def mean(scores, values, n):
        """mean of all: n has no effect."""
        return values.mean(1)


class Bootstrap(Exercise):
    chapter, function = "evaluate", "bootstrap"
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
        (error, ends), again = function(values, seed, about), function(values, seed, about)
        return {"the same twice": (error, *ends) == (again[0], *again[1]),
                "error": float(error), "interval": [float(end) for end in ends]}

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

    @mistake
    def of_values(values, seed, about):
        """error of one value: the standard deviation of the values, not of their mean."""
        return np.std(values), np.quantile(values, [0.025, 0.975]).tolist()

    @mistake
    def posts_ignored(values, seed, about):
        """posts ignored: values of one post go together, so the interval is too narrow."""
        return Bootstrap.by_luck(values, np.random.default_rng(0))

    @mistake
    def narrow(values, seed, about):
        """one standard error: the interval goes 1.96 of them to each side, 95 %, not 68 %."""
        return Bootstrap.oracle(values, seed, about, low=0.16)

    @mistake
    def unseeded(values, seed, about):
        """not repeatable: random numbers follow from the seed, so a report can be repeated."""
        return Bootstrap.by_luck(values, np.random.default_rng())

    def by_luck(values, rng, resamples=2000):
        """Values drawn, not posts."""
        drawn = rng.integers(len(values), size=(resamples, len(values)))
        means = values[drawn].mean(1)
        return np.std(means), np.quantile(means, [0.025, 0.975]).tolist()
