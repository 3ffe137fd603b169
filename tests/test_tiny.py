"""The method in one file, docs/tutorial/tiny.py: its functions are the chapters', and it learns."""
import ast
import importlib.util
import random
import sys

import pytest
import torch
from conftest import ROOT

import model
import ppo
import reward

PATH = ROOT / "docs" / "tutorial" / "tiny.py"
SOURCE = PATH.read_text()
LENGTHS = [1, 2, 5, 3]                              # words of some responses, <end> included


@pytest.fixture
def tiny():
    """The file as a module of its own, so that a test may change its constants."""
    spec = importlib.util.spec_from_file_location("tiny", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    random.seed(0)
    torch.manual_seed(0)
    return module


def numbers(count, seed=0):
    """`count` tensors (4, 5), and which of their entries are real."""
    draw = torch.Generator().manual_seed(seed)
    is_response = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    return [torch.randn(4, 5, generator=draw) * is_response for _ in range(count)], is_response


def rollout(tiny, count=8):
    """Rows of posts and summaries, written by the example authors."""
    posts = [tiny.write_post() for _ in range(count)]
    return tiny.encode([[*post, *tiny.author_summary(post), "<end>"] for post in posts])


def same_in_the_chapter(tiny, network, outputs):
    """model.GPT with the weights of tiny's network."""
    head = "lm" if outputs > 1 else "scalar"
    config = model.ModelConfig(tiny.V, tiny.LAYERS, tiny.C, tiny.H, tiny.P + tiny.R, head, tied=False)
    chapter, C = model.GPT(config), tiny.C
    weights = {}
    for name, w in network.state_dict().items():
        name = name.replace(".out.", ".attention.out.")
        if ".qkv." in name:
            weights[name.replace("qkv", "attention.q")] = w[:C]
            weights[name.replace("qkv", "attention.kv")] = w[C:]
        else:
            weights[name] = w
    for name in ("wte.weight", "head.weight"):      # the chapter's tables have unused rows
        table = chapter.state_dict()[name].clone()
        table[:len(weights[name])] = weights[name]
        weights[name] = table
    if outputs == 1:
        weights["head.bias"] = torch.zeros(1)
    chapter.load_state_dict(weights)
    return chapter


# ---------------------------------------------------------------------------------------- the file

def test_it_has_at_most_250_lines_of_100_columns_and_imports_torch_only():
    lines = SOURCE.splitlines()
    assert len(lines) <= 250 and max(map(len, lines)) <= 100
    found = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module.split(".")[0])
    assert found - {"torch"} <= sys.stdlib_module_names - {"data"}
    assert "torch" in found


# --------------------------------------------------------------------- the same as in the chapters

@pytest.mark.parametrize("policy", [True, False])
def test_its_gpt_is_the_chapters(tiny, policy):
    outputs = tiny.V if policy else 1
    network, tokens = tiny.GPT(outputs), rollout(tiny)
    with torch.no_grad():
        for p in network.parameters():              # a forgotten bias or gain must be seen
            p.add_(.1 * torch.randn_like(p))
    mine, chapters = network(tokens), same_in_the_chapter(tiny, network, outputs)(tokens)
    assert mine.shape == (*tokens.shape, outputs)
    torch.testing.assert_close(mine if policy else mine[..., 0], chapters, atol=1e-5, rtol=1e-5)


def test_log_probs_are_the_chapters(tiny):
    policy, tokens = tiny.GPT(tiny.V), rollout(tiny)
    rows = tokens.tolist()
    queries = [row[:tiny.P] for row in rows]
    responses = [[token for token in row[tiny.P:] if token != tiny.PAD] for row in rows]
    laid = model.lay_out(queries, responses, tiny.PAD)
    assert torch.equal(laid.tokens, tokens)
    chapter = same_in_the_chapter(tiny, policy, tiny.V)
    logits = chapter(tokens).gather(1, laid.columns[..., None].expand(-1, -1, tiny.V))
    theirs, mine = model.token_logp(logits, laid.targets), tiny.log_probs(policy, tokens)
    real = laid.is_response
    assert torch.equal(real, tokens[:, tiny.P:] != tiny.PAD)
    torch.testing.assert_close(mine[real], theirs[real], atol=1e-5, rtol=1e-5)
    critic = tiny.GPT(1)
    last = laid.last[:, 0]
    assert torch.equal(tiny.score(critic, tokens), critic(tokens)[range(len(tokens)), last, 0])


def test_the_pairwise_loss_is_the_chapters(tiny):
    (chosen, rejected), _ = numbers(2)
    torch.testing.assert_close(tiny.pairwise_loss(chosen[:, 0], rejected[:, 0]),
                               reward.pairwise_loss(chosen[:, 0], rejected[:, 0]))


def test_the_rewards_of_tokens_are_the_chapters(tiny):
    (old_logp, ref_logp, value), is_response = numbers(3)
    score = torch.tensor([2., -1., .5, 0.])
    theirs = ppo.Rollout(None, None, None, is_response, old_logp, ref_logp, value, score)
    mine = tiny.token_rewards(old_logp, ref_logp, score, is_response, .3)
    torch.testing.assert_close(mine, ppo.token_rewards(theirs, .3))
    torch.testing.assert_close(mine.sum(1), score - .3 * (old_logp - ref_logp).sum(1))


def test_advantages_and_whitening_are_the_chapters(tiny):
    (earned, value), is_response = numbers(2)
    for lam in (0., .5, .95, 1.):
        mine, theirs = tiny.gae(earned, value, lam), ppo.gae(earned, value, 1., lam)
        torch.testing.assert_close(mine, theirs)
    before = earned.clone()
    torch.testing.assert_close(tiny.gae(earned, value), ppo.gae(earned, value, ppo.GAMMA, ppo.LAMBDA))
    assert torch.equal(before, earned)              # the rewards are not written over
    torch.testing.assert_close(tiny.whiten(mine[0], is_response), ppo.whiten(mine[0], is_response))


def test_the_policys_and_the_critics_losses_are_the_chapters(tiny):
    (logp, old_logp, advantage, value, returns), _ = numbers(5)
    flat = ppo.policy_loss(logp, old_logp, advantage, .2)[1]
    assert flat.any() and not flat.all()
    torch.testing.assert_close(tiny.policy_loss(logp, old_logp, advantage),
                               ppo.policy_loss(logp, old_logp, advantage, .2)[0])
    unclipped = ppo.value_loss(value, value + 1, returns, clip=1e9)
    torch.testing.assert_close(tiny.value_loss(value, returns), unclipped)


# -------------------------------------------------------------------------------------- the world

def test_the_docstrings_numbers_are_right(tiny):
    post, best = (tiny.__doc__.split(word)[1].split("   ")[1].split() for word in ("    post", "    best"))
    assert len(post) == tiny.P and best[:3] == tiny.best_summary(post) == ["milk", "eggs", "rice"]
    assert tiny.points(post, best[:3]) == 3
    assert tiny.points(post, "milk um eggs eggs".split()) == 0
    assert tiny.points(post, ["rice", "milk"]) == 0 and tiny.points(post, []) == 0
    network = tiny.GPT(tiny.V)
    assert 90_000 < sum(p.numel() for p in network.parameters()) < 110_000


def test_nothing_beats_the_best_summary_and_authors_are_mediocre(tiny):
    possible = earned = 0
    for _ in range(2000):
        post = tiny.write_post()
        best, author = tiny.best_summary(post), tiny.author_summary(post)
        assert len(post) == tiny.P and 2 <= len(best) <= 5 and len(author) < tiny.R
        assert tiny.points(post, author) <= tiny.points(post, best) == len(best)
        earned, possible = earned + tiny.points(post, author), possible + len(best)
    assert .35 < earned / possible < .45


def test_people_pick_by_bradley_and_terry(tiny, monkeypatch):
    summaries = iter([["milk", "eggs"], ["milk"]] * 2)      # one point more, and one point less
    post = ["milk", "eggs"] + ["um"] * (tiny.P - 2)

    def write(policy, posts):
        summary = next(summaries)
        tokens = tiny.encode([[*post, *summary, "<end>"] for post in posts])
        return torch.nn.functional.pad(tokens, (0, 3 - len(summary)), value=tiny.PAD)
    monkeypatch.setattr(tiny, "write_post", lambda: post)
    monkeypatch.setattr(tiny, "write", write)
    chosen, rejected = tiny.compare(None, 20_000)
    assert chosen.shape == rejected.shape and not (chosen == rejected).all(1).any()
    share = sum(len(words) == 2 for words in tiny.decode(chosen)) / 20_000
    assert abs(share - .881) < .01


# --------------------------------------------------------------------------------- padding, writing

def test_padding_moves_nothing(tiny):
    policy, critic, tokens = tiny.GPT(tiny.V), tiny.GPT(1), rollout(tiny)
    real = tokens[:, tiny.P:] != tiny.PAD
    assert not real.all()
    other = tokens.clone()
    other[tokens == tiny.PAD] = 3                   # something else stands there
    mine, theirs = tiny.log_probs(policy, tokens), tiny.log_probs(policy, other)
    torch.testing.assert_close(mine[real], theirs[real], atol=0, rtol=0)
    wider = torch.nn.functional.pad(tokens, (0, tiny.P + tiny.R - tokens.shape[1]), value=tiny.PAD)
    torch.testing.assert_close(tiny.score(critic, wider), tiny.score(critic, tokens), atol=1e-6, rtol=1e-5)
    for row, both in zip(tokens, tiny.score(critic, tokens), strict=True):      # alone, without any
        torch.testing.assert_close(tiny.score(critic, row[row != tiny.PAD][None])[0], both,
                                   atol=1e-6, rtol=1e-5)


def test_writing_ends_and_reading_gives_the_words_back(tiny):
    policy, posts = tiny.GPT(tiny.V), [tiny.write_post() for _ in range(50)]
    tokens = tiny.write(policy, posts)
    assert tokens.shape == (50, tiny.P + tiny.R) and torch.equal(tokens[:, :tiny.P], tiny.encode(posts))
    for row in tokens[:, tiny.P:].tolist():
        after = row[row.index(tiny.END) + 1:] if tiny.END in row else []
        assert set(after) <= {tiny.PAD} and (tiny.PAD in row) == bool(after)
    assert (tokens[:, tiny.P:] != tiny.PAD)[:, 0].all()
    best = [tiny.best_summary(post) for post in posts]
    rows = tiny.encode([[*post, *words, "<end>"] for post, words in zip(posts, best, strict=True)])
    assert tiny.decode(rows) == best


# --------------------------------------------------------------------------------------- it learns

def test_a_short_run_improves(tiny, monkeypatch):
    """Posts of four words, one or two of them things: the same program in some seconds."""
    def write_post():
        words = random.sample(tiny.THINGS, random.randint(1, 2))
        return random.sample(words + random.choices(tiny.CHATTER, k=4 - len(words)), 4)
    for name, value in dict(P=4, R=5, C=32, THINGS=tiny.THINGS[:4], write_post=write_post).items():
        monkeypatch.setattr(tiny, name, value)
    supervised = tiny.imitate(steps=250, batch=32)
    reward_model = tiny.train_reward_model(supervised, steps=80)
    before = {name: w.clone() for name, w in supervised.state_dict().items()}
    policy, kl = tiny.ppo(supervised, reward_model, iterations=15, batch=64)
    assert all(torch.equal(before[name], w) for name, w in supervised.state_dict().items())
    posts = [write_post() for _ in range(500)]
    possible = sum(map(tiny.points, posts, map(tiny.best_summary, posts)))
    imitated, learned = (sum(map(tiny.points, posts, tiny.decode(tiny.write(network, posts)))) / possible
                         for network in (supervised, policy))
    assert learned > imitated + .2 and 0 < kl < 10
