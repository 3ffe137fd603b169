"""Appendix to Chapter 6. People compare pairs, in their browsers or in this terminal.

    python -m tools.labelling me --pairs runs/demo/pairs.jsonl --out runs/demo/mine.jsonl   # here
    python -m tools.labelling serve --pairs runs/demo/pairs.jsonl --db runs/demo/labels.db
    python -m tools.labelling stats --db runs/demo/labels.db        # do people agree?
    python -m tools.labelling export --db runs/demo/labels.db --out runs/demo/human.jsonl
    python -m tools.labelling release --db runs/demo/labels.db --labeller ann    # let ann go on
    python -m tools.labelling hold --db runs/demo/labels.db --labeller bob       # stop bob

What the answers are worth is measured as the paper does it: some pairs everybody is asked about,
and agreement is the share of them on which two people choose the same summary (ties do not count;
chance is 50 %).

Before: label.py, what people are asked.    After: label_store.py (who is asked what; durably kept),
label_stats.py (what answers are worth), label_site.py and label.html (the site itself).
"""
import json
import secrets
import sys
import threading
import time
import webbrowser
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from data import query_text, read_comparisons
from label import PAIR, comparison, texts_of
from runtime import Machine, Problem, flag, launch, write
from runtime.flags import check_new, entry
from sample import load_checkpoint, score_texts
from tools.label_site import LOOPBACK, Site
from tools.label_stats import numbers, report
from tools.label_store import DAMAGE, Plan, Store

GUIDE = """A good summary has the essence of the post: it serves the same purpose and tells the \
same things. What matters, most important first: essence, clarity, accuracy, purpose, being \
concise, style. You decide how to weigh one against another."""

SCALE = ("surely", "very likely", "likely", "perhaps")      # 1 2 3 4 for A, 9 8 7 6 for B; 5: equal

AXIS_QUESTIONS = {                   # grades from 1 to 7; what 1, 4 and 7 mean        appendix C.4
    "coherence": ("Is it clear, read on its own?", [
        "impossible to understand", "mistakes or confusing phrases, a bit hard",
        "perfectly clear"]),
    "accuracy": ("Do its facts match the post? (with something not in the post: 5 at most)", [
        "wrong, made up or contradicts the post", "a substantial claim is not supported",
        "nothing wrong or misleading"]),
    "coverage": ("Is the important information there?", [
        "nothing relevant", "an important piece is missing", "all that is important"]),
    "overall": ("How well does it represent the post?", [
        "terrible", "okay, could be much better", "excellent"]),
}


@dataclass(frozen=True)
class Me:
    pairs: str = flag(..., "file of pairs to ask you about", what="FILE")
    out: str = flag(..., "file of comparisons to write", what="NEW FILE")


@dataclass(frozen=True)
class Serve(Machine):
    pairs: str = flag("", "file of pairs to ask about; pairs that --db knows already stay as they "
                          "are, so the same command goes on where it stopped", what="FILE")
    db: str = flag(..., "the database of pairs, people and answers; made when there is none",
                   what="FILE")
    labeller: str = flag("", "answer as this person; none: the page asks for a name")
    researcher: str = flag("", "whose answers count as right: the first items of everybody else "
                               "show them, and a labeller who disagrees too often is held",
                     what="TEXT")
    naive: bool = flag(False, "first read the summaries without the post, and note what they say")
    axes: bool = flag(False, f"also grade each summary from 1 to 7: {', '.join(AXIS_QUESTIONS)}")
    shared: float = flag(Plan.shared, "share of items that everybody is asked about")
    repeats: float = flag(Plan.repeats, "share of items asked twice, unannounced")
    onboarding: int = flag(Plan.onboarding, "lessons before the work, given a --researcher")
    hold_below: float = flag(Plan.hold_below, "share of lessons that must agree to go on")
    fastest: float = flag(Plan.fastest, "median seconds a lesson must take to go on")
    lease: float = flag(Plan.lease, "seconds after which a pair left open may go to someone else")
    reward: str = flag("", "reward model whose agreement with people shall be shown as well",
                       what="DIR")
    host: str = flag("127.0.0.1", "address to listen on, 0.0.0.0 for all that this machine has; "
                                  "any but this one asks for a token")
    names: str = flag("", "names, comma between, under which others reach that address")
    port: int = flag(8000, "port to listen on; 0: any free one")
    open: bool = flag(False, "open the page in this machine's browser")
    seed: int = flag(0, "which pairs come as A and B, and when the pool and repeats come")


@dataclass(frozen=True)
class Stats(Machine):
    db: str = flag(..., "database that `serve` keeps", what="FILE")
    json: bool = flag(False, "print every number as JSON")
    reward: str = flag("", "reward model to compare with people; remembered in the database",
                       what="DIR")


@dataclass(frozen=True)
class Export:
    db: str = flag(..., "database that `serve` keeps", what="FILE")
    out: str = flag(..., "file of comparisons to write; grades go to x.axes.jsonl for x.jsonl",
                    what="FILE")


@dataclass(frozen=True)
class Standing:
    db: str = flag(..., "database that `serve` keeps", what="FILE")
    labeller: str = flag(..., "who")


# --------------------------------------------------------------------------- answers -> records

def record_of(pair, answer):
    """OpenAI's comparison of one answer. A note is what the labeller understood before seeing the
    post; a comment, which OpenAI has not, joins `extra`."""
    more, record = answer["more"], comparison(pair, answer["labeller"], answer["confidence"])
    for summary, note in zip(record["summaries"], more.get("notes", ("", "")), strict=True):
        summary["note"] = note or None
    if "comment" in more:
        record["extra"]["comment"] = more["comment"]
    return record


def axis_records(pair, answer):
    """OpenAI's axis record of each summary that was graded, by somebody who may have skipped."""
    summaries = record_of(pair, {**answer, "confidence": 5})["summaries"]
    for summary, grades in zip(summaries, answer["more"].get("axes", ({}, {})), strict=True):
        if grades:
            yield {"info": pair["info"], "split": pair["split"],
                   "summary": {**summary, "axes": grades},
                   "worker": answer["labeller"], "batch": pair["batch"]}


def exported(store):
    """What may be learned from: comparisons and axis records, and a Counter of what is left out.

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
            reason = {None: "skipped", 5: "ties"}.get(answer["confidence"])
        if reason:
            left_out[reason] += 1
        else:
            comparisons.append(record_of(pairs[answer["pair"]], answer))
    return comparisons, axes, left_out


def write_comparisons(cfg, comparisons, left_out, began):
    """Write --out, and how it came to be. left_out: {reason: how many answers}."""
    told = ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n)
    if not comparisons:
        raise Problem(f"{cfg.out}: nothing to write: who answered prefers neither summary of any "
                      f"pair ({told or 'no answers yet'})")
    splits = dict(Counter(c["split"] for c in comparisons).most_common())
    write(cfg.out, comparisons, cfg, comparisons=len(comparisons), splits=splits,
          seconds=round(time.perf_counter() - began, 1))
    print(f"{cfg.out}: {len(comparisons)} comparisons {splits}; {told or 'nothing'} left out")


# ----------------------------------------------------------------------------------- the commands

def me(cfg):
    """Ask whoever sits at this terminal. Answers are written at the end, after Ctrl-C too."""
    began, comparisons, ties = time.perf_counter(), [], 0
    question = "1 (A is surely better) to 9 (B is); 5: equal; Ctrl-D: stop > "
    for pair in read_comparisons(cfg.pairs, shape=PAIR):
        a, b = texts_of(pair)
        print(f"\n{GUIDE}\n\n{query_text(pair['info'])}\n\nA  {a}\n\nB  {b}\n")
        said = ""
        try:
            while said not in tuple("123456789"):
                said = input(question).strip()
        except (EOFError, KeyboardInterrupt):
            break
        if said == "5":
            ties += 1
        else:
            comparisons.append(comparison(pair, "me", int(said)))
    write_comparisons(cfg, comparisons, {"ties": ties}, began)


def known_store(path):
    """The database of a --db that must exist already."""
    if not Path(path).is_file():
        raise Problem(f"--db {path}: there is no such file: `python -m tools.labelling serve` "
                      "makes it")
    return Store(path)


def compare_with(cfg, store, world):
    """Have every pair scored by the reward model in folder cfg.reward, for `numbers` to compare."""
    pairs = store.pairs()
    with world.mixed():
        model = load_checkpoint(cfg.reward, world, "scalar")
        infos = [pair["info"] for pair in pairs.values()]
        first, second = (score_texts(model, infos, [texts_of(p)[side] for p in pairs.values()])
                         for side in (0, 1))
    store.set_margins({i: b - a for i, a, b in zip(pairs, first, second, strict=True)})


def check_name(flag, name, store):
    """Raise a Problem when a flag names a known person, but spelled otherwise."""
    if known := store.alike(name):
        raise Problem(f"{flag} {name}: {store.path} knows this name as {known}: type it so, or "
                      "choose a name that differs by more than capital letters")


def agreement_url(site):
    """Where /agreement is, with the token if there is one."""
    front, token, rest = site.urls[0].partition("?")
    return f"{front}agreement{token}{rest}"


def open_browser(url):
    """Open a page in the browser, or say that there is none. Some browsers keep who opens them
    waiting: a thread waits."""
    def act():
        if not webbrowser.open(url):
            print("--open: no browser was found; open the address yourself", file=sys.stderr)
    threading.Thread(target=act, daemon=True).start()


def serve(cfg, world):
    """Ask people in their browsers, until Ctrl-C."""
    if not cfg.db or not (cfg.pairs or Path(cfg.db).exists()):
        raise Problem("--db (a file to keep answers in) is needed, and --pairs (a file of "
                      "sample.py), at least the first time")
    if cfg.shared > 1 or cfg.repeats > 0.3:
        raise Problem("--shared is a share, 0 to 1, and --repeats one of 0 to 0.3")
    plan = Plan(cfg.repeats, cfg.shared, cfg.onboarding, cfg.hold_below, cfg.fastest, cfg.lease,
                cfg.seed)
    pairs = read_comparisons(cfg.pairs, shape=PAIR) if cfg.pairs else []
    store = Store(cfg.db, plan)
    axes = [{"name": name, "question": question, "anchors": anchors}
            for name, (question, anchors) in AXIS_QUESTIONS.items()]
    settings = {"labeller": cfg.labeller, "naive": cfg.naive, "guide": GUIDE, "scale": SCALE,
                "axes": axes if cfg.axes else [], "onboarding": cfg.onboarding}

    def fresh_numbers():          # by a connection of their own, so that no answer waits for them
        with closing(Store(cfg.db)) as reader:
            return numbers(reader)
    site = Site(cfg.host, cfg.port, store, settings, fresh_numbers,
                None if cfg.host in LOOPBACK else secrets.token_urlsafe(18),
                [name.strip().lower() for name in cfg.names.split(",") if name.strip()])
    with site:                    # the port is ours before a reward model reads every pair
        new = store.add(pairs)
        if cfg.researcher:
            check_name("--researcher", cfg.researcher, store)
            store.set_state(cfg.researcher, "researcher")
        check_name("--labeller", cfg.labeller, store)
        if cfg.reward:
            compare_with(cfg, store, world)
        print(f"{cfg.db}: {new} new pairs, {len(store.pairs())} in all")
        for url, whence in zip(site.urls, ("", ", from another machine"), strict=False):
            print(f"{url}    label here{whence}")
        print(f"{agreement_url(site)}    do people agree?\nCtrl-C stops; every answer is kept",
              flush=True)
        if cfg.open:
            open_browser(site.urls[0])
        site.serve_forever()


def stats(cfg, world):
    """Print the numbers of the page /agreement."""
    store = known_store(cfg.db)
    if cfg.reward:
        compare_with(cfg, store, world)
    found = numbers(store)
    print(json.dumps(found, indent=1) if cfg.json else report(found))


def export(cfg):
    """Write the answers that may be learned from, and the grades if there are any."""
    began, graded = time.perf_counter(), Path(cfg.out).with_suffix(".axes.jsonl")
    check_new(cfg.out)
    check_new(graded)                                                 # people's work, too
    comparisons, axes, left_out = exported(known_store(cfg.db))
    write_comparisons(cfg, comparisons, left_out, began)
    if axes:
        write(graded, axes)
        print(f"{graded}: {len(axes)} graded summaries")


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


COMMANDS = {"me": (Me, me), "serve": (Serve, serve), "stats": (Stats, stats),
            "export": (Export, export), "release": (Standing, release), "hold": (Standing, hold)}


def main(argv=None):
    """Run the command that the first word names, with the flags behind it."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or [None]
    if command in ("-h", "--help"):
        print(__doc__)
        return
    if command not in COMMANDS:
        asked = f"command {command!r} is unknown:" if command else "which command?"
        raise Problem(f"{asked} python -m tools.labelling {' | '.join(COMMANDS)} (then --help "
                      "lists its flags)")
    config, act = COMMANDS[command]

    def guarded(cfg, *world):
        try:
            act(cfg, *world)
        except DAMAGE as error:
            raise Problem(f"--db {cfg.db}: {error}: is the disk full, or the file damaged, or of "
                          "another program?") from None
    launch(act if act is me else guarded, config, rest, __doc__)


if __name__ == "__main__":
    entry(main)
