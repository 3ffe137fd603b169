"""Appendix. When optimising goes too far: the paper's Figure 5, of one run.

PPO is trained to please the reward model, so a higher score proves nothing. For PPO (and its
snapshots, if --snapshot-every made some) and for the best of n, this measures at growing KL the
win rate that the reward model predicts and the true one, of samples. Of a run without a price of
KL (docs/FIGURES.md):

    KL from the supervised policy     0      3.0     56
    true win rate                    41 %    63 %    22 %       predicted at the end: 87 %

Where they differ, optimising has gone too far: the policy has found what the reward model mistakes
for quality. The rows go to report.json:

    python -m tools.report --run runs/demo

How far does best of n lead away from its policy? Let u be the share of all samples that score lower
than this one: uniform on [0, 1]. The largest of n has density n u^(n - 1); its mean log u is -1/n:

    KL(best of n || policy) = E[ log n + (n - 1) log u ] = log n - (n - 1) / n        nats

So n = 16 costs 2.773 - .938 = 1.835 nats, and 10 take n = 60,000. (With equal scores: less.)

Read after: evaluate.py.
"""
import math
from pathlib import Path

import numpy as np

import evaluate
from evaluate import sample_with_kl, wins
from model import skeleton
from sample import score_texts, summarise

POOL, POOL_POSTS = 16, 150   # best of n: samples of a post; posts, at most


def best_of(scores, values, n):
    """Mean value of the sample with the best score among n, over all choices of n from a pool of N:

        weight of the i-th lowest score = C(i - 1, n - 1) / C(N, n),   i = 1 ... N

    It is the best when the n - 1 others come from the i - 1 below it. N = 4, n = 2: of the 6 pairs
    the lowest wins 0, the others 1, 2 and 3, so the weights are 0, 1/6, 2/6, 3/6 (Nakano et al.
    2021, appendix I). scores, values: (P, N). Returns: (P,).
    """
    N = scores.shape[1]
    weights = np.array([math.comb(i, n - 1) for i in range(N)]) / math.comb(N, n)        # (N,)
    return np.take_along_axis(values, scores.argsort(1, kind="stable"), 1) @ weights     # (P,)


def checkpoints(ppo):
    """PPO's snapshots in training's order, then its final policy: yields (step, Checkpoint)."""
    final = ppo.flags["episodes"] // ppo.flags["batch"]
    for path in sorted(Path(ppo.folder, "snapshots").glob("step-*.pt")):
        if (step := int(path.stem[5:])) < final:
            model = skeleton(ppo.model.config, ppo.world, frozen=True)
            ppo.world.load(model, path)
            yield step, ppo._replace(model=model)
    yield final, ppo


def opinions(reward, judge, posts, texts):
    """What the reward model and the judge think of N summaries of each post -> {name: (P, N)}.

        predicted win rate = mean of sigmoid(score - score of the author's summary)
    """
    shape, own = (len(posts), -1), [p["summary"] for p in posts]
    many = [p for p in posts for _ in range(len(texts) // len(posts))]
    rm = np.reshape(score_texts(reward, many, texts), shape)                  # (P, N)
    own_rm = np.reshape(score_texts(reward, posts, own), shape)               # (P, 1)
    grades = judge.grade(many, texts)["overall"].reshape(shape)                      # (P, N)
    own_grades = judge.grade(posts, own)["overall"].reshape(shape)                   # (P, 1)
    return {"rm": rm, "gold": grades, "win_rate": wins(grades, own_grades),
            "predicted_win_rate": 1 / (1 + np.exp(own_rm - rm))}


def overoptimisation(supervised, ppo, reward, judge, posts, seed):
    """Figure 5's rows: both opinions at growing KL. The first three: Checkpoints; ppo: or None.
    judge: a Judge that grades. posts: those of the evaluation, of which the first are taken."""
    rows, temperature = [], (ppo or supervised).flags.get("temperature", 1.0)

    def add(method, seen, n, kl, beta=None, step=None):     # the best of n, by the reward model
        rows.append({"method": method, "beta": beta, "n": n, "kl": kl, "step": step, **{
            key: float(best_of(seen["rm"], x, n or 1).mean()) for key, x in seen.items()}})

    some = posts[:evaluate.SAMPLES]
    for step, policy in checkpoints(ppo) if ppo else ():
        texts, kl = sample_with_kl(policy, supervised, some, temperature, seed, f"step {step}")
        seen = opinions(reward, judge, some, texts)
        add("ppo", seen, None, float(kl.mean()), ppo.flags["kl_coef"], step)
    some = some[:POOL_POSTS]
    pool = summarise(supervised, [p for p in some for _ in range(POOL)], seed=seed,
                     temperature=temperature, purpose="pool", bar="pool")
    seen = opinions(reward, judge, some, pool)
    for n in [2 ** k for k in range(POOL.bit_length())]:                             # 1, 2, 4, ...
        add("best_of_n", seen, n, math.log(n) - (n - 1) / n)
    return rows


if __name__ == "__main__":
    print(__doc__)
