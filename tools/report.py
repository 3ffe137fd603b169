"""What an evaluation found as pages: report.md, report.png, report.svg and report.html.

    report.json, summaries.jsonl   by evaluate.py (or tools.judges); here is added what they leave
                                   open: seconds, equal length (lengths.py), ROUGE (rouge.py),
                                   what was copied, and over-optimisation (overoptimisation.py)
    ppo/log.jsonl                  the curves of the picture
    the networks                   read again for the token microscope (microscope.py), on the
                                   first dozen posts

    python -m tools.report --run runs/demo
    python -m tools.report --run runs/demo --axes runs/demo/human.axes.jsonl

report.html is one file: report.md with its picture and, below, the microscope.

Read after: evaluate.py.
"""
import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from data import fields_of, find, load_tokenizer, read_posts, text_of
from evaluate import (
    AXIS_NAMES,
    FOLDERS,
    Judge,
    bootstrap,
    labels_of,
)
from runtime import Machine, Problem, config_of, flag, launch, write
from runtime.files import read_jsonl, read_text, replacing
from sample import held_out, load_checkpoint, score_texts
from tools.lengths import add_same_length
from tools.microscope import look, page
from tools.overoptimisation import overoptimisation
from tools.rouge import JUDGES, load_judge, longest_common_subsequence, rouge, words


@dataclass(frozen=True)
class Config(Machine):
    run: str = flag(..., "a run that evaluate.py has evaluated, such as runs/demo", what="DIR")
    out: str = flag("", "folder of its report.json; none: report/ in --run", what="DIR")
    axes: str = flag("", "people's grades, by tools.labelling export: shown beside the judge's",
                     what="FILE")


SHOWN = 12             # posts that the token microscope shows


# ----------------------------------------------------------------- 1. what evaluate.py leaves open

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


def rounded(report):
    """A JSON value with five digits of each number, as evaluate.py writes it."""
    return json.loads(json.dumps(report), parse_float=lambda x: round(float(x), 5))


def reward_judge(model):
    """The judge whose grade is a reward model's score. model: Checkpoint."""
    return Judge(lambda posts, texts: {"overall": np.array(score_texts(model, posts, texts))})


def identity(post):
    """What makes two records the same post: its texts too, for every toy world has a toy-train-0.
    """
    return tuple(post[name].strip() for name in fields_of(post))


def with_summaries(posts, folders):
    """Labelled posts with their author's summary, which labels lack and ROUGE needs; None for those
    that stand in none of the folders of posts, the first of which counts most."""
    known = {identity(p): p for folder in reversed(folders) for split in ("train", "valid", "test")
             if find(folder, split) for p in read_posts(folder, split, need_summary=False)
             if p.get("summary", "").strip()}
    return [known.get(identity(post)) for post in posts]


def copied(summary, source):
    """Share of a summary's word pairs that stand in the source, in the same order (footnote 9): of
    "my dog ate it" 2 of 3 stand in "yesterday my dog ate my shoe"."""
    ours, theirs = (list(pairwise(words(text))) for text in (summary, source))
    return longest_common_subsequence(ours, theirs) / max(1, len(ours))


def add_overlap(report, posts, said):
    """The means of ROUGE and of `copied` for each policy. said: of each post the line of
    summaries.jsonl."""
    for name, row in report["policies"].items():
        found = [rouge(line[name], p["summary"])
                 | {"copied": copied(line[name], f"{p['title']}\n{text_of(p)}")}
                 for line, p in zip(said, posts, strict=True)]
        row.update({key: round(float(np.mean([one[key] for one in found])), 5) if found else None
                    for key in ("rouge_1", "rouge_2", "rouge_l", "copied")})


def add_ceiling(report, run):
    """How often the judge agrees with the labels on which the reward model was tried: labels are
    noisy, so nobody agrees with all. And a note on those where it cannot be asked."""
    flags = config_of(Path(run) / "reward")["flags"]
    labels = labels_of(run, flags)
    posts, why = [c["info"] for c in labels], "their posts are not of the toy world"
    if report["judge"] == "gold":
        posts = [p if p["id"].startswith("toy") else None for p in posts]
    elif report["judge"] == "rouge":
        folders = (flags.get("data"), config_of(Path(run) / "supervised")["flags"].get("data"),
                   report["data"])
        folders = list(dict.fromkeys(folder for folder in folders if folder))
        posts = with_summaries(posts, folders)
        why = ("the authors' summaries are not known: posts of these texts do not stand in "
               + " or ".join(folders))
    known = [(p, *(c["summaries"][c["choice"] ^ side]["text"] for side in (0, 1)))
             for p, c in zip(posts, labels, strict=True) if p]
    if known and report["judge"] in JUDGES:
        agrees = JUDGES[report["judge"]].compare(*zip(*known, strict=True))
        report["reward_model"]["ceiling"] = round(float(agrees.mean()), 5)
    if None in posts:
        add_note(report, f"For {posts.count(None)} of {len(posts)} labels there is no opinion of "
                         f"the judge beside the reward model's: {why}.")


def add_what_is_missing(report, run, posts, said, world):
    """Win rates at equal length, and the rows of Figure 5, where evaluate.py or tools.judges left
    them open. posts: all that were summarised. said: the lines of summaries.jsonl."""
    if report["overoptimisation"] is not None:
        return
    report["overoptimisation"], run, judge = [], Path(run), JUDGES.get(report["judge"])
    if not judge or not posts:
        return
    texts = {name: [line[name] for line in said] for name in report["policies"]}
    won = {name: judge.compare(posts, some, texts["reference"]) for name, some in texts.items()}
    add_same_length(report, won, texts, load_tokenizer(run / "supervised"))
    if (run / "reward/model.pt").exists():
        supervised = load_checkpoint(run / "supervised", world)
        reward = load_checkpoint(run / "reward", world, "scalar", like=supervised)
        ppo = (load_checkpoint(run / "ppo", world, like=supervised)
               if (run / "ppo/model.pt").exists() else None)
        with world.mixed():
            report["overoptimisation"] = rounded(overoptimisation(
                supervised, ppo, reward, judge, posts, report["seed"]))


def add_note(report, note):
    """A note, once, however often the report is made."""
    if note not in report["notes"]:
        report["notes"].append(note)


def human_axes(path, seed):
    """People's mean grades, 1 to 7, from a file of OpenAI's axis records (tools.labelling).

    Returns: {policy: {axis: {"mean", "95", "n"}}}. Raises: Problem naming file and line.
    """
    grades = defaultdict(lambda: defaultdict(list))              # pairs (grade, post)
    for number, record in read_jsonl(path):
        try:
            for axis in AXIS_NAMES:
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


def completed(report, cfg):
    """The report with what evaluate.py leaves open."""
    seconds = {**seconds_of(cfg.run), "evaluate": report["seconds"]["evaluate"]}
    report["seconds"] = {**seconds, "total": round(sum(seconds.values()), 5)}
    if report["reward_model"]:
        add_ceiling(report, cfg.run)
    elif "labels" not in report and (Path(cfg.run) / "reward" / "model.pt").exists():
        add_note(report, "The reward model is not tried on labels: neither the run nor its "
                         "training has any of split valid2 here.")
    if cfg.axes:
        report["human_axes"] = rounded(human_axes(cfg.axes, report["seed"]))
    return report


# ------------------------------------------------------------------------------- 2. report.md

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


def policy_table(report):
    """Policies and authors, one row each. Of people: every two policies that they compared."""
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
    return table([header], rows)


MEANING = """
* **beats author**: share of posts on which the judge prefers this summary to the one by the post's
  author; a tie is half. In brackets the 95 % interval, by drawing posts (bootstrap). Each
  policy reads and writes at most as many tokens as in its own training.
* **same length**: that share if all summaries were as long as the author's (by regression).
* **beats supervised**: share preferred to the supervised policy's summary.
* **grade**: the judge's mean grade. **ROUGE-L**: words shared with the author's, in order.
* **copied**: share of word pairs that stand in the post, in the same order.
* **KL**: nats a summary from the supervised policy, when sampled as PPO does: PPO's own lengths
  and temperature, on the first 256 of the posts."""
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
        parts += ["\n## Grades, 1 (worst) to 7 (best)\n", table([["policy", *AXIS_NAMES]], [
            [name.replace("_", " "), *(cell(p["axes"][a]) for a in AXIS_NAMES)]
            for name, p in report["policies"].items()])]
    if h := report["human_axes"]:
        parts += ["\n## Grades by people\n", table([["policy", *AXIS_NAMES]], [
            [name, *(cell(p[a]["mean"]) + f" ({p[a]['n']})" if a in p else "-" for a in AXIS_NAMES)]
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
                  "(rm) and predicted win rate, next to\nthe judge's grade (gold) and the true win "
                  "rate. Where they differ, optimising has\ngone too far.\n",
                  table([list(keys)], [[cell(row[k], form) for k, form in keys.items()]
                                     for row in rows])]
    if example:
        post, said = example
        text = f"{post['title']}\n\n{text_of(post)}"
        parts += ["\n## One post\n", *("> " + line for line in text.split("\n")), "",
                  *(f"* **{name.replace('_', ' ')}**: {summary}" for name, summary in said.items())]
    parts += ["\n## Seconds\n", table([list(report["seconds"])], [
        [f"{s:.0f}" for s in report["seconds"].values()]])]
    return "\n".join(parts) + "\n"


# ------------------------------------------------------------------------- 3. picture and page

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


def read(folder, run):
    """report.json and the lines of summaries.jsonl. Raises: Problem when they are not there."""
    path = folder / "report.json"
    try:
        report = json.loads(read_text(path))
        report["policies"], report["seconds"]["evaluate"]
    except FileNotFoundError:
        raise Problem(f"{path} is missing: `python evaluate.py --run {run}` writes it") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Problem(f"{path} is damaged ({error}): run evaluate.py again") from None
    if "labels" in report:                               # people's: no text was written
        return report, []
    return report, [line for _, line in read_jsonl(folder / "summaries.jsonl")]


def microscope(run, report, posts, world):
    """What the token microscope sees (microscope.look); None where it has nothing to look at."""
    needed = ("reward/model.pt", "ppo/model.pt", "ppo/critic.pt")
    if not posts or not all((Path(run) / name).exists() for name in needed):
        return None
    supervised, ppo = (load_checkpoint(Path(run) / name, world) for name in ("supervised", "ppo"))
    reward = load_checkpoint(Path(run) / "reward", world, "scalar", like=supervised)
    (kind, _, what), grade = report["judge"].partition(":"), None
    if kind == "reward":
        grade = reward_judge(load_checkpoint(what, world, "scalar")).grade
    elif kind != "command":
        grade = load_judge(kind, posts)[1].grade
    with world.mixed():
        return look(supervised, ppo, reward, posts, grade)


def act(cfg, world):
    """Read everything, then write page by page: what can be made is made, whatever else fails."""
    out, log = Path(cfg.out or Path(cfg.run) / "report"), Path(cfg.run) / "ppo" / "log.jsonl"
    report, said = read(out, cfg.run)
    lines = [line for _, line in read_jsonl(log)] if log.exists() else []
    lines = [line for line in lines if {"episodes", "score", "kl"} <= line.keys()]
    known = {p["id"]: p for p in held_out(report["data"])} if said else {}
    said = [line for line in said if line["id"] in known]
    posts = [known[line["id"]] for line in said]
    report = completed(report, cfg)
    add_overlap(report, posts, said)
    add_what_is_missing(report, cfg.run, posts, said, world)
    posts = posts[:SHOWN]
    example = (posts[0], {k: v for k, v in said[0].items() if k != "id"}) if posts else None
    text, seen = markdown(report, example), None
    if world.rank == 0:
        write(out / "report.json", report)
        write(out / "report.md", text)
    try:
        seen = microscope(cfg.run, report, posts, world)
    finally:
        if world.rank == 0:
            try:
                draw(report, lines, out)
            finally:                                     # without what could not be made
                write(out / "report.html", page(text, out, seen))
    print(policy_table(report))
    print(f"\n{out / 'report.html'} says what the numbers mean")


def main(argv=None):
    """Make a report's pages."""
    launch(act, Config, argv, __doc__)


if __name__ == "__main__":
    main()
