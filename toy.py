"""Chapter 2. A tiny world of posts whose best summary is known, and people who judge them.

No people wait at the end of a test run, so this chapter builds a small town in which their taste is
known. Somebody broke, sold or hid something, and the victim asks Reddit what to do:

    facts -> post               six to eleven sentences, shuffled, with small talk between them
          -> author's summary   as fallible as authors are: they rant, chat and forget the question
          -> ideal summary      every fact once, in the plainest words

`gold` is the true judge. It reads the facts off any text and grades a summary on the paper's axes,
each a share from 0 to 1, and multiplies, so that no axis can be bought with another:

    overall = 1 + 6 * coverage * accuracy * coherence^(1/2) * length^(1/4)

`label` is a person: `gold` seen through a taste of one's own, and not sharply. Two of them agree on
73 % of pairs, as two of the paper's labellers did (section 3.3, appendix C).

What authors *usually* write (what happened, an exaggeration, thanks for reading) is not what
readers want. A model that imitates them is mediocre, and human feedback has something to teach.

    python toy.py --out data/toy          (10 s; data/toy/news is a second world, to transfer to)

Before: data.py, the formats.    After: model.py.
"""
import math
import os
import random
import re
import zlib
from collections import namedtuple
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import write_jsonl
from runtime import Problem, check_new, entry, flag, generator, parse

# ------------------------------------------------------------------------------------ the lexicon
# A value belongs to one slot only, and small talk contains none, so a text can be read back.

PRONOUN = {  # the people of Reddit, and how one speaks of them afterwards
    "sister": "she", "brother": "he", "mother": "she", "father": "he", "aunt": "she", "uncle": "he",
    "girlfriend": "she", "boyfriend": "he", "wife": "she", "husband": "he", "roommate": "they",
    "boss": "they", "neighbor": "they", "landlord": "they", "cousin": "they", "coworker": "they",
}
HIM = {"she": "her", "he": "him", "they": "them"}
WORKERS = "nurse farmer baker mayor pilot teacher driver singer chef guard".split()
PARTICIPLE = {
    "broke": "broken", "sold": "sold", "lost": "lost", "hid": "hidden", "stole": "stolen",
    "burned": "burned", "ruined": "ruined", "painted": "painted", "dropped": "dropped",
    "buried": "buried", "kicked": "kicked", "wrecked": "wrecked",
}
OBJECTS = """bike car tent lamp boat ring coat book desk sofa cake drum harp fan rug map pot cup bag
    hat kite bed chair phone watch guitar camera laptop mirror wallet""".split()
PLACES = """bar gym lake park zoo pool farm mall beach church market station hotel
    office""".split()
TIMES = ["yesterday", "last week", "last night", "last month", "last year", "on Monday",
    "on Friday", "on Sunday", "two days ago", "an hour ago", "a month ago", "this morning"]
EXCUSES = ["it was a joke", "it was a dare", "it was a test", "it was a gift", "it was a mistake",
    "the dog did it", "the kids did it", "a ghost did it", "everyone does it",
    "nobody was using it", "it was the law", "there was no other way"]
FEELINGS = """mad sad scared tired angry upset worried lonely ashamed shocked jealous
    furious""".split()
ASKS = ["call the police", "move out", "ask for the money back", "tell the family", "get a lawyer",
    "cut contact", "buy a new one", "let it go", "change the locks", "see a doctor",
    "write a letter", "quit my job", "set a trap", "go to court", "wait and see", "say nothing"]
PLANS = ["hold a meeting", "pay for it all", "close the road", "change the law", "buy an alarm",
    "hire more people", "offer a reward", "write a report", "call a vote", "ask for help",
    "start a search", "stop the parade"]

# ------------------------------------------------------------------------------ how posts say it
# {a} actor, {v} verb, {p} participle, {ob} owner and object, {b} object, {t} time, {l} place,
# {e} excuse, {f} feeling, {q} question; {he}, {him}, {says} follow the actor.

POST = {
    "event": ["{a} {v} {ob}.", "Here is what happened, {a} {v} {ob} and told nobody.",
        "I found out that {a} {v} {ob}.", "It turns out that {a} {v} {ob}.",
        "Believe it or not, {a} {v} {ob}.", "It was {a} who {v} {ob}, I saw it happen.",
        "{ob} got {p} by {a}.", "I just found out that {ob} was {p} by {a}.",
        "The short story is that {ob} got {p} by {a}.",
        "To make a long story short, {ob} was {p} by {a}."],
    "event+time": ["{t} {a} {v} {ob}.", "{a} {v} {ob} {t} and I saw it all.",
        "{t} {ob} got {p} by {a}."],
    "event+place": ["We were at the {l} when {a} {v} {ob}.", "{ob} was {p} by {a} at the {l}.",
        "{a} {v} {ob} right there at the {l}."],
    "event+place+time": ["{t} at the {l} {a} {v} {ob}.", "{t} {ob} got {p} by {a} at the {l}."],
    "place": ["This happened at the {l}.", "We were at the {l} with a lot of other people.",
        "It was at the {l} of all places.", "I was at the {l} when it happened.",
        "People at the {l} still talk about it."],
    "time": ["It happened {t}.", "This was {t} and I still cannot believe it.", "I found out {t}.",
        "All of this happened {t}.", "It started {t} when I came home."],
    "excuse": ["{says} {e}.", "When I asked about it, {he} told me {e}.",
        "According to {him}, {e}, which makes no sense to me.",
        "The only thing I hear from {him} is that {e}.", "Now {says} {e} and that is all."],
    "feeling": ["I am {f}.", "I feel so {f} right now.", "All I know is that I am {f}.",
        "It makes me so {f} and I cannot think about other things.",
        "I have been so {f} since then."],
    "ask": ["Should I {q}?", "Do you think I should {q}?", "Would it be wrong to {q}?",
        "Part of me wants to {q}, is that wrong?", "I do not know if I should {q} or not."],
    "excuse+feeling": ["{says} {e}, but I am still {f}."],
    "feeling+ask": ["I am {f} and I do not know if I should {q}.",
        "I am so {f} right now, so should I {q}?"],
}
SMALL_TALK = ["Throwaway because my friends know my main account.",
    "Sorry for the long post, I am typing on the train.", "Sorry if my English is not so good.",
    "Long time reader, first time poster here.", "I never thought I would post here.",
    "I do not know if this is the right place to post.",
    "Nothing like this has happened to me before.", "This has been on my mind all day.",
    "I know this is not a big thing to most of you.", "We live in a small town where people talk.",
    "We were always good friends before this.", "I have not slept much since then.",
    "I will read all of your comments.", "Please be good to me, this is my first post.",
    "My friends are no help at all with this.", "I know that most of you will not believe me."]
TITLES = ["{a} and the {b}", "Help with {a} and a {b}", "Is it me or is {a} wrong here?",
    "I need help with {a}", "I do not know what to do", "What would you do in my place?",
    "What should I do about {a}?", "The story of a {b}", "Please help me",
    "Am I wrong about the {b}?"]
CARELESS = ["see the title", "people are not good", "it is a long story", "read the post",
    "{a} and the {b}", "help with {a}", "I do not know what to do", "thanks for reading", "{ob}"]

NEWS = {
    "event": ["{a} {v} {ob}, the police said.", "{ob} was {p} by {a}, according to the police.",
        "The police found out that {a} {v} {ob}.", "Believe it or not, {a} {v} {ob}.",
        "{ob} was {p} by {a} and many people saw it."],
    "event+time": ["{t} {a} {v} {ob}, the police said.", "{ob} was {p} by {a} {t}."],
    "event+place": ["{a} {v} {ob} at the {l}, the police said.", "{ob} was {p} by {a} at the {l}."],
    "event+place+time": ["{a} {v} {ob} at the {l} {t}, the police said."],
    "place": ["It happened at the {l}.", "People at the {l} saw it happen.",
        "This is a story from the {l}.", "It was at the {l} of all places.",
        "The police were called to the {l}."],
    "time": ["It happened {t}.", "The police were called {t}.", "The news came out {t}.",
        "It started {t}, the police said.", "All of this happened {t}."],
    "excuse": ["{says} {e}.", "{he} told the police that {e}.", "According to {him}, {e}.",
        "The only thing {he} told us is that {e}.", "Now {says} that {e}."],
    "feeling": ["People are {f}.", "People in the town are so {f} right now.",
        "Many people here feel {f}.", "The police said that people are {f}.",
        "It makes people so {f}."],
    "ask": ["The town will {q}.", "Now the town wants to {q}.", "The plan is to {q} this time.",
        "The police said that the town will {q}.", "People think that the town should {q}."],
    "excuse+feeling": ["{says} {e}, but people are still {f}."],
    "feeling+ask": ["People are so {f} that the town will {q}."],
}
NEWS_TALK = ["It was a long day for the police.", "There was a lot of rain all day.",
    "It is the first time that this happened here.", "More news will come out soon.",
    "This is a small town where people talk.", "Many people came to see it.",
    "Nobody was home at the time.", "We will have more on this story soon."]
NEWS_TITLES = ["{a} and the {b}", "The story of a {b}", "The town talks about {a}",
    "Police called about a {b}", "{b} makes the news"]

# -------------------------------------------------------------------------- how summaries say it
# Nine times in ten the first form.

SUMMARY = {
    "event": ["{a} {v} {ob}{where}", "{ob} got {p} by {a}{where}"],
    "excuse": ["{says} {e}.", "{he} told me {e}."],
    "feeling": ["I am {f}.", "I feel {f}."],
    "ask": ["Should I {q}?", "Do you think I should {q}?"],
}
NEWS_SUMMARY = {
    "event": ["{a} {v} {ob}{where}", "{ob} was {p} by {a}{where}"],
    "excuse": ["{says} {e}.", "{he} told the police {e}."],
    "feeling": ["People are {f}.", "People feel {f}."],
    "ask": ["The town will {q}.", "The town wants to {q}."],
}
EXAGGERATIONS = ["Basically my whole life is over now.",
    "Basically everyone hates me and nobody cares.", "Basically the whole world is against me.",
    "Basically nobody has ever had it this bad."]
CHAT = ["Thanks for reading all of this to the very end.",
    "Thanks for any help that you can give me here.",
    "Thanks to everyone who made it this far down here.",
    "Thanks, it feels good to write it all down here."]
NEWS_CHAT = ["The police are looking for people who saw it.", "We will have more on this soon."]

# Share of the authors, then how often each part enters the summary.
Author = namedtuple("Author", "share event place time exaggeration excuse feeling ask chat")
RANTER = Author(.44, 1.0, .80, .10, 1.0, .10, .10, .10, .85)    # what a greedy imitator writes
TELLER = Author(.21, 1.0, .75, .70, .10, .60, .60, .25, .40)
ASKER = Author(.18, 1.0, .60, .30, .10, .40, .60, .90, .40)
HASTY = Author(.17, .00, .00, .00, .50, .20, .95, .10, .80)     # forgets even what happened
REPORTER = Author(1., 1.0, .85, .85, .00, .85, .85, .85, .60)   # news
SLIPS = {"wrong value": .10, "swapped roles": .05, "repeated": .04, "broken off": .04}


# All that a post says, None where it is silent; the owner is "me" or a person, never the actor.
Facts = namedtuple("Facts", "actor verb owner object place time excuse feeling ask")
REDDIT, PRESS = (RANTER, TELLER, ASKER, HASTY), (REPORTER,)
VALUES = Facts([*PRONOUN, *WORKERS], list(PARTICIPLE), ["me", *PRONOUN, *WORKERS], OBJECTS, PLACES,
               TIMES, EXCUSES, FEELINGS, ASKS + PLANS)

# ---------------------------------------------------------------------------------------- writing

def draw_facts(rng, news=False):
    """What happened -> Facts. One post in eight gives no place, one in eight no excuse; one in five
    is about somebody else's thing, so that who did it to whom has to be understood."""
    actor, other = rng.sample(WORKERS if news else list(PRONOUN), 2)
    return Facts(actor=actor, verb=rng.choice(list(PARTICIPLE)),
                 owner="me" if not news and rng.random() < .8 else other,
                 object=rng.choice(OBJECTS),
                 place=rng.choice(PLACES) if rng.random() < .875 else None,
                 time=rng.choice(TIMES),
                 excuse=rng.choice(EXCUSES) if rng.random() < .875 else None,
                 feeling=rng.choice(FEELINGS), ask=rng.choice(PLANS if news else ASKS))


def fill(form, f):
    """A form with its holes filled: "{a} {v} {ob}." -> "My sister sold my neighbor's bike."."""
    news = f.actor in WORKERS
    one = "a" if news else "my"
    he = f"the {f.actor}" if news else PRONOUN[f.actor]
    where = (f" at the {f.place}" if f.place else "") + (f" {f.time}" if f.time else "") + "."
    text = form.format(
        a=f"{one} {f.actor}", v=f.verb, p=PARTICIPLE[f.verb], b=f.object,
        ob=f"my {f.object}" if f.owner == "me" else f"{one} {f.owner}'s {f.object}",
        where=where, l=f.place, t=f.time, e=f.excuse, f=f.feeling, q=f.ask, he=he,
        him=HIM.get(he, he),
        says=f"{he} says" if he != "they" else "they say")
    return text[0].upper() + text[1:]


def write_post(f, rng):
    """The post or article: every fact once, small talk between, the question late -> str."""
    news = f.actor in WORKERS
    forms, talk = (NEWS, NEWS_TALK) if news else (POST, SMALL_TALK)
    said = ["event", *(s for s in ("place", "time", "excuse", "feeling", "ask") if getattr(f, s))]
    for one, two, chance in (("event", "place", .25), ("event", "time", .2), ("feeling", "ask", .2),
                             ("event+place", "time", .3), ("excuse", "feeling", .1)):
        if one in said and two in said and rng.random() < chance:      # two facts, one sentence
            said = [s for s in said if s not in (one, two)] + [f"{one}+{two}"]
    placed = [(rng.random() + .6 * ("ask" in s), fill(rng.choice(forms[s]), f)) for s in said]
    placed += [(rng.random(), s) for s in rng.sample(talk, rng.randint(1, 3) if news else
                                                     rng.randint(2, 5))]
    new_line = .25 * (rng.random() < .3)                               # some write paragraphs
    text = "".join(s + ("\n" if rng.random() < new_line else " ") for _, s in sorted(placed))
    return text.strip()


def ideal(facts):
    """The summary no reader can improve on: every fact of the post, once, in the plainest words."""
    forms = NEWS_SUMMARY if facts.actor in WORKERS else SUMMARY
    parts = ["event", *(s for s in ("excuse", "feeling", "ask") if getattr(facts, s))]
    return " ".join(fill(forms[part][0], facts) for part in parts)


def write_summary(f, rng):
    """What an author makes of the facts: the reference, good or bad -> str, at most 42 tokens."""
    news = f.actor in WORKERS
    authors, forms = (PRESS, NEWS_SUMMARY) if news else (REDDIT, SUMMARY)
    author = rng.choices(authors, [a.share for a in authors])[0]
    slip = rng.choices([*SLIPS, None], [*SLIPS.values(), 1 - sum(SLIPS.values())])[0]
    tells = [s for s in ("place", "time", "excuse", "feeling", "ask")
             if getattr(f, s) and rng.random() < getattr(author, s)]
    if slip == "swapped roles" and f.owner != "me":
        f = f._replace(actor=f.owner, owner=f.actor)
    elif slip in ("wrong value", "swapped roles"):
        f = with_wrong_value(f, rng.choice(["verb", "object", *tells]), rng)
    shown = f._replace(**{s: None for s in ("place", "time") if s not in tells})

    def say(part):
        return fill(forms[part][rng.random() < .1], shown)

    parts = [say("event")] if rng.random() < author.event else []
    parts += [rng.choice(EXAGGERATIONS)] if rng.random() < author.exaggeration else []
    parts += [say(s) for s in tells if s in forms]
    parts += [rng.choice(NEWS_CHAT if news else CHAT)] if rng.random() < author.chat else []
    parts = parts or [say("event")]
    if slip == "repeated":
        parts.insert(1, parts[0])
    while len(re.findall(r"\w+|'s|[^\w\s']", " ".join(parts))) > 42:  # a response has 48 tokens
        parts.pop(rng.randrange(1, len(parts)))
    if slip == "broken off":
        words = parts[-1].split()
        parts[-1] = " ".join(words[:rng.randint(1, len(words) - 1)])
    return " ".join(parts)


def with_wrong_value(facts, slot, rng):
    """The same facts but for one, which is another value of its kind."""
    values = getattr(VALUES, slot)
    if slot == "ask":
        values = PLANS if facts.actor in WORKERS else ASKS
    return facts._replace(**{slot: rng.choice([v for v in values if v != getattr(facts, slot)])})


# ---------------------------------------------------------------------------------------- reading

def either(values):
    """A regular expression for any of these, longest first."""
    return "|".join(sorted((re.escape(v.lower()) for v in values), key=len, reverse=True))


PERSON = f"(?:my|an?|the) ({either(VALUES.actor)})"
OWNED = f"(?:my|(?:my|an?|the) ({either(VALUES.actor)})'s) ({either(OBJECTS)})"
ACTIVE = re.compile(rf"\b{PERSON} (?:who )?({either(PARTICIPLE)}) {OWNED}\b")
PASSIVE = re.compile(rf"\b{OWNED} (?:got|was) ({either(PARTICIPLE.values())})(?: by {PERSON})?\b")
PHRASE = re.compile(rf"\b(?:{either(TIMES + EXCUSES + ASKS + PLANS)})\b")
WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")

SLOT_OF = {v.lower(): (s, v) for s in ("time", "excuse", "ask") for v in getattr(VALUES, s)}
VERB_OF = {v: v for v in PARTICIPLE} | {p: v for v, p in PARTICIPLE.items()}
MENTION = ({p + s: ("person", p) for p in VALUES.actor for s in ("", "'s")}
           | {w: ("act", v) for w, v in VERB_OF.items()} | {o: ("thing", o) for o in OBJECTS}
           | {p: ("place", p) for p in PLACES} | {f: ("feeling", f) for f in FEELINGS}
           | {w: ("pronoun", he) for he, him in HIM.items() for w in (he, him)})


def read(text):
    """What a text states -> set of (slot, value).

    Roles count only where the grammar gives them ("my sister sold my bike", "my bike was sold by my
    sister"). A bare mention is noted too, as person, act or thing: no invention passes unseen.
    """
    text = " ".join(text.lower().split())
    stated = {MENTION[w] for w in MENTION.keys() & WORD.findall(text)}
    stated |= {SLOT_OF[phrase] for phrase in PHRASE.findall(text)}
    events = ACTIVE.findall(text)
    events += [(a, VERB_OF[p], owner, thing) for owner, thing, p, a in PASSIVE.findall(text)]
    for actor, verb, owner, thing in events:
        stated |= {("verb", verb), ("owner", owner or "me"), ("object", thing)}
        stated |= {("actor", actor)} if actor else set()
    return stated


@lru_cache(maxsize=1 << 16)
def facts_of(text):
    """The Facts of a post or article. Raises: Problem when it is not of this world."""
    found = dict(sorted(read(text)))
    if not {"actor", "verb", "owner", "object"} <= found.keys():
        raise Problem(f"toy judge: no event in post {text[:40]!r}; judge real posts by rouge")
    return Facts(*(found.get(slot) for slot in Facts._fields))


def source(record):
    """The text to summarise."""
    return record["article"] if "article" in record else record["post"]


# ---------------------------------------------------------------------------------------- judging

WEIGHT = {"actor": .4, "verb": .4, "owner": .4, "object": .4, "place": 1, "time": 1, "excuse": 1,
          "feeling": 1, "ask": 3}          # readers are asked for advice: the question weighs most
WRONG, EXAGGERATED = .75, .85                # what is left of accuracy after each
CLAIM = re.compile(r"\bbasically\b|life is over|hates me|is against me|ever had it")


class Judgement(NamedTuple):  # 1 (worst) .. 7 (best): the paper's axes (appendix C), and length
    coverage: float
    accuracy: float
    coherence: float
    length: float
    overall: float


def shares(record, summary):
    """The four axes as shares of the best, and whether the question is there -> 4 floats, bool.

        coverage   weight of the post's facts that are stated / weight of all
        accuracy   .75 ^ (values the post does not give) * .85 ^ exaggerations; 0 without any fact
        coherence  .8 ^ defects, see `defects`
        length     words the ideal summary spends on the same facts / words; at most 1
    """
    facts, stated, words = facts_of(source(record)), read(summary), len(summary.split())
    right = [slot for slot in WEIGHT if (slot, getattr(facts, slot)) in stated]
    if not right:
        return (0., 0., .8 ** defects(summary) if words else 0., 0.), False
    possible = sum(w for slot, w in WEIGHT.items() if getattr(facts, slot))
    invented, exaggerated = len(stated - allowed(facts)), len(CLAIM.findall(summary.lower()))
    return (sum(WEIGHT[slot] for slot in right) / possible,
            WRONG ** invented * EXAGGERATED ** exaggerated,
            .8 ** defects(summary),
            min(1., needed(facts, right) / words)), "ask" in right


@lru_cache(maxsize=1 << 16)
def allowed(facts):
    """All a summary may state: the facts, and bare mentions of their people, act and thing."""
    pronouns = [PRONOUN[facts.actor]] if facts.actor in PRONOUN else HIM
    bare = {"person": [facts.actor, facts.owner], "act": [facts.verb], "thing": [facts.object],
            "pronoun": pronouns}
    return {*facts._asdict().items(), *((kind, v) for kind, values in bare.items() for v in values)}


def needed(facts, slots):
    """Words that the ideal summary spends on these facts: "at the gym" 3, "should I move out" 4."""
    news = facts.actor in WORKERS                 # "the nurse says", "the town will": a word more
    frame = {"actor": 1, "owner": facts.owner != "me", "place": 2, "feeling": 2,
             "excuse": 2 + news, "ask": 2 + news}
    return sum(frame.get(slot, 0) + len(getattr(facts, slot).split()) for slot in slots)


def defects(text):
    """Faults of form -> count: unheard words, unheard pairs of words, repetition, a broken end.

    Words of one kind are the same word here (every object is "<thing>"), so that "sold my kayak" is
    as good as "sold my bike"; "<" and ">" are the two ends of a sentence.
    """
    pairs, vocabulary = known()
    faults, trigrams, sentences = 0, [], []
    for sentence, end in re.findall(r"([^.!?]+)([.!?]*)", text.strip()):
        words = WORD.findall(sentence.lower())
        kinds = ["<", *(KIND.get(w, w) for w in words), *(">" if end else "")]
        faults += sum(pair not in pairs for pair in zip(kinds, kinds[1:], strict=False))
        faults += sum(kind not in vocabulary for kind in kinds) + 3 * (not end)
        trigrams += zip(words, words[1:], words[2:], strict=False)
        sentences.append(words)
    again = sum(sentence in sentences[:i] for i, sentence in enumerate(sentences))
    return faults + len(trigrams) - len(set(trigrams)) + 2 * again


KIND = {w: f"<{kind}>" for w, (kind, _) in MENTION.items() if kind != "pronoun"}
KIND |= {p + s: f"<{kind}{s}>" for kind, people in (("person", PRONOUN), ("worker", WORKERS))
         for p in people for s in ("", "'s")}


@lru_cache(maxsize=1)
def known():
    """Every pair of neighbouring kinds in a sample of whole toy sentences -> set, set of kinds."""
    pairs, rng = set(), random.Random(0)
    for i in range(2000):
        facts = draw_facts(rng, news=i % 3 == 0)
        text = " ".join([write_post(facts, rng), ideal(facts), write_summary(facts, rng)])
        for sentence in re.findall(r"([^.!?]+)[.!?]", text):          # a broken end teaches nothing
            kinds = ["<", *(KIND.get(w, w) for w in WORD.findall(sentence.lower())), ">"]
            pairs |= set(zip(kinds, kinds[1:], strict=False))
    return pairs, {kind for pair in pairs for kind in pair}


def blend(axes, coverage=1., accuracy=1., coherence=.5, length=.25):
    """One grade from four shares: a weighted product, no axis makes up for another -> 1..7."""
    return 1 + 6 * math.prod(map(pow, axes, (coverage, accuracy, coherence, length)))


def gold(record, summary):
    """The true quality of any text as a summary of a toy post -> Judgement."""
    axes, _ = shares(record, summary)
    return Judgement(*(1 + 6 * a for a in axes), overall=blend(axes))


# --------------------------------------------------------------------------------------- labellers

class Taste(NamedTuple):      # one labeller: exponents as in `blend`, then points given away freely
    worker: str
    coverage: float = 1.
    accuracy: float = 1.
    coherence: float = .5
    length: float = .25
    question: float = 0.      # for stating the question, however badly the rest
    first: float = 0.         # for being shown first


LABELLERS = [Taste("toy-ada"), Taste("toy-ben", length=1.), Taste("toy-cleo", accuracy=.5),
             Taste("toy-dan", question=.4), Taste("toy-eve", coherence=1.),
             Taste("toy-finn", coverage=.6, first=.1), Taste("toy-gus", coverage=1.3, length=.1),
             Taste("toy-hana", accuracy=1.6, question=-.2)]
AGREEMENT = .73               # of two labellers: section 3.3


def preference(taste, seen):
    """How much better this labeller likes the second of two `shares`, in points of 6."""
    a, b = (blend(axes, *taste[1:5]) + taste.question * asks for axes, asks in seen)
    return b - a - taste.first


@lru_cache(maxsize=1)
def sharpness():
    """The scale that makes two labellers agree on 73 %: P(second) = sigmoid(scale * preference).

    Bisection on two authors' summaries of each of 1,000 posts. The agreement is an expectation over
    every pair of labellers; nothing is tossed.
    """
    rng, liking = random.Random(1), []
    for _ in range(1000):
        facts = draw_facts(rng)
        record = {"post": write_post(facts, rng)}
        seen = [shares(record, write_summary(facts, rng)) for _ in range(2)]
        liking.append([preference(taste, seen) for taste in LABELLERS])
    liking, n = np.array(liking), len(LABELLERS)                       # (pairs, labellers)

    def agreed(scale):
        p = 1 / (1 + np.exp(-scale * liking))
        both = sum(q.sum(1) ** 2 - (q * q).sum(1) for q in (p, 1 - p))  # ordered pairs of people
        return both.mean() / (n * (n - 1))

    low, high = 0., 50.
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if agreed(middle) < AGREEMENT else (low, middle)
    return low


def decide(taste, record, texts, rng):
    """What one person says at one moment -> dict(choice, worker, confidence), OpenAI's 9 points.

    The noise is logistic, which is what makes the choice a sigmoid of the preference.
    """
    seen = [shares(record, text) for text in texts]
    felt = sharpness() * preference(taste, seen) + rng.logistic()
    strength = 1 + min(3, int(abs(felt) / 1.2))                        # 5 would be indifference
    return {"choice": int(felt > 0), "worker": taste.worker,
            "confidence": 5 + strength if felt > 0 else 5 - strength}


def label(record, texts, seed, row, asked=()):
    """One labeller compares two summaries -> {"choice": 0|1, "worker": name, "confidence": 1..9}.

    Who judges, and how they waver, is a function of (seed, row) and of asked: the names of those
    who had this pair before, and are not asked again. Somebody must be left.
    """
    rng = generator(seed, "label", row=row)
    taste = LABELLERS[rng.integers(len(LABELLERS))]
    while taste.worker in asked:                           # so each of the others is as likely
        taste = LABELLERS[rng.integers(len(LABELLERS))]
    return decide(taste, record, texts, rng)


def agreement(pairs, seed):
    """Share of (record, (text, text)) on which two different labellers choose alike."""
    same = 0
    for row, (record, texts) in enumerate(pairs):
        rng = generator(seed, "agreement", row=row)
        two = rng.choice(len(LABELLERS), 2, replace=False)
        same += len({decide(LABELLERS[i], record, texts, rng)["choice"] for i in two}) == 1
    return same / len(pairs)


# --------------------------------------------------------------------------------------- a data set

def split_of(facts):
    """The event decides the split, so no event of a test post was ever seen: 80 : 10 : 10."""
    return {0: "valid", 1: "test"}.get(zlib.crc32(" ".join(facts[:4]).encode()) % 10, "train")


def subreddit_of(f, rng):
    """A place to ask, loosely tied to the question and to the person."""
    if f.ask in ("call the police", "get a lawyer", "go to court") and rng.random() < .6:
        return "legaladvice"
    if f.ask == "set a trap" and rng.random() < .6:
        return "pettyrevenge"
    if f.actor in ("boss", "coworker") and rng.random() < .5:
        return "jobs"
    return rng.choices(["relationships", "relationship_advice", "AskReddit", "tifu", "offmychest"],
                       [.5, .2, .1, .1, .1])[0]


def seeded(seed, purpose, row):
    """Python's generator, quicker than numpy's at many small choices, seeded by ours."""
    return random.Random(int(generator(seed, purpose, row=row).integers(1 << 62)))


def draw(seed, split, row, news=False):
    """Record number `row` of a split, a function of the arguments alone -> Facts, record."""
    rng = seeded(seed, f"toy {split} {'news' if news else 'posts'}", row)
    facts = draw_facts(rng, news)
    while split_of(facts) != ("train" if split == "pretrain" else split):
        facts = draw_facts(rng, news)
    title = fill(rng.choice(NEWS_TITLES if news else TITLES), facts)
    text, summary = write_post(facts, rng), write_summary(facts, rng)
    if news:
        return facts, {"id": f"toy-news-{split}-{row}", "site": "toynews", "title": title,
                       "article": text, "summary": summary}
    return facts, {"id": f"toy-{split}-{row}", "subreddit": subreddit_of(facts, rng),
                   "title": title, "post": text, "summary": summary}


def pretraining_text(seed, row):
    """A post or an article as found on the web -> record.

    Most come back to some facts at the end, in any order, as an EDIT: from these a network learns
    to look back and copy. One in ten ends with a careless TL;DR. The events are those of the train
    split; the SUBREDDIT: ... template never occurs.
    """
    facts, record = draw(seed, "pretrain", row, news=row % 2 == 1)
    rng = seeded(seed, "toy pretrain ends", row)
    text = record["title"] + "\n\n" if rng.random() < .5 else ""
    text += source(record)
    if rng.random() < .9:
        forms = NEWS_SUMMARY if facts.actor in WORKERS else SUMMARY
        parts = ["event", *(s for s in ("excuse", "feeling", "ask") if getattr(facts, s))]
        text += "\n\nEDIT: " + " ".join(fill(rng.choice(forms[s]), facts)
                                        for s in rng.sample(parts, rng.randint(2, len(parts))))
    text += "\n\nTL;DR: " + fill(rng.choice(CARELESS), facts) if rng.random() < .1 else ""
    return {"id": f"toy-pretrain-{row}", "text": text}


@dataclass(frozen=True)
class Config:
    out: str = flag("data/toy", "folder to write; must not exist")
    seed: int = flag(0, "another seed, another town")
    posts: int = flag(12000, "training posts; the other files follow from it")


def main(argv=None):
    """Write posts, news, and plain text to pretrain on. Raises: Problem when --out exists."""
    cfg = parse(Config, {}, argv, __doc__)
    out, held_out = Path(cfg.out), max(1000, cfg.posts // 12)
    if cfg.posts < 4:
        raise Problem(f"--posts {cfg.posts}: a town needs at least 4")
    check_new(out)
    unfinished = out.with_name(out.name + ".unfinished")               # renamed when complete
    (unfinished / "news").mkdir(parents=True, exist_ok=True)
    for split, posts, articles in (("train", cfg.posts, cfg.posts // 4), ("valid", held_out, 500),
                                   ("test", held_out, 500)):
        for folder, n in ((unfinished, posts), (unfinished / "news", articles)):
            write_jsonl(folder / f"{split}.jsonl",
                        [draw(cfg.seed, split, i, folder.name == "news")[1] for i in range(n)])
        print(f"{split:9} {posts:6} posts {articles:5} articles")
    texts = [pretraining_text(cfg.seed, i) for i in range(cfg.posts * 3 // 2)]
    write_jsonl(unfinished / "pretrain.jsonl", texts)
    os.rename(unfinished, out)
    print(f"pretrain  {len(texts):6} texts\nwrote {out}")


if __name__ == "__main__":
    entry(main)
