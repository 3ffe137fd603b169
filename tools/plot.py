r"""Curves of training runs as one picture, also while they train.

    loss          of pretraining, fine-tuning, the reward model; dashed: of held-out data
    accuracy      labels that the reward model predicts; dashed: of held-out labels
    score, KL, entropy, length        of the summaries that PPO writes

A RUN is the folder of a run, such as runs/demo, or of one stage of it. Each stage of each run is a
line of its own. Reads config.json and log.jsonl; a last line that is half written is left out.

    python -m tools.plot runs/demo                                    # writes plot.png
    python -m tools.plot runs/demo/ppo runs/try/ppo --out ppo.png --watch 10

With --kl no log is drawn but over-optimisation, measured now: how often samples beat the author,
as the reward model predicts and as the judge sees it, against KL. The first RUN, PPO's folder in a
run, is a line through its snapshots; of each other one the final policy is a point. The README's
picture:

    python ppo.py --preset toy --kl-coef 0 --episodes 6144 --snapshot-every 2 --data data/toy \
                  --policy runs/demo/supervised --reward runs/demo/reward --out runs/demo/free
    python -m tools.plot --kl runs/demo/free runs/demo/ppo --out docs/first.png

Read after: evaluate.py.
"""
import argparse
import math
import time
from pathlib import Path

from evaluate import bootstrap, sample_with_kl
from runtime import Problem, config_of, generator
from runtime.files import replacing
from runtime.flags import Parser, entry
from runtime.health import curve
from sample import held_out, load_checkpoint
from tools.doctor import parts_of
from tools.overoptimisation import checkpoints, opinions
from tools.rouge import load_judge

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


POSTS = 512            # held-out posts on which --kl samples


# ------------------------------------------------------------------------------------- 1. the logs

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
    """One picture: a panel for each of PANELS that some log has, a colour for each log. Two panels
    a row, so that figures can be read at the width of a telephone, 400 pixels."""
    pyplot = pyplot_of(out)
    stages = {stage for stage, _ in logs.values()}
    panels = [panel for panel in PANELS if panel[0] in stages]
    wide = min(2, len(panels))
    high = math.ceil(len(panels) / wide)
    colours = {folder: COLOURS[i % len(COLOURS)] for i, folder in enumerate(logs)}
    with pyplot.rc_context({"font.size": 12, "axes.titlesize": 12, "axes.spines.top": False,
                            "axes.spines.right": False}):
        names = dict(colours)
        if any(curve(lines, held_out) for _, _, _, held_out in panels if held_out
               for _, lines in logs.values()):
            names["dashed: held-out data"] = "0.5"
        page = pyplot.figure(figsize=(3.4 * wide, 2.3 * high + 0.3 * len(names)),
                             layout="constrained")
        for i, (stage, title, key, held_out) in enumerate(panels, 1):
            ax = page.add_subplot(high, wide, i)
            ax.set(title=title, xlabel=f"step of {SCRIPTS[stage]}")
            ax.xaxis.get_major_locator().set_params(integer=True)
            for folder, (of, lines) in logs.items():
                for name, look in ((key, "-"), (held_out, "--")):
                    if points := curve(lines, name) if of == stage else []:
                        marker = "." if len(points) < 20 or name == held_out else ""
                        faint = 0.5 if held_out and name == key else 1
                        ax.plot(*zip(*points, strict=True), look, marker=marker, alpha=faint,
                                color=colours[folder])
        lines = [pyplot.Line2D([], [], color=colour, lw=3, ls="-" if name in logs else "--")
                 for name, colour in names.items()]
        page.legend(lines, names, loc="outside lower left", frameon=False)
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


# ------------------------------------------------------------------- 2. over-optimisation, measured

def measured(folder, whole):
    """What reward model and judge think of PPO's samples: [{"step", "kl", "predicted": (mean, low,
    high), "true": the same}], shares of posts with their 95 % interval.

    folder: PPO's, whose run holds supervised/ and reward/. whole: also of the policy that it began
    with and of its snapshots, in training's order.
    """
    ppo, run = load_checkpoint(folder), Path(folder).parent
    supervised = load_checkpoint(run / "supervised", like=ppo)
    reward = load_checkpoint(run / "reward", head="scalar", like=ppo)
    posts = held_out(ppo.flags["data"])
    posts = [posts[i] for i in generator(0, "evaluate").permutation(len(posts))[:POSTS]]
    _, judge = load_judge("auto", posts)
    stops = [(0, ppo._replace(model=supervised.model)), *checkpoints(ppo)]
    points = []
    for step, policy in stops if whole else stops[-1:]:
        texts, kl = sample_with_kl(policy, supervised, posts, ppo.flags["temperature"], 0,
                                   f"iteration {step}")
        seen = opinions(reward, judge, posts, texts)                      # {name: (P, 1)}
        point = {"step": step, "kl": float(kl.mean())}
        for name, key in (("predicted", "predicted_win_rate"), ("true", "win_rate")):
            shares = seen[key][:, 0]
            point[name] = float(shares.mean()), *bootstrap(shares, 0)[1]
        points.append(point)
        print(f"{folder}, iteration {step}: KL {point['kl']:.2f}, preferred to the author " +
              ", ".join("{}: {:.1%} [{:.1%}, {:.1%}]".format(name, *point[name])
                        for name in ("predicted", "true")), flush=True)
    return points


def draw_kl(line, points, out):
    """Two curves and, on each, the points. line, points: of `measured`; points: {label: point}."""
    pyplot = pyplot_of(out)
    with pyplot.rc_context({"font.size": 12, "axes.spines.top": False,
                            "axes.spines.right": False}):
        page = pyplot.figure(figsize=(6, 3.6), layout="constrained")
        ax = page.subplots()
        line = sorted(line, key=lambda point: point["kl"])      # while it trains KL may step back
        kl = [point["kl"] for point in line]
        for name, told, colour in (("predicted", "what the\nreward model\npredicts", COLOURS[1]),
                                   ("true", "what is true:\nthe judge", COLOURS[0])):
            share, low, high = zip(*(point[name] for point in line), strict=True)
            ax.plot(kl, share, color=colour, lw=2.5)
            ax.fill_between(kl, low, high, color=colour, alpha=0.2, lw=0)
            ax.annotate(told, (kl[-1], share[-1]), (8, 0), textcoords="offset points", va="center",
                        color=colour, weight="bold")
            for point in points.values():
                ax.plot(point["kl"], point[name][0], "o", color=colour, ms=9, mec="white", mew=1.5)
        for label, point in points.items():
            top = max(point["predicted"][0], point["true"][0])
            ax.annotate(label, (point["kl"], top), (10, 18), textcoords="offset points",
                        arrowprops={"arrowstyle": "-", "color": "0.4", "shrinkB": 5})
        ax.set(xlim=0, ylim=(0, 1), xlabel="KL from the supervised policy, nats",
               ylabel="preferred to the author")
        ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        ax.set_title("Without a price on KL, PPO pleases\nthe reward model, but not the judge.",
                     weight="bold")
        with replacing(out) as f:
            page.savefig(f, format="png", dpi=150)
        pyplot.close(page)


def main(argv=None):
    """Draw once, or again and again until Ctrl-C."""
    parser = Parser(description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or of a stage")
    parser.add_argument("--out", default="plot.png", metavar="FILE", help="the picture, a .png")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="draw again so often")
    parser.add_argument("--tensorboard", metavar="DIR", help="also write TensorBoard's event files")
    parser.add_argument("--kl", action="store_true", help="over-optimisation in place of the logs")
    cfg, done = parser.parse_args(argv), {}
    if cfg.kl:
        first, *others = cfg.runs
        line = measured(first, whole=True)
        points = {f"with a price: beta {config_of(other)['flags']['kl_coef']:g}":
                  measured(other, whole=False)[-1] for other in others}
        draw_kl(line, points, Path(cfg.out))
        return
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
