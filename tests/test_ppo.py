"""Chapter 8: every formula against a loop, and the whole against an answer known exactly."""
import ast
import dataclasses
import itertools
import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_sft import Killed, kill_at, log_of, weights_of

import data
import model
import ppo
from model import load_model
from ppo import gae, policy_loss, roll_out, token_rewards, update, value_loss, whiten
from runtime import Common, Problem, adam, config_of
from runtime.files import save_tensors
from sample import load_checkpoint
from tools.tokenizer import train_tokenizer

PAD, EOT = 40, 39                                  # of the tiny networks, which speak 40 tokens
QUERIES = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3], [5], [8, 9, 7, 9], [3, 2], [3, 8, 4, 6], [2, 6, 4]]
R = 6


def config(**more):
    return ppo.Config(**{**dict(response_length=R, batch=8, rollout_batch=8, micro_batch=8,
                                kl_coef=0.1, lr=1e-2, temperature=0.7), **more})


@pytest.fixture
def networks(tiny):
    """Policy, reference, critic and reward model, no two alike; rows end after 1 to 6 tokens."""
    nets = tiny(seed=0), tiny(seed=0), tiny(head="scalar", seed=2), tiny(head="scalar", seed=3)
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for net in nets[:2]:
            eot = net.wte.weight[EOT]
            net.norm.bias += 3.6 * eot / eot.norm()
        for p in nets[0].parameters():
            p += 0.05 * torch.randn(p.shape, generator=draw, dtype=p.dtype)
    return nets


@pytest.fixture
def rolled(networks, world):
    """The networks and one rollout of theirs."""
    rollout = roll_out(*networks, QUERIES, range(8), 0, config(), world)
    lengths = rollout.is_response.sum(1)
    assert 1 <= lengths.min() < lengths.max() == R and (rollout.tokens[:, -1] == PAD).any()
    return networks, rollout


def clone(net):
    twin = model.FastGPT(net.config)
    twin.load_state_dict(net.state_dict())
    return twin


def learn(networks, rollout, world, **more):
    """Copies of policy and critic after one update, and what the log would say."""
    return descend(networks, weighed(rollout, config(**more)), world, **more)


def weighed(rollout, cfg):
    """A rollout with its advantages and returns, as ppo.train computes them."""
    advantage, returns = gae(token_rewards(rollout, cfg.kl_coef), rollout.value, ppo.GAMMA, ppo.LAMBDA)
    return rollout._replace(advantage=whiten(advantage, rollout.is_response), returns=returns)


def descend(networks, rollout, world, **more):
    """Copies of policy and critic after one update from a weighed rollout, and its numbers."""
    cfg, trained = config(**more), {"policy": clone(networks[0]), "critic": clone(networks[2])}
    optimizer = adam(list(trained.values()), eps=1e-5)
    return trained, update(*trained.values(), optimizer, rollout, cfg.lr, 0, cfg, world)


def said_of(rollout, cfg):
    """The log's numbers of a rollout."""
    return ppo.statistics(weighed(rollout, cfg), cfg, EOT)


def naive_rows(rollout):
    """(query, response) of each row, read off the tokens themselves."""
    for query, row in zip(QUERIES, rollout.tokens.tolist(), strict=True):
        response = row[len(query):len(query) + R]
        if EOT in response:
            response = response[:response.index(EOT) + 1]
        assert row[:len(query)] == query and len(response) >= 1 and PAD not in response
        yield query, response


def naive_logp(net, query, response, temperature):
    """Log-probs of a response, the row alone, without `at`. (r,)"""
    logp = (net(torch.tensor([query + response]))[0] / temperature).log_softmax(-1)
    return torch.stack([logp[len(query) - 1 + t, token] for t, token in enumerate(response)])


# ----------------------------------------------------------------------- advantages and rewards

def padded(lengths, seed=0):
    """Random (B, R) float64 that is 0 at padding, and which are real."""
    real = torch.arange(R)[None] < torch.tensor(lengths)[:, None]
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(len(lengths), R, generator=draw, dtype=torch.float64) * real, real


def test_the_example_at_the_top_is_what_the_functions_give():
    table = {}
    for text in ppo.__doc__.splitlines():
        name, *numbers = re.split(r"  +", text.strip())
        if name in ("l[t]", "reward[t]", "value[t]", "delta[t]", "A[t]", "return[t]"):
            table[name] = torch.tensor([[float(x) for x in numbers[-3:]] + [0.0]])      # and a pad
    real = torch.tensor([[True, True, True, False]])
    zero = torch.zeros(1, 4)
    rollout = ppo.Rollout(zero, zero, zero, real, old_logp=table["l[t]"], ref_logp=zero,
                          value=table["value[t]"], score=torch.tensor([2.0]))
    reward = token_rewards(rollout, 0.05)
    delta, _ = gae(reward, rollout.value, 1.0, 0.0)                # at lambda 0, A[t] is delta[t]
    advantage, returns = gae(reward, rollout.value, ppo.GAMMA, ppo.LAMBDA)
    for name, ours in (("reward[t]", reward), ("delta[t]", delta), ("A[t]", advantage),
                       ("return[t]", returns)):
        assert torch.allclose(ours, table[name], atol=0.005), name
    assert len(table) == 6
    assert advantage[0, 0].item() == pytest.approx(0.18 + 0.95 * 0.31 + 0.95 ** 2 * 0.495, abs=1e-6)
    prompt = [3, 4, 5]
    rows = model.lay_out([prompt], [[7, 8, EOT]], PAD, 4)          # a query, "He quit <|endoftext|>"
    assert rows.columns[0, :3].tolist() == [2, 3, 4]               # n - 1, n, n + 1
    assert rows.tokens[0, 3:].tolist() == rows.targets[0, :3].tolist() == [7, 8, EOT]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0), (1.0, 1.0)])
def test_gae_is_the_double_sum(gamma, lam):
    lengths = [6, 1, 3, 5]
    (reward, _), (value, _) = padded(lengths), padded(lengths, 1)
    advantage, returns = gae(reward, value, gamma, lam)
    for i, n in enumerate(lengths):
        v = [*value[i, :n].tolist(), 0.0]
        delta = [reward[i, t].item() + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(R):
            expected = sum((gamma * lam) ** k * delta[t + k] for k in range(max(0, n - t)))
            assert advantage[i, t].item() == pytest.approx(expected, abs=1e-12)
            expected += v[t] if t < n else 0
            assert returns[i, t].item() == pytest.approx(expected, abs=1e-12)


def test_without_critic_or_discount_the_advantage_is_the_reward_to_go():
    reward, _ = padded([6, 2, 4])
    advantage, returns = gae(reward, torch.zeros_like(reward), 1.0, 1.0)
    to_go = torch.tensor([[row[t:].sum() for t in range(R)] for row in reward])
    assert torch.allclose(advantage, to_go) and torch.equal(advantage, returns)


def test_rewards_of_a_summary_sum_to_score_minus_beta_times_log_ratio(rolled):
    _, rollout = rolled
    reward = token_rewards(rollout, 0.3)
    for i, (_, response) in enumerate(naive_rows(rollout)):
        n = len(response)
        ratio = (rollout.old_logp - rollout.ref_logp)[i, :n]
        assert ratio.abs().max() > 1e-3
        assert torch.allclose(reward[i].sum(), rollout.score[i] - 0.3 * ratio.sum(), atol=1e-5)
        assert torch.allclose(reward[i, :n - 1], -0.3 * ratio[:-1])       # the score is on the last
        assert (reward[i, n:] == 0).all()


def test_whitened_advantages_have_mean_0_and_variance_1_over_real_tokens():
    x, real = padded([6, 1, 3, 5])
    white = whiten(3 * x + 7, real)
    assert abs(white[real].mean()) < 1e-9 and white[real].pow(2).mean().item() == pytest.approx(1)
    assert (white[~real] == 0).all()
    assert torch.equal(whiten((3 * x + 7).masked_fill(~real, math.nan), real), white)
    assert torch.allclose(white[real].argsort(), x[real].argsort())


# ----------------------------------------------------------------------------------------- losses

def test_the_policy_loss_is_the_loop_over_tokens():
    draw = np.random.default_rng(0)
    logp, old, advantage = draw.normal(-2, 0.3, 60), draw.normal(-2, 0.3, 60), draw.normal(size=60)
    total, clipped = 0.0, 0
    for new, before, a in zip(logp, old, advantage, strict=True):
        ratio = math.exp(new - before)
        held = min(max(ratio, 0.8), 1.2)
        total += max(-a * ratio, -a * held)
        clipped += -a * held > -a * ratio
    loss, is_flat = policy_loss(*map(torch.from_numpy, (logp, old, advantage)), 0.2)
    assert loss.sum().item() == pytest.approx(total, rel=1e-12) and is_flat.sum() == clipped
    assert 5 < clipped < 55


def test_the_value_loss_is_the_loop_over_tokens():
    draw = np.random.default_rng(1)
    value, old, returns = draw.normal(size=(3, 60))
    total = 0.0
    for v, before, goal in zip(value, old, returns, strict=True):
        held = min(max(v, before - 0.2), before + 0.2)
        total += 0.5 * max((v - goal) ** 2, (held - goal) ** 2)
    loss = value_loss(*map(torch.from_numpy, (value, old, returns)), 0.2)
    assert loss.sum().item() == pytest.approx(total, rel=1e-12)


def test_a_clipped_token_has_no_gradient():
    logp = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    loss, _ = policy_loss(logp, torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.2)
    loss.sum().backward()
    assert (logp.grad != 0).tolist() == [False, True, True, False]


def test_the_four_cases_of_the_policy_loss_are_those_of_its_docstring():
    found = re.findall(r"^ +(-?1) +(\.5|1\.5) .*?(-?\d?\.\d) +(-?\d?\.\d) +(flat|raises|lowers)",
                       policy_loss.__doc__, re.MULTILINE)
    assert len(found) == 4
    for a, ratio, plain, clipped, then in found:
        a, ratio, plain, clipped = map(float, (a, ratio, plain, clipped))
        logp = torch.tensor([math.log(ratio)], requires_grad=True)
        loss, flat = policy_loss(logp, torch.zeros(1), torch.tensor([a]), 0.2)
        loss.backward()
        assert plain == pytest.approx(-a * ratio)
        assert clipped == pytest.approx(-a * min(max(ratio, 0.8), 1.2))
        assert loss.item() == pytest.approx(max(plain, clipped))
        assert flat.item() == (then == "flat") == (logp.grad.item() == 0)
        if then != "flat":                                   # a step goes against the gradient
            assert (logp.grad.item() < 0) == (then == "raises")


def test_at_ratio_1_the_loss_has_the_gradient_of_the_policy_gradient():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    chosen, advantage = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])
    logp = logits.log_softmax(-1)[range(5), chosen]
    loss, _ = policy_loss(logp, logp.detach(), advantage, 0.2)
    ours, = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    plain, = torch.autograd.grad(-(advantage * logp).sum(), logits)           # - A grad log pi
    assert torch.allclose(ours, plain)


def test_one_number_taken_from_every_advantage_changes_no_mean_gradient():
    """Why whitened advantages may have mean 0: the mean of grad log pi, over pi, is 0."""
    logits = torch.randn(6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    advantage, logp = torch.arange(6.0), logits.log_softmax(-1)
    mean = [torch.autograd.grad((logp.exp().detach() * (advantage - taken) * logp).sum(), logits,
                                retain_graph=True)[0] for taken in (0.0, 2.5)]
    assert torch.allclose(*mean, atol=1e-6) and mean[0].abs().max() > 0.1


def test_a_minibatch_weighs_each_token_as_a_loop_would(rolled, world):
    (policy, _, critic, _), rollout = rolled
    moved, judge = clone(policy), clone(critic)
    with torch.no_grad():
        for p in [*moved.parameters(), *judge.parameters()]:
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    cfg = config()
    draw = torch.Generator().manual_seed(0)
    advantage, returns = torch.randn(2, 8, R, generator=draw)
    expected = torch.zeros(5)
    for i, (query, response) in enumerate(naive_rows(rollout)):
        n = len(response)
        logp = naive_logp(moved, query, response, cfg.temperature)
        value = judge(torch.tensor([query + response]))[0, len(query) - 1:-1]          # (n,)
        pi, clipped = policy_loss(logp, rollout.old_logp[i, :n], advantage[i, :n], 0.2)
        vf = value_loss(value, rollout.value[i, :n], returns[i, :n], 0.2)
        change = logp - rollout.old_logp[i, :n]
        expected += torch.stack([pi.sum(), vf.sum(), clipped.sum(), 0.5 * (change ** 2).sum(), change.abs().sum()])
    weighed = rollout._replace(advantage=advantage, returns=returns)
    sums = ppo.minibatch_loss(moved, judge, weighed, rollout.tokens.shape[1], R, cfg)
    assert list(sums) == ["policy_loss", "value_loss", "clip_fraction", "approx_kl", "rollout_mismatch"]
    assert [x.item() for x in sums.values()] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4)
    assert expected[2] > 3


# --------------------------------------------------------------------------------------- rollouts

def test_a_rollout_reads_each_network_where_the_drawing_says(rolled):
    (policy, reference, critic, reward), rollout = rolled
    scores = []
    for i, (query, response) in enumerate(naive_rows(rollout)):
        n, row = len(response), torch.tensor([query + response])
        assert rollout.is_response[i].tolist() == [t < n for t in range(R)]
        assert rollout.columns[i, :n].tolist() == list(range(len(query) - 1, len(query) - 1 + n))
        for net, ours in ((policy, rollout.old_logp), (reference, rollout.ref_logp)):
            assert (naive_logp(net, query, response, 0.7) - ours[i, :n]).abs().max() < 1e-5
        value = critic(row)[0, len(query) - 1:-1]            # before each token is seen
        assert (value - rollout.value[i, :n]).abs().max() < 1e-5
        scores.append(reward(row)[0, -1].item() if response[-1] == EOT else -1.0)
        assert rollout.targets[i].tolist() == response + [PAD] * (R - n)
        for ours in (rollout.old_logp, rollout.ref_logp, rollout.value):
            assert (ours[i, n:] == 0).all()
    assert rollout.score.tolist() == pytest.approx(scores, abs=1e-5)
    assert 0 < scores.count(-1.0) < 8


def test_a_summary_without_end_scores_what_missing_eot_says(networks, world):
    rollout = roll_out(*networks, QUERIES, range(8), 0, config(missing_eot=-7.5), world)
    unfinished = ~(rollout.tokens == EOT).any(1)
    assert 0 < unfinished.sum() < 8
    assert (rollout.score[unfinished] == -7.5).all() and (rollout.score[~unfinished] != -7.5).all()


def test_rollouts_do_not_depend_on_how_many_are_written_at_once(float64, networks, world):
    whole = roll_out(*networks, QUERIES, range(8), 5, config(), world)
    for at_once in (1, 3):
        parts = roll_out(*networks, QUERIES, range(8), 5, config(rollout_batch=at_once), world)
        assert torch.equal(parts.tokens, whole.tokens)
        assert torch.equal(parts.is_response, whole.is_response)
        for a, b in ((parts.old_logp, whole.old_logp), (parts.ref_logp, whole.ref_logp),
                     (parts.value, whole.value)):
            assert (a - b)[whole.is_response].abs().max() < 1e-12
        assert (parts.score - whole.score).abs().max() < 1e-12
    some = roll_out(*networks, QUERIES[4:], range(4, 8), 5, config(), world)     # other batch mates
    assert torch.equal(some.tokens, whole.tokens[4:, :some.tokens.shape[1]])
    again = roll_out(*networks, QUERIES, range(8), 6, config(), world)           # another step
    assert again.tokens.shape != whole.tokens.shape or not torch.equal(again.tokens, whole.tokens)


def test_the_log_says_what_a_loop_would(rolled):
    _, rollout = rolled
    said = said_of(rollout, config())
    rows = list(naive_rows(rollout))
    ratio = (rollout.old_logp - rollout.ref_logp).tolist()
    kl = np.mean([sum(ratio[i][:len(r)]) for i, (_, r) in enumerate(rows)])
    assert said["kl"] == pytest.approx(kl, rel=1e-5) and said["kl_k3"] >= 0
    assert said["reward"] == pytest.approx(rollout.score.mean().item() - 0.1 * kl, rel=1e-5)
    assert said["length"] == np.mean([len(r) for _, r in rows])
    assert said["eot_rate"] == np.mean([r[-1] == EOT for _, r in rows])
    logps = [x for i, (_, r) in enumerate(rows) for x in rollout.old_logp[i, :len(r)].tolist()]
    assert said["entropy"] == pytest.approx(-np.mean(logps), rel=1e-5)
    pairs = [list(itertools.pairwise(r)) for _, r in rows]
    again = sum(pair in row[:i] for row in pairs for i, pair in enumerate(row))
    assert said["repeated"] == pytest.approx(again / sum(map(len, pairs)))


def test_repeated_pairs_are_counted_within_each_summary(rolled):
    _, rollout = rolled
    keep, targets = torch.zeros_like(rollout.is_response), rollout.targets.clone()
    for row, text in ((0, [7, 8, 7, 8, 7]), (1, [7, 8, 9]), (2, [7])):
        keep[row, :len(text)], targets[row, :len(text)] = True, torch.tensor(text)
    some = rollout._replace(targets=targets, is_response=keep)
    some = ppo.Rollout(*(field[:3] for field in some if field is not None))
    assert said_of(some, config())["repeated"] == pytest.approx(2 / 6)    # 7 8, 8 7 again, of 4 + 2
    keep[:, 1:] = False
    assert said_of(some, config())["repeated"] == 0           # a single token repeats nothing


# ----------------------------------------------------------------------------------------- update

@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_before_the_first_update_nothing_has_moved(networks, world, temperature):
    policy, _, critic, reward = networks
    networks = policy, clone(policy), critic, reward
    cfg = config(temperature=temperature)
    rollout = roll_out(*networks, QUERIES, range(8), 0, cfg, world)
    said = said_of(rollout, cfg)
    assert abs(said["kl"]) < 1e-5 and abs(said["kl_k3"]) < 1e-9
    _, learned = learn(networks, rollout, world, epochs=1, temperature=temperature)
    assert learned["rollout_mismatch"] < 1e-5                     # |log ratio|: ratio = 1
    assert learned["approx_kl"] < 1e-10 and learned["clip_fraction"] == 0
    _, learned = learn(networks, rollout, world, epochs=4, temperature=temperature)
    assert learned["approx_kl"] > 1e-6


def test_an_update_descends(rolled, world):
    networks, rollout = rolled
    _, first = learn(networks, rollout, world, epochs=1, lr=1e-3)
    _, all_four = learn(networks, rollout, world, epochs=4, lr=1e-3)
    assert all_four["policy_loss"] < first["policy_loss"]
    assert all_four["value_loss"] < first["value_loss"]


def repadded(rollout, other):
    """The rollout with other tokens past the ends of the rows."""
    tokens = rollout.tokens.clone()
    for i, (query, response) in enumerate(naive_rows(rollout)):
        tokens[i, len(query + response):] = other
    assert not torch.equal(tokens, rollout.tokens)
    targets = rollout.targets.masked_fill(~rollout.is_response, other)
    return rollout._replace(tokens=tokens, targets=targets)


@pytest.mark.parametrize("other", [7, EOT, PAD + 5], ids=["a word", "eot", "another pad id"])
def test_what_stands_past_a_response_changes_no_loss_and_no_gradient(rolled, world, other):
    networks, rollout = rolled
    rollout = weighed(rollout, config())
    past, more = ~rollout.is_response, dict(minibatches=2, micro_batch=3)
    expected, said = descend(networks, rollout, world, **more)
    changed = repadded(rollout, other)._replace(**{               # and no number where nothing is
        name: getattr(rollout, name).masked_fill(past, math.nan)
        for name in ("old_logp", "ref_logp", "value", "advantage", "returns")})
    ours, says = descend(networks, changed, world, **more)
    assert says == said
    for name in expected:
        for a, b in zip(expected[name].parameters(), ours[name].parameters(), strict=True):
            assert torch.equal(a, b)


def test_micro_batches_change_no_weight(float64, rolled, world):
    networks, rollout = rolled
    expected, said = learn(networks, rollout, world, minibatches=2)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(
        expected["policy"].parameters(), networks[0].parameters(), strict=True))
    for micro in (1, 3):
        ours, says = learn(networks, rollout, world, minibatches=2, micro_batch=micro)
        assert says == pytest.approx(said, rel=1e-9)
        for name in expected:
            for a, b in zip(expected[name].parameters(), ours[name].parameters(), strict=True):
                assert (a - b).abs().max() < 1e-9


# -------------------------------------------------------- the right answer, known by enumeration

LENGTH, QUERY, END = 3, [0, 1], 3                 # four tokens; the last ends a sentence
SENTENCES = [words + (END,) * (n < LENGTH) for n in range(LENGTH + 1)
             for words in itertools.product(range(3), repeat=n)]  # 13 that end, 27 that do not


class Table(torch.nn.Module):
    """A reward model that looks its score up; of unfinished sentences it knows nothing."""

    def __init__(self, scores):
        super().__init__()
        self.scores, self.config = scores, SimpleNamespace(head="scalar")

    def forward(self, tokens, at):
        rows = zip(tokens.tolist(), at[:, 0].tolist(), strict=True)
        return torch.tensor([[self.scores.get(tuple(row[len(QUERY):end + 1]), math.nan)]
                             for row, end in rows])


def log_probabilities(net, temperature):
    """log pi(sentence | QUERY) of all 40 sentences, exactly. (40,) float64"""
    with torch.no_grad():
        return torch.stack([naive_logp(net, QUERY, list(s), temperature).double().sum()
                            for s in SENTENCES])


def kl(p, q):
    """KL(p || q) of two distributions given as log-probabilities, in nats."""
    return (p.exp() * (p - q)).sum().item()


@pytest.mark.parametrize("beta, temperature", [(0.6, 1.0), (0.4, 0.7)])
def test_ppo_finds_the_optimum_of_a_language_small_enough_to_enumerate(world, beta, temperature,
                                                                      monkeypatch):
    monkeypatch.setattr(ppo, "LAMBDA", 1.0)
    cfg = config(response_length=LENGTH, batch=256, epochs=2, minibatches=2, rollout_batch=256,
                 micro_batch=128, lr=1.5e-3, kl_coef=beta, temperature=temperature, seed=3)
    draw, iterations = np.random.default_rng(103), 100
    scores = {s: draw.normal() for s in SENTENCES if s[-1] == END}
    reward = torch.tensor([scores.get(s, cfg.missing_eot) for s in SENTENCES]).double()

    def network(head, seed):
        net = model.build(model.ModelConfig(4, 1, 32, 2, 8, head), seed)
        if head == "lm":
            net.wte.weight.data *= 0.4            # every sentence is tried now and then
        return net
    policy, reference, critic = network("lm", 3), network("lm", 3), network("scalar", 4)
    log_ref = log_probabilities(reference, temperature)
    best = (log_ref + reward / beta).log_softmax(0)        # pi* = pi_ref exp(r / beta) / Z
    assert log_ref.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert kl(log_ref, best) >= 1

    optimizer = adam([policy, critic], eps=1e-5)
    for step in range(iterations):
        rollout = roll_out(policy, reference, critic, Table(scores), [QUERY] * cfg.batch,
                           range(cfg.batch), step, cfg, world)
        update(policy, critic, optimizer, weighed(rollout, cfg), cfg.lr * (1 - step / iterations),
               step, cfg, world)
    assert kl(log_probabilities(policy, temperature), best) < 0.01


# ----------------------------------------------------------------------------------------- script

def line(supervised, reward_model, data_dir, out, more=""):
    return (f"--policy {supervised} --reward {reward_model} --data {data_dir} --query-length 80 "
            "--response-length 16 --episodes 48 --batch 8 --epochs 2 --minibatches 2 --lr 3e-3 "
            f"--temperature 1 --device cpu --out {out} {more}").split()


@pytest.fixture
def run_ppo(supervised, reward_model, data_dir, tmp_path):
    """run_ppo(name, more): runs the script into tmp_path / name, and returns that folder."""
    def run(name="run", more="", **other):
        where = dict(supervised=supervised, reward_model=reward_model, data_dir=data_dir)
        ppo.main(line(**{**where, **other}, out=tmp_path / name, more=more))
        return tmp_path / name
    return run


def timeless(log):
    """Log entries without what a clock said."""
    return [{k: v for k, v in entry.items() if "second" not in k} for entry in log]


def test_an_interrupted_run_resumes_bit_for_bit(run_ppo, tmp_path, monkeypatch):
    more = "--save-every 2 --snapshot-every 3"
    whole = run_ppo("whole", more)
    kill_at(monkeypatch, ppo, at=4 * 4 + 3)                        # in the middle of iteration 4
    with pytest.raises(Killed):
        run_ppo("broken", more)
    monkeypatch.undo()
    kept = sorted(p.name for p in (tmp_path / "broken" / "state").iterdir())
    assert kept == ["step-00000002", "step-00000004"]
    shutil.rmtree(tmp_path / "broken" / "state" / kept[1])         # go back further than needed
    broken = run_ppo("broken", more + " --resume")
    for name in ("model.pt", "critic.pt", "snapshots/step-000003.pt", "snapshots/step-000006.pt",
                 "snapshots/critic-000003.pt"):
        ours, theirs = weights_of(broken, name), weights_of(whole, name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    ours, theirs = timeless(log_of(broken)), timeless(log_of(whole))
    assert ours == theirs and [entry["step"] for entry in ours] == list(range(6))
    assert not (broken / "state").exists()


def test_more_episodes_or_another_beta_need_a_run_of_their_own(run_ppo):
    out = run_ppo("run")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for more, match in (("--episodes 80", "--episodes 48, not 80: type that, or choose another"),
                        ("--kl-coef 0.1", "--kl-coef 0.05, not 0.1")):
        with pytest.raises(Problem, match=match):
            run_ppo("run", f"--resume {more}")
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_every_promised_number_is_logged_and_the_first_kl_is_0(run_ppo):
    log = log_of(run_ppo())
    promised = {"score", "kl", "reward", "entropy", "approx_kl", "clip_fraction", "value_loss",
                "explained_variance", "return_mean", "length", "eot_rate", "rollout_seconds",
                "update_seconds", "rollout_tokens_per_second", "update_tokens_per_second", "lr",
                "episodes", "policy_loss", "rollout_mismatch", "seconds"}
    for entry in log:
        assert promised <= entry.keys() and all(map(math.isfinite, entry.values()))
        assert entry["rollout_mismatch"] < 1e-5
    assert abs(log[0]["kl"]) < 1e-4 and log[-1]["kl_k3"] > 1e-4
    assert log[-1]["episodes"] == 48
    assert [entry["lr"] for entry in log] == pytest.approx([3e-3 * (1 - i / 6) for i in range(6)])


def test_policy_and_critic_start_as_imitation_and_reward_model(run_ppo, supervised, reward_model):
    out = run_ppo(more="--lr 0")
    for ours, theirs in ((weights_of(out), weights_of(supervised)),
                         (weights_of(out, "critic.pt"), weights_of(reward_model))):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert load_model(out).config == load_model(supervised).config
    assert data.same_tokenizer(data.load_tokenizer(out), data.load_tokenizer(supervised))


def test_only_policy_and_critic_learn(run_ppo, supervised, reward_model, monkeypatch):
    seen = []

    def watch(policy, reference, critic, reward, *more):
        seen.append([[p.detach().clone() for p in net.parameters()]
                     for net in (policy, reference, critic, reward)])
        assert not any(p.requires_grad for net in (reference, reward) for p in net.parameters())
        return roll_out(policy, reference, critic, reward, *more)
    monkeypatch.setattr(ppo, "roll_out", watch)
    run_ppo()
    same = [all(map(torch.equal, a, b)) for a, b in zip(seen[0], seen[-1], strict=True)]
    assert same == [False, True, False, True]


def test_feedback_raises_the_score(run_ppo):
    log = log_of(run_ppo(more="--lr 5e-3 --episodes 768 --batch 32 --minibatches 4 --kl-coef 0.02"))
    first, last = (np.mean([entry["score"] for entry in part]) for part in (log[:2], log[-8:]))
    error = log[0]["score_std"] * (1 / 64 + 1 / 256) ** 0.5                 # of the difference
    assert last > first + 2.5 * error        # rounding alone moves it between 3.9 and 4.6 of them


def test_the_learning_rate_falls_linearly_to_0():
    assert [ppo.linear(step, 4, 1.0) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


# -------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("more, match", [
    ("--episodes 7", "at most --episodes 7"),
    ("--minibatches 9", "9 --minibatches"),
    ("--batch 46 --episodes 100", "batch of 46"),
    ("--query-length 150", "context of"),
    ("--data nowhere", "nowhere"),
    ("--policy nowhere", "nowhere"),
    ("--clip_ratio 0.1", "clip_ratio"),
])
def test_flags_that_cannot_work_are_problems(run_ppo, tmp_path, more, match):
    with pytest.raises(Problem, match=match) as caught:
        run_ppo(more=more)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def knows_filled_posts(folder, copy, length=80):
    """A copy of a checkpoint folder whose network learned from posts filled up with spaces."""
    shutil.copytree(folder, copy)
    known = json.loads((copy / "config.json").read_text())
    known["flags"] |= {"fill": True, "query_length": length}
    (copy / "config.json").write_text(json.dumps(known))
    return copy


def test_ppo_fills_posts_as_policy_and_reward_model_know_them(run_ppo, supervised, reward_model,
                                                              tmp_path, monkeypatch):
    asked = []

    def watch(policy, reference, critic, reward, queries, *more):
        asked.extend(queries)
        return roll_out(policy, reference, critic, reward, queries, *more)
    monkeypatch.setattr(ppo, "roll_out", watch)
    both = dict(supervised=knows_filled_posts(supervised, tmp_path / "policy"),
                reward_model=knows_filled_posts(reward_model, tmp_path / "reward"))
    out = run_ppo(**both)
    space, = data.load_tokenizer(supervised).encode_ordinary(" ")
    assert all(len(query) == 80 and query[0] == space for query in asked) and len(asked) == 48
    assert config_of(out)["flags"]["fill"] and load_checkpoint(out).fill
    run_ppo(more="--resume", **both)                                 # as it was started
    asked.clear()
    assert not config_of(run_ppo("plain", "--episodes 8"))["flags"]["fill"]
    assert len({len(query) for query in asked}) > 1


def test_policy_and_reward_model_that_know_other_posts_are_a_problem(run_ppo, supervised,
                                                                     reward_model, tmp_path):
    policy = knows_filled_posts(supervised, tmp_path / "policy")
    with pytest.raises(Problem, match=r"with spaces to 0 or 80 tokens \(0: not filled\): .* a reward model that was trained"):
        run_ppo(supervised=policy)
    with pytest.raises(Problem, match="with spaces to 70 or 80 tokens"):
        run_ppo(supervised=policy,
                reward_model=knows_filled_posts(reward_model, tmp_path / "short", 70))


def test_swapped_networks_are_a_problem(run_ppo, supervised, reward_model):
    with pytest.raises(Problem, match="swapped"):
        run_ppo(supervised=reward_model, reward_model=supervised)
    with pytest.raises(Problem, match="swapped"):
        run_ppo(reward_model=supervised)


def test_different_tokenizers_are_a_problem(run_ppo, reward_model, data_dir, tmp_path):
    other = shutil.copytree(reward_model, tmp_path / "other")
    texts = [text[::-1] for text in data.full_texts(data_dir)]     # as many tokens, other ones
    data.save_tokenizer(train_tokenizer(texts, 300), other)
    with pytest.raises(Problem, match="different tokenizers"):
        run_ppo(reward_model=other)


@pytest.mark.parametrize("value, match", [
    (math.nan, "sick/model.pt: weight head.weight is not finite"),
    (3e38, "step 0: the reward model's score is not finite")], ids=["a weight", "the score"])
def test_a_reward_model_that_says_nan_is_a_problem(run_ppo, reward_model, tmp_path, value, match):
    sick = shutil.copytree(reward_model, tmp_path / "sick")
    weights = weights_of(sick)
    weights["head.weight"].fill_(value)
    weights["norm.bias"].fill_(9.0)
    save_tensors(sick / "model.pt", weights)
    with pytest.raises(Problem, match=match):
        run_ppo(reward_model=sick)


@pytest.mark.parametrize("field, match", [
    ("score", "step 3: the reward model's score is not finite"),
    ("value", "step 3: the gradient"), ("old_logp", "step 3: the gradient")])
def test_a_number_that_is_not_finite_stops_and_leaves_the_last_state(run_ppo, tmp_path, monkeypatch,
                                                                    field, match):
    def sick(*args):
        rollout = roll_out(*args)
        if args[6] == 3:
            getattr(rollout, field)[0] = math.nan
        return rollout
    monkeypatch.setattr(ppo, "roll_out", sick)
    with pytest.raises(Problem, match=match):
        run_ppo("broken", "--save-every 1")
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "broken" / "state").iterdir())[-1] == "step-00000003"
    last = log_of(tmp_path / "broken")[-1]
    assert (last["step"], last["event"]) == (3, "stopped") and last["why"].startswith(match)
    assert not (tmp_path / "broken" / "model.pt").exists()
    if field == "score":
        ours, theirs = weights_of(run_ppo("broken", "--resume")), weights_of(run_ppo("whole"))
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_gold_judge_is_out_of_reach():
    for node in ast.walk(ast.parse((ROOT / "ppo.py").read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"toy", "gold", "evaluate", "label"}


def test_posts_need_no_summary_here(run_ppo, data_dir, tmp_path):
    posts = [json.loads(text) for text in (data_dir / "train.jsonl").read_text().splitlines()]
    (tmp_path / "bare").mkdir()
    with open(tmp_path / "bare" / "train.jsonl", "w") as f:
        for post in posts:
            post.pop("summary")
            f.write(json.dumps(post) + "\n")
    same = run_ppo("same", "--episodes 8")
    bare = run_ppo("run", "--episodes 8", data_dir=tmp_path / "bare")
    assert timeless(log_of(same)) == timeless(log_of(bare))


def test_no_flag_is_without_effect():
    wanted = {field.name for field in dataclasses.fields(ppo.Config)}
    files = [ROOT / "ppo.py", *(ROOT / "runtime").glob("*.py")]
    used = {file.name: {node.attr for node in ast.walk(ast.parse(file.read_text()))
                        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "cfg"}
            for file in files}
    assert wanted - {"save_every"} <= set().union(*used.values())           # self.cfg.save_every
    assert used["ppo.py"] <= wanted


def test_the_chapter_has_17_flags_of_its_own():
    assert len(dataclasses.fields(ppo.Config)) - len(dataclasses.fields(Common)) == 17
