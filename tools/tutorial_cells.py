"""The tutorial's notebook: its cells that compute what a page does by hand.

Where a page says <!-- notebook: NAME -->, the notebook has the body of the function NAME from here
as a cell; its docstring is the cell's comment. A cell calls the functions whose code stands on the
same page as the notebook defines them there: a reader may change them, too.

    python -m tools.tutorial notebook

Read after: tutorial_notebook.py.
"""
import math
from pathlib import Path

import numpy as np
import regex
import torch

import data
import label
import toy
from data import stack
from evaluate import bootstrap, labels_of
from label import decide
from model import attention, choose, lay_out, token_logp
from ppo import GAMMA, LAMBDA, Rollout, gae, policy_loss, token_rewards, whiten
from reward import pairwise_loss
from runtime.files import read_log
from sample import load_checkpoint, score_texts
from sft import nll
from tools.tokenizer import merge, train_tokenizer
from toy import blend

# ----------------------------------------------------------------------------------- the first page

def choices():
    """What happens with other scores?"""
    a, b = torch.tensor(0.5), torch.tensor(2.0)
    print(f"B is chosen in {torch.sigmoid(b - a):.0%} of all cases")
    print(f"cost if B was chosen   {pairwise_loss(b, a):.2f}")
    print(f"cost if A was chosen   {pairwise_loss(a, b):.2f}")
    print(f"cost of a coin toss    {pairwise_loss(a, a):.2f}")


# -------------------------------------------------------------------------------- 1. data to 4. sft

def row():
    """Write another post, or another summary: which tokens does it have?"""
    post = {"id": "mine", "subreddit": "tifu", "title": "Please help me",
            "post": "My sister sold my bike. Should I call the police?"}
    tokenizer = data.load_tokenizer("data/toy")
    query = data.encode_query(tokenizer, post, limit=512)
    rows = [query + data.encode_response(tokenizer, text, limit=48)
            for text in ("My sister sold my bike.", "She sold it.")]
    print([tokenizer.decode([token]) for token in rows[0]])
    print(stack(rows, pad=tokenizer.n_vocab)[:, 28:])


def merges():
    """The merges of another text, and how `merge` encodes with the first few of them."""
    text = "low lower lowest"
    ranks = train_tokenizer([text], vocab=256 + 6 + 1)._mergeable_ranks
    pieces = regex.findall(data.PATTERN, text)
    for n in range(7):
        known, tokens = dict(list(ranks.items())[:256 + n]), []
        for piece in pieces:
            parts = [bytes([byte]) for byte in piece.encode()]
            merge(parts, known)
            tokens += [part.decode(errors="replace").replace(" ", "_") for part in parts]
        print(f"{n} merges, {len(tokens):2} tokens:  {' '.join(tokens)}")


def padding():
    """How much of all tables is padding? A window of 1 batch: 16 rows as they come."""
    tokenizer, posts = data.load_tokenizer("data/toy"), data.read_posts("data/toy", "train")
    lengths = np.array([len(data.encode_query(tokenizer, post, 256))
                        + len(data.encode_response(tokenizer, post["summary"], 48))
                        for post in posts])
    for window in (1, 50):
        batches = data.Batches([data.characters(post) for post in posts], 16, 0, window)
        tables = [lengths[batches.at(step)] for step in range(batches.steps_per_epoch)]
        share = 1 - sum(map(np.sum, tables)) / sum(16 * table.max() for table in tables)
        print(f"window {window:2}: {share:.1%} padding")


def world():
    """Another post of this world: another number."""
    post = data.read_posts("data/toy", "valid")[0]
    facts = toy.facts_of(post["post"])
    print(facts, post["post"], post["summary"], toy.ideal(facts), sep="\n\n")


def grade():
    """Which grade does your summary get? Change the powers in `blend` above: and now?"""
    post = data.read_posts("data/toy", "valid")[0]
    for summary in (post["summary"], toy.ideal(toy.facts_of(post["post"])),
                    "My uncle buried my map. Should I quit my job?"):
        axes, _ = toy.shares(post, summary)
        print(f"{blend(axes):.2f}  coverage {axes[0]:.3f}, accuracy {axes[1]:.3f}, "
              f"coherence {axes[2]:.3f}, length {axes[3]:.3f}  {summary}")


@torch.no_grad()
def shapes():
    """The first rows of the table, in the trained network. What changes with a third row?"""
    policy = load_checkpoint("runs/demo/supervised")
    post = {"id": "mine", "subreddit": "tifu", "title": "Please help me",
            "post": "My sister sold my bike. Should I call the police?"}
    summaries = ["My sister sold my bike.", "She sold it."]
    rows = lay_out(policy.queries([post] * len(summaries)), policy.responses(summaries),
                   pad=policy.tokenizer.n_vocab)
    network, block = policy.model, policy.model.blocks[0]
    x = network.embed(rows.tokens, torch.arange(rows.tokens.shape[1]))
    q = block.to_heads(block.attention.q(block.norm_1(x)))
    k, v = block.to_heads(block.attention.kv(block.norm_1(x))).chunk(2, 1)
    for name, tensor in (("tokens", rows.tokens), ("x", x), ("q", q), ("k", k), ("v", v),
                         ("fit", q @ k.mT), ("x after a layer", block(x)),
                         ("logits", network(rows.tokens))):
        print(f"{name:16}", tuple(tensor.shape))


def mask():
    """Take the mask out of `attention` above: what does column 1 find then?"""
    q, k, v = (torch.tensor(numbers).view(1, 1, 3, 1)                        # (B, H, T, D) each
               for numbers in ([0., 1., 1.], [1., 0., 2.], [10., 20., 30.]))
    print(attention(q, k, v).flatten())


@torch.no_grad()
def loss():
    """The table above, by the trained network. Which summaries surprise it more?"""
    policy = load_checkpoint("runs/demo/supervised")
    post = {"id": "mine", "subreddit": "tifu", "title": "Please help me",
            "post": "My sister sold my bike. Should I call the police?"}
    (query,), (response,) = policy.queries([post]), policy.responses(["My sister sold my bike."])
    rows = lay_out([query], [response], pad=policy.tokenizer.n_vocab)
    logp = token_logp(policy.model(rows.tokens, at=rows.columns), rows.targets)[0]
    for token, one in zip(response, logp, strict=True):
        print(f"{policy.tokenizer.decode([token]):14}{one.exp():6.3f}{-one:8.3f}")
    total = nll(policy.model, [(query, response)])
    print(f"sum {total:.2f}, mean {total / len(response):.2f} nats a token")


@torch.no_grad()
def ranks():
    """One process, then each of two. Show another batch: at(1). Whose mean is wrong?"""
    policy, posts = load_checkpoint("runs/demo/pretrained"), data.read_posts("data/toy", "train")
    batch = data.Batches([data.characters(post) for post in posts], 16, seed=0).at(0)
    for numbers in (batch, batch[0::2], batch[1::2]):
        rows = [(data.encode_query(policy.tokenizer, posts[i], 256),
                 data.encode_response(policy.tokenizer, posts[i]["summary"], 48)) for i in numbers]
        nats, tokens = nll(policy.model, rows), sum(len(response) for _, response in rows)
        print(f"{len(rows):2} rows, {tokens} tokens, {nats:.2f} nats: {nats / tokens:.4f} a token")


def lasts():
    """How both ended. What if there are more steps than 100?"""
    for name in ("with", "without"):
        print(f"{name:8}{read_log(f'runs/{name}/log.jsonl')[-1]['valid_loss']:.2f} nats a token")


# --------------------------------------------------------------------------- 5. sample to 7. reward

def draw():
    """Other probabilities, other random numbers, other temperatures."""
    p, u = torch.tensor([.5, .3, .2]), torch.tensor([.10, .49, .60, .79, .95])
    print(choose(p.log().expand(len(u), 3), 1.0, u)[0])
    u = torch.rand(100_000)
    for temperature in (1.0, 0.7, 0.1):
        tokens, _ = choose(p.log().expand(len(u), 3), temperature, u)
        print(f"T = {temperature}:", tokens.bincount(minlength=3) / len(u))


def best():
    """Is the formula right? The best of n by drawing u, and the mean of the log of its density."""
    for n in (2, 4, 16):
        u = torch.rand(100_000, n).amax(1)                 # of n samples, the one that is kept
        drawn = (n * u ** (n - 1)).log().mean()
        print(f"n = {n:2}: drawn {drawn:.3f}, formula {math.log(n) - (n - 1) / n:.3f}")


def people():
    """All eight people: by the formula, and by asking `decide` 1,000 times. Write another B."""
    record = {"post": "On Monday my roommate's car got broken by my cousin at the station. I will "
                      "read all of your comments. We live in a small town where people talk. I am "
                      "so shocked right now, so should I let it go? When I asked about it, they "
                      "told me it was the law."}
    a = ("My cousin broke my roommate's car at the station. Basically everyone hates me and nobody "
         "cares.")
    b = "My cousin broke my roommate's car. I am shocked."
    rng = np.random.default_rng(0)
    for taste in label.LABELLERS:
        more = label.points(taste, record, b) - label.points(taste, record, a)
        formula = 1 / (1 + math.exp(-label.SHARPNESS * (more - taste.first)))
        asked = np.mean([decide(taste, record, (a, b), rng) > 5 for _ in range(1000)])
        print(f"{taste.worker:10} {more:5.2f} points more for B   P(choose B) {formula:.2f}   "
              f"asked: {asked:.2f}")


def answers():
    """Three people choose B, one A. Which d has the smallest sum if it is nine and one?"""
    zero = torch.zeros(1)
    for d in (0, 1.1, 2):
        d = torch.tensor([float(d)])
        chosen, rejected = pairwise_loss(d, zero), pairwise_loss(zero, d)
        total = 3 * chosen + rejected
        print(f"d = {d.item():.1f}   3 * {chosen:.3f} + {rejected:.3f} = {total:.2f}")


def gradients():
    """How strong is the push? Try a pair of which the model is very sure."""
    for pair in ([1.2, 0.3], [0.7, 0.7], [0.3, 1.2]):
        scores = torch.tensor(pair, requires_grad=True)
        cost = pairwise_loss(scores[:1], scores[1:])
        cost.backward()
        print(pair, f"loss {cost.item():.2f}, gradient for the chosen {scores.grad[0]:.2f}")


def calibration():
    """The picture above as numbers: 8 groups of pairs, and the share of people who chose B."""
    model = load_checkpoint("runs/demo/reward", head="scalar")
    held_out = labels_of("runs/demo", model.flags)
    posts = [pair["info"] for pair in held_out]
    first, second = zip(*map(label.texts_of, held_out), strict=True)
    d = np.array(score_texts(model, posts, second)) - score_texts(model, posts, first)
    chose_b = np.array([pair["choice"] for pair in held_out])
    print(f"{len(d)} pairs, predicted right: {np.mean((d > 0) == chose_b):.1%}")
    for group in np.array_split(d.argsort(), 8):
        mean = d[group].mean()
        print(f"d = {mean:5.2f}   chose B {chose_b[group].mean():4.0%}   "
              f"sigmoid(d) {1 / (1 + math.exp(-mean)):4.0%}")


# --------------------------------------------------------------------------- 8. ppo and 9. evaluate

def table():
    """The table of three tokens, row by row. Make "He" less probable now: -0.90, not -0.30."""
    old, ref, value, now = (torch.tensor([numbers]) for numbers in (
        [-0.60, -1.20, -0.30], [-1.00, -1.00, -0.40], [1.00, 1.20, 1.50], [-0.30, -1.30, -0.20]))
    is_response = torch.ones(1, 3, dtype=torch.bool)
    rollout = Rollout(None, None, None, is_response, old, ref, value, score=torch.tensor([2.]))
    reward = token_rewards(rollout, kl_coef=0.05)
    advantage, returns = gae(reward, value, GAMMA, LAMBDA)
    whitened = whiten(advantage, is_response)
    cost, flat = policy_loss(now, old, whitened, clip=0.2)
    for name, numbers in (("log ratio to sft", old - ref), ("reward", reward), ("value", value),
                          ("delta", gae(reward, value, GAMMA, 0)[0]), ("advantage", advantage),
                          ("return", returns), ("whitened advantage", whitened),
                          ("ratio", (now - old).exp()), ("loss", cost)):
        print(f"{name:20}", "".join(f"{x:8.3f}" for x in numbers[0].tolist()))
    print(f"{'flat?':20}", "".join(f"{'yes' if x else 'no':>8}" for x in flat[0]))


def iterations():
    """What happened in all twelve iterations?"""
    for line in read_log("runs/demo/ppo-again/log.jsonl"):
        print(f"{line['step'] + 1:3}", *(f"{name} {line[name]:5.2f}  " for name in (
            "score", "kl", "reward", "length", "explained_variance", "clip_fraction")))


def intervals():
    """Five posts, then 92 % of 1,000. How wide is it with 4,000?"""
    for won in ([1, 1, 0, .5, 1], [1] * 920 + [0] * 80):
        error, (low, high) = bootstrap(won, seed=0)
        p, n = np.mean(won), len(won)
        print(f"n = {n}: {p:.0%} [{low:.1%}, {high:.1%}], standard error {error:.4f}, "
              f"by the formula {math.sqrt(p * (1 - p) / n):.4f}")


def report():
    """The table of this notebook's own run (reference: the authors)."""
    text = Path("runs/demo/report/report.md").read_text(encoding="utf-8")
    print("\n".join(line for line in text.split("\n* ")[0].splitlines() if line.startswith("|")))
