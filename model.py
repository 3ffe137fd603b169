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

To change attention: `attention`, which knows the columns of q and of k. Rotary positions: there too
(turn q and k by their columns), and no wpe in GPT.embed. The layer: Block.forward. The head:
GPT.predict. New weights: __init__, and `initial`.

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


def attention(q, k, v, columns=None):
    """softmax(q k' / sqrt(D)) v: what each column finds in those up to its own.
        fit = q @ k.mT / sqrt(D)                                         # (B, H, R, S)
        weight = fit.masked_fill(~seen, -inf).softmax(-1)                # (B, H, R, S)
        return weight @ v                                                # (B, H, R, D)
    A fused kernel does the same, and stores no (R, S) table; a test runs these lines against it.
    q: (B, H, R, D), of the columns `columns` (B, R); None: of 0 .. R - 1.
    k, v: (B, H, S, D), of the columns 0 .. S - 1."""
    if columns is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)           # (B, H, R, D)
    seen = torch.arange(k.shape[2], device=k.device) <= columns[:, None, :, None]    # (B, 1, R, S)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)               # (B, H, R, D)


class Block(nn.Module):
    """One layer: columns exchange what they know (attention), then each works on it alone (mlp)."""

    def __init__(self, config):
        super().__init__()
        C, self.D = config.width, config.width // config.heads
        self.norm_1 = nn.LayerNorm(C)
        self.attention = nn.ModuleDict({"q": nn.Linear(C, C), "kv": nn.Linear(C, 2 * C),
                                        "out": nn.Linear(C, C)})
        self.norm_2, self.up, self.down = nn.LayerNorm(C), nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x, *extras):
        """(B, T, C) -> (B, R, C). A plain GPT has no extras: its columns = None, and R = S = T."""
        normed, columns = self.norm_1(x), None                                   # (B, T, C)
        kv = self.to_heads(self.attention.kv(normed))                            # (B, 2H, T, D)
        if extras:
            x, normed, kv, columns = apply_extras(x, normed, kv, *extras)        # below, after GPT
        q = self.to_heads(self.attention.q(normed))                              # (B, H, R, D)
        k, v = kv.chunk(2, 1)                                                    # (B, H, S, D) each
        found = attention(q, k, v, columns)                                      # (B, H, R, D)
        x = x + self.attention.out(found.transpose(1, 2).flatten(2))             # (B, R, C)
        return x + self.down(self.activation(self.up(self.norm_2(x))))           # (B, R, C)

    def to_heads(self, x):               # (B, T, n D) -> (B, n, T, D); n = H, and 2H for kv
        return x.unflatten(-1, (-1, self.D)).transpose(1, 2)


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

    def forward(self, tokens, at=None, columns=None, cache=None):
        """tokens: (B, T) long, padding only at the end of a row. Returns: logits (B, T, V) of the
        next token, or scalars (B, T). The rest is for the extras; a plain GPT has none of it."""
        if at is not None or cache is not None:
            return self.with_extras(tokens, at, columns, cache)                  # (B, R, V)
        x = self.embed(tokens)                                                   # (B, T, C)
        for block in self.blocks:
            x = block(x)                                                         # (B, T, C)
        return self.predict(x)                                                   # (B, T, V)

    def check(self, T):
        if T > self.config.context:
            raise Problem(f"{T} tokens do not fit this network's context of {self.config.context}: "
                          "lower --query-length or --response-length, or take a larger --size")

    def embed(self, tokens, columns=None):
        """Each token, plus its column: one of 0 .. T - 1 unless given. (B, T) -> (B, T, C)"""
        self.check(tokens.shape[1])
        if columns is None:
            columns = torch.arange(tokens.shape[1], device=tokens.device)        # (T,)
        return self.wte(tokens) + self.wpe(columns)                              # (B, T, C)

    def predict(self, x):
        """The head, in fp32: bf16's 8 bits are too few for log-probs. x: (B, R, C)"""
        x = self.norm(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.config.head == "scalar":
                return F.linear(x, self.head.weight.to(x), self.head.bias.to(x))[..., 0]  # (B, R)
            table = self.wte.weight if self.config.tied else self.head.weight
            return F.linear(x, table[:self.config.n_vocab].to(x))                # (B, R, V)

    # Extra 1, `at`: PPO reads 48 of 560 columns, and with GPT-2's vocabulary the head is a third of
    # the compute and nearly all of the memory. So the head computes these columns alone, and so
    # does the last block, which of the others needs only keys and values.
    # Extra 2, `cache`: generation adds a column at a time, and keys and values of those before it
    # stay the same. A tensor (B, 2H, S, D) a block keeps them: one column is computed, not all T.

    def with_extras(self, tokens, at, columns, cache):
        """Logits (B, R, V) or scalars (B, R):
            model(tokens, at=at)                      of the columns `at` (B, R) alone
            model(tokens, at=at, cache=cache)         the same, and fills the cache
            model(token, columns=new, cache=cache)    of one more token a row, in column `new`"""
        none = [None] * len(self.blocks)
        x = self.embed(tokens, columns)                                          # (B, T, C)
        for block, read, kept in zip(self.blocks, none[1:] + [at], cache or none, strict=True):
            x = block(x, read, columns, kept)            # (B, T, C); (B, R, C) after the last
        return self.predict(x)                                                   # (B, R, V)


def apply_extras(x, normed, kv, at, columns, cache):
    """Inside a block: which columns look (x, normed), at which (kv), and where they stand."""
    if cache is not None and columns is None:            # whole queries fill the cache: S = T
        kv = cache.copy_(kv)                                                     # (B, 2H, S, D)
    elif cache is not None:                              # one token a row, to its own column
        kv = cache.scatter_(2, columns[:, None, :, None].expand_as(kv), kv)      # (B, 2H, S, D)
    if at is not None:
        some = at[..., None].expand(-1, -1, x.shape[-1])                         # (B, R, C)
        x, normed, columns = x.gather(1, some), normed.gather(1, some), at       # (B, R, C) twice
    return x, normed, kv, columns

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
        return Rows(*(x.to(device, non_blocking=True) for x in self))     # (the CPU goes on)


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
        uniforms(0, "rollout", 3, [8], 2)                       [[0.44, 0.16]]"""
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
        u = u[:, None].to(sums) * sums[:, -1:]   # the last is rounded, say 0.9999998: stay below
        token = torch.searchsorted(sums, u, right=True)[:, 0]                        # (B,)
        token = token.clamp(max=logits.shape[-1] - 1)        # in fp32 (MPS) u can be rounded to 1
    return token, logp.gather(-1, token[:, None])[:, 0]


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
        tokens = stack(queries[some], config.n_vocab).to(device)                     # (b, T)
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
            logits = model(token[:, None], columns=column,                           # (b, V)
                           cache=[kv[:, :, :S] for kv in cache])[:, 0]
    ends = (out == eot).long()                           # 0 0 1 0 1: a row goes on until it leaves
    after = ends.cumsum(1) - ends > 0                    # F F F T T
    return out.masked_fill(after, pad), logps.masked_fill(after, 0)

# --------------------------------------------------------------------- first values, loading, sizes


def initial(name, shape, config, seed):
    """The first value of a weight: N(0, 1/fan_in) for matrices, N(0, 1/C) for tokens, and for the
    scalar head N(0, 1/(C+1)), the paper's variance (appendix B.1). At width 2048 that is about
    GPT-2's N(0, 0.02^2). At 128 it is four times wider: with 0.02 no small network learns, within
    minutes, to copy from the post."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if "norm" in name:
        return torch.ones(shape)
    C = config.width
    # DIFFERS: positions start at a tenth of the tokens' size (paper's code: half), so that
    # attention first looks at words; a network learns to copy in half the steps.
    special = {"wte.weight": 1 / C, "wpe.weight": 0.01 / C,
               "head.weight": 1 / (C + 1)}      # the scalar head's: an lm head is always loaded
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
