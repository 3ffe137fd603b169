"""The tutorial's pictures: draw_NAME(run) draws docs/tutorial/NAME.png from the numbers of a run.

Colours are Okabe and Ito's, told apart by all eyes. A picture is 5 inches or 800 pixels wide, and
its letters are no smaller than 8 points: so they can be read at half the size, too.

    python -m tools.tutorial draw path --run runs/demo

Read after: tutorial.py.
"""
from runtime import Problem

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
