r"""Appendix to Chapter 9. A place to play: a run's policies summarise your post, in a browser.

    log-ratio   log pi(token) - log pi_sft(token), nats. pi: human feedback, pi_sft: supervised
    reward      what it would earn in PPO: -beta times that, the last one also the score

"This is the best" adds a comparison with each other summary to played.jsonl, in the run's folder.
One sees who wrote what, so they stay out of the labels' database, whose answers are blind. The
posts to pick are of the validation split, so that the report's stay unseen.

    python -m tools.play --run runs/demo --open
    python reward.py --preset toy --init runs/demo/supervised --out runs/demo/reward-played \
                     --comparisons runs/demo/comparisons.jsonl,runs/demo/played.jsonl

Read after: tools/side.py, which prints the same, and tools/label_site.py, whose protection it has.
"""
import threading
import zlib
from collections import namedtuple
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from data import fields_of, read_posts, text_of
from label import comparison
from model import lay_out
from ppo import Rollout, log_probs, token_rewards
from runtime import Machine, Problem, flag, launch, write
from runtime.files import json_lines
from sample import score_texts, split_of, summarise, worked_examples
from tools.label_site import PAGE, Local, Refused, clean
from tools.labelling import open_browser
from tools.microscope import responses
from tools.side import load_run

OFFERED, MOST = 40, 64                        # posts to pick from; samples of a best of n


@dataclass(frozen=True)
class Config(Machine):
    run: str = flag(..., "a run such as runs/demo, with ppo and reward", what="DIR")
    data: str = flag("", "posts; none: those that the supervised policy learned from", what="DIR")
    port: int = flag(8010, "port of this machine to listen on; 0: any free one")
    open: bool = flag(False, "open the page in this machine's browser")


# What the requests share; whoever has the lock uses the networks, or writes the file.
Room = namedtuple("Room", "policies reward posts examples out lock")


def post_in(room, body):
    """The post a request is about: the number of one that is offered, or a typed text."""
    number, text = body.get("number"), clean(body.get("post", ""), 20_000)
    if type(number) is int and 0 <= number < len(room.posts):
        return room.posts[number]
    if number is not None or not text:
        raise Refused(400, "pick a post, or type one")
    return {"id": f"typed-{zlib.crc32(text.encode()):08x}", "subreddit": "relationships",
            "title": "", "post": text}


@torch.no_grad()
def look(room, post, texts):
    """What the page shows of each text: its score, tokens, and their log-ratios and rewards."""
    ppo, supervised = room.policies["human_feedback"], room.policies["supervised"]
    posts, device = [post] * len(texts), ppo.world.device
    rows = lay_out(ppo.queries(posts), ppo.responses(texts), ppo.tokenizer.n_vocab).to(device)
    ours, theirs = (log_probs(who.model, rows, ppo.flags.get("temperature", 1.0))
                    .masked_fill(~rows.is_response, 0) for who in (ppo, supervised))    # (B, R)
    score = torch.tensor(score_texts(room.reward, posts, texts), device=device)         # (B,)
    rollout = Rollout(*rows, ours, theirs, torch.zeros_like(ours), score)
    reward = token_rewards(rollout, ppo.flags.get("kl_coef", 0.0))                      # (B, R)
    return responses(rollout, {"log_ratio": ours - theirs, "reward": reward}, posts,
                     ppo.tokenizer, None)


def write_all(room, body):
    """Let every policy summarise the post: {"rows": [{"who", ...}, ...]}, the author's first."""
    post, n, seed = post_in(room, body), body.get("best_of"), body.get("seed")
    temperature = body.get("temperature")
    if not (type(n) is int and 1 <= n <= MOST and type(seed) is int and abs(seed) < 2 ** 31
            and temperature in (0, 0.7, 1)):
        raise Refused(400, f"best_of is 1 to {MOST}, temperature 0, 0.7 or 1, seed a number")
    found = {"the author": post["summary"].strip()} if post.get("summary") else {}
    with room.lock, room.reward.world.mixed():
        for name, policy in room.policies.items():
            posts = [post] * (n if temperature else 1)
            texts = summarise(policy, posts, room.examples if name == "pretrained" else (),
                              temperature=temperature, seed=seed, bar=name)
            scores = score_texts(room.reward, posts, texts)
            found[name.replace("_", " ")] = texts[scores.index(max(scores))]
        rows = look(room, post, list(found.values()))
    return {"rows": [{"who": who, **row} for who, row in zip(found, rows, strict=True)]}


def keep(room, body):
    """Add to the file that one text is better than each other: {"kept": how many comparisons}."""
    post, shown, best, records = post_in(room, body), body.get("texts"), body.get("best"), []
    if not (isinstance(shown, list) and type(best) is int and 0 <= best < len(shown) <= 8 and all(
            isinstance(s, dict) and s.keys() == {"who", "text"} for s in shown)):
        raise Refused(400, "texts are at most 8 of {who, text}, best is the number of one of them")
    texts = [{"text": clean(s["text"]), "policy": clean(s["who"])} for s in shown]
    info = {field: post[field] for field in fields_of(post)}
    for place, other in enumerate(texts):
        if other["text"] != texts[best]["text"]:
            pair = {"info": info, "summaries": [texts[i] for i in sorted((place, best))],
                    "batch": "play", "split": split_of(post)}
            records.append(comparison(pair, "me", 9 if best > place else 1))
    with room.lock:
        old = room.out.read_bytes() if room.out.exists() else b""
        write(room.out, old + json_lines(records))
    return {"kept": len(records)}


def site_of(cfg, world):
    """The site, not yet serving. Raises: Problem when the run is not that far."""
    policies, reward = load_run(cfg.run, world)
    if reward is None or "human_feedback" not in policies:
        raise Problem(f"--run {cfg.run} has no reward/ or no ppo/ yet: train them first")
    folder = cfg.data or policies["supervised"].flags.get("data") or "--data"   # named as missing
    posts, out = read_posts(folder, "valid")[:OFFERED], Path(cfg.run) / "played.jsonl"
    room = Room(policies, reward, posts, worked_examples(folder, 0), out, threading.Lock())
    settings = {"out": str(out), "posts": [
        {"title": post.get("title", ""), "text": text_of(post)} for post in posts]}
    page = Path(__file__).with_name("play.html").read_text(encoding="utf-8").replace(
        "LOOKS", PAGE.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0])
    return Local("127.0.0.1", cfg.port, page, ("/",), {"/settings": lambda: settings},
                 {"/write": partial(write_all, room), "/keep": partial(keep, room)})


def play(cfg, world):
    """Serve the page until Ctrl-C."""
    with site_of(cfg, world) as site:
        print(f"{site.urls[0]}    play here\nCtrl-C stops", flush=True)
        if cfg.open:
            open_browser(site.urls[0])
        site.serve_forever()


def main(argv=None):
    launch(play, Config, argv, __doc__)


if __name__ == "__main__":
    main()
