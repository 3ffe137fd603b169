"""What an evaluation found as pages: report.md, report.png, report.svg and report.html.

    report.json, summaries.jsonl   by evaluate.py (or tools.judges); here is added what they leave
                                   open: seconds, equal length (lengths.py), ROUGE (rouge.py),
                                   what was copied, and over-optimisation (overoptimisation.py)
    ppo/log.jsonl                  the curves of the picture
    the networks                   read again for the token microscope (microscope.py), on the
                                   first dozen posts

    python -m tools.report --run runs/demo
    python -m tools.report --run runs/demo --axes runs/demo/human.axes.jsonl

report.html is one file: report.md with its picture and, below, ten posts with everybody's
summaries side by side, and the microscope.

Read after: evaluate.py.
"""
import json
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from datetime import date
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
from tools.side import load_run


@dataclass(frozen=True)
class Config(Machine):
    run: str = flag(..., "a run that evaluate.py has evaluated, such as runs/demo", what="DIR")
    out: str = flag("", "folder of its report.json; none: report/ in --run", what="DIR")
    axes: str = flag("", "people's grades, by tools.labelling export: shown beside the judge's",
                     what="FILE")


SHOWN = 12             # posts that the token microscope shows
BESIDE = 10            # posts whose summaries stand side by side


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
    elif report["judge"] in JUDGES:                  # it may ask what the author wrote
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
    report["overoptimisation"], judge = [], JUDGES.get(report["judge"])
    if not judge or not posts:
        return
    texts = {name: [line[name] for line in said] for name in report["policies"]}
    won = {name: judge.compare(posts, some, texts["reference"]) for name, some in texts.items()}
    add_same_length(report, won, texts, load_tokenizer(Path(run, "supervised")))
    policies, reward = load_run(run, world)
    if reward:
        with world.mixed():
            report["overoptimisation"] = rounded(overoptimisation(
                policies["supervised"], policies.get("human_feedback"), reward, judge, posts,
                report["seed"]))


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


def named(name):
    """A policy's name in the report, as its tables and pictures show it."""
    return "author" if name == "reference" else name.replace("_", " ")


def against_told(found):
    """What --against found: the share of posts on which the run's policy is preferred."""
    return (f"`{found['ours']}` is preferred to `{found['policy']}` on "
            f"{cell(found['win_rate'], '.1%', found['win_rate_95'])} of {found['n']} posts")


def policy_table(report):
    """Policies and authors, one row each; a column that nobody has a number in is left out. Of
    people: every two policies that they compared."""
    if "labels" in report:
        return table([["policy", "against", "preferred", "answers"]], [
            [r["policy"], r["against"], cell(r["share"], ".1%", r["95"]), cell(r["n"])]
            for r in report["labels"]])
    rows = [policy_row(report, name) for name in report["policies"]]
    shown = [title for title in rows[0] if any(row[title] != "-" for row in rows)]
    return table([shown], [[row[title] for title in shown] for row in rows])


def policy_row(report, name):
    """A policy's numbers by the title of their column, as texts."""
    p = report["policies"][name]
    rival = report["against_supervised"].get(name, {"win_rate": None, "win_rate_95": None})
    rouge = report["judge"] == "rouge"     # ROUGE never prefers a summary to the author's: all 0
    won, same_length = ((None, None) if rouge else
                        (p["win_rate"], p["length_controlled_win_rate"]))
    return {"policy": named(name),
            "beats author": cell(won, ".1%", p["win_rate_95"] if won is not None else None),
            "same length": cell(same_length, ".1%"),
            "beats supervised": cell(rival["win_rate"], ".1%", rival["win_rate_95"]),
            "grade": cell(None if rouge else p["axes"]["overall"]),
            "ROUGE-L": cell(p["rouge_l"], ".3f"), "copied": cell(p["copied"], ".0%"),
            "tokens": cell(p["length"], ".1f"), "KL": cell(p["kl"], ".1f")}


MEANING = {
    "beats author": "share of posts on which the judge prefers this summary to the one by the "
                    "post's author; a tie is half. In brackets the 95 % interval, by drawing posts "
                    "(bootstrap). Each policy reads and writes at most as many tokens as in its "
                    "own training.",
    "same length": "that share if all summaries were as long as the author's (by regression).",
    "beats supervised": "share preferred to the supervised policy's summary; a tie is half.",
    "grade": "the judge's mean grade.",
    "ROUGE-L": "words shared with the author's summary, in order: 0 none, 1 all.",
    "copied": "share of word pairs that stand in the post, in the same order.",
    "tokens": "mean length.",
    "KL": "nats a summary from the supervised policy. Only this column is of samples: PPO's own "
          "lengths and temperature, on at most 256 of the posts."}


def meaning(report):
    """A sentence for each column of `policy_table`."""
    titles = policy_table(report).split("\n")[0]
    return "\n".join(textwrap.fill(f"* **{title}**: {told}", 96, subsequent_indent="  ")
                     for title, told in MEANING.items() if f" {title} |" in titles)


def judge_of(report):
    """Who compares, in words."""
    kind, _, what = report["judge"].partition(":")
    return {"gold": "the toy world's own (`gold`): it knows the facts of each post",
            "rouge": "ROUGE-L, the words shared with the author's summary. It prefers no summary "
                     "to the author's own: policies are compared with the supervised one",
            "reward": f"another reward model, `{what}`", "command": f"a program, `{what}`",
            "labels": f"people, whose answers are in `{what}`"}.get(kind, f"`{kind}`")


def title_of(run, folder):
    """What tells this report from others: run, seed, date of the summaries, commit."""
    known = config_of(Path(run) / "supervised")
    said = folder / "summaries.jsonl"
    written = (said if said.exists() else folder / "report.json").stat().st_mtime
    parts = [f"run {Path(run).resolve().name}", date.fromtimestamp(written).isoformat()]
    if "seed" in known["flags"]:
        parts.insert(1, f"seed {known['flags']['seed']}")
    if known.get("commit"):                              # none without git
        parts.append(f"commit {known['commit'][:7]}" +
                     ", with changes" * known["commit"].endswith("-dirty"))
    return "Report: " + ", ".join(parts)


def pleasing(report, temperature):
    """The section about over-optimisation: both opinions of sampled summaries, at growing KL."""
    rouge, rows = report["judge"] == "rouge", []
    for row in report["overoptimisation"]:
        if row["method"] == "ppo":
            who = f"PPO, beta {row['beta']:g}, iteration {row['step']}"
        else:
            who = f"best of {row['n']}" if row["n"] > 1 else "supervised"
        judged = [] if rouge else [cell(row["win_rate"], ".1%")]
        rows.append([who, cell(row["kl"]), cell(row["rm"], "+.2f"),
                     cell(row["predicted_win_rate"], ".1%"), *judged,
                     cell(row["gold"], ".3f" if rouge else ".2f")])
    header = ["policy", "KL", "score", "predicted to beat author",
              *([] if rouge else ["beats author"]), "ROUGE-L" if rouge else "grade"]
    told = ("Here every summary is a *sample*, as PPO writes them, at temperature "
            f"{temperature:g}: so these numbers are others than those of the greedy summaries "
            "above. **best of n**: of n samples of the supervised policy, the one with the best "
            "score. **score**: the reward model's; 0 is that of the mean author. **predicted to "
            f"beat author**: how often the reward model expects it. **{header[-1]}** is the "
            "judge's. Where the prediction rises and the judge's opinion falls, optimising has "
            "gone too far.")
    return ["\n## Pleasing the reward model: sampled summaries\n", textwrap.fill(told, 96) + "\n",
            table([header], rows)]


STAGES = {"pretrained": "pretraining", "supervised": "fine-tuning", "labels": "pairs and labels",
          "reward": "reward model", "ppo": "PPO", "evaluate": "evaluation", "total": "total"}


def markdown(report, title, picture, temperature, example=None):
    """report.md: the tables, and what each number means.

    title: of `title_of`. picture: what the picture shows, in words. temperature: of the samples.
    example: (post, {policy: summary}), or None.
    """
    parts = [f"# {title}\n\n{report['policies']['reference']['n']} held-out posts of "
             f"`{report['data']}`. The judge is {judge_of(report)}.\n",
             "## Greedy summaries\n\nEach policy writes the most probable token at each step.\n",
             policy_table(report), "", meaning(report)]
    if "labels" in report:
        parts = [f"# {title}\n\nPeople's answers, `{report['judge']}`: to sampled summaries of "
                 "training posts, not\nto greedy ones of held-out posts. In brackets the 95 % "
                 "interval, by posts; a tie is half;\n*ref* is the author. Labellers who are held "
                 "do not count.\n", policy_table(report)]
    parts += [f"\n![{picture}](report.png)"]
    parts += [f"\n{note}" for note in report["notes"]]
    if report["judge"].startswith("command:"):
        parts += ["\nThis judge compares and does not grade: there are no grades, no ceiling for "
                  "the reward\nmodel, and no curve of pleasing it. Which summary came first was "
                  "drawn for each post."]
    if (d := report.get("difference")) and report["judge"] != "rouge":
        low, high = d["95"]
        parts += [f"\nHow often human feedback beats the author, minus how often supervised does, "
                  f"on the same posts:\n{100 * d['mean']:+.1f} percentage points (95 %: "
                  f"{100 * low:+.1f} to {100 * high:+.1f})."]
    if a := report.get("against"):
        parts += [f"\n{against_told(a)}."]
    if report["judge"] == "gold":
        parts += ["\n## The judge's grades of the greedy summaries, 1 (worst) to 7 (best)\n",
                  table([["policy", *AXIS_NAMES]], [
                      [named(name), *(cell(p["axes"][a]) for a in AXIS_NAMES)]
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
    if report["overoptimisation"]:
        parts += pleasing(report, temperature)
    if example:
        post, said = example
        text = f"{post['title']}\n\n{text_of(post)}"
        parts += ["\n## One post\n", *("> " + line for line in text.split("\n")), "",
                  *(f"* **{named(name)}**: {summary}" for name, summary in said.items())]
    seconds = report["seconds"]
    parts += ["\n## Seconds\n", table([["stage", "seconds"]], [
        [STAGES[name], f"{s:.0f}" if s else "-"] for name, s in seconds.items()]),
        "\nNobody timed the making of posts, tokenizer and this page: they are not in the total."]
    return "\n".join(parts) + "\n"


# ------------------------------------------------------------------------- 3. picture and page

def bars_of(report):
    """What the picture's bars show: (who is beaten, {policy: its row in the report})."""
    rivals = ("against_supervised", "the supervised policy") if report["judge"] == "rouge" else (
        "policies", "the author")
    return rivals[1], {name: row for name in FOLDERS if (row := report[rivals[0]].get(name))
                       and row["win_rate"] is not None}


def picture_of(report, log):
    """The picture in words, for who cannot see it."""
    rival, bars = bars_of(report)
    told = f"Greedy summaries preferred to those by {rival}: " + ", ".join(
        f"{named(name)} {cell(row['win_rate'], '.0%')}" for name, row in bars.items())
    if log:
        first, last = log[0], log[-1]
        told += (f". While PPO writes {last['episodes']} summaries, the reward model's score goes "
                 f"from {first['score']:.1f} to {last['score']:.1f} and KL from "
                 f"{first['kl']:.1f} to {last['kl']:.1f} nats").replace("-0.0", "0.0")
    return told


def draw(report, log, out):
    """report.png and report.svg: win rates, and score and KL over PPO's training. Letters are large
    enough for a telephone's width, 400 pixels.

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
    rival, bars = bars_of(report)
    with pyplot.rc_context({"font.size": 14, "axes.titlesize": 14, "axes.spines.top": False,
                            "axes.spines.right": False, "svg.hashsalt": "report"}):
        page = pyplot.figure(figsize=(7.2, 4.2), layout="constrained")
        grid = page.add_gridspec(2, 2, width_ratios=(1.15, 1))
        left, top, bottom = (page.add_subplot(g) for g in (grid[:, 0], grid[0, 1], grid[1, 1]))
        for i, (name, row) in enumerate(bars.items()):
            rate, (low, high) = row["win_rate"], row["win_rate_95"]
            left.bar(i, rate, 0.62, color=blue if name == "human_feedback" else grey,
                     yerr=[[rate - low], [high - rate]], capsize=6, error_kw={"lw": 1.8})
            left.text(i, high + 0.025, f"{rate:.0%}", ha="center", weight="bold",
                      bbox=dict(color="white", pad=1))
        left.axhline(0.5, color="black", lw=1.2, ls="--", zorder=0)
        left.set(xticks=range(len(bars)), xticklabels=[
            {"pretrained": "pre-\ntrained", "supervised": "super-\nvised"}.get(
                name, name.replace("_", "\n")) for name in bars],
            ylim=(0, 1.08), yticks=[0, .25, .5, .75, 1], title=f"preferred to {rival}")
        left.yaxis.set_major_formatter("{x:.0%}")
        episodes = [line["episodes"] for line in log]
        top.plot(episodes, [line["score"] for line in log], color=blue, lw=2.4)
        bottom.plot(episodes, [line["kl"] for line in log], color=orange, lw=2.4)
        top.set(title="reward model's score")
        top.tick_params(labelbottom=False)
        bottom.set(xlabel="summaries written", title="KL, nats")
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


def judge_again(report, posts, world):
    """The Judge that graded the report; None for one that gives no grades."""
    kind, _, what = report["judge"].partition(":")
    if kind == "reward":
        return reward_judge(load_checkpoint(what, world, "scalar"))
    return None if kind in ("command", "labels") else load_judge(kind, posts)[1]


def side_by_side(report, judge, known, said):
    """What everybody wrote about a few posts, for the page; None where nobody wrote anything.

    These are the first posts, and the first on which the judge prefers the author's summary (where
    it is ROUGE: the supervised policy's) to that of human feedback. known: {id: post}. said: lines
    of summaries.jsonl. Returns: {"rival", "lost": on how many posts, None if nobody knows, "n",
    "posts": [{"title", "text", "loses", "said": {policy: [summary, grade or None]}}]}.
    """
    said = [line for line in said if line["id"] in known]
    if not said:
        return None
    names = [name for name in ("reference", *FOLDERS) if name in said[0]]
    rival, lost = "supervised" if report["judge"] == "rouge" else "reference", []
    posts = [known[line["id"]] for line in said]
    if judge and "human_feedback" in names:
        won = judge.compare(posts, *([line[name] for line in said]
                                     for name in ("human_feedback", rival)))
        lost = [i for i, share in enumerate(won) if share < 0.5]
    chosen = sorted({*range(min(BESIDE, len(said))), *lost[:BESIDE]})
    some = [posts[i] for i in chosen]
    grades = {name: judge.grade(some, [said[i][name] for i in chosen])["overall"].tolist()
              if judge else [None] * len(some) for name in names}
    return {"rival": "author" if rival == "reference" else "supervised policy", "n": len(said),
            "lost": len(lost) if judge and "human_feedback" in names else None,
            "posts": [{"title": post.get("title", ""), "text": text_of(post), "loses": i in lost,
                       "said": {named(name): [said[i][name], grades[name][k]] for name in names}}
                      for k, (i, post) in enumerate(zip(chosen, some, strict=True))]}


def microscope(run, posts, judge, world):
    """What the token microscope sees (microscope.look); None where it has nothing to look at."""
    needed = ("reward/model.pt", "ppo/model.pt", "ppo/critic.pt")
    if not posts or not all((Path(run) / name).exists() for name in needed):
        return None
    supervised, ppo = (load_checkpoint(Path(run) / name, world) for name in ("supervised", "ppo"))
    reward = load_checkpoint(Path(run) / "reward", world, "scalar", like=supervised)
    with world.mixed():
        return look(supervised, ppo, reward, posts, judge.grade if judge else None)


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
    stage = "ppo" if (Path(cfg.run) / "ppo/config.json").exists() else "supervised"
    told = (title_of(cfg.run, out), picture_of(report, lines),
            config_of(Path(cfg.run) / stage)["flags"].get("temperature", 1.0))
    example = (posts[0], {k: v for k, v in said[0].items() if k != "id"}) if posts else None
    beside = seen = None
    if world.rank == 0:
        write(out / "report.json", report)
        write(out / "report.md", markdown(report, *told, example))
    try:
        judge = judge_again(report, posts, world)
        beside = side_by_side(report, judge, known, said)
        seen = microscope(cfg.run, posts, judge, world)
    finally:
        if world.rank == 0:
            try:
                draw(report, lines, out)
            finally:                                     # without what could not be made
                write(out / "report.html", page(markdown(report, *told), out, seen, beside))
    print(policy_table(report))
    print(f"\n{out / 'report.html'} says what the numbers mean")


def main(argv=None):
    """Make a report's pages."""
    launch(act, Config, argv, __doc__)


if __name__ == "__main__":
    main()
