"""Chapter 2. A small world of posts whose best summary is known, and its judge.

A test run has no people to judge summaries. So this chapter makes up posts whose facts it knows:
somebody broke, sold or hid something, and the victim asks Reddit what to do.

    Facts(actor="cousin", verb="broke", owner="roommate", object="car", place="station",
          time="on Monday", excuse="it was the law", feeling="shocked", ask="let it go")
    post      On Monday my roommate's car got broken by my cousin at the station. I will read all
              of your comments. We live in a small town where people talk. I am so shocked right
              now, so should I let it go? When I asked about it, they told me it was the law.
    author    My cousin broke my roommate's car at the station. Basically everyone hates me and
              nobody cares.
    ideal     My cousin broke my roommate's car at the station on Monday. They say it was the law.
              I am shocked. Should I let it go?

`gold` is the true judge. It finds the facts in any text and measures `shares` from 0 to 1: the
paper's axes (appendix C), and length. They are multiplied, so that no axis makes up for another:

    overall = 1 + 6 * coverage * accuracy * coherence^(1/2) * length^(1/4)
    author    1 + 6 *  2.6/8.6 *   .85^2  *         1       * (9/16)^(1/4)  = 2.13
    ideal     1 + 6 *     1    *     1    *         1       *    1          = 7

Most authors leave out the question, many exaggerate or chat: not what readers want. A model that
imitates them writes mediocre summaries, and human feedback has something to teach.

    python toy.py --out data/mine         (10 s; data/mine/news is a second domain, to transfer to)

All words and sentences are in toy.json: change them there for another world.
Before: data.py, the formats.    After: model.py.
"""
import json
import random
import re
import zlib
from collections import namedtuple
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from data import text_of
from runtime import Problem, flag, generator, launch, write

TOY = json.loads(Path(__file__).with_name("toy.json").read_text(encoding="utf-8"))
# Two domains, or kinds of text: the actor tells which, as each has its own people and sentences.
POSTS, NEWS = SimpleNamespace(**TOY["posts"]), SimpleNamespace(**TOY["news"])
DOMAIN_OF = {person: domain for domain in (POSTS, NEWS) for person in domain.people}
PARTICIPLE, HIM = TOY["participle"], TOY["him"]                   # "broke": "broken", "she": "her"
VALUES = TOY["values"] | {"actor": list(DOMAIN_OF), "verb": list(PARTICIPLE),
                          "ask": POSTS.ask + NEWS.ask}
# All that a post says, None where it says nothing. The owner is "me" or a person, not the actor.
Facts = namedtuple("Facts", "actor verb owner object place time excuse feeling ask")
OWN_SENTENCE = ("excuse", "feeling", "ask")
DETAILS = ("place", "time", *OWN_SENTENCE)                # a summary tells these two with the event

# ----------------------------------------------------------------------------------------- writing

def draw_facts(rng, domain=POSTS):
    """What happened -> Facts. One post in eight gives no place, one in eight no excuse. One in five
    (news: each) is about somebody else's thing: one has to understand who did it to whom."""
    actor, other = rng.sample(list(domain.people), 2)
    return Facts(actor=actor, verb=rng.choice(VALUES["verb"]),
                 owner="me" if domain.my == "my" and rng.random() < .8 else other,
                 object=rng.choice(VALUES["object"]),
                 place=rng.choice(VALUES["place"]) if rng.random() < .875 else None,
                 time=rng.choice(VALUES["time"]),
                 excuse=rng.choice(VALUES["excuse"]) if rng.random() < .875 else None,
                 feeling=rng.choice(VALUES["feeling"]), ask=rng.choice(domain.ask))


def given(facts, slots):
    """Those of the slots about which the post says something."""
    return [slot for slot in slots if getattr(facts, slot)]


def with_wrong_value(facts, slot, rng):
    """The same facts except for one, which is another value of its kind."""
    values = DOMAIN_OF[facts.actor].ask if slot == "ask" else VALUES[slot]
    return facts._replace(**{slot: rng.choice([v for v in values if v != getattr(facts, slot)])})


@lru_cache(maxsize=16)                  # one post says the same facts in six sentences
def holes(facts):
    """What fills the holes of a form; toy.json lists them."""
    domain = DOMAIN_OF[facts.actor]
    whose = "my" if facts.owner == "me" else f"{domain.my} {facts.owner}'s"
    where = f" at the {facts.place}" if facts.place else ""
    where += f" {facts.time}" if facts.time else ""
    he = domain.people[facts.actor]
    return {**facts._asdict(), "who": f"{domain.my} {facts.actor}", "whose": whose,
            "what": f"{whose} {facts.object}", "participle": PARTICIPLE[facts.verb], "where": where,
            "he": he, "him": HIM.get(he, he), "says": f"{he} say" if he == "they" else f"{he} says"}


def say(form, facts):
    """A form with its holes filled: "{who} {verb} {what}." -> "My sister sold my boss's bike."."""
    text = form.format_map(holes(facts))
    return text[0].upper() + text[1:]


def write_post(facts, rng):
    """The post: every fact once, in any order but the question late, among small talk -> str."""
    domain = DOMAIN_OF[facts.actor]
    topics = ["event", *given(facts, DETAILS)]
    for one, two, chance in TOY["joined"]:                        # two facts in one sentence
        if one in topics and two in topics and rng.random() < chance:
            topics = [topic for topic in topics if topic not in (one, two)] + [f"{one}+{two}"]
    placed = [(rng.random() + (.6 if "ask" in topic else 0.),       # (position, sentence)
               say(rng.choice(domain.post_forms[topic]), facts)) for topic in topics]
    for sentence in rng.sample(domain.small_talk, rng.randint(*domain.small_talk_count)):
        placed.append((rng.random(), sentence))
    new_line = .25 if rng.random() < .3 else 0.                     # some write paragraphs
    return "".join(sentence + ("\n" if rng.random() < new_line else " ")
                   for _, sentence in sorted(placed)).strip()


def ideal(facts):
    """The best summary: every fact of the post once, in the usual words."""
    forms = DOMAIN_OF[facts.actor].usual
    return " ".join(say(forms[part], facts) for part in ["event", *given(facts, OWN_SENTENCE)])


def write_summary(facts, rng):
    """The author's summary, good or bad -> str, at most 42 tokens."""
    domain = DOMAIN_OF[facts.actor]
    authors, mistakes = list(domain.authors.values()), TOY["mistakes"]
    author = rng.choices(authors, [author["share"] for author in authors])[0]
    mistake = rng.choices(list(mistakes), list(mistakes.values()))[0]
    told = [slot for slot in given(facts, DETAILS) if rng.random() < author[slot]]
    if mistake == "swapped roles" and facts.owner != "me":
        facts = facts._replace(actor=facts.owner, owner=facts.actor)
    elif mistake in ("wrong value", "swapped roles"):
        facts = with_wrong_value(facts, rng.choice(["verb", "object", *told]), rng)
    facts = facts._replace(**{slot: None for slot in DETAILS if slot not in told})

    def sentence(part):
        forms = domain.rare if rng.random() < .1 else domain.usual
        return say(forms[part], facts)

    parts = [sentence("event")] if rng.random() < author["event"] else []
    if rng.random() < author["exaggeration"]:
        parts.append(rng.choice(TOY["exaggerations"]))
    parts += [sentence(part) for part in given(facts, OWN_SENTENCE)]
    if rng.random() < author["chat"]:
        parts.append(rng.choice(domain.chat))
    parts = parts or [sentence("event")]
    if mistake == "repeated":
        parts.insert(1, parts[0])
    while len(re.findall(r"\w+|'s|[^\w\s']", " ".join(parts))) > 42:   # of 48 tokens, with room
        parts.pop(rng.randrange(1, len(parts)))
    if mistake == "cut short":
        words = parts[-1].split()
        parts[-1] = " ".join(words[:rng.randint(1, len(words) - 1)])
    return " ".join(parts)


# ----------------------------------------------------------------------------------------- reading
# What a word states by itself, a row for each kind: "broken" states the act "broke".
WORDS = {"person": {word: person for person in DOMAIN_OF for word in (person, person + "'s")},
         "act": {word: verb for verb, other in PARTICIPLE.items() for word in (verb, other)},
         "thing": {word: word for word in VALUES["object"]},
         "place": {word: word for word in VALUES["place"]},
         "feeling": {word: word for word in VALUES["feeling"]},
         "pronoun": {word: he for he, him in HIM.items() for word in (he, him)}}
MENTIONS = {word: (kind, value) for kind, words in WORDS.items() for word, value in words.items()}
WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
PHRASES = {v.lower(): (slot, v) for slot in ("time", "excuse", "ask") for v in VALUES[slot]}
PHRASE = re.compile(rf"\b(?:{'|'.join(sorted(PHRASES, reverse=True))})\b")
# "my boss sold my aunt's bike", and "my aunt's bike was sold by my boss"
PERSON = f"(?:my|an?|the) ({'|'.join(DOMAIN_OF)})"
OWNED = f"(?:my|{PERSON}'s) ({'|'.join(VALUES['object'])})"
ACTIVE = re.compile(rf"\b{PERSON} (?:who )?({'|'.join(PARTICIPLE)}) {OWNED}\b")
PASSIVE = re.compile(rf"\b{OWNED} (?:got|was) ({'|'.join(PARTICIPLE.values())})(?: by {PERSON})?\b")


@lru_cache(maxsize=1 << 14)
def statements(text):
    """All that a text states -> set of (slot, value). "My boss sold my bike." states actor boss,
    verb sold, owner me, object bike; and, as its words would in any order: person boss, act sold,
    thing bike."""
    text = " ".join(text.lower().split())
    found = {MENTIONS[word] for word in MENTIONS.keys() & WORD.findall(text)}
    found |= {PHRASES[phrase] for phrase in PHRASE.findall(text)}
    events = ACTIVE.findall(text) + [(actor, WORDS["act"][participle], owner, thing)
                                     for owner, thing, participle, actor in PASSIVE.findall(text)]
    for actor, verb, owner, thing in events:
        found |= {("actor", actor), ("verb", verb), ("owner", owner or "me"), ("object", thing)}
    return found - {("actor", "")}                                  # of "my bike got sold"


def facts_of(text):
    """The Facts of a post or article. Raises: Problem when it is not of this world."""
    found = dict(sorted(statements(text)))      # one value a slot; of two, the last by name
    if not {"actor", "verb", "owner", "object"} <= found.keys():
        raise Problem(f"toy judge: no event in post {text[:40]!r}; judge real posts by rouge")
    return Facts(*(found.get(slot) for slot in Facts._fields))


# ----------------------------------------------------------------------------------------- judging

WEIGHT = {"actor": .4, "verb": .4, "owner": .4, "object": .4, "place": 1, "time": 1, "excuse": 1,
          "feeling": 1, "ask": 3}               # the post asks for advice: the question weighs most
EXAGGERATION = re.compile("|".join(TOY["signs_of_exaggeration"]))
Judgement = namedtuple("Judgement", "coverage accuracy coherence length overall")     # each 1 to 7


def gold(record, summary):
    """The true quality of any text as a summary of a toy post -> Judgement."""
    axes, _ = shares(record, summary)
    return Judgement(*(1 + 6 * share for share in axes), overall=blend(axes))


def blend(axes, coverage=1., accuracy=1., coherence=.5, length=.25):
    """One grade from four shares, each to its power: a weighted product -> 1..7."""
    stated, right, tidy, short = axes
    return 1 + 6 * (stated ** coverage * right ** accuracy * tidy ** coherence * short ** length)


def shares(record, summary):
    """The four axes as shares of the best, and whether the question is there -> 4 floats, bool.

        coverage   weight of the post's facts that are stated / weight of all
        accuracy   .75 ^ (statements made up) * .85 ^ (signs of exaggeration); 0 without any fact
        coherence  .8 ^ defects; 0 without any word
        length     words that the ideal summary has for the same facts / words; at most 1
    """
    post, stated, words = text_of(record), statements(summary), summary.split()
    facts = facts_of(post)
    domain = DOMAIN_OF[facts.actor]
    right = [slot for slot in WEIGHT if (slot, getattr(facts, slot)) in stated]
    coherence = .8 ** defects(summary) if words else 0.
    if not right:
        return (0., 0., coherence, 0.), False
    coverage = sum(WEIGHT[s] for s in right) / sum(WEIGHT[s] for s in given(facts, WEIGHT))
    he = domain.people[facts.actor]                                         # a nurse may be any
    pronouns = {("pronoun", pronoun) for pronoun in ([he] if he in HIM else HIM)}
    made_up = stated - statements(post) - pronouns
    accuracy = .75 ** len(made_up) * .85 ** len(EXAGGERATION.findall(summary.lower()))
    # "my sister" 2 words, "sold" 1, "my boss's" 2, "bike" 1, "at the gym" 3, "Should I move out?" 4
    needed = say(" ".join(domain.usual[slot] for slot in right), facts).split()
    return (coverage, accuracy, coherence, min(1., len(needed) / len(words))), "ask" in right


def defects(text):
    """Faults of form -> count. The grammar is a bigram model: a word, or a pair of neighbours, is
    right if it occurs in a sample of this world's texts."""
    usual = grammar()
    count, trigrams, before = 0, [], []
    for words, kinds in sentences_of(text):
        # an unknown word, or an unknown pair, as "<act> <thing>" in "sold bike": 1
        count += sum(item not in usual for item in [*kinds, *pairwise(kinds)])
        count += 0 if kinds[-1] == ">" else 3                       # a sentence without its end
        count += 2 if words in before else 0                        # a whole sentence said before
        before.append(words)
        trigrams += zip(words, words[1:], words[2:], strict=False)
    return count + len(trigrams) - len(set(trigrams))               # three words said before: 1


@lru_cache(maxsize=1)
def grammar():
    """All words and pairs of neighbours in 2,000 posts or articles and their summaries -> set."""
    usual, rng = set(), random.Random(0)
    for i in range(2000):
        facts = draw_facts(rng, NEWS if i % 3 == 0 else POSTS)
        text = f"{write_post(facts, rng)} {ideal(facts)} {write_summary(facts, rng)}"
        for _, kinds in sentences_of(text):
            if kinds[-1] == ">":                # what is cut short is no example
                usual.update(kinds, pairwise(kinds))
    return usual


# A word's kind: "bike" is a <thing>, "boss's" a <posts person's>. A word of no kind is itself.
KIND = {word: f"<{kind}>" for word, (kind, _) in MENTIONS.items() if kind != "pronoun"}
KIND |= {word: f"<{DOMAIN_OF[person].name} {word.replace(person, 'person')}>"
         for word, person in WORDS["person"].items()}


def sentences_of(text):
    """Yield each sentence's words and their kinds. Words of one kind are equal to the grammar, as
    "my harp" to "my bike": "My boss sold." -> ["<", "my", "<posts person>", "<act>", ">"]."""
    for sentence, end in re.findall(r"([^.!?]+)([.!?]*)", text.strip()):
        words = WORD.findall(sentence.lower())
        kinds = ["<", *(KIND.get(word, word) for word in words)]
        yield words, [*kinds, ">"] if end else kinds


# -------------------------------------------------------------------------------------- a data set

def seeded(seed, purpose, row):
    """Python's random numbers, quicker than numpy's at many small choices, seeded by ours."""
    return random.Random(int(generator(seed, purpose, row=row).integers(1 << 62)))


def make_record(seed, split, row, domain=POSTS):
    """Record number `row` of a split, a function of the arguments alone -> Facts, record."""
    rng = seeded(seed, f"toy {split} {domain.name}", row)
    facts = draw_facts(rng, domain)
    # The event decides about the split, 80 : 10 : 10: no event of a test post is in another split.
    tenths = {"valid": [0], "test": [1]}.get(split, range(2, 10))
    while zlib.crc32(" ".join(facts[:4]).encode()) % 10 not in tenths:
        facts = draw_facts(rng, domain)
    title = say(rng.choice(domain.titles), facts)
    text, summary = write_post(facts, rng), write_summary(facts, rng)
    # "legaladvice" rather than "relationships" if the victim wants a lawyer
    sites = [site for value, site, chance in domain.site_for
             if value in (facts.ask, facts.actor) and rng.random() < chance]
    sites += rng.choices(list(domain.sites), list(domain.sites.values()))
    return facts, {"id": f"{domain.id}-{split}-{row}", domain.site_field: sites[0],
                   "title": title, domain.text_field: text, "summary": summary}


def pretraining_text(seed, row):
    """A post or an article as found on the web, with an event of the train split -> record. Most
    repeat some facts at the end, in any order, as an EDIT: from these a network learns to look back
    and copy. One in ten ends with a useless TL;DR. The template SUBREDDIT: never occurs."""
    domain = NEWS if row % 2 == 1 else POSTS
    facts, record = make_record(seed, "pretrain", row, domain)
    rng = seeded(seed, "toy pretrain ends", row)
    text = record["title"] + "\n\n" if rng.random() < .5 else ""
    text += record[domain.text_field]
    if rng.random() < .9:
        parts = ["event", *given(facts, OWN_SENTENCE)]
        again = [say(rng.choice([domain.usual, domain.rare])[part], facts)
                 for part in rng.sample(parts, rng.randint(2, len(parts)))]
        text += "\n\nEDIT: " + " ".join(again)
    if rng.random() < .1:
        text += "\n\nTL;DR: " + say(rng.choice(TOY["useless_summaries"]), facts)
    return {"id": f"toy-pretrain-{row}", "text": text}


@dataclass(frozen=True)
class Config:
    out: str = flag("data/toy", "folder to write", what="NEW DIR")
    seed: int = flag(0, "another seed, other posts")
    posts: int = flag(12000, "training posts; the other files follow from it", least=4)


def make_data(cfg):
    """Write posts, news, and plain text to pretrain on."""
    out = Path(cfg.out)
    unfinished = out.with_name(out.name + ".unfinished")               # renamed when complete
    held_out = max(1000, cfg.posts // 12), 500
    for split in ("train", "valid", "test"):
        posts, articles = (cfg.posts, cfg.posts // 4) if split == "train" else held_out
        for domain, count in ((POSTS, posts), (NEWS, articles)):
            records = [make_record(cfg.seed, split, row, domain)[1] for row in range(count)]
            write(unfinished / domain.folder / f"{split}.jsonl", records)
        print(f"{split:9} {posts:6} posts {articles:5} articles")
    texts = [pretraining_text(cfg.seed, row) for row in range(cfg.posts * 3 // 2)]
    write(unfinished / "pretrain.jsonl", texts)
    unfinished.rename(out)
    print(f"pretrain  {len(texts):6} texts\nwrote {out}")


def main(argv=None):
    launch(make_data, Config, argv, __doc__)


if __name__ == "__main__":
    main()
