"""The tutorial's pictures: draw_NAME(run) draws docs/tutorial/NAME.png from the numbers of a run.

Colours are Okabe and Ito's, told apart by all eyes. A picture is 5 inches or 800 pixels wide, and
its letters are no smaller than 8 points: so they can be read at half the size, too.

    python -m tools.tutorial draw path --run runs/demo

Read after: tutorial.py.
"""
import math
from pathlib import Path

import numpy as np
import torch

import data
import label
import sample
import toy
from evaluate import bootstrap, labels_of, the_judge
from model import lay_out, load_model
from ppo import policy_loss
from runtime import Problem, config_of
from runtime.files import json_of, read_jsonl, read_log, read_text
from tools.figures_numbers import FRONTIER, over_worlds

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"


def blank(height, width=5.0):
    """A matplotlib Figure and its axes, which fill it: no ticks, one unit is one inch. Raises:
    Problem without matplotlib."""
    figure = chart(height, width)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def chart(height, width=5.0):
    """An empty matplotlib Figure, in inches. Raises: Problem without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Problem("matplotlib is missing, only pictures need it: `pip install matplotlib`"
                      ) from None
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def box(axes, x, y, text, colour=GREY, width=1.9, height=0.5, size=9):
    """A box with its middle at (x, y)."""
    axes.text(x, y, text, ha="center", va="center", fontsize=size, linespacing=1.3)
    axes.add_patch(_rounded(x - width / 2, y - height / 2, width, height, colour))


def _rounded(x, y, width, height, colour):
    from matplotlib.patches import FancyBboxPatch
    return FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08",
                          facecolor=colour + "22", edgecolor=colour, linewidth=1.5)


def arrow(axes, start, end, text="", at=(0, 0), align="left", bend=0.0):
    """An arrow; its text stands at the middle, moved by `at`."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "lw": 1.4, "color": "black",
                                              "connectionstyle": f"arc3,rad={bend}"})
    middle = [(a + b) / 2 + move for a, b, move in zip(start, end, at, strict=True)]
    axes.text(*middle, text, ha=align, va="center", fontsize=8.5, linespacing=1.3)


# ------------------------------------------------------------------------ the opening, pages 1 to 4

def draw_path(run):
    """The whole method: what is made from what."""
    figure, axes = blank(5.6)
    box(axes, 2.5, 5.25, "posts, each with its\nauthor's summary", width=1.9)
    arrow(axes, (2.1, 5.0), (1.3, 4.45), "1. imitate the authors", (-0.12, 0.05), "right")
    box(axes, 1.2, 4.2, "supervised policy\nwrites summaries", BLUE)
    arrow(axes, (2.15, 4.2), (2.95, 4.2), "2. write\ntwice", (0, 0.22), "center")
    box(axes, 3.85, 4.2, "two summaries\nof one post", width=1.75)
    arrow(axes, (3.85, 3.95), (3.85, 3.45), "a person picks one", (-0.08, 0), "right")
    box(axes, 3.85, 3.2, "comparisons", width=1.75, height=0.45)
    arrow(axes, (3.85, 2.97), (3.85, 2.4), "3. learn to predict\nthe pick", (-0.08, 0), "right")
    box(axes, 3.85, 2.15, "reward model\nscores any summary", ORANGE, width=1.75)
    arrow(axes, (1.2, 3.95), (1.2, 2.4), "start as\na copy", (-0.1, 0), "right")
    box(axes, 1.2, 2.15, "policy\nwrites summaries", BLUE)
    arrow(axes, (2.15, 2.25), (2.95, 2.25), "a summary", (0, 0.13), "center")
    arrow(axes, (2.95, 2.05), (2.15, 2.05), "its score", (0, -0.13), "center")
    arrow(axes, (1.2, 1.9), (1.2, 0.7), "4. PPO, many times: make words that led to a\n"
          "high score more probable, and stay near\nthe supervised policy", (0.12, 0))
    box(axes, 2.5, 0.42, "5. evaluate: are these summaries really better?", GREEN, width=4.45)
    return figure


def posts_of(run, split):
    """The posts from which a run learned its summaries."""
    return data.read_posts(config_of(run / "supervised")["flags"]["data"], split)


def draw_rows(run):
    """Query, response and padding of 16 rows, taken at random and as `Batches` takes them."""
    posts, tokenizer = posts_of(run, "train"), data.load_tokenizer(run / "supervised")
    batches = data.Batches([data.characters(post) for post in posts], 16, seed=0)
    figure = chart(3.9)
    for axes, rows, title in zip(figure.subplots(2, 1, sharex=True), (range(16), batches.at(1)), (
            "16 posts as they come", "16 posts as Batches takes them"), strict=True):
        some = [posts[i] for i in rows]
        query = np.array([len(data.encode_query(tokenizer, post, 256)) for post in some])
        response = np.array([len(data.encode_response(tokenizer, post["summary"], 48))
                             for post in some])
        length = query + response
        rest = length.max() - length
        axes.barh(range(16), query, color=BLUE, label="query")
        axes.barh(range(16), response, left=query, color=ORANGE, label="response")
        axes.barh(range(16), rest, left=length, color="#dddddd", label="padding")
        axes.set_title(f"{title}: {rest.sum() / (16 * length.max()):.0%} padding", fontsize=9)
        axes.set_ylabel("row", fontsize=9)
        axes.set_yticks([])
        axes.tick_params(labelsize=8)
    axes.set_xlabel("column", fontsize=9)
    axes.set_xlim(0, 200)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  fontsize=8.5, frameon=False)
    return figure


def draw_grades(run):
    """The judge's grades of the authors' summaries, beside those of the best summaries."""
    posts = posts_of(run, "test")
    grades = [toy.gold(post, post["summary"]).overall for post in posts]
    best = [toy.gold(post, toy.ideal(toy.facts_of(post["post"]))).overall for post in posts]
    figure = chart(2.7)
    axes = figure.subplots()
    axes.hist(grades, np.linspace(1, 7, 25), color=BLUE,
              label=f"the authors' summaries: mean {np.mean(grades):.2f}")
    axes.axvline(np.mean(best), color=GREEN, lw=3,
                 label=f"the ideal ones: {np.mean(best):.2f}")
    axes.set_xlabel("grade, 1 to 7", fontsize=9)
    axes.set_ylabel(f"of {len(posts):,} summaries", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=9, frameon=False, loc="upper center")
    return figure


def weights_of_first_layer(network, tokens):
    """How much each head of the first layer looks from each column at each. (T,) -> (H, T, T)"""
    block = network.blocks[0]
    x = block.norm_1(network.embed(tokens[None], torch.arange(len(tokens))))         # (1, T, C)
    q = block.to_heads(block.attention.q(x))[0]                                      # (H, T, D)
    k, _ = block.to_heads(block.attention.kv(x))[0].chunk(2)                         # (H, T, D)
    fit = q @ k.mT / math.sqrt(block.D)                                              # (H, T, T)
    seen = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()             # (T, T)
    return fit.masked_fill(~seen, -math.inf).softmax(-1)


@torch.no_grad()
def draw_attention(run):
    """Where the supervised policy looks while it writes one summary."""
    network, tokenizer = load_model(run / "supervised"), data.load_tokenizer(run / "supervised")
    post = {"subreddit": "tifu", "title": "Please help me",
            "post": "My sister sold my bike. Should I call the police?"}
    query = data.encode_query(tokenizer, post, 256)
    row = query + data.encode_response(tokenizer, "My sister sold my bike.", 48)[:-1]
    words = [tokenizer.decode([token]).strip() or "\\n" for token in row]
    first, asking = len(row) - 26, range(len(query) - 1, len(row))       # 26: from "POST" on
    weight = weights_of_first_layer(network, torch.tensor(row)).amax(0)              # (T, T)
    shown = weight[asking.start:, first:].numpy()
    hidden = np.array([[column > i for column in range(first, len(row))] for i in asking])
    figure = chart(2.6)
    axes = figure.subplots()
    picture = axes.imshow(np.ma.array(shown, mask=hidden), cmap="Blues", vmin=0, vmax=1,
                          aspect="auto")
    axes.set_facecolor("#bbbbbb")
    axes.set_xticks(range(len(row) - first), words[first:], rotation=90, fontsize=8)
    axes.set_yticks(range(len(asking)), [f'"{words[i]}"' for i in asking], fontsize=8.5)
    axes.set_ylabel("the column that asks", fontsize=9)
    axes.set_xlabel("the columns where it looks (grey: not allowed)", fontsize=9)
    figure.colorbar(picture, ax=axes, pad=0.02).ax.tick_params(labelsize=8)
    return figure


def draw_loss(run):
    """The losses of pretraining and of supervised fine-tuning."""
    size = data.load_tokenizer(run / "supervised").n_vocab
    figure = chart(2.9)
    both = figure.subplots(1, 2, sharey=True, width_ratios=[1, 2])
    for axes, stage, told in zip(both, ("pretrained", "supervised"), (
            "pretraining:\nall tokens", "fine-tuning:\nthe summary's tokens"), strict=True):
        lines = read_log(run / stage / "log.jsonl")
        axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], color=BLUE,
                  label="loss of a batch")
        held_out = [line for line in lines if "valid_loss" in line]
        axes.plot([line["step"] for line in held_out], [line["valid_loss"] for line in held_out],
                  "o", color=ORANGE, ms=5, label="held-out posts")
        axes.axhline(math.log(size), color="black", ls="--", lw=1)
        axes.set_title(told, fontsize=9)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.set_ylim(0, 7.6)
    both[0].set_ylabel("nats a token", fontsize=9)
    both[1].text(lines[-1]["step"], math.log(size) - 0.15, f"ln {size:,} = {math.log(size):.2f}",
                 ha="right", va="top", fontsize=9)
    both[1].legend(fontsize=8.5, frameon=False, loc="center right")
    return figure


# --------------------------------------------- pages 5 to 9: sample, label, reward, PPO, evaluate

def two(height, left, right):
    """A Figure with two charts side by side, and these titles -> figure, axes, axes."""
    figure = chart(height)
    axes = figure.subplots(1, 2)
    for ax, title in zip(axes, (left, right), strict=True):
        ax.set_title(title, fontsize=9.5)
        ax.tick_params(labelsize=8.5)
    return figure, *axes


def percent(axis):
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


@torch.no_grad()
def doubtful(run):
    """The token of a greedy summary, of a held-out post, at which the supervised policy is least
    sure: the words before it, the probabilities (V,) of all tokens, and the tokenizer."""
    policy = sample.load_checkpoint(run / "supervised")
    query = policy.queries(sample.held_out(policy.flags["data"]))[0]
    response = sample.respond(policy, [query])[0]
    rows = lay_out([query], [response], policy.model.config.n_vocab)
    p = policy.model(rows.tokens, at=rows.columns)[0].double().softmax(-1)               # (R, V)
    t = int((-p * p.log()).sum(-1).argmax())
    return policy.tokenizer.decode(response[:t]), p[t].numpy(), policy.tokenizer


def draw_choose(run):
    """Page 5: a token is drawn where a random number meets the sums of the probabilities."""
    before, p, tokenizer = doubtful(run)
    sums, draws = p.cumsum(), (.2, .5, .8)
    drawn = np.searchsorted(sums, draws, side="right")
    shown = sorted({*drawn, *np.flatnonzero(p > .01)})    # in the order in which `choose` adds them
    before = " ".join(before.split()[-2:])
    figure, bars, steps = two(2.3, f"after “... {before}”", "u = .2, .5 and .8")
    rows = range(len(shown))
    bars.barh(rows, p[shown], color=BLUE)
    steps.barh(rows, p[shown], left=sums[shown] - p[shown], color=BLUE)
    for u, token in zip(draws, drawn, strict=True):
        steps.plot([u, u], [-.8, shown.index(token)], color=ORANGE, lw=2)
        steps.plot(u, shown.index(token), "o", color=ORANGE, ms=6)
    for ax in (bars, steps):
        ax.set_yticks(rows, [tokenizer.decode([int(i)]).strip() for i in shown])
        ax.set_ylim(len(shown) - .4, -.8)
    bars.set_xlabel("probability", fontsize=9)
    steps.set_xlabel("sum of the probabilities", fontsize=9)
    steps.set_xlim(0, 1)
    return figure


def draw_best_of_n(run):
    """Page 5: where the best of n comes from, and how good it is for its KL."""
    figure, density, grade = two(2.5, "which sample is the best of n?", "judge's grade")
    u = np.linspace(0, 1, 201)
    for n, colour in ((1, GREY), (2, GREEN), (4, BLUE), (16, ORANGE)):
        density.plot(u, n * u ** (n - 1), color=colour, lw=2, label=f"n = {n}")
    density.set_xlabel("u: share of samples with a lower score", fontsize=8.5)
    density.set_ylabel("density", fontsize=9)
    density.set_ylim(0, 8)
    density.legend(fontsize=8.5, frameon=False)
    rows = json_of(read_text(run / "report" / "report.json"))["overoptimisation"]
    best = [row for row in rows if row["method"] == "best_of_n"]
    grade.plot([row["kl"] for row in best], [row["gold"] for row in best], "o-", color=ORANGE, lw=2,
               label="best of n")
    for row in best:
        grade.annotate(str(row["n"]), (row["kl"], row["gold"]), (-4, 5), fontsize=8.5, ha="right",
                       textcoords="offset points")
    last = [row for row in rows if row["method"] == "ppo"][-1]
    grade.plot(last["kl"], last["gold"], "D", color=BLUE, ms=7, label="PPO")
    grade.set(xlim=(-.3, None), ylim=(None, 4.9))
    grade.set_xlabel("KL, nats", fontsize=9)
    grade.legend(fontsize=8.5, frameon=False, loc="lower right")
    return figure


def shares(x, chosen, bins):
    """Cut x at its quantiles into `bins` parts of equal size -> for each: mean x, share chosen, and
    its 95 % interval."""
    for part in np.array_split(np.argsort(x, kind="stable"), bins):
        yield x[part].mean(), chosen[part].mean(), bootstrap(chosen[part], 0)[1]


def curve_of_shares(ax, x, chosen, bins, colour):
    """Points with their intervals."""
    for at, share, (low, high) in shares(x, chosen, bins):
        ax.errorbar(at, share, [[share - low], [high - share]], fmt="o", color=colour, ms=5,
                    capsize=2.5)
    percent(ax.yaxis)
    ax.set_ylim(0, 1)
    ax.tick_params(labelsize=8.5)


def draw_labellers(run):
    """Page 6: how often the second summary is chosen, by how many points it is better."""
    answers = data.read_comparisons(str(run / "comparisons.jsonl"), "train")
    points = np.array([[label.points(label.LABELLERS[0], c["info"], text)
                        for text in label.texts_of(c)] for c in answers])
    chosen = np.array([c["choice"] for c in answers])
    figure = chart(2.7)
    ax = figure.subplots()
    curve_of_shares(ax, points[:, 1] - points[:, 0], chosen, 14, BLUE)
    x = np.linspace(-5, 5, 201)
    ax.plot(x, 1 / (1 + np.exp(-label.SHARPNESS * x)), color=GREY, lw=1.5, zorder=0,
            label="ada alone: sigmoid of 1.35 × points")
    ax.set_xlabel("points that B has more than A, in ada's eyes", fontsize=9)
    ax.set_ylabel("B chosen, by all eight", fontsize=9)
    ax.legend(fontsize=8.5, frameon=False, loc="upper left")
    return figure


def score_differences(run):
    """Of held-out comparisons: score of the second summary minus the first's, and the choice."""
    model = sample.load_checkpoint(run / "reward", head="scalar")
    held_out = labels_of(run, model.flags)
    posts, texts = [c["info"] for c in held_out], zip(*map(label.texts_of, held_out), strict=True)
    first, second = (np.array(sample.score_texts(model, posts, list(some))) for some in texts)
    return second - first, np.array([c["choice"] for c in held_out])


def slope_of(d, chosen):
    """The s that makes P(chosen) = sigmoid(s * d) fit best, by Newton's method: 1 is calibrated."""
    s = 1.
    for _ in range(30):
        p = 1 / (1 + np.exp(-s * d))
        s += (d * (chosen - p)).sum() / (d * d * p * (1 - p)).sum()
    return s


def draw_calibration(run):
    """Page 7: does a difference of 1 in score mean that 73 % choose so? On split valid2."""
    d, chosen = score_differences(run)
    figure = chart(2.9)
    ax = figure.subplots()
    curve_of_shares(ax, d, chosen, 8, ORANGE)
    x = np.linspace(-4, 4, 201)
    ax.plot(x, 1 / (1 + np.exp(-x)), color=GREY, lw=1.5, zorder=0,
            label="Bradley-Terry: sigmoid(d)")
    ax.set_xlabel("d: reward model's score of B minus its score of A", fontsize=9)
    ax.set_ylabel("B chosen", fontsize=9)
    ax.legend(fontsize=8.5, frameon=False, loc="upper left")
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(d), size=len(d)) for _ in range(1000)]
    low, high = np.quantile([slope_of(d[some], chosen[some]) for some in draws], [.025, .975])
    print(f"{len(d)} comparisons; slope {slope_of(d, chosen):.2f} [{low:.2f}, {high:.2f}]")
    return figure


def draw_clip(run):
    """Page 8: PPO's loss of one token by its ratio, for a good and for a bad token."""
    figure, *axes = two(2.4, "a good token, A = 1", "a bad token, A = -1")
    ratio = torch.linspace(.4, 1.6, 241)
    for ax, A, colour in zip(axes, (1., -1.), (GREEN, ORANGE), strict=True):
        loss, flat = policy_loss(ratio.log(), torch.zeros(241), torch.full((241,), A), .2)
        ax.plot(ratio, -A * ratio, color=GREY, lw=1.2, ls="--", label="without clip")
        ax.plot(ratio, loss, color=colour, lw=2.5, label="PPO's loss")
        ax.axvspan(*ratio[flat][[0, -1]].tolist(), color=GREY, alpha=.18, lw=0, label="flat")
        ax.axvline(1, color="black", lw=.8)
        ax.set_xlabel("ratio = pi / pi_old", fontsize=9)
    axes[1].legend(fontsize=8.5, loc="lower right", framealpha=1, edgecolor="white")
    return figure


def draw_intervals(run):
    """Page 9: win rates against the authors, from the first n posts of the report only."""
    written = [line for _, line in read_jsonl(run / "report" / "summaries.jsonl")]
    folder = json_of(read_text(run / "report" / "report.json"))["data"]
    known = {post["id"]: post for post in sample.held_out(folder)}
    posts = [known[line["id"]] for line in written]
    figure = chart(2.5)
    ax = figure.subplots()
    for name, colour, shift in (("human_feedback", ORANGE, .97), ("supervised", BLUE, 1.03)):
        texts = ([line[who] for line in written] for who in (name, "reference"))
        won = the_judge(posts)[1].compare(posts, *texts)
        for n in (10, 30, 100, 300, 1000):
            low, high = bootstrap(won[:n], 0)[1]
            mean = won[:n].mean()
            ax.errorbar(n * shift, mean, [[mean - low], [high - mean]], fmt="o", color=colour, ms=5,
                        capsize=3, label=name.replace("_", " ") if n == 10 else None)
    ax.axhline(.5, color="black", lw=1, ls="--")
    ax.set_xscale("log")
    ax.set_xticks([10, 30, 100, 300, 1000], ["10", "30", "100", "300", "1000"])
    ax.minorticks_off()
    percent(ax.yaxis)
    ax.tick_params(labelsize=8.5)
    ax.set(ylim=(0, 1.02))
    ax.set_xlabel("posts", fontsize=9)
    ax.set_ylabel("preferred to the author's", fontsize=9)
    ax.legend(fontsize=8.5, frameon=False, loc="center right", bbox_to_anchor=(1, .62))
    return figure


def draw_overoptimised(run):
    """Page 9: what the reward model expects, and what is true, while PPO goes on without a price of
    KL. run: one with snapshots, evaluated."""
    rows = json_of(read_text(run / "report" / "report.json"))["overoptimisation"]
    figure, share, grade = two(2.5, "preferred to the author's", "judge's grade")
    for method, looks, label_ in (("ppo", {"color": ORANGE, "marker": "o"}, "PPO, beta 0"),
                                  ("best_of_n", {"color": BLUE, "marker": "s"}, "best of n")):
        some = sorted((row for row in rows if row["method"] == method), key=lambda row: row["kl"])
        kl = [row["kl"] for row in some]
        share.plot(kl, [row["win_rate"] for row in some], lw=2, ms=4, **looks)
        share.plot(kl, [row["predicted_win_rate"] for row in some], ":", lw=2, ms=4, **looks)
        grade.plot(kl, [row["gold"] for row in some], lw=2, ms=4, label=label_, **looks)
    share.plot([], [], color="black", lw=2, label="true")
    share.plot([], [], ":", color="black", lw=2, label="reward model's")
    percent(share.yaxis)
    for ax, place in ((share, "lower left"), (grade, "upper right")):
        ax.set_xscale("function", functions=(lambda kl: abs(kl) ** .5, lambda x: x ** 2))
        ax.set_xticks([0, 1, 4, 10, 20, 40])
        ax.set_xlabel("KL, nats", fontsize=9)
        ax.legend(fontsize=8.5, frameon=False, loc=place)
    return figure


# ------------------------------------------------------- EXPERIMENTS.md: one variable at a time

REFERENCE = Path(__file__).resolve().parent.parent / "reference"


def curve(ax, x, value, ends, colour, told):
    """A curve with its 95 % band. x, value: (K,). ends: (2, K), low and high."""
    ax.fill_between(x, *ends, color=colour, alpha=.2, lw=0)
    ax.plot(x, value, "o-", color=colour, lw=1.8, ms=4, label=told)


def panel(ax, title, ticks, x=None):
    """The axes' title and its ticks, at equal distances if no x (K,) is given. Returns: x."""
    x = range(len(ticks)) if x is None else x
    ax.set_title(title, fontsize=9)
    ax.set_xticks(x, ticks)
    ax.tick_params(labelsize=8)
    percent(ax.yaxis)
    return x


def two_of_worlds(ax, x, worlds):
    """Share preferred (left) and grade (right), each the mean of worlds with its 95 % interval."""
    curve(ax, x, *over_worlds([world["win_rate"] for world in worlds]), BLUE, "preferred (left)")
    right = ax.twinx()
    curve(right, x, *over_worlds([world["gold"] for world in worlds]), ORANGE, "grade (right)")
    ax.plot([], [], "o-", color=ORANGE, lw=1.8, ms=4, label="grade (right)")
    right.set_ylim(2.2, 5)
    right.tick_params(labelsize=8)


def accuracy_of(ax, x, bands, colour, told):
    """Reward models' accuracy: the bands in which another sweep's should be, [low, high] each."""
    curve(ax, x, np.mean(bands, 1), np.transpose(bands), colour, told)


def measured(ax, x, rows, key, colour, told):
    """rows: {key: [value, low, high], ...} each."""
    value, *ends = np.transpose([row[key] for row in rows])
    curve(ax, x, value, ends, colour, told)


def draw_sweeps(run):
    """Six variables, each changed alone, from the numbers in reference/; no run is read."""
    frontier, bands, sweeps = (json_of(read_text(REFERENCE / f"{name}.json"))
                               for name in ("frontier", "toy", "sweeps"))
    worlds, bands = frontier["frontier"], bands["numbers"]
    noise, temperature = sweeps["noise"], sweeps["temperature"]
    figure = chart(6.3)
    beta, best, labels, size, sharp, warm = figure.subplots(3, 2).flatten()

    two_of_worlds(beta, panel(beta, "beta", FRONTIER), [world["PPO"] for world in worlds])
    n = worlds[0]["best of n"]["n"]
    two_of_worlds(best, panel(best, "best of n", n), [world["best of n"] for world in worlds])

    counts, sizes = (600, 1200, 2400, 4800, 9600), ("tiny", "small", "toy", "large")
    names = ("toy-tiny", "toy-small", "toy", "toy-large")
    x = panel(labels, "number of labels: accuracy", counts)
    for name, colour in (("toy", BLUE), ("toy-tiny", ORANGE)):
        accuracy_of(labels, x, [bands[f"figure 3: {name}: {count}"] for count in counts], colour,
                    f"size {name}")
    x = panel(size, "size: accuracy", sizes)
    for count, colour in ((9600, BLUE), (600, ORANGE)):
        accuracy_of(size, x, [bands[f"figure 3: {name}: {count}"] for name in names], colour,
                    f"{count:,} labels")

    x = panel(sharp, "SHARPNESS of labels: accuracy", [row["sharpness"] for row in noise])
    measured(sharp, x, noise, "judge", GREEN, "against the judge")
    measured(sharp, x, noise, "people", BLUE, "against people")
    x = [row["temperature"] for row in temperature]
    panel(warm, "temperature: preferred", x, x)
    measured(warm, x, temperature, "PPO", ORANGE, "PPO")
    measured(warm, x, temperature, "supervised", BLUE, "supervised")

    for ax, ends, place in ((beta, (.6, .9), "lower left"), (best, (.36, .9), "lower right"),
                            (labels, (.6, .8), "lower right"), (size, (.6, .8), "lower right"),
                            (sharp, (.6, .9), "lower right"), (warm, (0, 1), "lower center")):
        ax.set_ylim(ends)
        ax.legend(fontsize=8, frameon=False, loc=place, ncols=2 if ax is warm else 1)
    return figure
