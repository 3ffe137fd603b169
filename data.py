"""Chapter 1. Posts and comparisons, and how they become rows of tokens.

Everything the models will ever see is one row:

    query tokens | response tokens, the last of them <|endoftext|> | padding

    query       a Reddit post in the paper's template, cut at a newline to 512 tokens or fewer
    response    " " + summary, at most 48 tokens                       (sections 3.2 and B.1)

This chapter reads the two kinds of file there are (posts with their author's summary, and a human's
choice between two summaries), trains the byte-level BPE tokenizer, encodes queries and responses,
says which rows make up the batch of a step, and measures ROUGE, the overlap of words that the field
optimised before this paper showed how little of a summary's quality it sees (section 4.4).

    python data.py tokenizer --data data/toy --vocab 1024      (seconds; 20 MB and 4,096 take 15 s)
    python -m tools.download tldr                               (the paper's own posts; download.py)
    python -m tools.download describe data/tldr                          (what is in a folder)

Before: nothing (runtime.py is plumbing; look in when curious).    After: toy.py, a world of posts.
"""
import argparse
import base64
import heapq
import os
import re
import sys
from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np
import regex
import tiktoken
import torch
from tqdm import tqdm

from runtime import (
    Problem,
    entry,
    generator,
    json_lines,
    lines_of,
    moved,
    read_jsonl,
    write_atomically,
)

# No space after "TL;DR:", for the response brings its own: " He quit", where " He" is one token.
POST = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
ARTICLE = "{article}\n\nTL;DR:"                        # how a policy of posts is tried on news, 4.2
# The format of policies that learn from news (records with "format": "supervised").
# DIFFERS: after this newline the paper's responses begin without a space; ours have one everywhere.
SUPERVISED = "Article:\n{article}\n\nTL;DR:\n"
EXAMPLE = "Subreddit: r/{subreddit}\n\nTitle: {title}\n\n{post}\n\nTL;DR:"     # before fine-tuning
BETWEEN = "\n\n=====\n\n"

POST_FIELDS = ("id", "subreddit", "title", "post")
ARTICLE_FIELDS = ("id", "site", "title", "article")

# ------------------------------------------------------------------------- files, one record a line


def write_jsonl(path, records):
    """Write one JSON object a line; the file appears complete or not at all."""
    write_atomically(path, json_lines(records))


BLANKS = 100_000                     # in a row; at a million tiktoken's regular expression panics


def check_texts(where, record, names):
    """Raise a Problem unless `record` is an object with all of the fields `names`, as text."""
    if not isinstance(record, dict):
        raise Problem(f"{where}: {record!r:.20} is no object: write {{\"{names[0]}\": ...}}")
    for name in names:
        if name not in record:
            raise Problem(f"{where}: field {name!r} is missing: add it to the record")
        if not isinstance(record[name], str):
            kind = type(record[name]).__name__
            raise Problem(f"{where}: field {name!r} is {kind}, not text: write it in quotes")
        if len(record[name]) > BLANKS and re.search(rf"\s{{{BLANKS}}}", record[name]):
            raise Problem(f"{where}: field {name!r} has {BLANKS:,} blanks in a row: delete them")


def fields_of(record):
    """What a record must say: it is a news article, or else a Reddit post."""
    return ARTICLE_FIELDS if "article" in record else POST_FIELDS


def find(folder, split):
    """folder/split.jsonl, else .jsonl.gz, .json or .json.gz, else None."""
    endings = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
    paths = [Path(folder) / f"{split}{ending}" for ending in endings]
    return next((path for path in paths if os.path.exists(path)), None)


def read_posts(folder, split, need_summary=True):
    """The posts or articles of folder/split.jsonl (or .jsonl.gz), checked; unknown keys are kept.

    split: "train", "valid" or "test". need_summary=False: the posts serve as prompts only.
    Raises: Problem naming file, line and field.
    """
    path = find(folder, split) if folder else None
    if path is None:
        raise Problem(f"{folder or '--data'}: holds neither {split}.jsonl nor {split}.jsonl.gz: "
                      "point --data at a folder that does; `python toy.py --out data/toy` "
                      "makes one")
    posts = []
    for number, record in read_jsonl(path):
        where = f"{path}, line {number}"
        if record.get("summary", "") is None and not need_summary:
            del record["summary"]
        check_texts(where, record, fields_of(record) +
                    ("summary",) * (need_summary or "summary" in record))
        if need_summary and not record["summary"].strip():
            raise Problem(f"{where}: field 'summary' is blank: write one, or delete the line")
        posts.append(record)
    if not posts:
        raise Problem(f"{path}: is empty: point --data at a folder with posts; "
                      "`python toy.py --out data/toy` makes one")
    return posts


def check_comparison(where, record):
    """Raise a Problem unless `record` tells which of two different summaries a human preferred."""
    info, summaries, choice = (record.get(name) for name in ("info", "summaries", "choice"))
    if not isinstance(info, dict):
        raise Problem(f"{where}: field 'info' is no object: put the post or article there")
    check_texts(f"{where}, 'info'", info, fields_of(info) + ("summary",) * ("summary" in info))
    if not isinstance(summaries, list) or len(summaries) != 2:
        found = len(summaries) if isinstance(summaries, list) else type(summaries).__name__
        raise Problem(f"{where}: field 'summaries' holds {found}, not a list of 2: "
                      "write every pair on a line of its own")
    for i, summary in enumerate(summaries):
        check_texts(f"{where}, 'summaries'[{i}]", summary, ("text",))
    if summaries[0]["text"].strip() == summaries[1]["text"].strip():
        raise Problem(f"{where}: field 'summaries' holds one 'text' twice, and a choice between "
                      "equals teaches nothing: delete the line")
    if type(choice) is not int or choice not in (0, 1):            # to isinstance, True is an int
        raise Problem(f"{where}: field 'choice' is {choice!r:.40}: write the index of the better "
                      "summary, 0 or 1")
    extra = record.get("extra") or {}
    confidence = extra.get("confidence") if isinstance(extra, dict) else extra
    if confidence is not None and not (type(confidence) is int and 1 <= confidence <= 9):
        raise Problem(f"{where}: field 'extra' has the confidence {confidence!r:.40}: write 1 to "
                      "9, or leave it out")


def read_comparisons(paths, split=None):
    """Human comparisons in OpenAI's format, checked; `split` keeps train, valid1 or valid2 alone.

        {"info": post or article, "summaries": [{"text", "policy", "note"}, {...}], "choice": 0 | 1,
         "worker", "batch", "split", "extra": {"confidence": 1..9}}

    Each text begins with a space; note may be null and confidence absent. (Mirrors also say what a
    post is not: "article": null. That is left out.)
    paths: a file, or several with commas between, read one after the other.
    Raises: Problem naming file, line and field.
    """
    comparisons, splits = [], set()
    for path in (word.strip() for word in str(paths).split(",")):
        if not Path(path).is_file():
            raise Problem(f"{path}: no such file of comparisons: make it with `python label.py "
                          f"simulate --pairs PAIRS --out {path}`")
        for number, record in read_jsonl(path):
            where = f"{path}, line {number}"
            if isinstance(record.get("info"), dict):
                record["info"] = {k: v for k, v in record["info"].items() if v is not None}
            check_comparison(where, record)
            if split is not None:
                check_texts(where, record, ("split",))
                splits.add(record["split"])
            if split in (None, record.get("split")):
                comparisons.append(record)
    if not comparisons and splits:
        raise Problem(f"{paths}: no line says \"split\": \"{split}\", only "
                      f"{', '.join(sorted(splits))}: label more pairs (sample.py gives each post "
                      "its split), or write it into some lines")
    if not comparisons:
        raise Problem(f"{paths}: is empty: collect comparisons with `python label.py`")
    return comparisons


def lead_3(article):
    """The first three sentences of an article: the baseline that references lose to (section 4.2).

    DIFFERS: sentences are told by a mark that white space follows, not by a parser, so that "Mr. X"
    counts as two.
    """
    ends = [m.end() for m in re.finditer(r"[.!?][\"')\u2019\u201d]*(?=\s)", article.strip())]
    return article.strip()[:ends[2] if len(ends) > 2 else None]


def full_texts(folder):
    """Each training post as the models will see it: the query and its reference summary."""
    posts = read_posts(folder, "train")
    return [query_text(post) + " " + post["summary"].strip() for post in posts]


def pretraining_texts(folder):
    """What pretraining reads: folder/pretrain.jsonl ({"id", "text"}) or, without it, the posts."""
    path = find(folder, "pretrain")
    if path is None:
        return full_texts(folder)
    texts = []
    for number, record in read_jsonl(path):
        check_texts(f"{path}, line {number}", record, ("text",))
        texts.append(record["text"])
    if not texts:
        raise Problem(f"{path}: holds no texts: delete the file to pretrain on the posts alone")
    return texts


# ------------------------------------------------------------------------------------ the tokenizer
#
# Byte-level BPE, as GPT-2's: the vocabulary begins as the 256 bytes; over and over, the two tokens
# most often seen side by side become one. tiktoken does the encoding, and calls the vocabulary
# _mergeable_ranks: {bytes: id}.

ENDOFTEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.tiktoken"
# Merges stay inside a piece: 've | word | number | punctuation (with a space before) | white space
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
LONGEST_PIECE = 128        # bytes; 10,000 dashes are counted in parts, or they would take hours


def build_tokenizer(ranks):
    """ranks: {bytes: id}, ids in order of priority. <|endoftext|> follows them as the last id."""
    return tiktoken.Encoding("bpe", pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens={ENDOFTEXT: len(ranks)})


def merge(parts, ranks):
    """How BPE encodes a piece: join the neighbours that form the earliest token, while any do.

    parts: list of bytes, changed in place: l o w becomes lo w, then low. Neighbours are known by
    what they spell, so that a bc and ab c are one and the same pair.
    """
    while len(parts) > 1:
        pairs = enumerate(pairwise(parts))
        rank, i = min((ranks.get(a + b, len(ranks)), i) for i, (a, b) in pairs)
        if rank == len(ranks):
            return
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def most_frequent(heap, counts):
    """Pop the pair seen most often (of equals, the first in byte order); None when none is left.

    heap: (-count, pair). A count that fell since it was pushed is put right when it surfaces.
    """
    while heap:
        count, pair = heapq.heappop(heap)
        if -count == counts[pair] > 0:
            return pair
        if -count > counts[pair] > 0:
            heapq.heappush(heap, (-counts[pair], pair))
    return None


def count_pieces(texts):
    """Each different piece of the texts as a list of single bytes, and how often it occurs.

    Words repeat: 17 MB of text hold 3.8 million pieces, of which only 104,000 are different.
    """
    seen = Counter()
    for text in tqdm(texts, desc="pieces", disable=None):
        seen.update(regex.findall(PATTERN, text))
    short = Counter()
    for piece, n in seen.items():
        data = piece.encode()
        for start in range(0, len(data), LONGEST_PIECE):
            short[data[start:start + LONGEST_PIECE]] += n
    return [[bytes([byte]) for byte in piece] for piece in short], list(short.values())


def train_tokenizer(texts, vocab):
    """Learn `vocab` tokens: the 256 bytes, one token for each merge, and <|endoftext|>.

        next token = argmax over pairs of   sum over pieces   times the piece occurs * pairs in it

    Only pieces that hold the chosen pair are counted anew: `where` knows them, a heap the pair.
    The same texts give the same tokens, in whatever order they come.
    Raises: Problem when vocab < 257, or when every piece is one token before vocab is reached.
    """
    if vocab < 257:
        raise Problem(f"--vocab {vocab} is too small: 256 bytes and {ENDOFTEXT} already make 257")
    pieces, times = count_pieces(texts)
    counts = Counter()
    where = defaultdict(set)                   # pair -> the pieces that hold it, or once did
    for i, piece in enumerate(pieces):
        for a, b in pairwise(piece):
            counts[a + b] += times[i]
            where[a + b].add(i)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)

    ranks = {bytes([byte]): byte for byte in range(256)}
    for rank in tqdm(range(256, vocab - 1), desc="merges", disable=None):
        token = most_frequent(heap, counts)
        if token is None:
            raise Problem(f"--vocab {vocab}: the texts run out of pairs to merge: "
                          f"ask for {rank + 1} at most, or give more text")
        ranks[token] = rank
        change = defaultdict(int)              # pair -> by how much its count moves
        for i in where.pop(token):
            for a, b in pairwise(pieces[i]):
                change[a + b] -= times[i]
            merge(pieces[i], ranks)
            for a, b in pairwise(pieces[i]):
                change[a + b] += times[i]
                where[a + b].add(i)
        for pair, difference in change.items():
            counts[pair] += difference
            if difference > 0:
                heapq.heappush(heap, (-counts[pair], pair))
    return build_tokenizer(ranks)


def save_tokenizer(tokenizer, folder):
    """Write folder/tokenizer.tiktoken in tiktoken's own format: token in base64, a space, rank."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    ranked = sorted(tokenizer._mergeable_ranks.items(), key=lambda item: item[1])
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranked)
    write_atomically(Path(folder) / TOKENIZER_FILE, "".join(lines))


def load_tokenizer(where):
    """where: "gpt2", a folder that holds tokenizer.tiktoken, or that file itself."""
    if str(where) == "gpt2":
        try:
            return tiktoken.get_encoding("gpt2")
        except Exception as error:             # no cached copy, and whatever the network said
            raise Problem(f"tokenizer gpt2: not cached, not downloaded ({type(error).__name__}): "
                          "set TIKTOKEN_CACHE_DIR to a folder and, with a network, fill it by "
                          "python -c 'import tiktoken; tiktoken.get_encoding(\"gpt2\")'") from None
    path = Path(where) / TOKENIZER_FILE if Path(where).is_dir() else Path(where)
    if not path.is_file():
        from tools.convert import (  # a Hugging Face folder: see the appendix
            VOCABULARIES,
            read_vocabulary,
        )
        if any((path.parent / name).is_file() for name in VOCABULARIES):
            return read_vocabulary(path.parent)
        raise Problem(f"{path}: no such tokenizer: train one with "
                      "`python data.py tokenizer --data DIR`, or say gpt2")
    ranks = {}
    for number, line in lines_of(path):    # read by the line: it may be any file
        try:
            token, rank = line.split()
            token, rank = base64.b64decode(token, validate=True), int(rank)
        except ValueError:
            raise Problem(f"{path}, line {number}: not a token in base64 and its rank: "
                          "train the tokenizer again") from None
        if token in ranks or rank != len(ranks):
            fault = "a token for the second time" if token in ranks else f"rank {rank}"
            raise Problem(f"{path}, line {number}: {fault} where a new token of rank {len(ranks)} "
                          "should be: train the tokenizer again")
        ranks[token] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise Problem(f"{path}, line {len(ranks)}: the file ends without a token for byte "
                      f"{missing[0]}, which texts may hold: train the tokenizer again")
    return build_tokenizer(ranks)


def same_tokenizer(a, b):
    """Whether two tokenizers give the same ids to the same text, wherever they were loaded from."""
    return a._mergeable_ranks == b._mergeable_ranks and a._special_tokens == b._special_tokens


# ----------------------------------------------------------------------------------- rows of tokens
#
# Always encode_ordinary: "<|endoftext|>" typed into a post stays text, and ends nothing.


def template_of(record):
    """How the prompt of a post or article is written."""
    if "article" not in record:
        return POST
    return SUPERVISED if record.get("format") == "supervised" else ARTICLE


def query_text(record):
    """The prompt of a post or article, uncut."""
    return template_of(record).format_map(record)


@cache
def longest_token(tokenizer):
    return max(map(len, tokenizer._mergeable_ranks))               # bytes


def farthest(tokenizer, text, limit):
    """How many characters of `text` may fit into `limit` tokens: a bound, whatever follows.

    Tokens never cross the pieces of PATTERN, and two characters after its end nothing can change a
    piece: so pieces are encoded one by one until the tokens run out. Inside the piece where that
    happens (it may be a megabyte of "aaaa") each token is granted the best end that any token has
    which starts at or before the end of its predecessor. BPE cannot do better.
    """
    for match in regex.finditer(PATTERN, text):
        cost = len(tokenizer.encode_ordinary(match.group()))
        if cost > limit:
            break
        limit -= cost
    else:
        return len(text)
    data, ranks = match.group().encode(), tokenizer._mergeable_ranks
    start = end = 0                                                # bytes of this piece
    for _ in range(limit):
        best = end
        while start <= end and start < len(data):
            sizes = range(min(longest_token(tokenizer), len(data) - start), 0, -1)
            best = max(best, start + next(n for n in sizes if data[start:start + n] in ranks))
            start += 1
        end = best
    characters = len(data[:end].decode(errors="ignore"))
    return match.start() + max(1, characters)        # cut after 1, the piece before is not settled


def cuts(text, most):
    """Lengths to cut `text` to, in the order the paper tries them, leaving out those above `most`.

    The whole; up to the last newline, the one before, ...; then shorter by one character each time.
    """
    first = text.find("\n") if "\n" in text else len(text)
    if len(text) <= most:
        yield len(text)
    yield from (i for i in range(min(most, len(text) - 1), -1, -1) if text[i] == "\n")
    yield from range(min(most, first - 1), -1, -1)


def fit(tokenizer, template, record, limit):
    """The tokens of `template` filled from `record`, its text cut as encode_query says."""
    name = "article" if "article" in record else "post"
    before, after = (part.format_map(record) for part in template.split("{" + name + "}"))
    text = record[name]
    bound = limit * longest_token(tokenizer)         # bytes; no more characters than this can fit
    if len(before) + len(text) <= bound:
        tokens = tokenizer.encode_ordinary(before + text + after)
        if len(tokens) <= limit:
            return tokens
    most = farthest(tokenizer, (before + text[:bound])[:bound], limit) - len(before)
    for end in cuts(text, most):
        tokens = tokenizer.encode_ordinary(before + text[:end] + after)
        if len(tokens) <= limit:
            return tokens
    raise Problem(f"post {record.get('id')!r}: takes more than {limit} tokens even when nothing is "
                  f"left of its {name}: allow longer queries, or shorten its title")


def encode_query(tokenizer, record, limit, fill=False):
    """The tokens of a post's or article's query, cut the paper's way: at a newline if there is one.

        while there are more than `limit` tokens:
            cut the post at its last newline, or drop its last character when no newline is left

    fill: put spaces before it, `limit` tokens in all, as the paper's released models expect.
    Returns: list of at most `limit` ids. Raises: Problem when the title alone is too long.
    """
    tokens = fit(tokenizer, template_of(record), record, limit)
    return tokenizer.encode_ordinary(" ") * (limit - len(tokens) if fill else 0) + tokens


def check_queries(tokenizer, records, limit):
    """Complain now, not after an hour, about the first post whose title alone takes too much room.

    Cheap: a token is a byte or more, so few titles need to be encoded to know.
    """
    for record in records:
        bare = {**record, "article" if "article" in record else "post": ""}
        if len(query_text(bare).encode()) > limit:
            encode_query(tokenizer, record, limit)


def size(record):
    """Characters of a post or article and its summary: rows of like size pad each other little."""
    return len(query_text(record)) + len(record.get("summary", ""))


def encode_response(tokenizer, text, limit):
    """A summary as a response: one space, the text, <|endoftext|>; text beyond `limit` is cut.

    Posts store a summary without its leading space, comparisons with it: both come out alike. What
    is cut, be it within a word, ends with <|endoftext|> too, as in the paper's code: there the
    reward model is read, and a policy has to learn that summaries end within the limit.
    """
    if limit < 2:
        raise Problem(f"a response of {limit} tokens has no room for text and {ENDOFTEXT}: "
                      "allow 2 or more")
    return tokenizer.encode_ordinary(" " + text.strip())[:limit - 1] + [tokenizer.eot_token]


def warn_of_cuts(tokenizer, texts, limit):
    """Say on stderr how many of these summaries encode_response cuts. Returns: that number."""
    rows = tokenizer.encode_ordinary_batch([" " + text.strip() for text in texts], num_threads=2)
    cut = sum(len(row) > limit - 1 for row in rows)
    if cut:
        print(f"warning: {cut:,} of {len(texts):,} summaries ({cut / len(texts):.1%}) are longer "
              f"than --response-length {limit} and lose their end, perhaps within a word: raise it "
              "to keep them whole", file=sys.stderr)
    return cut


def decode_response(tokenizer, tokens):
    """The text up to the first <|endoftext|> or padding (the ids above every text token)."""
    kept = takewhile(lambda token: token < tokenizer.eot_token, map(int, tokens))
    return tokenizer.decode(list(kept)).strip()


def encode_examples(tokenizer, record, examples, limit):
    """A prompt for a model that was only pretrained: solved examples, then the post to summarise.

    examples: posts with summaries, taken in order as long as everything fits into `limit` tokens.
    """
    def template(post):
        return template_of(post) if "article" in post else EXAMPLE

    tokens = fit(tokenizer, template(record), record, limit)
    query, solved = tokenizer.decode(tokens), ""
    for example in examples:
        solved += template(example).format_map(example) + " " + example["summary"].strip() + BETWEEN
        longer = tokenizer.encode_ordinary(solved + query)
        if len(longer) > limit:
            break
        tokens = longer
    return tokens


def stack(rows, pad):
    """Lists of ids, of any lengths, as one tensor: padding is a suffix. Returns: (B, T) long."""
    longest = max(map(len, rows), default=0)
    tokens = torch.full((len(rows), longest), pad, dtype=torch.long)               # (B, T)
    for i, row in enumerate(rows):
        tokens[i, :len(row)] = torch.as_tensor(row, dtype=torch.long)
    return tokens


class Batches:
    """Which rows make up each step's batch: a pure function of (seed, step), so runs can resume.

    Every epoch is a permutation of its own. Rows of like length go together, which saves padding,
    but only within a window of 50 batches, and those are shuffled: sorted as a whole, neighbouring
    steps would all learn from posts of one length (PPO, with its few large batches, sorts each
    batch alone: window = 1). Rows that fill no last batch sit the epoch out.
    """

    def __init__(self, lengths, batch, seed, window=50, or_else=""):
        if not 0 < batch <= len(lengths):
            raise Problem(f"a batch of {batch} cannot be filled from {len(lengths)} rows: lower "
                          f"--batch to {len(lengths)} or less{or_else}, or give more data")
        self.lengths, self.batch, self.seed = np.asarray(lengths), batch, seed
        self.window = window * batch           # rows
        self.steps_per_epoch = len(lengths) // batch
        self.epoch, self.plan = None, None

    def at(self, step):
        """The rows of the global batch of this step: (batch,) int64."""
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.epoch, self.plan = epoch, self.plan_of(epoch)
        return self.plan[i]

    def plan_of(self, epoch):
        """All batches of an epoch: (steps_per_epoch, batch) int64."""
        rng = generator(self.seed, "batches", epoch)
        rows = rng.permutation(len(self.lengths))[:self.steps_per_epoch * self.batch]
        plan = []
        for first in range(0, len(rows), self.window):
            some = rows[first:first + self.window]
            by_length = some[np.argsort(self.lengths[some], kind="stable")]
            plan.append(rng.permutation(by_length.reshape(-1, self.batch)))    # moves whole batches
        return np.concatenate(plan).astype(np.int64)


# -------------------------------------------------------------------------------------------- ROUGE

# Scripts that put no space between words: there, each character is taken for a word.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = regex.compile(rf"(?V1)[[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]]+|[{UNSPACED}]\p{{M}}*")


def words(text):
    """The words of a text in lower case: runs of letters, digits and accents, of any script."""
    return WORD.findall(text.lower())


def longest_common_subsequence(a, b):
    """How many words two lists share in the same order, gaps allowed; O(len(a) len(b))."""
    row = [0] * (len(b) + 1)                   # row[j]: the answer for a so far and b[:j]
    for word in a:
        above, row = row, [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return row[-1]


def rouge(candidate, reference):
    """How much of two texts' wording agrees: words, pairs of words, and words in order (rouge_l).

        F1 = 2 common / (number in the candidate + number in the reference)

    No stemming, counts clipped to the rarer side.
    Returns: {"rouge_1", "rouge_2", "rouge_l"}, each 0 to 1.
    """
    # DIFFERS: the usual script knows words of a-z and 0-9 only, and so sees none in Greek. Of texts
    # without other letters the numbers are the same.
    a, b = words(candidate), words(reference)
    pairs_a, pairs_b = list(pairwise(a)), list(pairwise(b))

    def f1(common, left, right):
        return 2 * common / (len(left) + len(right)) if common else 0.0

    return {"rouge_1": f1((Counter(a) & Counter(b)).total(), a, b),
            "rouge_2": f1((Counter(pairs_a) & Counter(pairs_b)).total(), pairs_a, pairs_b),
            "rouge_l": f1(longest_common_subsequence(a, b), a, b)}


# ------------------------------------------------------------------------------------- command line


def tokenizer_command(args):
    """Train a tokenizer on all that the models will read, and tell how much text a token holds."""
    texts = full_texts(args.data)
    if find(args.data, "pretrain"):
        texts += pretraining_texts(args.data)
    tokenizer = train_tokenizer(texts, args.vocab)
    save_tokenizer(tokenizer, args.data)
    sample = "".join(texts[:1000])
    held = len(sample.encode()) / len(tokenizer.encode_ordinary(sample))
    print(f"{Path(args.data) / TOKENIZER_FILE}: {tokenizer.n_vocab} tokens, {held:.2f} bytes each")


def main(argv=None):
    """python data.py COMMAND ..."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("tokenizer", help="train a byte-level BPE tokenizer on DIR's texts")
    train.add_argument("--data", required=True, metavar="DIR",
                       help="folder with train.jsonl and perhaps pretrain.jsonl")
    train.add_argument("--vocab", type=int, default=1024, help="tokens in all, 257 or more (1024)")
    train.set_defaults(run=tokenizer_command)
    args = parser.parse_args(moved(argv, {"download": "tools.download",
                                          "describe": "tools.download describe"}))
    args.run(args)


if __name__ == "__main__":
    entry(main)
