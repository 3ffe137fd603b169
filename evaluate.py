"""Chapter 9. Is it really better? Win rates, what else changed, and when optimising goes too far.

    win rate = share of posts whose summary the judge prefers to the author's own; a tie is half

Every policy of a run summarises the same held-out posts greedily, and a judge that no policy was
trained on compares (sections 4.1-4.4). What a win rate hides is shown beside it: summaries may win
by being long, by copying, or only in the reward model's eyes.

    --judge gold | rouge | reward:DIR | command:CMD | labels:DB           who they are: judges.py

    python evaluate.py --run runs/demo --data data/toy --out runs/demo/report           # 40 s
    python -m tools.doctor runs/demo                     what ails a run, by its logs: doctor.py

Writes summaries.jsonl (who wrote what), report.json (every number), report.md (the same in words),
report.png and report.svg, and report.html: both in one file, and below them a microscope for tokens
(microscope.py).

    python -m tools.figures compare runs/demo reference/toy.json     # within what others measured?

Before:  judges.py.    After: the world; change a flag and look again.
"""
import json
import math
import re
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data import (
    check_queries,
    decode_response,
    encode_query,
    fields_of,
    find,
    read_comparisons,
    read_posts,
    rouge,
    same_tokenizer,
    words,
)
from judges import (
    AXES,
    Command,
    choose_judge,
    judge_gold,
    judge_rouge,
    load_judge,
    people_say,
    preferred,
    wins,
)
from model import lay_out, skeleton, token_logp
from runtime import (
    Machine,
    Problem,
    bar,
    config_of,
    entry,
    flag,
    gathered,
    generator,
    join_world,
    load_weights,
    mixed,
    moved,
    parse,
    read_jsonl,
    read_text,
    replacing,
    write,
    write_atomically,
)
from sample import (
    Checkpoint,
    held_out,
    load_checkpoint,
    load_reward,
    respond,
    score_texts,
    summarise,
    worked_examples,
)


@dataclass(frozen=True)
class Config(Machine):
    run: str = flag("", "folder with pretrained/, supervised/, reward/, ppo/; some may be missing")
    data: str = flag("", "folder of posts; none: the one the supervised policy learned from")
    out: str = flag("", "folder of the report; none: report/ in --run")
    judge: str = flag("auto", "who compares: gold, rouge, reward:DIR (a reward model), command:CMD "
                              "(a program, asked pair by pair) or labels:DB (people, by label.py); "
                              "auto: gold for toy posts, else rouge")
    jobs: int = flag(4, "programs of --judge command: that run side by side")
    patience: float = flag(120.0, "seconds one of them may take over a comparison")
    comparisons: str = flag("", "labels to try the reward model on, comma between files; none: the "
                                "run's, else those of its training; always their split valid2")
    axes: str = flag("", "people's grades, from label.py export: shown beside the judge's")
    against: str = flag("", "another checkpoint folder, compared with this run's best policy")
    posts: int = flag(1000, "held-out posts summarised greedily")
    samples: int = flag(256, "of them, posts for what is sampled: KL and over-optimisation")
    pool: int = flag(16, "samples a post, from which best-of-n is estimated")
    examples: int = flag(3, "worked examples shown to the pretrained model, as many as fit")
    rows_at_once: int = flag(128, "summaries written side by side; what fits the device")
    seed: int = flag(0, "which posts and examples, and every random number")


FOLDERS = {"pretrained": "pretrained", "supervised": "supervised", "human_feedback": "ppo"}
CLOSE = 12             # posts that the token microscope shows
POOLS = 150            # posts on which best of n is estimated, from --pool samples each
SPLITS = ("train", "valid", "test")
# DIFFERS: the first three sentences of an article, told by a mark that white space follows, not by
# a parser, so that "Mr. X" counts as two: the baseline that references lose to (section 4.2).
LEAD_3 = re.compile(r"(?s)(?:.*?[.!?][\"')\u2019\u201d]*(?=\s)){3}|.*")
UNFINISHED = "This evaluation has not ended: what is not here was not measured yet."


# --------------------------------------------------------------------------------- 1. statistics

def bootstrap(values, seed, about=None, resamples=2000):
    """Standard error and 95 % interval of a mean, by drawing posts with replacement.

    values: (n,). about: the post of each, for several values of one post are no independent ones:
    they are drawn together; None: a post each. (Wilson's interval is for yes and no; half a win is
    neither.) Returns: se, [low, high].
    """
    # DIFFERS: the paper's error bars are one standard error.
    place, rng = {}, generator(seed, "bootstrap")
    of = [place.setdefault(post, len(place)) for post in about or range(len(values))]     # (n,)
    sums, counts, n = np.bincount(of, values), np.bincount(of), len(place)                # (posts,)
    drawn = (rng.integers(n, size=n) for _ in range(resamples))
    means = np.array([sums[posts].sum() / counts[posts].sum() for posts in drawn])
    return means.std(), np.quantile(means, [0.025, 0.975]).tolist()


def win_rate(values, seed):
    """A win rate for the report: {"win_rate", "win_rate_95", "n"}."""
    return {"win_rate": float(np.mean(values)), "win_rate_95": bootstrap(values, seed)[1],
            "n": len(values)}


def length_controlled(preferred, log_length, ridge=1e-3):
    """Win rates as they would be if every summary were as long as the reference (appendix F).

        P(preferred) = sigmoid(policy's constant + slope * log(length / reference's length))

    fitted to the comparisons of all policies at once by Newton's method, then read off at ratio 1.
    preferred, log_length: {policy: (n,)}; a tie is a target of 1/2. The ridge keeps the constant of
    a policy that never wins finite.
    Returns: {policy: win rate}.
    """
    names = list(preferred)
    who = np.concatenate([np.full(len(preferred[p]), i) for i, p in enumerate(names)])
    x = np.column_stack([np.eye(len(names))[who], np.concatenate([log_length[p] for p in names])])
    y, w = np.concatenate([preferred[p] for p in names]), np.zeros(len(names) + 1)
    for _ in range(100):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (y - p) - ridge * w
        step = np.linalg.solve((x.T * (p * (1 - p))) @ x + ridge * np.eye(len(w)), gradient)
        w += step / max(1.0, np.abs(step).max())         # far from the optimum, Newton overshoots
        if np.abs(step).max() < 1e-9:
            break
    return {name: float(1 / (1 + math.exp(-w[i]))) for i, name in enumerate(names)}


def best_of(scores, values, n):
    """What the best of n would be worth, from a pool of N >= n samples a post, without bias.

        E[value of best of n] = sum over i of  C(i - 1, n - 1) / C(N, n) * value of the i-th

    with samples in ascending order of score: the i-th is the best of those n-subsets whose n - 1
    others lie below it (Nakano et al. 2021, appendix I). scores, values: (P, N). Returns: (P,).
    """
    N = scores.shape[1]
    weights = np.array([math.comb(i, n - 1) for i in range(N)]) / math.comb(N, n)        # (N,)
    return np.take_along_axis(values, scores.argsort(1, kind="stable"), 1) @ weights     # (P,)


def copied(summary, source):
    """Share of a summary's word pairs that stand in the source, in the same order (footnote 9).

    The longest common subsequence, found as the longest rising sequence of matching places.
    """
    ours, theirs = words(summary), words(source)
    places = defaultdict(list)
    for j in reversed(range(len(theirs) - 1)):
        places[theirs[j], theirs[j + 1]].append(j)
    rising = []                       # rising[k]: where a common sequence of k + 1 pairs may end
    for pair in zip(ours, ours[1:], strict=False):
        for j in places[pair]:
            k = bisect_left(rising, j)
            rising[k:k + 1] = [j]
    return len(rising) / max(1, len(ours) - 1)


# ------------------------------------------------------------------------- 2. what policies write

def write_greedily(policy, posts, cfg, name, examples=()):
    """The summaries by which a policy is judged."""
    with bar(len(posts), name, policy.world) as progress:
        return summarise(policy, posts, examples, rows_at_once=cfg.rows_at_once, progress=progress)


@torch.no_grad()
def log_prob(policy, queries, responses, temperature, world, rows_at_once=128):
    """log pi(summary), nats; policy: GPT. Returns: (B,) array."""
    mine, found = world.share(range(len(queries))), {}
    with gathered(policy):
        for start in range(0, len(mine), rows_at_once):
            some = mine[start:start + rows_at_once]
            rows = lay_out([queries[i] for i in some], [responses[i] for i in some],
                           policy.config.n_vocab).to(world.device)
            logp = token_logp(policy(rows.tokens, at=rows.columns), rows.targets, temperature)
            logp = logp.masked_fill(~rows.is_response, 0.0).double().sum(1)          # (b,)
            found |= zip(some, logp.tolist(), strict=True)
    found = world.merge(found)
    return np.array([found[i] for i in range(len(queries))])


def log_ratio(policy, reference, *rows, **how):
    """log pi(summary) - log pi_reference(summary), nats; the rest as in `log_prob`. (B,) array."""
    return log_prob(policy, *rows, **how) - log_prob(reference, *rows, **how)


def sample_with_kl(policy, supervised, posts, temperature, cfg, name):
    """One sample a post at the rollout temperature, and how far such samples stray.

    policy: Checkpoint; posts and summaries have its lengths, for both networks, as in PPO's log.
    Returns: texts; log pi(text) - log pi_sft(text) of each, an array, whose mean is the KL
    divergence from the supervised policy, in nats a summary.
    """
    queries = [encode_query(policy.tokenizer, p, policy.query_length, policy.fill) for p in posts]
    world = policy.world
    with bar(len(posts), name, world) as progress:
        responses = respond(policy.model, queries, policy.response_length, temperature, cfg.seed,
                            "kl", rows_at_once=cfg.rows_at_once, progress=progress, world=world)
    kl = log_ratio(policy.model, supervised.model, queries, responses, temperature, world,
                   cfg.rows_at_once)
    if not np.isfinite(kl).all():
        raise Problem(f"{policy.folder}, {name}: its KL from {supervised.folder} is not finite: "
                      "one of the two has diverged; train it again with a lower --lr")
    return [decode_response(policy.tokenizer, r) for r in responses], kl


def write_pool(policy, posts, n, temperature, cfg):
    """n samples of each post, post by post."""
    with bar(len(posts) * n, "pool", policy.world) as progress:
        return summarise(policy, [p for p in posts for _ in range(n)], temperature=temperature,
                         seed=cfg.seed, purpose="pool", rows_at_once=cfg.rows_at_once,
                         progress=progress)


def describe(texts, posts, grades, won, length, seed):
    """The report's numbers on one policy's greedy summaries.

    grades: what the judge said of them. won: (n,) against the reference. length: (n,) tokens.
    """
    overlap = [rouge(t, p["summary"]) for t, p in zip(texts, posts, strict=True)]
    sources = [f"{p['title']}\n{p['article' if 'article' in p else 'post']}" for p in posts]
    return {**win_rate(won, seed), "length": float(length.mean()),
            "length_controlled_win_rate": 0.5, "kl": None,
            **{key: float(np.mean([o[key] for o in overlap])) for key in overlap[0]},
            "copied": float(np.mean([copied(t, s) for t, s in zip(texts, sources, strict=True)])),
            "axes": {axis: float(grades[axis].mean()) if axis in grades else None for axis in AXES}}


def write_all(needed, cfg):
    """Everybody's summaries: {name: texts}; each policy reads and writes with its own lengths."""
    posts = needed.posts
    texts = {name: write_greedily(p, posts, cfg, name,
                                  needed.examples if name == "pretrained" else ())
             for name, p in needed.policies.items()}
    texts["reference"] = [p["summary"].strip() for p in posts]
    if "article" in posts[0]:
        texts["lead_3"] = [LEAD_3.match(p["article"].strip())[0] for p in posts]
    if needed.against:
        texts["against"] = write_greedily(needed.against, posts, cfg, "against")
    return texts


def compare(needed, texts, cfg):
    """Everything that greedy summaries tell; texts: of `write_all`.

    Returns: the report's `policies`, `against_supervised`, `difference` and `against` as a dict.
    """
    policies, posts, judge = needed.policies, needed.posts, needed.judge
    encode = policies["supervised"].tokenizer.encode_ordinary        # one measure for all
    said = {name: judge(posts, some) for name, some in texts.items()}
    other, texts = said.pop("against", None), {n: t for n, t in texts.items() if n in said}
    length = {name: np.array([len(encode(" " + t)) for t in some]) for name, some in texts.items()}
    won = {name: preferred(judge, s, said["reference"]) for name, s in said.items()} # (n,) each
    rows = {name: describe(texts[name], posts, said[name], won[name], length[name], cfg.seed)
            for name in texts}
    rivals = [name for name in texts if name != "reference"]
    for name, rate in length_controlled(
            {n: won[n] for n in rivals},
            {n: np.log(length[n] / length["reference"]) for n in rivals}).items():
        rows[name]["length_controlled_win_rate"] = rate
    found = {"policies": rows, "against_supervised": {
        name: win_rate(1 - won["supervised"] if name == "reference" else      # asked already
                       preferred(judge, s, said["supervised"]), cfg.seed)
        for name, s in said.items() if name != "supervised"}}
    best = "human_feedback" if "human_feedback" in policies else "supervised"
    if best == "human_feedback":
        gain = won[best] - won["supervised"]                             # (n,) on the same posts
        se, interval = bootstrap(gain, cfg.seed)
        found["difference"] = {"mean": float(gain.mean()), "se": float(se), "95": interval}
    if other:
        found["against"] = {"policy": cfg.against, "ours": policies[best].folder,
                            **win_rate(preferred(judge, said[best], other), cfg.seed)}
    return found


def human_axes(path, seed):
    """People's mean grades, 1 to 7, from a file of OpenAI's axis records (label.py export).

    Returns: {policy: {axis: {"mean", "95", "n"}}}. Raises: Problem naming file and line.
    """
    grades = defaultdict(lambda: defaultdict(list))              # pairs (grade, post)
    for number, record in read_jsonl(path):
        try:
            for axis in AXES:
                if (given := record["summary"]["axes"].get(axis)) is not None:
                    if type(given) not in (int, float) or not 1 <= given <= 7:
                        raise ValueError
                    grades[record["summary"]["policy"]][axis].append(
                        (float(given), json.dumps(record.get("info") or number)))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Problem(f"{path}, line {number}: is no axis record: write {{\"summary\": "
                          '{"policy": name, "axes": {"overall": 7}}, ...}, of 1 to 7') from None


    def summary(some):
        given, posts = zip(*some, strict=True)
        return {"mean": float(np.mean(given)), "95": bootstrap(given, seed, posts)[1],
                "n": len(given)}
    return {policy: {axis: summary(some) for axis, some in found.items()}
            for policy, found in grades.items()}


# ------------------------------------------------------------- 3. the reward model, and its misuse

class Labels(NamedTuple):
    """Labels that the reward model has not seen, n of them, of the split valid2."""
    comparisons: list            # n
    judged: list                 # n: the post, as the judge has to see it; None where it cannot be
    notes: list                  # what the report should say of those that are missing


def identity(record):
    """What makes two records the same post: its texts too, for every toy world has a toy-train-0.
    """
    return tuple(record[name].strip() for name in fields_of(record))


def read_labels(cfg, reward, supervised, judge):
    """The Labels to try a reward model on: those of --comparisons, else of the run, else of its
    training. ROUGE needs the author's summary, and comparisons have none: it comes from the folder
    that the reward model learned from (or, of the same text, the supervised policy; or --data).
    """
    paths = str(Path(cfg.run) / "comparisons.jsonl")
    paths = cfg.comparisons or (paths if Path(paths).exists() else
                                reward.flags.get("comparisons") or paths)
    gone = [path for path in paths.split(",") if not Path(path.strip()).exists()]
    labels = [] if gone and not cfg.comparisons else [
        c for c in read_comparisons(paths) if c.get("split") == "valid2"]
    if not labels:
        why = f"{gone[0]} is missing" if gone else f"{paths} has no line of split valid2"
        return Labels([], [], [f"The reward model is not tried on labels: {why}."])
    posts, why = [c["info"] for c in labels], ""
    judged = posts
    if isinstance(judge, Command):                  # it is paid by the pair, and so not asked
        judged = [None] * len(posts)
    elif judge is judge_gold:
        judged = [p if p["id"].startswith("toy") else None for p in posts]
        why = "their posts are not of the toy world"
    elif judge is judge_rouge:
        folders = [f for f in (reward.flags.get("data"), supervised.flags.get("data"), cfg.data)
                   if f]
        own = {identity(p): p for folder in reversed(folders) for split in SPLITS
               if find(folder, split) for p in read_posts(folder, split, need_summary=False)
               if p.get("summary", "").strip()}
        judged = [own.get(identity(p)) for p in posts]
        why = ("the authors' summaries are not known: posts of these texts do not stand in "
               + " or ".join(dict.fromkeys(folders)))
    missing = judged.count(None)
    return Labels(labels, judged, [
        f"For {missing} of {len(posts)} labels there is no opinion of the judge beside the reward "
        f"model's: {why}."] if missing and why else [])


def reward_accuracy(reward, labels, judge, cfg):
    """How often the reward model agrees with labels it has not seen, and how often the judge does:
    labels are noisy, so nobody can agree with all. Both read with their own lengths.

    Several labels of a post are no independent ones: the interval draws posts.
    """
    posts = [c["info"] for c in labels.comparisons]
    chosen, rejected = ([c["summaries"][c["choice"] ^ side]["text"] for c in labels.comparisons]
                        for side in (0, 1))
    with bar(2 * len(posts), "reward model", reward.world) as progress:
        scores = np.array(score_texts(reward, posts * 2, chosen + rejected, cfg.rows_at_once,
                                      progress)).reshape(2, -1)
    right, about = wins(scores[0], scores[1]), [identity(p) for p in posts]          # (n,) each
    known = [i for i, post in enumerate(labels.judged) if post]
    post, a, b = ([some[i] for i in known] for some in (labels.judged, chosen, rejected))
    judged = preferred(judge, judge(post, a), judge(post, b)) if known else None
    return {"accuracy": float(right.mean()), "accuracy_95": bootstrap(right, cfg.seed, about)[1],
            "n": len(posts), "posts": len(set(about)),
            "ceiling": None if judged is None else float(judged.mean())}


def opinions(reward, judge, posts, texts, cfg):
    """What the reward model and the judge think of summaries written to please the former.

    texts: N for each post, post by post. Returns: {"rm", "gold": grades; "win_rate": of the judge,
    1, 1/2 or 0; "predicted_win_rate": sigmoid(score - score of the author's summary)}, (P, N) each.
    """
    shape, own = (len(posts), -1), [p["summary"] for p in posts]
    records = [p for p in posts for _ in range(len(texts) // len(posts))]
    rm = np.reshape(score_texts(reward, records, texts, cfg.rows_at_once), shape)    # (P, N)
    own_rm = np.reshape(score_texts(reward, posts, own, cfg.rows_at_once), shape)    # (P, 1)
    gold = judge(records, texts)["overall"].reshape(shape)                           # (P, N)
    own_gold = judge(posts, own)["overall"].reshape(shape)                           # (P, 1)
    return {"rm": rm, "gold": gold, "win_rate": wins(gold, own_gold),
            "predicted_win_rate": 1 / (1 + np.exp(own_rm - rm))}


def please(*about, sizes=(1,)):
    """Means over posts of `opinions` of the best of n, as the reward model picks it: [for each n]
    """
    seen = opinions(*about)
    return [{k: float(best_of(seen["rm"], v, n).mean()) for k, v in seen.items()} for n in sizes]


def checkpoints(ppo):
    """PPO's snapshots in training's order, then its final policy: yields (iterations, GPT)."""
    final = ppo.flags["episodes"] // ppo.flags["batch"]
    for path in sorted(Path(ppo.folder, "snapshots").glob("step-*.pt")):
        if (step := int(path.stem[5:])) < final:
            load_weights(model := skeleton(ppo.model.config, ppo.world, frozen=True), path)
            yield step, model
    yield final, ppo.model


def overoptimisation(supervised, ppo, samples, reward, judge, posts, temperature, cfg):
    """Ways of pleasing the reward model more and more, each with its KL (Figures 5 and 7).

    PPO's rows have PPO's lengths; best of n, the supervised policy's; all, PPO's temperature.
    samples: (texts, kl) of the final policy, when there is one. Returns: the report's rows.
    """
    rows = []
    for step, model in checkpoints(ppo) if ppo else ():
        texts, kl = samples if model is ppo.model else sample_with_kl(
            ppo._replace(model=model), supervised, posts, temperature, cfg, f"step {step}")
        rows.append({"method": "ppo", "beta": ppo.flags["kl_coef"], "n": None,
                     "kl": float(kl.mean()), "step": step,
                     **please(reward, judge, posts, texts, cfg)[0]})
    posts, sizes = posts[:POOLS], [2 ** k for k in range(cfg.pool.bit_length())]     # 1, 2, 4, ...
    texts = write_pool(supervised, posts, cfg.pool, temperature, cfg)
    found = please(reward, judge, posts, texts, cfg, sizes=sizes)
    return rows + [{"method": "best_of_n", "beta": None, "n": n, "kl": math.log(n) - (n - 1) / n,
                    "step": None, **row} for n, row in zip(sizes, found, strict=True)]


# ----------------------------------------------------------------------------------- 4. the report

def load_policies(cfg, world):
    """The finished policies of a run: {name in the report: Checkpoint}, supervised among them."""
    found = {name: load_checkpoint(Path(cfg.run) / folder, world)
             for name, folder in FOLDERS.items()
             if name == "supervised" or (Path(cfg.run) / folder / "model.pt").exists()}
    for policy in found.values():
        if not same_tokenizer(policy.tokenizer, found["supervised"].tokenizer):
            raise Problem(f"{policy.folder} has another tokenizer than {cfg.run}/supervised: they "
                          "are not of one run")
    return found


class Needed(NamedTuple):
    """All that an evaluation reads, found sound before the first summary costs anything."""
    data: str                    # folder of the posts
    posts: list
    examples: list               # solved posts for the pretrained model
    policies: dict               # {name in the report: Checkpoint}, supervised among them
    against: Checkpoint | None
    judge_name: str
    judge: Callable
    reward: Checkpoint | None
    labels: Labels | None        # to try the reward model on
    people: dict | None          # grades of --axes


def prepare(cfg, world):
    """Read and check everything; see Needed. Raises: Problem for the first thing that is wrong."""
    people = human_axes(cfg.axes, cfg.seed) if cfg.axes else None
    policies = load_policies(cfg, world)
    supervised, ppo = policies["supervised"], policies.get("human_feedback")
    data = cfg.data or supervised.flags.get("data")
    if not data:
        raise Problem(f"{supervised.folder} does not say which posts it learned from: give --data")
    posts = held_out(data)
    order = generator(cfg.seed, "evaluate").permutation(len(posts))
    posts = [posts[i] for i in order[:cfg.posts]]
    # Solved posts are of the folder asked about or, if it has none, of the policy's own.
    solved = data if find(data, "train") else supervised.flags.get("data")
    examples = worked_examples(solved, cfg.examples, cfg.seed) if "pretrained" in policies else []
    against = load_checkpoint(cfg.against, world) if cfg.against else None
    reward = labels = None
    if (Path(cfg.run) / "reward" / "model.pt").exists():
        reward = load_reward(Path(cfg.run) / "reward", world, supervised.tokenizer)
    for reader in filter(None, (supervised, ppo, against, reward)):
        check_queries(reader.tokenizer, posts, reader.query_length)
    name = choose_judge(cfg, posts)
    judge = load_judge(cfg, name, world, supervised.tokenizer, posts)
    if reward:
        labels = read_labels(cfg, reward, supervised, judge)
        check_queries(reward.tokenizer, [c["info"] for c in labels.comparisons],
                      reward.query_length)
    if reward and ppo:
        from tools.microscope import settings, stops  # an appendix, opened when it is needed
        for _ in (stops(supervised, ppo, reward, settings(supervised, ppo, reward))
                  if Path(ppo.folder, "critic.pt").exists() else checkpoints(ppo)):
            pass                                     # every snapshot can be read, and every critic
    if world.rank == 0:
        folder_of(cfg).mkdir(parents=True, exist_ok=True)
        if isinstance(judge, Command):               # can it answer at all? one call to know
            judge.ask(posts[0], posts[0]["summary"], posts[0]["title"])
    return Needed(data, posts, examples, policies, against, name, judge, reward, labels, people)


def seconds_of(run):
    """How long each stage took, as each wrote down when it ended."""
    def noted(name):
        path = Path(run) / name
        try:
            return float(json.loads(read_text(path))["seconds"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return 0.0                         # never begun, or never ended

    # Labels cost the writing of the pairs and the answering.
    return {"pretrained": noted("pretrained/config.json"),
            "supervised": noted("supervised/config.json"),
            "labels": noted("pairs.config.json") + noted("comparisons.config.json"),
            "reward": noted("reward/config.json"), "ppo": noted("ppo/config.json")}


def evaluate(cfg, world):
    """Yield the report as a dict, one post with everybody's summary of it, and what the token
    microscope saw (None where no PPO was): after each part, so that nothing is lost if the next one
    fails. The last report is whole."""
    began, needed = time.perf_counter(), prepare(cfg, world)
    supervised, ppo = needed.policies["supervised"], needed.policies.get("human_feedback")
    out, reward, judge, seen = folder_of(cfg), needed.reward, needed.judge, None
    texts = write_all(needed, cfg)
    if world.rank == 0:
        write(out / "summaries.jsonl", [
            {"id": post["id"], **{name: some[i] for name, some in texts.items()}}
            for i, post in enumerate(needed.posts)])
    example = needed.posts[0], {name: some[0] for name, some in texts.items()}
    report = {"judge": needed.judge_name, "data": str(needed.data), **compare(needed, texts, cfg),
              "human_axes": needed.people, "reward_model": None, "overoptimisation": [],
              "notes": [UNFINISHED, *(needed.labels.notes if reward else ())]}
    report["policies"]["supervised"]["kl"] = 0.0
    yield ended(report, cfg, began), example, seen

    some, samples = needed.posts[:cfg.samples], None
    temperature = (ppo or supervised).flags.get("temperature", 1.0)
    if ppo:
        samples = sample_with_kl(ppo, supervised, some, temperature, cfg, "KL")
        report["policies"]["human_feedback"]["kl"] = float(samples[1].mean())
    if reward and needed.labels.comparisons:
        report["reward_model"] = reward_accuracy(reward, needed.labels, judge, cfg)
    yield ended(report, cfg, began), example, seen

    if reward and not isinstance(judge, Command):
        report["overoptimisation"] = overoptimisation(supervised, ppo, samples, reward, judge, some,
                                                      temperature, cfg)
    yield ended(report, cfg, began), example, seen

    if reward and ppo and Path(ppo.folder, "critic.pt").exists():
        from tools.microscope import look
        seen = look(supervised, ppo, reward, needed.posts[:CLOSE], judge)
    report["notes"].remove(UNFINISHED)
    yield ended(report, cfg, began), example, seen


def ended(report, cfg, began):
    """A report with its seed and seconds; five digits of each float, more than posts support."""
    seconds = {**seconds_of(cfg.run), "evaluate": time.perf_counter() - began}
    report |= {"seed": cfg.seed, "seconds": {**seconds, "total": sum(seconds.values())}}
    return json.loads(json.dumps(report), parse_float=lambda x: round(float(x), 5),
                      parse_constant=refuse)


def refuse(constant):
    """Raise a Problem for NaN or an infinity where a number should be."""
    raise Problem(f"a number of the report came out as {constant}; report.json keeps what was "
                  "measured before it")


def folder_of(cfg):
    """Where the report goes."""
    return Path(cfg.out or Path(cfg.run) / "report")


def of_people(cfg):
    """What `evaluate` yields, of --judge labels:DB; no text is written, so there is no post.

    Answers about one pair are not independent: the unit of label_stats.share is the pair.
    """
    began = time.perf_counter()
    config_of(Path(cfg.run) / "supervised")               # complain about a run that is none
    if cfg.against:
        raise Problem("--against needs a judge of new texts; --judge labels: knows old ones only")
    names = {name: folder for name, folder in FOLDERS.items() if name == "supervised" or
             (Path(cfg.run) / folder / "model.pt").exists()}       # asked about, here or not
    report = {"judge": cfg.judge, "data": None, **people_say(cfg.judge.partition(":")[2], names),
              "human_axes": human_axes(cfg.axes, cfg.seed) if cfg.axes else None,
              "reward_model": None, "overoptimisation": [], "notes": []}
    yield ended(report, cfg, began), None, None


def table(header, rows):
    """Aligned columns: a Markdown table that reads well in a terminal too.

    header: a list that holds the one row of titles; rows: lists of texts.
    """
    rows = header + rows
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(f"{cell:{'>' if i else '<'}{wide[i]}}" for i, cell in enumerate(row))
             for row in rows]
    rule = "|".join("-" * (w + 1) + ("-:"[i > 0]) for i, w in enumerate(wide))
    return "\n".join(["| " + lines[0] + " |", f"|{rule}|"] + [f"| {line} |" for line in lines[1:]])


def cell(x, form=".2f", interval=None):
    """A number as a table shows it; None as a dash."""
    if x is None:
        return "-"
    ends = f" [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]" if interval else ""
    return (str(x) if isinstance(x, int) else format(x, form)) + ends


def policy_table(report, brief=False):
    """Policies and authors, one row each; brief: the columns that fit a narrow terminal. Of people:
    every two policies that they compared."""
    if "labels" in report:
        return table([["policy", "against", "preferred", "answers"]], [
            [r["policy"], r["against"], cell(r["share"], ".1%", r["95"]), cell(r["n"])]
            for r in report["labels"]])
    header = ["policy", "beats author", "same length", "beats supervised", "grade", "ROUGE-L",
              "copied", "tokens", "KL"]
    rows = []
    for name, p in report["policies"].items():
        rival = report["against_supervised"].get(name, {"win_rate": None, "win_rate_95": None})
        rows.append([name.replace("_", " "), cell(p["win_rate"], ".1%", p["win_rate_95"]),
                     cell(p["length_controlled_win_rate"], ".1%"),
                     cell(rival["win_rate"], ".1%", rival["win_rate_95"]),
                     cell(p["axes"]["overall"]), cell(p["rouge_l"], ".3f"),
                     cell(p["copied"], ".0%"), cell(p["length"], ".1f"), cell(p["kl"], ".1f")])
    kept = range(len(header)) if not brief else (
        (0, 3, 5, 6, 7, 8) if report["judge"] == "rouge" else (0, 1, 2, 4, 7, 8))
    return table(*([[row[i] for i in kept] for row in part] for part in ([header], rows)))


MEANING = """
* **beats author**: share of posts on which the judge prefers this summary to the one by the post's
  author; a tie is half. In brackets the 95 % interval, by drawing posts anew (bootstrap). Each
  policy reads and writes at most as many tokens as in its own training.
* **same length**: that share if all summaries were as long as the author's (by regression).
* **beats supervised**: share preferred to the supervised policy's summary.
* **grade**: the judge's mean grade. **ROUGE-L**: words shared with the author's, in order.
* **copied**: share of word pairs that stand in the post, in the same order.
* **KL**: nats a summary from the supervised policy, when sampled as PPO does: PPO's own lengths
  and temperature, on the first of the posts (`--samples`)."""
PICTURE = "\n![Preference, and score and KL while PPO trains](report.png)"


def markdown(report, example):
    """report.md: the tables, and what each number means."""
    parts = [f"# Report\n\n{report['policies']['reference']['n']} held-out posts of "
             f"`{report['data']}`, summarised greedily; the judge is `{report['judge']}`.\n",
             policy_table(report), MEANING, PICTURE]
    if "labels" in report:
        parts = [f"# Report\n\nPeople's answers, `{report['judge']}`: to sampled summaries of "
                 "training posts, not\nto greedy ones of held-out posts. In brackets the 95 % "
                 "interval, by posts; a tie is half;\n*ref* is the author. Labellers who are held "
                 "do not count.\n", policy_table(report), PICTURE]
    parts += [f"\n{note}" for note in report["notes"]]
    if report["judge"].startswith("command:"):
        parts += ["\nThis judge compares and does not grade: there are no grades, no ceiling for "
                  "the reward\nmodel, and no curve of pleasing it. Which summary came first was "
                  "drawn for each post."]
    if d := report.get("difference"):
        low, high = d["95"]
        parts += [f"\nHuman feedback's share minus supervised's, on the same posts: "
                  f"{d['mean']:+.1%} (95 %: {low:+.1%} to {high:+.1%})."]
    if a := report.get("against"):
        parts += [f"\n`{a['ours']}` is preferred to `{a['policy']}` on "
                  f"{cell(a['win_rate'], '.1%', a['win_rate_95'])} of {a['n']} posts."]
    if report["judge"] == "gold":
        parts += ["\n## Grades, 1 (worst) to 7 (best)\n", table([["policy", *AXES]], [
            [name.replace("_", " "), *(cell(p["axes"][a]) for a in AXES)]
            for name, p in report["policies"].items()])]
    if h := report["human_axes"]:
        parts += ["\n## Grades by people\n", table([["policy", *AXES]], [
            [name, *(cell(p[a]["mean"]) + f" ({p[a]['n']})" if a in p else "-" for a in AXES)]
            for name, p in h.items()])]
    if r := report["reward_model"]:
        parts += [f"\n## The reward model\n\nIt agrees with "
                  f"{cell(r['accuracy'], '.1%', r['accuracy_95'])} of {r['n']} labels about "
                  f"{r['posts']} posts that it has not seen."
                  + (f" Labels are noisy: the judge agrees with {r['ceiling']:.1%}."
                     if r["ceiling"] is not None else "")]
    if rows := report["overoptimisation"]:
        keys = {"method": "", "n": "", "step": "", "kl": ".2f", "rm": "+.2f", "gold": ".2f",
                "win_rate": ".1%", "predicted_win_rate": ".1%"}
        parts += ["\n## Pleasing the reward model\n\nSampled summaries: the reward model's score "
                  "(rm) and predicted win rate, beside\nthe judge's grade (gold) and the true win "
                  "rate. Where they part, optimising has\ngone too far.\n",
                  table([list(keys)], [[cell(row[k], form) for k, form in keys.items()]
                                     for row in rows])]
    if example:
        post, said = example
        text = f"{post['title']}\n\n{post['article' if 'article' in post else 'post']}"
        parts += ["\n## One post\n", *("> " + line for line in text.split("\n")), "",
                  *(f"* **{name.replace('_', ' ')}**: {summary}" for name, summary in said.items())]
    parts += ["\n## Seconds\n", table([list(report["seconds"])], [
        [f"{s:.0f}" for s in report["seconds"].values()]])]
    return "\n".join(parts) + "\n"


def draw(report, log, out):
    """report.png and report.svg: win rates, and score and KL over PPO's training.

    log: the lines of PPO's log.jsonl, may be empty. Raises: Problem without matplotlib.
    """
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise Problem(f"{out}: report.json and report.md are written; for the figure, "
                      "`pip install matplotlib`") from None
    blue, orange, grey = "#0072B2", "#D55E00", "#999999"     # told apart by all eyes (Okabe, Ito)
    rivals = ("against_supervised", "the supervised policy") if report["judge"] == "rouge" else (
        "policies", "the human reference")
    bars = {name: row for name in FOLDERS
            if (row := report[rivals[0]].get(name)) and row["win_rate"] is not None}
    with pyplot.rc_context({"font.size": 14, "axes.spines.top": False, "axes.spines.right": False,
                            "svg.hashsalt": "report"}):
        page = pyplot.figure(figsize=(11, 4.6), layout="constrained")
        grid = page.add_gridspec(2, 2)
        left, top, bottom = (page.add_subplot(g) for g in (grid[:, 0], grid[0, 1], grid[1, 1]))
        for i, (name, row) in enumerate(bars.items()):
            rate, (low, high) = row["win_rate"], row["win_rate_95"]
            left.bar(i, rate, 0.62, color=blue if name == "human_feedback" else grey,
                     yerr=[[rate - low], [high - rate]], capsize=6, error_kw={"lw": 1.8})
            left.text(i, high + 0.025, f"{rate:.0%}", ha="center", weight="bold",
                      bbox=dict(color="white", pad=1))
        left.axhline(0.5, color="black", lw=1.2, ls="--", zorder=0)
        left.set(xticks=range(len(bars)), xticklabels=[name.replace("_", "\n") for name in bars],
                 ylim=(0, 1.08), yticks=[0, .25, .5, .75, 1], title=f"Preferred to {rivals[1]}")
        left.yaxis.set_major_formatter("{x:.0%}")
        episodes = [line["episodes"] for line in log]
        top.plot(episodes, [line["score"] for line in log], color=blue, lw=2.4)
        bottom.plot(episodes, [line["kl"] for line in log], color=orange, lw=2.4)
        top.set(title="While PPO trains", ylabel="reward model")
        top.tick_params(labelbottom=False)
        bottom.set(xlabel="summaries written", ylabel="KL, nats")
        save_picture(page, out / "report", 150)
        pyplot.close(page)


def save_picture(page, path, dpi):
    """A figure of matplotlib as path.png and path.svg, each whole or not at all."""
    for kind in ("png", "svg"):
        with replacing(f"{path}.{kind}") as f:
            page.savefig(f, format=kind, dpi=dpi, metadata={"Date": None})


def main(argv=None):
    """Measure and write, part by part, then print and draw: nothing is lost on the way."""
    argv = moved(argv, {"doctor": "tools.doctor", "compare": "tools.figures compare"})
    cfg = parse(Config, {}, argv, __doc__)
    if min(cfg.posts, cfg.samples, cfg.pool, cfg.rows_at_once) < 1 or cfg.examples < 0:
        raise Problem("--posts, --samples, --pool, --rows-at-once count from 1, --examples from 0")
    if cfg.jobs < 1 or cfg.patience <= 0:
        raise Problem("--jobs counts from 1, and --patience is more than 0 seconds")
    if not cfg.run:
        raise Problem("--run is missing: a folder of stages, such as runs/demo")
    out, log = folder_of(cfg), Path(cfg.run) / "ppo" / "log.jsonl"
    lines = [line for _, line in read_jsonl(log)] if log.exists() else []
    with join_world(cfg) as world, mixed(world):
        parts = of_people(cfg) if cfg.judge.startswith("labels:") else evaluate(cfg, world)
        for part in parts:                                 # each holds more than the one before
            if world.rank == 0:
                report, example, seen = part
                text = markdown(report, example)
                write_atomically(out / "report.json", json.dumps(report, indent=1) + "\n")
                write_atomically(out / "report.md", text)
    if world.rank > 0:
        return None
    from tools.microscope import page
    print("\n".join([policy_table(report, brief=True), *report["notes"]]))
    try:
        draw(report, [line for line in lines if {"episodes", "score", "kl"} <= line.keys()], out)
    finally:                                              # without the picture where it is missing
        write_atomically(out / "report.html", page(text, out, seen))
    print(f"\n{out / 'report.html'} says what it means ({report['seconds']['evaluate']:.0f} s)")


if __name__ == "__main__":
    entry(main)
