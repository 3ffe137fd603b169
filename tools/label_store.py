r"""Appendix to Chapter 6. Where answers are kept, and who is asked about which pair next.

One SQLite file holds the pairs, the people and the *items*: one item is one showing of one pair to
one person. It is written when the pair is handed out (a lease) and again when the answer comes; an
answer is on the disk before anybody is told so (write-ahead log, synchronous = FULL).

    what a person is shown next                                                (section 3.3, C.1)
    their open item      if they have one: reloading the page changes nothing
    a lesson             the first few: a pair of the pool that a researcher has answered, whose
                         answer is shown after one's own. Who does badly is held until released
    a repeat      5 %    one they answered a while ago, unannounced: do they agree with themselves?
    the pool     15 %    pairs that everybody is asked about: do they agree with each other?
    any other pair       nobody else has; one opinion each, for another pair teaches a reward model
                         more than a second opinion does
    what is left         of the pool, and of repeats

So how many pages are left for somebody is known, and each page makes it one less.

    python -m tools.labelling serve --pairs runs/demo/pairs.jsonl --db runs/demo/labels.db \
                                    --researcher me

Before: labelling.py, the commands.    After: label_site.py, how the pairs reach a browser.
"""
import hashlib
import json
import sqlite3
import statistics
import threading
import time
import unicodedata
from contextlib import contextmanager
from dataclasses import dataclass

from runtime import Problem, generator

SCHEMA = """
CREATE TABLE IF NOT EXISTS pairs (
    id INTEGER PRIMARY KEY,             -- 1, 2, ... in the order of the file
    key TEXT NOT NULL UNIQUE,           -- a hash of what is read, so that a file may come twice
    record TEXT NOT NULL,               -- the pair as sample.py wrote it, JSON
    pool INTEGER NOT NULL,              -- 1: everybody is asked
    taken INTEGER NOT NULL DEFAULT 0,   -- 1: somebody not held has answered or, outside the pool,
                                        -- may soon
    margin REAL);                       -- reward model's score of the second summary - the first's
CREATE INDEX IF NOT EXISTS waiting ON pairs (pool, taken, id);
CREATE TABLE IF NOT EXISTS labellers (
    name TEXT PRIMARY KEY,
    state TEXT NOT NULL DEFAULT 'working',            -- researcher | working | held | released
    why TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY,
    pair INTEGER NOT NULL REFERENCES pairs,
    labeller TEXT NOT NULL REFERENCES labellers,
    purpose TEXT NOT NULL,              -- lesson | repeat | pool | label
    swapped INTEGER NOT NULL,           -- 1: the pair's second summary was shown first, as A
    shown REAL, leased REAL, answered REAL,           -- Unix seconds; open while answered is NULL
    confidence INTEGER,                 -- 1 .. 9 in the pair's own order; NULL: skipped or open
    more TEXT);                         -- notes, axes and comment, in the pair's own order, JSON
CREATE INDEX IF NOT EXISTS of_labeller ON items (labeller, pair);
CREATE INDEX IF NOT EXISTS of_pair ON items (pair);
CREATE INDEX IF NOT EXISTS open_items ON items (labeller, leased) WHERE answered IS NULL;
-- Whatever the code does, the database itself lets no pair outside the pool have two owners.
CREATE UNIQUE INDEX IF NOT EXISTS one_owner ON items (pair)
    WHERE purpose = 'label' AND (answered IS NULL OR confidence IS NOT NULL);
"""
APART = 10                  # items between a pair and its repeat, or one would simply remember
RESEARCHERS = "(SELECT name FROM labellers WHERE state = 'researcher')"


# What sqlite3 raises for a damaged file; the second, when its complaint quotes what is no text.
DAMAGE = (sqlite3.Error, UnicodeDecodeError, json.JSONDecodeError)


def stored(text, whole):
    """A JSON object out of the file. Raises: one of DAMAGE when it is not what was put in."""
    found = json.loads(text)
    if not (isinstance(found, dict) and whole(found)):
        raise sqlite3.DatabaseError(f"not what was stored: {text!r:.60}")
    return found


def is_pair(found):
    """Whether that is what `add` takes: a post and two summaries, each with its policy."""
    info, summaries = found.get("info"), found.get("summaries")
    return (isinstance(info, dict) and isinstance(info.get("id"), str)
            and isinstance(summaries, list) and len(summaries) == 2 and all(
                isinstance(s, dict) and isinstance(s.get("text"), str)
                and isinstance(s.get("policy"), str) for s in summaries))


class Gone(Exception):
    """What was sent cannot be kept: the item went to somebody else, or has another answer."""


@dataclass(frozen=True)
class Plan:
    """Who is shown what."""
    repeats: float = 0.05       # share of items that come a second time
    shared: float = 0.15        # share of items, and of pairs, that belong to the pool
    onboarding: int = 10        # lessons
    hold_below: float = 0.6     # agreement with the researcher over the lessons
    fastest: float = 3.0        # median seconds an item below which nobody can have read it
    lease: float = 1800.0       # seconds after which an open item may go to somebody else
    seed: int = 0


def second_is_better(confidence):
    """1 for 6..9, 0 for 1..4, None for 5 (no preference) and None (skipped)."""
    return None if confidence in (None, 5) else int(confidence > 5)


def folded(name):
    """A name without what looks alike: case, and Unicode's several forms of one letter."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def mirrored(confidence, more):
    """An answer as it reads when A and B change places."""
    more = {k: v[::-1] if isinstance(v, list) else v for k, v in more.items()}
    return None if confidence is None else 10 - confidence, more


class Store:
    """The database; one connection, used by one thread at a time."""

    def __init__(self, path, plan=None):
        self.path, self.plan, self.lock = str(path), plan or Plan(), threading.RLock()
        try:
            self.db = sqlite3.connect(self.path, timeout=30, isolation_level=None,
                                      check_same_thread=False)
            self.db.row_factory = sqlite3.Row
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")
            self.db.execute("PRAGMA foreign_keys = ON")
            self.db.executescript(SCHEMA)
            if self.one("PRAGMA foreign_key_check"):
                raise sqlite3.DatabaseError("there are answers about pairs that it does not have")
        except DAMAGE as error:
            raise Problem(f"{path}: cannot be used as a database of labels ({error}): "
                          "choose another --db") from None

    def close(self):
        with self.lock:
            self.db.close()

    @contextmanager
    def transaction(self):
        """All of it or nothing; on the disk when the outermost one ends."""
        with self.lock:
            if self.db.in_transaction:
                yield
                return
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    def one(self, query, *values):
        """The first row, or None."""
        with self.lock:
            return self.db.execute(query, values).fetchone()

    def all(self, query, *values):
        with self.lock:
            return self.db.execute(query, values).fetchall()

    # ------------------------------------------------------------------------------ pairs, people

    def add(self, pairs):
        """Import pairs; one that is known already, word by word, is left alone.

        Every 1/shared-th goes to the pool. Returns: how many were new.
        """
        before = n = self.one("SELECT COUNT(*) FROM pairs")[0]
        with self.transaction():
            for pair in pairs:
                read = [pair["info"], [s["text"].strip() for s in pair["summaries"]]]
                key = hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()
                pool = int((n + 1) * self.plan.shared) > int(n * self.plan.shared)
                n += self.db.execute("INSERT OR IGNORE INTO pairs (key, record, pool) "
                                     "VALUES (?, ?, ?)", (key, json.dumps(pair), pool)).rowcount
        return n - before

    def pairs(self):
        """{id: pair}, in order."""
        return {row["id"]: stored(row["record"], is_pair)
                for row in self.all("SELECT id, record FROM pairs ORDER BY id")}

    def set_margins(self, margins):
        """Remember what a reward model thinks: {id of the pair: second's score - first's}."""
        with self.transaction():
            self.db.executemany("UPDATE pairs SET margin = ? WHERE id = ?",
                                [(margin, i) for i, margin in margins.items()])

    def states(self):
        """{labeller: (state, why)}."""
        return {row["name"]: (row["state"], row["why"])
                for row in self.all("SELECT * FROM labellers ORDER BY name")}

    def alike(self, name):
        """The name of a known labeller who is the same person, spelled otherwise; else None."""
        known = self.states()
        return None if name in known else next(
            (other for other in known if folded(other) == folded(name)), None)

    def set_state(self, name, state, why=""):
        """researcher, working, held or released. What somebody who is held answered, others are
        asked as well; once released, theirs are answers beside those, as in the pool."""
        with self.transaction():
            self.db.execute("INSERT INTO labellers VALUES (?, ?, ?) ON CONFLICT (name) "
                            "DO UPDATE SET state = excluded.state, why = excluded.why",
                            (name, state, why))
            if state == "held":
                self.db.execute("UPDATE items SET purpose = 'pool' WHERE labeller = ? AND "
                                "purpose = 'label'", (name,))
            for row in self.all("SELECT DISTINCT pair FROM items WHERE labeller = ?", name):
                self._settle(row["pair"])

    def answers(self):
        """Every answered item, skipped ones too, in the order of asking: a list of dicts with the
        keys pair, labeller, purpose, swapped, seconds (None: unknown), confidence, more."""
        rows = self.all("SELECT pair, labeller, purpose, swapped, answered - shown AS seconds, "
                        "confidence, more FROM items WHERE answered IS NOT NULL ORDER BY id")
        return [dict(row) | {"more": stored(row["more"], lambda more: True)} for row in rows]

    def record(self, pair, labeller, confidence):
        """An answer that nobody was shown a page for: a simulated one. It has no duration."""
        self.db.execute("INSERT OR IGNORE INTO labellers (name) VALUES (?)", (labeller,))
        self.db.execute("INSERT INTO items (pair, labeller, purpose, swapped, answered, confidence,"
                        " more) VALUES (?, ?, 'pool', 0, ?, ?, '{}')",
                        (pair, labeller, time.time(), confidence))
        self.db.execute("UPDATE pairs SET taken = 1 WHERE id = ?", (pair,))

    # -------------------------------------------------------------------------- what is shown next

    def next(self, labeller):
        """The item this person should see, leased to them: a dict with item, record, swapped,
        lesson. None when nothing is left. (Ask `held` first.)"""
        now = time.time()
        with self.transaction():
            self.db.execute("INSERT OR IGNORE INTO labellers (name) VALUES (?)", (labeller,))
            open_item = self.one("SELECT id, leased FROM items WHERE labeller = ? AND "
                                 "answered IS NULL ORDER BY id", labeller)
            if open_item:
                item = open_item["id"]
                if now > open_item["leased"] + self.plan.lease / 10:
                    self.db.execute("UPDATE items SET leased = ? WHERE id = ?", (now, item))
            else:
                self._expire(now)
                count = self.one("SELECT COUNT(*) FROM items WHERE labeller = ?", labeller)[0]
                chance, order = generator(self.plan.seed, f"next {labeller}", count).random(2)
                purpose, pair = self._choose(labeller, count, chance)
                if pair is None:
                    return None
                item = self.db.execute(
                    "INSERT INTO items (pair, labeller, purpose, swapped, shown, leased) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (pair, labeller, purpose, int(order < 0.5), now, now)).lastrowid
                if purpose == "label":
                    self.db.execute("UPDATE pairs SET taken = 1 WHERE id = ?", (pair,))
            row = self.one("SELECT i.id, i.swapped, i.purpose, p.record FROM items i "
                           "JOIN pairs p ON p.id = i.pair WHERE i.id = ?", item)
        return {"item": row["id"], "swapped": row["swapped"],
                "record": stored(row["record"], is_pair), "lesson": row["purpose"] == "lesson"}

    def _choose(self, labeller, count, chance):
        """(purpose, pair) for somebody without an open item; pair is None when nothing is left.

        count: items that they had. chance: in [0, 1), of the pool.
        """
        plan, new = self.plan, "id NOT IN (SELECT pair FROM items WHERE labeller = :who)"

        def first(query, **values):
            row = self.db.execute(query, {"who": labeller, **values}).fetchone()
            return row and row[0]

        def shared(condition=""):
            return first(f"SELECT id FROM pairs WHERE pool AND {new} {condition} ORDER BY id")

        if self.states()[labeller][0] == "researcher":       # the pool first: it makes the lessons
            pair = shared()
            if pair:
                return "pool", pair
        elif first("SELECT COUNT(*) FROM items WHERE labeller = :who AND purpose = 'lesson'"
                   ) < plan.onboarding:
            pair = shared("AND id IN (SELECT pair FROM items WHERE purpose != 'repeat' AND "
                          f"confidence != 5 AND labeller IN {RESEARCHERS})")
            if pair:
                return "lesson", pair
        had = first("SELECT COUNT(*) FROM items WHERE labeller = :who AND purpose = 'repeat'")
        if self._due(labeller, count) > had:
            pair = first("SELECT pair FROM items WHERE labeller = :who AND confidence NOT NULL AND "
                         "purpose IN ('pool', 'label') AND pair NOT IN (SELECT pair FROM items "
                         "WHERE labeller = :who AND purpose = 'repeat') AND id NOT IN (SELECT id "
                         "FROM items WHERE labeller = :who ORDER BY id DESC LIMIT :apart) "
                         "ORDER BY id", apart=APART)
            if pair:
                return "repeat", pair
        if chance < plan.shared and (pair := shared()):
            return "pool", pair
        pair = first(f"SELECT id FROM pairs WHERE NOT pool AND NOT taken AND {new} ORDER BY id")
        return ("label", pair) if pair else ("pool", shared())

    def _due(self, labeller, count):
        """How many repeats somebody should have had within so many items: none at first, where
        there may be lessons. At which items they come differs from person to person."""
        late = generator(self.plan.seed, f"repeats {labeller}").random()
        return int(self.plan.repeats * max(0, count - self.plan.onboarding - APART) + late)

    def _expire(self, now):
        """Take back what lies open for longer than a lease."""
        for row in self.all("SELECT id, pair FROM items WHERE answered IS NULL AND leased < ?",
                            now - self.plan.lease):
            self.db.execute("DELETE FROM items WHERE id = ?", (row["id"],))
            self._settle(row["pair"])

    def _settle(self, pair):
        """Whether a pair is taken, from its items; answers of who is held are none."""
        self.db.execute("UPDATE pairs SET taken = EXISTS (SELECT 1 FROM items JOIN labellers ON "
                        "name = labeller WHERE pair = pairs.id AND (answered IS NULL OR confidence "
                        "NOT NULL) AND (purpose = 'label' OR answered NOT NULL AND state != 'held'"
                        ")) WHERE id = ?", (pair,))

    # ----------------------------------------------------------------------------------- an answer

    def _own(self, item, labeller):
        row = self.one("SELECT * FROM items WHERE id = ? AND labeller = ?", item, labeller)
        if row is None:
            raise Gone("this pair waited too long and went to somebody else: what you sent now "
                       "is not kept")
        return row

    def answer(self, item, labeller, confidence, more):
        """Keep an answer; when this returns, it is on the disk.

        confidence: 1 (A, as shown, is surely better) .. 9 (B is); None: skipped.
        more: {"notes": [A's, B's], "axes": [A's, B's], "comment": text}, all optional.
        The same answer sent twice, because the network ate the reply, is kept once.
        Returns: after a lesson the researcher's {"confidence", "comment"} as seen with this item's
        A and B, else None. Raises: Gone; when another answer was there, it says which is kept.
        """
        with self.transaction():
            row = self._own(item, labeller)
            said = mirrored(confidence, more) if row["swapped"] else (confidence, more)
            if row["answered"] is None:
                self.db.execute("UPDATE items SET answered = ?, confidence = ?, more = ? WHERE "
                                "id = ?", (time.time(), said[0], json.dumps(said[1]), item))
                self._settle(row["pair"])
                if row["purpose"] == "lesson":
                    self._judge(labeller)
            elif said != (kept := (row["confidence"], stored(row["more"], lambda more: True))):
                shown = mirrored(*kept)[0] if row["swapped"] else kept[0]
                raise Gone("you answered this pair before, perhaps in another tab: "
                           f"{'your skip' if shown is None else f'your {shown} of 1 (A) to 9 (B)'} "
                           "is kept, and what you sent now is not")
            if row["purpose"] != "lesson":
                return None
            truth = self.one("SELECT confidence, more FROM items WHERE pair = ? AND purpose != "
                             "'repeat' AND confidence != 5 AND labeller IN " + RESEARCHERS +
                             " ORDER BY id", row["pair"])
            if truth is None:                        # undone meanwhile
                return None
            theirs = truth["confidence"], json.loads(truth["more"])
            theirs = mirrored(*theirs) if row["swapped"] else theirs
            return {"confidence": theirs[0], "comment": theirs[1].get("comment", "")}

    def undo(self, labeller):
        """Open the last answer again. Returns: what it said, as shown; None when there is none to
        take back (a lesson's is not: by now the researcher's is known). Raises: Gone when it was
        skipped, and somebody else has the pair now."""
        with self.transaction():
            row = self.one("SELECT * FROM items WHERE labeller = ? AND answered NOT NULL "
                           "ORDER BY answered DESC, id DESC", labeller)
            if row is None or row["purpose"] == "lesson":
                return None
            now = time.time()
            try:
                self.db.execute("UPDATE items SET answered = NULL, confidence = NULL, more = NULL, "
                                "shown = ?, leased = ? WHERE id = ?", (now, now, row["id"]))
            except sqlite3.IntegrityError:
                raise Gone("the pair you skipped is with somebody else now") from None
            self._settle(row["pair"])
            before = row["confidence"], json.loads(row["more"])
            confidence, more = mirrored(*before) if row["swapped"] else before
        return {**more, "confidence": confidence}

    def _judge(self, labeller):
        """After the last lesson: is this person to go on?"""
        rows = self.all("SELECT mine.confidence AS mine, theirs.confidence AS theirs, "
                        "mine.answered - mine.shown AS seconds FROM items mine "
                        "LEFT JOIN items theirs ON theirs.pair = mine.pair AND theirs.purpose != "
                        f"'repeat' AND theirs.confidence != 5 AND theirs.labeller IN {RESEARCHERS} "
                        "WHERE mine.labeller = ? AND mine.purpose = 'lesson' AND "
                        "mine.answered NOT NULL GROUP BY mine.id", labeller)
        if len(rows) < self.plan.onboarding or self.states()[labeller][0] != "working":
            return
        agreed = [second_is_better(row["mine"]) == second_is_better(row["theirs"])
                  for row in rows if second_is_better(row["mine"]) is not None]
        share = sum(agreed) / len(agreed) if agreed else 0.0
        seconds = statistics.median(row["seconds"] for row in rows)
        if share < self.plan.hold_below:
            self.set_state(labeller, "held", f"agreed with the researcher on {sum(agreed)} of "
                           f"{len(agreed)} clear lessons")
        elif seconds < self.plan.fastest:
            self.set_state(labeller, "held", f"took {seconds:.1f} s for a lesson")

    def held(self, labeller):
        """Why this person has to wait; None when they need not."""
        state, why = self.states().get(labeller, ("working", ""))
        return why if state == "held" else None

    def progress(self, labeller):
        """How far: pages {"answered", "skipped", "left"}, of which each page moves one, so long as
        nobody else takes or skips a pair; median "seconds" of the last answers; "lessons"."""
        mine = self.all("SELECT answered, answered - shown AS seconds, purpose, confidence FROM "
                        "items WHERE labeller = ? ORDER BY answered DESC", labeller)
        done = [row for row in mine if row["answered"] is not None]
        kept = [row for row in done if row["confidence"] is not None]
        recent = [row["seconds"] for row in kept[:20] if row["seconds"] is not None]
        new = self.one("SELECT COUNT(*) FROM pairs WHERE (pool OR NOT taken) AND id NOT IN "
                       "(SELECT pair FROM items WHERE labeller = ?)", labeller)[0]
        coming = new + len(mine) - len(done)                       # an open item, too
        had = repeats = sum(row["purpose"] == "repeat" for row in mine)
        most = coming + sum(row["purpose"] in ("pool", "label") for row in kept)
        while coming and repeats < most and (                      # each pair once, at most
                self._due(labeller, len(mine) - had + new + repeats) > repeats):
            repeats += 1
        return {"answered": len(kept), "skipped": len(done) - len(kept),
                "left": coming + repeats - had,
                "seconds": statistics.median(recent) if recent else None,
                "lessons": sum(row["purpose"] == "lesson" for row in done)}
