r"""After chapter 8: REINFORCE leave-one-out (RLOO: Kool et al. 2019, Ahmadian et al. 2024). PPO
without a critic: the other summaries of the same post are the baseline.

    A[i] = total[i] - mean of the other k - 1 totals         total = r - beta * log(pi / pi_sft)

1. As in ppo.py: gradient of the mean total = mean of  total * grad log pi(summary), and any number
   that does not depend on the summary may be subtracted from its total.
2. The k summaries of a post are drawn independently: to each, the others' mean total is such a
   number. It is near what was to be expected of this post, for which PPO trains a critic.

Four summaries of a post (--group 4), and GRPO's version (Shao et al. 2024):

    total                                              3.0     1.0     2.0     2.0
    mean of the others                                 1.67    2.33    2.0     2.0
    A                                                  1.33   -1.33    0.0     0.0
    A, --advantage grpo: (total - mean) / deviation    1.22   -1.22    0.0     0.0

By GRPO's division a post whose summaries are nearly equal counts as much as any other.

    python -m docs.tutorial.after.rloo --preset toy --policy runs/demo/supervised \
           --reward runs/demo/reward --data data/toy --out runs/demo/rloo

Before:  ppo.py, whose loop this is.    After: AFTER.md, which compares them.
"""
from dataclasses import asdict, dataclass

import numpy as np
import torch

import data
import ppo
from runtime import Problem, Run, accumulate, adam, flag, generator, launch, optimizer_step
from sft import filled


def leave_one_out(total):
    """Each total minus the mean of the others of its post. (P, k) -> (P, k)"""
    return total - (total.sum(1, keepdim=True) - total) / (total.shape[1] - 1)


def normalised(total):
    """GRPO's. (DIFFERS: its KL, k3, is in the loss, and ours in the total.) (P, k) -> (P, k)"""
    return (total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-4)


@dataclass(frozen=True)
class Config(ppo.Config):
    group: int = flag(4, "k, summaries of each post; --batch counts them all", least=2)
    advantage: str = flag("rloo", "what a total is compared with", choices=("rloo", "grpo"))


def nobody(tokens, at):       # stands where PPO has its critic, and expects nothing of all (b, R)
    return torch.zeros(at.shape, device=at.device)


def update(policy, optimizer, rollout, lr, iteration, cfg, world):
    """ppo.update without a critic; its means are over summaries, not tokens. {name: number}"""
    flat, norms = torch.zeros((), device=world.device), []
    for epoch in range(cfg.epochs):
        order = generator(cfg.seed, "minibatch", iteration, epoch).permutation(cfg.batch)
        for picked in torch.from_numpy(order).tensor_split(cfg.minibatches):
            for part in accumulate(world.share(picked), cfg.micro_batch, policy):
                micro = ppo.Rollout(*(field[part.to(world.device)] for field in rollout))
                T, R = int(micro.columns.max()) + 1, int(micro.is_response.sum(1).max())
                with world.mixed():
                    sums = ppo.minibatch_loss(policy, nobody, micro, T, R, cfg)
                (sums["policy_loss"] / len(picked) * world.size).backward()      # as in sft.py
                flat += sums["clip_fraction"]
            norms += optimizer_step({"": policy}, optimizer, lr, iteration, ppo.MAX_NORM).values()
    return {"clip_fraction": (world.sum(flat) / rollout.is_response.sum() / cfg.epochs).item(),
            "grad_norm": np.mean(norms).item()}


def train(cfg, world):
    """The loop of ppo.py, with one network to train."""
    if cfg.batch % cfg.group:
        raise Problem(f"--batch {cfg.batch} is no multiple of --group {cfg.group}: change one")
    cfg = filled(cfg, cfg.policy, cfg.reward)
    tokenizer, posts, policy, reference, critic, reward_model = ppo.prepare(cfg, world)
    del critic                                                    # `nobody` takes its place
    optimizer, iterations = adam([policy], eps=1e-5), cfg.episodes // cfg.batch
    batches = data.Batches([data.characters(p) for p in posts], cfg.batch // cfg.group, cfg.seed, 1)
    run = Run(cfg, world, {"model": policy}, optimizer, model=asdict(policy.config))
    if run.finished:
        return
    if world.rank == 0:
        data.save_tokenizer(tokenizer, cfg.out)

    for iteration in run.steps(iterations):
        # 1. batch: k summaries of each post, one after another, each with its own random numbers
        rows = batches.at(iteration).repeat(cfg.group)                           # (B,) 5 5 9 9
        ids = rows * cfg.group + np.arange(cfg.batch) % cfg.group                # (B,)
        queries = [data.encode_query(tokenizer, posts[i], cfg.query_length, cfg.fill)
                   for i in world.share(rows)]
        rollout = ppo.roll_out(policy, reference, nobody, reward_model, queries, world.share(ids),
                               iteration, cfg, world)
        run.finite(iteration, "the reward model's score", rollout.score, f"see {cfg.reward}'s log")
        # 2. weigh: how much better than the others of its post; each token gets its summary's A
        total = ppo.token_rewards(rollout, cfg.kl_coef).sum(1)                   # (B,)
        weigh = normalised if cfg.advantage == "grpo" else leave_one_out
        advantage = weigh(total.view(-1, cfg.group)).flatten()                   # (B,)
        rollout = rollout._replace(advantage=advantage[:, None].expand_as(rollout.value),
                                   returns=total[:, None].expand_as(rollout.value))
        # 3-5. gradients, descent; log, save
        lr = ppo.linear(iteration, iterations, cfg.lr)
        learned = update(policy, optimizer, rollout, lr, iteration, cfg, world)
        run.log(iteration, **ppo.statistics(rollout, cfg, tokenizer.eot_token), **learned, lr=lr,
                episodes=(iteration + 1) * cfg.batch)
        if cfg.snapshot_every and (iteration + 1) % cfg.snapshot_every == 0:
            run.save(f"snapshots/step-{iteration + 1:06d}", policy)
        run.save_if_due(iteration)
    run.finish(model=policy)


def main(argv=None):
    launch(train, Config, argv, __doc__, ppo.PRESETS)


if __name__ == "__main__":
    main()
