"""Chapter 6. Which of two summaries is better? People say, or simulated people do.

    a pair        a post and two summaries: sample.py --pairs
    a comparison  the same with `choice`, 0 or 1, and who chose: OpenAI's record, for reward.py

The paper's labellers see the post and both summaries and answer on a scale from 1 ("A is surely
better") to 9 ("B is"). Mostly one person sees a pair: another pair teaches a reward model more than
a second opinion does (section 3.3, appendix C). A test run has nobody to ask, so here eight people
of the toy world answer. Each has a taste: a number r for every summary of a post. They feel the
difference of two numbers, but with noise, and choose the second summary when what they feel is
above 0:

    felt = r_B - r_A + noise        P(choose B) = P(noise > -(r_B - r_A)) = sigmoid(r_B - r_A)

The last step is what logistic noise means: the probability that it is above -x is sigmoid(x) =
1 / (1 + e^-x). So who likes B more by 0, 1 or 2 chooses it with probability .50, .73 or .88. This
is the model of Bradley and Terry (1952), and the one that reward.py fits. An example, where A is
the author's summary of chapter 2's post, and B is "My cousin broke my roommate's car. I am
shocked." What B has more, in points of quality, times `sharpness()`, 1.35, is r_B - r_A:

    labeller                   points   r_B - r_A   P(choose B)
    ada                          .68        .92         .71
    ben, who wants it short     1.08       1.46         .81
    gus, who does not            .40        .54         .63

    python label.py simulate --pairs runs/demo/pairs.jsonl --out runs/demo/comparisons.jsonl  # 5 s

    --labeller toy      those eight people; two of them agree on 73 % of hard pairs, as in the paper
    --labeller rouge    who prefers what shares more words with the author's summary: a stand-in for
                        people on real posts, which the paper warns of (section 4.4)
    --labeller me       you, in this terminal. A site for several people: python -m tools.labelling

Before:  sample.py (where pairs come from).    After: reward.py (what is learned from the answers).
"""
import random
import time
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

from data import fields_of, query_text, rouge
from runtime import Problem, flag, generator, launch, read_records, write
from toy import blend, draw_facts, shares, write_post, write_summary


@dataclass(frozen=True)
class Config:
    pairs: str = flag(..., "file of pairs, from sample.py --pairs", what="FILE")
    out: str = flag(..., "file of comparisons to write", what="NEW FILE")
    labeller: str = flag("toy", "who compares", choices=("toy", "rouge", "me"))
    labels: int = flag(1, "different people asked about each training pair", least=1)
    seed: int = flag(0, "who labels what, and the noise")


# ---------------------------------------------------------------------------- what people are asked

GUIDE = """A good summary has the essence of the post: it serves the same purpose and tells the \
same things. What matters, most important first: essence, clarity, accuracy, purpose, being \
concise, style. How to weigh one against another is yours to judge."""

SCALE = ("surely", "very likely", "likely", "perhaps")      # 1 2 3 4 for A, 9 8 7 6 for B; 5: equal

AXIS_QUESTIONS = {                   # grades from 1 to 7; what 1, 4 and 7 mean        appendix C.4
    "coherence": ("Is it clear, read on its own?", [
        "impossible to understand", "mistakes or confusing phrases, a bit hard",
        "perfectly clear"]),
    "accuracy": ("Do its facts match the post? (not in the post: 5 at most)", [
        "wrong, made up or contradicts the post", "a substantial claim is not supported",
        "nothing wrong or misleading"]),
    "coverage": ("Is the important information there?", [
        "nothing relevant", "an important piece is missing", "all that is important"]),
    "overall": ("How well does it represent the post?", [
        "terrible", "okay, could be much better", "excellent"]),
}


SUMMARY = {"text": str, "policy": str}
PAIR = {"info": fields_of, "summaries": [SUMMARY, SUMMARY], "batch": str, "split": str,
        "reference": str}                                      # the author's summary


def read_pairs(path):
    """The pairs of a file. Raises: Problem naming file, line and field."""
    pairs = []
    for where, pair in read_records(path, PAIR):
        a, b = texts_of(pair)
        if a == b:
            raise Problem(f"{where}: the two summaries are the same text: delete the line")
        pairs.append(pair)
    if not pairs:
        raise Problem(f"{path}: holds no pairs: write some with `python sample.py --pairs`")
    return pairs


def texts_of(pair):
    """What a labeller reads: two texts, without the leading space that tokens need."""
    return tuple(summary["text"].strip() for summary in pair["summaries"])


def comparison(pair, worker, confidence, notes=(None, None), **extra):
    """OpenAI's record of an answer. confidence: 1 to 9, not 5.

    notes: what the labeller understood of each summary before seeing the post, if they were asked.
    The author's summary is not in it.
    """
    summaries = [{"text": " " + summary["text"].strip(), "policy": summary["policy"], "note": note}
                 for summary, note in zip(pair["summaries"], notes, strict=True)]
    return {"info": pair["info"], "summaries": summaries, "choice": 1 if confidence > 5 else 0,
            "worker": worker, "batch": pair["batch"], "split": pair["split"],
            "extra": {"confidence": confidence, **extra}}


# ------------------------------------------------------------------------- people of the toy world

class Taste(NamedTuple):      # one labeller: exponents as in toy's `blend`, then extra points
    worker: str
    coverage: float = 1.
    accuracy: float = 1.
    coherence: float = .5
    length: float = .25
    question: float = 0.      # for stating the question, however bad the rest
    first: float = 0.         # for being shown first


LABELLERS = [Taste("toy-ada"), Taste("toy-ben", length=1.), Taste("toy-cleo", accuracy=.5),
             Taste("toy-dan", question=.4), Taste("toy-eve", coherence=1.),
             Taste("toy-finn", coverage=.6, first=.1), Taste("toy-gus", coverage=1.3, length=.1),
             Taste("toy-hana", accuracy=1.6, question=-.2)]
AGREEMENT = .73               # of two labellers: section 3.3


def preference(taste, both):
    """How much better this labeller likes the second of two toy `shares`, in points of 6."""
    a, b = (blend(axes, *taste[1:5]) + (taste.question if asks else 0) for axes, asks in both)
    return b - a - taste.first


@lru_cache(maxsize=1)
def sharpness():
    """How many units of the noise a point is worth, so that two labellers agree on 73 %.

    On a pair that they choose B in with probabilities p and q, two labellers agree with probability
    p q + (1 - p)(1 - q). Its mean over every two of them, and two authors' summaries of each of
    1,000 posts, grows with sharpness: it is bisected.
    """
    rng, points = random.Random(1), []
    for _ in range(1000):
        facts = draw_facts(rng)
        record = {"post": write_post(facts, rng)}
        both = [shares(record, write_summary(facts, rng)) for _ in range(2)]
        points.append([preference(taste, both) for taste in LABELLERS])
    points = np.array(points).T                                        # (labellers, pairs)
    low, high = 0., 50.
    for _ in range(40):
        middle = (low + high) / 2
        chooses_b = 1 / (1 + np.exp(-middle * points))
        agree = np.mean([p * q + (1 - p) * (1 - q) for p, q in combinations(chooses_b, 2)])
        low, high = (middle, high) if agree < AGREEMENT else (low, middle)
    return low


def decide(taste, record, texts, rng):
    """One labeller's answer to one pair -> {"choice": 0|1, "worker", "confidence": 1..9}."""
    both = [shares(record, text) for text in texts]
    felt = sharpness() * preference(taste, both) + rng.logistic()
    strength = 1 + min(3, int(abs(felt) / 1.2))
    return {"choice": 1 if felt > 0 else 0, "worker": taste.worker,
            "confidence": 5 + strength if felt > 0 else 5 - strength}


def agreement(pairs, seed):
    """Share of pairs on which two labellers, drawn for each, choose the same summary."""
    same = 0
    for row, pair in enumerate(pairs):
        rng = generator(seed, "agreement", row=row)
        a, b = (decide(LABELLERS[i], pair["info"], texts_of(pair), rng)["choice"]
                for i in rng.choice(len(LABELLERS), 2, replace=False))
        same += a == b
    return same / len(pairs)


# ---------------------------------------------- labellers: an answer to a pair; None when they stop

def ask_toy(pair, seed, row, asked=()):
    """One of the eight, each as likely. Who, and their noise, is a function of (seed, row) and of
    `asked`, the names of those who had this pair before: somebody else must be left."""
    if not pair["info"]["id"].startswith("toy"):
        raise Problem(f"--labeller toy cannot judge post {pair['info']['id']!r}, which is not of "
                      "its world: use --labeller rouge")
    rng = generator(seed, "label", row=row)
    taste = LABELLERS[rng.integers(len(LABELLERS))]
    while taste.worker in asked:
        taste = LABELLERS[rng.integers(len(LABELLERS))]
    return decide(taste, pair["info"], texts_of(pair), rng)


def ask_rouge(pair, *_):
    """Prefers the summary with the higher ROUGE-L to the author's."""
    if not pair["reference"]:
        raise Problem(f"--labeller rouge: post {pair['info']['id']!r} has no summary by its author "
                      "to compare with")
    a, b = (rouge(text, pair["reference"])["rouge_l"] for text in texts_of(pair))
    strength = sum(abs(b - a) > edge for edge in (0, 0.05, 0.1, 0.2))                # 0 .. 4
    return {"worker": "rouge", "confidence": 5 + strength if b > a else 5 - strength}


def ask_me(pair, *_):
    """Whoever sits at this terminal. Answers are written at the end, after Ctrl-C too."""
    a, b = texts_of(pair)
    print(f"\n{GUIDE}\n\n{query_text(pair['info'])}\n\nA  {a}\n\nB  {b}\n")
    said = ""
    while said not in tuple("123456789"):
        try:
            said = input("1 (A is surely better) to 9 (B is); 5: equal; Ctrl-D: stop > ").strip()
        except (EOFError, KeyboardInterrupt):
            return None
    return {"worker": "me", "confidence": int(said)}


# DIFFERS: the demo's labellers are simulated; the paper's are people.
ASK = {"toy": ask_toy, "rouge": ask_rouge, "me": ask_me}


def answers(cfg, pairs):
    """Yield (pair, answer): --labels people's about a training pair, one about a held-out pair."""
    for row, pair in enumerate(pairs):
        asked = []
        for again in range(cfg.labels if pair["split"] == "train" else 1):
            answer = ASK[cfg.labeller](pair, cfg.seed, row + again * len(pairs), asked)
            if answer is None:
                return
            asked.append(answer["worker"])
            yield pair, answer


def simulate(cfg):
    """Have pairs compared, and measure how far two of the toy world's people agree."""
    people = len(LABELLERS) if cfg.labeller == "toy" else 1
    if cfg.labels > people:
        raise Problem(f"--labels {cfg.labels}: give 1 to {people}, as many as --labeller "
                      f"{cfg.labeller} has people; nobody is asked twice")
    began, pairs = time.perf_counter(), read_pairs(cfg.pairs)
    comparisons, left_out = [], Counter()
    for pair, answer in answers(cfg, pairs):
        if answer["confidence"] == 5:
            left_out["ties"] += 1
        else:
            comparisons.append(comparison(pair, answer["worker"], answer["confidence"]))
    agreed = round(agreement(pairs, cfg.seed), 4) if cfg.labeller == "toy" else None
    write_comparisons(cfg, comparisons, left_out, began, agreement=agreed)
    if agreed is not None:
        print(f"two labellers agree on {agreed:.1%} of these pairs (chance: 50 %)")


def write_comparisons(cfg, comparisons, left_out, began, **more):
    """Write --out, and how it came to be. left_out: a Counter of reasons."""
    told = ", ".join(f"{n} {reason}" for reason, n in left_out.items())
    if not comparisons:
        raise Problem(f"{cfg.out}: nothing to write: who answered prefers neither summary of any "
                      f"pair ({told or 'no answers yet'})")
    splits = dict(Counter(c["split"] for c in comparisons).most_common())
    write(cfg.out, comparisons, cfg, comparisons=len(comparisons), splits=splits, **more,
          seconds=round(time.perf_counter() - began, 1))
    counts = ", ".join(f"{n} {split}" for split, n in splits.items())
    print(f"{cfg.out}: {len(comparisons)} comparisons ({counts}); {told or 'nothing'} left out")


def main(argv=None):
    """python label.py simulate ...; the commands of the site have moved."""
    site = ("serve", "stats", "export", "release", "hold")
    launch(simulate, Config, argv, __doc__, command="simulate",
           moved={word: f"tools.labelling {word}" for word in site})


if __name__ == "__main__":
    main()
