"""Chapter 9, first page. Who says which of two summaries is better?

    --judge gold           the toy world's true quality: toy posts only
    --judge rouge          likeness to the author's summary (ROUGE-L), for real posts. Nothing beats
                           the author's own then, so look at who is preferred to supervised
    --judge reward:DIR     another reward model's score: the "gold" model of Gao et al. (2022)
    --judge command:CMD    any program, so any language model: asked about one pair at a time
    --judge labels:DB      people's answers to `label.py serve`, about the texts that they saw

The first three grade a text, and the higher grade wins. A command only compares: each time it is
started anew, reads one JSON object with the keys id, subreddit, title, post, summary_a, summary_b
(of news: id, site, title, article) on standard input, and prints A, B or tie alone on its first
line, in capitals or not, perhaps in brackets, quotes or asterisks, with a full stop or a colon
behind; what it writes on further lines is ignored. Any other first line ("A tie", "A is worse") is
refused, and ends the evaluation as any failure does: the program should ask again by itself. (One
question is asked before the first summary is written, to see that it can answer.) Which summary
comes as A is drawn for each post, so that a taste for the first cancels out on average.
A whole judge:

    import json, sys
    asked = json.load(sys.stdin)
    a, b = (len(asked[side]) for side in ("summary_a", "summary_b"))
    print("tie" if a == b else "A" if a > b else "B")

    python evaluate.py --run runs/demo --posts 200 --judge "command:python longer.py" --out runs/l

Before:  ppo.py.    After: evaluate.py, which asks these judges.
"""
import json
import re
import shlex
import shutil
import subprocess
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import toy
from data import check_queries, fields_of, rouge
from runtime import Problem, World, bar, generator
from sample import load_reward, score_texts
from tools.label_stats import numbers
from tools.label_store import DAMAGE, Store

AXES = ("coverage", "accuracy", "coherence", "overall")
ANSWER = re.compile(r"""[\s\ufeff("'*`[]*(A|B|tie)[])"'*`.:\s]*""", re.IGNORECASE)


# ------------------------------------ 1. graders: (records, texts) -> {axis: (n,) grades}

def judge_gold(records, texts):
    """The toy world's truth, 1 to 7 on each of the paper's axes."""
    grades = [toy.gold(r, t) for r, t in zip(records, texts, strict=True)]
    return {axis: np.array([getattr(g, axis) for g in grades]) for axis in AXES}


def judge_rouge(records, texts):
    """Likeness to the author's summary, 0 to 1; there are no axes."""
    return {"overall": np.array([rouge(t, r["summary"])["rouge_l"]
                                 for r, t in zip(records, texts, strict=True)])}


JUDGES = {"gold": judge_gold, "rouge": judge_rouge}


def judge_reward(folder, world, tokenizer, rows_at_once, posts):
    """A reward model's score, in its own units; it should not be the one that PPO was trained on.

    tokenizer: the policies'. Raises: Problem when the reward model reads another one, or cannot
    read one of the posts.
    """
    model = load_reward(folder, world, tokenizer)
    check_queries(model.tokenizer, posts, model.query_length)
    return lambda records, texts: {
        "overall": np.array(score_texts(model, records, texts, rows_at_once))}


def wins(ours, theirs):
    """1 where ours is better, 0 where theirs is, 1/2 where they are level; any shapes that fit."""
    return (np.sign(np.asarray(ours) - np.asarray(theirs)) + 1) / 2


# ------------------------------------------------------------------- 2. a program that compares

@dataclass(frozen=True)
class Command:
    """A judge that has no grades: called as a grader is, it only keeps what was written."""
    words: list                  # the program and its arguments
    seed: int                    # of which summary comes as A
    jobs: int                    # programs that run side by side, in each process
    patience: float              # seconds for one comparison
    world: World

    def __call__(self, records, texts):
        return {"written": list(zip(records, texts, strict=True))}

    def ask(self, record, ours, theirs):
        """1 when the program prefers ours, 0 theirs, 1/2 neither; the same text is not asked about.

        Raises: Problem naming the post, for a program that fails, is silent, unclear or too slow.
        """
        if ours == theirs:
            return 0.5
        # One order for a post, whoever the rivals are and wherever it stands in the list.
        turned = generator(self.seed, "judge", row=zlib.crc32(record["id"].encode())).random() < 0.5
        a, b = (theirs, ours) if turned else (ours, theirs)
        question = {**{field: record[field] for field in fields_of(record)},
                    "summary_a": a, "summary_b": b}
        where = f"--judge command:{shlex.join(self.words)}, post {record['id']!r}"
        try:
            done = subprocess.run(self.words, input=json.dumps(question) + "\n", encoding="utf-8",
                                  errors="replace", capture_output=True, timeout=self.patience)
        except subprocess.TimeoutExpired:
            raise Problem(f"{where}: no answer within {self.patience:g} s: raise --patience or "
                          "mend the program") from None
        except OSError as error:
            raise Problem(f"{where}: cannot be started: {error.strerror}") from None
        first = (done.stdout.strip().splitlines() or [""])[0]
        answer, last = ANSWER.fullmatch(first), (done.stderr.strip().splitlines() or [""])[-1]
        if done.returncode:
            raise Problem(f"{where}: failed with exit code {done.returncode}; it says "
                          f"{(last or first or 'nothing')[:200]!r}")
        if not answer:
            raise Problem(f"{where}: should answer A, B or tie, alone on its first line; it says "
                          f"{(first or last or 'nothing')[:200]!r}")
        answer = answer[1].lower()
        return 0.5 if answer == "tie" else float((answer == "b") == turned)

    def compare(self, ours, theirs):
        """`ask` about each pair of (record, text), shared among processes. Returns: (n,)."""
        mine = self.world.share(range(len(ours)))
        with (bar(len(ours), "judge", self.world, "pair") as progress,
              ThreadPoolExecutor(self.jobs) as pool):
            def one(i):
                won = self.ask(*ours[i], theirs[i][1])
                progress.update(self.world.size)
                return won
            # When one fails, `map` takes back those that have not begun.
            found = self.world.merge(dict(zip(mine, pool.map(one, mine), strict=True)))
        return np.array([found[i] for i in range(len(ours))])


def preferred(judge, ours, theirs):
    """(n,) of 1, 1/2 or 0; ours, theirs: what the judge returned for two lists of texts."""
    if isinstance(judge, Command):
        return judge.compare(ours["written"], theirs["written"])
    return wins(ours["overall"], theirs["overall"])


# ------------------------------------------------------------------------------ 3. which, then?

def choose_judge(cfg, posts):
    """The judge's name. Raises: Problem for the toy world's judge on posts from elsewhere."""
    foreign = next((p["id"] for p in posts if not p["id"].startswith("toy")), None)
    if cfg.judge == "gold" and foreign:
        raise Problem(f"--judge gold knows toy posts only, not {foreign!r}: use --judge rouge")
    return cfg.judge if cfg.judge != "auto" else "rouge" if foreign else "gold"


def load_judge(cfg, name, world, tokenizer, posts):
    """A grader, or a Command. Raises: Problem when there is no such judge, folder or program."""
    kind, _, what = name.partition(":")
    if name in JUDGES:
        return JUDGES[name]
    if kind == "reward" and what:
        return judge_reward(what, world, tokenizer, cfg.rows_at_once, posts)
    if kind != "command" or not what:
        raise Problem(f"--judge {name} is unknown: auto, gold, rouge, reward:DIR, command:CMD or "
                      "labels:DB")
    try:
        words = shlex.split(what)
    except ValueError as error:
        raise Problem(f"--judge {name} cannot be split into words: {error}") from None
    if not words or not shutil.which(words[0]):
        raise Problem(f"--judge {name}: there is no program {' '.join(words[:1])!r} here: give its "
                      "path, and make it executable")
    return Command(words, cfg.seed, cfg.jobs, cfg.patience, world)


# ------------------------------------------------------------------------------------- 4. people

def people_say(path, run):
    """What `label.py stats` says of policies, as parts of the report; nobody who is held counts.

    People saw sampled texts, not greedy ones, and are asked about no others. `labels` holds every
    two policies that they compared. A policy of the run is found there by the name that
    sample.py --pairs gives it (supervised_t0.7), at the temperature of most answers. What people
    were not asked is None.

    run: {name in the report: folder's name}. Returns: {"labels": [{"policy", "against", "share",
    "95", "n"}], "policies", "against_supervised"}. Raises: Problem when there is nothing.
    """
    if not Path(path).is_file():
        raise Problem(f"--judge labels:{path}: there is no such file: `python label.py serve` "
                      "makes it")
    try:
        with closing(Store(path)) as store:
            rows = [row for row in numbers(store)["policies"] if row["against"]]
    except DAMAGE as error:
        raise Problem(f"--judge labels:{path}: {error}: is the file damaged?") from None
    if not rows:
        raise Problem(f"--judge labels:{path}: nobody has compared two policies there yet, held "
                      "labellers aside: `python label.py serve` asks people")
    known = {name: rf"{folder}_t[\d.]+" for name, folder in run.items()} | {"reference": "ref"}

    def rate(name, rival):
        row = max((row for row in rows if re.fullmatch(known[name], row["policy"])
                   and re.fullmatch(known[rival], row["against"])), key=lambda row: row["n"],
                  default={"share": None, "95": None, "n": 0})
        return {"win_rate": row["share"], "win_rate_95": row["95"], "n": row["n"]}

    blank = dict.fromkeys(("length", "length_controlled_win_rate", "kl", "rouge_1", "rouge_2",
                           "rouge_l", "copied")) | {"axes": dict.fromkeys(AXES)}
    rivals = {name: rate(name, "supervised") for name in known if name != "supervised"
              and "supervised" in known}                       # it is being trained, perhaps
    return {"labels": rows,
            "policies": {name: rate(name, "reference") | blank for name in known},
            "against_supervised": {name: r for name, r in rivals.items() if r["n"]}}
