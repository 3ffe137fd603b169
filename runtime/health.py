"""Health: what a training log shows of the known ways in which this kind of training fails.

A check is a measure - a function of a log's lines that returns the step at which a figure was at
its worst, and the figure - and a limit. All limits stand in one table, CHECKS, at the end. They lie
between what healthy runs reach (the toy demo's; those that the paper and its reproductions report)
and what runs do that were damaged on purpose (tests/test_doctor.py). While a script trains, each
check warns once; tools/doctor.py explains them.
"""
import statistics
from collections.abc import Callable
from typing import NamedTuple


class Check(NamedTuple):
    """One disease: a row of the table."""
    name: str
    stages: str          # in whose logs it is looked for
    measure: Callable    # (lines, flags) -> (step, figure) at its worst; None: cannot say yet
    sick: str            # "above" or "below" the limit
    limit: float
    unit: str            # what the figure is
    passage: str         # where the paper, or who repeated its work, speaks of it
    remedy: str


class Finding(NamedTuple):
    """A disease that a log shows."""
    check: Check
    step: int
    figure: float

    def __str__(self):
        bound = "at most" if self.check.sick == "above" else "at least"
        return (f"step {self.step}: {self.check.name}: {self.check.unit} {self.figure:.3g}, "
                f"healthy is {bound} {self.check.limit:g}")


# ------------------------------------------------------------------------- measures of many figures

def curve(log, key, n=1, average=statistics.fmean):
    """[(step, average of the last n values)] of a figure, over the lines that hold it."""
    points = [(line["step"], line[key]) for line in log if line.get(key) is not None]
    return [(points[i][0], average([value for _, value in points[i + 1 - n:i + 1]]))
            for i in range(n - 1, len(points))]


def highest(points):
    """The (step, figure) with the largest figure; None when there are none."""
    return max(points, key=lambda point: point[1], default=None)


def lowest(points):
    """The (step, figure) with the smallest figure; None when there are none."""
    return min(points, key=lambda point: point[1], default=None)


def first(key):
    """Measure: the first line's figure."""
    return lambda log, flags: next(iter(curve(log, key)), None)


def most(key, n=1):
    """Measure: the largest figure, or the largest mean of n lines."""
    return lambda log, flags: highest(curve(log, key, n))


def change(key, worst, by=lambda now, start: now / start if start else 1.0):
    """Measure: the worst mean of 3 lines, compared with the first line by ratio (or `by`)."""
    def measure(log, flags):
        now, start = curve(log, key, 3), curve(log, key)[:1]
        return worst([(step, by(value, start[0][1])) for step, value in now])
    return measure


def late(log):
    """Whether the learning rate is down to a quarter of its highest, or 30 lines are there to judge
    by: having learned nothing yet is no disease."""
    rates = [rate for _, rate in curve(log, "lr")]
    return len(rates) >= 30 or (len(rates) > 0 and rates[-1] <= max(rates) / 4)


# --------------------------------------------------------------------------- measures of one figure

def not_numbers(log, flags):
    """Figures of a line that are no numbers; a run that such a one stopped says so in an event."""
    return highest([(line["step"], int(line.get("event") == "stopped")
                     or sum(value is None for value in line.values())) for line in log])


def slowdown(log, flags):
    """Three intervals' seconds a step, as a multiple of the run's faster quarter of intervals."""
    lines = [line for line in log if "event" not in line]
    pace = [{"step": b["step"], "pace": (b["seconds"] - a["seconds"]) / (b["step"] - a["step"])}
            for a, b in zip(lines, lines[1:], strict=False) if b["step"] > a["step"]]
    if len(pace) < 8:
        return None
    usual = statistics.quantiles([p["pace"] for p in pace], n=4)[0]
    return highest([(step, seconds / max(usual, 1.0))       # shorter steps: the machine's noise
                    for step, seconds in curve(pace, "pace", 3, statistics.median)])


def spike(log, flags):
    """Nats by which the loss (median of 3 lines) rises above each of the 30 lines before: batches
    of long posts and of short ones differ, and so do single lines of a healthy log."""
    losses = [loss for _, loss in curve(log, "loss")]
    middles = curve(log, "loss", 3, statistics.median)
    return highest([(step, loss - max(losses[max(0, i - 30):i]))
                    for i, (step, loss) in enumerate(middles) if i])


def gradient_left(log, flags):
    """Norm of the gradient, median of the last third, as a share of the first line's."""
    norms = [norm for _, norm in curve(log, "grad_norm")]
    if len(norms) < 6 or not late(log) or not norms[0]:
        return None
    return log[-1]["step"], statistics.median(norms[-len(norms) // 3:]) / norms[0]


def valid_loss_above_best(log, flags):
    """Nats by which the last held-out loss exceeds the best."""
    points = curve(log, "valid_loss")
    return (points[-1][0], points[-1][1] - lowest(points)[1]) if points else None


def accuracy_gap(log, flags):
    """Share of comparisons got right in the last quarter of training, minus that of unseen ones."""
    seen, unseen = curve(log, "accuracy"), curve(log, "valid_accuracy")
    if len(seen) < 20 or not unseen:
        return None
    seen = [share for _, share in seen[-len(seen) // 4:]]
    return unseen[-1][0], statistics.fmean(seen) - unseen[-1][1]


def late_accuracy(log, flags):
    """Share of unseen comparisons got right, mean of the last three looks (or of fewer)."""
    looks = curve(log, "valid_accuracy")[-3:]
    if not looks or not late(log):
        return None
    return looks[-1][0], statistics.fmean(share for _, share in looks)


def kl_a_token(log, flags):
    """KL from the supervised policy in nats a token, mean of 3 lines: lengths differ by task."""
    ratios = [{"step": line["step"], "ratio": line["kl"] / line["length"]} for line in log
              if line.get("kl") is not None and line.get("length")]
    return highest(curve(ratios, "ratio", 3))


def kl_unpaid(log, flags):
    """KL in nats a summary where beta, its price, is 0 or less."""
    return highest(curve(log, "kl", 3)) if flags["kl_coef"] <= 0 else None


def kl_after_nothing(log, flags):
    """KL before anything was learned, by the estimator k3, which is never negative."""
    return next((point for point in curve(log, "kl_k3") if point[0] == 0), None)


def score_fallen(log, flags):
    """Fall of the mean score since the start, in standard deviations of summaries' scores."""
    now, spread = curve(log, "score", 3)[-1:], curve(log, "score_std")[:1]
    if len(log) < 6 or not now or not spread or not spread[0][1]:
        return None
    return now[0][0], (curve(log, "score")[0][1] - now[0][1]) / spread[0][1]


def unended_while_worse(log, flags):
    """Fall of the rate of ended summaries where the mean score is worse than being cut off."""
    poor = {step for step, score in curve(log, "score", 3) if score < flags["missing_eot"]}
    start = curve(log, "eot_rate")[:1]
    return highest([(step, start[0][1] - rate) for step, rate in curve(log, "eot_rate", 3)
                    if step in poor])


def explained_variance(log, flags):
    """Share of the returns' variance that the critic foresees, mean of the last third."""
    points = curve(log, "explained_variance")
    if len(points) < 6 or not late(log):
        return None
    return points[-1][0], statistics.fmean(share for _, share in points[-len(points) // 3:])


def worse_than_supervised(report, flags):
    """Upper end of the 95 % interval of the share of posts on which the judge prefers human
    feedback to supervised, when the reward model promised more."""
    rows = [row for row in report["overoptimisation"] if row["method"] == "ppo"]
    rate = report["against_supervised"].get("human_feedback")
    if not rows or not rate or rows[-1]["rm"] <= 0:
        return None
    return rows[-1]["step"], rate["win_rate_95"][1]


def judge_fallen(report, flags):
    """Fall of the sampled summaries' win rate from where it was best (an earlier snapshot, or the
    supervised policy) while the reward model's own prediction rose."""
    rows = report["overoptimisation"]
    rows = ([row for row in rows if row["method"] == "best_of_n" and row["n"] == 1]
            + [row for row in rows if row["method"] == "ppo"])
    if not rows or rows[-1]["method"] != "ppo":
        return None
    last = rows[-1]
    return last["step"], max(row["win_rate"] - last["win_rate"] for row in rows
                             if row["predicted_win_rate"] <= last["predicted_win_rate"])


def accuracy_interval(report, flags):
    """Upper end of the 95 % interval of the reward model's agreement with unseen labels."""
    found = report["reward_model"]
    return (0, found["accuracy_95"][1]) if found else None


# --------------------------------------------------------------------------------------- the table

TRAINED = "sft reward ppo"
CHECKS = (
    Check("not a number", TRAINED, not_numbers, "above", 0, "figures that are no numbers",
          "N+ details: Adam's eps; fp16 overflows in exp(ratio)",
          "a lower --lr, --precision fp32; look for empty or odd texts in the data"),
    Check("stalled", TRAINED, slowdown, "above", 10, "times the usual seconds a step",
          "none: it is the machine", "look for other programs, a full disk, swapping, heat"),
    Check("loss spike", "sft reward", spike, "above", 0.5, "rise of the loss, nats",
          "appendix B.1 (learning rates from a sweep of 7 values)",
          "a lower --lr, a longer --warmup, --clip 1"),
    Check("learning died out", "reward ppo", gradient_left, "below", 0.03,
          "gradient norm as a share of its first",
          "appendix B.1 (learning rates from a sweep of 7 values)",
          "a lower --lr: a step too large leaves a network that always gives the same answer"),
    Check("over-fitting", "sft reward", valid_loss_above_best, "above", 0.1,
          "held-out loss over its best, nats",
          "section 3.4, B.1: one epoch; N+ and Gao et al. section 3: more epochs do not help",
          "fewer --steps or --epochs, more data, a lower --lr"),
    Check("over-fitted reward model", "reward", accuracy_gap, "above", 0.2,
          "accuracy in training minus on unseen comparisons",
          "section 4.3: more data, larger models; N+: .16 after one epoch",
          "--epochs 1, more comparisons, a lower --lr"),
    Check("reward model at chance", "reward", late_accuracy, "below", 0.55,
          "accuracy on unseen comparisons",
          "sections 4.3, C.2: .62 to .69, people agree on .73; Gao et al.: chance below 2,000",
          "check that `choice` names the better summary; more labels; a better supervised policy"),
    Check("reward model at chance", "report", accuracy_interval, "below", 0.5,
          "upper end of the 95 % interval of agreement with unseen labels", "sections 4.3, C.2",
          "as above: do labels of posts never seen agree with one another at all?"),
    Check("summaries never learned to end", "ppo", first("eot_rate"), "below", 0.5,
          "share that ends by itself before PPO",
          "N+ detail 3: when <|endoftext|> is also the padding, it is never learned",
          "check the supervised stage: --response-length, one <|endoftext|> after each summary"),
    Check("EOT rate falling", "ppo", change("eot_rate", highest, lambda now, start: start - now),
          "above", 0.15, "share of summaries that no longer end", "N+ detail 23 (the EOT trick)",
          "a lower --missing-eot than bad summaries score, a larger --kl-coef"),
    Check("never ending pays", "ppo", unended_while_worse, "above", 0.1,
          "share that no longer ends, while the mean score is below --missing-eot",
          "2019 code and N+ detail 23: -1 is meant to be worse than what it replaces",
          "--missing-eot well below the mean score; is the reward model's zero right (3.4)?"),
    Check("reference differs at the start", "ppo", kl_after_nothing, "above", 0.1,
          "KL before the first update, nats",
          "section 3.4; N+ detail 7 (no dropout), N detail (one temperature in all log-probs)",
          "is --policy what the reference is loaded from? dropout, positions, temperature"),
    Check("rollout and update disagree", "ppo", most("rollout_mismatch"), "above", 0.05,
          "change of a log-prob before any learning, nats",
          "N and N+ details: positions, temperature and dropout make the ratio differ from 1",
          "the same temperature and precision in generation and update; no dropout"),
    Check("negative KL", "ppo", lambda log, flags: lowest(curve(log, "kl", 3)), "below", -0.5,
          "KL, nats a summary", "section 3.4; N+: sampled and scored distributions must be one",
          "no top-k, top-p or forbidden <|endoftext|> in rollouts; which way is the log-ratio?"),
    Check("exploding KL", "ppo", kl_a_token, "above", 1.0, "KL, nats a token",
          "Table 9 (2 to 19 nats a summary), section 4.3, Figure 5, appendix H.2 (250 nats)",
          "a larger --kl-coef, a lower --lr; does the penalty carry its minus sign?"),
    Check("no price on KL", "ppo", kl_unpaid, "above", 1.0, "KL, nats a summary, at beta <= 0",
          "section 3.4, Table 9 (beta .05 to .35); section 4.3, Figure 5",
          "--kl-coef 0.05, in another --out"),
    Check("entropy collapse", "ppo", change("entropy", lowest), "below", 0.2,
          "entropy as a share of its first", "section 3.4: the KL term is also an entropy bonus",
          "a larger --kl-coef, a lower --lr, fewer --epochs"),
    Check("repeated text", "ppo", most("repeated", 3), "above", 0.3,
          "token pairs that stood in the same summary before",
          "section 4.3, appendix H.2: what over-optimised policies write",
          "read some (sample.py); a larger --kl-coef; labels for such pairs, and reward.py anew"),
    Check("length drift", "ppo", change("length", highest), "above", 1.6,
          "length as a multiple of the first", "section 4.1, appendix F; N+: 1.5 times is usual",
          "look at the length-controlled win rate; a larger --kl-coef; labels for short summaries"),
    Check("length drift", "ppo", change("length", lowest), "below", 0.5,
          "length as a multiple of the first", "section 4.1, appendix F",
          "look at the length-controlled win rate; a larger --kl-coef; labels for long summaries"),
    Check("steps too large", "ppo", most("clip_fraction"), "above", 0.3, "clip fraction",
          "Schulman et al. 2017; N+: .07 in the last epoch", "a lower --lr, fewer --epochs"),
    Check("score falls", "ppo", score_fallen, "above", 0.3,
          "fall of the mean score, standard deviations",
          "section 3.4: what is maximised", "a lower --lr; the signs of advantage and penalty"),
    Check("critic explains nothing", "ppo", explained_variance, "below", -0.2,
          "explained variance of returns, last third",
          "section 3.4 (a value network of its own), Figure 11",
          "does it learn (critic_grad_norm, value_loss)? a larger --vf-coef or --lr"),
    Check("over-optimisation", "report", judge_fallen, "above", 0.1,
          "fall of the true win rate while the predicted one rose",
          "section 4.3, Figure 5; Gao et al. 2022",
          "an earlier snapshot (--snapshot-every), a larger --kl-coef, more and newer labels"),
    Check("over-optimisation", "report", worse_than_supervised, "below", 0.5,
          "upper end of the share of posts where human feedback beats supervised",
          "section 4.3, Figure 5; Gao et al. 2022",
          "an earlier snapshot (--snapshot-every), a larger --kl-coef, more and newer labels"),
)


# ---------------------------------------------------------------------------------- the examination

def stage_of(flags):
    """Which script wrote a folder, by the flags that only it has; None for none of them."""
    own = {"kl_coef": "ppo", "comparisons": "reward", "loss_on": "sft"}
    return next((stage for name, stage in own.items() if name in flags), None)


def examine(stage, lines, flags):
    """The diseases that these lines of one log (or this report) show: list of Finding."""
    found = []
    for check in CHECKS:
        worst = check.measure(lines, flags) if stage in check.stages.split() else None
        if worst and (worst[1] > check.limit if check.sick == "above" else worst[1] < check.limit):
            found.append(Finding(check, *worst))
    return found
