"""Appendix. The sweep's figures as pictures, and report.md, which says what they show; report.html
is the same as one file.

    measured.json -> figures_numbers.py -> figure1.png, figure1.svg, ..., report.md, curves.json

Colours are Okabe and Ito's, told apart by all eyes, and each curve has a marker of its own; letters
are large enough for a picture at half the width of a page.

    python -m tools.figures draw --out runs/figures

Read after: figures_numbers.py.
"""
import json
import math
from pathlib import Path

from evaluate import AXIS_NAMES, wins
from runtime import Problem, write
from tools.figures_numbers import (
    CRITICS,
    FIGURES,
    NEWS,
    SAMPLED,
    Found,
    Unmeasured,
    agreement,
    draw_up,
    fitted,
    judge_claims,
    numbers_of,
    of_base,
    point,
    reference,
    resampled,
    taught,
)
from tools.microscope import page
from tools.report import cell, save_picture, table

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
GREY = "#777777"
MARKERS = "osD^vPX"


# ---------------------------------------------------------------------------------- 1. small verbs

def style(i, **more):
    """The i-th curve's looks."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], **more}


def columns(some, *keys):
    """Points as lists, one for each key; an infinite number is not drawn."""
    return [[math.nan if p[key] is None else p[key] for p in some] for key in keys]


def curve(ax, some, label=None, band=True, **looks):
    """A line with its 95 % band."""
    some = sorted(some, key=lambda p: p["x"])
    x, y, low, high = columns(some, "x", "value", "low", "high")
    line, = ax.plot(x, y, label=label, **{"lw": 2.4, "ms": 7, **looks})
    if band:
        ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, lw=0)


def bars(ax, groups, names):
    """Groups of bars with error bars: groups {label: [point, ...]}, names below the groups."""
    wide = 0.84 / len(groups)
    for i, (label, some) in enumerate(groups.items()):
        x = [k + wide * (i - (len(groups) - 1) / 2) for k in range(len(some))]
        y, low, high = columns(some, "value", "low", "high")
        error = [[max(0, v - a) for v, a in zip(y, low, strict=True)],
                 [max(0, b - v) for v, b in zip(y, high, strict=True)]]
        ax.bar(x, y, 0.92 * wide, label=label, color=COLOURS[i], yerr=error, capsize=3,
               error_kw={"lw": 1.5})
    ax.set_xticks(range(len(names)), names)


def percent(ax, low=0.0, high=1.0):
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    ax.set_ylim(low, high)


def even(ax):
    ax.axhline(0.5, color="black", lw=1.2, ls="--", zorder=0)


def write_at(ax, some, share, text, i, above):
    """A curve's name beside it, at a share of its way along x."""
    some = sorted(some, key=lambda p: p["x"])
    wanted = share * some[-1]["x"]
    p = min(some, key=lambda p: abs(p["x"] - wanted))
    ax.annotate(text, (p["x"], p["value"]), (-8, 10) if above else (8, -10), color=COLOURS[i],
                textcoords="offset points", ha="right" if above else "left",
                va="bottom" if above else "top", fontweight="bold")


def root_axis(ax, largest):
    """KL on a square-root scale, on which both of Gao's forms begin at 0 and light steps show."""
    ax.set_xscale("function", functions=(lambda x: abs(x) ** 0.5, lambda x: x ** 2))
    ticks = []
    for t in (0, .1, .5, 1, 2, 5, 10, 20, 50, 100):
        if t <= largest and (not ticks or t ** .5 - ticks[-1] ** .5 > .07 * largest ** .5):
            ticks.append(t)                                       # far enough from the last to read
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_xlim(0, 1.05 * largest)
    ax.set_xlabel("KL from supervised, nats (root scale)")


# ------------------------------------------------------------------- 2. the figures, on given axes

def draw_1(page, curves, fits):
    """Lines over parameters; the references are the even line."""
    ax = page.subplots()
    for i, (who, some) in enumerate(curves.items()):
        curve(ax, some, who, **style((2, 1, 0)[i]))
    even(ax)
    ax.text(min(p["x"] for p in curves["supervised"]), 0.515, "references", fontsize=12)
    ax.set_xscale("log")
    ticks = curves["supervised"]
    ax.set_xticks([p["x"] for p in ticks], [f"{p['x'] / 1e6:.2g}M" for p in ticks])
    ax.minorticks_off()
    ax.set(xlabel="parameters outside the embeddings", title="Preferred to the references")
    percent(ax)
    ax.legend()


def draw_2(page, curves, fits):
    """Above, preference: solid what is, dotted what the reward model believes. Below, the grade."""
    top, bottom = page.subplots(2, 1)
    ways = list(dict.fromkeys(name.rsplit(" ", 1)[0] for name in curves))
    largest = max(p["x"] for some in curves.values() for p in some)
    for i, way in enumerate(ways):
        label = way.replace("beta", "PPO, beta")
        curve(top, curves[f"{way} actual"], **style(i))
        curve(top, curves[f"{way} predicted"], band=False, ls=":", **style(i, marker=None))
        line = {} if way in fits else {"ls": "-"}
        curve(bottom, curves[f"{way} gold"], label, **style(i, **line))
    even(top)
    top.plot([], [], color="black", lw=2.4, label="judge")
    top.plot([], [], color="black", lw=2.4, ls=":", label="as the reward model sees it")
    top.set_title("Preferred to the references, sampled")
    percent(top)
    for way, fit in fits.items():
        start = curves[f"{way} gold"][0]["value"]
        x = [largest * (k / 200) ** 2 for k in range(1, 201)]
        x = [kl for kl in x if kl <= 1.3 * max(p["x"] for p in curves[f"{way} gold"])]
        alpha, beta = fit["alpha"]["value"], fit["beta"]["value"]
        y = [start + gain(kl, alpha, beta, way) for kl in x]
        colour = COLOURS[ways.index(way)]
        bottom.plot(x, y, color=colour, ls="--", lw=1.8)
        if fit["peak"]["value"] is not None and fit["peak"]["value"] <= x[-1]:
            bottom.plot(fit["peak"]["value"], start + fit["peak gain"]["value"], marker="*", ms=18,
                        color=colour, mec="black", zorder=5)
    bottom.plot([], [], color="black", ls="--", lw=1.8, label="fit (Gao et al.), star: its peak")
    bottom.set_title("The judge's grade, 1 to 7")
    for ax in (top, bottom):
        root_axis(ax, largest)
        ax.legend(loc="center right" if ax is top else "upper right")


def gain(kl, alpha, beta, way):
    """Gao's forms, as figures_numbers.fit_gao fits them."""
    d = math.sqrt(kl)
    return d * (alpha - beta * (d if way == "best of n" else math.log(d)))


def draw_3(page, curves, fits):
    """Lines over labels, one for each size, between one labeller's and the judge's."""
    ax = page.subplots()
    for i, (name, some) in enumerate(curves.items()):
        if name in ("one labeller", "gold judge"):
            value = some[0]["value"]
            ax.axhline(value, color=GREY, lw=1.6, ls="--" if name == "gold judge" else ":")
            ax.text(some[0]["x"], value + 0.003, name, fontsize=12, color="#444444")
        else:
            curve(ax, some, name, **style(i))
    ax.set_xscale("log", base=2)
    ticks = [p["x"] for p in next(iter(curves.values()))]
    ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    ax.set(xlabel="comparisons learned from", title="Labels foretold by the reward model")
    percent(ax, *ax.get_ylim())
    ax.legend(loc="lower right")


def draw_4(page, curves, fits):
    """Lines over n, one for each chooser."""
    ax = page.subplots()
    for i, (by, some) in enumerate(curves.items()):
        curve(ax, some, by, **style(i))
    even(ax)
    ax.set_xscale("log", base=2)
    ticks = [p["x"] for p in next(iter(curves.values()))]
    ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    ax.set(xlabel="n, samples of which the best is kept", title="Best of n, as the judge sees it")
    percent(ax, *ax.get_ylim())
    ax.legend(title="best by")


def draw_5(page, curves, fits):
    """Bars, one for each system, twice."""
    left, right = page.subplots(1, 2, sharey=True)
    for ax, name, title in ((left, "overall", "judge's grade"),
                            (right, "per 100 characters", "per 100 characters")):
        some = curves[name][::-1]
        x, low, high = columns(some, "value", "low", "high")
        error = [[v - a for v, a in zip(x, low, strict=True)],
                 [b - v for v, b in zip(x, high, strict=True)]]
        ax.barh(range(len(some)), x, 0.7, xerr=error, capsize=3, color=[
            COLOURS[0] if p["at"] == "human_feedback" else GREY for p in some])
        ax.set_title(title)
    left.set_yticks(range(len(some)), [NEWS[p["at"]] for p in some])
    left.set(xlim=(1, 7), xticks=range(1, 8))


def draw_6(page, curves, fits):
    """Four groups of bars."""
    ax = page.subplots()
    bars(ax, curves, AXIS_NAMES)
    ax.set(ylim=(1, 8.4), yticks=range(1, 8), title="Grades, 1 (worst) to 7 (best)")
    ax.legend(ncols=2, loc="upper center", fontsize=12)


def draw_7(page, curves, fits):
    """Lines over length; below, bars as written and at equal length."""
    top, bottom = page.subplots(2, 1)
    names = [name for name in curves if not name.endswith(" grade")]
    for i, name in enumerate(names):
        curve(top, curves[f"{name} grade"], name, **style((2, 1, 0)[i]))
    top.set(xlabel="length, as a multiple of the author's", title="The judge's grade, by length")
    top.legend()
    bars(bottom, {told: [curves[name][k] for name in names] for k, told in
                  enumerate(("as written", "at equal length"))}, names)
    even(bottom)
    bottom.set_title("Preferred to the references")
    percent(bottom)
    bottom.legend(loc="upper left")


def draw_8(page, curves, fits):
    """Two panels with one scale."""
    left, right = page.subplots(1, 2, sharey=True)
    curve(left, curves["by people's confidence"], **style(0))
    left.set(xlabel="labeller's confidence", title="right about people", xticks=[1, 2, 3, 4])
    curve(right, curves["by its own"], **style(1))
    right.plot([0.5, 1], [0.5, 1], color="black", lw=1.2, ls="--")
    right.set(xlabel="as sure as it says", title="calibration")
    right.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    percent(left, 0.4, 1)


def draw_9(page, curves, fits):
    """Lines over episodes, one for each critic."""
    ax = page.subplots()
    for i, told in enumerate(CRITICS.values()):
        curve(ax, curves[told], told, **style(i, ms=5))
    ax.set(xlabel="summaries written", title="Reward model's score while PPO trains")
    ax.legend(title="critic", fontsize=12)


def draw_10(page, curves, fits):
    """Left, the toy world; right, the language in which the best policy is known."""
    left, right = page.subplots(1, 2)
    for ax, ours, best in ((left, "PPO preferred", "best of n preferred"),
                           (right, "exact PPO", "exact best of n")):
        curve(ax, curves[best], band=ax is left, **style(0))
        curve(ax, curves[ours], band=ax is left, **style(1, lw=2.4 if ax is left else 0, zorder=4))
    x, y = columns(curves["exact pi*"], "x", "value")
    right.plot(x, y, color="black", lw=2.4)
    write_at(left, curves["best of n preferred"], 0.6, "best of n", 0, above=True)
    write_at(left, curves["PPO preferred"], 0.5, "PPO", 1, above=False)
    write_at(right, curves["exact pi*"], 0.42, "π*, exact", -1, above=True)
    write_at(right, curves["exact PPO"], 1.0, "PPO", 1, above=True)
    write_at(right, curves["exact best of n"], 0.7, "best of n", 0, above=False)
    for name, word, y in (("PPO preferred", "β", -24), ("best of n preferred", "n", 10)):
        some = sorted(curves[name], key=lambda p: p["x"])
        for p, place, side in ((some[0], (10, -10), "left"), (some[-1], (0, y), "right")):
            left.annotate(f"{word} {p['at']}", (p["x"], p["value"]), place, ha=side, fontsize=13,
                          textcoords="offset points", color="#444444")
    percent(left, *left.get_ylim())
    left.set_title("Toy world: beats the author")
    right.set_title("Tiny languages: reward")
    for ax in (left, right):
        ax.set_xlabel("KL from supervised, nats")
        ax.set_xlim(0, None)


DRAWN = {1: (draw_1, (6.4, 4.8)), 2: (draw_2, (7.2, 9.6)), 3: (draw_3, (6.4, 4.8)),
         4: (draw_4, (6.4, 4.8)), 5: (draw_5, (7.2, 5.2)), 6: (draw_6, (7.2, 4.8)),
         7: (draw_7, (6.4, 8.2)), 8: (draw_8, (7.6, 4.6)), 9: (draw_9, (6.4, 4.8)),
         10: (draw_10, (8, 4.4))}


def draw_figures(figures, fits, out):
    """figureN.png and figureN.svg. Raises: Problem without matplotlib."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise Problem(f"{out}: report.md and curves.json are written; for the figures, "
                      "`pip install matplotlib`") from None
    look = {"font.size": 15, "axes.titlesize": 15, "axes.spines.top": False, "legend.fontsize": 13,
            "axes.spines.right": False, "legend.edgecolor": "none", "legend.framealpha": 0.85,
            "svg.hashsalt": "figures"}
    with pyplot.rc_context(look):
        for number, curves in figures.items():
            draw, size = DRAWN[number]
            page = pyplot.figure(figsize=size, layout="constrained")
            draw(page, curves, fits)
            save_picture(page, out / f"figure{number}", 110)
            pyplot.close(page)


# ------------------------------------------------------------------------------------ 3. the report

def shown(p, form):
    """A point with its interval, as text."""
    if p["value"] is None:
        return "none"
    low, high = ("none" if p[end] is None else format(p[end], form) for end in ("low", "high"))
    return f"{p['value']:{form}} [{low}, {high}]"


CAPTIONS = {
    1: "Share of held-out posts on which the judge prefers the greedy summary to the author's.",
    2: "What optimising against a reward model does. Solid: the judge; dotted: what the reward "
       "model believes; points: PPO's snapshots, and n = 1, 2, 4, ... of best of n.",
    3: "Held-out pairs, each labelled by two people: how many of the labels a reward model "
       "foretells. Dashed: the noiseless judge; dotted: another person.",
    4: "The best of n samples by four choosers: how often the judge prefers it to the author's.",
    5: "Policies that learned from posts, tried on news; beside them one that learned from news.",
    6: "The judge's grades on the paper's axes.",
    7: "Fifths of each policy's summaries by length; and win rates as they would be if every "
       "summary were as long as the author's (appendix F).",
    8: "Left: how often the reward model agrees with people, by how sure they were. Right: by how "
       "sure it is itself; on the dashed line it would be as right as it says.",
    9: "The score of the summaries that PPO writes while it trains, with three kinds of critic.",
    10: "What a nat of KL from the supervised policy buys, PPO (at five prices of it, beta) and "
        "best of n. Left: sampled summaries preferred to the author's. Right: mean reward in "
        "small languages of 40 responses, where the best policy of each KL, pi*, is known.",
}


def fits_table(fits):
    """Gao's fits beside what was measured."""
    rows = [[way, *(shown(fit[name], ".2f") for name in ("alpha", "beta", "peak", "measured")),
             f"{fit['unpeaked']:.0%}"] for way, fit in fits.items()]
    return ("Fits to the judge's grade, d = sqrt(KL). *peak*: KL at which the fitted curve turns; "
            "*best measured*: KL of the\nbest of the measured policies; *never turns*: share of "
            "the resampled fits without a peak.\n\n" + table(
                [["", "alpha", "beta", "peak", "best measured", "never turns"]], rows))


def agreement_table(found, cfg):
    """How often each way of comparing agrees with a person (section 4.4; Tables 20 to 22)."""
    best = taught(cfg)
    ways = {"reward model": (best, lambda one: one["margin"])} | {
        way: ("prefer", lambda one, way=way: one["margin"][way])
        for way in found["prefer"][0]["margin"]}
    rows = [[way, *(shown(point("", 0, *resampled(agreement(found, name, get, *kind))), ".1%")
                    for kind in (("supervised",), ("feedback",), SAMPLED))]
            for way, (name, get) in ways.items()]
    return table([["agrees with people on", "supervised samples", "samples after PPO",
                   "what it learned from"]], rows)


def damage_table(found, cfg):
    """Which damage to an ideal summary the reward model sees."""
    name = taught(cfg)
    rows = []
    for kind in found[name][0]["damage"]:
        caught = found.arrays(name, lambda one, kind=kind: wins(one["damage"][kind], 0))
        rows.append([kind, shown(point("", 0, *resampled(caught)), ".1%"),
                     str(sum(map(len, caught)))])
    return table([["damage to an ideal summary", "caught", "n"]], rows)


def critics_table(found, cfg, curves):
    return table([["critic", "win rate at the end"]], [
        [told, shown(curves[f"{told}: win rate"][0], ".1%")] for told in CRITICS.values()])


def frontier_table(found, curves):
    """PPO at each beta, and how far it is from best of n at the same KL."""
    columns = ["PPO KL", *(f"{way}{told}" for told in ("preferred", "grade", "reward")
                           for way in ("PPO ", "PPO minus best of n "))]
    rows = []
    for p in curves["PPO KL"]:
        at = {name: q for name in columns for q in curves[name] if q["at"] == p["at"]}
        rows.append([p["at"], *(shown(at[name], ".1%" if "preferred" in name else ".2f")
                                if name in at else "-" for name in columns)])
    exact = [[f"{way} {p['at']}", f"{p['x']:.2f}", f"{p['value']:.2f}",
              shown(q, ".4f" if way == "PPO" else ".2f")] for way in ("PPO", "best of n")
             for p, q in zip(curves[f"exact {way}"], curves[f"exact {way} minus pi*"], strict=True)]
    return (f"{len(found.frontier)} worlds, {len(found.exact)} languages. Brackets here: 95 % by "
            "Student's t over them.\n\n"
            + table([["beta", *columns]], rows) + "\n\n" + table(
                [["exact language", "KL", "reward", "minus pi* at equal KL"]], exact))


def samples_table(found, cfg, count=4):
    """Table 10: the same posts summarised by everybody, with the scores of both judges."""
    names = {who.replace("_", " "): name for who, name in of_base(cfg).items()
             if who != "pretrained"} | {"over-optimised": "greedy-overoptimised"}
    everybody, parts = {who: found[name][0] for who, name in names.items()}, []
    for i in range(min(count, len(everybody["reference"]["texts"]))):
        post = everybody["reference"]["posts"][i]
        rows = [[who, one["texts"][i].replace("|", "\\|").replace("\n", " "),
                 cell(one["rm"][i], "+.2f"), cell(one["overall"][i], ".2f")]
                for who, one in everybody.items()]
        parts += ["\n".join(f"> {line}" for line in post.split("\n")),
                  table([["", "summary", "reward model", "judge"]], rows)]
    return "\n\n".join(parts)


def report(found, cfg, figures, fits, claims):
    """report.md as text."""
    k = len(found.seeds)
    parts = [f"# The paper's figures on toy posts\n\n{k} seed{'s' * (k != 1)}, each a world of its "
             "own with its own networks. Bands and brackets: 95 %, by drawing posts"
             f"{' and seeds' * (k > 1)} again.\n\n## What was to be shown\n\nA claim *holds* when "
             "the whole interval lies above 0, is *refused* when it lies below, else is *open*.\n",
             table([["claim", "figure", "by", "verdict"]], [
                 [c["claim"], str(c["figure"]), shown(c, c["form"]), c["verdict"]]
                 for c in claims])]
    more = {2: lambda: fits_table(fits),
            8: lambda: "\n\n".join([agreement_table(found, cfg), damage_table(found, cfg)]),
            9: lambda: critics_table(found, cfg, figures[9]),
            10: lambda: frontier_table(found, figures[10])}
    for number, make in FIGURES.items():
        title = make.__doc__.split("\n")[0].rstrip(".")
        parts.append(f"\n## Figure {number}. {title}\n")
        if number not in figures:
            parts.append("Not measured yet.")
            continue
        parts.append(f"![{title}](figure{number}.png)\n\n{CAPTIONS[number]}\n")
        parts += [more[number]()] if number in more else []
    try:
        parts += ["\n## Table 10. Samples\n", samples_table(found, cfg)]
    except Unmeasured:
        parts += ["Not measured yet."]
    return "\n".join(parts) + "\n"


def draw_everything(measured, cfg):
    """curves.json, reference.json, report.md, and the pictures last. Prints the verdicts."""
    found, out = Found(measured), Path(cfg.out)
    figures = draw_up(found, cfg, print)
    fits, claims = fitted(found, cfg) if 2 in figures else {}, judge_claims(found, cfg)
    for name, content in (("curves", {
            "seeds": len(found.seeds), "claims": claims, "fits": fits, "figures": figures,
            "numbers": numbers_of(figures, cfg)}), ("reference", reference(measured, cfg))):
        write(out / f"{name}.json",
                         json.dumps(content, indent=1, allow_nan=False) + "\n")
    text = report(found, cfg, figures, fits, claims)
    write(out / "report.md", text)
    for c in claims:
        print(f"{c['verdict']:8} {c['claim']}: {shown(c, c['form'])}")
    draw_figures(figures, fits, out)
    write(out / "report.html", page(text, out))
    print(f"\n{out / 'report.md'} and report.html show it all")
