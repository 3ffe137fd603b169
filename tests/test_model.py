"""Chapter 3: the decoder against oracles that share no code with it."""
import json
import math
import re
import sys
import types
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import model
from model import (
    SIZES,
    ModelConfig,
    choose,
    lay_out,
    load_model,
    score,
    sized,
    token_logp,
)
from runtime import Problem, generator
from runtime.files import save_tensors, write_config
from sample import generate, uniforms
from sft import nll

FIXTURE = Path(__file__).resolve().parents[2] / "shared" / "fixtures" / "gpt2_tiny"
QUERIES = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9], [3]]
RESPONSES = [[2, 7, 39], [1], [8, 2, 8, 39], [1, 8, 39]]
PAD, EOT = 40, 39                                  # of the tiny networks, which speak 40 tokens


# ------------------------------------------------------------------------------------ the forward

def numpy_decoder(net, tokens):
    """The decoder once more, in numpy: one row, one layer, one head and one column at a time."""
    w = {k: v.detach().double().numpy() for k, v in net.state_dict().items()}
    c, D = net.config, net.config.width // net.config.heads

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * w[name + ".weight"] + w[name + ".bias"]

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    share = {"exact_gelu": np.vectorize(lambda u: 0.5 * (1 + math.erf(u / math.sqrt(2)))),
             "gelu": lambda u: 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u ** 3))),
             "quick_gelu": lambda u: 1 / (1 + np.exp(-1.702 * u))}[c.activation]
    out = []
    for row in tokens:
        x = np.stack([w["wte.weight"][token] + w["wpe.weight"][i] for i, token in enumerate(row)])
        for layer in range(c.layers):
            name = f"blocks.{layer}."
            normed = norm(x, name + "norm_1")
            q, kv = linear(normed, name + "attention.q"), linear(normed, name + "attention.kv")
            k, v, mixed = kv[:, :c.width], kv[:, c.width:], np.zeros_like(x)
            for t in range(len(row)):
                for h in range(c.heads):
                    own = slice(h * D, (h + 1) * D)
                    weight = np.exp(k[:t + 1, own] @ q[t, own] / math.sqrt(D))
                    mixed[t, own] = weight @ v[:t + 1, own] / weight.sum()
            x = x + linear(mixed, name + "attention.out")
            u = linear(norm(x, name + "norm_2"), name + "up")
            x = x + linear(u * share(u), name + "down")
        x = norm(x, "norm")
        out.append(linear(x, "head")[:, 0] if c.head == "scalar" else
                   x @ w["wte.weight"][:c.n_vocab].T)
    return np.stack(out)


@pytest.mark.parametrize("activation", model.ACTIVATIONS)
@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_the_forward_equals_a_numpy_decoder(tiny, head, activation):
    net = tiny(head=head, activation=activation)
    tokens = np.random.default_rng(0).integers(0, PAD + 1, (3, 11))
    ours = net(torch.from_numpy(tokens)).detach().numpy()
    assert ours.shape == ((3, 11, PAD) if head == "lm" else (3, 11))
    np.testing.assert_allclose(ours, numpy_decoder(net, tokens), atol=2e-5)


def test_attention_is_the_formula_a_column_at_a_time(float64):
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, 9, 8, generator=draw) for _ in range(3))
    ours = model.attention(q, k, v)
    for b, h, t in np.ndindex(3, 2, 9):
        weight = torch.softmax(k[b, h, :t + 1] @ q[b, h, t] / math.sqrt(8), 0)
        assert (weight @ v[b, h, :t + 1] - ours[b, h, t]).abs().max() < 1e-12


def plain_of(net):
    """The plain GPT with the weights of a FastGPT."""
    plain = model.GPT(net.config)
    plain.load_state_dict(net.state_dict())
    return plain


@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_the_gpt_with_shortcuts_is_the_plain_one(tiny, float64, head):
    fast = tiny(head=head)
    plain, at = plain_of(fast), torch.tensor([[0, 13, 5], [1, 2, 13], [13, 0, 7]])
    tokens = torch.randint(0, PAD, (3, 14), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(3)[:, None]
    for ours, theirs in ((fast(tokens), plain(tokens)), (fast(tokens, at=at), plain(tokens)[rows, at])):
        assert (ours - theirs).abs().max() < 1e-12
        for a, b in zip(*(torch.autograd.grad(x.square().sum(), net.parameters(), allow_unused=True)
                          for x, net in ((ours, fast), (theirs, plain))), strict=True):
            assert (a is None and b is None) or (a - b).abs().max() < 1e-10


def test_the_plain_gpt_writes_what_generate_writes(tiny, float64):
    net, queries = talkative(tiny)
    said, _ = generate(net, queries, 24)                                         # greedy
    for query, ours in zip(queries, said.tolist(), strict=True):
        text = plain_of(net).write(torch.tensor([query]), 24, temperature=1e-6)[0, len(query):].tolist()
        n = ours.index(EOT) + 1 if EOT in ours else 24
        assert text[:n] == ours[:n]


TURN = """
def turn(x, columns=None):       # (B, n, R, D): each pair of channels turns by an angle a column
    columns = torch.arange(x.shape[2])[None] if columns is None else columns     # (B, R)
    turns = 10_000 ** -torch.linspace(0, 1, x.shape[3] // 2)                     # (D / 2,)
    angle = columns[:, None, :, None] * turns                                    # (B, 1, R, D / 2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


class Block("""
ROTARY = [("\nclass Block(", TURN),
          ("attention(q, k, v))", "attention(turn(q), turn(k), v))"),
          ("        if cache is not None and new is None:", "        k, v = kv.chunk(2, 1)\n"
           "        kv = torch.cat([turn(k, new), v], 1)\n"
           "        if cache is not None and new is None:"),
          ("normed))                              # (B, H, R, D)\n        k, v = kv",
           "normed))\n        q = turn(q, asking)\n        k, v = kv"),
          ("        self.wpe = nn.Embedding(config.context, C)                               "
           "# of positions\n", ""),
          ("self.wte(tokens) + self.wpe(columns)", "self.wte(tokens)")]


def test_rotary_positions_are_a_change_of_at_most_15_lines(tiny, float64, monkeypatch):
    source = Path(model.__file__).read_text()
    changed = source
    for old, new in ROTARY:
        assert changed.count(old) == 1, old
        changed = changed.replace(old, new)
    before = source.splitlines()
    assert len([line for line in changed.splitlines() if line and line not in before]) <= 15
    rotary = types.ModuleType("rotary")
    monkeypatch.setitem(sys.modules, "rotary", rotary)
    exec(changed, rotary.__dict__)
    net, queries = talkative(tiny)
    turned, row = rotary.FastGPT(net.config), torch.arange(14)[None]
    turned.load_state_dict(net.state_dict(), strict=False)
    full, at = turned(row), torch.tensor([[13, 0, 7]])
    assert (full - net(row)).abs().max() > 0.1
    plain = rotary.GPT(net.config)
    plain.load_state_dict(net.state_dict(), strict=False)
    assert (plain(row) - full).abs().max() < 1e-12
    assert (turned(row, at=at) - full[:, at[0]]).abs().max() < 1e-12
    u = uniforms(0, "test", 0, range(len(queries)), 24)
    tokens, logps = generate(turned, queries, 24, 0.8, u)
    for i, query in enumerate(queries):
        said, logp = slowly(turned, query, 24, 0.8, u[i])
        assert tokens[i, :len(said)].tolist() == said
        np.testing.assert_allclose(logps[i, :len(said)], logp, atol=1e-10)


@pytest.mark.skipif(not FIXTURE.exists(), reason="shared fixtures are not here")
def test_logits_equal_hugging_faces_gpt2():
    known = json.loads((FIXTURE / "config.json").read_text())
    expected = np.load(FIXTURE / "expected.npz")
    theirs = torch.load(FIXTURE / "pytorch_model.bin", weights_only=True)
    net = model.build(ModelConfig(*(known[key] for key in (
        "vocab_size", "n_layer", "n_embd", "n_head", "n_positions")), activation="gelu"))
    C, turned = known["n_embd"], lambda w: w.mT if w.ndim == 2 else w   # theirs are (in, out)
    filled = {"wte.weight": net.wte.weight.data.clone(),
              "wpe.weight": theirs["transformer.wpe.weight"]}
    filled["wte.weight"][:net.config.n_vocab] = theirs["transformer.wte.weight"]
    names = {"norm_1": "ln_1", "norm_2": "ln_2", "attention.out": "attn.c_proj", "up": "mlp.c_fc",
             "down": "mlp.c_proj"}
    for layer in range(known["n_layer"]):
        their, our = f"transformer.h.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            for a, b in names.items():
                filled[our + a + "." + kind] = turned(theirs[their + b + "." + kind])
            qkv = turned(theirs[their + "attn.c_attn." + kind])         # (3 C, C) or (3 C,)
            filled[our + "attention.q." + kind] = qkv[:C]
            filled[our + "attention.kv." + kind] = qkv[C:]
            filled["norm." + kind] = theirs["transformer.ln_f." + kind]
    net.load_state_dict(filled)
    ours = net(torch.from_numpy(expected["tokens"])).detach().numpy()
    np.testing.assert_allclose(ours, expected["logits"], atol=1e-5)


@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_a_token_moves_nothing_before_it_and_something_from_it_on(float64, tiny, head):
    net = tiny(head=head)
    tokens = torch.arange(12)[None]
    before = net(tokens)
    for t in (0, 5, 11):
        changed = tokens.clone()
        changed[0, t] = 30
        after = net(changed)
        assert not t or (before - after)[:, :t].abs().max() < 1e-12
        assert all((before[0, i] - after[0, i]).abs().max() > 1e-4 for i in range(t, 12))


def test_padding_and_batch_mates_move_no_logit(tiny):
    net, together = tiny(), lay_out(QUERIES, RESPONSES, PAD).tokens
    logits = net(torch.nn.functional.pad(together, (0, 5), value=PAD))
    for i, row in enumerate(q + r for q, r in zip(QUERIES, RESPONSES, strict=True)):
        alone = net(torch.tensor([row]))[0]
        assert (logits[i, :len(row)] - alone).abs().max() < 1e-5


def test_padding_and_batch_mates_move_no_score(tiny):
    net = tiny(head="scalar")
    alone = torch.cat([score(net, [q], [r]) for q, r in zip(QUERIES, RESPONSES, strict=True)])
    assert (score(net, QUERIES, RESPONSES) - alone).abs().max() < 1e-5
    assert alone.std() > 0.1


def test_padding_and_batch_mates_move_no_loss(tiny):
    net = tiny()
    pairs = list(zip(QUERIES, RESPONSES, strict=True))
    alone = sum(nll(net, [pair]) for pair in pairs)
    rows = lay_out(QUERIES, RESPONSES, PAD, length=9)
    longer = -token_logp(net(rows.tokens, at=rows.columns), rows.targets)[rows.is_response].sum()
    assert abs(nll(net, pairs) - alone) < 1e-4 and abs(longer - alone) < 1e-4


def test_a_score_is_read_at_the_last_real_token(tiny):
    net = tiny(head="scalar")
    for q, r in zip(QUERIES, RESPONSES, strict=True):
        everywhere = net(torch.tensor([q + r]))[0]
        assert abs(score(net, [q], [r]) - everywhere[len(q) + len(r) - 1]) < 1e-5


def test_the_sum_head_reads_every_token_of_the_response_and_none_of_the_query(tiny):
    net = tiny(head="sum")
    for q, r in zip(QUERIES, RESPONSES, strict=True):
        x = net.embed(torch.tensor([q + r]), torch.arange(len(q + r)))
        for block in net.blocks:
            x = model.Block.forward(block, x)                          # the plain one
        said = net.norm(x)[0, len(q):].sum(0) / 10                     # (C,)
        by_hand = said @ net.head.weight[0] + net.head.bias[0]
        assert abs(score(net, [q], [r]) - by_hand) < 1e-5
    alone = torch.cat([score(net, [q], [r]) for q, r in zip(QUERIES, RESPONSES, strict=True)])
    assert (score(net, QUERIES, RESPONSES) - alone).abs().max() < 1e-5 and alone.std() > .01


@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_reading_some_columns_gives_the_numbers_of_the_full_forward(tiny, head):
    net = tiny(head=head)
    tokens = torch.randint(0, PAD, (3, 14), generator=torch.Generator().manual_seed(0))
    at = torch.tensor([[0, 13, 5, 5], [1, 2, 3, 4], [13, 0, 7, 12]])
    full = net(tokens)
    assert (net(tokens, at=at) - full[torch.arange(3)[:, None], at]).abs().max() < 1e-5


@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_the_plain_forward_equals_the_one_with_extras(tiny, head):
    net = tiny(head=head)
    tokens = torch.randint(0, PAD, (3, 14), generator=torch.Generator().manual_seed(0))
    plain, everywhere = net(tokens), torch.arange(14).expand(3, -1)

    def empty():
        return [torch.full((3, 2 * 2, 14, 8), math.nan) for _ in net.blocks]
    with torch.no_grad():
        assert torch.equal(plain, net(tokens, cache=(cache := empty())))
        assert all(kv.isfinite().all() for kv in cache)    # filled
        again = net(tokens, at=everywhere, cache=empty())
        last = net(tokens[:, -1:], new=everywhere[:, -1:], cache=cache)
    assert (plain - net(tokens, at=everywhere)).abs().max() < 1e-5
    assert (plain - again).abs().max() < 1e-5 and (plain[:, -1:] - last).abs().max() < 1e-5


def test_rows_are_laid_out_as_the_drawing_says():
    rows = lay_out([[5, 6, 7], [8]], [[1, 39], [2, 3, 4]], PAD)
    assert rows.tokens.tolist() == [[5, 6, 7, 1, 39], [8, 2, 3, 4, PAD]]
    assert rows.columns.tolist() == [[2, 3, 4], [0, 1, 2]]     # past its end: the last token
    assert rows.targets.tolist() == [[1, 39, PAD], [2, 3, 4]]
    assert rows.is_response.tolist() == [[True, True, False], [True, True, True]]
    assert rows.last.tolist() == [[4], [3]]


def teacher_forced(net, queries, responses, temperature):
    """Log-probs of the response tokens by the full forward, and which are real."""
    rows = lay_out(queries, responses, PAD)
    logits = net(rows.tokens, at=rows.columns)
    return token_logp(logits, rows.targets, temperature).detach(), rows.is_response


def test_log_probs_are_the_log_softmax_at_each_response_token(tiny):
    net, temperature = tiny(), 0.7
    ours, _ = teacher_forced(net, QUERIES, RESPONSES, temperature)
    for i, (q, r) in enumerate(zip(QUERIES, RESPONSES, strict=True)):
        logits = numpy_decoder(net, [q + r])[0] / temperature
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = [logp[len(q) - 1 + t, token] for t, token in enumerate(r)]
        np.testing.assert_allclose(ours[i, :len(r)], expected, atol=2e-5)


def test_more_tokens_than_the_context_are_a_problem(tiny):
    net = tiny(context=8)
    net(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(Problem, match="9 tokens .* context of 8"):
        net(torch.zeros(1, 9, dtype=torch.long))
    assert generate(net, [[1, 2, 3]], 5)[0].shape == (1, 5)
    with pytest.raises(Problem, match="context of 8"):
        generate(net, [[1, 2, 3]], 6)


# ------------------------------------------------------------------------------------- generation

def talkative(tiny):
    """A network and 16 queries; some rows end at once, some later, some never."""
    net = tiny(context=64)
    with torch.no_grad():
        eot = net.wte.weight[EOT]
        net.norm.bias += 3.6 * eot / eot.norm()
    draw = np.random.default_rng(1)
    return net, [draw.integers(0, EOT, n).tolist() for n in draw.integers(1, 12, 16)]


def slowly(net, query, length, temperature, u):
    """Generation without a cache: the whole row through the network for every token."""
    row, logps = list(query), []
    for t in range(length):
        logits = net(torch.tensor([row]))[0, -1].detach().numpy().astype(float) / temperature
        logp = logits - logits.max()
        logp -= math.log(np.exp(logp).sum())
        if u is None:
            token = int(logp.argmax())
        else:
            total, token = 0.0, -1
            while total <= u[t]:
                token += 1
                total += math.exp(logp[token])
        row.append(token)
        logps.append(logp[token])
        if token == EOT:
            break
    return row[len(query):], logps


@pytest.mark.parametrize("look_every, together", [(1, 3), (4, 16)])
@pytest.mark.parametrize("sampled", [False, True])
def test_cached_generation_equals_uncached_token_for_token(tiny, float64, sampled, look_every, together):
    length = 24
    net, queries = talkative(tiny)
    u = uniforms(0, "test", 0, range(len(queries)), length) if sampled else None
    tokens, logps = generate(net, queries, length, 0.8, u, look_every, together)
    ends = []
    for i, query in enumerate(queries):
        row, logp = slowly(net, query, length, 0.8, None if u is None else u[i])
        ends.append(len(row))
        assert tokens[i].tolist() == row + [PAD] * (length - len(row))
        np.testing.assert_allclose(logps[i, :len(row)], logp, atol=1e-10)
        assert (logps[i, len(row):] == 0).all()
        alone = generate(net, [query], length, 0.8, None if u is None else u[i:i + 1], look_every)
        assert torch.equal(alone[0][0], tokens[i])
    assert length in ends and len(set(ends)) >= 4 and sum(n < 8 for n in ends) >= 5   # it compacted


def test_finished_rows_leave_the_batch(tiny, monkeypatch):
    net, queries = talkative(tiny)
    rows = []
    forward = net.forward
    monkeypatch.setattr(net, "forward", lambda x, **kw: (rows.append(len(x)), forward(x, **kw))[1])
    tokens, _ = generate(net, queries, 24, 1.0, uniforms(0, "test", 0, range(16), 24), look_every=1)
    assert rows[0] == 16 and rows[-1] < 8 and rows == sorted(rows, reverse=True)
    assert len(rows) <= int((tokens != PAD).sum(1).max()) + 1


def test_what_memory_held_before_reaches_no_row(tiny):
    net, queries = talkative(tiny)
    expected = generate(net, queries, 24)
    torch.use_deterministic_algorithms(True)         # memory asked for empty now comes full of NaN
    try:
        assert torch.empty(3).isnan().all()
        assert all(map(torch.equal, generate(net, queries, 24), expected))
    finally:
        torch.use_deterministic_algorithms(False)


def test_generations_log_probs_are_those_of_the_full_forward(tiny):
    net, queries = talkative(tiny)
    tokens, logps = generate(net, queries, 24, 0.7, uniforms(0, "test", 0, range(16), 24))
    responses = [[token for token in row if token != PAD] for row in tokens.tolist()]
    again, real = teacher_forced(net, queries, responses, 0.7)
    assert (again - logps[:, :again.shape[1]])[real].abs().max() < 1e-5


def test_sampling_frequencies_match_softmax(tiny):
    logits = 2 * torch.randn(1, 30, generator=torch.Generator().manual_seed(0)).double()
    n = 200_000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n          # u on a grid: exact to 1 / n
    tokens, logp = choose(logits.expand(n, -1), 0.7, grid)
    z = (logits[0] / 0.7).numpy()
    expected = np.exp(z) / np.exp(z).sum()
    seen = np.bincount(tokens, minlength=30) / n
    assert np.abs(seen - expected).max() <= 2 / n
    np.testing.assert_allclose(logp, np.log(expected)[tokens], atol=1e-12)


def test_extreme_numbers_choose_no_impossible_token():
    ends = torch.tensor([0.0, np.nextafter(1, 0)], dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        for _ in range(200):
            logits = 3 * torch.randn(2, 50, generator=draw, dtype=dtype)
            logits[:, :3], logits[:, -3:] = -1e4, -math.inf
            token, logp = choose(logits, 0.7, ends)
            assert ((token >= 3) & (token < 47)).all() and logp.isfinite().all()


def test_the_padding_id_is_never_generated(tiny):
    net = tiny()
    with torch.no_grad():                          # padding's row would win every comparison
        net.wte.weight[EOT + 1:] = 100.0
    assert net(torch.zeros(1, 1, dtype=torch.long)).shape[-1] == PAD
    tokens, logps = generate(net, QUERIES, 6)
    for row in tokens.tolist():
        said = row[:row.index(EOT) + 1] if EOT in row else row
        assert max(said) <= EOT and set(row[len(said):]) <= {PAD}
    assert logps.isfinite().all()


# -------------------------------------------------------------------------------- sizes and files

def test_init_has_the_papers_variances():
    config = ModelConfig(500, 3, 64, 2, 200, "scalar")
    heads = torch.cat([model.build(config, seed).head.weight[0] for seed in range(40)])
    assert abs(heads.var() * 65 - 1) < 0.1         # N(0, 1 / (C + 1)), appendix B.1: 2560 numbers
    net = model.build(config)
    assert net.head.bias.item() == 0
    for p, var in ((net.wte.weight, 1 / 64), (net.wpe.weight, 1 / 6400),
                   (net.blocks[1].up.weight, 1 / 64),
                   (net.blocks[0].attention.kv.weight, 1 / 64),
                   (net.blocks[2].down.weight, 1 / (2 * 3 * 256))):
        assert abs(p.var() / var - 1) < 0.1 and abs(p.mean()) < 4 * (var / p.numel()) ** 0.5
    assert torch.equal(net.wte.weight, model.build(config).wte.weight)
    assert not torch.equal(net.wte.weight, model.build(config, 1).wte.weight)


@pytest.mark.parametrize("name, billions", [
    ("gpt2", 0.124), ("gpt2-xl", 1.558), ("1.3b", 1.3), ("3b", 2.7), ("6.7b", 6.7), ("13b", 13.0),
    ("toy", None), ("laptop", None)])
def test_sizes_have_the_parameters_of_their_names(name, billions):
    size, config = SIZES[name], sized(name, 50257)
    with torch.device("meta"):
        count = sum(p.numel() for p in model.GPT(config).parameters())
    C = size.width
    assert count == size.layers * (12 * C * C + 13 * C) + 2 * C + (config.rows + size.context) * C
    assert config.rows % 64 == 0 and config.rows > 50257 and size.width % size.heads == 0
    if billions:
        assert abs(count / 1e9 / billions - 1) < 0.03


def test_an_unknown_size_is_a_problem():
    with pytest.raises(Problem, match="6.8b"):
        sized("6.8b", 100)


def write(folder, net):
    save_tensors(folder / "model.pt", net.state_dict())
    write_config(folder / "config.json", net.config, model=asdict(net.config))


def test_a_checkpoint_comes_back_as_it_was(tiny, tmp_path):
    net = tiny()
    write(tmp_path, net)
    same = load_model(tmp_path)
    assert same.config == net.config
    assert all(map(torch.equal, net.state_dict().values(), same.state_dict().values()))
    assert not list(tmp_path.glob("*.part"))
    grown = load_model(tmp_path, head="scalar", seed=3)          # the reward model's start
    assert torch.equal(grown.blocks[1].up.weight, net.blocks[1].up.weight)
    assert grown(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4)
    other = load_model(tmp_path, head="scalar", seed=4)
    assert not torch.equal(grown.head.weight, other.head.weight)


def test_a_bad_checkpoint_is_a_problem_naming_the_file(tiny, tmp_path):
    def fails(match):
        with pytest.raises(Problem, match=match) as caught:
            load_model(tmp_path)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)

    fails("config.json is missing")
    write(tmp_path, tiny())
    whole = (tmp_path / "model.pt").read_bytes()
    for part in (whole[:len(whole) // 2], whole[:-1000], b"", b"not a checkpoint"):
        (tmp_path / "model.pt").write_bytes(part)
        fails("model.pt is damaged")
    save_tensors(tmp_path / "model.pt", tiny(width=32).state_dict())
    fails("model.pt does not fit: .* another size")
    save_tensors(tmp_path / "model.pt", tiny(layers=1).state_dict())
    fails("model.pt does not fit")
    save_tensors(tmp_path / "model.pt", tiny(head="scalar").state_dict())
    fails("model.pt does not fit: head")
    (tmp_path / "model.pt").unlink()
    fails("model.pt is missing")
    (tmp_path / "config.json").write_text("{")
    fails("config.json is damaged")
    (tmp_path / "config.json").write_text("{}")
    fails("does not describe a network")


def test_a_checkpoint_holds_plain_cpu_tensors_and_nothing_else(tiny, tmp_path):
    write(tmp_path, tiny())
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(type(w) is torch.Tensor and w.device.type == "cpu" and not w.requires_grad
               for w in weights.values())


def test_the_examples_in_the_docstrings_are_true():
    for rows in ([7, 8], [8]):
        shown = re.escape(f'uniforms(0, "rollout", 3, {rows}, 2)') + r" +(\[\[.*\]\])"
        numbers = json.loads(re.search(shown, uniforms.__doc__)[1])
        np.testing.assert_allclose(uniforms(0, "rollout", 3, rows, 2), numbers, atol=0.005)
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert "u = .6 gives token 1, as do 30 %" in choose.__doc__
    assert choose(logits, 1.0, torch.tensor([0.6], dtype=torch.float64))[0].item() == 1
    tokens, logp = choose(logits.expand(1000, -1), 1.0, grid)
    assert np.bincount(tokens).tolist() == [500, 300, 200]
    assert abs(logp[tokens == 1][0].exp() - 0.3) < 1e-6


def test_generation_draws_nothing_from_a_global_generator(tiny):
    net = tiny()
    state = torch.get_rng_state()
    u = generator(0, "test").random((4, 6))
    torch.manual_seed(7)
    a = generate(net, QUERIES, 6, 1.0, u)[0]
    torch.manual_seed(8)
    assert torch.equal(a, generate(net, QUERIES, 6, 1.0, u)[0])
    torch.set_rng_state(state)


def test_a_foreign_model_file_or_config_is_a_problem(tmp_path):
    config = ModelConfig(n_vocab=20, layers=1, width=8, heads=2, context=16)
    (tmp_path / "config.json").write_text(json.dumps({"model": asdict(config)}))
    torch.save(torch.zeros(3), tmp_path / "model.pt")
    with pytest.raises(Problem, match="model.pt does not hold named tensors"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": {"depth": 3}}))
    with pytest.raises(Problem, match="config.json does not describe"):
        load_model(tmp_path)
