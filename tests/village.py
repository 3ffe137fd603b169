"""A village of 320 posts and a pipeline of seconds: what doctor and golden curves are tested on.

The village's authors say who did what, which is in the post, and more often than not chat on ("as
usual"). Its labeller wants the whole truth and no chat, and errs on one pair in ten. So imitation
alone is mediocre, and feedback has something to teach.
"""
import itertools
import json

import numpy as np
import pytest
from conftest import write_posts

import data
import ppo
import reward
import sft
from tools.tokenizer import train_tokenizer

WHO = ("my mother", "my boss", "my cat", "a friend", "the mayor")
DID = ("sold", "broke", "hid", "painted")
WHAT = ("bike", "phone", "oven", "boat", "hat")
CHAT = " as usual"

STAGES = {      # script, and its flags; what a test types after them wins
    "supervised": (sft, "--size tiny --query-length 48 --response-length 16 --batch 16 --steps 140 "
                        "--lr 1e-2 --warmup 5"),
    "reward": (reward, "--query-length 48 --response-length 16 --batch 16 --lr 5e-3"),
    "ppo": (ppo, "--query-length 48 --response-length 16 --temperature 1 --batch 64 --minibatches 2 "
                 "--episodes 768 --micro-batch 32 --lr 1.5e-3 --kl-coef 0.1")}
CONSTANTS = {"supervised": dict(LOG_EVERY=5, EVAL_EVERY=35, EVAL_ROWS=64),
             "reward": dict(WARMUP=5, LOG_EVERY=2, EVAL_EVERY=10), "ppo": {}}


def villagers(n, rng):
    """n posts; in 7 of 10 the author chats on."""
    facts = list(itertools.product(WHO, DID, WHAT))
    for i in range(n):
        who, did, what = facts[rng.integers(len(facts))]
        yield {"id": f"v{i}", "subreddit": "advice", "title": "what now",
               "post": f"so {who} {did} my {what}" + " and then some" * int(rng.integers(3)),
               "summary": f"{who} {did} my {what}" + CHAT * bool(rng.random() < 0.7)}


def compared(posts, rng, wrong):
    """Comparisons of the plain truth with a rival that chats, is of another's deed, or is cut short.

    wrong: share of labels turned round.
    """
    for i, post in enumerate(posts):
        plain, other = (p["summary"].removesuffix(CHAT) for p in (post, posts[i - 1]))
        cut = " ".join(plain.split()[:int(rng.integers(1, 4))])
        rival = str(rng.choice([plain + CHAT, other, other + CHAT, cut, cut + CHAT],
                               p=[.4, .15, .15, .15, .15]))
        texts = [plain, rival if rival != plain else plain + CHAT]
        choice = int(rng.random() < 0.5)
        if choice:
            texts = texts[::-1]
        if rng.random() < wrong:
            choice = 1 - choice
        yield {"info": {k: post[k] for k in ("id", "subreddit", "title", "post")},
               "summaries": [{"text": " " + t, "policy": "village", "note": None} for t in texts],
               "choice": choice, "worker": "w", "batch": "b", "extra": {},
               "split": "valid1" if i % 5 == 0 else "train"}


def settle(folder, seed=0, wrong=0.1, labels=800):
    """Write the village's posts, tokenizer and comparisons. Returns: folder."""
    rng = np.random.default_rng(seed)
    posts = list(villagers(320, rng))
    for split, part in (("train", posts[:256]), ("valid", posts[256:])):
        write_posts(folder, split, part)
    data.save_tokenizer(train_tokenizer(data.full_texts(folder), 340), folder)
    (folder / "comparisons.jsonl").write_text("".join(
        json.dumps(c) + "\n" for c in compared(list(villagers(labels, rng)), rng, wrong)))
    return folder


def run(stage, village, out, more="", supervised=None, rewarded=None):
    """Run a stage into out/stage, from out's earlier stages or those given. Returns: its folder."""
    script, flags = STAGES[stage]
    supervised, rewarded = supervised or out / "supervised", rewarded or out / "reward"
    needs = {"supervised": f"--data {village}",
             "reward": f"--init {supervised} --comparisons {village}/comparisons.jsonl",
             "ppo": f"--policy {supervised} --reward {rewarded} --data {village}"}[stage]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CONSTANTS[stage].items():
            patch.setattr(script, name, value)
        script.main(f"{flags} {needs} --device cpu --out {out / stage} {more}".split())
    return out / stage


def pipeline(village, out, seed=0):
    """Every stage. Returns: out."""
    for stage in STAGES:
        run(stage, village, out, f"--seed {seed}")
    return out
