"""Appendix. ROUGE: how much two texts' wording agrees. A judge and a labeller for real posts.

    F1 = 2 common / (number in the candidate + number in the reference)      0 to 1

What is counted: words (ROUGE-1), pairs of words (ROUGE-2), words in the same order (ROUGE-L).
Summaries were optimised for it before this paper; it says little of quality (section 4.4), but it
needs no people. So it can stand in for them where the toy world's truth cannot be asked:

    python -m tools.rouge --pairs runs/real/pairs.jsonl --out runs/real/comparisons.jsonl
    python -m tools.judges --run runs/real --judge rouge

The first is label.py with a labeller who prefers what shares more words with the author's summary.
tools.report shows all three for every policy.

Read after: evaluate.py.
"""
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import regex

import label
from data import read_comparisons
from evaluate import Judge, gold, the_judge
from runtime import Problem, flag, launch, write


@dataclass(frozen=True)
class Config(label.Config):
    labeller: str = flag("rouge", "who compares; toy: as label.py", choices=("rouge", "toy"))


# Scripts that put no space between words: there, each character is taken for a word.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = regex.compile(rf"(?V1)[[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]]+|[{UNSPACED}]\p{{M}}*")


def words(text):
    """The words of a text in lower case: runs of letters, digits and accents, of any script."""
    return WORD.findall(text.lower())          # DIFFERS: the usual script knows a-z and 0-9 only


def longest_common_subsequence(a, b):
    """How many words two lists share in the same order, gaps allowed; O(len(a) len(b))."""
    row = [0] * (len(b) + 1)                   # row[j]: the answer for a so far and b[:j]
    for word in a:
        above, row = row, [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return row[-1]


def rouge(candidate, reference):
    """How much of two texts' wording agrees -> {"rouge_1", "rouge_2", "rouge_l"}, each 0 to 1."""
    a, b = words(candidate), words(reference)
    a2, b2 = list(pairwise(a)), list(pairwise(b))
    return {"rouge_1": 2 * (Counter(a) & Counter(b)).total() / max(1, len(a + b)),
            "rouge_2": 2 * (Counter(a2) & Counter(b2)).total() / max(1, len(a2 + b2)),
            "rouge_l": 2 * longest_common_subsequence(a, b) / max(1, len(a + b))}


# -------------------------------------------------------------------------------------- as a judge

def grades(posts, texts):
    """ROUGE-L, 0 to 1. Nobody beats the author then: look at who beats the supervised policy."""
    return {"overall": np.array([rouge(t, p["summary"])["rouge_l"]
                                 for p, t in zip(posts, texts, strict=True)])}


JUDGES = {"gold": Judge(gold), "rouge": Judge(grades)}


def load_judge(name, posts):
    """--judge auto or a name in JUDGES as (name, Judge); auto: gold for toy posts, else rouge.
    Raises: Problem when it cannot judge these posts."""
    if name == "auto" and not all(p["id"].startswith("toy") for p in posts):
        name = "rouge"
    if name not in ("auto", *JUDGES):
        raise Problem(f"judge {name!r} is unknown: it was a row of JUDGES when the report was made")
    return the_judge(posts) if name in ("auto", "gold") else (name, JUDGES[name])


# ------------------------------------------------------------------------------------ as a labeller

def ask(pair):
    """Prefers the summary with the higher ROUGE-L to the author's -> 1 to 9, 5 for a tie."""
    if not pair["reference"]:
        raise Problem(f"--labeller rouge: post {pair['info']['id']!r} has no summary by its author "
                      "to compare with")
    a, b = (rouge(text, pair["reference"])["rouge_l"] for text in label.texts_of(pair))
    strength = sum(abs(b - a) > edge for edge in (0, .05, .1, .2))                   # 0 .. 4
    return 5 + strength if b > a else 5 - strength


def compare_all(cfg):
    """Have each pair compared, once."""
    if cfg.labeller == "toy":
        label.simulate(cfg)
        return
    if cfg.labels > 1:
        raise Problem(f"--labels {cfg.labels}: give 1, for ROUGE always says the same")
    began, pairs = time.perf_counter(), read_comparisons(cfg.pairs, shape=label.PAIR)
    answers = [(pair, ask(pair)) for pair in pairs]
    found = [label.comparison(pair, "rouge", answer) for pair, answer in answers if answer != 5]
    if not found:
        raise Problem(f"{cfg.out}: nothing to write: ROUGE prefers neither summary of any pair")
    splits = dict(Counter(c["split"] for c in found).most_common())
    write(cfg.out, found, cfg, comparisons=len(found), splits=splits, agreement=None,
          seconds=round(time.perf_counter() - began, 1))
    print(f"{cfg.out}: {len(found)} comparisons {splits}; {len(pairs) - len(found)} ties left out")


def main(argv=None):
    """Compare pairs."""
    launch(compare_all, Config, argv, __doc__, command="simulate")


if __name__ == "__main__":
    main()
