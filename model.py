"""Chapter 3. One decoder for every network of the paper: policy, reference, reward model, value.

    x = token embedding + position embedding
    x = x + attention(norm(x));  x = x + mlp(norm(x))            once per layer, "pre-norm"
    logits = norm(x) @ token_embedding.T                         head = "lm": policy, reference
    score  = norm(x) @ w + b                                     head = "scalar": reward, value

GPT-2 (Radford et al. 2019), the paper's architecture (section 3.4) up to details: a plain GPT, then
the two extras that learning from feedback needs, then generation. The letters of all shapes:

    B rows (b: some)    T columns    R columns that are read    S columns looked at
    C channels    H heads    D = C / H    V vocabulary    N response tokens of a batch

A row is query | response | padding; a token's position is its column. Padding comes last, so causal
attention alone hides it. DIFFERS: the paper's code pads queries to 512 tokens with visible spaces.

To change attention: `attention` and the line of Block that runs it. Positions: the two lines with
wpe. The head: GPT.predict. Their weights: __init__, and `initial` for the first values.

Try it:  python -m tools.plan sizes           what the sizes below hold
Before:  data.py, toy.py (what the tokens are).    After: sft.py (how it learns).
"""
import math
from collections import namedtuple
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data import stack
from runtime import ALONE, Problem, generator, launch, read_network

Size = namedtuple("Size", "layers width heads context")
SIZES = {
    "toy": Size(2, 128, 4, 512), "toy-tiny": Size(1, 32, 2, 512),        # ours: minutes on a laptop
    "toy-small": Size(2, 64, 4, 512), "toy-large": Size(3, 192, 6, 512),
    "laptop": Size(4, 256, 4, 512),                                      # ours: for real text
    "gpt2": Size(12, 768, 12, 1024), "gpt2-medium": Size(24, 1024, 16, 1024),   # GPT-2's
    "gpt2-large": Size(36, 1280, 20, 1024), "gpt2-xl": Size(48, 1600, 25, 1024),
    "1.3b": Size(24, 2048, 16, 2048), "3b": Size(32, 2560, 32, 2048),        # the paper's, Table 3
    "6.7b": Size(32, 4096, 32, 2048), "13b": Size(40, 5120, 40, 2048)}
# DIFFERS: new networks use the exact GELU; GPT-2's tanh costs 7 % of a PPO iteration on a CPU.
ACTIVATIONS = {"exact_gelu": F.gelu, "gelu": lambda x: F.gelu(x, approximate="tanh"),
               "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}     # in the paper's own models


@dataclass(frozen=True)
class ModelConfig:
    """A network's shape. Ids 0 .. n_vocab - 1 are text, the last of them <|endoftext|>; n_vocab
    itself is padding, which no head can predict."""
    n_vocab: int
    layers: int
    width: int
    heads: int
    context: int
    head: str = "lm"
    tied: bool = True                   # the lm head is the table of tokens; else it has its own
    activation: str = "exact_gelu"

    @property
    def rows(self):                     # of the table of tokens: a multiple of 64 is fast
        return math.ceil((self.n_vocab + 1) / 64) * 64


def sized(size, n_vocab, head="lm"):
    """The ModelConfig of a named size. Raises: Problem for a name that is not in SIZES."""
    if size not in SIZES:
        raise Problem(f"size {size!r} is unknown: one of {', '.join(SIZES)}")
    return ModelConfig(n_vocab, *SIZES[size], head)

# ------------------------------------------------------------------------------------ a plain GPT


def attention(q, k, v, seen=None):
    """softmax(q k' / sqrt(D)) v, to read: nothing calls it, for Block runs it as one fused kernel.
    q: (B, H, R, D). k, v: (B, H, S, D). seen: (B, 1, R, S) bool, who looks at which column; None:
    each looks at those up to its own."""
    if seen is None:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    fit = q @ k.mT / math.sqrt(q.shape[3])                                       # (B, H, R, S)
    weight = fit.masked_fill(~seen, -math.inf).softmax(-1)                       # (B, H, R, S)
    return weight @ v                                                            # (B, H, R, D)


class Block(nn.Module):
    """One layer: columns exchange what they know (attention), then each works on it alone (mlp)."""

    def __init__(self, config):
        super().__init__()
        C, self.heads, self.activation = config.width, config.heads, ACTIVATIONS[config.activation]
        self.norm_1 = nn.LayerNorm(C)
        self.attention = nn.ModuleDict({"q": nn.Linear(C, C), "kv": nn.Linear(C, 2 * C),
                                        "out": nn.Linear(C, C)})
        self.norm_2, self.up, self.down = nn.LayerNorm(C), nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x, at=None, cache=None):
        """(B, T, C) -> (B, R, C). In a plain GPT at = cache = seen = None, and R = S = T."""
        normed, seen = self.norm_1(x), up_to(at, x.shape[1])                     # (B, T, C)
        q = self.attention.q(columns_of(normed, at))                             # (B, R, C)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)                    # (B, H, R, D)
        kv = self.attention.kv(normed)                                           # (B, T, 2C)
        kv = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)        # (2, B, H, T, D)
        if cache is not None:                                                    # extra 2 below
            kv, seen = cache.extend(kv, seen)                                    # (2, B, H, S, D)
        k, v = kv                                                                # (B, H, S, D)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
        found = self.attention.out(found.transpose(1, 2).flatten(2))             # (B, R, C)
        x = columns_of(x, at) + found
        return x + self.down(self.activation(self.up(self.norm_2(x))))           # (B, R, C)


class GPT(nn.Module):
    """A decoder with one of two heads: "lm" predicts the next token, "scalar" gives one number."""

    def __init__(self, config):
        super().__init__()
        self.config, C = config, config.width
        self.wte, self.wpe = nn.Embedding(config.rows, C), nn.Embedding(config.context, C)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(C)
        if config.head == "scalar":
            self.head = nn.Linear(C, 1)
        elif not config.tied:
            self.head = nn.Embedding(config.rows, C)

    def forward(self, tokens, at=None, cache=None):
        """tokens: (B, T) long, padding only at the end of a row. Returns: logits (B, T, V) of the
        next token, or scalars (B, T). Raises: Problem when T is more than the context."""
        T, context = tokens.shape[1], self.config.context
        if T > context:
            raise Problem(f"{T} tokens do not fit this network's context of {context}: lower "
                          "--query-length or --response-length, or take a larger --size")
        columns = torch.arange(T, device=tokens.device)                          # (T,)
        if at is not None or cache is not None:
            return self.with_extras(tokens, columns, at, cache)                  # (B, R, V)
        x = self.wte(tokens) + self.wpe(columns)                                 # (B, T, C)
        for block in self.blocks:
            x = block(x)                                                         # (B, T, C)
        return self.predict(x)                                                   # (B, T, V)

    def predict(self, x):
        """The head, in fp32: bf16's 8 bits are too few for log-probs. x: (B, R, C)"""
        x = self.norm(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.config.head == "scalar":
                return F.linear(x, self.head.weight.to(x), self.head.bias.to(x))[..., 0]  # (B, R)
            table = self.wte.weight if self.config.tied else self.head.weight
            return F.linear(x, table[:self.config.n_vocab].to(x))                # (B, R, V)

    # Extra 1: PPO reads 48 of 560 columns, and with GPT-2's vocabulary the head is a third of the
    # compute and nearly all of the memory. So the head runs on the columns `at` alone, and so does
    # the last block, which needs only keys and values of the others.
    # Extra 2: generation adds one column at a time, and the keys and values of those before it stay
    # the same. `cache`, a Cache for each layer, keeps them: one column is computed instead of T.

    def with_extras(self, tokens, columns, at, cache):
        """Logits (B, R, V) or scalars (B, R) of the columns `at` (B, R); None: of all T."""
        if cache is None:
            cache = [None] * len(self.blocks)
        elif cache[0].at is not None:
            columns = cache[0].at                                                # (B, 1)
        x = self.wte(tokens) + self.wpe(columns)                                 # (B, T, C)
        *blocks, last = self.blocks
        for i, block in enumerate(blocks):
            x = block(x, None, cache[i])                                         # (B, T, C)
        return self.predict(last(x, at, cache[-1]))                              # (B, R, V)


def columns_of(x, at):
    """Some columns of each row; at None: all. x: (B, T, C), at: (B, R) -> (B, R, C)."""
    return x if at is None else x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


def up_to(at, S):
    """Of S columns, those that the columns `at` (B, R) see: (B, 1, R, S) bool. None: causal."""
    return None if at is None else (torch.arange(S, device=at.device) <= at[..., None])[:, None]


class Cache:
    """One layer's keys and values: at first of whole queries, then of one more token a row."""

    def __init__(self):
        self.kv = None       # (2, B, H, room, D)
        self.at = None       # (B, 1)        the columns of the next tokens; None: whole queries
        self.seen = None     # (B, 1, 1, S)  the columns up to those

    def extend(self, kv, seen):
        """Keep new keys and values. Returns: all (2, B, H, S, D), and who sees them."""
        if self.at is None:
            self.kv = kv
            return kv, seen
        self.kv.scatter_(3, self.at[:, None, :, None].expand_as(kv), kv)    # to each row's column
        return self.kv[..., :self.seen.shape[-1], :], self.seen

# ------------------------------------------------------------------------------ rows and log-probs


class Rows(NamedTuple):
    """Queries and responses, and where each response token is predicted. A row of n + 3 tokens:

        column              ...  n-1    n     n+1   n+2   n+3
        tokens              ...  ":"   "He"  "quit" eot   pad
        columns                  n-1    n     n+1               read here
        targets                  "He"  "quit" eot               to predict these
    """
    tokens: torch.Tensor        # (B, T)  long, query | response | padding
    columns: torch.Tensor       # (B, R)  long; past a row's end its last column, to be harmless
    targets: torch.Tensor       # (B, R)  long, the response, then padding
    is_response: torch.Tensor   # (B, R)  bool, True up to and including the last response token

    @property
    def last(self):             # (B, 1)  long, the column of the last real token
        return self.columns[:, :1] + self.is_response.sum(1, keepdim=True)

    def to(self, device):
        return Rows(*(x.to(device) for x in self))


def lay_out(queries, responses, pad, length=None):
    """Rows from lists of token lists; R is `length`, or else the longest response."""
    tokens = stack([q + r for q, r in zip(queries, responses, strict=True)], pad)    # (B, T)
    targets = stack(responses, pad)                                                  # (B, R)
    if length:
        targets = F.pad(targets, (0, length - targets.shape[1]), value=pad)
    n = torch.tensor([len(q) for q in queries])[:, None]                             # (B, 1)
    r = torch.tensor([len(r) for r in responses])[:, None]                           # (B, 1)
    t = torch.arange(targets.shape[1])[None]                                         # (1, R)
    return Rows(tokens, torch.minimum(n - 1 + t, n + r - 1), targets, t < r)


def token_logp(logits, tokens, temperature=1.0):
    """log pi(token) in nats under softmax(logits / temperature): (...). logits: (..., V).
    tokens: (...) long; padding, which nobody reads, counts as id 0."""
    tokens = tokens.masked_fill(tokens >= logits.shape[-1], 0)
    if temperature != 1:
        logits = logits / temperature
    nll = F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none")
    return -nll.view(tokens.shape)


@torch.no_grad()
def score(model, queries, responses):
    """A scalar network's number at each row's last token: the reward model's score. (B,)"""
    rows = lay_out(queries, responses, model.config.n_vocab).to(model.wte.weight.device)
    return model(rows.tokens, at=rows.last)[:, 0]                                    # (B,)

# ------------------------------------------------------------------------------------- generation


def uniforms(seed, purpose, step, rows, n):
    """Random numbers in [0, 1), one for each of n tokens of each row: (len(rows), n) float64.
    All randomness in this book is a function of (seed, purpose, step, row), never of what was drawn
    before. So row 8 gets the same alone, in any batch, on any of many processes, after a restart:
        uniforms(0, "rollout", 3, [7, 8], 2)      [[0.96, 0.97], [0.44, 0.16]]
        uniforms(0, "rollout", 3, [8], 2)                       [[0.44, 0.16]]
    """
    drawn = [generator(seed, purpose, step, int(row)).random(n) for row in rows]
    return np.array(drawn).reshape(len(drawn), n)


def choose(logits, temperature=1.0, u=None):
    """One token a row: the first whose cumulative probability exceeds u.
        probabilities .5 .3 .2, cumulative .5 .8 1:  u = .6 gives token 1, as do 30 % of all u
    logits: (B, V). u: (B,) in [0, 1); None: the most probable token, the paper's T = 0.
    Returns: tokens (B,) long and their log-probs (B,), nats."""
    logp = (logits / temperature).log_softmax(-1)                                    # (B, V)
    if u is None:
        token = logp.argmax(-1)                                                      # (B,)
    else:
        sums = logp.exp().cumsum(-1, dtype=u.dtype)                                  # (B, V)
        token = torch.searchsorted(sums, u[:, None].to(sums) * sums[:, -1:], right=True)[:, 0]
        token = token.clamp(max=logits.shape[-1] - 1)                                # (B,)
    return token, logp.gather(-1, token[:, None])[:, 0]


def read_queries(model, queries, at, room, together):
    """Run the queries, which end at the columns `at` (B, 1), `together` at once. Returns: logits
    (B, V) of the token after each, and the cache, with room for so many columns."""
    logits, caches = [], []
    for start in range(0, len(queries), together):
        some = slice(start, start + together)
        tokens = stack(queries[some], model.config.n_vocab).to(at.device)            # (b, T)
        caches.append([Cache() for _ in model.blocks])
        logits.append(model(tokens, at=at[some], cache=caches[-1])[:, 0])            # (b, V)
    whole = [Cache() for _ in model.blocks]
    for layer in whole:         # columns to come hold zeros: a NaN would survive attention's 0 * v
        parts = [cache.pop(0).kv for cache in caches]                        # (2, b, H, T, D) each
        parts = [F.pad(kv, (0, 0, 0, room - kv.shape[3])) for kv in parts]
        layer.kv = torch.cat(parts, 1)                                       # (2, B, H, room, D)
    return torch.cat(logits), whole


@torch.no_grad()
def generate(model, queries, length, temperature=1.0, uniforms=None, look_every=4, together=16):
    """Continue each query until <|endoftext|> or `length` tokens.
    queries: B token lists. uniforms: (B, length), a number for each token; None: greedy.
    look_every: tokens after which finished rows leave the batch (the CPU must wait to see them).
    together: queries read at once, of about the same length, so that little is padding.
    Returns: tokens (B, length) long, padding after <|endoftext|>; log-probs (B, length), 0 there.
    """
    pad, eot, device = model.config.n_vocab, model.config.n_vocab - 1, model.wte.weight.device
    order = sorted(range(len(queries)), key=lambda i: len(queries[i]))
    longest = len(queries[order[-1]])
    if longest + length > model.config.context:
        raise Problem(f"a query of {longest} tokens and a response of {length} do not fit the "
                      f"context of {model.config.context}: lower --query-length")
    row = torch.tensor(order, device=device)             # (b,) which rows are still in the cache
    queries = [queries[i] for i in order]
    at = torch.tensor([[len(query) - 1] for query in queries], device=device)        # (b, 1)
    logits, cache = read_queries(model, queries, at, longest + length, together)     # (b, V)
    out = torch.full((len(queries), length), pad, device=device)                     # (B, R)
    logps = logits.new_zeros(out.shape)                                              # (B, R)
    if uniforms is not None:                             # MPS has no float64
        exact = torch.float32 if device.type == "mps" else torch.float64
        uniforms = torch.as_tensor(uniforms, dtype=exact).to(device)                 # (B, R)
    for t in range(length):
        u = None if uniforms is None else uniforms[row, t]                           # (b,)
        token, logps[row, t] = choose(logits, temperature, u)                        # (b,), (b,)
        out[row, t] = token
        if (t + 1) % look_every == 0:
            left = (out[row] != eot).all(1).nonzero()[:, 0]             # rows that go on
            if len(left) == 0:
                break
            if len(left) <= 0.75 * len(row):             # copying costs, so not for every row
                row, token, at = row[left], token[left], at[left]
                for layer in cache:
                    layer.kv = layer.kv[:, left]
        if t + 1 < length:
            at = at + 1                                                              # (b, 1)
            seen = up_to(at, longest + t + 1)                                        # (b, 1, 1, S)
            for layer in cache:
                layer.at, layer.seen = at, seen
            logits = model(token[:, None], cache=cache)[:, 0]                        # (b, V)
    ended = (out == eot).cumsum(1) > (out == eot)        # (B, R) bool, after <|endoftext|>
    return out.masked_fill(ended, pad), logps.masked_fill(ended, 0)

# --------------------------------------------------------------------- first values, loading, sizes


def initial(name, shape, config, seed):
    """The first value of a weight: N(0, 1/fan_in) for matrices, N(0, 1/C) for tokens, and for the
    scalar head N(0, 1/(C+1)), the paper's variance (appendix B.1).
    At width 2048 the first two are N(0, 0.022^2), about GPT-2's 0.02. At width 128 they are four
    times wider: with 0.02 a network there does not learn, within minutes, to copy from the post."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if "norm" in name:
        return torch.ones(shape)
    C = config.width
    # DIFFERS: positions start at a tenth of the tokens' size (paper's code: half), so that
    # attention first looks at words; a network learns to copy in half the steps.
    special = {"wte.weight": 1 / C, "wpe.weight": 0.01 / C, "head.weight": 1 / (C + 1)}
    variance = special.get(name, 1 / shape[-1])
    if name.endswith(("out.weight", "down.weight")):
        variance /= 2 * config.layers       # x is a sum of so many of these: keep its size (GPT-2)
    source = torch.Generator().manual_seed(int(generator(seed, name).integers(1 << 62)))
    return torch.randn(shape, generator=source) * variance ** 0.5


def skeleton(config, world=ALONE, frozen=False):
    """A GPT whose weights have memory, the share that `world` gives this process, but no values."""
    with torch.device("meta"):              # no memory: the whole may be more than one process has
        model = GPT(config)
    return world.allocate(model, frozen)


def build(config, seed=0, world=ALONE):
    """A freshly initialised GPT, a function of its config and the seed alone."""
    model = skeleton(config, world)
    for name, p in model.named_parameters():
        world.set(p, initial(name, p.shape, config, seed))
    return model


def load_model(folder, world=ALONE, head=None, seed=0, frozen=False):
    """The network in a checkpoint folder. Raises: Problem when it is missing or damaged.
    head: "scalar" puts a new scalar head, made from `seed`, on a language model's blocks, as the
        reward model starts out (section 3.4). frozen: not to be trained, so bf16 may be enough."""
    config, weights, path = read_network(folder, ModelConfig, ACTIVATIONS)
    fresh = ("head.",) if head == "scalar" and config.head != "scalar" else ()
    config = replace(config, head=head or config.head)
    model = skeleton(config, world, frozen)
    world.load(model, path, fresh, weights)
    for name, p in model.named_parameters():
        if name.startswith(fresh):
            world.set(p, initial(name, p.shape, config, seed))
    return model


def main(argv=None):
    launch(None, None, argv, __doc__,
           moved={"plan": "tools.plan", "export": "tools.convert export"})


if __name__ == "__main__":
    main()
