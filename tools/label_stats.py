"""Appendix to Chapter 6. What the answers are worth: do people agree, and do they mean it?

    agreement   the share of pairs on which two people choose the same; who is indifferent does not
                count, and chance is 50 %. Labeller with labeller, labeller with researcher, and
                everybody with themselves, a while later                   (sections 3.3 and C.2)
    care        seconds an item, how often A (the first shown) is chosen, how sure people are
    results     how often each policy's summaries are preferred, and whether a reward model would
                have chosen the same

The paper's labellers agreed with its researchers on 77 % +- 2, researchers with each other on 73 %
+- 4. A warning is a reason to look and to talk, not a verdict.

    python -m tools.labelling stats --db runs/demo/labels.db

Before: label_store.py, where answers come from.    After: label_site.py, which shows these numbers.
"""
import re
from collections import defaultdict
from itertools import combinations

import numpy as np

from tools.label_store import Plan, second_is_better

# Whose answers, and what is independent: said beside the numbers, here and on /agreement.
NOTE = """In brackets 95 % intervals, for these people: posts are independent of each other, several
answers about one post are not. Who is held counts in their own row only. Agreement leaves out ties;
chance is 50 %. Of policies, a tie is half."""


NAMES = {"ppo": "human feedback", "ref": "the author"}
WRITER = re.compile(r"(.*?)(?:_step-0*(\d+))?(?:_t([\d.]+)|_bo(\d+))?", re.DOTALL)


def spoken(policy):
    """A writer's name in the records as people say it:

        ref                      the author
        supervised_t1            supervised
        ppo_step-00000020_t0.7   human feedback, step 20, at temperature 0.7
        ppo_bo4                  human feedback, best of 4
    """
    name, step, temperature, best = WRITER.fullmatch(policy).groups()
    return ", ".join(filter(None, (
        NAMES.get(name, name), step and f"step {step}", best and f"best of {best}",
        temperature not in (None, "1") and f"at temperature {temperature}")))


def share(looks):
    """A share with its 95 % interval: {"share", "95", "n"}, the first two None when n is 0.

        Wilson's interval, with m = p (1 - p) / variance(p) in the place of n

    looks: (post, hit) for each look, hit 0, 1/2 or 1. Looks at one post resemble each other
    (people's at one pair, or one's at two pairs that share a summary), so the variance is taken
    between posts; with one look each, m is about n.
    """
    sums = defaultdict(lambda: [0.0, 0])
    for post, hit in looks:
        sums[post][0] += hit
        sums[post][1] += 1
    if not sums:
        return {"share": None, "95": None, "n": 0}
    hits, counts = np.array(list(sums.values())).T                   # (posts,) each
    k, n = len(hits), int(counts.sum())
    p = float(hits.sum() / n)
    variance = ((hits - p * counts) ** 2).sum() / n ** 2 * k / max(1, k - 1)
    m = min(n, p * (1 - p) / variance) if variance > 0 and 0 < p < 1 else k
    z = 1.96
    middle, half = p + z * z / (2 * m), z * np.sqrt(p * (1 - p) / m + (z / (2 * m)) ** 2)
    ends = [max(0.0, float((middle + d) / (1 + z * z / m))) for d in (-half, half)]   # not -1e-17
    return {"share": p, "95": ends, "n": n}


def person(name, state, answers, opinions, again, researchers, others):
    """One labeller's row: how much, how fast, how even-handed, how much like others and oneself.

    Sides and the scale's histogram are as shown: 1 is A, though A was the pair's second summary.

    answers: theirs. opinions: (post, {labeller: 0 or 1}) for each pair, the first ones, ties and
    skips aside. again: (post, 1 if they repeated themselves else 0) for each repeat.
    researchers, others: sets of the names to compare with; who is held is in neither.
    """
    seconds = [a["seconds"] for a in answers if a["seconds"] is not None]
    shown = [(a["post"], 10 - a["confidence"] if a["swapped"] else a["confidence"])
             for a in answers if a["confidence"] is not None]

    def like(people):
        return share((post, int(votes[name] == votes[rival])) for post, votes in opinions
                     if name in votes for rival in votes.keys() & people - {name})

    # A break for coffee is no work: an item counts for five minutes at most.
    hours = sum(min(s, 300) for s in seconds) / 3600
    return {"state": state[0], "why": state[1], "answers": len(shown),
            "ties": sum(c == 5 for _, c in shown), "skipped": len(answers) - len(shown),
            "seconds": float(np.median(seconds)) if seconds else None,
            "per_hour": len(seconds) / hours if hours else None,
            "chose_a": share((post, int(c < 5)) for post, c in shown if c != 5),
            "confidence": [sum(c == point for _, c in shown) for point in range(1, 10)],
            "self": share(again), "researcher": like(researchers), "others": like(others)}


def warnings_of(labellers):
    """What a researcher should look into, a line each."""
    for name, row in labellers.items():
        side, like = row["chose_a"], max(row["researcher"], row["others"], key=lambda s: s["n"])
        if row["state"] == "held":
            yield f"{name} is held ({row['why']}): `labelling release` lets them go on"
        if like["n"] >= 20 and like["share"] < 0.6:
            yield (f"{name} agrees with others on {like['share']:.0%} of {like['n']} choices: that "
                   "is close to chance, 50 %")
        if row["seconds"] is not None and row["answers"] >= 10 and row["seconds"] < Plan.fastest:
            yield f"{name} takes {row['seconds']:.1f} s an item: too fast to have read it"
        if side["n"] >= 20 and not 0.2 < side["share"] < 0.8:
            yield f"{name} chose A, the first shown, {side['share']:.0%} of {side['n']} times"


def numbers(store):
    """Everything that `stats` prints and /agreement shows, as one dict that JSON can hold.

    First opinions count, lessons too, for they are given before the researcher's is shown. For
    agreement a 5 on either side leaves the pair out; policies' win rates count it as half a win,
    and no pair of a policy against itself. A skip is no answer. Who is held has a row among the
    labellers, and counts in no other number but that of all answers.
    """
    # Answers first: while they are read, somebody new may come, whose state is there afterwards.
    answers, states, pairs = store.answers(), store.states(), store.pairs()
    researchers, held = ({name for name, (state, _) in states.items() if state == wanted}
                         for wanted in ("researcher", "held"))
    people, post_of = states.keys() - held, {i: pair["info"]["id"] for i, pair in pairs.items()}
    by_person, chosen, again = defaultdict(list), defaultdict(dict), defaultdict(list)
    looks, wins = defaultdict(list), defaultdict(list)
    for a in answers:                              # in the order of asking: a repeat comes second
        name, pair, choice = a["labeller"], a["pair"], second_is_better(a["confidence"])
        a["post"] = post = post_of[pair]
        by_person[name].append(a)
        if a["purpose"] != "repeat":
            rivals = [s["policy"] for s in pairs[pair]["summaries"]]
            if a["confidence"] is not None and rivals[0] != rivals[1] and name in people:
                second = 0.5 if choice is None else choice
                for mine, other, won in ((*rivals, 1 - second), (*rivals[::-1], second)):
                    wins[mine, ""].append((post, won))
                    wins[mine, other].append((post, won))
            if choice is not None:
                chosen[pair].setdefault(name, choice)
        elif choice is not None and name in chosen[pair]:
            again[name].append((post, int(choice == chosen[pair][name])))
    opinions = [(post_of[pair], votes) for pair, votes in chosen.items()]
    for post, votes in opinions:
        for a, b in combinations(sorted(votes.keys() & people), 2):
            looks[a, b].append((post, int(votes[a] == votes[b])))
    labellers = {name: person(name, states[name], rows, opinions, again[name], researchers,
                              people - researchers) for name, rows in sorted(by_person.items())}

    def pooled(count):
        return share(look for two, some in looks.items() for look in some
                     if len(researchers & set(two)) == count)

    margins = {row["id"]: row["margin"] for row in
               store.all("SELECT id, margin FROM pairs WHERE margin NOT NULL AND margin != 0")}
    given = [a for a in answers if a["confidence"] is not None]
    left = pairs.keys() - {a["pair"] for a in given if a["labeller"] in people}
    return {"pairs": len(pairs), "left": len(left),
            "answers": len(given), "held": sum(a["labeller"] in held for a in given),
            "note": NOTE, "labellers": labellers,
            "labeller_labeller": pooled(0), "labeller_researcher": pooled(1),
            "self": share(look for name in again.keys() & people for look in again[name]),
            "reward_model": share((post_of[pair], int(vote == (margins[pair] > 0)))
                                  for pair in chosen.keys() & margins
                                  for name, vote in chosen[pair].items() if name in people),
            "between": [{"a": a, "b": b, **share(some)} for (a, b), some in sorted(looks.items())],
            "policies": [{"policy": name, "against": rival, **share(some), "said": [
                spoken(name), spoken(rival) if rival else "any other"]}
                         for (name, rival), some in sorted(wins.items())],
            "warnings": list(warnings_of(labellers))}


# ---------------------------------------------------------------------------------- as text

def percent(found, of=""):
    """A `share` for people: 73 % [65, 79] of 120."""
    if not found["n"]:
        return "-"
    low, high = found["95"]
    return f"{found['share']:.0%} [{100 * low:.0f}, {100 * high:.0f}]{of and f' of {found[of]}'}"


def report(found):
    """`numbers` as the lines that `labelling stats` prints."""
    lines = [f"{found['answers']} answers, {found['held']} of them by labellers who are held; "
             f"{found['left']} of {found['pairs']} pairs not answered", "", NOTE, ""]
    lines += [f"{title:24} {percent(found[key], 'n')}" for title, key in (
        ("labellers agree", "labeller_labeller"),
        ("and with a researcher", "labeller_researcher"), ("with themselves, later", "self"),
        ("with the reward model", "reward_model"))]
    form = "{:23} {:>7} {:>4} {:>5} {:>7} {:>6}  {:14} {:14} {:14} {:14} {}"
    lines += ["", form.format("labeller", "answers", "ties", "skips", "seconds", "an hour",
                              "researcher", "others", "oneself", "chose A", "scale 1 .. 9")]
    for name, row in found["labellers"].items():
        lines.append(form.format(
            name[:16] + " (held)" * (row["state"] == "held"),
            row["answers"], row["ties"], row["skipped"],
            *("-" if row[k] is None else f"{row[k]:.{d}f}" for k, d in (("seconds", 1),
                                                                        ("per_hour", 0))),
            *(percent(row[k]) for k in ("researcher", "others", "self", "chose_a")),
            " ".join(map(str, row["confidence"]))))
    if found["policies"]:
        lines += ["", "preferred:"]
        lines += [f"  {' to '.join(row['said'])}: {percent(row, 'n')}"
                  for row in found["policies"]]
    return "\n".join(lines + [""] * bool(found["warnings"]) + [
        f"look into: {warning}" for warning in found["warnings"]])
