"""Chapter 2: the world can be read back, its judge is hard to fool, its authors are mediocre."""
import itertools
import json
import random
import re

import pytest

import toy
from runtime import Problem

PAIRS = [toy.make_record(0, "test", row) for row in range(600)]
NEWS = [toy.make_record(0, "test", row, toy.NEWS) for row in range(200)]
EMPTY = dict(place=None, time=None, excuse=None, feeling=None, ask=None)


def text_of(record):
    """A post, or an article."""
    return record.get("article") or record["post"]


def overall(record, text):
    """The judge's grade."""
    return toy.gold(record, text).overall


def share_preferred(write):
    """Share of posts on which `write(facts, rng)` beats the reference; ties count half."""
    rng, wins = random.Random(0), 0.
    for facts, record in PAIRS:
        a, b = overall(record, write(facts, rng)), overall(record, record["summary"])
        wins += .5 if abs(a - b) < 1e-9 else a > b
    return wins / len(PAIRS)


def usual(facts, rng):
    """What most authors write, without a mistake: the event, an exaggeration, thanks."""
    event = toy.ideal(facts._replace(**EMPTY | {"place": facts.place}))
    return " ".join([event, rng.choice(toy.TOY["exaggerations"]), rng.choice(toy.POSTS.chat)])


def allowed(facts):
    """All that a text may state about these facts: they, their words alone, the actor's pronoun."""
    he = toy.DOMAIN_OF[facts.actor].people[facts.actor]
    return {*facts._asdict().items(), ("person", facts.actor), ("person", facts.owner),
            ("act", facts.verb), ("thing", facts.object),
            *(("pronoun", pronoun) for pronoun in ([he] if he in toy.HIM else toy.HIM))}


def salad(text, rng):
    """The same words in another order."""
    words = text.rstrip(".?").split()
    return " ".join(rng.sample(words, len(words))) + "."


# ------------------------------------------------------------------------------- reading the world

def test_the_reader_recovers_every_fact_of_a_post():
    rng = random.Random(0)
    for domain in [toy.POSTS] * 2000 + [toy.NEWS] * 1000:
        facts = toy.draw_facts(rng, domain)
        for text in (toy.write_post(facts, rng), toy.ideal(facts)):
            assert toy.facts_of(text) == facts, text
            assert toy.statements(text) <= allowed(facts), text
        told = {(slot, value) for slot, value in facts._asdict().items() if value}
        assert toy.statements(toy.write_post(facts, rng)) >= told | {
            ("person", facts.actor), ("act", facts.verb), ("thing", facts.object)}


def test_the_example_at_the_top_is_what_the_functions_give():
    facts, record = toy.make_record(0, "test", 1439)
    shown = " ".join(toy.__doc__.split())
    assert str(facts).replace("'", '"') in shown
    assert f"post {record['post']} author {record['summary']} ideal {toy.ideal(facts)}" in shown
    axes, asks = toy.shares(record, record["summary"])
    assert axes == pytest.approx((2.6 / 8.6, .85 ** 2, 1, 9 / 16)) and not asks
    assert round(overall(record, record["summary"]), 2) == 2.13
    assert overall(record, toy.ideal(facts)) == 7


def test_active_and_passive_tell_who_did_it():
    done = {("actor", "sister"), ("verb", "sold"), ("owner", "neighbor"), ("object", "bike")}
    assert done <= toy.statements("My sister sold my neighbor's bike.")
    assert done <= toy.statements("so MY NEIGHBOR'S BIKE\nwas sold by my sister")
    assert not done & toy.statements("My neighbor sold my sister's guitar.") - {("verb", "sold")}
    assert ("actor", "sister") not in toy.statements("sister sold neighbor bike")


def test_small_talk_chat_and_titles_state_no_fact():
    idle = toy.TOY["exaggerations"] + [text for domain in (toy.POSTS, toy.NEWS)
                                         for text in domain.small_talk + domain.chat]
    assert [text for text in idle if toy.statements(text)] == []
    for _, record in PAIRS + NEWS:
        assert overall(record, record["title"]) < 1.4


def test_a_value_belongs_to_one_slot():
    values = [v.lower() for values in toy.VALUES.values() for v in values]
    assert len(values) == len(set(values)) and not set(toy.POSTS.people) & set(toy.NEWS.people)


def test_every_form_of_the_data_file_states_its_facts_and_nothing_else():
    rng = random.Random(0)
    for domain in (toy.POSTS, toy.NEWS):
        forms = [*domain.post_forms.items(),
                 *((part, (domain.usual[part], domain.rare[part])) for part in domain.rare)]
        for topic, form in ((topic, form) for topic, several in forms for form in several):
            facts = toy.draw_facts(rng, domain)._replace(place="gym", excuse="it was a joke")
            slots = topic.replace("event", "actor+verb+owner+object").split("+")
            told = toy.statements(toy.say(form, facts))
            assert {(slot, getattr(facts, slot)) for slot in slots} <= told, form
            assert told <= allowed(facts), form
        for author in domain.authors.values():
            assert domain.usual.keys() == {"event", *toy.Facts._fields}
            assert author.keys() == {"share", "event", "exaggeration", "chat", *toy.DETAILS}


def test_a_post_from_elsewhere_is_a_problem_in_one_line():
    with pytest.raises(Problem) as problem:
        toy.gold({"post": "I like trains."}, "Trains.")
    assert "\n" not in str(problem.value) and "trains" in str(problem.value)


def test_the_world_has_few_words_and_posts_of_usual_length():
    texts = [text_of(r) + " " + r["title"] + " " + r["summary"] for _, r in PAIRS + NEWS]
    assert len({w for text in texts for w in re.findall(r"[a-z]+", text.lower())}) < 600
    lengths = sorted(len(r["post"].split()) for _, r in PAIRS)
    assert lengths[6] > 40 and lengths[-6] < 115
    assert max(len(re.findall(r"\w+|'s|[^\w\s']", r["summary"])) for _, r in PAIRS + NEWS) <= 42


# ---------------------------------------------------------------------------------------- the judge

def test_the_ideal_summary_comes_first():
    for facts, record in PAIRS + NEWS:
        assert toy.gold(record, toy.ideal(facts)) == (7., 7., 7., 7., 7.)
    assert share_preferred(lambda facts, rng: toy.ideal(facts)) >= .96


def test_each_kind_of_damage_costs():
    rng = random.Random(0)
    for facts, record in PAIRS[:150] + NEWS[:50]:
        best, post = toy.ideal(facts), text_of(record)
        swapped = facts._replace(actor=facts.owner, owner=facts.actor)
        if facts.owner == "me":
            swapped = facts._replace(owner="boss" if facts.actor != "boss" else "wife")
        damaged = {
            "no question": toy.ideal(facts._replace(ask=None)),
            "swapped": toy.ideal(swapped),
            "invented": best + " My cousin's tuba got lost at the castle by my aunt.",
            "repetition": best + " " + toy.ideal(facts._replace(**EMPTY)),
            "twice": best + " " + best,
            "small talk": best + " " + rng.choice(toy.POSTS.small_talk),
            "chat": best + " " + rng.choice(toy.POSTS.chat),
            "one more word": best + " Thanks.",
            "exaggeration": best + " " + rng.choice(toy.TOY["exaggerations"]),
            "cut short": best.rsplit(" ", 1)[0], "unfinished": best[:-1],
            "empty": "", "spaces": " \n ",
            "gibberish": "qwe rty uio pas dfg.", "title": record["title"],
            "lead": " ".join(re.findall(r"[^.?]+[.?]", post)[:3]), "post": post,
            "salad": salad(best, rng),
        }
        for slot in ("actor", "verb", "object", "place", "time", "excuse", "feeling", "ask"):
            if getattr(facts, slot):
                damaged["wrong " + slot] = toy.ideal(toy.with_wrong_value(facts, slot, rng))
        for kind, text in damaged.items():
            assert overall(record, text) < 6.999, (kind, text)
            assert all(1 <= grade <= 7 for grade in toy.gold(record, text))


def test_a_wrong_value_costs_more_than_leaving_it_out():
    rng = random.Random(0)
    for facts, record in PAIRS[:200]:
        for slot in ("time", "feeling", "ask"):
            wrong = toy.with_wrong_value(facts, slot, rng)
            silent = facts._replace(**{slot: None})
            assert overall(record, toy.ideal(wrong)) < overall(record, toy.ideal(silent))


def test_every_further_fact_helps():
    for facts, record in PAIRS[:200]:
        told, grades = facts._replace(**EMPTY), []
        for slot in EMPTY:
            grades.append(overall(record, toy.ideal(told)))
            told = told._replace(**{slot: getattr(facts, slot)})
        assert sorted(grades) == grades and grades[0] < overall(record, toy.ideal(facts))


def test_word_salad_fools_nobody():
    rng = random.Random(0)
    for facts, record in PAIRS[:200]:
        grades = toy.gold(record, salad(toy.ideal(facts), rng))
        assert grades.coherence < 3.5 and grades.overall < 2.6
    assert share_preferred(lambda facts, rng: salad(toy.ideal(facts), rng)) < .05


def test_listing_every_value_fools_nobody():
    everything = " ".join(v for values in toy.VALUES.values() for v in values)
    for _, record in PAIRS[:50]:
        assert overall(record, everything) < 1.01


def test_whole_sentences_of_this_world_have_no_defect():
    rng, sentences = random.Random(1), []
    for domain in [toy.POSTS, toy.NEWS] * 400:
        facts = toy.draw_facts(rng, domain)
        assert toy.defects(toy.ideal(facts)) == 0
        sentences += re.findall(r"[^.?]+[.?]", toy.write_post(facts, rng))
    assert sum(toy.defects(sentence) > 0 for sentence in sentences) < .003 * len(sentences)


# ------------------------------------------------------------------------------------------ authors

def test_the_mode_of_the_references_is_mediocre():
    assert .33 < share_preferred(usual) < .45
    assert share_preferred(lambda facts, rng: toy.ideal(facts._replace(**EMPTY))) < .56
    assert share_preferred(lambda facts, rng: "") < .03


def test_length_does_not_explain_quality():
    rng, longer_wins = random.Random(0), []
    for facts, record in PAIRS:
        two = [record["summary"], toy.write_summary(facts, rng)]
        (short, a), (long, b) = sorted((len(t.split()), overall(record, t)) for t in two)
        longer_wins += [b > a] if short < long and abs(a - b) > 1e-9 else []
    assert .40 < sum(longer_wins) / len(longer_wins) < .58
    words = [sum(len(text.split()) for text in texts) for texts in
             ([r["summary"] for _, r in PAIRS], [toy.ideal(f) for f, _ in PAIRS])]
    assert .85 < words[0] / words[1] < 1.


# ------------------------------------------------------------------------------------- the data set

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small world on disk."""
    out = tmp_path_factory.mktemp("toy") / "world"
    toy.main(["--out", str(out), "--posts", "240"])
    return out


def lines(path):
    """Every record of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_hold_the_promised_fields(world):
    assert len(lines(world / "train.jsonl")) == 240 and len(lines(world / "test.jsonl")) == 1000
    assert len(lines(world / "news/train.jsonl")) == 60
    assert len(lines(world / "pretrain.jsonl")) == 360
    for split, news in itertools.product(("train", "valid", "test"), (False, True)):
        for record in lines(world / "news" / f"{split}.jsonl" if news else world / f"{split}.jsonl"):
            assert list(record) == (["id", "site", "title", "article", "summary"] if news else
                                    ["id", "subreddit", "title", "post", "summary"])
            assert record["id"].startswith("toy") and all(v.strip() for v in record.values())


def test_splits_share_no_event(world):
    events = {split: {toy.facts_of(text_of(r))[:4] for folder in (world, world / "news")
                      for r in lines(folder / f"{split}.jsonl")}
              for split in ("train", "valid", "test")}
    events["train"] |= {toy.facts_of(r["text"])[:4] for r in lines(world / "pretrain.jsonl")}
    for a, b in itertools.combinations(events.values(), 2):
        assert not a & b


def test_plain_text_never_shows_the_template(world):
    texts = [r["text"] for r in lines(world / "pretrain.jsonl")]
    assert not any(mark in text for text in texts for mark in ("SUBREDDIT:", "TITLE:", "POST:"))
    assert .04 < sum("\n\nTL;DR: " in text for text in texts) / len(texts) < .18


def test_same_seed_same_world(world, tmp_path):
    for seed in (0, 1):
        toy.main(["--out", str(tmp_path / str(seed)), "--posts", "240", "--seed", str(seed)])
    for path in sorted(world.rglob("*.jsonl")):
        name = path.relative_to(world)
        assert path.read_bytes() == (tmp_path / "0" / name).read_bytes()
        assert path.read_bytes() != (tmp_path / "1" / name).read_bytes()


def test_an_existing_folder_is_refused(world):
    with pytest.raises(Problem, match="exists"):
        toy.main(["--out", str(world)])
