"""Appendix. The paper's figures in miniature: a list of commands, run once each, then measured.

    point      a command and the folder or file it makes: points/s0/supervised-toy-<hash>
    hash       of the command, in which the paths of its inputs stand, with their hashes: so what
               was made is used again exactly if nothing that led to it changed. (The code is not
               hashed: after changing it, give another --out)
    measure    a point that asks about held-out posts and keeps one number for each, as json

An interrupted sweep goes on where it stopped, another beta costs one PPO run, and every command is
listed in commands.sh, to be repeated by hand.

    python -m tools.figures sweep --out runs/figures --jobs 2      # an hour on two cores
    python -m tools.figures sweep --out runs/figures --seeds 3     # two more worlds: wider bands
    python -m tools.figures sweep --out runs/figures --seeds 0 --frontier 10      # figure 10 alone
    python -m tools.figures draw --out runs/figures             # figures and report.md once more

The sweep ends with measured.json (a number a post), curves.json (means and intervals: what
`figures compare` takes as a reference), and by figures_draw.py figure1.png ..., report.md and
report.html.

Read after: evaluate.py.
"""
import hashlib
import importlib
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

import label
import toy
from data import text_of
from evaluate import LEAD_3, gold, log_prob, sample_with_kl
from model import ModelConfig, build, lay_out
from ppo import (
    GAMMA,
    LAMBDA,
    PRESETS,
    gae,
    linear,
    log_probs,
    roll_out,
    token_rewards,
    update,
    whiten,
)
from ppo import Config as PPO
from runtime import Machine, Problem, adam, flag, generator, write
from runtime.files import read_jsonl
from runtime.flags import entry, parse
from runtime.world import join_world, lock
from sample import held_out, load_checkpoint, score_texts, summarise, worked_examples
from tools.figures_draw import draw_everything
from tools.figures_numbers import EXACT, FRONTIER, hold_against, means_of, read_json
from tools.overoptimisation import best_of, checkpoints, opinions
from tools.rouge import grades as rouge
from tools.rouge import load_judge

ROOT = Path(__file__).resolve().parent.parent                 # where the chapters stand


@dataclass(frozen=True)
class Sweep:
    out: str = flag("runs/figures", "folder of the sweep; what is there already is not done again")
    jobs: int = flag(2, "points worked on side by side, which share the cores (and GPUs) evenly; "
                        "0: one after another in this process")
    seeds: int = flag(1, "worlds, each with its own people, posts and networks")
    frontier: int = flag(0, "worlds of figure 10, PPO's rewards against KL at five betas; 0: none")
    sizes: str = flag("toy-tiny,toy-small,toy,toy-large", "rows of model.py's table; the middle "
                      "one (of four the third) is used wherever one size is enough")
    labels: str = flag("600,1200,2400,4800,9600", "comparisons that reward models learn from; most "
                                                  "figures use the last")
    few: int = flag(2400, "comparisons behind the reward model that is over-optimised")
    betas: str = flag("0,0.02,0.05,0.2", "prices of a nat of KL in the over-optimisation figure")
    iterations: int = flag(40, "PPO's iterations at each of them")
    snapshots: int = flag(10, "policies on the way that are measured, more of the early ones")
    scale: float = flag(1.0, "shrinks all trainings and measurements, to try the sweep out")
    list: bool = flag(False, "only say which points there are, and which are done")


@dataclass(frozen=True)
class Measure(Machine):
    policy: str = flag("", "checkpoint folder; for greedy also `reference` or `lead_3`")
    feedback: str = flag("", "for pairs: checkpoint folder of the policy after PPO")
    reward: str = flag("", "checkpoint folder of a reward model")
    pairs: str = flag("", "for agree and prefer: file of labelled pairs, by `figures pairs`")
    data: str = flag("", "folder of posts, of which the held-out ones are used")
    out: str = flag("", "json file to write")
    judge: str = flag("auto", "as in evaluate.py", choices=("auto", "gold", "rouge"))
    posts: int = flag(1000, "held-out posts asked about")
    pool: int = flag(32, "for pool: samples a post")
    snapshots: int = flag(10, "for samples: policies before the last, close together early on")
    examples: int = flag(0, "for greedy: worked examples before the post")
    seed: int = flag(0, "which posts, and every random number")


# ---------------------------------------------------------------------------- 1. the list of points

class Point(NamedTuple):
    name: str            # s0/supervised-toy: the seed's folder, then what it is
    path: Path           # what its commands make: the name and its hash
    commands: tuple      # to be typed one after another in the repository, without "python"
    made: Path           # the file that is there when all is done

    @property
    def done(self):
        return self.made.exists()

    def needs(self, other):
        """Whether another point's folder or file stands in these commands."""
        return other is not self and any(str(other.path) in c for c in self.commands)


class Points(list):
    """Points in the order in which they should be begun."""

    def __init__(self, out):
        self.root = Path(out) / "points"

    def add(self, name, *commands, made="model.pt"):
        """Commands with OUT where the path of what they make shall stand. Returns: that path;
        the same commands are the same point.

        made: a file in that folder; or the ending of a file's name, when it is a file that is made.
        """
        told = " && ".join(commands).replace(str(self.root), "")       # the same in every --out
        stem = f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
        path = self.root / (stem + made if made.startswith(".") else stem)
        if path not in (point.path for point in self):
            commands = tuple(c.replace("OUT", str(path)) for c in commands)
            self.append(Point(name, path, commands, path if made.startswith(".") else path / made))
        return path


def scaled(cfg, n, least=1, multiple=1):
    """n things at --scale, in whole multiples."""
    return max(least, round(n * cfg.scale / multiple) * multiple)


def list_points(cfg):
    """The whole sweep. Raises: Problem for lists that cannot be."""
    try:
        labels, betas = [int(n) for n in cfg.labels.split(",")], [
            float(b) for b in cfg.betas.split(",")]
    except ValueError as error:
        raise Problem(f"--labels and --betas are numbers, comma between: {error}") from None
    if (cfg.few not in labels or min(cfg.seeds, cfg.frontier, cfg.jobs) < 0
            or cfg.seeds + cfg.frontier < 1 or not 0 < cfg.scale <= 1):
        raise Problem(f"--few {cfg.few} has to be one of --labels {cfg.labels}; --jobs counts "
                      "from 0, --seeds plus --frontier from 1; --scale is at most 1")
    points = Points(cfg.out)
    for seed in range(cfg.seeds):
        world_of_seed(points, cfg, seed, cfg.sizes.split(","), labels, betas)
    for seed in range(cfg.frontier):
        frontier_of_seed(points, cfg, seed)
    return points


class World(NamedTuple):
    """One seed's networks, each by its folder."""
    data: Path
    pretrained: dict         # of each size
    supervised: dict
    rewards: dict            # (size, number of labels): folder
    overoptimised: dict      # of each beta: PPO against few labels
    feedback: dict           # of each size: PPO as in `make demo`
    critics: dict            # the same at the base size, with each kind of critic
    journalist: Path         # supervised, on news


class Maker(NamedTuple):
    """The points that every kind of world begins with, of one seed."""
    points: Points
    cfg: Sweep
    seed: int

    def add(self, name, *commands, **more):
        """As Points.add; a command without OUT gets --seed and --out."""
        return self.points.add(f"s{self.seed}/{name}", *(
            c if "OUT" in c else f"{c} --seed {self.seed} --out OUT" for c in commands), **more)

    def train(self, name, command):
        return self.add(name, f"{command} --resume")

    def data(self):
        posts = scaled(self.cfg, 12000, 2000)
        return self.add("data", f"toy.py --posts {posts} --seed {self.seed} --out OUT",
                        "-m tools.tokenizer --data OUT --vocab 1024", made="tokenizer.tiktoken")

    def sft(self, name, on, steps, data, start):
        return self.train(name, f"sft.py --preset toy --loss-on {on} --steps "
                                f"{scaled(self.cfg, steps)} --data {data} {start}")

    def imitation(self, size, data):
        """A size's pretrained and supervised policy, as in `make demo`."""
        pretrained = self.sft(f"pretrained-{size}", "all", 200, data, f"--size {size}")
        return pretrained, self.sft(f"supervised-{size}", "summary", 1300, data,
                                    f"--init {pretrained}")

    def ask(self, name, command, posts, ending=".json"):
        return self.add(name, f"-m tools.figures {command} --posts {scaled(self.cfg, posts, 16)}",
                        made=ending)


def world_of_seed(points, cfg, seed, sizes, labels, betas):
    """One seed's points: a toy world of its own, networks in it, and what is asked of them."""
    base, batch, maker = sizes[len(sizes) // 2], PRESETS["toy"]["batch"], Maker(points, cfg, seed)
    add, train = maker.add, maker.train

    # 1. a world, and every size's imitation of its authors, as in `make demo`
    data = maker.data()
    base_first = sorted(sizes, key=lambda size: size != base)
    made = World(data, {}, {}, {}, {}, {}, {}, None)
    for size in base_first:
        made.pretrained[size], made.supervised[size] = maker.imitation(size, data)
    made = made._replace(journalist=maker.sft("supervised-news", "summary", 1300,
                                              f"{data}/news", f"--init {made.pretrained[base]}"))
    # 2. labels, bought once, and reward models
    pairs = add("pairs", f"sample.py --policy {made.supervised[base]} --data {data} "
                f"--pairs {scaled(cfg, 12000, 150)} --with-reference 0.5", made=".jsonl")
    people = add("comparisons", f"label.py simulate --pairs {pairs} --labels 1", made=".jsonl")

    def reward(size, n):
        made.rewards[size, n] = train(
            f"reward-{size}-{n}", f"reward.py --preset toy --init {made.supervised[size]} "
            f"--comparisons {people} --limit {scaled(cfg, n, 16)}")

    def ppo(name, size, n, episodes, more="", script="ppo.py"):
        return train(name, f"{script} --preset toy --policy {made.supervised[size]} --reward "
                     f"{made.rewards[size, n]} --data {data} --episodes {episodes}{more}")

    # 3. over-optimisation, the longest runs, so begun first
    reward(base, cfg.few)
    for beta in betas:     # steps, not summaries, drive a policy away: half as many of these do
        made.overoptimised[beta] = ppo(
            f"ppo-beta{beta:g}", base, cfg.few, batch // 2 * scaled(cfg, cfg.iterations),
            f" --batch {batch // 2} --kl-coef {beta:g} --snapshot-every 1")

    # 4. human feedback at every size, by a reward model of that size and all labels
    for size in base_first:
        for n in reversed(labels):
            reward(size, n)
        made.feedback[size] = ppo(f"ppo-{size}", size, labels[-1], batch * scaled(cfg, 12))
    made.critics["reward"] = made.feedback[base]
    for critic in ("policy", "shared"):
        made.critics[critic] = ppo(f"ppo-critic-{critic}", base, labels[-1],
                                   batch * scaled(cfg, 12), f" --critic {critic}",
                                   "-m tools.critics")
    questions(maker, cfg, made, base)


def questions(maker, cfg, made, base):
    """What is asked of one world's networks. made: as in `world_of_seed`."""
    few, news = made.rewards[base, cfg.few], f"{made.data}/news"

    def ask(name, command, posts, ending=".json", of=made.data):
        return maker.ask(name, f"{command} --data {of}", posts, ending)

    # 1. sampled, PPO's snapshots and best of n
    for beta, folder in made.overoptimised.items():
        ask(f"samples-beta{beta:g}", f"samples --policy {folder} --snapshots {cfg.snapshots}", 256)
    for critic, folder in made.critics.items():
        ask(f"samples-critic-{critic}", f"samples --policy {folder}", 256)
    ask("pool", f"pool --policy {made.supervised[base]} --reward {few} "
        f"--pool {scaled(cfg, 32, 4)}", 150)

    # 2. greedily, posts; what the base size writes is scored, too
    for size, folder in made.supervised.items():
        scored = f" --reward {few}" if size == base else ""
        ask(f"greedy-{size}-pretrained", f"greedy --policy {made.pretrained[size]} --examples 3",
            1000)
        ask(f"greedy-{size}-supervised", f"greedy --policy {folder}{scored}", 1000)
        ask(f"greedy-{size}-human_feedback", f"greedy --policy {made.feedback[size]}{scored}", 1000)
    worst = made.overoptimised[min(made.overoptimised)]
    for name, policy in (("reference", "reference"), ("overoptimised", worst)):
        ask(f"greedy-{name}", f"greedy --policy {policy} --reward {few}", 1000)

    # 3. greedily, news
    for name, policy in (("pretrained", f"{made.pretrained[base]} --examples 3"),
                         ("supervised", made.supervised[base]),
                         ("human_feedback", made.feedback[base]),
                         ("supervised_news", made.journalist), ("lead_3", "lead_3"),
                         ("reference", "reference")):
        ask(f"greedy-news-{name}", f"greedy --policy {policy}", 500, of=news)

    # 4. which of two summaries? people, measures that need no labels, reward models
    held = ask("labelled", f"pairs --policy {made.supervised[base]} "
               f"--feedback {made.feedback[base]}", 700, ".jsonl")
    ask("prefer", f"prefer --policy {made.supervised[base]} --pairs {held}", 700)
    for (size, n), folder in made.rewards.items():
        ask(f"agree-{size}-{n}", f"agree --reward {folder} --pairs {held}", 400)


def frontier_of_seed(points, cfg, seed):
    """One world of figure 10: labels and a reward model as in `make demo`, PPO at each beta, and
    the best of n; and the seed's runs in the exact language."""
    maker, sizes, batch = Maker(points, cfg, seed), cfg.sizes.split(","), PRESETS["toy"]["batch"]
    data = maker.data()
    _, supervised = maker.imitation(sizes[len(sizes) // 2], data)
    pairs = maker.add("frontier-pairs", f"sample.py --policy {supervised} --data {data} "
                      f"--pairs {scaled(cfg, 4000, 150)} --with-reference 0.5", made=".jsonl")
    people = maker.add("frontier-comparisons", f"label.py simulate --pairs {pairs} --labels 3",
                       made=".jsonl")
    reward = maker.train("frontier-reward", f"reward.py --preset toy --init {supervised} "
                                            f"--comparisons {people}")
    for beta in FRONTIER:
        ppo = maker.train(f"frontier-ppo-{beta:g}", (
            f"ppo.py --preset toy --policy {supervised} --reward {reward} --data {data} "
            f"--episodes {batch * scaled(cfg, 12)} --kl-coef {beta:g}"))
        maker.ask(f"frontier-beta{beta:g}", f"samples --policy {ppo} --data {data} --snapshots 0",
                  256)
    maker.ask("frontier-pool", f"pool --policy {supervised} --reward {reward} --data {data} "
              f"--pool {scaled(cfg, 64, 4)}", 128)
    maker.ask("frontier-exact", "exact", 256)


# --------------------------------------------------------------------------------- 2. carrying out

def carry_out(point, env, children, held):
    """Run a point's commands; what they say goes to its .log. Returns: seconds.

    env: of the processes; None: call the scripts' `main` in this one. held: the lock. Raises:
    Problem when one fails.
    """
    began, log = time.perf_counter(), point.path.with_name(point.path.name + ".log")
    own = dict(start_new_session=True, pass_fds=(held,)) if os.name == "posix" else {}
    point.path.parent.mkdir(parents=True, exist_ok=True)
    if point.path.is_dir() and not any("--resume" in c for c in point.commands):
        shutil.rmtree(point.path)                    # half made, and it cannot go on
    for command in point.commands:
        script, *words = shlex.split(command.removeprefix("-m "))
        if env is None:
            importlib.import_module(script.removesuffix(".py")).main(words)
            continue
        ours = [ROOT / script] if script.endswith(".py") else ["-m", script]
        with open(log, "a", encoding="utf-8") as said:
            print(f"$ python {command}", file=said, flush=True)
            # A session of its own: Ctrl-C reaches us alone, and we pass it on once. The lock goes
            # along, so that no second sweep starts while an orphan still writes.
            child = subprocess.Popen([sys.executable, *ours, *words],
                                     stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=env,
                                     **own)
            children.add(child)
            code = child.wait()
            children.discard(child)
        if code:
            last = (log.read_text("utf-8", "replace").splitlines() or [""])[-1]
            raise Problem(f"{point.name} ended with exit code {code}: {last[-300:]!r}; all of it "
                          f"is in {log}, and this command repeats it: python {command}")
    if not point.done:
        raise Problem(f"{point.name} ended without making {point.made}; see {log}")
    return time.perf_counter() - began


def environments(jobs):
    """What each of the jobs' processes shall see: its share of the cores, and one GPU."""
    own = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))      # Linux has it
    cores, gpus = len(own(0)), torch.cuda.device_count()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    for job in range(jobs):
        yield {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(max(1, cores // jobs)),
               **({"CUDA_VISIBLE_DEVICES": str(job % gpus)} if gpus > 1 else {})}


def run_all(points, jobs, held):
    """Carry out all points that are not done, each after those it needs, the first listed first.

    Ctrl-C (or SIGTERM) is passed on to what is running, which saves its state. Raises: Problem when
    one fails, after the others have been stopped likewise.
    """
    todo = [p for p in points if not p.done]
    total, running, children, began = len(todo), {}, set(), time.perf_counter()
    free = list(environments(jobs))
    done = 0

    def report(point, seconds):
        nonlocal done
        done += 1
        print(f"{done:4} of {total}  {point.name:34}{seconds:7.0f} s"
              f"{time.perf_counter() - began:8.0f} s in all", flush=True)

    if not jobs:                        # in the list every point stands after those it needs
        for point in todo:
            report(point, carry_out(point, None, children, held))
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt
    ending = getattr(signal, "SIGTERM", signal.SIGINT)         # not every system has SIGTERM
    before = signal.signal(ending, interrupt)
    try:
        with ThreadPoolExecutor(len(free)) as workers:
            try:
                while todo or running:
                    waiting = todo + [p for p, _ in running.values()]
                    ready = [p for p in todo if not any(p.needs(q) for q in waiting)]
                    for point, env in zip(ready, list(free), strict=False):
                        todo.remove(point)
                        free.remove(env)
                        job = workers.submit(carry_out, point, env, children, held)
                        running[job] = point, env
                    for job in wait(running, return_when=FIRST_COMPLETED).done:
                        point, env = running.pop(job)
                        free.append(env)
                        report(point, job.result())
            finally:                    # all done, or stopped: nobody is left working
                for child in list(children):
                    child.terminate()
    finally:
        signal.signal(ending, before)


def collect(points, out):
    """measured.json: for each seed, what each measuring point found, by its name; for figure 10 the
    means of each complete world, and the languages. Where no point is done, as it stands already.
    """
    seeds, worlds, path = {}, {}, Path(out) / "measured.json"
    for point in points:
        seed, name = point.name.split("/")
        if point.path.suffix == ".json" and point.done:
            frontier = name.startswith("frontier-")
            (worlds if frontier else seeds).setdefault(seed, {})[
                name.removeprefix("frontier-")] = json.loads(point.path.read_text("utf-8"))
    if not (seeds or worlds) and path.exists():
        return read_json(path, "")
    measured = {"seeds": list(seeds.values()),
                "frontier": [means_of(world) for world in worlds.values()
                             if {"pool", *map("beta{:g}".format, FRONTIER)} <= {*world}],
                "exact": [world["exact"] for world in worlds.values() if "exact" in world]}
    write(path, json.dumps(plain(measured)) + "\n")
    return measured


def sweep(cfg):
    """Whatever is not done yet; then the figures."""
    points, out = list_points(cfg), Path(cfg.out)
    if cfg.list:
        for point in points:
            print(f"{'done' if point.done else '-':5} {point.name:34} {point.path}")
        return
    out.mkdir(parents=True, exist_ok=True)
    write(out / "commands.sh", "".join(
        f"{command}\n" for point in points for command in (
            f"# {point.name}", *(f"python {c}" for c in point.commands))))
    try:
        held = lock(out)
    except OSError:
        raise Problem(f"{out}: another sweep, or what an interrupted one left running, is at "
                      "work here: wait for it, or choose another --out") from None
    try:
        run_all(points, cfg.jobs, held)
        draw(cfg)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    finally:
        os.close(held)


def draw(cfg):
    """measured.json, curves.json, the figures and report.md from what has been measured so far."""
    if not Path(cfg.out).is_dir():
        raise Problem(f"{cfg.out} is no folder: python -m tools.figures sweep makes one")
    points = list_points(cfg)
    measured = collect(points, cfg.out)
    if not (measured["seeds"] or measured.get("frontier")):
        raise Problem(f"{cfg.out}: nothing is measured yet: python -m tools.figures sweep does")
    draw_everything(measured, cfg)


# ------------------------------------------------------------------------------------ 3. measuring

SHOWN = 12               # posts whose texts are kept, for the table of samples


def asked(cfg):
    """The posts to ask about, those of evaluate.py, and the judge."""
    posts = held_out(cfg.data)
    order = generator(cfg.seed, "evaluate").permutation(len(posts))
    posts = [posts[i] for i in order[:cfg.posts]]
    return posts, load_judge(cfg.judge, posts)[1]


def parameters(model):
    """Weights in the decoder's blocks: what the paper's sizes count, embeddings aside."""
    return sum(p.numel() for p in model.blocks.parameters())


def greedy(cfg, world):
    """One policy's summaries as they are judged: grades on every axis, the win, length."""
    posts, judge = asked(cfg)
    authors, found = [p["summary"].strip() for p in posts], {}
    if cfg.policy == "reference":
        texts = authors
    elif cfg.policy == "lead_3":
        texts = [LEAD_3.match(p["article"].strip())[0] for p in posts]
    else:
        policy = load_checkpoint(cfg.policy, world)
        found["parameters"] = parameters(policy.model)
        examples = worked_examples(cfg.data, cfg.seed, cfg.examples) if cfg.examples else ()
        texts = summarise(policy, posts, examples, bar="greedy")
    found |= {**judge.grade(posts, texts), "win": judge.compare(posts, texts, authors),
              "characters": [len(t) for t in texts],
              "authors_characters": [len(t) for t in authors],
              "texts": texts[:SHOWN], "posts": [p.get("post") for p in posts[:SHOWN]]}
    if cfg.reward:
        found["rm"] = score_texts(load_checkpoint(cfg.reward, world, "scalar"), posts, texts)
    return found


def samples(cfg, world):
    """What PPO's snapshots write at the rollout temperature: KL, and both judges' opinions.

    Of `final` iterations the k-th of n looked at is number final * (k / n)^2, since most happens
    early.
    """
    posts, judge = asked(cfg)
    ppo = load_checkpoint(cfg.policy, world)
    final, n = ppo.flags["episodes"] // ppo.flags["batch"], cfg.snapshots
    wanted = {final, *(max(min(1, k), round(final * (k / n) ** 2)) for k in range(n))}
    supervised = load_checkpoint(ppo.flags["policy"], world)
    reward, rows = load_checkpoint(ppo.flags["reward"], world, "scalar"), []
    start = ppo._replace(model=supervised.model)
    for step, policy in itertools.chain([(0, start)], checkpoints(ppo)):
        if step not in wanted:
            continue
        texts, kl = sample_with_kl(policy, supervised, posts, ppo.flags["temperature"], cfg.seed,
                                   f"step {step}")
        rows.append({"kl": kl, **{name: seen[:, 0] for name, seen in
                                  opinions(reward, judge, posts, texts).items()}})
        rows[-1]["step"] = step
    log = [line for _, line in read_jsonl(Path(cfg.policy) / "log.jsonl")]
    kept = ("episodes", "score", "score_std", "kl", "explained_variance")
    return {"beta": ppo.flags["kl_coef"], "batch": ppo.flags["batch"],
            "rows": rows, "log": {key: [line[key] for line in log] for key in kept}}


def write_pool(policy, posts, n, seed):
    """n samples of each post at temperature 1, post by post."""
    return summarise(policy, [p for p in posts for _ in range(n)], temperature=1.0, seed=seed,
                     purpose="pool", bar="pool")


def pool(cfg, world):
    """Best of n by four choosers, on one pool of samples: what each n's choice is worth."""
    posts, judge = asked(cfg)
    policy = load_checkpoint(cfg.policy, world)
    reward = load_checkpoint(cfg.reward, world, "scalar")
    texts = write_pool(policy, posts, cfg.pool, cfg.seed)
    records = [p for p in posts for _ in range(cfg.pool)]
    seen = opinions(reward, judge, posts, texts)                                     # (P, N) each
    choosers = {"reward model": seen["rm"]}
    for name, measure in measures(policy, cfg, world).items():
        choosers[name] = np.reshape(measure(records, texts), (len(posts), cfg.pool))
    sizes = [2 ** k for k in range(cfg.pool.bit_length())]
    return {"n": sizes, "by": {by: {key: [best_of(scores, seen[key], n) for n in sizes]
                                    for key in seen} for by, scores in choosers.items()}}


def measures(policy, cfg, world):
    """Ways of comparing summaries that need no labels: {name: (records, texts) -> (n,)}."""
    def likelihood(records, texts):
        return log_prob(policy, policy.queries(records), policy.responses(texts), 1.0)
    return {"ROUGE": lambda records, texts: rouge(records, texts)["overall"],
            "log-prob": likelihood,
            "length": lambda records, texts: np.array([float(len(t)) for t in texts])}


def pairs(cfg, world):
    """Held-out pairs, each labelled by two people of the toy world: a list of records.

    Three kinds: two samples of the supervised policy; one of them and the author's summary; two
    samples of the policy after PPO, which are the hardest to tell apart (section 4.4).
    """
    posts, _ = asked(cfg)
    records = []
    for kind, folder in (("supervised", cfg.policy), ("reference", cfg.policy),
                         ("feedback", cfg.feedback)):
        policy = load_checkpoint(folder, world)
        drawn = write_pool(policy, posts, 2, cfg.seed)
        if kind == "reference":
            drawn[1::2] = (p["summary"].strip() for p in posts)
        for row, texts in enumerate(zip(drawn[::2], drawn[1::2], strict=True)):
            rng = generator(cfg.seed, f"labelled {kind}", row=row)
            if texts[0] != texts[1]:
                answers = []
                for i in rng.choice(len(label.LABELLERS), 2, replace=False):
                    confidence = label.decide(label.LABELLERS[i], posts[row], texts, rng)
                    answers.append({"choice": 1 if confidence > 5 else 0, "confidence": confidence,
                                    "worker": label.LABELLERS[i].worker})
                records.append({"kind": kind, "info": posts[row], "texts": texts,
                                "answers": answers})
    return records


def read_pairs(cfg):
    """The records of `pairs`, and their first and second texts."""
    records = [record for _, record in read_jsonl(cfg.pairs)]
    return [r["info"] for r in records], *zip(*(r["texts"] for r in records), strict=True), records


def prefer(cfg, world):
    """How much people and label-free measures prefer the second text of each labelled pair."""
    policy = load_checkpoint(cfg.policy, world)
    posts, first, second, records = read_pairs(cfg)
    ways = {**measures(policy, cfg, world),
            "gold": lambda records, texts: gold(records, texts)["overall"]}
    return {"kind": [r["kind"] for r in records],
            "choices": [[a["choice"] for a in r["answers"]] for r in records],
            "confidence": [[a["confidence"] for a in r["answers"]] for r in records],
            "margin": {name: way(posts, second) - way(posts, first) for name, way in ways.items()}}


class Table(torch.nn.Module):
    """A reward model that looks up the score of each response to a query of n tokens."""

    def __init__(self, scores, n):
        super().__init__()
        self.scores, self.n, self.config = scores, n, SimpleNamespace(head="scalar")

    def forward(self, tokens, at):
        rows = zip(tokens.tolist(), at[:, 0].tolist(), strict=True)
        return torch.tensor([[self.scores[tuple(row[self.n:end + 1])]] for row, end in rows])


# A language whose policies are known exactly: of four tokens the last ends a response of at most 3.
QUERY, END, LENGTH = [0, 1], 3, 3
SAID = [words + (END,) * (n < LENGTH) for n in range(LENGTH + 1)
        for words in itertools.product(range(END), repeat=n)]         # 13 that end, 27 that do not


def small(head, seed, world):
    """A network for it; a policy's probabilities are so even that every response is tried."""
    net = build(ModelConfig(4, 1, 32, 2, 8, head), seed, world)
    net.wte.weight.data *= 0.4 if head == "lm" else 1
    return net


@torch.no_grad()
def probabilities(policy, world):
    """pi(response) of all that can be said: (40,)."""
    rows = lay_out([QUERY] * len(SAID), [list(words) for words in SAID], END + 1, LENGTH)
    rows = rows.to(world.device)
    logp = log_probs(policy, rows, 1.0).double().masked_fill(~rows.is_response, 0)   # (40, R)
    return logp.sum(1).exp().cpu().numpy()


def chosen_of(n, p, reward):
    """The probability of each response to be the best of n; of equal ones each is as likely as
    before. n: (K,). p, reward: (m,). Returns: (K, m)."""
    equal, less = (reward == reward[:, None]) @ p, (reward < reward[:, None]) @ p    # (m,)
    n = np.reshape(n, (-1, 1))               # all score this or less, but not all of them less:
    return p / equal * ((less + equal) ** n - less ** n)


def ppo_ends(beta, reward, batch, seed, world):
    """The probabilities (40,) that PPO ends with, by the functions of chapter 8."""
    flags = PPO(response_length=LENGTH, batch=batch, rollout_batch=batch, micro_batch=batch,
                epochs=2, minibatches=2, lr=1.5e-3, kl_coef=beta, temperature=1.0, seed=seed)
    policy, reference, critic = (small(head, seed, world) for head in ("lm", "lm", "scalar"))
    table = Table(dict(zip(SAID, reward.tolist(), strict=True)), len(QUERY))
    optimizer, iterations = adam([policy, critic], eps=1e-5), 100
    for i in range(iterations):
        rollout = roll_out(policy, reference, critic, table, [QUERY] * batch, range(batch), i,
                           flags, world)
        advantage, returns = gae(token_rewards(rollout, beta), rollout.value, GAMMA, LAMBDA)
        rollout = rollout._replace(advantage=whiten(advantage, rollout.is_response),
                                   returns=returns)
        update(policy, critic, optimizer, rollout, linear(i, iterations, flags.lr), i, flags, world)
    return probabilities(policy, world)


def exact(cfg, world):
    """KL and mean reward, exactly, of policies of a small language. Each --seed is another one:
    normal scores for the responses that end, -1 for the others. --posts: PPO's batch.

    Returns: {way: {"at", "kl", "reward"}} for pi* ~ pi_sft exp(score / beta), which has the highest
    reward for its KL; for the best of n; and for PPO.
    """
    start, rng = probabilities(small("lm", cfg.seed, world), world), generator(cfg.seed, "exact")
    reward = np.array([rng.normal() if words[-1] == END else -1.0 for words in SAID])

    def seen(at, p):
        p = np.asarray(p)                                                            # (K, 40)
        kl = np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / start), 0).sum(1)
        return {"at": list(at), "kl": kl, "reward": p @ reward}
    betas, n = np.geomspace(20, 0.005, 100), 2 ** np.arange(7)
    tilted = start * np.exp((reward - reward.max()) / betas[:, None])                # (100, 40)
    return {"pi*": seen(betas, tilted / tilted.sum(1, keepdims=True)),
            "best of n": seen(n.tolist(), chosen_of(n, start, reward)),
            "PPO": seen(EXACT, [ppo_ends(beta, reward, cfg.posts, cfg.seed, world)
                                for beta in EXACT])}


DAMAGES = {      # name: (facts, rng) -> the ideal summary, damaged; None where that cannot be
    "swapped roles": lambda f, rng: None if f.owner == "me" else toy.ideal(
        f._replace(actor=f.owner, owner=f.actor)),
    "invented fact": lambda f, rng: toy.ideal(toy.with_wrong_value(f, rng.choice(
        [s for s in f._fields if s not in ("actor", "owner") and getattr(f, s)]), rng)),
    "missing question": lambda f, rng: toy.ideal(f._replace(ask=None)),
    "repetition": lambda f, rng: f"{toy.ideal(f)} {toy.ideal(f._replace(ask=None))}",
    "small talk": lambda f, rng: f"{toy.ideal(f)} {rng.choice(toy.POSTS.chat)}",
}


def agree(cfg, world):
    """A reward model's margin on each labelled pair, and between ideal and damaged summaries."""
    reward = load_checkpoint(cfg.reward, world, "scalar")
    records, first, second, _ = read_pairs(cfg)
    first, second = (np.array(score_texts(reward, records, t)) for t in (first, second))
    posts, damage = asked(cfg)[0], {}
    facts = [toy.facts_of(text_of(p)) for p in posts]
    best = np.array(score_texts(reward, posts, [toy.ideal(f) for f in facts]))
    for kind, spoil in DAMAGES.items():
        worse = [spoil(f, toy.seeded(cfg.seed, kind, row)) for row, f in enumerate(facts)]
        kept = [i for i, text in enumerate(worse) if text]
        damage[kind] = best[kept] - score_texts(reward, [posts[i] for i in kept],
                                                [worse[i] for i in kept])
    return {"margin": second - first, "damage": damage, "parameters": parameters(reward.model),
            "comparisons": reward.flags.get("limit")}


def plain(value):
    """Arrays as lists, numbers with four digits behind the point."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    return round(float(value), 4) if isinstance(value, float | np.floating) else value


def measure(cfg, how):
    """Ask one question, write the answers to --out."""
    if not (cfg.out and (cfg.data or how is exact)):
        raise Problem("--data (a folder of posts) and --out (a file to write) are both needed")
    with join_world(cfg) as world, world.mixed():
        found = how(cfg, world)
    if world.rank == 0 and how is pairs:
        write(cfg.out, found)
    elif world.rank == 0:
        write(cfg.out, json.dumps(plain(found)) + "\n")


@dataclass(frozen=True)
class Recorded:
    run: str = flag("", "folder of a sweep, or of a demo")
    reference: str = flag("", "recorded bands: some sweep's reference.json")


def compare(words):
    """compare RUN FILE: which of a run's numbers lie in recorded bands?"""
    if len(words) == 2 and not words[0].startswith("-"):
        words = ["--run", words[0], "--reference", words[1]]
    cfg = parse(Recorded, {}, words, __doc__)
    if not (cfg.run and cfg.reference):
        raise Problem("python -m tools.figures compare RUN REFERENCE: a run's folder, a recorded "
                      "file")
    hold_against(cfg.run, cfg.reference)


MEASURES = {f.__name__: f for f in (greedy, samples, pool, pairs, prefer, agree, exact)}


def main(argv=None):
    """Run the command that the first word names, with the flags behind it."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or [None]
    if command in ("-h", "--help"):
        print(__doc__)
    elif command in MEASURES:
        measure(parse(Measure, {}, rest, MEASURES[command].__doc__), MEASURES[command])
    elif command == "compare":
        compare(rest)
    elif command in ("sweep", "draw"):
        (sweep if command == "sweep" else draw)(parse(Sweep, {}, rest, __doc__))
    else:
        asked = f"command {command!r} is unknown:" if command else "which command?"
        raise Problem(f"{asked} python -m tools.figures sweep | draw | compare | "
                      f"{' | '.join(MEASURES)} (then --help lists its flags)")


if __name__ == "__main__":
    entry(main)
