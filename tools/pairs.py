"""Appendix to Chapter 5. Pairs by several policies, of the best of n, and those worth a label most.

The paper's pairs are by many policies (section 3.3): the newest one, the supervised one, the best
of n samples, the authors. `make rounds` makes its pairs so. Three additions:

    --others            more policies; a snapshot of PPO (snapshots/step-*.pt) is another KL
    --versus            each pair is --policy against somebody else, never a policy against itself:
                        what a person who compares fifty pairs wants to know. (A reward model
                        learns from both kinds.)
    --by uncertainty    of --candidates times as many pairs those are kept whose two summaries the
                        reward model scores most equally: there a label teaches it most. (Not in the
                        paper.) Pairs of held-out posts are not selected, or accuracies of two
                        rounds could not be compared

    python -m tools.pairs --policy runs/demo/ppo --others runs/demo/supervised --versus \
                          --with-reference 0.5 --pairs 50 --out runs/demo/mine.jsonl
    python -m tools.pairs --policy runs/demo/supervised --others runs/demo/ppo --best-of 16 \
                          --reward runs/demo/reward --by uncertainty --pairs 500 \
                          --out runs/demo/round2.jsonl

A policy's sample of a post is the same whoever else takes part.

Before: sample.py, which makes pairs of one policy.    After: label.py.
"""
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data import check_queries, read_posts
from runtime import Machine, Problem, flag, generator, launch
from runtime.files import json_lines, replacing, write_config
from runtime.flags import check_new
from sample import Checkpoint, load_checkpoint, make_pairs, score_texts, summarise


@dataclass(frozen=True)
class Config(Machine):
    policy: str = flag(..., "checkpoint folder of the first policy", what="DIR")
    others: str = flag("", "more policies, comma between: checkpoint folders, or PPO's "
                           "snapshots/step-*.pt")
    best_of: int = flag(1, "above 1: the best of so many samples of --policy takes part", least=1)
    reward: str = flag("", "reward model, for --best-of and --by uncertainty", what="DIR")
    data: str = flag("", "folder of posts; none: the one the policy learned from", what="DIR")
    versus: bool = flag(False, "every pair is --policy against one of --others or, by "
                               "--with-reference, the author")
    pairs: int = flag(..., "how many", least=1)
    out: str = flag(..., "file of pairs to write", what="FILE")
    by: str = flag("random", "which pairs are kept", choices=("random", "uncertainty"))
    candidates: int = flag(4, "for --by uncertainty: pairs written for each one kept", least=1)
    with_reference: float = flag(0.1, "share of pairs in which the author's summary takes part")
    temperature: float = flag(1.0, "divides the logits")
    rows_at_once: int = flag(128, "summaries written at the same time; what fits the device",
                             least=1)
    seed: int = flag(0, "every random number")


class Writer(NamedTuple):
    """Who takes part."""
    policy: Checkpoint
    purpose: str                 # of the random numbers
    best_of: int = 1


def load_policies(cfg, world):
    """--policy and --others: {name in the records: Checkpoint}."""
    policy = load_checkpoint(cfg.policy, world)
    found = {Path(cfg.policy).name: policy}
    for path in (Path(word.strip()) for word in cfg.others.split(",") if word.strip()):
        snapshot = path.suffix == ".pt"               # runs/X/ppo/snapshots/step-00000010.pt
        folder = path.parent.parent if snapshot else path
        other = load_checkpoint(folder, world, like=policy)
        name = folder.name + (f"_{path.stem}" if snapshot else "")
        name = f"{folder.parent.name}_{name}" if name in found else name
        if name in found:
            raise Problem(f"--others {path}: there is a policy named {name} already")
        if snapshot:
            policy.world.load(other.model, path)
        found[name] = other
    return found


def writers_of(cfg, policies):
    """{name in the records: Writer}; policies: {name: Checkpoint}, the first of them --policy's."""
    first = Path(cfg.policy).name
    found = {f"{name}_t{cfg.temperature:g}": Writer(policy, "pairs" if name == first else
                                                    f"pairs {name}")
             for name, policy in policies.items()}
    if cfg.best_of > 1:
        found[f"{first}_bo{cfg.best_of}"] = Writer(policies[first], "pairs best", cfg.best_of)
    return found


def write_texts(cfg, writer, reward, posts, rows, attempt):
    """A writer's text for each of these rows of the posts, the best of its n in reward's eyes."""
    n = writer.best_of
    many = [posts[row] for row in rows for _ in range(n)]
    texts = summarise(writer.policy, many, rows=[row * n + k for row in rows for k in range(n)],
                      purpose=writer.purpose, temperature=cfg.temperature, seed=cfg.seed,
                      attempt=attempt, rows_at_once=cfg.rows_at_once, bar="pairs")
    if n == 1:
        return texts
    scores = score_texts(reward, many, texts, cfg.rows_at_once)
    return [texts[max(range(i, i + n), key=scores.__getitem__)] for i in range(0, len(many), n)]


def least_sure(cfg, reward, records):
    """cfg.pairs of the records, in their order: of the training pairs those whose two summaries
    the reward model scores most equally, and held-out pairs as they come."""
    fixed = [i for i, r in enumerate(records[:cfg.pairs]) if r["split"] != "train"]
    train = [i for i, r in enumerate(records) if r["split"] == "train"]
    first, second = (score_texts(reward, [records[i]["info"] for i in train],
                                 [records[i]["summaries"][side]["text"] for i in train],
                                 cfg.rows_at_once) for side in (0, 1))
    margin = {i: abs(b - a) for i, a, b in zip(train, first, second, strict=True)}
    kept = sorted(train, key=margin.__getitem__)[:cfg.pairs - len(fixed)]
    return [records[i] for i in sorted(fixed + kept)]


def records_of(cfg, writers, reward, posts):
    """Pairs of texts, each text by a writer drawn at random, both perhaps by the same; with
    --versus the first by --policy, the second by another, until their places are drawn."""
    names = list(writers)

    def whose(row):
        if cfg.versus:
            rng = generator(cfg.seed, "versus", row=row)
            return [names[0], names[rng.integers(1, len(names))]]
        drawn = generator(cfg.seed, "writers", row=row).integers(len(names), size=2)
        return [names[i] for i in drawn]

    def write(rows, attempt):
        who, texts = {row: whose(row)[min(attempt, 1)] for row in rows}, {}
        for name in names:
            mine = [row for row in rows if who[row] == name]
            if mine:
                said = write_texts(cfg, writers[name], reward, posts, mine, attempt)
                texts |= zip(mine, said, strict=True)
        return [texts[row] for row in rows]

    count = cfg.pairs * (cfg.candidates if cfg.by == "uncertainty" else 1)
    records = make_pairs(cfg, posts, count, write, whose)
    if cfg.versus:
        for row, record in enumerate(records):
            if generator(cfg.seed, "places", row=row).random() < 0.5:
                record["summaries"].reverse()
    return least_sure(cfg, reward, records) if cfg.by == "uncertainty" else records


def check(cfg):
    """Raise a Problem for flags that do not go together, before anything is loaded."""
    check_new(cfg.out)
    if cfg.best_of > 1 and not cfg.reward:
        raise Problem(f"--best-of {cfg.best_of} needs a --reward model to choose with")
    if cfg.by == "uncertainty" and not cfg.reward:
        raise Problem("--by uncertainty needs a --reward model: whose uncertainty?")
    if cfg.reward and cfg.best_of == 1 and cfg.by == "random":
        raise Problem("--reward does nothing without --best-of or --by uncertainty: add one of "
                      "them, or leave it out")
    if cfg.by == "random" and cfg.candidates != Config.candidates:
        raise Problem("--candidates does nothing without --by uncertainty: leave it out")
    if cfg.versus and not cfg.others:
        raise Problem("--versus needs --others: against whom is --policy to write?")
    if not cfg.temperature > 0:
        raise Problem("--temperature must be above 0: greedy writes the same text twice")


def act(cfg, world):
    """Write the pairs, and how they came to be."""
    began = time.perf_counter()
    check(cfg)
    with world.mixed():
        policies = load_policies(cfg, world)
        policy = policies[Path(cfg.policy).name]
        folder = cfg.data or policy.flags.get("data")
        if not folder:
            raise Problem(f"{cfg.policy} does not say which posts it learned from: give --data")
        reward = None
        if cfg.reward:
            reward = load_checkpoint(cfg.reward, world, "scalar", like=policy)
        posts, writers = read_posts(folder, "train", need_summary=False), writers_of(cfg, policies)
        if cfg.pairs > len(posts):
            raise Problem(f"--pairs {cfg.pairs}: {folder} has only {len(posts)} training posts")
        for reader in [*policies.values(), *([reward] if reward else [])]:
            check_queries(reader.tokenizer, posts, reader.query_length)
        # Opened now: that nothing may be written there should be known before an hour of sampling.
        with replacing(cfg.out) if world.rank == 0 else nullcontext() as file:
            records = records_of(cfg, writers, reward, posts)
            if file is not None:
                file.write(json_lines(records))
    if world.rank == 0:
        if len(records) < cfg.pairs:
            print(f"warning: {len(records)} pairs, not {cfg.pairs}: the other posts of {folder} "
                  "got the same summary twice; raise --temperature for more", file=sys.stderr)
        write_config(Path(cfg.out).with_suffix(".config.json"), cfg, temperature=cfg.temperature,
                     pairs=len(records), seconds=round(time.perf_counter() - began, 1))
    print(f"{cfg.out}: {len(records)} pairs by {', '.join(writers)} at temperature "
          f"{cfg.temperature:g}")


def main(argv=None):
    """The command line."""
    launch(act, Config, argv, __doc__)


if __name__ == "__main__":
    main()
