"""Chapter 6. Which of two summaries is better? People say, or simulated people do.

    a pair        a post and two summaries: sample.py --pairs
    a comparison  the same with `choice`, 0 or 1, and who chose: OpenAI's record, for reward.py

The paper's labellers see the post and both summaries and answer on a scale from 1 ("A is surely
better") to 9 ("B is"). Mostly one person sees a pair: another pair teaches a reward model more than
a second opinion does (section 3.3, appendix C). A test run has nobody to ask, so here eight people
of the toy world answer. Each has a taste: a number r for every summary of a post (one labeller also
likes what is shown first). They feel the difference of two numbers, but with noise, and choose the
second summary when what they feel is above 0:

    felt = r_B - r_A + noise        P(choose B) = P(noise > -(r_B - r_A)) = sigmoid(r_B - r_A)

The last step is what logistic noise means: the probability that it is above -x is sigmoid(x) =
1 / (1 + e^-x). So who likes B more by 0, 1 or 2 chooses it with probability .50, .73 or .88. This
is the model of Bradley and Terry (1952), and the one that reward.py fits. An example, where A is
the author's summary of chapter 2's post, and B is "My cousin broke my roommate's car. I am
shocked." What B has more, in points of quality, times `SHARPNESS`, 1.35, is r_B - r_A:

    labeller                   points   r_B - r_A   P(choose B)
    ada                          .68        .92         .71
    ben, who wants it short     1.08       1.46         .81
    gus, who does not            .40        .54         .63

    python label.py simulate --labels 3 --pairs runs/mine/pairs.jsonl \
                    --out runs/mine/comparisons.jsonl              # seconds

Yourself and other people, in a terminal or on a website, are asked by python -m tools.labelling.

Before:  sample.py (where pairs come from).    After: reward.py (what is learned from the answers).
"""
import time
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from data import fields_of, read_comparisons
from runtime import Problem, flag, generator, launch, write
from toy import blend, shares


@dataclass(frozen=True)
class Config:
    pairs: str = flag(..., "file of pairs, from sample.py --pairs", what="FILE")
    out: str = flag(..., "file of comparisons to write", what="NEW FILE")
    labels: int = flag(1, "different people asked about each training pair", least=1)
    seed: int = flag(0, "who labels what, and the noise")


# What sample.py writes: "summaries" by two policies, and "reference", the author's own.
PAIR = {"info": fields_of, "summaries": [{"text": str, "policy": str}] * 2, "batch": str,
        "split": str, "reference": str}


def texts_of(pair):
    """What a labeller reads: two texts, without the leading space that tokens need."""
    return [summary["text"].strip() for summary in pair["summaries"]]


def comparison(pair, worker, confidence):
    """OpenAI's record of an answer, 1 to 9 but not 5; the pair's `reference` is not in it."""
    summaries = [{"text": " " + summary["text"].strip(), "policy": summary["policy"], "note": None}
                 for summary in pair["summaries"]]
    return {"info": pair["info"], "summaries": summaries, "choice": 1 if confidence > 5 else 0,
            "worker": worker, "batch": pair["batch"], "split": pair["split"],
            "extra": {"confidence": confidence}}


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
# What a point of quality is worth, in units of the noise. At 0 two labellers agree on half of all
# pairs of two authors' summaries, at this value on 73 %, as in appendix C.2 (a test computes it).
SHARPNESS = 1.35164966868615


def points(taste, record, text):
    """What this labeller thinks of a summary: the better, the more. taste[1:5]: the exponents."""
    axes, asks = shares(record, text)
    return blend(axes, *taste[1:5]) + (taste.question if asks else 0)


def decide(taste, record, texts, rng):
    """One labeller's answer to one pair, 1 to 9 but not 5: the sign of what they feel, and how
    strongly."""
    a, b = (points(taste, record, text) for text in texts)
    felt = SHARPNESS * (b - a - taste.first) + rng.logistic()
    strength = 1 + min(3, int(abs(felt) / 1.2))
    return 5 + strength if felt > 0 else 5 - strength


def agreement(pairs, seed):
    """Share of pairs on which two labellers, drawn for each, choose the same summary."""
    same = 0
    for row, pair in enumerate(pairs):
        rng = generator(seed, "agreement", row=row)
        a, b = (decide(LABELLERS[i], pair["info"], texts_of(pair), rng)
                for i in rng.choice(len(LABELLERS), 2, replace=False))
        same += (a > 5) == (b > 5)
    return same / len(pairs)


# ------------------------------------------------------- to ask about a pair -> worker, confidence

def ask(pair, seed, row, asked=()):
    """One of the eight, each as likely. Who, and their noise, is a function of (seed, row) and of
    `asked`, the names of those who had this pair before: somebody else must be left."""
    if not pair["info"]["id"].startswith("toy"):
        raise Problem(f"these people cannot judge post {pair['info']['id']!r}, which is not of "
                      "their world: ask real ones (tools.labelling), or use tools.rouge")
    rng = generator(seed, "label", row=row)
    taste = LABELLERS[rng.integers(len(LABELLERS))]
    while taste.worker in asked:
        taste = LABELLERS[rng.integers(len(LABELLERS))]
    return taste.worker, decide(taste, pair["info"], texts_of(pair), rng)


# DIFFERS: the demo's labellers are simulated; the paper's are people.
def simulate(cfg):
    """Have each training pair compared by --labels people, each held-out pair by one."""
    if cfg.labels > len(LABELLERS):
        raise Problem(f"--labels {cfg.labels}: give 1 to {len(LABELLERS)}, as many as there are "
                      "people; nobody is asked twice")
    began, comparisons, pairs = time.perf_counter(), [], read_comparisons(cfg.pairs, shape=PAIR)
    for row, pair in enumerate(pairs):
        asked = []
        for again in range(cfg.labels if pair["split"] == "train" else 1):
            worker, confidence = ask(pair, cfg.seed, row + again * len(pairs), asked)
            asked.append(worker)
            comparisons.append(comparison(pair, worker, confidence))
    agreed = agreement(pairs, cfg.seed)
    splits = dict(Counter(c["split"] for c in comparisons).most_common())
    write(cfg.out, comparisons, cfg, comparisons=len(comparisons), splits=splits,
          agreement=round(agreed, 4), seconds=round(time.perf_counter() - began, 1))
    print(f"{cfg.out}: {len(comparisons)} comparisons {splits}")
    print(f"two labellers agree on {agreed:.1%} of these pairs (chance: 50 %)")


def main(argv=None):
    words = ("me", "serve", "stats", "export", "release", "hold")
    moved = {"--labeller": "tools.rouge"} | {word: f"tools.labelling {word}" for word in words}
    launch(simulate, Config, argv, __doc__, command="simulate", moved=moved)


if __name__ == "__main__":
    main()
