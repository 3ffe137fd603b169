"""Chapter 9. Is it really better? Win rates, what else changed, and when optimising goes too far.

    win rate = share of posts whose summary the judge prefers to the author's own; a tie counts 1/2

Every policy of a run summarises the same posts, on which none was trained, and a judge compares who
labelled nothing (sections 4.1 to 4.4). The columns that are printed:

    beats author      the win rate; in brackets its 95 % interval, over posts        (bootstrap)
    same length       the win rate if all summaries were as long as the authors'     (appendix F)
    beats supervised  share of posts whose summary is preferred to the supervised policy's
    grade             the judge's mean grade; those of the toy world go from 1 to 7
    ROUGE-L           how many words it shares with the author's, in the same order  (data.rouge)
    tokens            mean length
    KL                nats a summary from the supervised policy, sampled as PPO samples

PPO is trained to please the reward model, so a higher score proves nothing. The last part repeats
the paper's Figure 5: for PPO (and its snapshots, if --snapshot-every made some) and for best of n,
the win rate that the reward model predicts and the true one, of samples. Of another run, without a
price of KL (docs/FIGURES.md):

    KL from the supervised policy     0      2.4     48
    true win rate                    39 %    71 %    11 %       predicted at the end: 80 %

Where they differ, optimising has gone too far: the policy has found what the reward model mistakes
for quality. All numbers go to report.json, all greedy summaries to summaries.jsonl.

    python evaluate.py --run runs/demo --data data/toy --out runs/demo/report           # 40 s
    python -m tools.report --run runs/demo              # makes report.md, report.html, pictures

Before:  ppo.py.    After: the world; change a flag and compare again.
"""
import json
import math
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
from model import lay_out, skeleton, token_logp
from runtime import Machine, Problem, flag, generator, launch, write


@dataclass(frozen=True)
class Config(Machine):
    run: str = flag(..., "a run such as runs/demo, finished or half done", what="DIR")
    data: str = flag("", "posts; none: those that the supervised policy learned from", what="DIR")
    out: str = flag("", "folder of the report; none: report/ in --run", what="DIR")
    judge: str = flag("auto", "who compares; auto: gold for toy posts, else rouge",
                      choices=("auto", "gold", "rouge"))
    posts: int = flag(1000, "held-out posts that every policy summarises", least=1)
    seed: int = flag(0, "which posts they are, and every random number")


FOLDERS = {"pretrained": "pretrained", "supervised": "supervised", "human_feedback": "ppo"}
SAMPLES = 256                # posts, at most, of which a sample is drawn: KL, over-optimisation
POOL, POOL_POSTS = 16, 150   # best of n: samples of a post; posts, at most
LEAD_3 = re.compile(r"(?s)(?:.*?[.!?][\"')\u2019\u201d]*(?=\s)){3}|.*")   # of news: three sentences
UNFINISHED = "This evaluation has not ended: what is not here was not measured yet."


# -------------------------------------------------------------- 1. judges: which summary is better?

AXIS_NAMES = ("coverage", "accuracy", "coherence", "overall")    # most judges have "overall" only


def wins(ours, theirs):
    """1 where our grade is higher, 0 where theirs is, 1/2 for a tie; any shapes that fit."""
    return (np.sign(np.asarray(ours) - np.asarray(theirs)) + 1) / 2


class Judge(namedtuple("Judge", "grade")):
    """One to whom the text with the higher overall grade is better.

    grade: (posts, texts) -> {axis: (n,)}; None for a judge (of tools.judges) that only compares.
    """
    def compare(self, posts, ours, theirs):
        """(n,), 1 where our text is better, 0 where theirs is, 1/2 for a tie."""
        return wins(self.grade(posts, ours)["overall"], self.grade(posts, theirs)["overall"])


def gold(posts, texts):
    """The toy world's truth, 1 to 7 on each of the paper's axes."""
    grades = [toy.gold(p, t) for p, t in zip(posts, texts, strict=True)]
    return {axis: np.array([getattr(g, axis) for g in grades]) for axis in AXIS_NAMES}


def rouge(posts, texts):
    """ROUGE-L, 0 to 1. Nobody beats the author then: look at who beats the supervised policy."""
    return {"overall": np.array([data.rouge(t, p["summary"])["rouge_l"]
                                 for p, t in zip(posts, texts, strict=True)])}


JUDGES = {"gold": Judge(gold), "rouge": Judge(rouge)}


def load_judge(name, posts):
    """--judge with auto replaced, and the Judge. Raises: Problem when it cannot judge the posts."""
    foreign = [p["id"] for p in posts if not p["id"].startswith("toy")]
    if name == "auto":
        name = "rouge" if foreign else "gold"
    if name == "gold" and foreign:
        raise Problem(f"--judge gold knows toy posts only, not {foreign[0]!r}: use --judge rouge")
    return name, JUDGES[name]


# ------------------------------------------------------------------------------------ 2. statistics

def bootstrap(values, seed, about=None, resamples=2000):
    """Standard error and 95 % interval of a mean: draw n posts with replacement, take their mean,
    repeat; how far do the means spread? about: the post of each value, if posts have several."""
    place, rng = {}, generator(seed, "bootstrap")  # DIFFERS: the paper's bars: one standard error
    of = [place.setdefault(post, len(place)) for post in about or range(len(values))]     # (n,)
    sums, counts, n = np.bincount(of, values), np.bincount(of), len(place)                # (posts,)
    drawn = (rng.integers(n, size=n) for _ in range(resamples))
    means = np.array([sums[posts].sum() / counts[posts].sum() for posts in drawn])
    return means.std(), np.quantile(means, [0.025, 0.975]).tolist()


def length_controlled(preferred, log_length, ridge=1e-3):
    """Win rates as if every summary were as long as the author's (appendix F):

        P(preferred) = sigmoid(policy's constant + slope * log(length / author's length))

    A logistic regression, one slope for all policies; sigmoid(constant) is the answer. With slope
    2, a policy that wins 60 % with summaries 1.65 times as long (log 1.65 = 0.5) has the constant
    logit(.60) - 2 * 0.5 = -0.59: at equal length it would win 36 %. (The ridge keeps the constant
    of 0 or 100 % finite.) preferred, log_length: {policy: (n,)}.
    """
    names = list(preferred)
    who = np.concatenate([np.full(len(preferred[p]), i) for i, p in enumerate(names)])
    x = np.column_stack([np.eye(len(names))[who], np.concatenate([log_length[p] for p in names])])
    y, w = np.concatenate([preferred[p] for p in names]), np.zeros(len(names) + 1)
    for _ in range(100):                                 # Newton's method
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (y - p) - ridge * w
        step = np.linalg.solve((x.T * (p * (1 - p))) @ x + ridge * np.eye(len(w)), gradient)
        w += step / max(1.0, np.abs(step).max())         # far from the optimum it overshoots
    return {name: float(1 / (1 + math.exp(-w[i]))) for i, name in enumerate(names)}


def best_of(scores, values, n):
    """Mean value of the sample with the best score among n, over all choices of n from a pool of N:

        weight of the i-th lowest score = C(i - 1, n - 1) / C(N, n),   i = 1 ... N

    It is the best when the n - 1 others come from the i - 1 below it. N = 4, n = 2: of the 6 pairs
    the lowest wins 0, the others 1, 2 and 3, so the weights are 0, 1/6, 2/6, 3/6 (Nakano et al.
    2021, appendix I). scores, values: (P, N). Returns: (P,).
    """
    N = scores.shape[1]
    weights = np.array([math.comb(i, n - 1) for i in range(N)]) / math.comb(N, n)        # (N,)
    return np.take_along_axis(values, scores.argsort(1, kind="stable"), 1) @ weights     # (P,)


# ---------------------------------------------------------------------------- 3. policies compared

def win_rate(values, seed):
    """The mean of comparisons, (n,) of 1, 1/2 or 0, for the report."""
    return {"win_rate": float(np.mean(values)), "win_rate_95": bootstrap(values, seed)[1],
            "n": len(values)}


def compare(needed, texts):
    """What greedy summaries tell: the report's `policies`, `against_supervised`, `difference`."""
    posts, judge, seed = needed.posts, needed.judge, needed.report["seed"]
    encode = needed.policies["supervised"].tokenizer.encode_ordinary      # one measure for all
    length = {name: np.array([len(encode(" " + t)) for t in some]) for name, some in texts.items()}
    won = {name: judge.compare(posts, some, texts["reference"]) for name, some in texts.items()}
    same_length = length_controlled(won, {name: np.log(some / length["reference"])
                                          for name, some in length.items()})
    rows, against = {}, {}
    for name, some in texts.items():
        overlap = [data.rouge(t, p["summary"]) for t, p in zip(some, posts, strict=True)]
        grades = judge.grade(posts, some) if judge.grade else {}
        rows[name] = {
            **win_rate(won[name], seed), "length": float(length[name].mean()),
            "length_controlled_win_rate": same_length[name],
            "kl": 0.0 if name == "supervised" else None,           # PPO's is added later
            **{key: float(np.mean([o[key] for o in overlap])) for key in overlap[0]},
            "copied": None,                                        # left to tools.report
            "axes": {a: float(grades[a].mean()) if a in grades else None for a in AXIS_NAMES}}
        if name not in ("supervised", "reference"):
            against[name] = win_rate(judge.compare(posts, some, texts["supervised"]), seed)
    against["reference"] = win_rate(1 - won["supervised"], seed)          # asked already
    found = {"policies": rows, "against_supervised": against}
    if "human_feedback" in won:
        gain = won["human_feedback"] - won["supervised"]                  # (n,) on the same posts
        se, interval = bootstrap(gain, seed)
        found["difference"] = {"mean": float(gain.mean()), "se": float(se), "95": interval}
    return found


# -------------------------------------------------------------- 4. the reward model, and its misuse

def labels_of(run, flags):
    """Labels that no reward model has seen, of split valid2: the run's, else its training's."""
    own = Path(run) / "comparisons.jsonl"
    paths = str(own if own.exists() else flags.get("comparisons") or own)
    here = all(Path(path.strip()).exists() for path in paths.split(","))
    return [c for c in data.read_comparisons(paths) if c.get("split") == "valid2"] if here else []


def reward_accuracy(needed):
    """How often the reward model agrees with labels that it has not seen, and how often the judge
    does, the `ceiling`: labels are noisy, so nobody agrees with all."""
    posts = [c["info"] for c in needed.labels]
    chosen, rejected = ([c["summaries"][c["choice"] ^ side]["text"] for c in needed.labels]
                        for side in (0, 1))
    scores = np.reshape(sample.score_texts(needed.reward, posts * 2, chosen + rejected), (2, -1))
    right, about = wins(scores[0], scores[1]), [data.query_text(p) for p in posts]   # (n,) each
    is_gold = needed.report["judge"] == "gold"           # of other judges: tools
    known = [i for i, p in enumerate(posts) if is_gold and p["id"].startswith("toy")]
    judged = needed.judge.compare(*([x[i] for i in known] for x in (posts, chosen, rejected)))
    return {"accuracy": float(right.mean()), "n": len(posts), "posts": len(set(about)),
            "accuracy_95": bootstrap(right, needed.report["seed"], about)[1],
            "ceiling": float(judged.mean()) if known else None}


@torch.no_grad()
def log_prob(policy, queries, responses, temperature):
    """log pi(response), nats, the sum over its tokens -> (B,) array. policy: Checkpoint."""
    def act(queries, responses):
        rows = lay_out(queries, responses, policy.model.config.n_vocab).to(policy.world.device)
        logp = token_logp(policy.model(rows.tokens, at=rows.columns), rows.targets, temperature)
        return logp.masked_fill(~rows.is_response, 0.0).double().sum(1).tolist()     # (b,)
    return np.array(sample.spread(act, policy, queries, responses))


def sample_with_kl(policy, supervised, posts, temperature, seed, name):
    """A sample of each post, with the policy's lengths as in PPO -> texts; log pi(text) - log
    pi_sft(text), (n,) nats, whose mean estimates the KL divergence."""
    queries = policy.queries(posts)
    said = sample.respond(policy, queries, temperature, seed, "kl", bar=name)
    ours, theirs = (log_prob(who, queries, said, temperature) for who in (policy, supervised))
    return [data.decode_response(policy.tokenizer, r) for r in said], ours - theirs


def checkpoints(ppo):
    """PPO's snapshots in training's order, then its final policy: yields (step, Checkpoint)."""
    final = ppo.flags["episodes"] // ppo.flags["batch"]
    for path in sorted(Path(ppo.folder, "snapshots").glob("step-*.pt")):
        if (step := int(path.stem[5:])) < final:
            model = skeleton(ppo.model.config, ppo.world, frozen=True)
            ppo.world.load(model, path)
            yield step, ppo._replace(model=model)
    yield final, ppo


def opinions(reward, judge, posts, texts):
    """What the reward model and the judge think of N summaries of each post -> {name: (P, N)}.

        predicted win rate = mean of sigmoid(score - score of the author's summary)
    """
    shape, own = (len(posts), -1), [p["summary"] for p in posts]
    many = [p for p in posts for _ in range(len(texts) // len(posts))]
    rm = np.reshape(sample.score_texts(reward, many, texts), shape)                  # (P, N)
    own_rm = np.reshape(sample.score_texts(reward, posts, own), shape)               # (P, 1)
    grades = judge.grade(many, texts)["overall"].reshape(shape)                      # (P, N)
    own_grades = judge.grade(posts, own)["overall"].reshape(shape)                   # (P, 1)
    return {"rm": rm, "gold": grades, "win_rate": wins(grades, own_grades),
            "predicted_win_rate": 1 / (1 + np.exp(own_rm - rm))}


def overoptimisation(needed, samples, temperature):
    """Figure 5's rows: both opinions at growing KL. samples: of PPO's final policy, if any."""
    posts, rows, seed = needed.posts[:SAMPLES], [], needed.report["seed"]
    supervised, ppo = needed.policies["supervised"], needed.policies.get("human_feedback")

    def add(method, seen, n, kl, beta=None, step=None):     # the best of n, by the reward model
        rows.append({"method": method, "beta": beta, "n": n, "kl": kl, "step": step, **{
            key: float(best_of(seen["rm"], x, n or 1).mean()) for key, x in seen.items()}})
    for step, policy in checkpoints(ppo) if ppo else ():
        texts, kl = samples if policy is ppo else sample_with_kl(
            policy, supervised, posts, temperature, seed, f"step {step}")
        seen = opinions(needed.reward, needed.judge, posts, texts)
        add("ppo", seen, None, float(kl.mean()), ppo.flags["kl_coef"], step)
    posts = posts[:POOL_POSTS]
    pool = sample.summarise(supervised, [p for p in posts for _ in range(POOL)], seed=seed,
                            temperature=temperature, purpose="pool", bar="pool")
    seen = opinions(needed.reward, needed.judge, posts, pool)
    for n in [2 ** k for k in range(POOL.bit_length())]:                             # 1, 2, 4, ...
        add("best_of_n", seen, n, math.log(n) - (n - 1) / n)
    return rows


# ------------------------------------------------------------------------------------ 5. the report

Needed = namedtuple("Needed", "began posts policies reward labels judge out report")


def prepare(cfg, world, judge=None):
    """Read and check what is Needed before the first summary costs anything; else a Problem.
    judge: a Judge in place of the one that --judge names."""
    began, run, reward, labels = time.perf_counter(), Path(cfg.run), None, []
    supervised = sample.load_checkpoint(run / "supervised", world)
    policies = {name: supervised if name == "supervised" else
                sample.load_checkpoint(run / stage, world, like=supervised)
                for name, stage in FOLDERS.items() if (run / stage / "model.pt").exists()}
    ppo = policies.get("human_feedback")
    folder = cfg.data or supervised.flags.get("data") or "--data"    # no folder: named as missing
    posts = sample.held_out(folder)
    posts = [posts[i] for i in generator(cfg.seed, "evaluate").permutation(len(posts))[:cfg.posts]]
    if (run / "reward" / "model.pt").exists():
        reward = sample.load_checkpoint(run / "reward", world, "scalar", like=supervised)
        labels = labels_of(run, reward.flags)
        data.check_queries(reward.tokenizer, [c["info"] for c in labels], reward.query_length)
    for reader in filter(None, (*policies.values(), reward)):
        data.check_queries(reader.tokenizer, posts, reader.query_length)
    name, judge = (cfg.judge, judge) if judge else load_judge(cfg.judge, posts)
    for _ in checkpoints(ppo) if reward and ppo else ():
        pass                                             # every snapshot can be read
    out = Path(cfg.out or run / "report")
    out.mkdir(parents=True, exist_ok=True)
    return Needed(began, posts, policies, reward, labels, judge, out, {
        "judge": name, "data": str(folder), "human_axes": None, "reward_model": None,
        "overoptimisation": [], "notes": [UNFINISHED], "seed": cfg.seed})


def measure(needed, world):
    """Write the summaries, then report.json after each part, so that no later failure loses it."""
    posts, policies, report, samples = needed.posts, needed.policies, needed.report, None
    supervised, ppo = policies["supervised"], policies.get("human_feedback")
    temperature, seed = (ppo or supervised).flags.get("temperature", 1.0), report["seed"]

    def save():
        report["seconds"] = {"evaluate": time.perf_counter() - needed.began}
        if world.rank == 0:                      # five digits: more than the posts support
            write(needed.out / "report.json", json.loads(
                json.dumps(report), parse_float=lambda x: round(float(x), 5)))
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
    report |= compare(needed, texts)                     # 1. greedy summaries
    save()
    if ppo:                                              # 2. samples, and the reward model
        samples = sample_with_kl(ppo, supervised, posts[:SAMPLES], temperature, seed, "KL")
        report["policies"]["human_feedback"]["kl"] = float(samples[1].mean())
    if needed.labels:
        report["reward_model"] = reward_accuracy(needed)
    save()
    if needed.reward and needed.judge.grade:             # 3. has optimising gone too far?
        report["overoptimisation"] = overoptimisation(needed, samples, temperature)
    report["notes"].remove(UNFINISHED)
    save()
    return texts


def evaluate(cfg, world):
    """Read, measure, print the table of the chapter's top."""
    with world.mixed():
        needed = prepare(cfg, world)
        measure(needed, world)
    line, report = "{:14}{:>18}{:>13}{:>18}{:>7}{:>9}{:>8}{:>6}", needed.report
    print(line.format("policy", "beats author", "same length", "beats supervised", "grade",
                      "ROUGE-L", "tokens", "KL"))

    def rate(row):
        low, high = row["win_rate_95"]
        return f"{row['win_rate']:.1%} [{100 * low:.0f}, {100 * high:.0f}]"

    for name, p in report["policies"].items():
        rival = report["against_supervised"].get(name)
        print(line.format(name, rate(p), f"{p['length_controlled_win_rate']:.1%}",
                          rate(rival) if rival else "-", f"{p['axes']['overall']:.2f}",
                          f"{p['rouge_l']:.3f}", f"{p['length']:.1f}",
                          "-" if p["kl"] is None else f"{p['kl']:.1f}"))
    print(f"\n{needed.out}/report.json holds every number")


def main(argv=None):
    judges = dict.fromkeys(("--against", "command:", "labels:", "reward:"), "tools.judges")
    launch(evaluate, Config, argv, __doc__,
           moved={"doctor": "tools.doctor", "compare": "tools.figures compare", **judges})


if __name__ == "__main__":
    main()
