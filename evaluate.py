"""Chapter 9. Is it really better? Win rates, how sure they are, and what else changed.

    win rate = share of posts whose summary the judge prefers to the author's own; a tie counts 1/2

Every policy of a run summarises the same posts, on which none was trained, and a judge compares who
labelled nothing (sections 4.1 to 4.4). The columns that are printed:

    beats author      the win rate; in brackets its 95 % interval, over posts        (bootstrap)
    beats supervised  share of posts whose summary is preferred to the supervised policy's
    grade             the judge's mean grade; those of the toy world go from 1 to 7
    tokens            mean length
    KL                nats a summary from the supervised policy, sampled as PPO samples

PPO is trained to please the reward model, so a higher score proves nothing; a judge does. All
numbers go to report.json, all greedy summaries to summaries.jsonl. tools.report adds what one
would see at equal length (appendix F), ROUGE, and when optimising goes too far (Figure 5).

    python evaluate.py --run runs/mine --data data/mine --out runs/mine/report
    python -m tools.report --run runs/mine

Before:  ppo.py.    After: the world; change a flag and compare again.
"""
import json
import re
import time
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import data
import sample
import toy
from model import lay_out, token_logp
from runtime import Machine, Problem, flag, generator, launch, write


@dataclass(frozen=True)
class Config(Machine):
    run: str = flag(..., "a run such as runs/demo, finished or half done", what="DIR")
    data: str = flag("", "posts; none: those that the supervised policy learned from", what="DIR")
    out: str = flag("", "folder of the report; none: report/ in --run", what="DIR")
    posts: int = flag(1000, "held-out posts that every policy summarises", least=1)
    seed: int = flag(0, "which posts they are, and every random number")


FOLDERS = {"pretrained": "pretrained", "supervised": "supervised", "human_feedback": "ppo"}
SAMPLES = 256                # posts, at most, of which a sample is drawn: KL
LEAD_3 = re.compile(r"(?s)(?:.*?[.!?][\"')\u2019\u201d]*(?=\s)){3}|.*")   # of news: three sentences


# -------------------------------------------------------------- 1. judges: which summary is better?

AXIS_NAMES = ("coverage", "accuracy", "coherence", "overall")    # most judges have "overall" only


def wins(ours, theirs):
    """1 where our grade is higher, 0 where theirs is, 1/2 for a tie; any shapes that fit."""
    return (np.sign(np.asarray(ours) - np.asarray(theirs)) + 1) / 2


class Judge(namedtuple("Judge", "grade")):
    """One to whom the text with the higher overall grade is better.

    grade: (posts, texts) -> {axis: (n,)}; None for a judge (of tools.judges) that only compares."""
    def compare(self, posts, ours, theirs):
        """(n,), 1 where our text is better, 0 where theirs is, 1/2 for a tie."""
        return wins(self.grade(posts, ours)["overall"], self.grade(posts, theirs)["overall"])


def gold(posts, texts):
    """The toy world's truth, 1 to 7 on each of the paper's axes."""
    grades = [toy.gold(p, t) for p, t in zip(posts, texts, strict=True)]
    return {axis: np.array([getattr(g, axis) for g in grades]) for axis in AXIS_NAMES}


def the_judge(posts):
    """The judge of these posts, as its name and a Judge. (tools.judges has more of them.)"""
    foreign = [p["id"] for p in posts if not p["id"].startswith("toy")]
    if foreign:
        raise Problem(f"the true judge knows toy posts only, not {foreign[0]!r}: python -m "
                      "tools.judges has others, such as --judge rouge")
    return "gold", Judge(gold)


# ------------------------------------------------------------------------------------ 2. statistics

def bootstrap(values, seed, about=None, resamples=2000):
    """Standard error and 95 % interval of a mean: draw n posts with replacement, pool their values,
    average, repeat; how far do means spread? about: each value's post, if posts have several."""
    place, rng = {}, generator(seed, "bootstrap")  # DIFFERS: the paper's bars: one standard error
    of = [place.setdefault(post, len(place)) for post in about or range(len(values))]     # (n,)
    sums, counts, n = np.bincount(of, values), np.bincount(of), len(place)                # (posts,)
    drawn = (rng.integers(n, size=n) for _ in range(resamples))
    means = np.array([sums[posts].sum() / counts[posts].sum() for posts in drawn])
    return means.std(), np.quantile(means, [0.025, 0.975]).tolist()


# ---------------------------------------------------------------------------- 3. policies compared

def win_rate(values, seed):
    """The mean of comparisons, (n,) of 1, 1/2 or 0, for the report."""
    return {"win_rate": float(np.mean(values)), "win_rate_95": bootstrap(values, seed)[1],
            "n": len(values)}


def compare(needed, texts):
    """What greedy summaries tell: the report's `policies`, `against_supervised`, `difference`; and
    how often each was preferred to the author, {policy: (n,)}."""
    posts, judge, seed = needed.posts, needed.judge, needed.report["seed"]
    encode = needed.policies["supervised"].tokenizer.encode_ordinary      # one measure for all
    won = {name: judge.compare(posts, some, texts["reference"]) for name, some in texts.items()}
    rows, against = {}, {}
    for name, some in texts.items():
        grades = judge.grade(posts, some) if judge.grade else {}
        rows[name] = {
            **win_rate(won[name], seed),
            "length": float(np.mean([len(encode(" " + text)) for text in some])),
            "length_controlled_win_rate": None,                    # these are left to tools.report
            **dict.fromkeys(("rouge_1", "rouge_2", "rouge_l", "copied")),
            "kl": 0.0 if name == "supervised" else None,           # PPO's is added later
            "axes": {a: float(grades[a].mean()) if a in grades else None for a in AXIS_NAMES}}
        if name not in ("supervised", "reference"):
            against[name] = win_rate(judge.compare(posts, some, texts["supervised"]), seed)
    against["reference"] = win_rate(1 - won["supervised"], seed)          # asked already
    found = {"policies": rows, "against_supervised": against}
    if "human_feedback" in won:
        gain = won["human_feedback"] - won["supervised"]                  # (n,) on the same posts
        se, interval = bootstrap(gain, seed)
        found["difference"] = {"mean": float(gain.mean()), "se": float(se), "95": interval}
    return found, won


# ------------------------------------------------------------------ 4. the reward model, and the KL

def labels_of(run, flags):
    """Labels that no reward model has seen, of split valid2: the run's, else its training's."""
    own = Path(run) / "comparisons.jsonl"
    paths = str(own if own.exists() else flags.get("comparisons") or own)
    here = all(Path(path.strip()).exists() for path in paths.split(","))
    return [c for c in data.read_comparisons(paths) if c.get("split") == "valid2"] if here else []


def reward_accuracy(needed):
    """How often the reward model agrees with labels that it has not seen."""
    posts = [c["info"] for c in needed.labels]
    chosen, rejected = ([c["summaries"][c["choice"] ^ side]["text"] for c in needed.labels]
                        for side in (0, 1))
    scores = np.reshape(sample.score_texts(needed.reward, posts * 2, chosen + rejected), (2, -1))
    right, about = wins(scores[0], scores[1]), [data.query_text(p) for p in posts]   # (n,) each
    return {"accuracy": float(right.mean()), "n": len(posts), "posts": len(set(about)),
            "accuracy_95": bootstrap(right, needed.report["seed"], about)[1],
            "ceiling": None}                                       # left to tools.report


@torch.no_grad()
def log_prob(policy, queries, responses, temperature):
    """log pi(response), nats, the sum over its tokens -> (B,) array. policy: Checkpoint."""
    def act(queries, responses):
        rows = lay_out(queries, responses, policy.model.config.n_vocab).to(policy.world.device)
        logp = token_logp(policy.model(rows.tokens, at=rows.columns), rows.targets, temperature)
        return logp.masked_fill(~rows.is_response, 0.0).cpu().double().sum(1).tolist()   # (b,)
    return np.array(sample.spread(act, policy, queries, responses))


def sample_with_kl(policy, supervised, posts, temperature, seed, name):
    """A sample of each post, with the policy's lengths as in PPO -> texts; log pi(text) - log
    pi_sft(text), (n,) nats, whose mean estimates the KL divergence."""
    queries = policy.queries(posts)
    said = sample.respond(policy, queries, temperature, seed, "kl", bar=name)
    ours, theirs = (log_prob(who, queries, said, temperature) for who in (policy, supervised))
    return [data.decode_response(policy.tokenizer, r) for r in said], ours - theirs


# ------------------------------------------------------------------------------------ 5. the report

Needed = namedtuple("Needed", "began posts policies reward labels judge out report")


def prepare(cfg, world, judge_of=the_judge):
    """Read and check what is Needed before the first summary costs anything; else a Problem.
    judge_of: posts -> the judge's name, and a Judge."""
    began, run, reward, labels = time.perf_counter(), Path(cfg.run), None, []
    supervised = sample.load_checkpoint(run / "supervised", world)
    policies = {name: supervised if name == "supervised" else
                sample.load_checkpoint(run / stage, world, like=supervised)
                for name, stage in FOLDERS.items() if (run / stage / "model.pt").exists()}
    folder = cfg.data or supervised.flags.get("data") or "--data"    # no folder: named as missing
    posts = sample.held_out(folder)
    posts = [posts[i] for i in generator(cfg.seed, "evaluate").permutation(len(posts))[:cfg.posts]]
    if (run / "reward" / "model.pt").exists():
        reward = sample.load_checkpoint(run / "reward", world, "scalar", like=supervised)
        labels = labels_of(run, reward.flags)
        data.check_queries(reward.tokenizer, [c["info"] for c in labels], reward.query_length)
    for reader in filter(None, (*policies.values(), reward)):
        data.check_queries(reader.tokenizer, posts, reader.query_length)
    name, judge = judge_of(posts)
    out = Path(cfg.out or run / "report")
    out.mkdir(parents=True, exist_ok=True)
    return Needed(began, posts, policies, reward, labels, judge, out, {
        "judge": name, "data": str(folder), "human_axes": None, "reward_model": None,
        "overoptimisation": None, "notes": [], "seed": cfg.seed})


def measure(needed, world):
    """Write the summaries, measure them, write report.json -> texts, and `won` of `compare`."""
    posts, policies, report = needed.posts, needed.policies, needed.report
    supervised, ppo, seed = policies["supervised"], policies.get("human_feedback"), report["seed"]
    known = report["data"] if data.find(report["data"], "train") else supervised.flags.get("data")
    texts = {name: sample.summarise(p, posts, sample.worked_examples(known, seed)
                                    if name == "pretrained" else (), bar=name)
             for name, p in policies.items()}
    texts["reference"] = [p["summary"].strip() for p in posts]
    if "article" in posts[0]:
        texts["lead_3"] = [LEAD_3.match(p["article"].strip())[0] for p in posts]
    if world.rank == 0:
        write(needed.out / "summaries.jsonl", [
            {"id": post["id"], **{name: some[i] for name, some in texts.items()}}
            for i, post in enumerate(posts)])
    if needed.labels:
        report["reward_model"] = reward_accuracy(needed)
    if ppo:
        _, kl = sample_with_kl(ppo, supervised, posts[:SAMPLES], ppo.flags.get("temperature", 1.0),
                               seed, "KL")
    found, won = compare(needed, texts)          # last, for a judge's answers may cost money
    report |= found
    if ppo:
        report["policies"]["human_feedback"]["kl"] = float(kl.mean())
    report["seconds"] = {"evaluate": time.perf_counter() - needed.began}
    if world.rank == 0:                          # five digits: more than the posts support
        write(needed.out / "report.json", json.loads(
            json.dumps(report), parse_float=lambda x: round(float(x), 5)))
    return texts, won


def evaluate(cfg, world):
    """Read, measure, print the table of the chapter's top."""
    with world.mixed():
        needed = prepare(cfg, world)
        measure(needed, world)
    line, report = "{:14}{:>18}{:>18}{:>7}{:>8}{:>6}", needed.report
    print(line.format("policy", "beats author", "beats supervised", "grade", "tokens", "KL"))

    def rate(row):
        low, high = row["win_rate_95"]
        return f"{row['win_rate']:.1%} [{100 * low:.0f}, {100 * high:.0f}]"

    for name, p in report["policies"].items():
        rival = report["against_supervised"].get(name)
        print(line.format(name, rate(p), rate(rival) if rival else "-",
                          f"{p['axes']['overall']:.2f}", f"{p['length']:.1f}",
                          "-" if p["kl"] is None else f"{p['kl']:.1f}"))
    print(f"\n{needed.out}/report.json holds them; python -m tools.report adds the rest")


def main(argv=None):
    launch(evaluate, Config, argv, __doc__,
           moved={"doctor": "tools.doctor", "compare": "tools.figures compare",
                  "--judge": "tools.judges", "--against": "tools.judges"})


if __name__ == "__main__":
    main()
