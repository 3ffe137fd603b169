r"""Judges that need programs, people or networks, for evaluate.py; and another policy to beat.

    --judge reward:DIR     another reward model, as the "gold" one of Gao et al. (2022)
    --judge command:CMD    any program, so any language model: asked about one pair at a time
    --judge labels:DB      people's answers (tools.labelling), about the texts that they saw
    --against DIR          another checkpoint folder, compared with this run's best policy

All of evaluate.py's flags and judges work here, too. A command only compares: each time it is
started again, reads one JSON object with the keys id, subreddit, title, post, summary_a, summary_b
(of news: id, site, title, article) on standard input, and prints A, B or tie alone on its first
line, in capitals or not, perhaps in brackets, quotes or asterisks, with a full stop or a colon
behind; what it writes on further lines is ignored. Any other first line ("A tie", "A is worse") is
refused, and ends the evaluation as any failure does: the program should ask again by itself. (One
question is asked before the first summary is written, to see that it can answer.) Which summary
comes as A is drawn for each post, so that a preference for the first cancels out on average.
A whole judge:

    import json, sys
    asked = json.load(sys.stdin)
    a, b = (len(asked[side]) for side in ("summary_a", "summary_b"))
    print("tie" if a == b else "A" if a > b else "B")

    python -m tools.judges --run runs/demo --posts 200 --judge "command:python longer.py" \
                           --out runs/longer
    python -m tools.judges --run runs/demo --against runs/try/ppo --out runs/versus
    python -m tools.report --run runs/demo --out runs/versus            # pages, as of any report

Read after: evaluate.py.
"""
import contextlib
import json
import re
import shlex
import shutil
import subprocess
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import evaluate
from data import check_queries, fields_of
from evaluate import AXIS_NAMES, FOLDERS, win_rate
from runtime import Problem, config_of, flag, generator, launch, write
from runtime.files import json_of, read_text
from runtime.world import World
from sample import load_checkpoint, summarise
from tools.label_stats import numbers
from tools.label_store import DAMAGE, Store
from tools.lengths import add_same_length
from tools.overoptimisation import overoptimisation
from tools.report import add_overlap, against_told, policy_table, reward_judge, rounded
from tools.rouge import JUDGES, load_judge

ANSWER = re.compile(r"""[\s\ufeff("'*`[]*(A|B|tie)[])"'*`.:\s]*""", re.IGNORECASE)


@dataclass(frozen=True)
class Config(evaluate.Config):
    judge: str = flag("auto", "who compares: auto, gold, rouge, reward:DIR, command:CMD, labels:DB",
                      what="JUDGE")
    jobs: int = flag(4, "programs of --judge command: that run side by side", least=1)
    patience: float = flag(120.0, "seconds one of them may take over a comparison", least=0.001)
    against: str = flag("", "another policy, compared with this run's best", what="DIR")


# ------------------------------------------------------------------- 1. a program that compares

@dataclass(frozen=True)
class Command:
    """A judge that has no grades: it compares, pair by pair."""
    words: list                  # the program and its arguments
    seed: int                    # of which summary comes as A
    jobs: int                    # programs that run side by side, in each process
    patience: float              # seconds for one comparison
    world: World
    grade = None

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
                          "repair the program") from None
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

    def compare(self, records, ours, theirs):
        """`ask` about each pair, shared among processes. Returns: (n,)."""
        mine = self.world.share(range(len(ours)))
        with (self.world.bar(len(ours), "judge", "pair") as progress,
              ThreadPoolExecutor(self.jobs) as pool):
            def one(i):
                won = self.ask(records[i], ours[i], theirs[i])
                progress.update(self.world.size)
                return won
            # When one fails, `map` takes back those that have not begun.
            found = self.world.merge(dict(zip(mine, pool.map(one, mine), strict=True)))
        return np.array([found[i] for i in range(len(ours))])


def command(what, cfg, world):
    """The Command of --judge command:WHAT. Raises: Problem when there is no such program."""
    try:
        words = shlex.split(what)
    except ValueError as error:
        raise Problem(f"--judge {cfg.judge} cannot be split into words: {error}") from None
    if not words or not shutil.which(words[0]):
        raise Problem(f"--judge {cfg.judge}: there is no program {' '.join(words[:1])!r} here: "
                      "give its path, and make it executable")
    return Command(words, cfg.seed, cfg.jobs, cfg.patience, world)


def add_ceiling(needed):
    """How often a judge that grades agrees with the labels on which the reward model was tried."""
    chosen, rejected = ([c["summaries"][c["choice"] ^ side]["text"] for c in needed.labels]
                        for side in (0, 1))
    agrees = needed.judge.compare([c["info"] for c in needed.labels], chosen, rejected)
    needed.report["reward_model"]["ceiling"] = float(agrees.mean())


# ------------------------------------------------------------------------------------- 2. people

def people_say(path, run):
    """What `tools.labelling stats` says of policies, as parts of the report.

    Nobody who is held counts. People saw sampled texts, not greedy ones, and are asked about no
    others. `labels` holds every two policies that they compared. A policy of the run is found
    there by the name that sample.py --pairs gives it (supervised_t0.7), at the temperature of
    most answers. What people were not asked is None.

    run: {name in the report: folder's name}. Returns: {"labels": [{"policy", "against", "share",
    "95", "n"}], "policies", "against_supervised"}. Raises: Problem when there is nothing.
    """
    if not Path(path).is_file():
        raise Problem(f"--judge labels:{path}: there is no such file: `python -m "
                      "tools.labelling serve` makes it")
    try:
        with closing(Store(path)) as store:
            rows = [row for row in numbers(store)["policies"] if row["against"]]
    except DAMAGE as error:
        raise Problem(f"--judge labels:{path}: {error}: is the file damaged?") from None
    if not rows:
        raise Problem(f"--judge labels:{path}: nobody has compared two policies there yet, held "
                      "labellers aside: `python -m tools.labelling serve` asks people")
    known = {name: rf"{folder}_t[\d.]+" for name, folder in run.items()} | {"reference": "ref"}

    def rate(name, rival):
        row = max((row for row in rows if re.fullmatch(known[name], row["policy"])
                   and re.fullmatch(known[rival], row["against"])), key=lambda row: row["n"],
                  default={"share": None, "95": None, "n": 0})
        return {"win_rate": row["share"], "win_rate_95": row["95"], "n": row["n"]}

    blank = dict.fromkeys(("length", "length_controlled_win_rate", "kl", "rouge_1", "rouge_2",
                           "rouge_l", "copied")) | {"axes": dict.fromkeys(AXIS_NAMES)}
    rivals = {name: rate(name, "supervised") for name in known if name != "supervised"
              and "supervised" in known}                       # it is being trained, perhaps
    return {"labels": rows,
            "policies": {name: rate(name, "reference") | blank for name in known},
            "against_supervised": {name: r for name, r in rivals.items() if r["n"]}}


def report_of_people(cfg, path):
    """report.json of --judge labels:DB; no text is written.

    Answers about one pair are not independent: the unit of label_stats.share is the pair.
    """
    began = time.perf_counter()
    config_of(Path(cfg.run) / "supervised")               # complain about a run that is none
    if cfg.against:
        raise Problem("--against needs a judge of new texts; --judge labels: knows old ones only")
    names = {name: folder for name, folder in FOLDERS.items() if name == "supervised" or
             (Path(cfg.run) / folder / "model.pt").exists()}       # asked about, here or not
    report = {"judge": cfg.judge, "data": None, **people_say(path, names), "human_axes": None,
              "reward_model": None, "overoptimisation": [], "notes": [], "seed": cfg.seed,
              "seconds": {"evaluate": time.perf_counter() - began}}
    return rounded(report)


# --------------------------------------------------------------------- 3. the evaluation with them

def compare_with(other, needed, texts, world):
    """Add to the report how often the run's best policy beats another; texts: of `measure`."""
    posts, best = needed.posts, "human_feedback" if "human_feedback" in texts else "supervised"
    texts["against"] = summarise(other, posts, bar="against")
    if world.rank == 0:
        write(needed.out / "summaries.jsonl", [
            {"id": post["id"], **{name: some[i] for name, some in texts.items()}}
            for i, post in enumerate(posts)])
    won = needed.judge.compare(posts, texts[best], texts["against"])
    needed.report["against"] = {"policy": other.folder, "ours": needed.policies[best].folder,
                                **win_rate(won, needed.report["seed"])}


def check_out(cfg, judge):
    """Raise a Problem where this judge's report would take the place of another's, unasked."""
    path, known = Path(cfg.run) / "report" / "report.json", judge
    if not cfg.out and path.exists():
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError, Problem):
            known = json_of(read_text(path))["judge"]                 # a damaged one may go
    if known != judge:
        raise Problem(f"{path} is the report of the judge {known}: name another --out (or, if that "
                      f"report may go, --out {path.parent})")


def act(cfg, world):
    """Evaluate with these judges, after evaluate.py's own checks."""
    kind, colon, what = cfg.judge.partition(":")
    if kind not in (("reward", "command", "labels") if colon else ("auto", *JUDGES)):
        raise Problem(f"--judge {cfg.judge} is unknown: auto, gold, rouge, reward:DIR, "
                      "command:CMD or labels:DB")
    if kind != "command" and (cfg.jobs, cfg.patience) != (Config.jobs, Config.patience):
        raise Problem("--jobs and --patience are for --judge command:CMD: leave them out")
    if kind == "labels":
        check_out(cfg, cfg.judge)
        report, out = report_of_people(cfg, what), Path(cfg.out or Path(cfg.run) / "report")
        if world.rank == 0:
            write(out / "report.json", report)
        print(policy_table(report))
        return
    asked = command(what, cfg, world) if kind == "command" else None
    model = load_checkpoint(what, world, "scalar") if kind == "reward" else None
    other = load_checkpoint(cfg.against, world) if cfg.against else None
    with world.mixed():
        judge = reward_judge(model) if model else asked
        needed = evaluate.prepare(cfg, world, lambda posts: (cfg.judge, judge) if judge
                                  else load_judge(cfg.judge, posts))
        check_out(cfg, needed.report["judge"])
        for reader in filter(None, (other, model)):
            check_queries(reader.tokenizer, needed.posts, reader.query_length)
        if asked and world.rank == 0:                     # can it answer at all? one call to know
            first = needed.posts[0]
            asked.ask(first, first["summary"], first["title"])
        texts, won = evaluate.measure(needed, world)
        add_same_length(needed.report, won, texts, needed.policies["supervised"].tokenizer)
        if model and needed.labels:
            add_ceiling(needed)
        if model and needed.reward:                       # with other judges tools.report does it
            policies = needed.policies
            needed.report["overoptimisation"] = overoptimisation(
                policies["supervised"], policies.get("human_feedback"), needed.reward, needed.judge,
                needed.posts, cfg.seed)
        if other:
            compare_with(other, needed, texts, world)
    if world.rank == 0:
        write(needed.out / "report.json", rounded(needed.report))
    posts = needed.posts
    add_overlap(needed.report, posts, [{name: some[i] for name, some in texts.items()}
                                       for i in range(len(posts))])
    print(policy_table(needed.report))
    if other:
        print(f"\n{against_told(needed.report['against'])} (in brackets the 95 % interval)")


def main(argv=None):
    """evaluate.py with more judges."""
    launch(act, Config, argv, __doc__)


if __name__ == "__main__":
    main()
