"""Appendix. Would it still win if all summaries were equally long? (The paper's appendix F.)

    P(preferred) = sigmoid(policy's constant + slope * log(length / author's length))

A logistic regression, one slope for all policies; sigmoid(constant) is the answer. With slope 2, a
policy that wins 60 % with summaries 1.65 times as long (log 1.65 = 0.5) has the constant
logit(.60) - 2 * 0.5 = -0.59: at equal length it would win 36 %. It goes to report.json:

    python -m tools.report --run runs/demo

Read after: evaluate.py.
"""
import math

import numpy as np


def length_controlled(preferred, log_length, ridge=1e-3):
    """Win rates as if every summary were as long as the author's -> {policy: share}. (The ridge
    keeps the constant of 0 or 100 % finite.) preferred, log_length: {policy: (n,)}.
    """
    names = list(preferred)
    who = np.concatenate([np.full(len(preferred[p]), i) for i, p in enumerate(names)])
    x = np.column_stack([np.eye(len(names))[who], np.concatenate([log_length[p] for p in names])])
    y, w = np.concatenate([preferred[p] for p in names]), np.zeros(len(names) + 1)
    for _ in range(100):                                 # Newton's method
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (y - p) - ridge * w
        step = np.linalg.solve((x.T * (p * (1 - p))) @ x + ridge * np.eye(len(w)), gradient)
        w += step / max(1.0, np.abs(step).max())         # far from the optimum it overshoots
    return {name: float(1 / (1 + math.exp(-w[i]))) for i, name in enumerate(names)}


def add_same_length(report, won, texts, tokenizer):
    """Each policy's share at equal length. won: {policy: (n,)}, how often it was preferred to the
    author; texts: {policy: its n texts}; tokenizer: in whose tokens lengths are measured."""
    lengths = {name: np.array([len(tokenizer.encode_ordinary(" " + text)) for text in texts[name]])
               for name in won}
    found = length_controlled(won, {name: np.log(some / lengths["reference"])
                                    for name, some in lengths.items()})
    for name, share in found.items():
        report["policies"][name]["length_controlled_win_rate"] = round(share, 5)


if __name__ == "__main__":
    print(__doc__)
