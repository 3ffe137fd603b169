"""Chapter 3. One decoder for every network of the paper: policy, reference, reward model, value.

    x = token embedding + position embedding
    x = x + attention(norm(x));  x = x + mlp(norm(x))            once per layer, "pre-norm"
    logits = norm(x) @ token_embedding.T                         head = "lm": policy, reference
    score  = norm(x) @ w + b                                     head = "scalar": reward, value

The whole project speaks one alphabet of shapes (B is a whole batch, b some rows of it):

    B rows    T columns    R response columns, those that are read    S columns looked at
    C channels    H heads    D = C / H    V vocabulary    N real response tokens of a batch

and lays every row out alike, padding only ever at its end:

    query (n_i tokens) | response (at most R, <|endoftext|> included) | padding ...

so the position of a token is its column, and causal attention alone keeps real tokens from seeing
padding: there is no padding mask to get wrong (the mask `seen` only says "columns up to my own",
where not every column asks). DIFFERS: the paper's code fills queries to 512 tokens with spaces that
are attended to. What follows is GPT-2 (Radford et al. 2019), the architecture of the paper's
section 3.4 up to details. A `world` is the processes that train together: ALONE, one, for a start.

Try it:  python model.py                   prints the sizes
         python -m tools.plan --size 6.7b --stage ppo --gpus 8 --parallel fsdp     what that needs
Before:  data.py, toy.py (what the tokens are).    After: sft.py (how it learns).
"""
import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from data import stack
from runtime import ALONE, Problem, allocate, config_of, entry, fill, finest, generator, moved


class Size(NamedTuple):
    """Everything that tells one GPT from another, besides its vocabulary."""
    layers: int
    width: int
    heads: int
    context: int


SIZES = {
    "toy": Size(2, 128, 4, 512),                 # ours: minutes on a laptop
    "toy-tiny": Size(1, 32, 2, 512),             # a thirtieth of its blocks' parameters,
    "toy-small": Size(2, 64, 4, 512),            # a quarter,
    "toy-large": Size(3, 192, 6, 512),           # three times as many: for curves over size
    "laptop": Size(4, 256, 4, 512),              # ours: real text on a laptop
    "gpt2": Size(12, 768, 12, 1024),             # GPT-2's four
    "gpt2-medium": Size(24, 1024, 16, 1024),
    "gpt2-large": Size(36, 1280, 20, 1024),
    "gpt2-xl": Size(48, 1600, 25, 1024),
    "1.3b": Size(24, 2048, 16, 2048),            # the paper's four, Table 3
    "3b": Size(32, 2560, 32, 2048),
    "6.7b": Size(32, 4096, 32, 2048),
    "13b": Size(40, 5120, 40, 2048),
}

# DIFFERS: new networks take x Phi(x) itself, which GPT-2 and the paper approximate: the tanh takes
# twice as long on a CPU, 7 % of a PPO iteration at width 128. Loaded networks keep their own.
ACTIVATIONS = {"exact_gelu": F.gelu,                                   # ours
               "gelu": partial(F.gelu, approximate="tanh"),            # GPT-2's
               "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}   # the paper's own models'


@dataclass(frozen=True)
class ModelConfig:
    """A network's shape. Ids 0 .. n_vocab - 1 are text, the last of them <|endoftext|>; n_vocab
    itself is padding, an id of its own that no head can predict."""
    n_vocab: int
    layers: int
    width: int
    heads: int
    context: int
    head: str = "lm"
    tied: bool = True              # the lm head is the table of tokens; else it has its own
    activation: str = "exact_gelu"      # a key of ACTIVATIONS

    @property
    def rows(self):
        """Rows of the embedding: n_vocab + 1 for padding, rounded up to 64 for fast matmuls."""
        return math.ceil((self.n_vocab + 1) / 64) * 64


def sized(size, n_vocab, head="lm"):
    """The ModelConfig of a named size. Raises: Problem for a name that is not in SIZES."""
    if size not in SIZES:
        raise Problem(f"size {size!r} is unknown: one of {', '.join(SIZES)}")
    return ModelConfig(n_vocab, *SIZES[size], head)


# ------------------------------------------------------------------------------------- the network

class Attention(nn.Module):
    """Causal self-attention: softmax(q k' / sqrt(D)) v in each of H heads."""

    def __init__(self, config):
        super().__init__()
        self.heads, C = config.heads, config.width
        self.q, self.kv, self.out = nn.Linear(C, C), nn.Linear(C, 2 * C), nn.Linear(C, C)

    def forward(self, x, read, seen, past):
        """x: (B, T, C), the columns looked at (keys, values); read: (B, R, C), those that look (the
        "queries" q of attention, no posts); seen: (B, 1, R, S) bool, who may look where, or None
        when they are the same columns and look causally; past: this layer's part of a Cache."""
        q, kv = self.q(read), self.kv(x)                                   # (B, R, C), (B, T, 2C)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)                        # (B, H, R, D)
        kv = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)         # (2, B, H, T, D)
        k, v = kv if past is None else past.extend(kv)                               # (B, H, S, D)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
        return self.out(mixed.transpose(1, 2).flatten(2))                            # (B, R, C)


class Block(nn.Module):
    """One layer: tokens exchange what they know, then each thinks about it alone."""

    checkpointing = False       # True: keep only the input for the backward pass, compute the rest
                                # again there; a third more compute, a tenth of the memory

    def __init__(self, config):
        super().__init__()
        C = config.width
        self.norm_1, self.attention = nn.LayerNorm(C), Attention(config)
        self.norm_2, self.up, self.down = nn.LayerNorm(C), nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x, at=None, seen=None, past=None):
        """(B, T, C) -> (B, T, C); or, when only the columns `at` (B, R) are read: (B, R, C)."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self.layer, x, at, seen, past, use_reentrant=False)
        return self.layer(x, at, seen, past)

    def layer(self, x, at, seen, past):
        """What `forward` computes."""
        normed = self.norm_1(x)                                                      # (B, T, C)
        read = normed
        if at is not None:
            x, read = columns_of(x, at), columns_of(normed, at)                      # (B, R, C)
        x = x + self.attention(normed, read, seen, past)                             # (B, R, C)
        return x + self.down(self.activation(self.up(self.norm_2(x))))               # (B, R, C)


def columns_of(x, at):
    """The hidden states at some columns of each row. x: (B, T, C), at: (B, R) -> (B, R, C)."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


class GPT(nn.Module):
    """A decoder with one of two heads: "lm" predicts the next token, "scalar" gives one number."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.rows, config.width)
        self.wpe = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        if config.head == "scalar":
            self.head = nn.Linear(config.width, 1)
        elif not config.tied:
            self.head = nn.Embedding(config.rows, config.width)

    def forward(self, tokens, at=None, cache=None):
        """Run the decoder; run the head only where somebody reads it.

        tokens: (B, T) long, padding (id n_vocab) only at the end of a row. With a cache that has
            been filled, (B, 1): each row's next token, standing at column cache.columns.
        at: (B, R) long, the columns whose head is wanted; None wants all of them. With GPT-2's
            vocabulary the head is a third of the compute and nearly all of the memory, and PPO
            reads it on 48 of 560 columns.
        Returns: logits (B, R, V) over the n_vocab real ids, or scalars (B, R); at least fp32.
        Raises: Problem when the rows are longer than the context.
        """
        T = tokens.shape[1]
        if T > self.config.context:
            raise Problem(f"{T} tokens do not fit this network's context of {self.config.context}: "
                          "lower --query-length or --response-length, or take a larger --size")
        columns = torch.arange(T, device=tokens.device)[None]                        # (1, T)
        seen = None                                        # None: causal, which needs no mask
        if cache is not None and cache.filled:
            columns, seen = cache.columns[:, None], cache.seen         # (B, 1), (B, 1, 1, S)
        x = self.wte(tokens) + self.wpe(columns)                                     # (B, T, C)
        *blocks, last = self.blocks
        for i, block in enumerate(blocks):
            x = block(x, None, seen, cache and cache.layers[i])
        if at is not None:      # nobody looks past the last block: it runs on the read columns only
            seen = (columns[:, None] <= at[..., None])[:, None]                      # (B, 1, R, T)
        x = last(x, at, seen, cache and cache.layers[-1])                            # (B, R, C)
        x = self.norm(x)
        with torch.autocast(x.device.type, enabled=False):         # the head counts in fp32
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.config.head == "scalar":
                return F.linear(x, self.head.weight.to(x), self.head.bias.to(x))[..., 0]   # (B, R)
            table = self.wte if self.config.tied else self.head
            # The one place where padding's rows leave the vocabulary.
            return F.linear(x, table.weight[:self.config.n_vocab].to(x))                 # (B, R, V)


def initial(name, shape, config, seed):
    """The first value of a weight, a function of its name, its shape and the seed.

    N(0, 1/fan_in) for matrices (out and down: over 2 * layers besides), N(0, 1/C) for tokens, a
    hundredth of that for positions, N(0, 1/(C+1)) for the scalar head. The last variance
    is the paper's, appendix B.1 (a *variance*). At the paper's width of 2048 the first two are
    N(0, 0.022^2), GPT-2's 0.02; at width 128 they are four times wider, and there 0.02 is too small
    for a network to learn, within minutes, to copy words from the post.
    """
    if name.endswith("bias"):
        return torch.zeros(shape)
    if "norm" in name:
        return torch.ones(shape)
    C = config.width
    # DIFFERS: positions whisper, at a tenth of the tokens' size (paper's code: half), so that
    # attention starts out looking at words; copying appears in half the steps.
    variance = {"wte.weight": 1 / C, "wpe.weight": 0.01 / C, "head.weight": 1 / (C + 1)}.get(
        name, 1 / shape[-1])
    if name.endswith(("out.weight", "down.weight")):
        variance /= 2 * config.layers       # so many additions to the stream: keep its size, GPT-2
    draw = torch.Generator().manual_seed(int(generator(seed, name).integers(1 << 62)))
    return torch.randn(shape, generator=draw) * variance ** 0.5


def skeleton(config, world=ALONE, frozen=False):
    """A GPT with memory for its weights, in `world`'s way, but no values in it yet."""
    with torch.device("meta"):              # 13b shall never exist whole where it is to be sharded
        model = GPT(config)
    return allocate(model, world, frozen)


def build(config, seed=0, world=ALONE):
    """A freshly initialised GPT, a function of its config and the seed alone."""
    model = skeleton(config, world)
    for name, p in model.named_parameters():
        fill(p, initial(name, p.shape, config, seed))
    return model


# ------------------------------------------------------------------------------------- log-probs

def token_logp(logits, tokens, temperature=1.0):
    """log pi(token) in nats under softmax(logits / temperature).

    logits: (..., V). tokens: (...) long; ids outside the vocabulary (padding) may stand where the
    caller does not look, and count as id 0. Returns: (...).
    """
    tokens = tokens.masked_fill(tokens >= logits.shape[-1], 0)
    if temperature != 1:
        logits = logits / temperature
    nll = F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none")
    return -nll.view(tokens.shape)


class Rows(NamedTuple):
    """Queries and responses in the one row layout, and where the response is read."""
    tokens: torch.Tensor        # (B, T)  long, query | response | padding
    columns: torch.Tensor       # (B, R)  long, where response token t is predicted: n_i - 1 + t
    targets: torch.Tensor       # (B, R)  long, response token t, then padding
    is_response: torch.Tensor   # (B, R)  bool, True up to and including the last response token

    @property
    def last(self):             # (B, 1)  long, the column of the last real token
        return self.columns[:, :1] + self.is_response.sum(1, keepdim=True)

    def to(self, device):
        return Rows(*(x.to(device) for x in self))


def lay_out(queries, responses, pad, length=None):
    """Rows from lists of token lists; R is `length`, or else the longest response.

        column              ...  n-1    n     n+1   n+2   n+3
        token               ...  ":"   "He"  "quit" eot   pad
        step t                          0      1     2     -
        columns[t]                     n-1     n    n+1

    Columns past a row's end point at its last token, so that reading them is harmless.
    """
    tokens = stack([q + r for q, r in zip(queries, responses, strict=True)], pad)    # (B, T)
    targets = stack(responses, pad)                                                  # (B, R)
    if length:
        targets = F.pad(targets, (0, length - targets.shape[1]), value=pad)
    n = torch.tensor([len(q) for q in queries])[:, None]                             # (B, 1)
    r = torch.tensor([len(r) for r in responses])[:, None]                           # (B, 1)
    steps = torch.arange(targets.shape[1])[None]                                     # (1, R)
    return Rows(tokens, torch.minimum(n - 1 + steps, n + r - 1), targets, steps < r)


@torch.no_grad()
def score(model, queries, responses):
    """A scalar network's number at each row's last token: the reward model's score. (B,)"""
    rows = lay_out(queries, responses, model.config.n_vocab).to(model.wte.weight.device)
    return model(rows.tokens, at=rows.last)[:, 0]                                    # (B,)


# ------------------------------------------------------------------------------------- generation

class Cache:
    """Keys and values of every layer, so that a new token costs one column instead of T.

    The posts' tokens fill columns 0 .. n_i - 1, the rows `lines` in one go; then row i's token
    goes to column n_i + t, over what padding had left there, and sees the columns up to its own.
    """

    def __init__(self, layers, lengths, total, device):
        self.total = total                               # columns that there is room for
        self.lines = slice(None)                         # the rows whose posts are being read
        self.columns = torch.tensor(lengths, device=device) - 1   # (B,) each row's newest token
        self.reach = max(lengths) - 1                    # the largest of them, known to the host
        self.filled = False
        self.layers = [Layer(self) for _ in range(layers)]

    def advance(self):
        """Make room for one more token a row."""
        self.columns, self.reach, self.filled = self.columns + 1, self.reach + 1, True
        self.rows = torch.arange(len(self.columns), device=self.columns.device)      # (B,)
        reached = torch.arange(self.reach + 1, device=self.columns.device)           # (S,)
        self.seen = (reached <= self.columns[:, None])[:, None, None]                # (B, 1, 1, S)

    def keep(self, rows):
        """Let the other rows go: they have ended."""
        self.columns = self.columns[rows]
        for layer in self.layers:
            layer.kv = layer.kv[:, rows]


class Layer:
    """One layer's part of a Cache."""

    def __init__(self, cache):
        self.cache, self.kv = cache, None                                          # (2, B, H, S, D)

    def extend(self, kv):
        """Store new keys and values (2, B, H, T, D); returns all that there are to attend to."""
        cache = self.cache
        if cache.filled:                                    # what indexes comes first: (B, 2, H, D)
            self.kv[:, cache.rows, :, cache.columns] = kv[:, :, :, 0].transpose(0, 1)
            return self.kv[:, :, :, :cache.reach + 1]                             # (2, B, H, S, D)
        _, _, H, T, D = kv.shape
        if self.kv is None:                                  # for all rows; these are some of them
            # The dtype is that of the keys, bf16 where that is the arithmetic.
            self.kv = kv.new_empty(2, len(cache.columns), H, cache.total, D)
        self.kv[:, cache.lines, :, :T] = kv
        # Columns to come hold zeros, not whatever memory held: a NaN would pass attention's 0 * v.
        self.kv[:, cache.lines, :, T:] = 0
        return kv


def choose(logits, temperature=1.0, u=None):
    """One token a row by inverting the cumulative distribution at u; the likeliest when u is None.

    logits: (B, V). u: (B,) in [0, 1). Returns: tokens (B,) long and their log-probs (B,), nats.
    """
    logp = (logits / temperature).log_softmax(-1)                                    # (B, V)
    if u is None:
        token = logp.argmax(-1)                                                      # (B,)
    else:
        fine = finest(logp.device)
        cumulative = logp.exp().cumsum(-1, dtype=fine)                               # (B, V)
        token = torch.searchsorted(cumulative, u[:, None].to(fine) * cumulative[:, -1:], right=True)
        token = token[:, 0].clamp(max=logits.shape[-1] - 1)                          # (B,)
    return token, logp.gather(-1, token[:, None])[:, 0]


@torch.no_grad()
def generate(model, queries, length, temperature=1.0, uniforms=None, look_every=4, together=16):
    """Continue each query until <|endoftext|> or `length` tokens.

    queries: list of B token lists. temperature: divides the logits.
    uniforms: (B, length) numbers in [0, 1), one for each token, so that what row i says depends on
        row i alone: not on its batch mates, on compaction, or on how many processes share the work.
        None: greedy, the paper's T = 0.
    look_every: steps between looks at who has finished; finished rows then leave the batch. (Each
        look makes the host wait for the device.)
    together: queries read at once, neighbours in length, so that little is padding.
    Returns: tokens (B, length) long, padding after <|endoftext|>; log-probs (B, length), 0 there.
    Raises: Problem when query and response do not fit the context.
    """
    pad, eot, device = model.config.n_vocab, model.config.n_vocab - 1, model.wte.weight.device
    order = sorted(range(len(queries)), key=lambda i: len(queries[i]))    # neighbours pad little
    longest = len(queries[order[-1]])
    total = longest + length
    if total > model.config.context:
        raise Problem(f"a query of {longest} tokens and a response of {length} do not fit the "
                      f"context of {model.config.context}: lower --query-length")
    row = torch.tensor(order, device=device)             # (b,) which row each line of the cache is
    cache = Cache(model.config.layers, [len(queries[i]) for i in order], total, device)
    logits = []
    for start in range(0, len(order), together):
        cache.lines = slice(start, start + together)
        posts = stack([queries[i] for i in order[cache.lines]], pad).to(device)      # (b, T)
        logits.append(model(posts, at=cache.columns[cache.lines, None], cache=cache)[:, 0])
    logits = torch.cat(logits)                                                       # (B, V)
    out = torch.full((len(queries), length), pad, device=device)                     # (B, R)
    logps = logits.new_zeros(out.shape)                                              # (B, R)
    u = None                                                                         # (B, R)
    if uniforms is not None:
        u = torch.as_tensor(uniforms, dtype=finest(device)).to(device)
    alive = torch.ones_like(row, dtype=torch.bool)       # (b,) has not said <|endoftext|> yet
    for t in range(length):
        token, logp = choose(logits, temperature, None if u is None else u[row, t])  # (b,), (b,)
        out[row, t] = token.where(alive, out[row, t])
        logps[row, t] = logp.where(alive, logps[row, t])
        alive = alive & (token != eot)
        if t + 1 == length:
            break
        if (t + 1) % look_every == 0:
            left = int(alive.sum())
            if left == 0:
                break
            if left <= 0.75 * len(row):                  # compaction: copying costs, so not always
                row, token = row[alive], token[alive]
                cache.keep(alive.nonzero()[:, 0])
                alive = alive[alive]
        cache.advance()
        logits = model(token[:, None], cache=cache)[:, 0]                            # (b, V)
    return out, logps


# ------------------------------------------------------------------------------------- checkpoints

def load_model(folder, world=ALONE, head=None, seed=0, frozen=False):
    """The network in a checkpoint folder, ours or Hugging Face's, in the memory of `world`.

    head: None keeps the folder's; "scalar" puts a fresh scalar head on a language model's trunk,
        as the reward model starts out (section 3.4). seed: of that fresh head.
    frozen: it will not be trained, so bf16 is enough where that is the arithmetic.
    Raises: Problem when model.pt is missing, damaged or of another shape than config.json says.
    """
    path, known, weights = Path(folder) / "model.pt", config_of(folder), None
    if "model_type" in known:
        from tools.convert import read_hugging_face  # an appendix, opened when it is needed
        path, (config, weights) = folder, read_hugging_face(folder, known)
    elif "model" not in known:
        raise Problem(f"{folder}/config.json describes no network: is it a run of sft.py, "
                      "reward.py or ppo.py?")
    else:
        try:
            config, weights = ModelConfig(**known["model"]), read_weights(path)
        except TypeError as error:
            raise Problem(f"{folder}/config.json does not describe a network of this code: "
                          f"{error}") from None
    check_config(config, weights, f"{folder}/config.json", path)
    fresh = ("head.",) if head == "scalar" and config.head != "scalar" else ()
    config = ModelConfig(**{**asdict(config), "head": head or config.head})
    model = skeleton(config, world, frozen)
    load_weights(model, path, fresh, weights)
    for name, p in model.named_parameters():
        if name.startswith(fresh):
            fill(p, initial(name, p.shape, config, seed))
    return model


def check_config(config, weights, where, path):
    """Raise a Problem unless `config` describes a network, and one as large as these named tensors:
    memory is asked for only what a file really holds. where, path: of the two."""
    sizes = (config.n_vocab, config.layers, config.width, config.heads, config.context)
    if not (all(type(n) is int and n > 0 for n in sizes) and config.width % config.heads == 0
            and config.head in ("lm", "scalar") and type(config.tied) is bool
            and config.activation in tuple(ACTIVATIONS)):
        raise Problem(f"{where} does not describe a network of this code: {config}"[:500])
    layers = sum(name.endswith(".norm_1.weight") for name in weights)
    if layers != config.layers:
        raise Problem(f"{path} does not fit: it has {layers} layers, {where} says {config.layers}; "
                      "it comes from another size")
    check_shapes(path, weights, {"wte.weight": (config.rows, config.width),
                                 "wpe.weight": (config.context, config.width)})


def check_shapes(path, weights, wanted):
    """Raise a Problem for the first of the `wanted` {name: shape} that `weights` do not have."""
    for name, shape in wanted.items():
        found = tuple(weights[name].shape) if name in weights else None
        if found != shape:
            raise Problem(f"{path} does not fit: {name} is {found}, the network wants {shape}; it "
                          "comes from another size or another kind of stage")


def load_weights(model, path, fresh=(), weights=None):
    """Fill a network from a file of plain tensors, or from `weights`, which came from that path.

    fresh: names that start so are left alone. Raises: Problem when the tensors do not fit.
    """
    weights = read_weights(path) if weights is None else weights
    own, weights = ({k: v for k, v in d.items() if not k.startswith(tuple(fresh))}
                    for d in (model.state_dict(), weights))
    wanted = {name: tuple(own[name].shape) if name in own else None
              for name in sorted(own.keys() | weights.keys())}
    check_shapes(path, weights, wanted)
    for name, p in own.items():
        if not weights[name].isfinite().all():
            raise Problem(f"{path}: weight {name} is not finite: that stage has diverged; train it "
                          "again with a lower --lr")
        fill(p, weights[name])           # from disk, one weight at a time


def read_weights(path):
    """The named tensors of a model.pt. Raises: Problem when it is missing, damaged or foreign."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise Problem(f"{path} is missing: that stage has not finished (--resume it)") from None
    except Exception as error:           # torch raises many kinds for a damaged file
        raise Problem(f"{path} is damaged ({type(error).__name__}): run that stage again") from None
    if not (isinstance(weights, dict) and all(
            isinstance(name, str) and torch.is_tensor(t) and t.is_floating_point()
            and t.layout == torch.strided and not t.is_meta for name, t in weights.items())):
        raise Problem(f"{path} does not hold named tensors of numbers alone: is it another "
                      "program's file?")
    return weights


def published(name):
    """The folder that a published model's name stands for: gpt2 -> data/gpt2; others stay.

    Raises: Problem, with the command that fetches it, when the model is not there yet.
    """
    if not name.startswith("gpt2") or name not in SIZES or Path(name).exists():
        return name
    if not Path("data", name, "config.json").exists():
        raise Problem(f"data/{name} is missing: python -m tools.download {name}, or "
                      "give a folder that holds it")
    return f"data/{name}"


def main(argv=None):
    """Print the table of sizes."""
    argv = moved(argv, {"plan": "tools.plan", "export": "tools.convert export",
                        "import-openai": "tools.convert import-openai"})
    if argv:
        print(__doc__)
        return
    print(f"{'size':12} {'layers':>6} {'width':>6} {'heads':>6} {'context':>8} {'parameters':>15}")
    for name, size in SIZES.items():
        with torch.device("meta"):
            model = GPT(sized(name, 50257))
        count = sum(p.numel() for p in model.parameters())
        layers, width, heads, context = size
        print(f"{name:12} {layers:6} {width:6} {heads:6} {context:8} {count:15,}")


if __name__ == "__main__":
    entry(main)
