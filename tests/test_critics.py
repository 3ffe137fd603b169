"""tools/critics.py: PPO with another critic is PPO but for the critic."""
import dataclasses

import pytest
import torch
from test_ppo import line, timeless
from test_sft import Killed, kill_at, log_of, weights_of

import ppo
from runtime import Problem, config_of
from tools import critics


@pytest.fixture
def run(supervised, reward_model, data_dir, tmp_path):
    """run(name, more, main): runs a script into tmp_path / name, and returns that folder."""
    def act(name, more, main=critics.main):
        main(line(supervised, reward_model, data_dir, tmp_path / name, more))
        return tmp_path / name
    return act


def trunk(weights):
    return {k: v for k, v in weights.items() if not k.startswith("head.")}


def equal(ours, theirs):
    return all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_critic_may_start_as_the_policy(run, supervised):
    out = run("policy", "--lr 0 --critic policy")
    ours, theirs = trunk(weights_of(out, "critic.pt")), weights_of(supervised)
    assert ours.keys() == theirs.keys() and equal(ours, theirs)
    assert config_of(out)["flags"]["critic"] == "policy"


def test_a_critic_may_be_the_policy(run, world, monkeypatch):
    more = "--critic shared --save-every 2"
    out = run("shared", more)
    policy, critic = weights_of(out), trunk(weights_of(out, "critic.pt"))
    assert equal(policy, critic)                                           # one trunk still
    assert log_of(out)[0]["critic_grad_norm"] < log_of(out)[0]["grad_norm"]       # of its head
    assert not equal(policy, weights_of(run("separate", "--critic policy")))   # the critic moved it
    kill_at(monkeypatch, ppo, at=4 * 4 + 3)
    with pytest.raises(Killed):
        run("broken", more)
    monkeypatch.undo()
    again = weights_of(run("broken", more + " --resume"), "critic.pt")
    assert equal(weights_of(out, "critic.pt"), again)
    with pytest.raises(Problem, match="one process"):
        critics.train(critics.Config(critic="shared"), dataclasses.replace(world, size=2))


def test_the_critic_from_the_reward_model_is_ppo_itself(run):
    whole = run("ppo", "", ppo.main)
    ours = run("reward", "--critic reward")
    assert timeless(log_of(ours)) == timeless(log_of(whole))
    assert all(equal(weights_of(ours, name), weights_of(whole, name))
               for name in ("model.pt", "critic.pt"))
