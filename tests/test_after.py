"""What came after: DPO is the pairwise loss of implicit rewards, RLOO a policy gradient without critic."""
import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_distributed import assert_alike, ranks
from test_ppo import (
    END,
    EOT,
    LENGTH,
    QUERY,
    SENTENCES,
    Table,
    kl,
    log_probabilities,
    naive_logp,
    timeless,
)
from test_sample import make_checkpoint, make_data
from test_sft import Killed, kill_at, log_of, weights_of

import evaluate
import model
import ppo
import sample
from docs.tutorial.after import compare, dpo, rloo
from reward import Pair, pairwise_loss
from runtime import Problem, adam, config_of
from runtime.health import examine, stage_of
from tools.overoptimisation import checkpoints

AFTER = ROOT / "docs" / "tutorial" / "after"
PAIRS = [Pair([3, 1, 4], [5, 6, EOT], [7, EOT]), Pair([1], [2, EOT], [9, 9, 8, EOT]),
         Pair([9, 2, 6, 5], [EOT], [3, 5, EOT])]


def numbers_after(doc, label):
    """The numbers of a docstring's table row that begins with this label."""
    row = next(row for row in doc.splitlines() if row.strip().startswith(label))
    return [float(x) for x in re.findall(r"-?\d*\.\d+|-?\d+(?= |$)", row.replace(label, "", 1))]


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("name", ["dpo", "rloo"])
def test_each_script_has_at_most_120_lines(name):
    assert len((AFTER / f"{name}.py").read_text().splitlines()) <= 120


# --------------------------------------------------------------------------------------------- DPO

def test_the_loss_of_dpo_on_numbers_by_hand():
    rows = re.findall(r"^ +(-?\d+) +(-?\d+) +(\.\d+) +(\.\d+) +(-?\.\d+) +\+(\.\d+)$", dpo.__doc__,
                      re.MULTILINE)
    assert len(rows) == 2
    for row in rows:
        chosen, rejected, difference, loss, *gradient = map(float, row)
        a, b = (torch.tensor([x], requires_grad=True) for x in (chosen, rejected))
        found = dpo.dpo_loss(a, b, 0.1)
        found.backward()
        assert 0.1 * (chosen - rejected) == pytest.approx(difference)
        assert math.log(1 + math.exp(-difference)) == pytest.approx(loss, abs=0.005)
        assert found.item() == pytest.approx(loss, abs=0.005)
        assert [a.grad.item(), b.grad.item()] == pytest.approx(gradient, abs=0.0005)


def test_log_ratios_are_those_of_whole_summaries_alone(tiny):
    policy, reference = tiny(seed=0), tiny(seed=1)
    chosen, rejected = dpo.log_ratios(policy, reference, PAIRS)
    for i, pair in enumerate(PAIRS):
        for ours, response in ((chosen[i], pair.chosen), (rejected[i], pair.rejected)):
            theirs = [naive_logp(net, pair.query, response, 1.0).sum() for net in (policy, reference)]
            assert ours.item() == pytest.approx((theirs[0] - theirs[1]).item(), abs=1e-4)


def test_the_gradient_of_dpo_is_that_of_the_pairwise_loss_with_the_implicit_reward(float64, tiny):
    """And what Rafailov et al. write: -beta sigmoid(r(rejected) - r(chosen)) grad log pi(c) / pi(r)."""
    policy, reference, beta = tiny(seed=0), tiny(seed=1).requires_grad_(False), 0.3
    ours = torch.autograd.grad(dpo.dpo_loss(*dpo.log_ratios(policy, reference, PAIRS), beta),
                               policy.parameters())

    def reward(query, response):
        return beta * (naive_logp(policy, query, response, 1.0)
                       - naive_logp(reference, query, response, 1.0)).sum()
    chosen, rejected = (torch.stack([reward(pair.query, getattr(pair, name)) for pair in PAIRS])
                        for name in ("chosen", "rejected"))
    pairwise = torch.autograd.grad(pairwise_loss(chosen, rejected), policy.parameters(),
                                   retain_graph=True)
    weights = torch.sigmoid(rejected - chosen).detach() / len(PAIRS)
    papers = torch.autograd.grad(-(weights * (chosen - rejected)).sum(), policy.parameters())
    assert flat(ours).norm() > 1e-3
    assert (flat(ours) - flat(pairwise)).norm() < 1e-10 * flat(ours).norm()
    assert (flat(ours) - flat(papers)).norm() < 1e-10 * flat(ours).norm()


def test_micro_batches_change_no_gradient_of_dpo(float64, tiny, world):
    reference, found = tiny(seed=1).requires_grad_(False), []
    for micro in (3, 2, 1):
        policy = tiny(seed=0)
        cfg = dpo.Config(batch=3, micro_batch=micro, beta=0.3)
        said = dpo.learn(policy, reference, PAIRS, cfg, world)
        found.append((flat(p.grad for p in policy.parameters()), said))
    assert all((grad - found[0][0]).norm() < 1e-12 for grad, _ in found[1:])
    assert all(said == pytest.approx(found[0][1], rel=1e-12) for _, said in found[1:])
    with torch.no_grad():
        before = flat(p.grad for p in policy.parameters())
        assert dpo.learn(policy, reference, PAIRS, cfg, world) == pytest.approx(found[0][1])
    assert torch.equal(flat(p.grad for p in policy.parameters()), before)


# -------------------------------------------------------------------------------------------- RLOO

def test_the_baselines_are_those_of_a_loop():
    total = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, grpo = rloo.leave_one_out(total), rloo.normalised(total)
    for p, row in enumerate(total.tolist()):
        for i, x in enumerate(row):
            others = [y for j, y in enumerate(row) if j != i]
            assert ours[p, i].item() == pytest.approx(x - np.mean(others), abs=1e-12)
            expected = (x - np.mean(row)) / (np.std(row, ddof=1) + 1e-4)
            assert grpo[p, i].item() == pytest.approx(expected, abs=1e-12)
    assert torch.allclose(ours, 4 / 3 * (total - total.mean(1, keepdim=True)))     # as its page says


def test_the_example_of_rloo_is_what_its_functions_give():
    total = torch.tensor([numbers_after(rloo.__doc__, "total       ")])
    others = torch.tensor([numbers_after(rloo.__doc__, "mean of the others   ")])
    assert total.shape == (1, 4)
    for label, ours in (("A      ", rloo.leave_one_out(total)),
                        ("A, --advantage grpo: (total - mean) / deviation", rloo.normalised(total))):
        assert torch.allclose(ours, torch.tensor([numbers_after(rloo.__doc__, label)]), atol=0.005)
    assert torch.allclose(total - others, rloo.leave_one_out(total), atol=0.005)


def language(seed=3, beta=0.6, missing=-1.0):
    """A language of 40 sentences: a scores' Table, a policy, its reference, all rewards (40,)."""
    draw = np.random.default_rng(103)
    scores = {s: draw.normal() for s in SENTENCES if s[-1] == END}
    reward = torch.tensor([scores.get(s, missing) for s in SENTENCES]).double()

    def network():
        net = model.build(model.ModelConfig(4, 1, 32, 2, 8), seed)
        net.wte.weight.data *= 0.4            # every sentence is tried now and then
        return net
    policy, reference = network(), network()
    best = (log_probabilities(reference, 1.0) + reward / beta).log_softmax(0)
    return Table(scores), policy, reference, reward, best


def rows_of(policy, reference, sentences, total):
    """A Rollout of given sentences, with their totals as returns, as if the policy had drawn them."""
    rows = model.lay_out([QUERY] * len(sentences), [list(s) for s in sentences], 4, LENGTH)
    with torch.no_grad():
        logps = [ppo.log_probs(net, rows, 1.0).masked_fill(~rows.is_response, 0)
                 for net in (policy, reference)]
    zero = torch.zeros_like(logps[0])
    return ppo.Rollout(*rows, *logps, zero, total, zero, zero)


def test_the_gradient_of_rloo_is_unbiased_for_every_two_sentences_of_a_language(float64, world, monkeypatch):
    """Over all 1,600 groups of two, each as likely as the policy makes it, the mean gradient of what
    `update` descends is exactly that of the mean total; GRPO's is not."""
    _, policy, reference, reward, _ = language()
    with torch.no_grad():
        for p in policy.parameters():         # away from the reference: the KL counts, too
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    log_ref = log_probabilities(reference, 1.0)
    log_pi = torch.stack([naive_logp(policy, QUERY, list(s), 1.0).sum() for s in SENTENCES])
    total = (reward - 0.6 * (log_pi - log_ref)).detach()                       # (40,)
    exact = flat(torch.autograd.grad((log_pi.exp() * (reward - 0.6 * (log_pi - log_ref))).sum(),
                                     policy.parameters(), retain_graph=True))

    cfg = rloo.Config(kl_coef=0.6, temperature=1.0, response_length=LENGTH, group=2, batch=3200, epochs=1,
                      minibatches=1, micro_batch=800, lr=0.0)
    first, second = (x.flatten() for x in torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij"))
    groups = torch.stack([first, second], 1)                                   # (1600, 2)
    weight = (log_pi[first] + log_pi[second]).exp().detach()[:, None]          # (1600, 1)
    sentences = [SENTENCES[i] for i in groups.flatten()]
    rollout = rows_of(policy, reference, sentences, reward[groups].flatten())
    earned = ppo.token_rewards(rollout, cfg.kl_coef).sum(1)
    assert torch.allclose(earned, total[groups].flatten(), atol=1e-9)
    caught = []

    def catch(networks, *_):
        caught.append(flat(p.grad.clone() for p in policy.parameters()))
        policy.zero_grad(set_to_none=True)
        return {"": 0.0}
    monkeypatch.setattr(rloo, "optimizer_step", catch)
    for advantage in (rloo.leave_one_out, rloo.normalised):
        # `update` takes a mean over 3,200 rows: times 1,600, the probabilities of the groups weigh them.
        spread = (1600 * weight * advantage(earned.view(-1, 2))).view(-1, 1).expand(-1, LENGTH)
        rloo.update(policy, None, rollout._replace(advantage=spread), 0.0, 0, cfg, world)
    ours, grpo = caught
    assert exact.norm() > 1e-3
    assert (ours + exact).norm() < 1e-8 * exact.norm()
    assert 1 - torch.cosine_similarity(grpo, -exact, 0) > 1e-3


def test_rloo_finds_the_optimum_of_the_language(world):
    table, policy, reference, _, best = language()
    cfg = rloo.Config(response_length=LENGTH, batch=256, group=4, epochs=2, minibatches=2, rollout_batch=256,
                      micro_batch=128, lr=1.5e-3, kl_coef=0.6, temperature=1.0, seed=3)
    optimizer, iterations = adam([policy], eps=1e-5), 100
    assert kl(log_probabilities(policy, 1.0), best) > 0.5
    for step in range(iterations):
        rollout = ppo.roll_out(policy, reference, rloo.nobody, table, [QUERY] * 256, range(256), step, cfg, world)
        advantage = rloo.leave_one_out(ppo.token_rewards(rollout, cfg.kl_coef).sum(1).view(-1, 4))
        advantage = advantage.view(-1, 1).expand_as(rollout.value)
        rloo.update(policy, optimizer, rollout._replace(advantage=advantage, returns=advantage),
                    cfg.lr * (1 - step / iterations), step, cfg, world)
    assert kl(log_probabilities(policy, 1.0), best) < 0.02


def test_dpo_finds_the_same_optimum_from_comparisons_alone(world):
    """Labels by Bradley and Terry, from the scores that RLOO sees. (With a quarter of them: 0.3.)"""
    _, policy, reference, reward, best = language()
    cfg, reference = dpo.Config(batch=512, micro_batch=512, beta=0.6), reference.requires_grad_(False)
    optimizer, rng, steps = adam([policy]), np.random.default_rng(0), 200
    assert kl(log_probabilities(policy, 1.0), best) > 0.5
    for step in range(steps):
        two = rng.integers(40, size=(512, 2))
        wins = rng.random(512) < 1 / (1 + np.exp((reward[two[:, 1]] - reward[two[:, 0]]).numpy()))
        pairs = [Pair(QUERY, list(SENTENCES[a]), list(SENTENCES[b]))
                 for a, b in np.where(wins[:, None], two, two[:, ::-1])]
        dpo.learn(policy, reference, pairs, cfg, world)
        dpo.optimizer_step({"grad_norm": policy}, optimizer, 3e-3 * (1 - step / steps), step)
    assert kl(log_probabilities(policy, 1.0), best) < 0.02


# ----------------------------------------------------------------------------------------- scripts

def dpo_line(supervised, comparisons, out, more=""):
    return (f"--policy {supervised} --comparisons {comparisons} --query-length 80 --response-length 16 "
            f"--batch 8 --lr 3e-3 --device cpu --out {out} {more}").split()


def rloo_line(supervised, reward_model, data_dir, out, more=""):
    return (f"--policy {supervised} --reward {reward_model} --data {data_dir} --query-length 80 "
            "--response-length 16 --episodes 48 --batch 8 --epochs 2 --minibatches 2 --lr 3e-3 "
            f"--temperature 1 --device cpu --out {out} {more}").split()


@pytest.fixture
def run(supervised, reward_model, comparisons, data_dir, tmp_path, monkeypatch):
    """run(script, name, more): runs dpo or rloo into tmp_path / name, and returns that folder."""
    monkeypatch.setattr(dpo, "LOG_EVERY", 1)
    monkeypatch.setattr(dpo, "WARMUP", 0)

    def act(script, name="run", more="", policy=supervised):
        out = tmp_path / name
        script.main(dpo_line(policy, comparisons, out, more) if script is dpo else
                    rloo_line(policy, reward_model, data_dir, out, more))
        return out
    return act


@pytest.mark.parametrize("script, at", [(dpo, 5), (rloo, 4 * 4 + 3)])
def test_an_interrupted_run_resumes_bit_for_bit(run, monkeypatch, script, at):
    whole = run(script, "whole", "--save-every 2")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, script, at=at)
        run(script, "broken", "--save-every 2")
    broken = run(script, "broken", "--save-every 2 --resume")
    ours, theirs = weights_of(broken), weights_of(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert timeless(log_of(broken)) == timeless(log_of(whole))
    assert sorted(p.name for p in broken.iterdir()) == ["config.json", "log.jsonl", "model.pt",
                                                        "tokenizer.tiktoken"]


def test_dpo_learns_to_rank_unseen_comparisons(run):
    log = log_of(run(dpo, more="--beta 0.5"))
    assert log[0]["loss"] == pytest.approx(math.log(2)) and log[0]["chosen"] == 0
    assert [line["step"] for line in log] == list(range(6))                # 48 comparisons, one pass
    assert log[-1]["valid_loss"] < 0.66 and log[-1]["valid_accuracy"] > 0.7
    assert log[-1]["chosen"] > log[-1]["rejected"]


def test_rloo_raises_the_score(run):
    log = log_of(run(rloo, more="--lr 5e-3 --episodes 768 --batch 32 --minibatches 4 --kl-coef 0.02"))
    first, last = (np.mean([entry["score"] for entry in part]) for part in (log[:2], log[-8:]))
    assert last > first + 2.5 * log[0]["score_std"] * (1 / 64 + 1 / 256) ** 0.5
    assert abs(log[0]["kl"]) < 1e-4 and log[0]["clip_fraction"] < log[1]["clip_fraction"] + 1


def test_a_group_is_one_post_with_other_random_numbers(run, monkeypatch):
    asked = []
    monkeypatch.setattr(rloo.ppo, "roll_out", lambda *args, honest=ppo.roll_out: (
        asked.append((args[4], args[5])), honest(*args))[1])
    run(rloo, more="--group 4 --episodes 16")
    assert len(asked) == 2
    for queries, ids in asked:
        assert len(set(map(tuple, ids.reshape(2, 4) // 4))) == 2           # a post, four times
        assert len(set(ids.tolist())) == 8
        assert queries[:4] == [queries[0]] * 4 and queries[4:] == [queries[4]] * 4


def test_one_flag_turns_rloo_into_grpo(run):
    plain, grpo = run(rloo, "plain"), run(rloo, "grpo", "--advantage grpo")
    assert log_of(plain)[0]["score"] == log_of(grpo)[0]["score"]           # the same first summaries
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(
        weights_of(plain).values(), weights_of(grpo).values(), strict=True))


@pytest.mark.parametrize("script", [dpo, rloo])
def test_the_result_is_a_policy_like_any_other(run, script, supervised, data_dir):
    out = run(script, more="--lr 1e-4")
    stage = stage_of(config_of(out)["flags"])
    assert stage == {dpo: "reward", rloo: "ppo"}[script]
    assert not {f.check.name for f in examine(stage, log_of(out), config_of(out)["flags"])} - {
        "reward model at chance", "over-fitting", "critic explains nothing"}
    policy = sample.load_checkpoint(out, like=sample.load_checkpoint(supervised))
    posts = sample.held_out(data_dir)
    assert all(sample.summarise(policy, posts))
    texts, ratios = evaluate.sample_with_kl(policy, sample.load_checkpoint(supervised), posts, 1.0, 0, "")
    assert len(texts) == len(ratios) == len(posts) and 0 < abs(ratios).max() < 5


def test_snapshots_are_what_the_curve_of_overoptimisation_reads(run):
    out = run(rloo, more="--snapshot-every 2")
    steps = [step for step, _ in checkpoints(sample.load_checkpoint(out))]
    assert steps == [2, 4, 6]


@pytest.mark.parametrize("script", [dpo, rloo])
def test_two_processes_end_as_one_does(run, script, float64, monkeypatch, tmp_path):
    monkeypatch.setattr(dpo, "EVAL_EVERY", 2)
    monkeypatch.setattr(dpo, "EVAL_ROWS", 7)
    alone = run(script, "alone", "--lr 1e-3")
    for how in ("ddp", "fsdp --micro-batch 3"):
        out = how.split()[0]
        assert ranks(2, lambda how=how, out=out: run(script, out, f"--lr 1e-3 --parallel {how}")) == [0, 0]
        assert_alike(tmp_path / out, alone, 1e-9, ["model.pt"])


@pytest.mark.parametrize("script, more, match", [
    (rloo, "--group 3", "--batch 8 is no multiple of --group 3"),
    (rloo, "--group 1", "--group is 1"),
    (rloo, "--minibatches 3", "3 --minibatches"),
    (dpo, "--batch 900", "batch of 900"),
    (dpo, "--query-length 150", "context of"),
    (dpo, "--comparisons nowhere", "nowhere"),
])
def test_flags_that_cannot_work_are_problems(run, tmp_path, script, more, match):
    with pytest.raises(Problem, match=match) as caught:
        run(script, more=more)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_reward_model_is_no_policy(run, reward_model):
    for script in (dpo, rloo):
        with pytest.raises(Problem):
            run(script, policy=reward_model)


# ----------------------------------------------------------------------------------- page, picture

def test_a_run_is_measured_and_a_policy_that_is_the_supervised_one_has_no_kl(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "POOL", 4)
    posts, run = make_data(tmp_path / "data"), tmp_path / "run"
    for seed, name in enumerate(("supervised", "ppo", "rloo")):
        make_checkpoint(run / name, posts, seed=seed)
    make_checkpoint(run / "dpo", posts)                                     # of seed 0, as supervised
    make_checkpoint(run / "reward", posts, "scalar")
    compare.main(f"--runs {run} --out {tmp_path / 'out'} --device cpu".split())
    found, = json.loads((tmp_path / "out/compare.json").read_text()).values()
    assert found["DPO"] == found["supervised"] and found["DPO"]["kl"]["mean"] == 0
    assert found["PPO"]["kl"]["mean"] > 0.1 and found["RLOO"] != found["PPO"]
    assert list(found["best of n"]) == ["1", "2", "4"]
    assert found["best of n"]["4"]["kl"]["mean"] == pytest.approx(math.log(4) - 3 / 4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["policy", "supervised", "PPO", "DPO", "RLOO", "best"]
    assert (tmp_path / "out/compare.png").stat().st_size > 10_000


def test_the_picture_and_the_table_show_what_was_measured(tmp_path):
    rate = {"mean": 0.5, "95": [0.4, 0.6]}
    row = {"greedy": rate, "sampled": rate, "grade": {"mean": 3.0, "95": [2, 4]},
           "kl": {"mean": 2.0, "95": [1, 3]}, "tokens": 20.0}
    best = {n: {"sampled": rate, "grade": row["grade"], "kl": {"mean": math.log(n) - (n - 1) / n}}
            for n in (1, 2, 4, 8, 16)}
    found = {"runs/demo-0": {"supervised": row, "PPO": row, "DPO": row, "RLOO": row, "best of n": best}}
    lines = list(compare.lines_of(found))
    assert len(lines) == 6 and "50.0% [40, 60]" in lines[1] and "1.8" in lines[5]
    compare.draw(found, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 10_000


def test_the_page_has_600_to_900_words():
    text = (AFTER.parent / "AFTER.md").read_text()
    prose = re.sub(r"^```.*?^```$|^\|.*?$|<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL)
    assert 600 <= len(prose.split()) <= 900
