r"""Chapter 8. Reinforcement learning: write what people prefer, without forgetting how to write.

    total = r(post, summary) - beta * log[ pi(summary | post) / pi_sft(summary | post) ]

PPO (Schulman et al. 2017) raises this total of the policy's own summaries (sections 3.4, B.1).
One iteration: write a batch of summaries; let the reward model score them; let the critic say what
it had expected before each token; and make tokens that did better than expected likelier, in small
clipped steps. Four networks of one architecture take part:

    policy      trained     starts as the supervised policy
    reference   frozen      the supervised policy; the KL penalty is measured from it
    critic      trained     starts as the reward model; a network of its own, as in the paper
                            (--critic tries what Figure 11 compares it with)
    reward      frozen      the reward model

What happens to one response, "He quit <|endoftext|>" after a query of n tokens:

    column              ...  n-1    n     n+1   n+2   n+3
    token               ...  ":"   "He"  "quit" eot   pad
    step t                          0      1     2     -
    chosen by logits at            n-1     n    n+1
    value[t] read at               n-1     n    n+1
    l[t] = log pi / pi_sft          l0    l1    l2    -
    reward[t], b = beta           -b l0 -b l1 -b l2 + score
    is_response                     1      1     1     0

Read downwards: "He" stands at column n, but was chosen, and its value read, one column earlier.

    python ppo.py --preset toy --policy runs/demo/supervised --reward runs/demo/reward \
                  --data data/toy --out runs/demo/ppo                       # two minutes

Before:  reward.py.    After: evaluate.py (is it really better?).
"""
import time
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data import (
    Batches,
    check_queries,
    encode_query,
    load_tokenizer,
    read_posts,
    same_tokenizer,
    save_tokenizer,
    size,
)
from model import generate, lay_out, load_model, token_logp, uniforms
from runtime import (
    Common,
    Diverged,
    Problem,
    Run,
    accumulate,
    adam,
    bare,
    entry,
    filled,
    flag,
    gathered,
    generator,
    join_world,
    linear,
    mixed,
    optimizer_step,
    parallelize,
    parse,
)


@dataclass(frozen=True)
class Config(Common):
    policy: str = flag("", "checkpoint folder of the supervised policy")
    reward: str = flag("", "checkpoint folder of the reward model")
    data: str = flag("", "folder of posts; their summaries are not read")
    query_length: int = flag(512, "longest post in tokens; longer ones lose their last paragraphs")
    response_length: int = flag(48, "longest summary in tokens, <|endoftext|> included")
    episodes: int = flag(1_000_000, "summaries to write in all")
    batch: int = flag(512, "summaries an iteration, over all processes")
    epochs: int = flag(4, "passes over each batch")
    minibatches: int = flag(1, "optimizer steps a pass")
    rollout_batch: int = flag(64, "summaries written at once, in one process")
    micro_batch: int = flag(16, "summaries a training forward pass, in one process")
    lr: float = flag(1.5e-5, "initial learning rate; falls linearly to 0")
    kl_coef: float = flag(0.05, "beta: price of a nat of KL from the supervised policy")
    temperature: float = flag(0.7, "divides the logits, in every log-probability alike")
    missing_eot: float = flag(-1.0, "score of a summary that does not end by itself")
    gamma: float = flag(1.0, "discount a token; 1: a summary is worth the same however long")
    lam: float = flag(0.95, "GAE's lambda: 1 trusts the rewards, 0 the critic")
    clip_ratio: float = flag(0.2, "how far a probability ratio may move before its gradient stops")
    clip_value: float = flag(0.2, "how far a value may move from the old one, likewise")
    vf_coef: float = flag(0.1, "weight of the critic's loss")
    clip: float = flag(1.0, "largest norm of each network's gradient; 0: any")
    critic: str = flag("reward", "the critic starts as the reward model, or as the supervised "
                                 "policy under a new head; shared: it is a second head on the "
                                 "policy itself", choices=("reward", "policy", "shared"))
    snapshot_every: int = flag(0, "iterations between snapshots/ of policy and critic; 0: none")


PRESETS = {     # the last two rows: the paper's (B.1); where it is silent, the 2019 code's
    "toy": dict(query_length=256, temperature=1.0, episodes=3072, batch=256, minibatches=4,
                rollout_batch=128, micro_batch=64, lr=3e-4, save_every=5),
    # DIFFERS: toy and laptop sample at temperature 1 and take 4 optimizer steps an epoch.
    "laptop": dict(query_length=320, response_length=32, temperature=1.0, episodes=3072, batch=256,
                   minibatches=4, rollout_batch=64, micro_batch=64, lr=2e-4, save_every=5),
    "gpt2": dict(lr=1.5e-5, save_every=50),
    "1.3b": dict(lr=1.5e-5, batch=512, micro_batch=8, save_every=50),
    "6.7b": dict(lr=7e-6, batch=256, micro_batch=4, rollout_batch=32, save_every=50),
}


class Rollout(NamedTuple):               # all that PPO knows of a batch; targets: see chosen_at
    tokens: Tensor       # (B, T)  long, query | response | padding
    columns: Tensor      # (B, R)  long, where response token t is predicted
    is_response: Tensor  # (B, R)  bool, True up to and including the last response token
    old_logp: Tensor     # (B, R)  log pi_old(token), nats
    ref_logp: Tensor     # (B, R)  log pi_sft(token), nats
    value: Tensor        # (B, R)  V before the token is seen
    score: Tensor        # (B,)    the reward model's, or --missing-eot where no <|endoftext|> is


# ---------------------------------------------------------------------------------- 1. rollouts

@torch.no_grad()
def roll_out(policy, reference, critic, reward, queries, ids, step, cfg, world):
    """Let the policy summarise this rank's queries, and read every network's opinion.

    queries: token lists. ids: a number for each, from which (with seed and step) all its random
    numbers follow. Returns: Rollout of the global batch, on every rank.
    """
    pad, eot, R = policy.config.n_vocab, policy.config.n_vocab - 1, cfg.response_length
    u = uniforms(cfg.seed, "rollout", step, ids, R)                              # (b, R)
    parts = []
    # One context: a new autocast would cast, and a new gathering fetch, every weight anew.
    with mixed(world), gathered(policy):
        for start in range(0, len(queries), cfg.rollout_batch):
            some = slice(start, start + cfg.rollout_batch)
            response, logp = generate(policy, queries[some], R, cfg.temperature, u[some])
            rows = lay_out(queries[some], unpad(response, pad), pad, R).to(world.device)
            if world.bf16:
                # A cached decode differs there from a full forward by 1e-2, which the ratio would
                # take for learning: the same forward as the update's says what was old.
                logp = token_logp(policy(rows.tokens, at=rows.columns), rows.targets,
                                  cfg.temperature)                               # (b, R)
            ref_logp = token_logp(reference(rows.tokens, at=rows.columns), rows.targets,
                                  cfg.temperature)                               # (b, R)
            value = critic(rows.tokens, at=rows.columns)                         # (b, R)
            score = reward(rows.tokens, at=rows.last)[:, 0]                      # (b,)
            ended = (response == eot).any(1)                                     # (b,) bool
            score = score.masked_fill(~ended, cfg.missing_eot)
            parts.append(Rollout(rows.tokens, rows.columns, rows.is_response, logp, ref_logp,
                                 value, score))
    longest = world.max(max(p.tokens.shape[1] for p in parts))
    parts = [p._replace(tokens=torch.nn.functional.pad(
        p.tokens, (0, longest - p.tokens.shape[1]), value=pad)) for p in parts]  # (b, T)
    return Rollout(*(world.gather(torch.cat(column)) for column in zip(*parts, strict=True)))


def unpad(responses, pad):
    """(B, R) padded tokens -> list of token lists."""
    return [row[:n] for row, n in zip(responses.tolist(), (responses != pad).sum(1).tolist(),
                                      strict=True)]


def chosen_at(tokens, columns):
    """The tokens that were chosen at some columns: they stand one further. tokens: (B, T), columns:
    (B, R). Returns: (B, R) long; something harmless where nothing stands."""
    return tokens.gather(1, (columns + 1).clamp(max=tokens.shape[1] - 1))


# ----------------------------------------------------------------------- 2. rewards and advantages

def token_rewards(rollout, kl_coef):
    """What each token earns: minus beta times its log-ratio; the last one also the score.

        reward[t] = -beta * (old_logp[t] - ref_logp[t]) + [t is last] * score

    so a row sums to the total of section 3.4. Returns: (B, R), 0 at padding.
    """
    keep = rollout.is_response
    reward = -kl_coef * (rollout.old_logp - rollout.ref_logp).masked_fill(~keep, 0.0)   # (B, R)
    last = keep.sum(1, keepdim=True) - 1                                                # (B, 1)
    return reward.scatter_add(1, last, rollout.score[:, None])


def gae(reward, value, gamma, lam):
    """Generalised advantage estimation (Schulman et al. 2016).

        delta[t] = reward[t] + gamma * value[t + 1] - value[t]
        advantage[t] = sum over k >= 0 of (gamma * lam)^k * delta[t + k]

    reward, value: (B, R), 0 at padding; a summary's end is final, nothing is expected after it.
    Returns: advantage (B, R) and return = advantage + value (B, R), both 0 at padding.
    """
    advantage = torch.zeros_like(reward)                                                # (B, R)
    following = next_value = torch.zeros_like(reward[:, 0])                             # (B,)
    for t in reversed(range(reward.shape[1])):
        delta = reward[:, t] + gamma * next_value - value[:, t]                         # (B,)
        following = delta + gamma * lam * following
        advantage[:, t], next_value = following, value[:, t]
    return advantage, advantage + value


def whiten(advantage, is_response):
    """Mean 0 and variance 1 over the real tokens of the whole batch; padding stays 0. (B, R)"""
    real = advantage[is_response]                                                       # (N,)
    scaled = (real - real.mean()) * (real.var(unbiased=False) + 1e-8).rsqrt()
    return torch.zeros_like(advantage).masked_scatter(is_response, scaled)


# --------------------------------------------------------------------------------------- 3. losses

def policy_loss(logp, old_logp, advantage, clip):
    """PPO's clipped surrogate, summed over tokens.

        ratio = pi(token) / pi_old(token)
        loss = sum max(-advantage * ratio, -advantage * clamp(ratio, 1 - clip, 1 + clip))

    All (N,), real tokens only. Returns: () and the number of tokens whose clipped side won.
    """
    ratio = (logp - old_logp).exp()                                                     # (N,)
    free, held = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(free, held).sum(), (held > free).sum()


def value_loss(value, old_value, returns, clip):
    """Half the squared error of the critic, pessimistic about moves beyond `clip`, summed.

        loss = 1/2 sum max((value - return)^2, (clamp(value, old - clip, old + clip) - return)^2)

    All (N,), real tokens only. Returns: ().
    """
    held = torch.clamp(value, old_value - clip, old_value + clip)                       # (N,)
    return 0.5 * torch.maximum((value - returns) ** 2, (held - returns) ** 2).sum()


def minibatch_loss(policy, critic, batch, advantage, returns, cfg):
    """Both losses of some rows, summed over their real tokens.

    batch: Rollout of b rows. advantage, returns: (b, R). Returns: (5,): policy loss, value loss,
    clipped tokens, squared change of log-prob, absolute change of log-prob.
    """
    keep = batch.is_response
    # No longer than needed: the last column read predicts the one after it, hence T = last + 2.
    R, T = int(keep.sum(1).max()), int(batch.columns.max()) + 2
    keep, columns = keep[:, :R], batch.columns[:, :R]                                   # (b, R)
    tokens = batch.tokens[:, :T]                                                        # (b, T)
    targets = chosen_at(tokens, columns)                                                # (b, R)
    logp = token_logp(policy(tokens, at=columns), targets, cfg.temperature)[keep]       # (N,)
    value = critic(tokens, at=columns)[keep]                                            # (N,)
    old_logp = batch.old_logp[:, :R][keep]                                              # (N,)
    pi, clipped = policy_loss(logp, old_logp, advantage[:, :R][keep], cfg.clip_ratio)
    vf = value_loss(value, batch.value[:, :R][keep], returns[:, :R][keep], cfg.clip_value)
    moved = (logp - old_logp).detach()                                                  # (N,)
    return torch.stack([pi, vf, clipped.to(pi), (moved ** 2).sum(), moved.abs().sum()])


def update(agent, optimizer, rollout, lr, step, cfg, world):
    """`epochs` passes over the batch in `minibatches` optimizer steps each.

    agent: {"policy": ..., "critic": ...} as `parallelize` returned them. Minibatches are sets of
    rows of the *global* batch, so they are the same whatever the number of processes.
    Returns: for the log, losses, clip fraction, approximate KL and both gradient norms (a shared
    critic's: its head's) averaged over all optimizer steps; rollout_mismatch before the first; the
    others of the whole batch.
    """
    policy, critic = agent["policy"], agent["critic"]
    reward = token_rewards(rollout, cfg.kl_coef)                                        # (B, R)
    value = rollout.value.masked_fill(~rollout.is_response, 0.0)                        # (B, R)
    raw, returns = gae(reward, value, cfg.gamma, cfg.lam)                               # (B, R)
    advantage = whiten(raw, rollout.is_response)                                        # (B, R)
    lengths = (rollout.columns.amax(1) + 1).cpu()                                       # (B,)
    sums, norms = [], []
    for epoch in range(cfg.epochs):
        order = generator(cfg.seed, "minibatch", step, epoch).permutation(len(lengths))
        for rows in torch.from_numpy(order).tensor_split(cfg.minibatches):
            rows = rows[lengths[rows].argsort(stable=True)]          # neighbours pad little
            count = rollout.is_response[rows].sum()
            total = torch.zeros(5, device=world.device, dtype=value.dtype)
            for part in accumulate(world.share(rows), cfg.micro_batch, policy, critic):
                batch = Rollout(*(x[part] for x in rollout))
                with mixed(world):
                    losses = minibatch_loss(policy, critic, batch, advantage[part], returns[part],
                                            cfg)
                losses = losses / count
                # Ranks are *averaged*, hence the factor.
                ((losses[0] + cfg.vf_coef * losses[1]) * world.size).backward()
                total += losses.detach()
            norms.append(optimizer_step({"grad_norm": bare(policy),
                                         "critic_grad_norm": bare(critic)}, optimizer, lr, step,
                                        cfg.clip))
            sums.append(world.sum(total))
    mean = torch.stack(sums).mean(0).tolist()
    keep = rollout.is_response
    unexplained = (returns - value)[keep].var() / returns[keep].var()
    return {"policy_loss": mean[0], "value_loss": mean[1], "clip_fraction": mean[2],
            "approx_kl": 0.5 * mean[3], "rollout_mismatch": sums[0][4].item(),
            "explained_variance": 1 - unexplained.item(),
            "return_mean": returns[keep].mean().item(),
            **{name: sum(n[name] for n in norms) / len(norms) for name in norms[0]}}


def describe(rollout, cfg, eot):
    """What the log says of a batch of summaries before learning from it."""
    keep = rollout.is_response
    log_ratio = (rollout.old_logp - rollout.ref_logp).masked_fill(~keep, 0.0)           # (B, R)
    kl = log_ratio.sum(1).mean().item()                              # nats a summary
    # That is Schulman's estimator k1; k3 = r - 1 - log r with r = pi_sft / pi.
    k3 = ((-log_ratio).expm1() + log_ratio).sum(1).mean().item()     # never negative, less noisy
    score = rollout.score.mean().item()
    return {"score": score, "kl": kl, "reward": score - cfg.kl_coef * kl,
            "length": keep.sum(1).float().mean().item(),
            "eot_rate": (rollout.tokens == eot).any(1).float().mean().item(),
            "entropy": -rollout.old_logp[keep].mean().item(), "kl_k3": k3,
            "score_std": rollout.score.std().item(), "repeated": repeated(rollout)}


def repeated(rollout):
    """Share of token pairs that stood in the same summary before: near 0 in prose, 1 in a loop.

    A summary of one token has no pair, and repeats nothing."""
    written = chosen_at(rollout.tokens, rollout.columns)                                # (B, R)
    rows = [row[real].tolist() for row, real in zip(written, rollout.is_response, strict=True)]
    pairs = [list(zip(row, row[1:], strict=False)) for row in rows]
    again = sum(len(p) - len(set(p)) for p in pairs)
    return again / max(1, sum(len(p) for p in pairs))


# ----------------------------------------------------------------------------------------- 4. loop

def load_critic(cfg, policy, world):
    """The network that foretells the return of an unfinished summary (Figure 11).

    Shared, it consists of the policy's own layers, and both losses move them.
    """
    if cfg.critic == "reward":
        return load_model(cfg.reward, world)
    critic = load_model(cfg.policy, world, head="scalar", seed=cfg.seed)
    if cfg.critic == "shared":
        critic.wte, critic.wpe = policy.wte, policy.wpe
        critic.blocks, critic.norm = policy.blocks, policy.norm
    return critic


def load_networks(cfg, world):
    """Tokenizer, posts, and the four networks. Raises: Problem when they differ."""
    tokenizer = load_tokenizer(cfg.policy)
    if not same_tokenizer(tokenizer, load_tokenizer(cfg.reward)):
        raise Problem(f"{cfg.policy} and {cfg.reward} have different tokenizers: train the reward "
                      "model from this policy (reward.py --init)")
    policy = load_model(cfg.policy, world)
    reference, reward = (load_model(folder, world, frozen=True)
                         for folder in (cfg.policy, cfg.reward))
    for network, head, folder in ((policy, "lm", cfg.policy), (reward, "scalar", cfg.reward)):
        if network.config.head != head:
            raise Problem(f"{folder} has a {network.config.head} head, not {head}: are --policy "
                          "and --reward swapped?")
        if cfg.query_length + cfg.response_length > network.config.context:
            raise Problem(f"rows of up to {cfg.query_length + cfg.response_length} tokens do not "
                          f"fit the context of {folder}, {network.config.context}: lower "
                          "--query-length")
    posts = read_posts(cfg.data, "train", need_summary=False)
    check_queries(tokenizer, posts, cfg.query_length)
    return tokenizer, posts, policy, reference, load_critic(cfg, policy, world), reward


def train(cfg, world):
    """Write, score, learn; again and again."""
    if cfg.batch % (cfg.minibatches * world.size) or cfg.batch > cfg.episodes:
        raise Problem(f"--batch {cfg.batch} must divide over {world.size} processes times "
                      f"{cfg.minibatches} --minibatches, and be at most --episodes {cfg.episodes}")
    if cfg.critic == "shared" and world.size > 1:
        raise Problem("--critic shared works in one process: two would each average its gradients")
    if min(cfg.epochs, cfg.response_length) < 1 or cfg.temperature <= 0:
        raise Problem("--epochs and --response-length count from 1, and --temperature "
                      f"{cfg.temperature:g} must be above 0: PPO learns from what it samples")
    if not (cfg.policy and cfg.reward and cfg.data):
        raise Problem("--policy, --reward and --data are all needed")
    cfg = filled(cfg, world, cfg.policy, cfg.reward)      # both must be able to read a rollout
    tokenizer, posts, *networks = load_networks(cfg, world)
    policy, reference, critic, reward = networks
    # The same networks, spread over the processes; the frozen two only for --compile's sake.
    trained, _, valued, _ = (parallelize(network, world, cfg) for network in networks)
    agent = {"policy": trained, "critic": valued}
    both = torch.nn.ModuleList([policy, critic])          # names a weight of both only once
    optimizer = adam([both], eps=1e-5)                    # weight decay 0, as 2019's plain Adam
    batches = Batches([size(post) for post in posts], cfg.batch, cfg.seed, window=1)
    iterations = cfg.episodes // cfg.batch
    run = Run(cfg, world, {"policy": policy, "critic": critic}, optimizer,
              model=asdict(policy.config))
    if run.finished:
        return
    if world.rank == 0:
        save_tokenizer(tokenizer, cfg.out)

    for step in run.steps(iterations):
        # 1. a batch                        the policy's own summaries, and everyone's opinion
        began = time.perf_counter()
        mine = world.share(batches.at(step))
        queries = [encode_query(tokenizer, posts[i], cfg.query_length, cfg.fill) for i in mine]
        rollout = roll_out(policy, reference, critic, reward, queries, mine, step, cfg, world)
        if not rollout.score.isfinite().all():
            raise Diverged(step, "the reward model's score is not finite: look at the log of "
                                 f"{cfg.reward}; nothing of this step was kept")
        written = time.perf_counter()

        # 2-4. count, gradients, descent    several times over the same batch
        lr = linear(step, iterations, cfg.lr)
        learned = update(agent, optimizer, rollout, lr, step, cfg, world)

        # 5. a line in the log, a state to come back to
        done = time.perf_counter()
        tokens = int(rollout.is_response.sum())
        run.log(step, **describe(rollout, cfg, tokenizer.eot_token), **learned, lr=lr,
                episodes=(step + 1) * cfg.batch,
                rollout_seconds=written - began,
                rollout_tokens_per_second=tokens / (written - began),
                update_seconds=done - written,
                update_tokens_per_second=cfg.epochs * tokens / (done - written))
        if cfg.snapshot_every and (step + 1) % cfg.snapshot_every == 0:
            run.save(f"snapshots/step-{step + 1:06d}", policy)
            run.save(f"snapshots/critic-{step + 1:06d}", critic)
        run.save_if_due(step)
    run.finish(model=policy, critic=critic)


def main(argv=None):
    cfg = parse(Config, PRESETS, argv, __doc__)
    with join_world(cfg) as world:
        train(cfg, world)


if __name__ == "__main__":
    entry(main)
