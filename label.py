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
shocked." What B has more, in points of quality, times `SHARPNESS`, 1.35, is r_B - r_A:

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
import time
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from data import fields_of, query_text, rouge
from runtime import Problem, flag, generator, launch, read_records, write
from toy import blend, shares


@dataclass(frozen=True)
class Config:
    pairs: str = flag(..., "file of pairs, from sample.py --pairs", what="FILE")
    out: str = flag(..., "file of comparisons to write", what="NEW FILE")
    labeller: str = flag("toy", "who compares", choices=("toy", "rouge", "me"))
    labels: int = flag(1, "different people asked about each training pair", least=1)
    seed: int = flag(0, "who labels what, and the noise")


GUIDE = """A good summary has the essence of the post: it serves the same purpose and tells the \
same things. What matters, most important first: essence, clarity, accuracy, purpose, being \
concise, style. How to weigh one against another is yours to judge."""

PAIR = {"info": fields_of, "summaries": [{"text": str, "policy": str}] * 2, "batch": str,
        "split": str, "reference": str}                        # the author's summary


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
    return [summary["text"].strip() for summary in pair["summaries"]]


def comparison(pair, worker, confidence):
    """OpenAI's record of an answer, 1 to 9 but not 5. The author's summary is not in it."""
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
# pairs of two authors' summaries, at this value on 73 %, as in section 3.3 (a test computes it).
SHARPNESS = 1.35164966868615


def points(taste, record, text):
    """What this labeller thinks of a summary: the better, the more."""
    axes, asks = shares(record, text)
    return blend(axes, *taste[1:5]) + (taste.question if asks else 0)


def decide(taste, record, texts, rng):
    """One labeller's answer to one pair -> {"choice": 0|1, "worker", "confidence": 1..9}."""
    a, b = (points(taste, record, text) for text in texts)
    felt = SHARPNESS * (b - a - taste.first) + rng.logistic()
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
    given = list(answers(cfg, pairs))
    comparisons = [comparison(pair, answer["worker"], answer["confidence"])
                   for pair, answer in given if answer["confidence"] != 5]
    agreed = round(agreement(pairs, cfg.seed), 4) if cfg.labeller == "toy" else None
    write_comparisons(cfg, comparisons, {"ties": len(given) - len(comparisons)}, began,
                      agreement=agreed)
    if cfg.labeller == "toy":
        print(f"two labellers agree on {agreed:.1%} of these pairs (chance: 50 %)")


def write_comparisons(cfg, comparisons, left_out, began, **more):
    """Write --out, and how it came to be. left_out: {reason: how many answers}."""
    told = ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n)
    if not comparisons:
        raise Problem(f"{cfg.out}: nothing to write: who answered prefers neither summary of any "
                      f"pair ({told or 'no answers yet'})")
    splits = dict(Counter(c["split"] for c in comparisons).most_common())
    write(cfg.out, comparisons, cfg, comparisons=len(comparisons), splits=splits, **more,
          seconds=round(time.perf_counter() - began, 1))
    counts = ", ".join(f"{n} {split}" for split, n in splits.items())
    print(f"{cfg.out}: {len(comparisons)} comparisons ({counts}); {told or 'nothing'} left out")


def main(argv=None):
    site = {word: f"tools.labelling {word}" for word in
            ("serve", "stats", "export", "release", "hold")}
    launch(simulate, Config, argv, __doc__, command="simulate", moved=site)


if __name__ == "__main__":
    main()
