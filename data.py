"""Chapter 1. Posts and comparisons, and how they become rows of tokens.

All that the models of this book see is rows: query | response | padding. Here is one, of the post
below and its summary, in GPT-2's tokens. 50257, no token of text, makes it as long as the others.

    SUBREDDIT: r/pets\\n\\nTITLE: My cat left\\n\\nPOST: He is gone.\\n\\nTL;DR: | My cat is gone.

    encode_query     50 10526 22083 49828 25 374 14 79 1039 198 198 49560 2538 25 2011 3797 1364 198
                     198 32782 25 679 318 3750 13 198 198 14990 26 7707 25       31 ids, at most 512
    encode_response  2011 3797 318 3750 13 50256     6 ids, at most 48; 50256 ends it: <|endoftext|>
    stack            50 10526 ... 7707 25 | 2011 3797 318 3750 13 50256 | 50257 50257      (1, 39)

    python -m tools.tokenizer --data data/mine --vocab 1024      (seconds; toy.py makes the posts)

Before: nothing (runtime/ is plumbing; look in when curious).    After: toy.py, a world of posts.
"""
import base64
import os
from itertools import takewhile
from pathlib import Path

import numpy as np
import tiktoken
import torch

from runtime import Problem, generator, launch, read_records, write

# ----------------------------------------------------------------- files, one JSON object to a line
# {"id": "t3_1", "subreddit": "pets", "title": "My cat left", "post": "He is gone.",
#  "summary": "My cat is gone."}
POST = {"id": str, "subreddit": str, "title": str, "post": str}
ARTICLE = {"id": str, "site": str, "title": str, "article": str}                   # news


def fields_of(record):
    """What a record must hold, as a Reddit post or a news article; a summary comes on top."""
    return ARTICLE if isinstance(record, dict) and record.get("article") is not None else POST


def text_of(record):
    """The text of a post or an article."""
    return record["article" if fields_of(record) is ARTICLE else "post"]


# {"info": {"id": "t3_1", "subreddit": "pets", "title": "My cat left", "post": "He is gone."},
#  "summaries": [{"text": " My cat is gone.", "policy": "ref", "note": null},
#                {"text": " He left in May.", "policy": "sup4", "note": "In May?"}],
#  "choice": 0, "split": "train", "worker": "ada", "batch": "b", "extra": {"confidence": 2}}
# The first is better. The confidence, if given: 1 is surely the first, 9 surely the second.
COMPARISON = {"info": fields_of, "summaries": [{"text": str}] * 2, "choice": (0, 1), "split": str}


def find(folder, split):
    """The file of a split, "train", "valid" or "test", in a folder; None when there is none."""
    paths = [Path(folder) / f"{split}{end}" for end in (".jsonl", ".jsonl.gz", ".json", ".json.gz")]
    return next((path for path in paths if os.path.exists(path)), None)


def read_posts(folder, split, need_summary=True):
    """The posts or articles of a split. need_summary=False: they serve as prompts only."""
    def shape(record):
        known = need_summary or record.get("summary") is not None
        return fields_of(record) | ({"summary": str} if known else {})

    path, posts = find(folder or "", split), []
    for where, record in read_records(path, shape) if path else []:
        if need_summary and not record["summary"].strip():
            raise Problem(f"{where}: field 'summary' is blank: write one, or delete the line")
        posts.append({name: value for name, value in record.items() if value is not None})
    if not posts:
        raise Problem(f"{folder or 'no --data'}: {split}.jsonl (or {split}.jsonl.gz) is missing or "
                      "empty: give --data a folder of posts; `python toy.py` makes one, data/toy")
    return posts


def read_comparisons(paths, split=None, shape=COMPARISON):
    """The comparisons in a file, or in several with commas between. split: of this one alone.
    shape: of a line; pairs that nobody has compared yet have another one (label.py)."""
    found = []
    for path in str(paths).split(","):
        for where, record in read_records(path.strip(), shape):
            if record["summaries"][0]["text"].strip() == record["summaries"][1]["text"].strip():
                raise Problem(f"{where}: field 'summaries' holds one text twice: delete the line")
            found.append(record)
    chosen = [record for record in found if split in (None, record["split"])]
    if not chosen:
        raise Problem(f"{paths}: no pairs of split {split or 'train'!r}, only of "
                      f"{sorted({c['split'] for c in found})}: `python sample.py --pairs` makes "
                      "more, `python label.py` compares them")
    return chosen


def full_texts(folder):
    """Each training post as the models will see it: the query and its author's summary."""
    return [f"{query_text(p)} {p['summary'].strip()}" for p in read_posts(folder, "train")]


def pretraining_texts(folder):
    """What pretraining reads: folder/pretrain.jsonl ({"id", "text"}) or, without it, the posts."""
    path = find(folder, "pretrain")
    texts = [record["text"] for _, record in read_records(path, {"text": str})] if path else []
    return texts or full_texts(folder)


# ------------------------------------------------------------------------------------ the tokenizer
# The paper's tokens are GPT-2's, byte-level BPE (byte pair encoding): a list of tokens in order of
# priority, the 256 bytes first. A text is cut into pieces; a piece begins as its bytes, and the two
# neighbours that make the earliest token of the list are joined, again and again: l o w, lo w, low.
# tiktoken does this. To learn such a list from your own texts: python -m tools.tokenizer.

# The pieces, which no token crosses: 've | word | number | punctuation (each with a space before
# it) | white space. "++" is "+" that never tries a shorter match, which could not help here.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
LONGEST = 128              # bytes of a token at most
BYTES = [bytes([byte]) for byte in range(256)]         # the first 256 tokens
ENDOFTEXT = "<|endoftext|>"


def build_tokenizer(ranks):
    """ranks: {bytes: id}, ids in order of priority. <|endoftext|> follows them as the last id."""
    return tiktoken.Encoding("bpe", pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens={ENDOFTEXT: len(ranks)})


def save_tokenizer(tokenizer, folder):
    """Write folder/tokenizer.tiktoken in tiktoken's own format: token in base64, a space, rank."""
    ranks = tokenizer._mergeable_ranks
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    write(Path(folder) / "tokenizer.tiktoken", "".join(lines))


def load_tokenizer(where):
    """where: "gpt2", a folder that holds tokenizer.tiktoken, or that file itself."""
    path = Path(where) / "tokenizer.tiktoken" if Path(where).is_dir() else Path(where)
    try:
        if str(where) == "gpt2":
            return tiktoken.get_encoding("gpt2")
        with open(path, "rb") as file:             # not beyond 16 MB; GPT-2's has 0.8
            lines = [line.split() for line in file.read(16 << 20).splitlines()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
        if list(ranks.values()) != list(range(len(lines))) or not ranks.keys() >= set(BYTES):
            raise ValueError
        return build_tokenizer(ranks)
    except (OSError, ValueError):
        raise Problem(f"{path}: no such tokenizer, or a damaged one (is the path right?): `python "
                      "-m tools.tokenizer --data DIR` trains one, `python -m tools.convert import` "
                      "is for Hugging Face's; gpt2: connect or set TIKTOKEN_CACHE_DIR") from None


def same_tokenizer(a, b):
    """Whether two tokenizers give the same ids to the same text, wherever they were loaded from."""
    return a._mergeable_ranks == b._mergeable_ranks and a._special_tokens == b._special_tokens


# ----------------------------------------------------------------------------------- rows of tokens
# How a record becomes a query, by its kind and what its "format" says (section B.1).
# No space after "TL;DR:", for the response brings its own: " He quit", where " He" is one token.
QUERIES = {
    "post": "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {text}\n\nTL;DR:",
    "article": "{text}\n\nTL;DR:",                     # a policy of posts is tried on news, 4.2
    # DIFFERS: after this newline the paper's policies of news begin without a space, ours with one.
    "supervised article": "Article:\n{text}\n\nTL;DR:\n",
    "example post": "Subreddit: r/{subreddit}\n\nTitle: {title}\n\n{text}\n\nTL;DR:"}


def query_text(record, text=None):
    """The query of a post or article, before it is cut. text: stands in place of its own."""
    kind = "article" if fields_of(record) is ARTICLE else "post"
    template = QUERIES.get(f"{record.get('format')} {kind}", QUERIES[kind])
    return template.format_map(record | {"text": text_of(record) if text is None else text})


def characters(post):
    """Length of a post and its summary: rows of similar length need little padding."""
    return len(query_text(post)) + len(post.get("summary", ""))


def encode_query(tokenizer, record, limit, fill=False):
    """The tokens of a post's or article's query, cut the paper's way: at a newline if there is one.

        while there are more than `limit` tokens:
            cut the post at its last newline, or drop its last character when no newline is left

    fill: put spaces before the query, `limit` tokens in all."""
    text = text_of(record)[:limit * LONGEST]
    while len(tokens := tokenizer.encode_ordinary(query_text(record, text))) > limit:
        if not text:
            raise Problem(f"post {record.get('id')!r}: takes more than {limit} tokens without its "
                          "text: allow longer queries, or shorten its title")
        # For speed, first drop what surely does not fit: all but the characters that `limit` tokens
        # spell, and LONGEST more. (A word of more than 100 characters may lose a little too much.)
        room = len(tokenizer.decode(tokens[:limit])) - len(query_text(record, "")) + LONGEST
        text = text[:max(0, room)]
        text = text[:text.rfind("\n")] if "\n" in text else text[:-1]
    return tokenizer.encode_ordinary(" ") * (limit - len(tokens) if fill else 0) + tokens


def check_queries(tokenizer, records, limit):
    """Raise encode_query's Problem now, not after an hour, for a title that takes too much room."""
    for record in records:
        if len(query_text(record, "").encode()) > limit:      # bytes >= tokens
            encode_query(tokenizer, record, limit)


def encode_response(tokenizer, text, limit):
    """A summary as a response: one space, the text, <|endoftext|>; text beyond `limit` is cut.

    (As in the paper's code: the reward model is read at the end, and a policy has to learn to end.)
    """
    return tokenizer.encode_ordinary(" " + text.strip())[:limit - 1] + [tokenizer.eot_token]


def decode_response(tokenizer, tokens):
    """The text up to the first <|endoftext|> or padding (the ids above every text token)."""
    kept = takewhile(lambda token: token < tokenizer.eot_token, map(int, tokens))
    return tokenizer.decode(list(kept)).strip()


def stack(rows, pad):
    """Lists of ids, of any lengths, as one tensor: padding is a suffix. Returns: (B, T) long."""
    tokens = torch.full((len(rows), max(map(len, rows), default=0)), pad)              # (B, T)
    for i, row in enumerate(rows):
        tokens[i, :len(row)] = torch.as_tensor(row)
    return tokens


class Batches:
    """Which rows make up each step's batch: a pure function of (seed, step), so runs can resume.

        a permutation of an epoch's rows, by their lengths      5 2 9 3 8 4 | 7 1 6 6 2 3
        each window (here of 3 batches of 2 rows) is sorted     2 3  4 5  8 9 | 1 2  3 6  6 7
        and its batches are shuffled: little padding            8 9  2 3  4 5 | 3 6  6 7  1 2

    Rows that fill no last batch are left out of that epoch. PPO, with few large batches, sorts each
    alone: window = 1."""

    def __init__(self, lengths, batch, seed, window=50):
        if not 0 < batch <= len(lengths):
            raise Problem(f"{len(lengths)} rows are no batch of {batch}: give more data, or lower "
                          "--batch")
        self.lengths, self.batch, self.seed = np.asarray(lengths), batch, seed
        self.window = window * batch           # rows
        self.steps_per_epoch = len(lengths) // batch
        self.epoch, self.plan = None, None

    def at(self, step):
        """The rows of the global batch of this step: (batch,) int64."""
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:                # a new epoch: a new plan
            rng = generator(self.seed, "batches", epoch)
            rows = rng.permutation(len(self.lengths))[:self.steps_per_epoch * self.batch]
            self.epoch, self.plan = epoch, []
            for first in range(0, len(rows), self.window):
                some = rows[first:first + self.window]
                by_length = some[np.argsort(self.lengths[some], kind="stable")]
                batches = by_length.reshape(-1, self.batch)
                self.plan.extend(rng.permutation(batches))         # moves whole batches
        return self.plan[i]


def main(argv=None):
    moved = {"describe": "tools.download describe", "download": "tools.download"}
    launch(None, None, argv, __doc__, moved=moved | {"tokenizer": "tools.tokenizer"})


if __name__ == "__main__":
    main()
