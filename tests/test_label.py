"""Chapter 6: from pairs to comparisons."""
import itertools
import json
import os
import random
from collections import Counter

import numpy as np
import pytest
from test_sample import make_checkpoint, make_data

import label
import toy
from data import read_comparisons
from runtime import Problem, write
from tools import labelling, rouge
from tools.label_stats import numbers, report, share, spoken
from tools.label_store import APART, Plan, Store


def toy_pairs(count=60):
    """The author's summary against a perfect one, of toy posts."""
    pairs = []
    for i in range(count):
        facts, post = toy.make_record(0, "train", i)
        reference = post.pop("summary")
        pairs.append({"info": post, "batch": "pairs", "reference": reference,
                      "split": ("train", "valid1", "valid2")[i % 3],
                      "summaries": [{"text": " " + reference, "policy": "ref", "note": None},
                                    {"text": toy.ideal(facts), "policy": "ideal", "note": None}]})
    return [p for p in pairs if p["summaries"][0]["text"].strip() != p["summaries"][1]["text"]]


def real_pair(first, second, reference="the cat sat on the mat", **more):
    """A pair about a post that is not of the toy world."""
    post = {"id": "t3_1", "subreddit": "cats", "title": "mat", "post": "My cat sat there."}
    return {"info": post, "batch": "b", "split": "train", "reference": reference,
            "summaries": [{"text": t, "policy": "p", "note": None} for t in (first, second)]} | more


def simulate(folder, pairs, *flags, script=label):
    write(folder / "pairs.jsonl", pairs)
    (folder / "comparisons.jsonl").unlink(missing_ok=True)
    script.main(["simulate", "--pairs", str(folder / "pairs.jsonl"),
                 "--out", str(folder / "comparisons.jsonl"), *flags])
    return read_comparisons(folder / "comparisons.jsonl")


def keep_answers(path, pairs, comparisons):
    """Comparisons of all these pairs as answers in a new database."""
    store = Store(path, Plan(shared=1.0))
    with store.transaction():
        store.add(pairs)
        numbers = {pair["info"]["id"]: i for i, pair in store.pairs().items()}
        for c in comparisons:
            store.record(numbers[c["info"]["id"]], c["worker"], c["extra"]["confidence"])
    store.close()


def test_comparisons_are_openais_records(tmp_path, capsys):
    pairs = toy_pairs()
    found = simulate(tmp_path, pairs)
    assert len(found) == len(pairs)
    for pair, c in zip(pairs, found, strict=True):
        assert list(c) == ["info", "summaries", "choice", "worker", "batch", "split", "extra"]
        assert c["info"] == pair["info"] and "summary" not in c["info"]
        assert [set(s) for s in c["summaries"]] == [{"text", "policy", "note"}] * 2
        for mine, theirs in zip(pair["summaries"], c["summaries"], strict=True):
            assert theirs["text"] == " " + mine["text"].strip()      # one leading space, not two
        strong = c["extra"]["confidence"]
        assert strong > 5 if c["choice"] else strong < 5
        assert c["split"] == pair["split"]
    assert "agree on" in capsys.readouterr().out


def test_simulated_people_prefer_the_better_summary_more_often_than_not(tmp_path):
    found = simulate(tmp_path, toy_pairs())
    assert sum(c["choice"] for c in found) / len(found) > 0.7        # 1: the perfect one
    assert len({c["worker"] for c in found}) > 3


def test_same_seed_same_labels(tmp_path):
    one = simulate(tmp_path, toy_pairs(), "--seed", "1")
    assert one == simulate(tmp_path, toy_pairs(), "--seed", "1")
    assert one != simulate(tmp_path, toy_pairs(), "--seed", "2")


def test_nobody_is_asked_twice_about_a_pair_and_the_first_answer_is_that_of_one_label(tmp_path):
    one, five, eight = (simulate(tmp_path, toy_pairs(160), "--labels", n) for n in ("1", "5", "8"))
    for found in (five, eight):
        people = {}
        for c in found:
            people.setdefault(c["info"]["id"], []).append(c["worker"])
        assert all(len(set(names)) == len(names) for names in people.values())
        first = {c["info"]["id"]: c for c in reversed(found)}
        assert list(reversed(first.values())) == one
    assert {len(names) for names in people.values()} == {1, 8}      # held out: one
    counts = Counter(c["worker"] for c in five if c["split"] == "train").values()
    assert len(counts) == 8 and min(counts) > .7 * max(counts)      # each is as likely


@pytest.mark.parametrize("script, count, told", [(label, 9, "give 1 to 8,"), (rouge, 2, "give 1,")])
def test_more_labels_than_people_is_a_problem_and_leaves_nothing(tmp_path, script, count, told):
    with pytest.raises(Problem, match=f"--labels {count}: {told}"):
        simulate(tmp_path, toy_pairs(), "--labels", str(count), script=script)
    assert not (tmp_path / "comparisons.jsonl").exists()


def test_agreement_splits_and_seconds_are_written_down(tmp_path):
    found = simulate(tmp_path, toy_pairs())
    known = json.loads((tmp_path / "comparisons.config.json").read_text())
    assert 0.5 < known["agreement"] <= 1 and known["seconds"] >= 0
    assert sum(known["splits"].values()) == known["comparisons"] == len(found)


def test_rouge_prefers_what_is_closer_to_the_author_and_leaves_ties_out(tmp_path):
    close, far, same = "the cat sat on a mat", "dogs bark", "cats purr"
    found = simulate(tmp_path, [real_pair(close, far), real_pair(far, close), real_pair(far, same)],
                     script=rouge)
    assert [c["choice"] for c in found] == [0, 1]
    assert [c["extra"]["confidence"] for c in found] == [1, 9]
    assert json.loads((tmp_path / "comparisons.config.json").read_text())["agreement"] is None


def test_rouge_is_surer_of_larger_differences():
    wide, narrow = (rouge.ask(real_pair("the cat sat on the mat", b))
                    for b in ("dogs bark", "the cat sat on the mats"))
    assert wide == 1 < narrow < 5


@pytest.mark.parametrize("pair, words", [
    (real_pair("a", " a "), "line 1: field 'summaries' holds one text twice"),
    (real_pair("a", "b", summaries=[]), "line 1: field 'summaries'"),
    (real_pair("a", "b", info="x"), "line 1: field 'info'"),
    (real_pair("a", "b", split=3), "line 1: field 'split'"),
    (real_pair("a", "b", reference=""), "no summary by its author"),
    (real_pair("a", "b"), "prefers neither"),
])
def test_a_bad_pair_is_named_by_file_and_line(tmp_path, pair, words):
    with pytest.raises(Problem, match=words):
        simulate(tmp_path, [pair], script=rouge)
    assert not (tmp_path / "comparisons.jsonl").exists()


def test_toy_labellers_refuse_posts_from_elsewhere(tmp_path):
    with pytest.raises(Problem, match="tools.rouge"):
        simulate(tmp_path, [real_pair("cats sat", "b")])
    assert len(simulate(tmp_path, [real_pair("cats sat", "b")], script=rouge)) == 1


@pytest.mark.parametrize("argv", [[], ["rank"], ["simulate"], ["simulate", "--labels", "0"]])
def test_a_command_that_makes_no_sense_is_a_problem(argv):
    for script in (label, labelling):
        with pytest.raises(Problem):
            script.main(argv)


def test_no_pairs_is_a_problem(tmp_path):
    with pytest.raises(Problem, match="no pairs of split"):
        simulate(tmp_path, [])
    with pytest.raises(Problem, match="cannot be read"):
        label.main(["simulate", "--pairs", str(tmp_path / "none"), "--out", str(tmp_path / "x")])


# --------------------------------------------------------------------------------------- labellers

def pair_of(post, *texts):
    """A pair about a post that says what people read, and no more."""
    return {"info": post, "summaries": [{"text": " " + text, "policy": "p"} for text in texts]}


def author_pairs(count):
    """Two authors on one post, as label rounds see them."""
    drawn = [toy.make_record(1, "valid", row) for row in range(count)]
    return [pair_of(r, r["summary"], toy.write_summary(f, random.Random(i)))
            for i, (f, r) in enumerate(drawn)]


def test_two_labellers_agree_on_73_percent():
    assert .705 < label.agreement(author_pairs(2000), seed=0) < .755


def test_sharpness_makes_two_labellers_agree_on_73_percent_of_two_authors_summaries():
    """On a pair that they choose B in with probabilities p and q, two labellers agree with
    probability p q + (1 - p)(1 - q). Its mean grows with sharpness, which can so be bisected."""
    rng, points = random.Random(1), []
    for _ in range(1000):
        facts = toy.draw_facts(rng)
        record = {"post": toy.write_post(facts, rng)}
        texts = [toy.write_summary(facts, rng) for _ in range(2)]
        points.append([label.points(taste, record, texts[1]) - label.points(taste, record, texts[0])
                       - taste.first for taste in label.LABELLERS])
    points = np.array(points).T                                        # (labellers, pairs)
    low, high = 0., 50.
    for _ in range(40):
        middle = (low + high) / 2
        chooses_b = 1 / (1 + np.exp(-middle * points))
        agree = np.mean([p * q + (1 - p) * (1 - q)
                         for p, q in itertools.combinations(chooses_b, 2)])
        low, high = (middle, high) if agree < .73 else (low, middle)
    assert low == pytest.approx(label.SHARPNESS, abs=1e-9)


def test_a_label_is_a_function_of_its_arguments():
    labels = [label.ask(pair, 3, row) for row, pair in enumerate(author_pairs(300))]
    again = [label.ask(pair, 3, row) for row, pair in enumerate(author_pairs(300))]
    assert labels == again
    assert {worker for worker, _ in labels} == {taste.worker for taste in label.LABELLERS}
    for _, confidence in labels:
        assert confidence in (1, 2, 3, 4, 6, 7, 8, 9) and type(confidence) is int


def test_confident_labellers_are_right_more_often():
    right = {True: [], False: []}
    for row, pair in enumerate(author_pairs(1500)):
        _, confidence = label.ask(pair, 0, row)
        grades = [toy.gold(pair["info"], text).overall for text in label.texts_of(pair)]
        if grades[0] != grades[1]:
            right[confidence in (1, 9)].append((confidence > 5) == (grades[1] > grades[0]))
    sure, unsure = (sum(right[k]) / len(right[k]) for k in (True, False))
    assert sure > .85 and sure > unsure + .1


def test_labellers_prefer_the_ideal_and_the_order_hardly_matters():
    chosen = []
    for row in range(600):
        facts, record = toy.make_record(0, "test", row)
        texts = (toy.ideal(facts), record["summary"])
        chosen.append([label.ask(pair_of(record, *texts), 0, row)[1] < 5,
                       label.ask(pair_of(record, *texts[::-1]), 1, row)[1] > 5])
    first, second = (sum(c) / len(c) for c in zip(*chosen, strict=True))
    assert min(first, second) > .85 and abs(first - second) < .06


def test_logistic_noise_makes_the_choice_a_sigmoid():
    """Bradley and Terry's assumption, and the example at the top of label.py."""
    _, record = toy.make_record(0, "test", 1439)
    texts = record["summary"], "My cousin broke my roommate's car. I am shocked."
    assert texts[1] in " ".join(label.__doc__.split())
    for name in ("ada", "ben", "gus"):
        taste = next(t for t in label.LABELLERS if t.worker == f"toy-{name}")
        a, b = (label.points(taste, record, text) for text in texts)
        chance = 1 / (1 + np.exp(-label.SHARPNESS * (b - a)))
        chosen = [label.decide(taste, record, texts, np.random.default_rng(i)) > 5
                  for i in range(4000)]
        assert np.mean(chosen) == pytest.approx(chance, abs=.03)
        row = next(line for line in label.__doc__.splitlines() if line.strip().startswith(name))
        assert row.split()[-3:] == [f"{x:.2f}".lstrip("0") for x in (
            b - a, label.SHARPNESS * (b - a), chance)]


def test_what_is_typed_at_the_terminal_becomes_the_same_record(tmp_path, monkeypatch, capsys):
    said = iter(["2", "maybe", "8", "5"])

    def answer(prompt):
        for text in said:
            return text
        raise EOFError
    monkeypatch.setattr("builtins.input", answer)
    pairs = toy_pairs(20)
    write(tmp_path / "pairs.jsonl", pairs)
    labelling.main(["me", "--pairs", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "me.jsonl")])
    found = read_comparisons(tmp_path / "me.jsonl")
    assert [(c["choice"], c["worker"], c["extra"]["confidence"]) for c in found] == [
        (0, "me", 2), (1, "me", 8)]
    assert [c["info"] for c in found] == [p["info"] for p in pairs[:2]]
    told = capsys.readouterr().out
    assert pairs[3]["info"]["post"] in told and pairs[4]["info"]["post"] not in told
    assert "1 ties left out" in told


# -------------------------------------------------------------------- what people's answers are worth

def answers_of(store, pair, **said):
    """Several people's answers to one pair."""
    for name, confidence in said.items():
        store.record(pair, name, confidence)


def filled(count, plan=None):
    """A store of that many pairs, of policy p against q."""
    store = Store(":memory:", plan)
    pair = real_pair("the cat sat", "a dog ran")
    pair["summaries"][1]["policy"] = "q"
    store.add([{**pair, "info": {**pair["info"], "id": f"t3_{i}"}} for i in range(count)])
    return store


def test_one_look_a_pair_gives_wilsons_interval():
    found = share([(i, int(i < 80)) for i in range(101)])
    low, high = found["95"]                    # the textbook's of 80 in 100 or 101: .711 to .867
    assert found["n"] == 101 and (low, high) == pytest.approx((.704, .859), abs=.003)
    assert share([]) == {"share": None, "95": None, "n": 0}
    assert share([(1, 1), (2, 1)])["95"][1] == pytest.approx(1) and share([(1, 0)])["95"][0] == 0


@pytest.mark.parametrize("people, right", [(2, .9), (5, .8), (20, .7)])
def test_agreement_of_people_with_known_noise_lies_in_its_interval(people, right):
    """People who are right with probability q, each by themselves, agree on q^2 + (1 - q)^2.

    With twenty people a pair gives 190 looks that are not independent: the interval must know.
    """
    truth, covered, tries = right ** 2 + (1 - right) ** 2, 0, 60
    rng = np.random.default_rng(people)
    for _ in range(tries):
        votes = rng.random((60, people)) < right                                 # (pairs, people)
        looks = [(i, int(v[a] == v[b])) for i, v in enumerate(votes)
                 for a in range(people) for b in range(a)]
        low, high = share(looks)["95"]
        covered += low <= truth <= high
    assert covered >= 52                                                  # 57 of 60 are promised


def test_numbers_of_a_store_with_known_noise():
    """ann errs on 10 %, bob on 20 %, the researcher never: agreement .9, .8 and .74."""
    store, rng = filled(1500), np.random.default_rng(0)
    with store.transaction():
        for pair in range(1, 1501):
            said = {"res": 8, "ann": 9 if rng.random() < .9 else 2, "bob": 7 if rng.random() < .8
                    else 4}
            answers_of(store, pair, **{k: c if pair % 2 else 10 - c for k, c in said.items()})
    store.set_state("res", "researcher")
    found = numbers(store)
    for key, truth in (("labeller_labeller", .9 * .8 + .1 * .2), ("labeller_researcher", .85)):
        low, high = found[key]["95"]
        assert low <= truth <= high and high - low < .06
    for name, truth in (("ann", .9), ("bob", .8)):
        low, high = found["labellers"][name]["researcher"]["95"]
        assert low <= truth <= high
    assert [(r["a"], r["b"], r["n"]) for r in found["between"]] == [
        ("ann", "bob", 1500), ("ann", "res", 1500), ("bob", "res", 1500)]
    assert sum(found["labellers"]["ann"]["confidence"][i] for i in (0, 1, 7, 8)) == 1500
    assert found["warnings"] == []


def test_who_is_held_counts_in_their_own_row_only(tmp_path):
    """Forty honest answers, half of them for q; and forty of somebody who always says q."""
    honest, store = filled(40), filled(40)
    for pair in range(1, 41):
        for one in honest, store:
            answers_of(one, pair, ann=8 if pair % 2 else 2, bob=7 if pair % 3 else 3)
        answers_of(store, pair, spam=9)
    store.record(1, "spam", 9)
    store.db.execute("UPDATE items SET purpose = 'repeat' WHERE id = 121")
    store.set_state("spam", "held", "too fast")
    for one in honest, store:
        one.set_margins({pair: 1.0 for pair in range(1, 41)})
    found, without = numbers(store), numbers(honest)
    row = found["labellers"].pop("spam")
    assert (row["state"], row["answers"], row["others"]["n"], row["self"]["n"]) == ("held", 41, 80, 1)
    assert (found.pop("answers"), found.pop("held")) == (121, 41)
    assert (without.pop("answers"), without.pop("held")) == (80, 0)
    assert [w for w in found.pop("warnings") if not w.startswith("spam")] == without.pop("warnings")
    assert found == without
    text = report(numbers(store))
    assert "121 answers, 41 of them by labellers who are held" in text and "spam (held) " in text
    assert "Who is held counts in their own row only" in text
    assert found["labellers"]["ann"]["others"]["n"] == 40


def test_what_is_independent_is_the_post_not_the_pair():
    """Five pairs about each of 20 posts, whose author always loses or always wins: the interval is
    that of 20 answers, not of 100."""
    found, pairs = [], [real_pair("the cat sat", f"a dog ran {i}") for i in range(5)]
    for pairs_of_a_post in (pairs, pairs[:1]):
        store = Store(":memory:")
        for post in range(20):
            for pair in pairs_of_a_post:
                pair["info"], pair["summaries"][1]["policy"] = {**pair["info"], "id": f"t{post}"}, "q"
                store.add([pair])
                store.record(len(store.pairs()), "ann", 9 if post % 2 else 1)
        found.append(numbers(store))
    many, one = ([f["policies"][0], f["labellers"]["ann"]["chose_a"]] for f in found)
    for a, b in zip(many, one, strict=True):
        assert (a["n"], b["n"], a["share"], b["share"]) == (100, 20, .5, .5)
        assert a["95"] == pytest.approx(b["95"]) and a["95"][1] - a["95"][0] > .4


def test_ties_skips_and_repeats_are_counted_where_they_belong():
    store = filled(4)
    answers_of(store, 1, ann=8, bob=5)          # a tie: no agreement to speak of, half a win
    answers_of(store, 2, ann=2, bob=None)       # skipped: nothing at all
    answers_of(store, 3, ann=1, bob=3)
    store.record(1, "ann", 9)
    store.record(3, "ann", 7)
    store.db.execute("UPDATE items SET purpose = 'repeat' WHERE id > 6")
    found = numbers(store)
    assert found["labeller_labeller"]["n"] == 1 and found["labeller_labeller"]["share"] == 1
    assert found["self"]["n"] == 2 and found["self"]["share"] == .5
    ann, bob = found["labellers"]["ann"], found["labellers"]["bob"]
    assert (bob["ties"], bob["skipped"], bob["answers"], ann["answers"]) == (1, 1, 2, 5)
    wins = {(r["policy"], r["against"]): r for r in found["policies"]}
    assert wins["q", "p"]["share"] == .3 == pytest.approx(1 - wins["p", ""]["share"])
    assert found["left"] == 1 and found["answers"] == 7


@pytest.mark.parametrize("name, words", [
    ("ref", "the author"), ("supervised_t1", "supervised"), ("ppo_t0.7", "human feedback, at "
     "temperature 0.7"), ("ppo_bo4", "human feedback, best of 4"), ("ppo", "human feedback"),
    ("ppo_step-00000020_t1", "human feedback, step 20"), ("rounds_ppo_t1", "rounds_ppo"),
    ("<odd>\n_t", "<odd>\n_t"), ("", "")])
def test_a_policys_name_is_what_people_say(name, words):
    assert spoken(name) == words


def test_the_careless_are_warned_of():
    store, rng = filled(100), np.random.default_rng(0)
    for pair in range(1, 101):
        answers_of(store, pair, good=8 if pair % 2 else 2, also=9 if pair % 2 else 1,
                   side=int(rng.choice([2, 8])), coin=int(rng.choice([2, 8])))
    store.db.execute("UPDATE items SET shown = answered - CASE labeller WHEN 'coin' THEN 1 ELSE 20 END")
    store.db.execute("UPDATE items SET swapped = confidence > 5 WHERE labeller = 'side'")
    found = numbers(store)
    assert found["labellers"]["side"]["chose_a"]["share"] == 1
    assert found["labellers"]["good"]["seconds"] == pytest.approx(20, abs=.01)
    assert found["labellers"]["good"]["per_hour"] == pytest.approx(180, abs=.1)
    text = report(found)
    assert "side chose A, the first shown, 100% of 100 times" in text
    assert "coin takes 1.0 s an item" in text and "coin agrees with others on" in text
    assert "good agrees" not in text and "also" not in "".join(found["warnings"])


def test_the_reward_model_is_compared_with_people(tmp_path, capsys):
    posts = make_data(tmp_path / "data")
    make_checkpoint(tmp_path / "reward", posts, "scalar")
    keep_answers(tmp_path / "labels.db", toy_pairs(), simulate(tmp_path, toy_pairs()))
    capsys.readouterr()
    labelling.main(["stats", "--db", str(tmp_path / "labels.db"), "--reward", str(tmp_path / "reward"),
                    "--json", "--device", "cpu"])
    found = json.loads(capsys.readouterr().out)
    store = Store(tmp_path / "labels.db")
    margins = [m for m, in store.all("SELECT margin FROM pairs")]
    assert None not in margins and found["left"] == 0
    assert found["reward_model"]["n"] == sum(m != 0 for m in margins) > 5
    hits = [(a["confidence"] > 5) == (margins[a["pair"] - 1] > 0) for a in store.answers()
            if margins[a["pair"] - 1]]
    assert found["reward_model"]["share"] == pytest.approx(np.mean(hits))


def test_the_pool_repeats_and_others_come_in_their_shares():
    store = filled(1000, Plan(shared=.2))
    for _ in range(500):
        assert store.answer(store.next("ann")["item"], "ann", 7, {}) is None
    counts = Counter(a["purpose"] for a in store.answers())
    assert 70 < counts["pool"] < 130 and 10 < counts["repeat"] < 45
    rows = store.all("SELECT id, pair, purpose FROM items ORDER BY id")
    first = {row["pair"]: i for i, row in reversed(list(enumerate(rows))) if row["purpose"] != "repeat"}
    assert all(i - first[row["pair"]] > APART for i, row in enumerate(rows)
               if row["purpose"] == "repeat")


@pytest.mark.parametrize("argv, words", [
    (["me"], "--pairs"), (["me", "--pairs", "p", "--out", "{tmp}/bad.db"], "bad.db exists already"),
    (["serve"], "--db"), (["serve", "--db", "{tmp}/new.db"], "--pairs"),
    (["serve", "--db", "{tmp}/x.db", "--pairs", "{tmp}/none.jsonl"], "none.jsonl"),
    (["serve", "--db", "{tmp}/bad.db"], "cannot be used as a database"),
    (["serve", "--db", "{tmp}/ok.db", "--shared", "2"], "--shared"),
    (["serve", "--db", "{tmp}/ok.db", "--port", "70000"], "--port"),
    (["serve", "--db", "{tmp}/ok.db", "--host", "203.0.113.7"], "--host 203.0.113.7"),
    (["stats", "--db", "{tmp}/none.db"], "no such file"), (["stats"], "--db is missing"),
    (["export", "--db", "{tmp}/ok.db"], "--out"),
    (["export", "--db", "{tmp}/ok.db", "--out", "{tmp}/out"], "no answers yet"),
    (["release", "--db", "{tmp}/ok.db", "--labeller", "zoe"], "'zoe' is nobody"),
    (["simulate", "--pairs", "p", "--out", "{tmp}/bad.db"], "bad.db exists already"),
    (["export", "--db", "{tmp}/ok.db", "--out", "{tmp}/ok.db"], "ok.db exists already"),
    (["export", "--db", "{tmp}/ok.db", "--out", "{tmp}/old.jsonl"], "old.axes.jsonl exists already"),
])
def test_a_mistake_is_answered_in_one_line(tmp_path, argv, words):
    Store(tmp_path / "ok.db").close()
    (tmp_path / "bad.db").write_text("this is no database " * 100)
    (tmp_path / "old.axes.jsonl").write_text("grades")
    with pytest.raises(Problem) as problem:
        (label if argv[0] == "simulate" else labelling).main([w.format(tmp=tmp_path) for w in argv])
    assert words in str(problem.value) and "\n" not in str(problem.value)
    assert (tmp_path / "bad.db").read_text() == "this is no database " * 100
    assert (tmp_path / "old.axes.jsonl").read_text() == "grades"




def test_a_name_that_is_no_text_is_refused_in_one_line(tmp_path):
    Store(tmp_path / "labels.db").close()
    with pytest.raises(Problem, match="--researcher cannot be read as text"):
        labelling.main(["serve", "--db", str(tmp_path / "labels.db"), "--port", "0",
                        "--researcher", os.fsdecode(b"Ren\xe9")])
