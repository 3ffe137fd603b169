"""What came after, measured: PPO, DPO, RLOO and the best of n, on the same held-out posts.

Each run needs supervised/, reward/ and ppo/, which `make demo` leaves there, and what dpo.py and
rloo.py make of the same comparisons and the same reward model: dpo/, rloo/ (perhaps grpo/).

    beats author   share of posts on which the judge prefers the summary to the author's, of greedy
                   summaries and of samples at temperature 1                   [95 %, over posts]
    grade          the judge's mean grade of the samples, 1 to 7
    KL             nats a sample from the supervised policy; of the best of n, log n - (n - 1) / n

    python -m docs.tutorial.after.compare --runs runs/demo-0,runs/demo-1 --out runs/after

writes compare.json and compare.png, and prints the table. Read after: evaluate.py.
"""
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import evaluate
import sample
from runtime import Machine, Problem, flag, generator, launch, write
from runtime.files import replacing
from tools.overoptimisation import POOL, POOL_POSTS, best_of, opinions


@dataclass(frozen=True)
class Config(Machine):
    runs: str = flag(..., "runs of several worlds, with commas between", what="DIRS")
    out: str = flag(..., "folder of compare.json and compare.png", what="DIR")
    posts: int = flag(1000, "held-out posts that every policy summarises", least=1)
    seed: int = flag(0, "which posts they are, and every random number")


POLICIES = {"supervised": "supervised", "PPO": "ppo", "DPO": "dpo", "RLOO": "rloo", "GRPO": "grpo"}
LOOKS = {"PPO": ("#D55E00", "s"), "DPO": ("#0072B2", "o"), "RLOO": ("#009E73", "^"),
         "GRPO": ("#CC79A7", "v"), "best of n": ("#777777", "D")}        # Okabe and Ito's colours


def rate(values, seed):
    """The mean of (n,) values, one a post, and its 95 % interval."""
    return {"mean": float(np.mean(values)), "95": evaluate.bootstrap(values, seed)[1]}


def measure_policy(policy, supervised, judge, posts, seed, name):
    """What a policy's greedy summaries and samples are worth -> {name: number or `rate`}."""
    own, encode = [post["summary"] for post in posts], policy.tokenizer.encode_ordinary
    greedy = sample.summarise(policy, posts, bar=name)
    drawn, kl = evaluate.sample_with_kl(policy, supervised, posts, 1.0, seed, name)
    return {"greedy": rate(judge.compare(posts, greedy, own), seed),
            "sampled": rate(judge.compare(posts, drawn, own), seed),
            "grade": rate(judge.grade(posts, drawn)["overall"], seed), "kl": rate(kl, seed),
            "tokens": float(np.mean([len(encode(" " + text)) for text in drawn]))}


def measure_best_of(supervised, reward, judge, posts, seed):
    """The best of n samples by the reward model, for n = 1, 2, 4, ... -> {n: {name: number}}"""
    pool = sample.summarise(supervised, [post for post in posts for _ in range(POOL)], seed=seed,
                            temperature=1.0, purpose="pool", bar="pool")
    seen, found = opinions(reward, judge, posts, pool), {}              # (P, POOL) each
    for n in [2 ** i for i in range(POOL.bit_length())]:
        won, grade = (best_of(seen["rm"], seen[key], n) for key in ("win_rate", "gold"))
        found[n] = {"sampled": rate(won, seed), "grade": rate(grade, seed),      # of (P,) each
                    "kl": {"mean": math.log(n) - (n - 1) / n}}
    return found


def measure(run, cfg, world):
    """All of a run's policies -> {method: {name: number}}."""
    supervised = sample.load_checkpoint(Path(run) / "supervised", world)
    reward = sample.load_checkpoint(Path(run) / "reward", world, "scalar", like=supervised)
    posts = sample.held_out(supervised.flags.get("data") or "--data")
    posts = [posts[i] for i in generator(cfg.seed, "evaluate").permutation(len(posts))[:cfg.posts]]
    _, judge = evaluate.the_judge(posts)
    found = {}
    for name, stage in POLICIES.items():
        if stage != "grpo" or (Path(run) / stage).exists():
            policy = sample.load_checkpoint(Path(run) / stage, world, like=supervised)
            found[name] = measure_policy(policy, supervised, judge, posts, cfg.seed, name)
    return found | {"best of n": measure_best_of(supervised, reward, judge, posts[:POOL_POSTS],
                                                 cfg.seed)}


def lines_of(found):
    """The table of measure's answers, {run: ...}, as lines of text."""
    def cell(row, key):
        low, high = row[key]["95"]
        return f"{row[key]['mean']:.1%} [{100 * low:.0f}, {100 * high:.0f}]"
    line = "{:10}{:12}{:>18}{:>18}{:>7}{:>6}{:>8}".format
    yield line("run", "policy", "greedy", "sampled", "grade", "KL", "tokens")
    for run, methods in found.items():
        for name, row in methods.items():
            n, row = (POOL, row[POOL]) if name == "best of n" else (None, row)
            yield line(Path(run).name, f"best of {n}" if n else name,
                       "-" if n else cell(row, "greedy"), cell(row, "sampled"),
                       f"{row['grade']['mean']:.2f}", f"{row['kl']['mean']:.1f}",
                       "-" if n else f"{row['tokens']:.1f}")


def draw(found, path):
    """Preference against KL: a point for each policy of each run, a curve for the best of n."""
    try:
        import matplotlib
    except ImportError:
        raise Problem("matplotlib is missing: pip install matplotlib") from None
    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    with plt.rc_context({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False}):
        page, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
        for i, methods in enumerate(found.values()):
            for name, (colour, marker) in LOOKS.items():
                rows = methods.get(name, {})
                rows = list(rows.values()) if name == "best of n" else [rows] if rows else []
                if not rows:                                                     # no GRPO
                    continue
                y = np.array([row["sampled"]["mean"] for row in rows])
                low, high = np.array([row["sampled"]["95"] for row in rows]).T
                ax.errorbar([row["kl"]["mean"] for row in rows], 100 * y, color=colour,
                            yerr=100 * np.array([y - low, high - y]), marker=marker,
                            markersize=7, linewidth=1, label=None if i else name)
        ax.set_xlabel("KL from the supervised policy, nats a summary")
        ax.set_ylabel("preferred to the author's, %")
        ax.legend(frameon=False, loc="lower right")
        with replacing(path) as file:
            page.savefig(file, format="png", dpi=125, metadata={"Software": None})
        plt.close(page)


def compare(cfg, world):
    """Measure every run, then write and print what was found."""
    found = {}
    for run in cfg.runs.split(","):
        with world.mixed():
            found[run] = measure(run, cfg, world)
    if world.rank == 0:
        write(Path(cfg.out) / "compare.json", found)
        draw(found, Path(cfg.out) / "compare.png")
    print("\n".join(lines_of(found)))


def main(argv=None):
    launch(compare, Config, argv, __doc__)


if __name__ == "__main__":
    main()
