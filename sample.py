r"""Chapter 5. Let a policy write: one summary, the best of n, pairs of summaries to be compared.

    greedy       always the most probable token, as at T = 0: how policies are judged
    sampled      token ~ softmax(logits / T): how pairs for labelling are made       (section 3.3)
    best of n    n samples, of which the one with the highest reward is kept         (appendix G.3)

How far does best of n lead away from its policy? Let u be the share of all samples that score lower
than this one: uniform on [0, 1]. The largest of n has density n u^(n - 1); its mean log u is -1/n:

    KL(best of n || policy) = E[ log n + (n - 1) log u ] = log n - (n - 1) / n        nats

So n = 16 costs 2.77 - .94 = 1.84 nats, and 10 nats take n = 60,000. (With equal scores: less.)

    python sample.py --policy runs/demo/ppo                       # a post nobody trained on; 2 s
    python sample.py --policy runs/demo/supervised --post "My sister sold my bike." \
                     --best-of 16 --reward runs/demo/reward
    python sample.py --policy runs/demo/pretrained                # has seen language, not the task
    python sample.py --policy runs/demo/supervised --data data/toy --pairs 4000 \
                     --out runs/demo/pairs.jsonl                  # half a minute on two cores

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
from model import GPT, generate, lay_out, load_model, score, skeleton, token_logp
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


SPLITS = {"train": 80, "valid1": 88, "valid2": 100}         # where each ends, in per cent
EXAMPLES = 2               # shown to a policy that is only pretrained; 512 tokens hold no more
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


def load_checkpoint(folder, world=ALONE, head="lm"):
    """A Checkpoint. head: "lm" for a policy, "scalar" for a reward model; a Problem otherwise."""
    flags, model = config_of(folder)["flags"], load_model(folder, world, frozen=True)
    if model.config.head != head:
        kinds = {"lm": "policy", "scalar": "reward model"}
        raise Problem(f"{folder} holds a {kinds[model.config.head]}, not a {kinds[head]}: are the "
                      "folders swapped?")
    tokenizer = data.load_tokenizer(folder)
    if tokenizer.n_vocab != model.config.n_vocab:
        raise Problem(f"{folder} speaks {model.config.n_vocab} tokens, its tokenizer has "
                      f"{tokenizer.n_vocab}: they are not of one run")
    response_length = flags.get("response_length") or 48
    room = model.config.context - response_length
    if room < 1:
        raise Problem(f"{folder}: {response_length} tokens of a summary leave no room for a post")
    return Checkpoint(str(folder), model, tokenizer, min(flags.get("query_length") or room, room),
                      response_length, bool(flags.get("fill")), flags, world)


def load_reward(folder, world, tokenizer):
    """A reward model. Raises: Problem unless it reads this tokenizer, its policy's."""
    reward = load_checkpoint(folder, world, "scalar")
    if not data.same_tokenizer(tokenizer, reward.tokenizer):
        raise Problem(f"{folder} has another tokenizer than the policy: train the reward model "
                      "from this policy (reward.py --init)")
    return reward


def held_out(folder):
    """Posts nobody trained on: the test split, or else the validation split."""
    return data.read_posts(folder, "test" if data.find(folder, "test") else "valid")


def random_post(folder, seed):
    """A held-out post."""
    posts = held_out(folder)
    return posts[generator(seed, "post").integers(len(posts))]


def worked_examples(folder, count, seed=0):
    """Training posts with their summaries, to show a pretrained model what is wanted."""
    posts = data.read_posts(folder, "train") if count else []
    return [posts[i] for i in generator(seed, "examples").permutation(len(posts))[:count]]


# ------------------------------------------------------------------------------ writing and scoring

def checkpoints(policy):
    """PPO's snapshots in training's order, then its final policy: yields (iterations, GPT).

    policy: the Checkpoint of a finished run of ppo.py.
    """
    final = policy.flags["episodes"] // policy.flags["batch"]
    for path in sorted(Path(policy.folder, "snapshots").glob("step-*.pt")):
        if (step := int(path.stem[5:])) < final:
            model = skeleton(policy.model.config, policy.world, frozen=True)
            policy.world.load(model, path)
            yield step, model
    yield final, policy.model


def spread(act, network, lengths, world, rows_at_once=128, progress=None):
    """act(indices) -> a result for each of those rows; here for all rows, in their order.

    Every process of the world takes its share, rows_at_once rows at a time, which is what fits the
    device. Rows of similar length come together, so that little is padding. progress: a bar.
    """
    mine, found = world.share(sorted(range(len(lengths)), key=lengths.__getitem__)), {}
    with world.gathered(network):
        for start in range(0, len(mine), rows_at_once):
            some = mine[start:start + rows_at_once]
            found |= zip(some, act(some), strict=True)
            if progress is not None:
                progress.update(len(some) * world.size)
    found = world.merge(found)
    return [found[i] for i in range(len(lengths))]


def respond(model, queries, length, temperature=0.0, seed=0, purpose="summary", attempt=0,
            rows=None, world=ALONE, **how):
    """Continue B queries (token lists) by at most `length` tokens each -> B token lists.

    rows: B numbers, by default 0, 1, ...; the random numbers of row i follow from (seed, purpose,
        attempt, rows[i]) alone, so it is continued in the same way whatever other rows there are.
    how: rows_at_once, progress; see `spread`.
    """
    rows = rows or range(len(queries))

    def act(some):
        u = None                                                             # greedy
        if temperature:                                                      # (b, R) in [0, 1)
            u = np.array([generator(seed, purpose, attempt, rows[i]).random(length) for i in some])
        tokens, _ = generate(model, [queries[i] for i in some], length, temperature or 1.0, u)
        return [[t for t in row if t < model.config.n_vocab]                 # no padding
                for row in tokens.tolist()]
    return spread(act, model, [len(q) for q in queries], world, **how)


def encode_examples(tokenizer, record, examples, limit):
    """A prompt for a model that was only pretrained: solved examples, then the post to summarise.

    examples: posts with summaries, taken in order as long as everything fits into `limit` tokens.
    """
    def example_of(post):
        return post if "article" in post else post | {"format": "example"}

    tokens = data.encode_query(tokenizer, example_of(record), limit)
    query, solved = tokenizer.decode(tokens), ""
    for post in examples:
        solved += f"{data.query_text(example_of(post))} {post['summary'].strip()}\n\n=====\n\n"
        longer = tokenizer.encode_ordinary(solved + query)
        if len(longer) > limit:
            break
        tokens = longer
    return tokens


def summarise(policy, records, examples=(), **how):
    """One summary for each post or article -> texts. policy: Checkpoint. how: as for `respond`.

    examples: solved posts that come before each query, as many as fit. Of the answer only the first
    line counts then: after it a pretrained model makes up the next post.
    """
    if examples:                                 # DIFFERS: the paper shows 13, in a larger context
        room = policy.model.config.context - policy.response_length
        queries = [encode_examples(policy.tokenizer, r, examples, room) for r in records]
    else:
        queries = [data.encode_query(policy.tokenizer, r, policy.query_length, policy.fill)
                   for r in records]
    responses = respond(policy.model, queries, policy.response_length, world=policy.world, **how)
    texts = [data.decode_response(policy.tokenizer, tokens) for tokens in responses]
    return [text.split("\n")[0].strip() for text in texts] if examples else texts


@torch.no_grad()
def log_prob(model, queries, responses, temperature, world):
    """log pi(response), nats, the sum over its tokens -> (B,) array. model: GPT."""
    def act(some):
        rows = lay_out([queries[i] for i in some], [responses[i] for i in some],
                       model.config.n_vocab).to(world.device)
        logp = token_logp(model(rows.tokens, at=rows.columns), rows.targets, temperature)
        return logp.masked_fill(~rows.is_response, 0.0).double().sum(1).tolist()     # (b,)
    lengths = [len(q + r) for q, r in zip(queries, responses, strict=True)]
    return np.array(spread(act, model, lengths, world))


def score_texts(reward, records, texts, rows_at_once=128, progress=None):
    """The reward model's score of each text as a summary of its post -> floats. reward: Checkpoint.

    Texts are encoded as those of comparisons are, so a summary that ran out of room gets an
    <|endoftext|> here; PPO, which sees tokens, gives such a one a fixed low score instead.
    """
    queries = [data.encode_query(reward.tokenizer, r, reward.query_length, reward.fill)
               for r in records]
    responses = [data.encode_response(reward.tokenizer, t, reward.response_length) for t in texts]

    def act(some):
        return score(reward.model, [queries[i] for i in some],
                     [responses[i] for i in some]).tolist()                  # (b,)
    lengths = [len(q + r) for q, r in zip(queries, responses, strict=True)]
    scores = spread(act, reward.model, lengths, reward.world, rows_at_once, progress)
    if not all(map(math.isfinite, scores)):
        raise Problem(f"{reward.folder}: scores that are not finite: that network diverged; "
                      "train it again with a lower --lr")
    return scores


# --------------------------------------------------------------------------- one post on the screen

def typed_post(cfg):
    """The post of --post or --post-file as a record; None when neither was typed."""
    if cfg.post is None and cfg.post_file is None:
        return None
    text = cfg.post if cfg.post_file is None else cfg.post_file
    if not text.strip():
        where = "--post" if cfg.post_file is None else "--post-file"
        raise Problem(f"{where} is blank: there is nothing to summarise")
    title, post = re.fullmatch(r"(?:TITLE: (.*)\n)?([\s\S]*)", text.strip()).groups()
    return {"id": "typed", "subreddit": "relationships", "title": title or "", "post": post.strip()}


def warn_if_foreign(post, folder):
    """Say on stderr when more than half of a post's words occur in no training post."""
    if not folder or data.find(folder, "train") is None:
        return
    known = set()
    for other in data.read_posts(folder, "train", need_summary=False):
        known.update(data.words(data.query_text(other)))
    unknown = [word for word in data.words(post["post"]) if word not in known]
    if 2 * len(unknown) > len(data.words(post["post"])):
        print(f"warning: {len(unknown)} of the post's words ({', '.join(unknown[:5])}, ...) occur "
              "in no post the policy learned from: expect nonsense", file=sys.stderr)


def show(cfg, policy, folder, record):
    """Print the policy's summaries of a post, the one with the highest reward first."""
    reward = load_reward(cfg.reward, policy.world, policy.tokenizer) if cfg.reward else None

    def tell(texts):
        scores = score_texts(reward, [record] * len(texts), texts) if reward else [0.0]
        for points, text in sorted(zip(scores, texts, strict=True), reverse=True):
            print(f"{text}  (score {points:+.2f})" if reward else text)

    examples = []
    if policy.flags.get("loss_on") == "all":                   # it was only pretrained
        examples = worked_examples(folder, EXAMPLES, cfg.seed)
    texts = summarise(policy, [record] * cfg.best_of, examples, temperature=cfg.temperature,
                      seed=cfg.seed)
    if "summary" in record:
        print(data.query_text(record).removesuffix("TL;DR:") + "the author's own:")
        tell([record["summary"].strip()])
        print(f"\n{Path(policy.folder).name}:")
    tell(texts)


# ------------------------------------------------------------------------------ pairs for labelling

def split_of(record):
    """train (80 %), valid1 (8 %, to choose models by) or valid2 (12 %, to report): a function of
    the post's id, so that a post stays in its split in every round, whoever writes about it."""
    place = zlib.crc32(record["id"].encode()) % 100
    return next(split for split, end in SPLITS.items() if place < end)


def draw_pairs(write_texts, posts, count, seed):
    """Two different texts for each of `count` posts in random order: [(row of the post, (a, b))].

    write_texts(rows, attempt): a text for each of these rows; another attempt, another text. Where
    the second text equals the first it is drawn again; if it still does after TRIES, the post is
    left out and another takes its place. When the posts run out, the list is shorter.
    """
    order, pairs = generator(seed, "pairs").permutation(len(posts)).tolist(), []
    while order and len(pairs) < count:
        missing = count - len(pairs)
        rows, order = order[:missing], order[missing:]
        first, second = write_texts(rows, 0), write_texts(rows, 1)
        for attempt in range(2, TRIES + 1):
            equal = [k for k in range(len(rows)) if first[k] == second[k]]
            again = write_texts([rows[k] for k in equal], attempt)
            for k, text in zip(equal, again, strict=True):
                second[k] = text
        pairs += [(row, (a, b)) for row, a, b in zip(rows, first, second, strict=True) if a != b]
    return pairs


def pair_of(post, row, texts, names, cfg):
    """OpenAI's comparison before anybody chose, and the author's summary as its `reference`.

    names: who wrote the texts. In a share --with-reference of the pairs the author's summary takes
    the place of the second text, and which of the two comes first is drawn.
    """
    rng, reference = generator(cfg.seed, "with reference", row=row), post.get("summary", "").strip()
    summaries = [{"text": " " + text, "policy": name, "note": None}
                 for text, name in zip(texts, names, strict=True)]
    if rng.random() < cfg.with_reference and reference not in ("", texts[0]):
        summaries[1] = {"text": " " + reference, "policy": "ref", "note": None}
        summaries = [summaries[i] for i in rng.permutation(2)]
    return {"info": {field: post[field] for field in data.fields_of(post)}, "summaries": summaries,
            "batch": Path(cfg.out).stem, "split": split_of(post), "reference": reference}


def write_pairs(cfg, policy, folder):
    """Write --pairs pairs of samples of the folder's training posts to --out."""
    began, posts = time.perf_counter(), data.read_posts(folder, "train", need_summary=False)
    count, name = min(cfg.pairs, len(posts)), f"{Path(cfg.policy).name}_t{cfg.temperature:g}"
    with policy.world.bar(2 * count, "pairs") as bar:
        def write_texts(rows, attempt):
            return summarise(policy, [posts[row] for row in rows], rows=rows, attempt=attempt,
                             temperature=cfg.temperature, seed=cfg.seed, purpose="pairs",
                             progress=bar)
        found = draw_pairs(write_texts, posts, count, cfg.seed)
    if len(found) < cfg.pairs:
        print(f"warning: {len(found)} pairs, not {cfg.pairs}: {folder} has {len(posts)} training "
              "posts, and some of them got the same summary twice", file=sys.stderr)
    if not found:
        raise Problem("no post got two different summaries: raise --temperature")
    if policy.world.rank == 0:
        pairs = [pair_of(posts[row], row, texts, (name, name), cfg) for row, texts in found]
        write(cfg.out, pairs, cfg, pairs=len(pairs), temperature=cfg.temperature,
              seconds=round(time.perf_counter() - began, 1))
    print(f"{cfg.out}: {len(found)} pairs by {name}")


def work(cfg, world):
    """Show one post's summaries, or write pairs of them."""
    record, usual = typed_post(cfg), 0.0
    if cfg.best_of > 1 or cfg.pairs:
        usual = 1.0 if cfg.pairs else 0.7
    cfg = replace(cfg, temperature=usual if cfg.temperature is None else cfg.temperature)
    if cfg.best_of > 1 and not cfg.reward:
        raise Problem(f"--best-of {cfg.best_of} needs a --reward model to choose with")
    if cfg.pairs and not (cfg.out and cfg.best_of == 1 and cfg.temperature > 0):
        raise Problem("--pairs needs --out, a file to write, and a --temperature above 0, or both "
                      "samples are the same; the best of n in pairs: python -m tools.pairs")
    with world.mixed():
        policy = load_checkpoint(cfg.policy, world)
        folder = cfg.data or policy.flags.get("data")
        if not folder and (cfg.pairs or record is None):
            raise Problem(f"{cfg.policy} does not say which posts it learned from: give --data, or "
                          "a --post to summarise")
        if cfg.pairs:
            write_pairs(cfg, policy, folder)
        else:
            if record:
                warn_if_foreign(record, policy.flags.get("data"))
            show(cfg, policy, folder, record or random_post(folder, cfg.seed))


def main(argv=None):
    launch(work, Config, argv, __doc__,
           moved={"--others": "tools.pairs", "--by": "tools.pairs"})


if __name__ == "__main__":
    main()
