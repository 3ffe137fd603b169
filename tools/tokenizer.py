"""Appendix. Byte-level BPE: a tokenizer learned from your own texts, as GPT-2's was from the web.

    low lower lowest   is first its bytes; then the two neighbours seen most often become one token
    lo                 the first merge: l and o stand side by side 3 times
    low, " low", ...   the next ones, until there are --vocab tokens with the 256 bytes and an end

The paper's models use GPT-2's 50,257 tokens, and tiktoken does the encoding (data.py). A small
network on a small world is better off with 1,024 of its own.

    python -m tools.tokenizer --data data/toy --vocab 1024      # seconds; writes tokenizer.tiktoken

Read after: data.py.
"""
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise

import regex
from tqdm import tqdm

from data import (
    BYTES,
    LONGEST,
    PATTERN,
    build_tokenizer,
    find,
    full_texts,
    pretraining_texts,
    save_tokenizer,
)
from runtime import Problem, flag, launch


@dataclass(frozen=True)
class Config:
    data: str = flag(..., "folder with train.jsonl and perhaps pretrain.jsonl", what="DIR")
    vocab: int = flag(1024, "tokens in all: 256 bytes, merges and an end", least=257)


def merge(parts, ranks):
    """How BPE encodes: join the neighbours that make the earliest token, while any do.

    parts: the bytes of a piece, changed in place: l o w, then lo w, then low.
    """
    while len(parts) > 1:
        rank, i = min((ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(pairwise(parts)))
        if rank == len(ranks):
            return
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def train_tokenizer(texts, vocab):
    """Byte-level BPE: the 256 bytes, one token for each merge, and <|endoftext|>, `vocab` in all.

        while more tokens are wanted:
            the pair of neighbours seen most often (of equals, the first by bytes) is the next token
            merge it wherever it stands

        low lower lowest -> lo (3 times), low (3), " low" (2), " lowe" (2), " lower", " lowes";
                            then the text is low | lower | lowes t
    A pair is known by its bytes alone: "a" "bc" is "ab" "c". Equal pieces are merged only once.
    """
    times = Counter()                                  # piece -> how often it occurs
    for piece, n in Counter(p for text in texts for p in regex.findall(PATTERN, text)).items():
        for start in range(0, len(piece.encode()), LONGEST):
            times[piece.encode()[start:start + LONGEST]] += n
    parts = {piece: [BYTES[byte] for byte in piece] for piece in times}
    counts, where = Counter(), defaultdict(set)        # pair -> how often, and in which pieces

    def count(piece, sign):
        for a, b in pairwise(parts[piece]):
            counts[a + b] += sign * times[piece]
            where[a + b].add(piece)

    for piece in times:
        count(piece, +1)
    ranks = {byte: rank for rank, byte in enumerate(BYTES)}
    for rank in tqdm(range(256, vocab - 1), desc="merges", disable=None):
        most = max(counts.values(), default=0)
        if most == 0:
            raise Problem(f"--vocab {vocab}: too few pairs of tokens: ask for {rank + 1} at most")
        token = min(pair for pair, n in counts.items() if n == most)
        ranks[token] = rank
        for piece in list(where[token]):               # only these change
            count(piece, -1)
            merge(parts[piece], ranks)
            count(piece, +1)
    return build_tokenizer(ranks)


def make_tokenizer(cfg):
    """Learn from a folder's texts, and write its tokenizer.tiktoken."""
    texts = full_texts(cfg.data)
    texts += pretraining_texts(cfg.data) if find(cfg.data, "pretrain") else []
    save_tokenizer(train_tokenizer(texts, cfg.vocab), cfg.data)
    print(f"{cfg.data}/tokenizer.tiktoken: {cfg.vocab} tokens")


def main(argv=None):
    """Train a tokenizer."""
    launch(make_tokenizer, Config, argv, __doc__)


if __name__ == "__main__":
    main()
