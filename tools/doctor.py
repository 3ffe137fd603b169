"""Appendix. What is wrong with a run? The known ways in which training fails, read off its logs.

    python -m tools.doctor runs/demo

Reads log.jsonl and config.json of every stage in a run's folder, or of one stage's, the summaries
that it learned from, and the report where there is one, and says in words what it sees: the figure,
where health ends, the step, the paper's passage, what to try. Exit code 0: healthy; 1: something
was found. While a script trains, the checks of its log run too (runtime/health.py, which says what
a check is), and each that fails warns once above the progress bar.

Read after: ppo.py, whose log has most to tell.
"""
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from data import encode_response, load_tokenizer, read_comparisons, read_posts
from runtime import Problem, config_of, flag
from runtime.files import read_log
from runtime.flags import entry, parse
from runtime.health import CHECKS as LOGS
from runtime.health import Check, curve, examine, stage_of


@dataclass(frozen=True)
class Config:
    run: str = flag("", "folder of a run, or of one stage of it; the flag's name may be left out")


# ---------------------------------------------------------------------- measures of a finished log

def slowdown(log, flags):
    """Three intervals' seconds a step, as a multiple of the run's faster quarter of intervals."""
    lines = [line for line in log if "event" not in line]
    pace = [{"step": b["step"], "pace": (b["seconds"] - a["seconds"]) / (b["step"] - a["step"])}
            for a, b in zip(lines, lines[1:], strict=False) if b["step"] > a["step"]]
    if len(pace) < 8:
        return []
    usual = statistics.quantiles([p["pace"] for p in pace], n=4)[0]
    return [(step, seconds / max(usual, 1.0))               # shorter steps: the machine's noise
            for step, seconds in curve(pace, "pace", 3, statistics.median)]


def accuracy_gap(log, flags):
    """Share of comparisons got right in the last quarter of training, minus that of unseen ones."""
    seen, unseen = curve(log, "accuracy"), curve(log, "valid_accuracy")
    if len(seen) < 20:
        return []
    seen = statistics.fmean(share for _, share in seen[-len(seen) // 4:])
    return [(step, seen - share) for step, share in unseen[-1:]]


def kl_unpaid(log, flags):
    """KL in nats a summary where beta, its price, is 0 or less."""
    return curve(log, "kl", 3) if flags["kl_coef"] <= 0 else []


def kl_hump(log, flags):
    """The largest KL so far as a multiple of the last three lines' mean, where entropy had risen by
    a fifth since the first line: KL that bought noise, and that had to be given back."""
    entropy, now = dict(curve(log, "entropy")), curve(log, "kl", 3)[-1:]
    if len(log) < 6 or not now or now[0][1] <= 0 or not entropy:
        return []
    start = next(iter(entropy.values()))
    return [(step, kl / now[0][1]) for step, kl in curve(log, "kl")
            if entropy.get(step, 0) > 1.2 * start]


# --------------------------------------------------------- measures of what a stage learned from

def learned_from(flags):
    """The summaries as training read them: a list of groups of token lists (of one post, or of the
    two of a comparison), each with <|endoftext|> but not yet cut. Empty when they are gone."""
    try:
        tokenizer = load_tokenizer(flags.get("out", ""))
        if "comparisons" in flags:
            groups = [[summary["text"] for summary in c["summaries"]]
                      for c in read_comparisons(flags["comparisons"], "train")]
        elif flags["loss_on"] == "summary":
            groups = [[post["summary"]] for post in read_posts(flags["data"], "train")]
        else:
            groups = []
    except Problem:
        return []
    return [[encode_response(tokenizer, text, 1 << 30) for text in texts] for texts in groups]


def cut(log, flags):
    """Share of the summaries that are longer than --response-length and lost their end."""
    lengths = [len(row) for group in learned_from(flags) for row in group]
    longer = sum(length > flags["response_length"] for length in lengths)
    return [(0, longer / len(lengths))] if lengths else []


def equal_once_cut(log, flags):
    """Share of the comparisons whose two summaries are the same once cut, and teach nothing."""
    pairs = [[row[:-1][:flags["response_length"] - 1] for row in group]
             for group in learned_from(flags)]
    return [(0, sum(a == b for a, b in pairs) / len(pairs))] if pairs else []


# ---------------------------------------------------------------------------- measures of a report

def worse_than_supervised(report, flags):
    """Upper end of the 95 % interval of the share of posts on which the judge prefers human
    feedback to supervised, when the reward model promised more."""
    rows = [row for row in (report["overoptimisation"] or []) if row["method"] == "ppo"]
    rate = report["against_supervised"].get("human_feedback")
    if not rows or not rate or rows[-1]["rm"] <= 0:
        return []
    return [(rows[-1]["step"], rate["win_rate_95"][1])]


def judge_fallen(report, flags):
    """Fall of the sampled summaries' win rate from where it was best (an earlier snapshot, or the
    supervised policy) while the reward model's own prediction rose."""
    rows = report["overoptimisation"] or []
    rows = ([row for row in rows if row["method"] == "best_of_n" and row["n"] == 1]
            + [row for row in rows if row["method"] == "ppo"])
    if not rows or rows[-1]["method"] != "ppo":
        return []
    last = rows[-1]
    return [(last["step"], row["win_rate"] - last["win_rate"]) for row in rows
            if row["predicted_win_rate"] <= last["predicted_win_rate"]]


def accuracy_interval(report, flags):
    """Upper end of the 95 % interval of the reward model's agreement with unseen labels."""
    found = report["reward_model"]
    return [(0, found["accuracy_95"][1])] if found else []


CHECKS = (
    *LOGS,
    Check("stalled", "sft reward ppo", slowdown, "above", 10, "times the usual seconds a step"),
    Check("over-fitted reward model", "reward", accuracy_gap, "above", 0.2,
          "accuracy in training minus on unseen comparisons"),
    Check("no price on KL", "ppo", kl_unpaid, "above", 1.0, "KL, nats a summary, at beta <= 0"),
    Check("summaries are cut", "sft reward", cut, "above", 0.02,
          "share of summaries longer than --response-length, which lost their end"),
    Check("pairs are equal once cut", "reward", equal_once_cut, "above", 0,
          "share of comparisons that teach nothing"),
    Check("KL humps", "ppo", kl_hump, "above", 2,
          "largest KL as a multiple of the last, while entropy rose"),
    Check("reward model at chance", "report", accuracy_interval, "below", 0.5,
          "upper end of the 95 % interval of agreement with unseen labels"),
    Check("over-optimisation", "report", judge_fallen, "above", 0.1,
          "fall of the true win rate while the predicted one rose"),
    Check("over-optimisation", "report", worse_than_supervised, "below", 0.5,
          "upper end of the share of posts where human feedback beats supervised"),
)
ADVICE = {      # check: where the paper, or who repeated its work, speaks of it; what to try
    "not a number": (
        "N+ details: Adam's eps; fp16 overflows in exp(ratio)",
        "a lower --lr, --precision fp32; look for empty or odd texts in the data"),
    "stalled": (
        "none: it is the machine",
        "look for other programs, a full disk, swapping, heat"),
    "loss spike": (
        "appendix B.1 (learning rates from a sweep of 7 values)",
        "a lower --lr"),
    "learning died out": (
        "appendix B.1 (learning rates from a sweep of 7 values)",
        "a lower --lr: a step too large leaves a network that always gives the same answer"),
    "over-fitting": (
        "section 3.4, B.1: one epoch; N+ and Gao et al. section 3: more epochs do not help",
        "fewer --steps, more data, a lower --lr"),
    "over-fitted reward model": (
        "section 4.3: more data, larger models; N+: .16 after one epoch",
        "more comparisons, a lower --lr"),
    "reward model at chance": (
        "sections 4.3, C.2: .62 to .69, people agree on .73; Gao et al.: chance below 2,000",
        "check that `choice` names the better summary; more labels; a better supervised policy"),
    "summaries are cut": (
        "appendix B.1: 48 tokens for a summary, and for the reward model 128",
        "a larger --response-length, in another --out"),
    "pairs are equal once cut": (
        "appendix B.1: 128 tokens for the reward model",
        "a larger --response-length, in another --out"),
    "summaries never learned to end": (
        "N+ detail 3: when <|endoftext|> is also the padding, it is never learned",
        "check the supervised stage: --response-length, one <|endoftext|> after each summary"),
    "EOT rate falling": (
        "N+ detail 23 (the EOT trick)",
        "a lower --missing-eot than bad summaries score, a larger --kl-coef"),
    "never ending pays": (
        "2019 code and N+ detail 23: -1 is meant to be worse than what it replaces",
        "--missing-eot well below the mean score; is the reward model's zero right (3.4)?"),
    "reference differs at the start": (
        "section 3.4; N+ detail 7 (no dropout), N detail (one temperature in all log-probs)",
        "is --policy what the reference is loaded from? dropout, positions, temperature"),
    "rollout and update disagree": (
        "N and N+ details: positions, temperature and dropout make the ratio differ from 1",
        "the same temperature and precision in generation and update; no dropout"),
    "negative KL": (
        "section 3.4; N+: sampled and scored distributions must be one",
        "no top-k, top-p or forbidden <|endoftext|> in rollouts; which way is the log-ratio?"),
    "exploding KL": (
        "Table 9 (2 to 19 nats a summary), section 4.3, Figure 5, appendix H.2 (250 nats)",
        "a larger --kl-coef, a lower --lr; does the penalty carry its minus sign?"),
    "no price on KL": (
        "section 3.4, Table 9 (beta .05 to .35); section 4.3, Figure 5",
        "--kl-coef 0.05, in another --out"),
    "KL humps": (
        "section 3.4: KL is to buy reward; Table 9 (betas chosen for the scale of the scores)",
        "a lower --lr, a larger --batch: steps too large for the batch turn into noise"),
    "entropy collapse": (
        "section 3.4: the KL term is also an entropy bonus",
        "a larger --kl-coef, a lower --lr, fewer --epochs"),
    "repeated text": (
        "section 4.3, appendix H.2: what over-optimised policies write",
        "read some (sample.py); a larger --kl-coef; labels for such pairs, and reward.py again"),
    "length drift": (
        "section 4.1, appendix F; N+: 1.5 times is usual",
        "look at the length-controlled win rate; a larger --kl-coef; labels for summaries of "
        "the wanted length"),
    "steps too large": (
        "Schulman et al. 2017; N+: .07 in the last epoch",
        "a lower --lr, fewer --epochs"),
    "score falls": (
        "section 3.4: what is maximised",
        "a lower --lr; the signs of advantage and penalty"),
    "critic explains nothing": (
        "section 3.4 (a value network of its own), Figure 11",
        "does it learn (critic_grad_norm, value_loss)? a larger --vf-coef or --lr"),
    "over-optimisation": (
        "section 4.3, Figure 5; Gao et al. 2022",
        "an earlier snapshot (--snapshot-every), a larger --kl-coef, more and newer labels"),
}


def parts_of(folder):
    """What there is to examine in a folder: [(name, stage, lines, flags)].

    Raises: Problem when it holds no log.
    """
    folder, found = Path(folder), []
    if not folder.is_dir():
        raise Problem(f"{folder} is no folder: name a run, such as runs/demo, or one stage of it")
    for log in sorted([*folder.glob("log.jsonl"), *folder.glob("*/log.jsonl")],
                      key=lambda path: path.stat().st_mtime):
        flags = config_of(log.parent)["flags"]
        if stage_of(flags):
            flags |= {"out": str(log.parent)}                # where it is now
            found.append((log.parent.name, stage_of(flags), read_log(log), flags))
    if not found:
        raise Problem(f"{folder} holds no stage with a log.jsonl: name a run, such as runs/demo")
    for path in folder.glob("*/report.json"):
        try:
            found.append((path.parent.name, "report", json.loads(path.read_text("utf-8")), {}))
        except ValueError as error:
            raise Problem(f"{path} is damaged ({error}): run evaluate.py again") from None
    return found


def main(argv=None):
    """Print what was looked at and what was found. Raises: SystemExit(1) when something was."""
    argv = sys.argv[1:] if argv is None else argv
    named = ["--run"] * (bool(argv) and not argv[0].startswith("-"))
    cfg, failed = parse(Config, {}, named + argv, __doc__), 0
    if not cfg.run:
        raise Problem("which run? python -m tools.doctor runs/demo")
    for name, stage, lines, flags in parts_of(cfg.run):
        found = examine(stage, lines, flags, CHECKS)
        failed += len(found)
        looked = dict.fromkeys(c.name for c in CHECKS if stage in c.stages.split())
        what = f"log of {len(lines)} lines" if stage != "report" else "report.json"
        print(f"{name} ({what}): " + (f"{len(found)} of {len(looked)} known problems found" if found
                                      else "healthy; looked for: " + ", ".join(looked)))
        for line in lines if stage != "report" else ():
            if line.get("event") == "stopped":
                print(f"\n  training ended itself: {line.get('why')!r:.400}")
        for finding in found:
            passage, remedy = ADVICE[finding.check.name]
            print(f"\n  {finding}\n    paper: {passage}\n    try: {remedy}")
        print("\n" * bool(found), end="")
    if failed:
        print("Sections and tables are the paper's; N and N+ are the \"implementation details\" of "
              "Huang et al., 2023 and 2024")
        raise SystemExit(1)


if __name__ == "__main__":
    entry(main)
