"""Curves of training runs as one picture, also while they train.

    loss          of pretraining, fine-tuning, the reward model; dashed: of held-out data
    accuracy      labels that the reward model predicts; dashed: of held-out labels
    score, KL, entropy, length        of the summaries that PPO writes

A RUN is the folder of a run, such as runs/demo, or of one stage of it. Each stage of each run is a
line of its own. Reads config.json and log.jsonl; a last line that is half written is left out.

    python -m tools.plot runs/demo                                    # writes plot.png
    python -m tools.plot runs/demo/ppo runs/mine/ppo --out ppo.png --watch 10

Read after: ppo.py.
"""
import math
import time
from pathlib import Path

from runtime import Problem
from runtime.files import replacing
from runtime.flags import Parser, entry
from runtime.health import curve
from tools.doctor import parts_of

PANELS = [             # stage, title, what of its log: drawn solid; dashed, of held-out data
    ("sft", "loss, nats a token", "loss", "valid_loss"),
    ("reward", "loss, nats a label", "loss", "valid_loss"),
    ("reward", "share of labels predicted", "accuracy", "valid_accuracy"),
    ("ppo", "reward model's score", "score", None),
    ("ppo", "KL from supervised, nats", "kl", None),
    ("ppo", "entropy, nats a token", "entropy", None),
    ("ppo", "length, tokens", "length", None)]
SCRIPTS = {"sft": "sft.py", "reward": "reward.py", "ppo": "ppo.py"}
# Okabe and Ito's, told apart by all eyes.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def logs_of(runs):
    """{folder of a stage: (stage, lines of its log)}. Raises: Problem for a folder without any."""
    found = {}
    for run in runs:
        for name, stage, lines, _ in parts_of(run):
            folder = Path(run, name) if Path(run, name).is_dir() else Path(run)
            if stage != "report":
                found[str(folder)] = stage, lines
    return found


def pyplot_of(out):
    """matplotlib.pyplot, for files only. Raises: Problem without the package."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise Problem(f"{out} is not drawn: `pip install matplotlib`") from None
    return pyplot


def draw(logs, out):
    """One picture: a panel for each of PANELS that some log has, a colour for each log."""
    pyplot = pyplot_of(out)
    stages = {stage for stage, _ in logs.values()}
    panels = [panel for panel in PANELS if panel[0] in stages]
    wide = min(4, len(panels))
    high = math.ceil(len(panels) / wide)
    colours = {folder: COLOURS[i % len(COLOURS)] for i, folder in enumerate(logs)}
    with pyplot.rc_context({"font.size": 12, "axes.titlesize": 12, "axes.spines.top": False,
                            "axes.spines.right": False}):
        page = pyplot.figure(figsize=(3.4 * wide, 2.7 * high + 0.3 * len(logs)),
                             layout="constrained")
        for i, (stage, title, key, held_out) in enumerate(panels, 1):
            ax = page.add_subplot(high, wide, i)
            ax.set(title=title, xlabel=f"step of {SCRIPTS[stage]}")
            for folder, (of, lines) in logs.items():
                for name, look in ((key, "-"), (held_out, "--")):
                    if points := curve(lines, name) if of == stage else []:
                        marker = "." if len(points) < 20 or name == held_out else ""
                        faint = 0.5 if held_out and name == key else 1
                        ax.plot(*zip(*points, strict=True), look, marker=marker, alpha=faint,
                                color=colours[folder])
        lines = [pyplot.Line2D([], [], color=colour, lw=3) for colour in colours.values()]
        page.legend(lines, colours, loc="outside lower left", frameon=False)
        with replacing(out) as f:
            page.savefig(f, format="png", dpi=110)
        pyplot.close(page)


def to_tensorboard(logs, folder, done):
    """Event files for TensorBoard, one folder for each log. done: {log: lines written already},
    which is updated. Raises: Problem without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise Problem("--tensorboard needs a package: `pip install tensorboard`") from None
    for name, (_, lines) in logs.items():
        with SummaryWriter(Path(folder, name.strip("/").replace("/", "-"))) as writer:
            for line in lines[done.get(name, 0):]:
                for key, value in line.items():
                    if key not in ("step", "event", "why") and value is not None:
                        writer.add_scalar(key, value, line["step"], walltime=line["seconds"])
        done[name] = len(lines)


def main(argv=None):
    """Draw once, or again and again until Ctrl-C."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or of a stage")
    parser.add_argument("--out", default="plot.png", metavar="FILE", help="the picture, a .png")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="draw again so often")
    parser.add_argument("--tensorboard", metavar="DIR", help="also write TensorBoard's event files")
    cfg, done = parser.parse_args(argv), {}
    while True:
        logs = logs_of(cfg.runs)
        if cfg.tensorboard:
            to_tensorboard(logs, cfg.tensorboard, done)
        draw(logs, Path(cfg.out))
        print(f"{cfg.out}: {len(logs)} logs, {sum(len(lines) for _, lines in logs.values())} lines")
        if cfg.watch is None:
            return
        time.sleep(cfg.watch)


if __name__ == "__main__":
    entry(main)
