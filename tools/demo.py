"""The pipeline, from nothing to a report: one command after another, and how far it has come.

    stage    commands, and the file that they make
    done     that file is there, and is not older than the files it is made from

What is done is not done again, and what was interrupted goes on where it stopped, when the same
command is given again. Every command is printed, to be repeated by hand.

    python -m tools.demo --quick       # two or three minutes: less of everything
    python -m tools.demo               # five minutes: the numbers of README.md
    python -m tools.demo --rounds 3    # the paper's outer loop: three rounds of labels

`make demo`, `make quick` and `make rounds` call it. Read after: evaluate.py.
"""
import argparse
import importlib.metadata
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = "-m tools.tokenizer"                           # the command that trains one


class Scale(NamedTuple):
    """How much there is of everything; None: what the chapter's own preset says."""
    posts: int                 # the toy world's, to train on
    pretraining: int           # optimizer steps
    imitation: int             # likewise, of supervised fine-tuning
    pairs: int
    episodes: int              # summaries that PPO writes
    judged: int                # held-out posts
    seconds: tuple             # that each stage takes on two new cores: its share of the whole


FULL = Scale(None, None, None, 4000, None, 1000, (8, 4, 14, 59, 20, 8, 45, 82, 28))
EARLY = 1024                   # summaries that PPO writes in a round before the last
QUICK = Scale(4000, 120, 700, 500, 1536, 300, (4, 3, 9, 32, 5, 3, 9, 41, 17))


class Stage(NamedTuple):
    """Some commands, and the file that is there when all of them are done."""
    title: str
    made: Path
    sources: tuple             # the files it is made from
    commands: tuple            # each a list of words, what is typed behind "python"
    seconds: float             # that it takes, about
    copies: tuple = ()         # (folder, copy): what the commands need to find nearby

    @property
    def done(self):
        """Whether the file is there, and not older than its sources."""
        if not all(path.exists() for path in (self.made, *self.sources)):
            return False
        newest = max((path.stat().st_mtime_ns for path in self.sources), default=0)
        return self.made.stat().st_mtime_ns >= newest

    @property
    def resumes(self):
        """Whether it can go on with what is half done; else it starts anew."""
        return all("--resume" in command for command in self.commands)


def stop(told, code=2):
    """End with one line."""
    print(told, file=sys.stderr, flush=True)
    raise SystemExit(code)


# -------------------------------------------------------------------------- 1. the list of stages

def words(script, **flags):
    """A command: --loss-on all for loss_on="all", nothing for None. Paths have "/" on Windows, too:
    so nothing has to be quoted."""
    found = script.split()
    for name, value in flags.items():
        if value is not None:
            told = value.as_posix() if isinstance(value, Path) else str(value)
            found += ["--" + name.replace("_", "-"), told]
    return found


def imitation(cfg, scale):
    """The stages from the toy world to the supervised policy."""
    data, run, sft = Path(cfg.data), Path(cfg.run), "sft.py --preset toy --resume --loss-on"
    posts, tokenizer = data / "train.jsonl", data / "tokenizer.tiktoken"
    pretrained, supervised = run / "pretrained", run / "supervised"
    make = words("toy.py", posts=scale.posts, seed=cfg.seed, out=data)
    tokenize = words(TOKENIZER, data=data, vocab=1024)
    pretrain = words(f"{sft} all", size=cfg.network, data=data, steps=scale.pretraining,
                     seed=cfg.seed, out=pretrained)
    imitate = words(f"{sft} summary", init=pretrained, data=data, steps=scale.imitation,
                    seed=cfg.seed, out=supervised)
    took = scale.seconds
    return [
        Stage("posts", posts, (), (make,), took[0]),
        Stage("tokenizer", tokenizer, (posts,), (tokenize,), took[1]),
        Stage("pretraining", pretrained / "model.pt", (tokenizer,), (pretrain,), took[2]),
        Stage("supervised fine-tuning", supervised / "model.pt", (pretrained / "model.pt",),
              (imitate,), took[3])]


def feedback(cfg, scale, folder, seed, pairs, sources, earlier=(), head=None):
    """The stages from pairs to a report, which make files in `folder`.

    pairs: the command that writes them; sources: what it reads. seed: of pairs and labels. earlier:
    labels of earlier rounds, from which the reward model learns, too. head: of the reward model.
    """
    supervised, reward, ppo = Path(cfg.run, "supervised"), folder / "reward", folder / "ppo"
    unlabelled, labels = folder / "pairs.jsonl", folder / "comparisons.jsonl"
    page = folder / "report/report.html"
    write = [*pairs, "--out", unlabelled.as_posix()]
    label = words("label.py simulate --labels 3", pairs=unlabelled, seed=seed, out=labels)
    learn = words("reward.py --preset toy --resume", init=supervised, seed=cfg.seed, out=reward,
                  head=head, comparisons=",".join(path.as_posix() for path in (*earlier, labels)))
    improve = words("ppo.py --preset toy --resume", policy=supervised, reward=reward, data=cfg.data,
                    episodes=scale.episodes, seed=cfg.seed, out=ppo)
    evaluate = words("evaluate.py", run=folder, data=cfg.data, posts=cfg.posts, seed=cfg.seed,
                     out=page.parent)
    report = words("-m tools.report", run=folder)
    copies = [(Path(cfg.run, name), folder / name) for name in ("pretrained", "supervised")]
    took = scale.seconds
    return [
        Stage("pairs", unlabelled, sources, (write,), took[4]),
        Stage("labels", labels, (unlabelled,), (label,), took[5]),
        Stage("reward model", reward / "model.pt", (labels,), (learn,), took[6]),
        Stage("PPO", ppo / "model.pt", (reward / "model.pt",), (improve,), took[7]),
        # One stage: the page, which comes last, says that all is there.
        Stage("evaluation", page, (ppo / "model.pt",), (evaluate, report), took[8],
              tuple(copies if folder != Path(cfg.run) else ()))]


def of_round(scale, number, rounds):
    """The scale of one round: it asks about a share of the pairs, learns from all labels so far,
    and PPO writes less, but in the last round."""
    *before, pairs, labels, reward, ppo, judging = scale.seconds
    episodes = scale.episodes if number == rounds else EARLY
    ppo *= (episodes or 3072) / (scale.episodes or 3072)                # 3,072: ppo.py --preset toy
    return scale._replace(episodes=episodes, seconds=(
        *before, pairs / rounds, labels / rounds, reward * number / rounds, ppo, judging))


def outer_loop(cfg, scale):
    """The stages of section 3.1's loop. Round 1 asks about summaries of the supervised policy and
    of the authors, later ones also about those of the newest policy and the best of 4 of its own
    (--by uncertainty: about those of which the reward model is least sure). A new reward model
    learns from *all* labels so far, and PPO starts again from the supervised policy; before the
    last round it writes fewer summaries. DIFFERS: with two rounds or more the reward models have
    the head "sum" (docs/LABELLING.md)."""
    run, found, earlier = Path(cfg.run), [], []
    supervised, before = run / "supervised", None
    for number in range(1, cfg.rounds + 1):
        folder, seed = run / f"rounds-{cfg.rounds}" / str(number), f"{cfg.seed}{number}"
        more = dict(data=cfg.data, pairs=cfg.pairs // cfg.rounds, seed=seed)
        sources, pairs = (supervised / "model.pt",), words(
            "sample.py --with-reference 0.5", policy=supervised, **more)
        if before:
            sources, pairs = (*sources, before / "ppo/model.pt"), words(
                "-m tools.pairs --best-of 4 --with-reference 0.2", policy=before / "ppo",
                others=supervised, reward=before / "reward", by=cfg.by, **more)
        found += feedback(cfg, of_round(scale, number, cfg.rounds), folder, seed, pairs, sources,
                          earlier, "sum" if cfg.rounds > 1 else None)
        earlier.append(folder / "comparisons.jsonl")
        before = folder
    return found


def stages_of(cfg, scale):
    """All stages, in their order."""
    supervised = Path(cfg.run) / "supervised"
    if cfg.rounds:
        more = outer_loop(cfg, scale)
    else:
        pairs = words("sample.py --with-reference 0.5", policy=supervised, data=cfg.data,
                      pairs=cfg.pairs, seed=cfg.seed)
        more = feedback(cfg, scale, Path(cfg.run), cfg.seed, pairs, (supervised / "model.pt",))
    return imitation(cfg, scale) + more


# --------------------------------------------------------------------------------- 2. doing them

class Runner:
    """Starts commands, one at a time, and notes when somebody wants to stop.

    Ctrl-C reaches the command, too: it saves its state and ends, and here it is only waited for.
    SIGTERM, where the system has it, is passed on to the command.
    """
    def __init__(self):
        self.child, self.stopped = None, False

    def note(self, number, frame):
        """A signal's handler."""
        self.stopped = True
        if self.child and number != signal.SIGINT:
            self.child.terminate()

    def __enter__(self):
        numbers = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM")]
        self.before = {n: signal.signal(n, self.note) for n in numbers if n is not None}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def run(self, command):
        """Print a command and run it. Returns: its exit code."""
        print(shlex.join([python(), *command]), flush=True)
        self.child = subprocess.Popen([sys.executable, *command])
        code = self.child.wait()
        # Only the command may have got Ctrl-C or SIGTERM (2, 15): it says so, or died of it.
        self.child, self.stopped = None, self.stopped or code in (128 + 2, 128 + 15, -2, -15)
        return code


def python():
    """How Python is called here, in the shortest way."""
    known = os.path.normcase(shutil.which("python") or "") == os.path.normcase(sys.executable)
    return "python" if known else sys.executable.removeprefix(os.getcwd() + os.sep)


def carry_out(stages, again):
    """Do what is not done. again: the command that goes on with it, to be told when it stops."""
    # Seconds of what was done here, and their shares. It begins as if 20 s had gone as planned: the
    # first stages are so short that they say little of how fast this machine is.
    took = expected = 20
    with Runner() as runner:
        for number, stage in enumerate(stages, 1):
            if stage.done:
                continue
            left = sum(other.seconds for other in stages[number - 1:] if not other.done)
            print(f"\nstage {number} of {len(stages)}: {stage.title}, "
                  f"{about(left * took / expected)} left", flush=True)
            began, fresh = time.perf_counter(), not (stage.made.parent / "state").exists()
            code = do(stage, runner)
            if runner.stopped:
                stop(f"stopped: `{again}` goes on from here", 130)
            # A report without pictures (matplotlib is missing) is one all the same.
            if not stage.made.exists() or (code and stage.resumes):
                stop(f"error: stage {number}, {stage.title}, ended with exit code {code}: see what "
                     f"it says above; then `{again}` goes on from here")
            if fresh:                          # all of it was done now: so fast is this machine
                took += time.perf_counter() - began
                expected += stage.seconds


def do(stage, runner):
    """Run a stage's commands up to the first that fails. Returns: that one's exit code, or 0."""
    code = 0
    for folder, copy in stage.copies:
        if not copy.is_symlink():              # an older version made links
            shutil.copytree(folder, copy, dirs_exist_ok=True)
    if not stage.resumes:
        stage.made.unlink(missing_ok=True)
    for command in stage.commands:
        if not (code or runner.stopped):
            code = runner.run(command)
    if runner.stopped and not stage.resumes:   # perhaps its end is missing
        stage.made.unlink(missing_ok=True)
    return code


def about(seconds):
    """A time, in words."""
    return f"about {seconds / 60:.0f} min" if seconds >= 45 else "less than a minute"


# ------------------------------------------------------------------------------ 3. around them

def check_python():
    """End with one line when this Python is too old, or lacks a package."""
    if sys.version_info < (3, 11):             # noqa: UP036 - an older one reads this far
        stop(f"error: this is Python {sys.version.split()[0]}: 3.11 or newer is needed")
    needed = re.findall(r"^[a-z]+", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M)
    for name in needed:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            stop(f"error: {name} is not installed for {python()}: activate the environment, then "
                 "pip install -r requirements.txt")


def check_free(alias, folder):
    """End with one line when a link would overwrite what is no link."""
    if alias.exists() and not alias.is_symlink():
        stop(f"error: {alias} is in the way of a link to {folder}: move it elsewhere")


def point(alias, folder):
    """Let a link name a folder beside it. Returns: whether this system allows links."""
    try:
        alias.parent.mkdir(parents=True, exist_ok=True)
        alias.unlink(missing_ok=True)
        os.symlink(folder.name, alias, target_is_directory=True)
    except (OSError, NotImplementedError):     # Windows allows them to few
        return False
    return True


def flags(argv):
    """The flags, as attributes."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda told: stop(f"error: {told} (--help lists every flag)")
    add = parser.add_argument
    add("--quick", action="store_true", help="less of everything, in folders of its own")
    add("--seed", type=int, default=0, help="another seed: another world, other networks (0)")
    add("--run", metavar="DIR", help="folder of the networks (runs/demo-SEED, runs/quick-SEED)")
    add("--data", metavar="DIR", help="folder of the posts (data/toy-SEED, data/quick-SEED)")
    add("--network", default="toy", help="size of the networks, a row of model.py's table (toy)")
    add("--pairs", type=int, help="pairs to label, of all rounds (4000, quick 500)")
    add("--posts", type=int, help="held-out posts on which the policies are judged (1000, quick "
                                  "300)")
    add("--rounds", type=int, default=0, help="go round the outer loop so often (0: the plain "
                                              "pipeline)")
    add("--by", choices=("random", "uncertainty"), default="random",
        help="which pairs later rounds ask about (random)")
    cfg = parser.parse_args(argv)
    if cfg.by != "random" and cfg.rounds < 2:
        parser.error("--by says which pairs rounds after the first ask about: give --rounds 2 or "
                     "more, or leave it out")
    scale = QUICK if cfg.quick else FULL
    name, world = ("quick", "quick") if cfg.quick else ("demo", "toy")
    cfg.run, cfg.data = cfg.run or f"runs/{name}-{cfg.seed}", cfg.data or f"data/{world}-{cfg.seed}"
    cfg.pairs = scale.pairs if cfg.pairs is None else cfg.pairs
    cfg.posts = scale.judged if cfg.posts is None else cfg.posts
    return cfg, scale


def main(argv=None):
    """Do all that is not done; say where the report is."""
    argv = sys.argv[1:] if argv is None else argv
    cfg, scale = flags(argv)
    check_python()
    again = shlex.join([python(), "-m", "tools.demo", *argv])
    if "MAKELEVEL" in os.environ:
        target = "rounds" if cfg.rounds else "quick" if cfg.quick else "demo"
        again = f"make {target} {os.environ.get('MAKEFLAGS', '').partition('-- ')[2]}".strip()
    # runs/demo and data/toy always name the seed that was asked for last.
    links = [(Path(alias), Path(folder)) for alias, folder in (("runs/demo", cfg.run),
             ("data/toy", cfg.data)) if folder == f"{alias}-{cfg.seed}"]
    for link in links:                         # all, before the first is made
        check_free(*link)
    refused = [link for link in links if not point(*link)]
    stages = stages_of(cfg, scale)
    carry_out(stages, again)
    folder = stages[-1].made.parent.parent.as_posix()
    print(f"\nThe report, for a browser: {folder}/report/report.html.  Now try:\n"
          f"    {python()} -m tools.side --run {folder}            # one post, by every policy\n"
          f"    {python()} -m tools.play --run {folder} --open     # a page for your own posts")
    for alias, named in refused:
        print(f"(This system allows no link: where a page says {alias}, type {named}.)")


if __name__ == "__main__":
    main()
