r"""Chapter 5. Let a policy write: one summary, the best of n, pairs of summaries to be compared.

    greedy       always the most probable token, as at T = 0: how policies are judged
    sampled      token ~ softmax(logits / T): how pairs for labelling are made       (section 3.3)
    best of n    n samples, of which the one with the highest reward is kept         (appendix G.3)

    python sample.py --policy runs/demo/ppo      # after make demo: a post nobody trained on; 2 s
    python sample.py --policy runs/demo/supervised --post "My sister sold my bike." \
                     --best-of 16 --reward runs/demo/reward
    python sample.py --policy runs/mine/supervised --data data/mine --pairs 4000 \
                     --with-reference 0.5 --out runs/mine/pairs.jsonl    # half a minute, two cores

Before:  sft.py (where a policy comes from).    After: label.py (which of two summaries is better?).
"""
import math
import re
import sys
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tiktoken
import torch

import data
from model import GPT, choose, load_model, score
from runtime import ALONE, Machine, Problem, config_of, flag, generator, launch, write


@dataclass(frozen=True)
class Config(Machine):
    policy: str = flag(..., "checkpoint folder of the model that writes", what="DIR")
    post: str = flag(None, "the post to summarise; none: a random held-out one", what="TEXT")
    post_file: str = flag(None, "file that holds it; - is standard input", what="TEXT FILE")
    best_of: int = flag(1, "samples, of which the one with the highest reward is shown", least=1)
    reward: str = flag("", "reward model, whose scores are shown", what="DIR")
    data: str = flag("", "folder of posts; none: the one the policy learned from", what="DIR")
    pairs: int = flag(0, "write so many pairs of samples of training posts (tools.pairs: others)")
    out: str = flag("", "file of --pairs", what="NEW FILE")
    with_reference: float = flag(.1, "share of pairs that show the author's summary and one sample")
    # DIFFERS: the paper draws pairs at .7, where a tiny policy says the same thing twice.
    temperature: float = flag(None, "divides the logits, 0 is greedy; none: 0 for a summary, 0.7 "
                                    "for --best-of, 1 for pairs", least=0)
    seed: int = flag(0, "which post is shown, and every random number")


# 80 % of the posts train reward models, 8 % choose among them, 12 % are for the report.
SPLITS = ["train"] * 80 + ["valid1"] * 8 + ["valid2"] * 12
TRIES = 4                  # to draw a second summary that differs from the first


class Checkpoint(NamedTuple):
    """A trained network, and all that is needed to use it."""
    folder: str
    model: GPT
    tokenizer: tiktoken.Encoding
    query_length: int            # tokens of a post, at most
    response_length: int         # tokens of a summary, at most, <|endoftext|> included
    fill: bool                   # shorter posts are filled up with spaces, as OpenAI's models want
    flags: dict                  # how it was trained
    world: object                # the World: the processes that share its work

    def queries(self, posts):
        """Posts or articles as token lists."""
        return [data.encode_query(self.tokenizer, p, self.query_length, self.fill) for p in posts]

    def responses(self, texts):
        """Summaries as token lists. One that is cut gets its <|endoftext|> all the same."""
        return [data.encode_response(self.tokenizer, t, self.response_length) for t in texts]


def load_checkpoint(folder, world=ALONE, head="lm", like=None):
    """A Checkpoint. head: "lm" for a policy, "scalar" for a reward model, whatever it reads. like:
    another, whose tokens it should read. Raises: Problem when its kind, or its run, is another."""
    flags, model = config_of(folder)["flags"], load_model(folder, world, frozen=True)
    tokenizer, kinds = data.load_tokenizer(folder), ("policy", "reward model")
    if (head == "lm") != (model.config.head == "lm"):
        raise Problem(f"{folder} holds a {kinds[head == 'lm']}, not a {kinds[head != 'lm']}: are "
                      "the folders swapped?")
    if tokenizer.n_vocab != model.config.n_vocab or (
            like and not data.same_tokenizer(tokenizer, like.tokenizer)):
        raise Problem(f"{folder} has another tokenizer than the rest: use networks of one run")
    length = flags.get("response_length") or 48
    room = model.config.context - length
    return Checkpoint(str(folder), model, tokenizer, min(flags.get("query_length") or room, room),
                      length, bool(flags.get("fill")), flags, world)


# ---------------------------------------------------------------------------------- token by token

def uniforms(seed, purpose, step, rows, n):
    """Random numbers in [0, 1), one for each of n tokens of each row: (len(rows), n) float64.
    All randomness in this book is a function of (seed, purpose, step, row), never of what was drawn
    before. So row 8 gets the same alone, in any batch, on any of many processes, after a restart:
        uniforms(0, "rollout", 3, [7, 8], 2)      [[0.96, 0.97], [0.44, 0.16]]
        uniforms(0, "rollout", 3, [8], 2)                       [[0.44, 0.16]]"""
    drawn = [generator(seed, purpose, step, int(row)).random(n) for row in rows]
    return np.array(drawn).reshape(len(drawn), n)


def read_queries(model, queries, column, room, together):
    """Run the queries, which end at the columns `column` (B, 1), `together` at a time. Returns:
    logits (B, V) of the token after each, and the cache, with room for so many columns."""
    config, device, dtype, logits = model.config, column.device, model.wte.weight.dtype, []
    if torch.is_autocast_enabled(device.type):           # bf16 arithmetic: so are keys and values
        dtype = torch.get_autocast_dtype(device.type)
    # Columns to come hold zeros, for attention takes 0 times what is there, and 0 * NaN is NaN.
    shape = (len(queries), 2 * config.heads, room, config.width // config.heads)
    cache = [torch.zeros(shape, dtype=dtype, device=device) for _ in model.blocks]
    for start in range(0, len(queries), together):
        some = slice(start, start + together)
        tokens = data.stack(queries[some], config.n_vocab).to(device)                # (b, T)
        part = [kv[some, :, :tokens.shape[1]] for kv in cache]           # (b, 2H, T, D), not copied
        logits.append(model(tokens, at=column[some], cache=part)[:, 0])              # (b, V)
    return torch.cat(logits), cache


@torch.no_grad()
def generate(model, queries, length, temperature=1.0, u=None, look_every=8, together=16):
    """Continue each query until <|endoftext|> or `length` tokens. In principle, a query at a time:
        for t in range(length):
            token, logp = choose(model(tokens)[:, -1], temperature, u[:, t])         # (1,), (1,)
            tokens = torch.cat([tokens, token[:, None]], 1)                          # (1, T + 1)
    This is 20 times faster on the toy, mostly by the cache. Queries of about the same length are
    read `together`, so that little is padding (10 % faster). Rows that have ended leave the batch
    (25 % faster): every `look_every` tokens, for to look, the CPU must wait for the GPU.
    With look_every = 2, queries of 3, 2 and 4 tokens, of which the second ends at once:
        t           0        1        2      3
        row         1 0 2    1 0 2    0 2    0 2    which queries are in the cache, shortest first
        column      1 2 3    2 3 4    4 5    5 6    where the model is read for it
        token       E a b    - c d    e f    ...    E: <|endoftext|>, so at t = 1 left is 1 2
    queries: B token lists. u: (B, length) in [0, 1), a number for each token; None: greedy.
    Returns: tokens (B, length) long, padding after <|endoftext|>; log-probs (B, length), there 0"""
    pad, eot, device = model.config.n_vocab, model.config.n_vocab - 1, model.wte.weight.device
    order = sorted(range(len(queries)), key=lambda i: len(queries[i]))
    queries, longest = [queries[i] for i in order], len(queries[order[-1]])
    model.check(longest + length)
    if u is not None:                                    # MPS has no float64
        exact = torch.float32 if device.type == "mps" else torch.float64
        u = torch.as_tensor(u, dtype=exact).to(device)                               # (B, R)
    row = torch.tensor(order, device=device)             # (b,) which rows are still in the cache
    column = torch.tensor([[len(query) - 1] for query in queries], device=device)    # (b, 1)
    logits, cache = read_queries(model, queries, column, longest + length, together)
    out = torch.full((len(queries), length), pad, device=device)                     # (B, R)
    logps = logits.new_zeros(out.shape)                                              # (B, R)
    for t in range(length):
        token, logps[row, t] = choose(logits, temperature, None if u is None else u[row, t])
        out[row, t] = token                                                          # (b,)
        if (t + 1) % look_every == 0:
            left = (out[row] != eot).all(1).nonzero()[:, 0]             # rows that go on
            if len(left) == 0:
                break
            if len(left) <= 0.75 * len(row):             # copying costs, so not for every row
                row, token, column = row[left], token[left], column[left]
                for i in range(len(cache)):              # one by one: memory for one more layer
                    cache[i] = cache[i][left]                                        # (b, 2H, S, D)
        if t + 1 < length:
            column, S = column + 1, longest + t + 1                                  # (b, 1), ()
            logits = model(token[:, None], new=column,                               # (b, V)
                           cache=[kv[:, :, :S] for kv in cache])[:, 0]
    ends = (out == eot).long()                           # 0 0 1 0 1: a row goes on until it leaves
    after = ends.cumsum(1) - ends > 0                    # F F F T T
    return out.masked_fill(after, pad), logps.masked_fill(after, 0)


# ------------------------------------------------------------------------------ writing and scoring

def spread(act, network, first, second, rows_at_once=128, bar="rows"):
    """What act says of each row, in their order. A row is an item of `first` and one of `second`.

    act(items, items) -> a result for each of some rows. Each process takes its share; rows of
    similar length come together, so that little is padding. network: Checkpoint."""
    lengths = [len(a) + len(b) for a, b in zip(first, second, strict=True)]
    world, found = network.world, {}
    mine = world.share(sorted(range(len(lengths)), key=lengths.__getitem__))
    with world.gathered(network.model), world.bar(len(lengths), bar) as shown:
        for start in range(0, len(mine), rows_at_once):
            some = mine[start:start + rows_at_once]
            results = act([first[i] for i in some], [second[i] for i in some])
            found |= zip(some, results, strict=True)
            shown.update(len(some) * world.size)
    found = world.merge(found)
    return [found[i] for i in range(len(lengths))]


def respond(policy, queries, temperature=0.0, seed=0, purpose="summary", attempt=0, rows=None,
            **how):
    """Continue B queries (token lists) -> B token lists, without padding. policy: Checkpoint.

    rows: B numbers, by default 0, 1, ...; the random numbers of row i follow from (seed, purpose,
        attempt, rows[i]) alone, so it is continued in the same way whatever other rows there are.
    how: rows_at_once, and bar, the name of a progress bar."""
    length, vocab = policy.response_length, policy.tokenizer.n_vocab
    draws = uniforms(seed, purpose, attempt, rows or range(len(queries)), length)        # (B, R)

    def act(queries, u):
        u = np.array(u) if temperature else None                             # (b, R); None: greedy
        tokens, _ = generate(policy.model, queries, length, temperature or 1.0, u)       # (b, R)
        return [[t for t in row if t < vocab] for row in tokens.tolist()]
    return spread(act, policy, queries, draws, **how)


def summarise(policy, posts, examples=(), **how):
    """One summary for each post or article -> texts. policy: Checkpoint. how: as for `respond`.

    examples: solved posts, which a policy that was only pretrained sees first. Of its answer the
    first line counts, for after that it makes up the next post."""
    room = policy.model.config.context - policy.response_length
    queries = ([encode_examples(policy.tokenizer, p, examples, room) for p in posts] if examples
               else policy.queries(posts))       # DIFFERS: the paper shows 13, in a larger context
    texts = [data.decode_response(policy.tokenizer, r) for r in respond(policy, queries, **how)]
    return [text.split("\n")[0].strip() for text in texts] if examples else texts


def encode_examples(tokenizer, post, examples, limit):
    """A post's query behind solved examples, as many as fit into `limit` tokens in all."""
    query = data.encode_query(tokenizer, {"format": "example"} | post, limit)
    prompts, solved = [query], ""
    for other in examples:
        asked = data.query_text({"format": "example"} | other)
        solved += f"{asked} {other['summary'].strip()}\n\n=====\n\n"
        prompts.append(tokenizer.encode_ordinary(solved + tokenizer.decode(query)))
    return [prompt for prompt in prompts if len(prompt) <= limit][-1]


def worked_examples(folder, seed, count=3):
    """Training posts with their summaries, to show a pretrained model what is wanted."""
    posts = data.read_posts(folder, "train")
    return [posts[i] for i in generator(seed, "examples").permutation(len(posts))[:count]]


def score_texts(reward, posts, texts, rows_at_once=128):
    """The reward model's score of each text as a summary of its post -> floats. reward: Checkpoint.

    A summary that was cut gets an <|endoftext|>, as in comparisons; PPO scores such a one low."""
    def act(queries, responses):
        return score(reward.model, queries, responses).tolist()              # (b,)
    scores = spread(act, reward, reward.queries(posts), reward.responses(texts), rows_at_once)
    if not all(map(math.isfinite, scores)):
        raise Problem(f"{reward.folder}: scores that are not finite: that network diverged; "
                      "train it again with a lower --lr")
    return scores


# --------------------------------------------------------------------------- one post on the screen

def held_out(folder):
    """Posts nobody trained on: the test split, or else the validation split."""
    return data.read_posts(folder, "test" if data.find(folder, "test") else "valid")


def post_of(cfg, folder):
    """The post of --post or --post-file (with a warning of new words), or else a held-out one."""
    text = cfg.post if cfg.post_file is None else cfg.post_file
    if text is None:
        posts = held_out(folder)
        return posts[generator(cfg.seed, "post").integers(len(posts))]
    if not text.strip():
        raise Problem("the post of --post or --post-file is blank: there is nothing to summarise")
    title, post = re.fullmatch(r"(?:TITLE: (.*)\n)?([\s\S]*)", text.strip()).groups()
    if data.find(folder, "train"):
        known = "\n".join(map(data.query_text, data.read_posts(folder, "train", False))).lower()
        unknown = [word for word in re.findall(r"\w+", post.lower()) if word not in known]
        if 2 * len(unknown) > len(post.split()):
            print(f"warning: {len(unknown)} of the post's words ({', '.join(unknown[:5])}, ...) "
                  f"occur in no training post of {folder}: expect nonsense", file=sys.stderr)
    return {"id": "typed", "subreddit": "relationships", "title": title or "", "post": post.strip()}


def show(cfg, policy, folder):
    """Print a post's summaries: the author's, then the policy's from the highest score down."""
    reward = load_checkpoint(cfg.reward, policy.world, "scalar", policy) if cfg.reward else None
    post, pretrained = post_of(cfg, folder), policy.flags.get("loss_on") == "all"     # and no more
    examples = worked_examples(folder, cfg.seed) if pretrained else ()
    texts = summarise(policy, [post] * cfg.best_of, examples, temperature=cfg.temperature,
                      seed=cfg.seed)

    def tell(texts):
        scores = score_texts(reward, [post] * len(texts), texts) if reward else [0.0]
        for points, text in sorted(zip(scores, texts, strict=True), reverse=True):
            print(f"{text}  (score {points:+.2f})" if reward else text)

    if "summary" in post:
        print(data.query_text(post).removesuffix("TL;DR:") + "the author's own:")
        tell([post["summary"].strip()])
        print(f"\n{Path(policy.folder).name}:")
    tell(texts)


# ------------------------------------------------------------------------------ pairs for labelling

def split_of(post):
    """A function of the post's id, so that a post stays in its split in every round."""
    return SPLITS[zlib.crc32(post["id"].encode()) % 100]


def pair_of(post, row, texts, names, cfg):
    """OpenAI's comparison before anybody chose, and the author's summary as its `reference`.

    names: who wrote the texts. In a share --with-reference of the pairs the author's summary takes
    the place of the second text, and it is drawn which of the two comes first."""
    rng, reference = generator(cfg.seed, "with reference", row=row), post.get("summary", "").strip()
    summaries = [{"text": " " + text, "policy": name, "note": None}
                 for text, name in zip(texts, names, strict=True)]
    if rng.random() < cfg.with_reference and reference not in ("", texts[0]):
        summaries[1] = {"text": " " + reference, "policy": "ref", "note": None}
        summaries = [summaries[i] for i in rng.permutation(2)]
    return {"info": {field: post[field] for field in data.fields_of(post)}, "summaries": summaries,
            "batch": Path(cfg.out).stem, "split": split_of(post), "reference": reference}


def make_pairs(cfg, posts, count, write_texts, names_of):
    """`count` pairs of different texts, fewer when the posts run out -> records; see `pair_of`.

    write_texts(rows, attempt): a text for each row of the posts; another attempt, another text. A
    second text that equals the first is drawn again, until TRIES are made; if it still does,
    another post takes that one's place. names_of(row): who writes the two."""
    order, pairs = generator(cfg.seed, "pairs").permutation(len(posts)).tolist(), []
    while order and len(pairs) < count:
        missing = count - len(pairs)
        rows, order = order[:missing], order[missing:]
        first, second, equal = dict(zip(rows, write_texts(rows, 0), strict=True)), {}, rows
        for attempt in range(1, TRIES + 1):
            second |= zip(equal, write_texts(equal, attempt), strict=True)
            equal = [row for row in rows if first[row] == second[row]]
        pairs += [pair_of(posts[row], row, (first[row], second[row]), names_of(row), cfg)
                  for row in rows if row not in equal]
    if not pairs:
        raise Problem("no post got two different summaries: raise --temperature")
    return pairs


def write_pairs(cfg, policy, folder):
    """Write --pairs pairs of samples of the folder's training posts to --out."""
    began, posts = time.perf_counter(), data.read_posts(folder, "train", need_summary=False)
    name = f"{Path(cfg.policy).name}_t{cfg.temperature:g}"

    def write_texts(rows, attempt):
        return summarise(policy, [posts[row] for row in rows], rows=rows, attempt=attempt,
                         temperature=cfg.temperature, seed=cfg.seed, purpose="pairs", bar="pairs")

    pairs = make_pairs(cfg, posts, cfg.pairs, write_texts, lambda row: (name, name))
    if policy.world.rank == 0:
        write(cfg.out, pairs, cfg, pairs=len(pairs), temperature=cfg.temperature,
              seconds=round(time.perf_counter() - began, 1))
        if len(pairs) < cfg.pairs:
            print(f"warning: {len(pairs)} pairs, not {cfg.pairs}: {folder} has {len(posts)} "
                  "training posts; one that got two equal summaries makes no pair", file=sys.stderr)
    print(f"{cfg.out}: {len(pairs)} pairs by {name}")


def work(cfg, world):
    """Show one post's summaries, or write pairs of them."""
    if cfg.temperature is None:
        cfg = replace(cfg, temperature=1.0 if cfg.pairs else 0.7 if cfg.best_of > 1 else 0.0)
    if cfg.best_of > 1 and not cfg.reward:
        raise Problem(f"--best-of {cfg.best_of} needs a --reward model to choose with")
    if bool(cfg.pairs) != bool(cfg.out):
        raise Problem("--pairs (how many) and --out (a file for them) need each other")
    typed = cfg.post is not None or cfg.post_file is not None
    if cfg.pairs and (typed or cfg.reward or cfg.temperature == 0):
        raise Problem("--pairs are two samples of training posts: no --post, no --reward (the best "
                      "of n in pairs: python -m tools.pairs), and a --temperature above 0")
    with world.mixed():
        policy = load_checkpoint(cfg.policy, world)
        folder = cfg.data or policy.flags.get("data") or "--data"    # no folder: named as missing
        (write_pairs if cfg.pairs else show)(cfg, policy, folder)


def main(argv=None):
    launch(work, Config, argv, __doc__,
           moved={"--others": "tools.pairs", "--by": "tools.pairs", "--run": "tools.side"})


if __name__ == "__main__":
    main()
