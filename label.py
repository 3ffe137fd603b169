"""Chapter 6. Which of two summaries is better? People say, or simulated people do.

    a pair        a post and two summaries, written by sample.py --pairs
    a comparison  the same with `choice`, 0 or 1, and who chose; OpenAI's record, exactly

The paper's labellers see the post and both summaries and answer on a nine-point scale from "the
first is surely better" (1) to "the second is" (9); each pair is seen by one person, since another
pair teaches the reward model more than a second opinion does (section 3.3, appendix C).

    python label.py simulate --pairs runs/demo/pairs.jsonl --out runs/demo/comparisons.jsonl  # 5 s

    --labeller toy      a handful of noisy, biased people of the toy world; two of them agree on
                        about 73 % of hard pairs, as the paper's did. Toy posts only
    --labeller rouge    prefers the summary that shares more with the author's own: a stand-in for
                        people on real posts, and one that the paper warns of (section 4.4)

Before:  sample.py (where pairs come from).    After: reward.py (what is learned from the answers).
"""
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import toy
from data import check_texts, fields_of, read_jsonl, rouge, write_jsonl
from runtime import Problem, entry, flag, parse, write_config


@dataclass(frozen=True)
class Simulate:
    pairs: str = flag("", "file of pairs, from sample.py --pairs")
    out: str = flag("", "file of comparisons to write")
    labeller: str = flag("toy", "who compares", choices=("toy", "rouge"))
    labels: int = flag(1, "people asked about each training pair; the paper mostly asked one")
    seed: int = flag(0, "who labels what, and how they waver")


def read_pairs(path):
    """The pairs of a file, checked. Raises: Problem naming file, line and field."""
    pairs = []
    for number, pair in read_jsonl(path):
        where = f"{path}, line {number}"
        info, summaries = pair.get("info"), pair.get("summaries")
        if not isinstance(info, dict):
            raise Problem(f"{where}: field 'info' should be the post: is this a file of pairs?")
        check_texts(f"{where}, in 'info'", info, fields_of(info))
        check_texts(where, pair, ("batch", "split", "reference"))
        if not isinstance(summaries, list) or len(summaries) != 2:
            raise Problem(f"{where}: field 'summaries' should be a list of two")
        for summary in summaries:
            check_texts(f"{where}, in 'summaries'", summary, ("text", "policy"))
        if summaries[0]["text"].strip() == summaries[1]["text"].strip():
            raise Problem(f"{where}: the two summaries are the same text: delete the line")
        pairs.append(pair)
    if not pairs:
        raise Problem(f"{path}: holds no pairs: write some with `python sample.py --pairs`")
    return pairs


def texts_of(pair):
    """What a labeller reads: two texts, without the leading space that tokens need."""
    return tuple(summary["text"].strip() for summary in pair["summaries"])


# ------------------------------------------------------------- labellers: pair -> answer, or None

def ask_toy(pair, seed, row):
    """One of the toy world's people, who know what a good summary is but not sharply."""
    if not pair["info"]["id"].startswith("toy"):
        raise Problem(f"--labeller toy cannot judge post {pair['info']['id']!r}, which is not of "
                      "its world: use --labeller rouge")
    return toy.label(pair["info"], texts_of(pair), seed, row)


def ask_rouge(pair, seed, row):
    """The one with the higher ROUGE-L to the author's summary; None when they are level."""
    if not pair["reference"]:
        raise Problem(f"--labeller rouge: post {pair['info']['id']!r} has no summary by its author "
                      "to compare with")
    first, second = (rouge(text, pair["reference"])["rouge_l"] for text in texts_of(pair))
    if first == second:
        return None
    # The nine-point scale: 5 - strength for the first summary, 5 + strength for the second.
    strength = 1 + sum(abs(second - first) > edge for edge in (0.05, 0.1, 0.2))      # 1 .. 4
    choice = int(second > first)
    return {"choice": choice, "worker": "rouge",
            "confidence": 5 + strength if choice else 5 - strength}


# DIFFERS: the paper's labellers are people; `python label.py --help` says how these stand in.
LABELLERS = {"toy": ask_toy, "rouge": ask_rouge}


def comparison(pair, answer):
    """OpenAI's record of one answer; the author's summary stays behind."""
    return {"info": pair["info"],
            "summaries": [{"text": " " + s["text"].strip(), "policy": s["policy"],
                           "note": s.get("note")} for s in pair["summaries"]],
            "choice": answer["choice"], "worker": answer["worker"], "batch": pair["batch"],
            "split": pair["split"], "extra": {"confidence": answer["confidence"]}}


# ----------------------------------------------------------------------------------- the commands

def simulate(cfg):
    """Have pairs compared by simulated labellers; measure how far two of them agree.

    A training pair is shown to `--labels` of them, one comparison each, a held-out pair to one.
    """
    if not (cfg.pairs and cfg.out):
        raise Problem("--pairs (a file of sample.py) and --out (a file to write) are both needed")
    began = time.perf_counter()
    pairs, ask, comparisons = read_pairs(cfg.pairs), LABELLERS[cfg.labeller], []
    asked = 0
    for row, pair in enumerate(tqdm(pairs, desc="labels", unit="pair")):
        for again in range(cfg.labels if pair["split"] == "train" else 1):
            answer = ask(pair, cfg.seed, row + again * len(pairs))
            asked += 1
            if answer is not None and answer["confidence"] != 5:  # 5: no preference
                comparisons.append(comparison(pair, answer))
    if not comparisons:
        raise Problem(f"{cfg.pairs}: the labeller prefers neither summary of any pair")
    agreement = None
    if cfg.labeller == "toy":
        agreement = round(toy.agreement([(p["info"], texts_of(p)) for p in pairs], cfg.seed), 4)
    splits = dict(Counter(c["split"] for c in comparisons).most_common())
    write_jsonl(cfg.out, comparisons)
    write_config(Path(cfg.out).with_suffix(".config.json"), cfg, comparisons=len(comparisons),
                 splits=splits, agreement=agreement, seconds=round(time.perf_counter() - began, 1))
    counts = ", ".join(f"{n} {split}" for split, n in splits.items())
    print(f"{cfg.out}: {len(comparisons)} comparisons ({counts}); {asked - len(comparisons)} "
          "ties left out")
    if agreement is not None:
        print(f"two labellers agree on {agreement:.1%} of these pairs (chance: 50 %)")


COMMANDS = {"simulate": (Simulate, simulate)}


def main(argv=None):
    """Run the command that the first word names, with the flags behind it."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["none"]
    if command in ("-h", "--help"):
        print(__doc__)
    elif command in COMMANDS:
        config, act = COMMANDS[command]
        act(parse(config, {}, rest, __doc__))
    else:
        raise Problem(f"command {command!r} is unknown: python label.py {' | '.join(COMMANDS)} "
                      "(then --help lists its flags)")


if __name__ == "__main__":
    entry(main)
