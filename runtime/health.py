"""Health: what a training log shows of the known ways in which this kind of training fails.

A check is a measure - a function of a log's lines that returns [(step, figure)] - and a limit. It
fails where a figure is beyond the limit. All limits stand in one table, CHECKS, at the end: between
what healthy runs reach (the toy demo's; those that the paper and its reproductions report) and what
runs do that were damaged on purpose (tests/test_doctor.py). While a script trains, each check that
fails warns once; tools/doctor.py explains them.
"""
import math
import statistics
from collections.abc import Callable
from typing import NamedTuple


class Check(NamedTuple):
    """A row of the table."""
    name: str            # of what is wrong when it fails
    stages: str          # whose logs it is for
    measure: Callable    # (lines, flags) -> [(step, figure)]; empty: cannot say yet
    fails: str           # "above" or "below" the limit
    limit: float
    unit: str            # what the figure is


class Finding(NamedTuple):
    """A check that fails, and where its figure was at its worst."""
    check: Check
    step: int
    figure: float

    def __str__(self):
        bound = "at most" if self.check.fails == "above" else "at least"
        return (f"step {self.step}: {self.check.name}: {self.check.unit} = {self.figure:.3g} "
                f"(healthy: {bound} {self.check.limit:g})")


# ------------------------------------------------------------------------------------ the measures

def curve(log, key, n=1, average=statistics.fmean):
    """[(step, average of the last n values)] of a figure, over the lines that have it."""
    points = [(line["step"], line[key]) for line in log if line.get(key) is not None]
    return [(points[i][0], average([value for _, value in points[i + 1 - n:i + 1]]))
            for i in range(n - 1, len(points))]


def mean(key, n=1):
    """Measure: the mean of n lines."""
    return lambda log, flags: curve(log, key, n)


def first(key):
    """Measure: the first line's figure, before anything was learned."""
    return lambda log, flags: curve(log, key)[:1]


def share_of_first(key):
    """Measure: the mean of 3 lines as a multiple of the first line's."""
    def measure(log, flags):
        start = curve(log, key)[:1]
        return [(step, value / start[0][1] if start[0][1] else 1.0)
                for step, value in curve(log, key, 3)]
    return measure


def last_third(key, least=1, average=statistics.fmean, relative=False):
    """Measure: the average of a figure's last third (3 at least), perhaps as a share of its first.

    Empty before there are `least` figures, and before the learning rate is down to a quarter of its
    highest or 30 lines are there: until then, it is no failure to have learned nothing."""
    def measure(log, flags):
        rates, points = [rate for _, rate in curve(log, "lr")], curve(log, key)
        late = len(rates) >= 30 or (len(rates) > 0 and rates[-1] <= max(rates) / 4)
        start = points[0][1] if points and relative else 1.0
        if len(points) < least or not late or not start:
            return []
        last = average([figure for _, figure in points[-max(3, len(points) // 3):]])
        return [(points[-1][0], last / start)]
    return measure


def not_numbers(log, flags):
    """Figures of a line that are no numbers; a run that such a one stopped says so in an event."""
    return [(line["step"], int(line.get("event") == "stopped") or list(line.values()).count(None))
            for line in log]


def spike(log, flags):
    """Nats by which the loss (median of 3 lines) rises above each of the 30 lines before: batches
    of long posts and of short ones differ, and so do single lines of a healthy log."""
    losses = [loss for _, loss in curve(log, "loss")]
    middles = curve(log, "loss", 3, statistics.median)
    return [(step, loss - max(losses[max(0, i - 30):i]))
            for i, (step, loss) in enumerate(middles) if i]


def valid_loss_above_best(log, flags):
    """Nats by which the last held-out loss exceeds the best."""
    points = curve(log, "valid_loss")
    return [(step, loss - min(loss for _, loss in points)) for step, loss in points[-1:]]


def kl_a_token(log, flags):
    """KL from the supervised policy in nats a token, mean of 3 lines: lengths differ by task."""
    ratios = [{"step": line["step"], "ratio": line["kl"] / line["length"]} for line in log
              if line.get("kl") is not None and line.get("length")]
    return curve(ratios, "ratio", 3)


def unended(log, flags):
    """Fall of the share of ended summaries since the first line, mean of 3 lines."""
    start = curve(log, "eot_rate")[:1]
    return [(step, start[0][1] - rate) for step, rate in curve(log, "eot_rate", 3)]


def unended_while_worse(log, flags):
    """The same fall where the mean score is worse than that of being cut off."""
    poor = {step for step, score in curve(log, "score", 3) if score < flags["missing_eot"]}
    return [(step, fall) for step, fall in unended(log, flags) if step in poor]


def score_fallen(log, flags):
    """Fall of the mean score since the start, in standard deviations of summaries' scores."""
    scores, spread = curve(log, "score"), curve(log, "score_std")[:1]
    if len(log) < 6 or not spread or not spread[0][1]:
        return []
    now = curve(log, "score", 3)[-1:]
    return [(step, (scores[0][1] - score) / spread[0][1]) for step, score in now]


# --------------------------------------------------------------------------------------- the table

CHECKS = (
    Check("not a number", "sft reward ppo", not_numbers, "above", 0, "figures that are no numbers"),
    Check("loss spike", "sft reward", spike, "above", 0.5, "rise of the loss, nats"),
    Check("learning died out", "reward ppo",
          last_third("grad_norm", 6, statistics.median, relative=True), "below", 0.03,
          "gradient norm as a share of its first"),
    Check("over-fitting", "sft reward", valid_loss_above_best, "above", 0.1,
          "held-out loss over its best, nats"),
    Check("reward model at chance", "reward", last_third("valid_accuracy"), "below", 0.55,
          "accuracy on unseen comparisons"),
    Check("summaries never learned to end", "ppo", first("eot_rate"), "below", 0.5,
          "share that ends by itself before PPO"),
    Check("EOT rate falling", "ppo", unended, "above", 0.15,
          "share of summaries that no longer end"),
    Check("never ending pays", "ppo", unended_while_worse, "above", 0.1,
          "share that no longer ends, while the mean score is below --missing-eot"),
    Check("reference differs at the start", "ppo", first("kl_k3"), "above", 0.1,
          "KL before the first update, nats"),
    Check("rollout and update disagree", "ppo", mean("rollout_mismatch"), "above", 0.05,
          "change of a log-prob before any learning, nats"),
    Check("negative KL", "ppo", mean("kl", 3), "below", -0.5, "KL, nats a summary"),
    Check("exploding KL", "ppo", kl_a_token, "above", 1.0, "KL, nats a token"),
    Check("entropy collapse", "ppo", share_of_first("entropy"), "below", 0.2,
          "entropy as a share of its first"),
    Check("repeated text", "ppo", mean("repeated", 3), "above", 0.3,
          "token pairs that stood in the same summary before"),
    Check("length drift", "ppo", share_of_first("length"), "above", 1.6,
          "length as a multiple of the first"),
    Check("length drift", "ppo", share_of_first("length"), "below", 0.5,
          "length as a multiple of the first"),
    Check("steps too large", "ppo", mean("clip_fraction"), "above", 0.3, "clip fraction"),
    Check("score falls", "ppo", score_fallen, "above", 0.3,
          "fall of the mean score, standard deviations"),
    Check("critic explains nothing", "ppo", last_third("explained_variance", 6), "below", -0.2,
          "explained variance of returns, last third"),
)


def stage_of(flags):
    """Which script wrote a folder, by the flags that only it has; None for none of them."""
    own = {"kl_coef": "ppo", "comparisons": "reward", "loss_on": "sft"}
    return next((stage for name, stage in own.items() if name in flags), None)


def examine(stage, lines, flags, checks=CHECKS):
    """A Finding for each check of a stage that fails on the lines of its log (or on its report)."""
    found = []
    for check in [check for check in checks if stage in check.stages.split()]:
        sign = 1 if check.fails == "above" else -1
        points = check.measure(lines, flags)
        worst = max(points, key=lambda point: sign * point[1], default=(0, math.nan))
        if sign * worst[1] > sign * check.limit:
            found.append(Finding(check, *worst))
    return found
