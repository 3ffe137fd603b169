"""The tutorial's pictures: draw_NAME(run) draws docs/tutorial/NAME.png from the numbers of a run.

Colours are Okabe and Ito's, told apart by all eyes. A picture is 5 inches or 800 pixels wide, and
its letters are no smaller than 8 points: so they can be read at half the size, too.

    python -m tools.tutorial draw path --run runs/demo

Read after: tutorial.py.
"""
import math

import numpy as np
import torch

import data
import toy
from model import load_model
from runtime import Problem, config_of
from runtime.files import read_log

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
