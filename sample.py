r"""Chapter 5. Read what a policy writes: one summary, the best of n, pairs for people to compare.

    greedy       the likeliest token, again and again: the paper's T = 0, how policies are judged
    sampled      token ~ softmax(logits / T), how pairs for labelling are made       (section 3.3)
    best of n    n samples, of which the reward model keeps the one it likes most    (appendix G.3)

                 KL(best of n || policy) = log n - (n - 1) / n     nats, at most

    python sample.py --policy runs/demo/ppo                       # a post nobody trained on; 2 s
    python sample.py --policy runs/demo/supervised --post "My sister sold my bike." \
                     --best-of 16 --reward runs/demo/reward
    python sample.py --policy runs/demo/pretrained --examples 2   # has seen language, not the task
    python sample.py --policy runs/demo/supervised --data data/toy --pairs 4000 \
                     --out runs/demo/pairs.jsonl                  # half a minute on two cores
    python sample.py --policy runs/demo/supervised --others runs/demo/ppo --best-of 16 \
                     --reward runs/demo/reward --by uncertainty --pairs 500 \
                     --out runs/demo/round2.jsonl

Before:  sft.py (where a policy comes from).    After: label.py (which of two summaries is better?).
"""
import math
import sys
import time
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tiktoken
from tqdm import tqdm

from data import (
    check_queries,
    decode_response,
    encode_examples,
    encode_query,
    encode_response,
    fields_of,
    find,
    json_lines,
    load_tokenizer,
    query_text,
    read_posts,
    same_tokenizer,
    words,
)
from model import GPT, generate, load_model, score, uniforms
from runtime import (
    ALONE,
    Machine,
    Problem,
    World,
    check_new,
    config_of,
    entry,
    flag,
    gathered,
    generator,
    join_world,
    load_weights,
    mixed,
    parse,
    read_text,
    replacing,
    typed,
    write_config,
)


@dataclass(frozen=True)
class Config(Machine):
    policy: str = flag("", "checkpoint folder of the model that writes")
    post: str = flag(None, "the post to summarise; no post at all: a random held-out one")
    post_file: str = flag(None, "a text file holding the post; - reads it from standard input")
    title: str = flag("", "the post's title")
    subreddit: str = flag("relationships", "where the post was posted")
    best_of: int = flag(1, "samples of which the reward model keeps one")
    reward: str = flag("", "checkpoint folder of a reward model: its scores are shown")
    others: str = flag("", "for --pairs: more policies, comma between; checkpoint folders, or "
                           "PPO's snapshots/step-*.pt, each another KL from the first")
    examples: int = flag(0, "worked examples before the post, for a policy that is only pretrained")
    data: str = flag("", "folder of posts; none: the one the policy learned from")
    pairs: int = flag(0, "write this many pairs of summaries of training posts to --out")
    out: str = flag("", "file of --pairs")
    by: str = flag("random", "which pairs are kept: random, or uncertainty: of --candidates times "
                             "as many those that --reward is least sure of",
                   choices=("random", "uncertainty"))
    candidates: int = flag(4, "for --by uncertainty: pairs written for each one kept")
    with_reference: float = flag(0.1, "share of pairs that set a sample against the post's own "
                                      "summary, as the paper's batches do")
    temperature: float = flag(-1.0, "divides the logits, 0 is greedy; negative: 0 for a summary, "
                                    "0.7 for best-of, 1 for pairs")
    query_length: int = flag(0, "longest post in tokens; 0: as the policy was trained")
    response_length: int = flag(0, "longest summary in tokens; 0: as the policy was trained")
    rows_at_once: int = flag(128, "summaries written side by side; what fits the device")
    seed: int = flag(0, "which post is shown, and every random number")


POST = 1 << 24             # bytes of a post file, at most


# -------------------------------------------------------------------------------------- checkpoints

class Checkpoint(NamedTuple):
    """A trained network with what it takes to speak to it."""
    folder: str
    model: GPT
    tokenizer: tiktoken.Encoding
    query_length: int            # tokens of a post, at most
    response_length: int         # tokens of a summary, at most, <|endoftext|> included
    fill: bool                   # shorter posts are filled up with spaces, as OpenAI's models want
    flags: dict                  # how it was trained
    world: World                 # the processes that share its work


def load_checkpoint(folder, world=ALONE, head="lm", query_length=0, response_length=0):
    """A Checkpoint, its lengths those of its training unless given.

    head: "lm" for a policy, "scalar" for a reward model. Raises: Problem when it has the other one.
    """
    flags, model = config_of(folder)["flags"], load_model(folder, world, frozen=True)
    if model.config.head != head:
        kinds = {"lm": "policy", "scalar": "reward model"}
        raise Problem(f"{folder} holds a {kinds[model.config.head]}, not a {kinds[head]}: are the "
                      "folders swapped?")
    response_length = response_length or flags.get("response_length") or 48
    room = model.config.context - response_length
    query_length = min(query_length or flags.get("query_length") or room, room)
    if query_length < 1:
        raise Problem(f"--response-length {response_length} leaves no room for a post in the "
                      f"context of {folder}, {model.config.context}")
    tokenizer = load_tokenizer(folder)
    if tokenizer.n_vocab != model.config.n_vocab:
        raise Problem(f"{folder} speaks {model.config.n_vocab} tokens, its tokenizer has "
                      f"{tokenizer.n_vocab}: they are not of one run")
    return Checkpoint(str(folder), model, tokenizer, query_length, response_length,
                      bool(flags.get("fill")), flags, world)


def load_reward(folder, world, tokenizer):
    """A reward model that reads this tokenizer. Raises: Problem when it reads another one."""
    reward = load_checkpoint(folder, world, "scalar")
    if not same_tokenizer(tokenizer, reward.tokenizer):
        raise Problem(f"{folder} has another tokenizer than the policy: train the reward model "
                      "from this policy (reward.py --init)")
    return reward


def held_out(folder):
    """Posts nobody trained on: the test split, or else the validation split."""
    return read_posts(folder, "test" if find(folder, "test") else "valid")


def worked_examples(folder, count, seed=0):
    """Training posts with their summaries, to show a pretrained model what is wanted."""
    posts = read_posts(folder, "train") if count else []
    return [posts[i] for i in generator(seed, "examples").permutation(len(posts))[:count]]


# ------------------------------------------------------------------------------------------ writing

def respond(model, queries, length, temperature=0.0, seed=0, purpose="summary", step=0, rows=None,
            rows_at_once=128, progress=None, world=ALONE):
    """Let a model continue queries of any lengths, some at once, on every rank of the world.

    queries: B token lists. rows: B numbers; row i's random numbers follow from (seed, purpose,
        step, rows[i]), whoever its batch mates are. None: its place in the list.
    progress: a tqdm bar, moved on by one a row.
    world: whose ranks share the queries.
    Returns: B token lists in the queries' order, each with its <|endoftext|> if it said one.
    """
    rows = range(len(queries)) if rows is None else rows
    order = sorted(range(len(queries)), key=lambda i: len(queries[i]))   # neighbours pad little
    mine, said = world.share(order), {}
    with gathered(model):
        for start in range(0, len(mine), rows_at_once):
            part = mine[start:start + rows_at_once]
            u = uniforms(seed, purpose, step, [rows[i] for i in part], length)
            tokens, _ = generate(model, [queries[i] for i in part], length, temperature or 1.0,
                                 u if temperature else None)
            for i, row in zip(part, tokens.tolist(), strict=True):           # (b, R)
                said[i] = [t for t in row if t < model.config.n_vocab]       # no padding
            if progress is not None:
                progress.update(len(part) * world.size)
    said = world.merge(said)
    return [said[i] for i in range(len(queries))]


def summarise(policy, tokenizer, records, *, limit_query, limit_response, fill=False, examples=(),
              **how):
    """One summary for each post or article.

    examples: solved posts put before each query, as many as fit; the answer then ends with its
        line, for after it a pretrained model goes on to invent the next post.
    how: temperature, seed, purpose, step, rows, rows_at_once, progress, world; see `respond`.
    Returns: the texts, stripped, in the records' order.
    """
    if examples:                 # DIFFERS: the paper shows 13; a context of 512 has room for two
        queries = [encode_examples(tokenizer, r, examples, limit_query) for r in records]
    else:
        queries = [encode_query(tokenizer, r, limit_query, fill) for r in records]
    texts = [decode_response(tokenizer, tokens)
             for tokens in respond(policy, queries, limit_response, **how)]
    return [text.split("\n")[0].strip() for text in texts] if examples else texts


def score_texts(reward, records, texts, rows_at_once=128, progress=None):
    """The reward model's opinion of each text, as a list of floats; reward: Checkpoint.

    Texts are encoded as those of comparisons are, so a summary that ran out of room gets an
    <|endoftext|> here; PPO, which sees tokens, gives such a one a fixed low score instead.
    """
    queries = [encode_query(reward.tokenizer, r, reward.query_length, reward.fill) for r in records]
    responses = [encode_response(reward.tokenizer, t, reward.response_length) for t in texts]
    order = sorted(range(len(texts)), key=lambda i: len(queries[i]) + len(responses[i]))
    mine, scores = reward.world.share(order), {}
    with gathered(reward.model):
        for start in range(0, len(mine), rows_at_once):
            part = mine[start:start + rows_at_once]
            found = score(reward.model, [queries[i] for i in part], [responses[i] for i in part])
            scores |= zip(part, found.tolist(), strict=True)                 # (b,)
            if progress is not None:
                progress.update(len(part) * reward.world.size)
    scores = reward.world.merge(scores)
    if not all(map(math.isfinite, scores.values())):
        raise Problem(f"{reward.folder}: scores that are not finite: that network diverged; "
                      "train it again with a lower --lr")
    return [scores[i] for i in range(len(texts))]


# --------------------------------------------------------------------------- one post on the screen

def typed_post(cfg):
    """The post that --post or --post-file gives, as a record; None when neither was typed."""
    if cfg.post is None and cfg.post_file is None:
        return None
    if cfg.post is not None and cfg.post_file is not None:
        raise Problem("--post and --post-file are both given: one is enough")
    where = "--post" if cfg.post_file is None else f"--post-file {cfg.post_file}"
    try:
        text = typed(where, cfg.post) if cfg.post_file is None else read_text(cfg.post_file, POST)
    except (OSError, ValueError) as error:
        raise Problem(f"{where} cannot be read as text: {error}") from None
    if not text.strip():
        raise Problem(f"{where} is blank: there is nothing to summarise")
    return {"id": "typed", "subreddit": typed("--subreddit", cfg.subreddit),
            "title": typed("--title", cfg.title), "post": text.strip()}


def warn_if_foreign(record, folder):
    """Say on stderr when more than half of a post's words occur in no training post."""
    if not folder or find(folder, "train") is None:
        return
    known = set()
    for post in read_posts(folder, "train", need_summary=False):
        known.update(words(query_text(post)))
    post = words(record["post"])
    unknown = [w for w in post if w not in known]
    if 2 * len(unknown) > len(post):
        some = ", ".join(dict.fromkeys(unknown[:5]))
        print(f"warning: {len(unknown)} of the post's {len(post)} words ({some}, ...) occur in no "
              "post the policy learned from: expect nonsense", file=sys.stderr)


def show(cfg, policy, reward, data, record=None):
    """Summarise a post, or else a random held-out one; with a reward model, say its scores."""
    if record is None:
        posts = held_out(data)
        record = posts[generator(cfg.seed, "post").integers(len(posts))]
        print(query_text(record).removesuffix("\n\nTL;DR:") + "\n")
    else:
        warn_if_foreign(record, policy.flags.get("data"))
    if reward:
        check_queries(reward.tokenizer, [record], reward.query_length)
    temperature = cfg.temperature if cfg.temperature >= 0 else 0.7 * (cfg.best_of > 1)
    limit = (policy.model.config.context - policy.response_length if cfg.examples else
             policy.query_length)
    texts = summarise(policy.model, policy.tokenizer, [record] * cfg.best_of, limit_query=limit,
                      limit_response=policy.response_length, fill=policy.fill,
                      temperature=temperature, rows_at_once=cfg.rows_at_once, seed=cfg.seed,
                      examples=worked_examples(data, cfg.examples, cfg.seed), world=policy.world)
    scores = score_texts(reward, [record] * len(texts), texts) if reward else [0.0] * len(texts)
    best = max(range(len(texts)), key=scores.__getitem__)
    grade = f"  (score {scores[best]:+.2f})" if reward else ""
    if cfg.best_of > 1:
        grade = f"  (score {scores[best]:+.2f}; the {cfg.best_of} samples: {min(scores):+.2f} to " \
                f"{max(scores):+.2f}, mean {sum(scores) / len(scores):+.2f})"
    if "summary" in record:
        own = score_texts(reward, [record], [record["summary"]])[0] if reward else 0.0
        print(f"the author's own:{f'  (score {own:+.2f})' if reward else ''}\n"
              f"  {record['summary'].strip()}\n")
        print(f"{Path(cfg.policy).name}:{grade}\n  {texts[best]}")
    else:
        print(texts[best] + grade)


# ------------------------------------------------------------------------------ pairs for labelling

def split_of(record):
    """train (80 %), valid1 (8 %, to choose models by) or valid2 (12 %, to report).

    A function of the post's id alone, so that in no round, of no policy, a post changes sides.
    """
    place = zlib.crc32(record["id"].encode()) % 100
    return "train" if place < 80 else "valid1" if place < 88 else "valid2"


def load_policies(cfg, policy):
    """--policy and --others: {name in the records: Checkpoint}."""
    found = {Path(cfg.policy).name: policy}
    for path in (Path(word.strip()) for word in cfg.others.split(",") if word.strip()):
        snapshot = path.suffix == ".pt"               # runs/X/ppo/snapshots/step-00000010.pt
        folder = path.parent.parent if snapshot else path
        other = load_checkpoint(folder, policy.world, "lm", cfg.query_length, cfg.response_length)
        if not same_tokenizer(other.tokenizer, policy.tokenizer):
            raise Problem(f"--others {path} has another tokenizer than --policy {cfg.policy}")
        name = folder.name + (f"_{path.stem}" if snapshot else "")
        name = f"{folder.parent.name}_{name}" if name in found else name
        if name in found:
            raise Problem(f"--others {path}: there is a policy named {name} already")
        if snapshot:
            load_weights(other.model, path)
        found[name] = other
    return found


def writers_of(cfg, policies, reward, temperature):
    """Who takes part in pairs: {name in the records: write(posts, rows, step, bar) -> texts}.

    A text is a function of the post's row and the number of the draw, `step`, whoever else writes.
    """
    def sampler(policy, purpose):                  # one sample of each post
        def write(posts, rows, step, bar=None):
            return summarise(policy.model, policy.tokenizer, posts, rows=rows, purpose=purpose,
                             limit_query=policy.query_length, limit_response=policy.response_length,
                             fill=policy.fill, temperature=temperature, seed=cfg.seed, step=step,
                             rows_at_once=cfg.rows_at_once, progress=bar, world=policy.world)
        return write

    def chooser(write, n):                         # the best of n, in the reward model's eyes
        def best(posts, rows, step, bar=None):
            many = [p for p in posts for _ in range(n)]
            texts = write(many, [row * n + k for row in rows for k in range(n)], step)
            scores = score_texts(reward, many, texts, cfg.rows_at_once)
            if bar is not None:
                bar.update(len(posts))
            return [texts[max(range(i, i + n), key=scores.__getitem__)]
                    for i in range(0, len(many), n)]
        return best

    found = {f"{name}_t{temperature:g}": sampler(policy, "pairs" if i == 0 else f"pairs {name}")
             for i, (name, policy) in enumerate(policies.items())}
    if cfg.best_of > 1:
        name, policy = next(iter(policies.items()))
        found[f"{name}_bo{cfg.best_of}"] = chooser(sampler(policy, "pairs best"), cfg.best_of)
    return found


def draw_pairs(cfg, writers, posts, count, quiet=False, tries=4):
    """Two different texts for each of `count` posts: list of (row of the post, texts, names).

    Each text is by a writer drawn at random, both perhaps by the same. When they say the same, the
    second is drawn again, `tries` times at most; then the post is left for another. When the posts
    run out, the list is shorter.
    """
    order = generator(cfg.seed, "pairs").permutation(len(posts)).tolist()
    names, pairs, at = list(writers), [], 0

    def draw(rows, who, step, bar=None):
        texts = {}
        for name in names:
            mine = [row for row, writer in zip(rows, who, strict=True) if writer == name]
            if mine:
                said = writers[name]([posts[i] for i in mine], mine, step, bar)
                texts |= zip(mine, said, strict=True)
        return [texts[row] for row in rows]

    with tqdm(total=2 * count, desc="pairs", unit="summary", disable=quiet) as bar:
        while rows := order[at:at + count - len(pairs)]:
            at += len(rows)
            whose = [[names[i] for i in generator(cfg.seed, "writers", row=row).integers(
                len(names), size=2)] for row in rows]
            one, two = zip(*whose, strict=True)
            first, second = draw(rows, one, 0, bar), draw(rows, two, 1, bar)
            for step in range(2, tries + 1):
                same = [k for k in range(len(rows)) if first[k] == second[k]]
                # Still a function of the post and the draw's number, whoever else needs one more.
                for k, text in zip(same, draw([rows[k] for k in same], [two[k] for k in same],
                                              step), strict=True):
                    second[k] = text
            found = zip(rows, first, second, whose, strict=True)
            pairs += [(row, (a, b), who) for row, a, b, who in found if a != b]
    return pairs


def least_sure(cfg, reward, records):
    """cfg.pairs of the records, in their order: the training pairs whose two summaries the reward
    model scores most alike, where labels teach most. Held-out pairs are taken as they come, or
    accuracies of two rounds could not be compared.
    """
    held = [i for i, r in enumerate(records[:cfg.pairs]) if r["split"] != "train"]
    train = [i for i, r in enumerate(records) if r["split"] == "train"]
    first, second = (score_texts(reward, [records[i]["info"] for i in train],
                                 [records[i]["summaries"][side]["text"] for i in train],
                                 cfg.rows_at_once) for side in (0, 1))
    margin = {i: abs(b - a) for i, a, b in zip(train, first, second, strict=True)}
    kept = sorted(train, key=margin.__getitem__)[:cfg.pairs - len(held)]
    return [records[i] for i in sorted(held + kept)]


def record_of(cfg, post, row, texts, names):
    """A pair as label.py reads it; at random the post's own summary takes the second's place."""
    random = generator(cfg.seed, "with reference", row=row)
    reference = post.get("summary", "").strip()
    summaries = [{"text": " " + text, "policy": name, "note": None}
                 for text, name in zip(texts, names, strict=True)]
    if random.random() < cfg.with_reference and reference not in ("", texts[0]):
        summaries[1] = {"text": " " + reference, "policy": "ref", "note": None}
        summaries = [summaries[i] for i in random.permutation(2)]
    return {"info": {field: post[field] for field in fields_of(post)}, "summaries": summaries,
            "batch": Path(cfg.out).stem, "split": split_of(post), "reference": reference}


def write_pairs(cfg, policies, reward, data):
    """Write --pairs records for label.py: OpenAI's format without the choice, and the reference,
    which no labeller gets to see. policies: {name: Checkpoint}, the first of them --policy's."""
    began = time.perf_counter()
    # DIFFERS: the paper draws at 0.7. A tiny policy then says the same thing twice, and a pair of
    # near-twins teaches the reward model nothing; --temperature 0.7 is right for large ones.
    temperature = cfg.temperature if cfg.temperature >= 0 else 1.0
    posts, nowhere = read_posts(data, "train", need_summary=False), Path(cfg.out).is_dir()
    if nowhere or temperature == 0 or cfg.pairs > len(posts):
        raise Problem("--pairs needs --out, a file to write" if nowhere else
                      "--pairs needs a --temperature above 0: greedy writes the same text twice"
                      if temperature == 0 else
                      f"--pairs {cfg.pairs}: {data} has only {len(posts)} training posts")
    for reader in (*policies.values(), *[reward] * bool(reward)):
        check_queries(reader.tokenizer, posts, reader.query_length)
    writers = writers_of(cfg, policies, reward, temperature)
    world = next(iter(policies.values())).world
    count = min(cfg.pairs * (cfg.candidates if cfg.by == "uncertainty" else 1), len(posts))
    # Opened now: that nothing may be written there should be known before an hour of sampling.
    with replacing(cfg.out) if world.rank == 0 else nullcontext() as file:
        found = draw_pairs(cfg, writers, posts, count, world.rank > 0)
        records = [record_of(cfg, posts[row], row, *said) for row, *said in found]
        if not records:
            raise Problem(f"none of the {len(posts)} posts got two different summaries: raise "
                          "--temperature")
        if cfg.by == "uncertainty":
            records = least_sure(cfg, reward, records)
        if file is not None:
            file.write(json_lines(records))
    if world.rank == 0:
        if len(records) < cfg.pairs:
            print(f"warning: {len(records)} pairs, not {cfg.pairs}: the other posts of {data} got "
                  "the same summary twice; raise --temperature for more", file=sys.stderr)
        write_config(Path(cfg.out).with_suffix(".config.json"), cfg, temperature=temperature,
                     pairs=len(records), seconds=round(time.perf_counter() - began, 1))
    print(f"{cfg.out}: {len(records)} pairs by {', '.join(writers)} at temperature "
          f"{temperature:g}")


def main(argv=None):
    """Show one summary, or write pairs of them."""
    cfg = parse(Config, {}, argv, __doc__)
    if not cfg.policy:
        raise Problem("--policy is missing: a checkpoint folder, such as runs/demo/ppo")
    if cfg.best_of < 1 or (cfg.best_of > 1 and not cfg.reward):
        raise Problem(f"--best-of {cfg.best_of} needs " +
                      ("a --reward model to choose with" if cfg.best_of > 1 else "1 or more"))
    if min(cfg.pairs, cfg.examples) < 0 or min(cfg.rows_at_once, cfg.candidates) < 1:
        raise Problem("--pairs and --examples count from 0, --rows-at-once and --candidates from 1")
    if cfg.by == "uncertainty" and not cfg.reward:
        raise Problem("--by uncertainty needs a --reward model: whose uncertainty?")
    record = None if cfg.pairs else typed_post(cfg)     # complain before anything is loaded
    if cfg.pairs and cfg.out:
        check_new(cfg.out)
    with join_world(cfg) as world, mixed(world):
        policy = load_checkpoint(cfg.policy, world, "lm", cfg.query_length, cfg.response_length)
        data = cfg.data or policy.flags.get("data")
        if not data and (cfg.pairs or cfg.examples or record is None):
            raise Problem(f"{cfg.policy} does not say which posts it learned from: give --data, or "
                          "a --post to summarise")
        reward = load_reward(cfg.reward, world, policy.tokenizer) if cfg.reward else None
        if cfg.pairs:
            write_pairs(cfg, load_policies(cfg, policy), reward, data)
        else:
            show(cfg, policy, reward, data, record)


if __name__ == "__main__":
    entry(main)
