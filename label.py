"""Chapter 6. Which of two summaries is better? People say, or simulated people do.

    a pair        a post and two summaries, written by sample.py --pairs
    a comparison  the same with `choice`, 0 or 1, and who chose; OpenAI's record, exactly

The paper's labellers see the post and both summaries and answer on a nine-point scale from "the
first is surely better" (1) to "the second is" (9); each pair is seen by one person, since another
pair teaches the reward model more than a second opinion does (section 3.3, appendix C).

    python label.py serve --pairs runs/demo/pairs.jsonl --db runs/demo/labels.db   # in a browser
    python label.py stats --db runs/demo/labels.db              # do they agree? may we trust them?
    python label.py export --db runs/demo/labels.db --out runs/demo/human.jsonl    # for reward.py
    python label.py release --db runs/demo/labels.db --labeller ann     # who was held may go on

What the answers are worth is measured, as the paper does it: some pairs everybody is asked about,
and agreement is the share of them on which two people choose alike (ties aside; chance is 50 %).

    python label.py simulate --pairs runs/demo/pairs.jsonl --out runs/demo/comparisons.jsonl  # 5 s

    --labeller toy      a handful of noisy, biased people of the toy world; two of them agree on
                        about 73 % of hard pairs, as the paper's did. Toy posts only
    --labeller rouge    prefers the summary that shares more with the author's own: a stand-in for
                        people on real posts, and one that the paper warns of (section 4.4)

Before:  sample.py (where pairs come from).    After: reward.py (what is learned from the answers).
Beside:  label_store.py (who is asked what; durably kept), label_stats.py (what answers are worth),
         label_site.py and label.html (the site itself).
"""
import json
import secrets
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import toy
from data import check_texts, fields_of, read_jsonl, rouge, write_jsonl
from runtime import (
    Machine,
    Problem,
    check_new,
    entry,
    flag,
    join_world,
    mixed,
    parse,
    typed,
    write_config,
)
from sample import load_checkpoint, score_texts
from tools.label_site import LOOPBACK, Site
from tools.label_stats import numbers, report
from tools.label_store import DAMAGE, Plan, Store, second_is_better


@dataclass(frozen=True)
class Simulate:
    pairs: str = flag("", "file of pairs, from sample.py --pairs")
    out: str = flag("", "file of comparisons to write")
    db: str = flag(":memory:", "keep the answers in this new database too, for `stats`")
    labeller: str = flag("toy", "who compares", choices=("toy", "rouge"))
    labels: int = flag(1, "different people asked about each training pair; the paper mostly asked "
                          "one")
    seed: int = flag(0, "who labels what, and how they waver")


@dataclass(frozen=True)
class Serve(Machine):
    pairs: str = flag("", "file of pairs to ask about; pairs that --db knows already stay as they "
                          "are, so the same command goes on where it stopped")
    db: str = flag("", "the database of pairs, people and answers; made when there is none")
    labeller: str = flag("", "answer as this person; none: the page asks for a name")
    researcher: str = flag("", "whose answers count as right: the first items of everybody else "
                               "show them, and a labeller who disagrees too often is held")
    naive: bool = flag(False, "first read the summaries without the post, and note what they say")
    axes: bool = flag(False, "also grade each summary from 1 to 7: " +
                             "coherence, accuracy, coverage, overall")
    shared: float = flag(Plan.shared, "share of items that everybody is asked about")
    repeats: float = flag(Plan.repeats, "share of items asked twice, unannounced")
    onboarding: int = flag(Plan.onboarding, "lessons before the work, given a --researcher")
    hold_below: float = flag(Plan.hold_below, "share of lessons that must agree to go on")
    fastest: float = flag(Plan.fastest, "median seconds a lesson must take to go on")
    lease: float = flag(Plan.lease, "seconds after which a pair left open may go to someone else")
    reward: str = flag("", "reward model whose agreement with people shall be shown as well")
    host: str = flag("127.0.0.1", "address to listen on; any but this one asks for a token")
    names: str = flag("", "names, comma between, under which others reach that address")
    port: int = flag(8000, "port to listen on; 0: any free one")
    seed: int = flag(0, "which pairs come as A and B, and when the pool and repeats come")


@dataclass(frozen=True)
class Stats(Machine):
    db: str = flag("", "database that `serve` keeps")
    json: bool = flag(False, "print every number as JSON")
    reward: str = flag("", "reward model to compare with people; remembered in the database")


@dataclass(frozen=True)
class Export:
    db: str = flag("", "database that `serve` keeps")
    out: str = flag("", "file of comparisons to write; grades go beside it: x.jsonl, x.axes.jsonl")


@dataclass(frozen=True)
class Standing:
    db: str = flag("", "database that `serve` keeps")
    labeller: str = flag("", "who")


# ---------------------------------------------------------------------------- what people are asked

GUIDE = """A good summary has the essence of the post: it serves the same purpose and tells the \
same things. What matters, most important first: essence, clarity, accuracy, purpose, being \
concise, style. How to weigh one against another is yours to judge."""

SCALE = ("surely", "very likely", "likely", "perhaps")       # 1 2 3 4 for A, 9 8 7 6 for B, 5 even

AXES = [                                                     # appendix C.4: anchors at 1, 4 and 7
    {"name": "coherence", "question": "Is it clear, read on its own?", "anchors": [
        "impossible to understand", "mistakes or confusing phrases, a bit hard",
        "perfectly clear"]},
    {"name": "accuracy", "question": "Do its facts match the post? (not in the post: 5 at most)",
     "anchors": ["wrong, made up or contradicts the post", "a substantial claim is not supported",
                 "nothing wrong or misleading"]},
    {"name": "coverage", "question": "Is the important information there?", "anchors": [
        "nothing relevant", "an important piece is missing", "all that is important"]},
    {"name": "overall", "question": "How well does it represent the post?", "anchors": [
        "terrible", "okay, could be much better", "excellent"]},
]


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

def ask_toy(pair, seed, row, asked=()):
    """One of the toy world's people who were not asked yet; they know what a good summary is, but
    not sharply."""
    if not pair["info"]["id"].startswith("toy"):
        raise Problem(f"--labeller toy cannot judge post {pair['info']['id']!r}, which is not of "
                      "its world: use --labeller rouge")
    return toy.label(pair["info"], texts_of(pair), seed, row, asked)


def ask_rouge(pair, seed, row, asked=()):
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


# DIFFERS: the demo's labellers are simulated; the paper's are people, whom `serve` asks.
LABELLERS = {"toy": ask_toy, "rouge": ask_rouge}
PEOPLE = {"toy": len(toy.LABELLERS), "rouge": 1}             # how many each of them is


# --------------------------------------------------------------------------- answers -> records

def record_of(pair, answer):
    """OpenAI's comparison of one answer; the author's summary stays behind. A note is what the
    labeller understood before seeing the post; a comment, which OpenAI has not, joins `extra`."""
    more = answer["more"]
    summaries = [{"text": " " + s["text"].strip(), "policy": s["policy"], "note": note or None}
                 for s, note in zip(pair["summaries"], more.get("notes", ("", "")), strict=True)]
    comment = {"comment": more["comment"]} if "comment" in more else {}
    return {"info": pair["info"], "summaries": summaries,
            "choice": second_is_better(answer["confidence"]), "worker": answer["labeller"],
            "batch": pair["batch"], "split": pair["split"],
            "extra": {"confidence": answer["confidence"], **comment}}


def axis_records(pair, answer):
    """OpenAI's axis record of each summary that was graded."""
    summaries = record_of(pair, answer)["summaries"]
    for summary, grades in zip(summaries, answer["more"].get("axes", ({}, {})), strict=True):
        if grades:
            yield {"info": pair["info"], "split": pair["split"],
                   "summary": {**summary, "axes": grades},
                   "worker": answer["labeller"], "batch": pair["batch"]}


def exported(store):
    """What may be learned from: comparisons and axis records, and a Counter of what stays behind.

    Left out: skips and answers of 5, which prefer neither; lessons; repeats, which measure people,
    not summaries; everything by a labeller who is held.
    """
    answers, states, pairs = store.answers(), store.states(), store.pairs()
    comparisons, axes, left_out = [], [], Counter()
    for answer in answers:
        reason = ("held labellers" if states[answer["labeller"]][0] == "held" else
                  {"lesson": "lessons", "repeat": "repeats"}.get(answer["purpose"]))
        if reason is None:
            axes += axis_records(pairs[answer["pair"]], answer)
            reason = ("skipped" if answer["confidence"] is None else
                      "ties" if answer["confidence"] == 5 else None)
        if reason:
            left_out[reason] += 1
        else:
            comparisons.append(record_of(pairs[answer["pair"]], answer))
    return comparisons, axes, left_out


# ----------------------------------------------------------------------------------- the commands

def write_comparisons(cfg, store, began, **more):
    """Write what may be learned from, its grades if there are any, and how it came to be."""
    comparisons, axes, left_out = exported(store)
    if not comparisons:
        behind = ", ".join(f"{n} {reason}" for reason, n in left_out.items()) or "no answers yet"
        raise Problem(f"{cfg.out}: nothing to write: who answered prefers neither summary of any "
                      f"pair ({behind})")
    splits = dict(Counter(c["split"] for c in comparisons).most_common())
    write_jsonl(cfg.out, comparisons)
    write_config(Path(cfg.out).with_suffix(".config.json"), cfg, comparisons=len(comparisons),
                 splits=splits, **more, seconds=round(time.perf_counter() - began, 1))
    counts = ", ".join(f"{n} {split}" for split, n in splits.items())
    behind = ", ".join(f"{n} {reason}" for reason, n in left_out.items()) or "nothing"
    print(f"{cfg.out}: {len(comparisons)} comparisons ({counts}); {behind} left out")
    if axes:
        graded = Path(cfg.out).with_suffix(".axes.jsonl")
        write_jsonl(graded, axes)
        print(f"{graded}: {len(axes)} graded summaries")


def simulate(cfg):
    """Have pairs compared by simulated labellers; measure how far two of them agree.

    A training pair is shown to `--labels` different ones, one comparison each, a held-out pair to
    one.
    """
    if not (cfg.pairs and cfg.out):
        raise Problem("--pairs (a file of sample.py) and --out (a file to write) are both needed")
    check_new(cfg.out)
    if cfg.db != ":memory:" and Path(cfg.db).exists():
        raise Problem(f"--db {cfg.db} exists: simulated answers do not join others")
    if not 1 <= cfg.labels <= PEOPLE[cfg.labeller]:
        raise Problem(f"--labels {cfg.labels}: give 1 to {PEOPLE[cfg.labeller]}, as many as "
                      f"--labeller {cfg.labeller} has people; nobody is asked twice")
    began = time.perf_counter()
    pairs, ask = read_pairs(cfg.pairs), LABELLERS[cfg.labeller]
    store = Store(":memory:", Plan(shared=1.0))                  # a file once all is answered
    # (The bar is closed before an error is told, which then stands on a line of its own.)
    with store.transaction(), tqdm(total=len(pairs), desc="labels", unit="pair") as bar:
        store.add(pairs)
        pairs = list(store.pairs().values())
        for row, pair in enumerate(pairs):
            bar.update()
            asked = []
            for again in range(cfg.labels if pair["split"] == "train" else 1):
                answer = ask(pair, cfg.seed, row + again * len(pairs), asked)
                worker, confidence = (answer["worker"], answer["confidence"]) if answer else (
                    cfg.labeller, 5)                             # 5: no preference
                store.record(row + 1, worker, confidence)
                asked.append(worker)
    if cfg.db != ":memory:":
        store.db.execute("VACUUM INTO ?", (cfg.db,))
    agreement = None
    if cfg.labeller == "toy":
        agreement = round(toy.agreement([(p["info"], texts_of(p)) for p in pairs], cfg.seed), 4)
    write_comparisons(cfg, store, began, agreement=agreement)
    if agreement is not None:
        print(f"two labellers agree on {agreement:.1%} of these pairs (chance: 50 %)")


def known_store(path, plan=None):
    """The database of a --db that must exist already."""
    if not path or not Path(path).exists():
        raise Problem(f"--db {path}: there is no such file: `python label.py serve` makes it")
    return Store(path, plan)


def compare_with(cfg, store):
    """Have every pair scored by the reward model in folder cfg.reward, for `numbers` to compare."""
    pairs = store.pairs()
    with join_world(cfg) as world, mixed(world):
        model = load_checkpoint(cfg.reward, world, "scalar")
        infos = [pair["info"] for pair in pairs.values()]
        first, second = (score_texts(model, infos, [texts_of(p)[side] for p in pairs.values()])
                         for side in (0, 1))
    store.set_margins({i: b - a for i, a, b in zip(pairs, first, second, strict=True)})


def serve(cfg):
    """Ask people in their browsers, until Ctrl-C."""
    if not cfg.db or not (cfg.pairs or Path(cfg.db).exists()):
        raise Problem("--db (a file to keep answers in) is needed, and --pairs (a file of "
                      "sample.py), at least the first time")
    if not (0 <= cfg.shared <= 1 and 0 <= cfg.repeats <= 1) or cfg.onboarding < 0:
        raise Problem("--shared and --repeats are shares, 0 to 1; --onboarding counts from 0")
    plan = Plan(cfg.repeats, cfg.shared, cfg.onboarding, cfg.hold_below, cfg.fastest, cfg.lease,
                cfg.seed)
    pairs = read_pairs(cfg.pairs) if cfg.pairs else []
    store = Store(cfg.db, plan)
    settings = {"labeller": cfg.labeller, "naive": cfg.naive, "guide": GUIDE, "scale": SCALE,
                "axes": AXES if cfg.axes else [], "onboarding": cfg.onboarding}

    def fresh_numbers():          # by a connection of their own, so that no answer waits for them
        with closing(Store(cfg.db)) as reader:
            return numbers(reader)
    site = Site(cfg.host, cfg.port, store, settings, fresh_numbers,
                None if cfg.host in LOOPBACK else secrets.token_urlsafe(18),
                [name.strip().lower() for name in cfg.names.split(",") if name.strip()])
    with site:                    # the port is ours before a reward model reads every pair
        new = store.add(pairs)
        if cfg.researcher:
            store.set_state(typed("--researcher", cfg.researcher), "researcher")
        if cfg.reward:
            compare_with(cfg, store)
        print(f"{cfg.db}: {new} new pairs, {len(store.pairs())} in all\n{site.url}    label here\n"
              f"{site.url.replace('/?', '/agreement?') if site.token else site.url + 'agreement'}"
              "    do people agree?\nCtrl-C stops; every answer is kept", flush=True)
        site.serve_forever()


def stats(cfg):
    """Print the numbers of the page /agreement."""
    store = known_store(cfg.db)
    if cfg.reward:
        compare_with(cfg, store)
    found = numbers(store)
    print(json.dumps(found, indent=1) if cfg.json else report(found))


def export(cfg):
    """Write the answers that may be learned from."""
    if not cfg.out:
        raise Problem("--out is missing: a file of comparisons to write")
    check_new(cfg.out)
    check_new(Path(cfg.out).with_suffix(".axes.jsonl"))           # people's work, too
    write_comparisons(cfg, known_store(cfg.db), time.perf_counter())


def release(cfg, state="released"):
    """Let a held labeller go on (and, as `hold`, stop one)."""
    store = known_store(cfg.db)
    if cfg.labeller not in store.states():
        raise Problem(f"--labeller {cfg.labeller!r} is nobody {cfg.db} knows: "
                      + (", ".join(store.states()) or "it knows nobody"))
    store.set_state(cfg.labeller, state, "by hand")
    print(f"{cfg.labeller} is {state}")


def hold(cfg):
    """Stop a labeller: they are shown nothing more, and their answers are not exported."""
    release(cfg, "held")


COMMANDS = {"simulate": (Simulate, simulate), "serve": (Serve, serve), "stats": (Stats, stats),
            "export": (Export, export), "release": (Standing, release), "hold": (Standing, hold)}


def main(argv=None):
    """Run the command that the first word names, with the flags behind it."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["none"]
    if command in ("-h", "--help"):
        print(__doc__)
    elif command in COMMANDS:
        config, act = COMMANDS[command]
        cfg = parse(config, {}, rest, __doc__)
        try:
            act(cfg)
        except DAMAGE as error:
            raise Problem(f"--db {cfg.db}: {error}: is the disk full, or the file damaged, or of "
                          "another program?") from None
    else:
        raise Problem(f"command {command!r} is unknown: python label.py {' | '.join(COMMANDS)} "
                      "(then --help lists its flags)")


if __name__ == "__main__":
    entry(main)
