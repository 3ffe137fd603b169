"""Chapter 3. One decoder for every network of the paper: policy, reference, reward model, critic.

    x = token embedding + position embedding
    x = x + attention(norm(x));  x = x + mlp(norm(x))            once per layer, "pre-norm"
    logits = norm(x) @ token_embedding.T                         head = "lm": policy, reference
    score  = norm(x) @ w + b                                     head = "scalar": reward, critic

GPT-2 (Radford et al. 2019), the paper's architecture (section 3.4) up to details. `GPT`, complete
and plain, ends with `write`: a first reading may stop there. Then come `Rows`, what all learning
here reads, and `token_logp`, whose mean over a text's tokens is minus its loss. Last comes
`FastGPT`, the same network with three shortcuts, which the scripts use; a test compares the two.
The letters of all shapes:

    B rows (b: some)    T columns    C channels    H heads    D = C / H    V vocabulary
    later:    R columns that are read    S columns that are looked at

A row is query | response | padding; a token's position is its column. Padding comes last, so causal
attention alone hides it. DIFFERS: the paper's code pads queries to 512 tokens with visible spaces.

Try it:  python -m tools.plan sizes           what the sizes hold, with GPT-2's tokens
Before:  data.py, toy.py (what the tokens are).    After: sft.py (how it learns).
"""
import math
from collections import namedtuple
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from data import stack
from runtime import ALONE, Problem, generator, launch, read_network

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


# ------------------------------------------------------------------------------------ a plain GPT

def attention(q, k, v):
    """softmax(q k' / sqrt(D)) v: what each column finds in itself and those before it.
    q, k, v: (B, H, T, D). Returns: (B, H, T, D)."""
    T, D = q.shape[2:]
    seen = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()        # (T, T), by row
    fit = q @ k.mT / math.sqrt(D)                                            # (B, H, T, T)
    weight = fit.masked_fill(~seen, -math.inf).softmax(-1)                   # (B, H, T, T)
    return weight @ v                                                        # (B, H, T, D)


class Block(nn.Module):
    """One layer: columns exchange what they know (attention), then each works on it alone (mlp)."""

    def __init__(self, config):
        super().__init__()
        C, self.D = config.width, config.width // config.heads
        self.norm_1 = nn.LayerNorm(C)
        self.attention = nn.ModuleDict({      # q apart: FastBlock asks it of few columns only
            "q": nn.Linear(C, C), "kv": nn.Linear(C, 2 * C), "out": nn.Linear(C, C)})
        self.norm_2, self.up, self.down = nn.LayerNorm(C), nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x):
        """(B, T, C) -> (B, T, C)"""
        normed = self.norm_1(x)                                                  # (B, T, C)
        q = self.to_heads(self.attention.q(normed))                              # (B, H, T, D)
        k, v = self.to_heads(self.attention.kv(normed)).chunk(2, 1)              # (B, H, T, D) each
        x = x + self.from_heads(attention(q, k, v))                              # (B, T, C)
        return x + self.mlp(self.norm_2(x))                                      # (B, T, C)

    def to_heads(self, x):               # (B, T, n D) -> (B, n, T, D); n = H, and 2H for k and v
        return x.unflatten(-1, (-1, self.D)).transpose(1, 2)

    def from_heads(self, x):             # (B, H, T, D) -> (B, T, C)
        return self.attention.out(x.transpose(1, 2).flatten(2))

    def mlp(self, x):                    # (B, T, C) -> (B, T, C)
        return self.down(self.activation(self.up(x)))


class GPT(nn.Module):
    """A decoder with a head: "lm" predicts the next token, "scalar" gives one number, "sum" one
    number from the sum of this column and those that are read before it."""

    def __init__(self, config, block=Block):
        super().__init__()
        self.config, C = config, config.width
        self.wte = nn.Embedding(config.rows, C)                                  # of tokens
        self.wpe = nn.Embedding(config.context, C)                               # of positions
        self.blocks = nn.ModuleList(block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(C)
        if config.head != "lm":
            self.head = nn.Linear(C, 1)
        elif not config.tied:
            self.head = nn.Embedding(config.rows, C)

    def forward(self, tokens):
        """tokens: (B, T) long, padding only at the end of a row. Returns: logits (B, T, V) of the
        next token, or scalars (B, T)."""
        self.check(tokens.shape[1])
        x = self.embed(tokens, torch.arange(tokens.shape[1], device=tokens.device))  # (B, T, C)
        for block in self.blocks:
            x = block(x)                                                         # (B, T, C)
        return self.predict(x)                                                   # (B, T, V)

    def embed(self, tokens, columns):    # (B, T), (T,) or (B, T) -> (B, T, C)
        return self.wte(tokens) + self.wpe(columns)

    def predict(self, x):
        """The head, in fp32: bf16 has too few bits for log-probs. (B, T, C) -> (B, T, V), (B, T)"""
        x = self.norm(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.config.head == "sum":        # DIFFERS: an option. / 10: the sum is large, and
                x = x.cumsum(1) / 10             # steps of learning would be, too       (B, T, C)
            if self.config.head != "lm":         # sum: of one number; for [..., 0] FSDP warns
                return F.linear(x, self.head.weight.to(x), self.head.bias.to(x)).sum(-1)  # (B, T)
            table = self.wte.weight if self.config.tied else self.head.weight    # (rows, C)
            return F.linear(x, table[:self.config.n_vocab].to(x))                # (B, T, V)

    def check(self, T):
        if T > self.config.context:
            raise Problem(f"{T} tokens do not fit this network's context of {self.config.context}: "
                          "lower --query-length or --response-length, or take a larger network")

    @torch.no_grad()
    def write(self, tokens, length, temperature=1.0):
        """`length` more tokens for each row: (B, T) -> (B, T + length). (sample.py's `generate`
        does the same for rows of several lengths, until each has ended, and 20 times faster.)"""
        for _ in range(length):
            logits = self(tokens)[:, -1] / temperature                           # (B, V)
            token = torch.multinomial(logits.softmax(-1), 1)                     # (B, 1)
            tokens = torch.cat([tokens, token], 1)                               # (B, T + 1)
        return tokens

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
    tokens: (...) long; padding (id V), which nobody reads, counts as id 0."""
    tokens = tokens.masked_fill(tokens >= logits.shape[-1], 0)
    if temperature != 1:
        logits = logits / temperature
    nll = F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none")
    return -nll.view(tokens.shape)


def choose(logits, temperature=1.0, u=None):
    """One token a row: the first whose cumulative probability (rounded: may end below 1) exceeds u.
        probabilities .5 .3 .2, cumulative .5 .8 1:  u = .6 gives token 1, as do 30 % of all u
    logits: (B, V). u: (B,) in [0, 1); None: the most probable token, the paper's T = 0.
    Returns: tokens (B,) long and their log-probs (B,) under softmax(logits / temperature), nats."""
    logp = (logits / temperature).log_softmax(-1)                                    # (B, V)
    if u is None:
        token = logp.argmax(-1)                                                      # (B,)
    else:
        sums = logp.exp().cumsum(-1, dtype=u.dtype)                                  # (B, V)
        u = u[:, None].to(sums) * sums[:, -1:]   # the last is rounded, say 0.9999998: stay below
        token = torch.searchsorted(sums, u, right=True)[:, 0]                        # (B,)
        token = token.clamp(max=logits.shape[-1] - 1)        # in fp32 (MPS) u can be rounded to 1
    return token, logp.gather(-1, token[:, None])[:, 0]

# --------------------------------------------------------------------- the same GPT with shortcuts

# 1. `at`: PPO reads 48 of 560 columns, and with GPT-2's vocabulary the head is a third of the
#    compute and nearly all of the memory. So the head computes these columns alone, and so does the
#    last block; of the other columns it needs only keys and values.
# 2. `cache`: writing adds a column at a time, and keys and values of those before it stay the same.
#    A tensor (B, 2H, S, D) a block keeps them: one column is computed, not all T.
# 3. A fused kernel does what `attention` does, and stores no (T, T) table.
#
#    the last block, when     at       new       q              k, v           cache
#    training                 (B, R)   None      (B, H, R, D)   (B, H, T, D)   None
#    reading the queries      (B, 1)   None      (B, H, 1, D)   (B, H, T, D)   filled; S = T
#    writing one token        None     (B, 1)    (B, H, 1, D)   (B, H, S, D)   one column more
#    (The blocks before it have `at` = None and q of all T columns: their output is read again.)


class FastBlock(Block):
    def forward(self, x, at=None, new=None, cache=None):
        """(B, T, C) -> (B, R, C): of the columns `at` (B, R), or all. cache: keys and values, kept.
        new: where x stands, (B, 1); None: at 0 .. T - 1, with a cache the whole query."""
        normed = self.norm_1(x)                                                  # (B, T, C)
        kv = self.to_heads(self.attention.kv(normed))                            # (B, 2H, T, D)
        if cache is not None and new is None:            # whole queries fill the cache: S = T
            kv = cache.copy_(kv)                                                 # (B, 2H, S, D)
        elif cache is not None:                          # one token a row, to its own column
            kv = cache.scatter_(2, new[:, None, :, None].expand_as(kv), kv)      # (B, 2H, S, D)
        if at is not None:
            some = at[..., None].expand(-1, -1, x.shape[-1])                     # (B, R, C)
            x, normed = x.gather(1, some), normed.gather(1, some)                # (B, R, C) each
        asking = new if at is None else at               # the columns of q: (B, R), None: all
        q = self.to_heads(self.attention.q(normed))                              # (B, H, R, D)
        k, v = kv.chunk(2, 1)                                                    # (B, H, S, D) each
        seen = None                                                              # causal
        if asking is not None:                                                   # (B, 1, R, S)
            seen = torch.arange(k.shape[2], device=k.device) <= asking[:, None, :, None]
        found = F.scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None)
        x = x + self.from_heads(found)                                           # (B, R, C)
        return x + self.mlp(self.norm_2(x))                                      # (B, R, C)


class FastGPT(GPT):
    def __init__(self, config):
        super().__init__(config, FastBlock)

    def forward(self, tokens, at=None, new=None, cache=None):
        """Logits (B, R, V) or scalars (B, R):
            model(tokens)                             of all columns, as GPT
            model(tokens, at=at)                      of the columns `at` (B, R) alone
            model(tokens, at=at, cache=cache)         the same, and fills the cache
            model(token, new=new, cache=cache)        of one more token a row, in column `new`"""
        self.check(tokens.shape[1])
        here = torch.arange(tokens.shape[1], device=tokens.device) if new is None else new
        x = self.embed(tokens, here)                                             # (B, T, C)
        cache = cache or [None] * len(self.blocks)
        for block, kept in zip(self.blocks[:-1], cache, strict=False):
            x = block(x, None, new, kept)                                        # (B, T, C)
        x = self.blocks[-1](x, at, new, cache[-1])                               # (B, R, C)
        return self.predict(x)                                                   # (B, R, V)


def score(model, queries, responses):
    """The reward model's score of each response to a query, both token lists. (B,)"""
    rows = lay_out(queries, responses, model.config.n_vocab).to(model.wte.weight.device)
    return score_rows(model, rows)


def score_rows(model, rows):
    """The head at each row's last token; "sum": over all response tokens (`columns` + 1). (B,)"""
    if model.config.head == "scalar":
        return model(rows.tokens, at=rows.last)[:, 0]                                # (B,)
    seen = model(rows.tokens, at=torch.minimum(rows.columns + 1, rows.last))         # (B, R)
    return seen.gather(1, rows.is_response.sum(1, keepdim=True) - 1)[:, 0]           # (B,)

# --------------------------------------------------------------------- first values, loading, sizes


Size = namedtuple("Size", "layers width heads context")
SIZES = {
    "toy": Size(2, 128, 4, 512), "toy-tiny": Size(1, 32, 2, 512),        # ours: minutes on a laptop
    "toy-small": Size(2, 64, 4, 512), "toy-large": Size(3, 192, 6, 512),
    "laptop": Size(4, 256, 4, 512),                                      # ours: for real text
    "gpt2": Size(12, 768, 12, 1024), "gpt2-medium": Size(24, 1024, 16, 1024),   # GPT-2's
    "gpt2-large": Size(36, 1280, 20, 1024), "gpt2-xl": Size(48, 1600, 25, 1024),
    "1.3b": Size(24, 2048, 16, 2048), "3b": Size(32, 2560, 32, 2048),        # the paper's, Table 3
    "6.7b": Size(32, 4096, 32, 2048), "13b": Size(40, 5120, 40, 2048)}


def sized(size, n_vocab, head="lm"):
    """The ModelConfig of a named size. Raises: Problem for a name that is not in SIZES."""
    if size not in SIZES:
        raise Problem(f"size {size!r} is unknown: one of {', '.join(SIZES)}")
    return ModelConfig(n_vocab, *SIZES[size], head)


def initial(name, shape, config, seed):
    """The first value of a weight: N(0, 1/fan_in) for matrices (`out` and `down`: less), N(0, 1/C)
    for tokens, and for the scalar head N(0, 1/(C+1)), the paper's (appendix B.1). At width 2048 the
    first is about GPT-2's N(0, 0.02^2). At 128 it is four times wider: with 0.02 no small network
    learns, within minutes, to copy from the post."""
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
        model = FastGPT(config)
    return world.allocate(model, frozen)


def build(config, seed=0, world=ALONE):
    """A freshly initialised GPT, a function of its config and the seed alone."""
    model = skeleton(config, world)
    for name, p in model.named_parameters():
        world.set(p, initial(name, p.shape, config, seed))
    return model


def load_model(folder, world=ALONE, head=None, seed=0, frozen=False):
    """The network in a checkpoint folder. Raises: Problem when it is missing or damaged.
    head: "scalar" or "sum" puts a new one, from `seed`, on a language model's blocks, as the
        reward model starts out (section 3.4). frozen: not to be trained, so bf16 may be enough."""
    config, weights, path = read_network(folder, ModelConfig, ACTIVATIONS)
    fresh = ("head.",) if config.head == "lm" and head not in (None, "lm") else ()
    config = replace(config, head=head) if fresh else config
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
