"""Appendix. The token microscope: report.html, where every token shows what PPO saw in it.

    log-ratio   log pi(token) - log pi_sft(token), nats; a summary's sum is its KL estimate
    reward      what the token earned                                      (ppo.token_rewards)
    value       what the critic expected of the rest, before it saw the token
    advantage   how much better than expected it went on, before whitening           (ppo.gae)
    clipped     whether its loss would be flat (ppo.policy_loss), under the next stop's policy

A dozen held-out posts are summarised at several stops of training: supervised (with the critic that
PPO starts from), snapshots that have their critic beside them (ppo.py --snapshot-every), and the
final policy, all with PPO's own lengths. Each stop draws with the same random numbers, so that what
differs is the policy. The page opens at the last stop: at the first, each log-ratio is 0. It is one
file, which opens from the disk and asks no network.

    python -m tools.report --run runs/demo        # calls this

Read after: evaluate.py and ppo.py, whose functions these numbers come from.
"""
import base64
import json
import re
from pathlib import Path

import torch

from data import decode_response, text_of
from model import skeleton
from ppo import (
    GAMMA,
    LAMBDA,
    Config,
    Rollout,
    gae,
    log_probs,
    policy_loss,
    roll_out,
    token_rewards,
    whiten,
)
from runtime import ALONE
from tools.critics import first_critic
from tools.overoptimisation import checkpoints

TEMPLATE = Path(__file__).with_name("microscope.html")
SNAPSHOTS = 6          # stops between supervised and final, at most


def stops(supervised, ppo, reward, cfg):
    """Yield (name, policy, critic) along the training; the arguments are Checkpoints.

    The snapshots share one critic, loaded again for each: use each stop before asking for the next.
    """
    folder, final = Path(ppo.folder), ppo.flags["episodes"] // ppo.flags["batch"]
    critic = first_critic(ppo.flags.get("critic", "reward"), cfg, supervised.model, ppo.world)
    yield "supervised", supervised.model, critic
    critic = skeleton(critic.config, ppo.world, frozen=True)
    steps = [step for step in sorted(int(path.stem[7:]) for path in
                                     folder.glob("snapshots/critic-*.pt")) if step < final]
    chosen = torch.linspace(0, len(steps) - 1, min(SNAPSHOTS, len(steps))).round().int().tolist()
    chosen = [steps[i] for i in chosen]
    for step, snapshot in checkpoints(ppo):
        if step in chosen:
            ALONE.load(critic, folder / f"snapshots/critic-{step:06d}.pt")
            yield f"iteration {step} of {final}", snapshot.model, critic
    ALONE.load(critic, folder / "critic.pt")
    yield f"final, iteration {final}", ppo.model, critic


def token_numbers(rollout, cfg):
    """What PPO makes of each response token, as in ppo.train: {name: (B, R)}, 0 at padding.

    Whitened over the rollout's own tokens; training whitens over its far larger batch.
    """
    reward = token_rewards(rollout, cfg.kl_coef)                                        # (B, R)
    advantage, _ = gae(reward, rollout.value, GAMMA, LAMBDA)                            # (B, R)
    return {"log_ratio": rollout.old_logp - rollout.ref_logp, "reward": reward,
            "value": rollout.value, "advantage": advantage,
            "whitened": whiten(advantage, rollout.is_response),
            "logp": rollout.old_logp, "ref_logp": rollout.ref_logp}


def clipped(policy, rollout, whitened, cfg, world):
    """Which tokens' loss would be flat if `policy` were what an iteration had made of the policy
    that wrote them. (B, R) long, 0 or 1."""
    with world.mixed():
        logp = log_probs(policy, rollout, cfg.temperature)                              # (B, R)
    _, is_flat = policy_loss(logp, rollout.old_logp, whitened, cfg.clip_ratio)
    return (is_flat & rollout.is_response).long()


def token_text(tokenizer, token):
    """A token as text; bytes that are only a part of a character as \\xe2."""
    return tokenizer.decode_single_token_bytes(token).decode(errors="backslashreplace")


def responses(rollout, numbers, posts, tokenizer, grade):
    """What the page shows of one stop, a dict for each post: its response's text, score, grade,
    tokens and, for each of the numbers, a list as long as the tokens."""
    first = (rollout.columns[:, 0] + 1).tolist()
    ids = [tokens[at:at + int(keep.sum())].tolist() for tokens, at, keep in
           zip(rollout.tokens, first, rollout.is_response, strict=True)]
    texts = [decode_response(tokenizer, row) for row in ids]
    grades = grade(posts, texts)["overall"] if grade else None   # (B,)
    return [{"text": text, "score": round(rollout.score[i].item(), 5),
             "grade": None if grades is None else round(float(grades[i]), 5),
             "tokens": [token_text(tokenizer, token) for token in row],
             **{name: [round(x, 5) for x in values[i, :len(row)].tolist()]
                for name, values in numbers.items()}}
            for i, (text, row) in enumerate(zip(texts, ids, strict=True))]


def settings(supervised, ppo, reward):
    """ppo.Config as the run's PPO had it; the arguments are Checkpoints."""
    known = {k: v for k, v in ppo.flags.items() if k in Config.__dataclass_fields__}
    return Config(**known | {"policy": supervised.folder, "reward": reward.folder,
                             "response_length": ppo.response_length})


@torch.no_grad()
def look(supervised, ppo, reward, posts, grade):
    """The microscope's part of the page, ready for JSON.

    supervised, ppo, reward: the run's Checkpoints; ppo's folder holds critic.pt too. posts: what is
    summarised. grade: of a Judge in evaluate.py; None for one that gives no grades.
    """
    cfg = settings(supervised, ppo, reward)
    queries = ppo.queries(posts)
    seen = []
    for name, policy, critic in stops(supervised, ppo, reward, cfg):
        if seen:
            _, rollout, numbers = seen[-1]
            numbers["clipped"] = clipped(policy, rollout, numbers["whitened"], cfg, ppo.world)
        rollout = roll_out(policy, supervised.model, critic, reward.model, queries,
                           range(len(queries)), 0, cfg, ppo.world)
        # Every rank wrote all of these few, so that each row is there `size` times.
        rollout = Rollout(*(x[::ppo.world.size] for x in rollout if x is not None))
        seen.append((name, rollout, token_numbers(rollout, cfg)))
    return {"beta": cfg.kl_coef, "clip": cfg.clip_ratio, "temperature": cfg.temperature,
            "posts": [{"title": post.get("title", ""), "summary": post.get("summary", "").strip(),
                       "text": text_of(post)} for post in posts],
            "stops": [{"name": name, "rows": responses(rollout, numbers, posts, ppo.tokenizer,
                                                       grade)} for name, rollout, numbers in seen]}


def page(markdown, folder, seen=None, beside=None):
    """A report as one HTML file: the template with its data.

    markdown: the report's text; pictures that it names (alone in their line) are taken from folder,
    those that are missing are left out. seen: what `look` found, or None. beside: of
    report.side_by_side, or None. Texts travel as JSON in which no markup can end or begin.
    """
    named = {name: Path(folder, name) for name in
             re.findall(r"^!\[.*\]\((\w+\.png)\)$", markdown, re.MULTILINE)}
    pictures = {name: "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
                for name, path in named.items() if path.exists()}
    data = json.dumps({"markdown": markdown, "pictures": pictures, "microscope": seen,
                       "beside": beside}, allow_nan=False)          # ASCII: U+2028 is escaped too
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    return TEMPLATE.read_text(encoding="utf-8").replace("THE DATA", data, 1)


if __name__ == "__main__":
    print(__doc__)
