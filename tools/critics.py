"""PPO with another critic: the variants that Figure 11 of the paper, and our Figure 9, compare.

    reward    a network of its own that starts as the reward model: ppo.py's, and the paper's
    policy    a network of its own that starts as the supervised policy, under a new head
    shared    the policy itself under a second head: both losses move the same layers

Everything else is ppo.py, and so are all flags but --critic; only its `prepare` is replaced.

    python -m tools.critics --critic shared --preset toy --policy runs/demo/supervised \
           --reward runs/demo/reward --data data/toy --out runs/demo/ppo-shared

Before:  ppo.py.    After: tools/figures.py, which compares them.
"""
from dataclasses import dataclass

import ppo
from model import load_model
from runtime import Problem, flag, launch


@dataclass(frozen=True)
class Config(ppo.Config):
    critic: str = flag("policy", "what the critic starts as; shared: it is the policy",
                       choices=("reward", "policy", "shared"))


def first_critic(kind, cfg, policy, world):
    """The critic that PPO starts from. Shared, it consists of the policy's own layers."""
    if kind == "reward":
        return load_model(cfg.reward, world)
    critic = load_model(cfg.policy, world, head="scalar", seed=cfg.seed)
    if kind == "shared":
        critic.wte, critic.wpe = policy.wte, policy.wpe
        critic.blocks, critic.norm = policy.blocks, policy.norm
    return critic


def train(cfg, world):
    """ppo.train, with cfg.critic. Raises: Problem for a shared one in several processes."""
    if cfg.critic == "shared" and world.size > 1:
        raise Problem("--critic shared works in one process: two would each average its gradients")
    honest = ppo.prepare

    def prepare(cfg, world):
        tokenizer, posts, policy, reference, _, reward_model = honest(cfg, world)
        critic = world.parallelize(first_critic(cfg.critic, cfg, policy, world), cfg)
        return tokenizer, posts, policy, reference, critic, reward_model
    ppo.prepare = prepare
    try:
        ppo.train(cfg, world)
    finally:
        ppo.prepare = honest


def main(argv=None):
    launch(train, Config, argv, __doc__, ppo.PRESETS)


if __name__ == "__main__":
    main()
