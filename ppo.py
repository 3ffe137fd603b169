r"""Chapter 8. Reinforcement learning: write what people prefer, without forgetting how to write.

    total = r(post, summary) - beta * log[ pi(summary | post) / pi_sft(summary | post) ]

The mean of that log over the policy's own summaries is the KL divergence: how far the policy has
moved from the supervised one. PPO (Schulman et al. 2017) raises the mean total (sections 3.4, B.1).
It follows from one formula in four steps:

    gradient   The mean total is the sum over summaries of pi * total, and grad pi = pi * grad log
               pi: its gradient is the mean of total * grad log pi(summary). (The total holds log pi
               as well; what that adds has mean 0.) So each summary becomes more probable in
               proportion to its total. log pi(summary) is a sum over tokens. What came before a
               token, and what was expected then, is the same whichever token is chosen: it may be
               subtracted, which changes no mean (see `whiten`) but removes noise. What is left of
               the total is A, the advantage: how much better it turned out than was expected
               before this token. The gradient is the mean of A * grad log pi(token).
    ratio      Writing is slow, so a batch serves several optimizer steps. After the first the
               policy is no longer pi_old, which wrote the batch; a token now counts for
               ratio = pi(token) / pi_old(token). At ratio 1 the gradient of  A * ratio  is again
               A * grad log pi(token).
    clip       Far from pi_old this correction cannot be trusted. Once the ratio has moved 20 % in
               the direction that A pushes, the loss goes flat: its gradient is 0.
    maximum    Of the plain and the clipped loss the larger one counts. So clipping takes away what
               a token could still gain, never what it costs: `policy_loss` shows the four cases.

Four networks of one architecture take part:

    policy         trained   starts as the supervised policy
    reference      frozen    the supervised policy; KL is measured from it
    critic         trained   starts as the reward model; predicts the rewards that are to come
    reward_model   frozen    scores whole summaries

One response, "He quit <|endoftext|>", to a query of n tokens; beta = .05, score = 2, gamma = 1,
lambda = .95:

    column                                                    n-1     n      n+1    n+2    n+3
    token                                                     ":"    "He"   "quit"  eot    pad
    t          of the response token that is chosen here       0      1      2       -      -
    chosen                                                    "He"  "quit"  eot
    l[t]       its log ratio, log pi - log pi_sft             .40   -.20    .10
    reward[t]  -beta * l[t]; the last token: + score         -.02    .01   1.995
    value[t]   rewards from t on, as the critic expects      1.00   1.20   1.50
    delta[t]   reward[t] + value[t+1] - value[t]              .18    .31    .495
    A[t]       delta[t] + .95 * A[t+1]                        .92    .78    .495
    return[t]  A[t] + value[t], what it should have said     1.92   1.98   1.995

Read downwards: "He" stands in column n, but is chosen, and its value read, one column earlier. The
critic expects 1.00 before "He" and 1.20 after it: with the reward of -.02, this token was .18
better than expected. It also made possible what followed: A[0] = .18 + .95 * .31 + .95^2 * .495.

    python ppo.py --preset toy --policy runs/demo/supervised --reward runs/demo/reward \
                  --data data/toy --out runs/demo/ppo                       # two minutes

Before:  reward.py.    After: evaluate.py (is it really better?).
"""
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import data
from model import Rows, generate, lay_out, load_model, token_logp, uniforms
from runtime import Common, Problem, Run, accumulate, adam, flag, generator, launch, optimizer_step
from sft import filled

GAMMA = 1.0       # discount a token; 1: a summary is worth the same however long it is
LAMBDA = 0.95     # GAE's lambda; 1 trusts the rewards, 0 the critic
VF_COEF = 0.1     # weight of the critic's loss; of a network of its own it scales the gradient only
MAX_NORM = 1.0    # largest norm of each network's gradient; a larger one is scaled down to it


@dataclass(frozen=True)
class Config(Common):
    policy: str = flag(..., "checkpoint folder of the supervised policy", what="DIR")
    reward: str = flag(..., "checkpoint folder of the reward model", what="DIR")
    data: str = flag(..., "folder of posts; their summaries are not read", what="DIR")
    query_length: int = flag(512, "longest post in tokens; longer ones lose their last paragraphs")
    response_length: int = flag(48, "longest summary in tokens, <|endoftext|> included", least=1)
    episodes: int = flag(1_000_000, "summaries to write in all")
    batch: int = flag(512, "summaries an iteration, over all processes", least=1)
    epochs: int = flag(4, "passes over each batch", least=1)
    minibatches: int = flag(1, "optimizer steps a pass", least=1)
    rollout_batch: int = flag(64, "summaries written at once, in one process", least=1)
    micro_batch: int = flag(16, "summaries a training forward pass, in one process", least=1)
    lr: float = flag(1.5e-5, "initial learning rate; falls linearly to 0")
    kl_coef: float = flag(0.05, "beta: the price of a nat of KL from the supervised policy")
    temperature: float = flag(0.7, "divides the logits, in every log-probability", least=0.01)
    missing_eot: float = flag(-1.0, "score of a summary without end", least=float("-inf"))
    clip_ratio: float = flag(0.2, "how far a ratio or a value may move before its gradient stops")
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


class Rollout(NamedTuple):               # all that PPO knows of a batch of summaries
    tokens: Tensor       # (B, T)  long, query | response | padding
    columns: Tensor      # (B, R)  long, where response token t is predicted
    targets: Tensor      # (B, R)  long, response token t
    is_response: Tensor  # (B, R)  bool, True up to and including the last response token
    old_logp: Tensor     # (B, R)  log pi_old(token), nats; like the next two, 0 past the end
    ref_logp: Tensor     # (B, R)  log pi_sft(token), nats
    value: Tensor        # (B, R)  the critic's, before the token is seen
    score: Tensor        # (B,)    the reward model's, or --missing-eot where no <|endoftext|> is


def log_probs(network, rows, temperature):
    """log pi(token) of the response tokens of Rows or of a Rollout, in nats. (b, R)"""
    return token_logp(network(rows.tokens, at=rows.columns), rows.targets, temperature)


@torch.no_grad()
def roll_out(policy, reference, critic, reward_model, queries, ids, step, cfg, world):
    """Let the policy summarise this process's queries, and the other networks read the summaries.

    queries: token lists. ids: a number for each, from which (with seed and step) all its random
    numbers follow. Returns: Rollout of the global batch, the same in every process.
    """
    pad, eot, R = policy.config.n_vocab, policy.config.n_vocab - 1, cfg.response_length
    u = uniforms(cfg.seed, "rollout", step, ids, R)                      # (b, R)
    parts = []
    with world.mixed(), world.gathered(policy):      # once: it casts, or fetches, every weight
        for start in range(0, len(queries), cfg.rollout_batch):
            some = slice(start, start + cfg.rollout_batch)
            said, old_logp = generate(policy, queries[some], R, cfg.temperature, u[some])
            responses = [row[row != pad].tolist() for row in said.cpu()]
            rows = lay_out(queries[some], responses, pad, R).to(world.device)
            if world.bf16:    # generation differs there by .01 from the full forward of `update`
                old_logp = log_probs(policy, rows, cfg.temperature)              # (b, R)
            ref_logp = log_probs(reference, rows, cfg.temperature)               # (b, R)
            value = critic(rows.tokens, at=rows.columns)                         # (b, R)
            score = reward_model(rows.tokens, at=rows.last)[:, 0]                # (b,)
            score = score.masked_fill(~(said == eot).any(1), cfg.missing_eot)
            old_logp, ref_logp, value = [x.masked_fill(~rows.is_response, 0)
                                         for x in (old_logp, ref_logp, value)]
            parts.append(Rollout(*rows, old_logp, ref_logp, value, score))
    T = world.max(max(part.tokens.shape[1] for part in parts))
    parts = [part._replace(tokens=F.pad(part.tokens, (0, T - part.tokens.shape[1]), value=pad))
             for part in parts]
    return Rollout(*(world.gather(torch.cat(field)) for field in zip(*parts, strict=True)))


def token_rewards(rollout, kl_coef):
    """What each token earns: minus beta times its log ratio; the last one also the score.

        reward[t] = -beta * (old_logp[t] - ref_logp[t]) + [t is last] * score

    so a row sums to the total of section 3.4. Returns: (B, R), 0 past the end.
    """
    reward = -kl_coef * (rollout.old_logp - rollout.ref_logp)                           # (B, R)
    last = rollout.is_response.sum(1, keepdim=True) - 1                                 # (B, 1)
    return reward.scatter_add(1, last, rollout.score[:, None])


def gae(reward, value, gamma, lam):
    """Generalised advantage estimation (Schulman et al. 2016), from the last token to the first:

        delta[t] = reward[t] + gamma * value[t + 1] - value[t]      how wrong the critic was at t
        A[t] = delta[t] + gamma * lam * A[t + 1]                    and later, worth less and less
        return[t] = A[t] + value[t]                                 what it should have said

    reward, value: (B, R), 0 past the end, where nothing more is expected. At lam = 1 the values
    cancel: A[t] is the rewards from t on minus value[t], right but noisy. At lam = 0 it is delta[t]
    alone: quiet, but only as good as the critic. Returns: advantage and return, both (B, R).
    """
    advantage = torch.zeros_like(reward)                                                # (B, R)
    next_advantage = next_value = torch.zeros_like(reward[:, 0])                        # (B,)
    for t in reversed(range(reward.shape[1])):
        delta = reward[:, t] + gamma * next_value - value[:, t]                         # (B,)
        next_advantage = delta + gamma * lam * next_advantage
        next_value = value[:, t]
        advantage[:, t] = next_advantage
    return advantage, advantage + value


def whiten(advantage, is_response):
    """Mean 0 and variance 1 over the response tokens of the whole batch. (B, R), 0 past the end

    Variance 1: the size of a step no longer depends on the unit of the scores. Mean 0 is allowed:
    probabilities always sum to 1, so the mean of grad log pi is 0, and one number that is taken
    from every advantage leaves the mean of A * grad log pi as it was (exactly so at ratio 1).
    """
    real = advantage[is_response]                                                       # (N,)
    scaled = (real - real.mean()) * (real.var(unbiased=False) + 1e-8).rsqrt()
    return torch.zeros_like(advantage).masked_scatter(is_response, scaled)


def policy_loss(logp, old_logp, advantage, clip):
    """PPO's loss: less of it means more of what turned out better than expected.

        ratio = pi(token) / pi_old(token)
        loss = sum max(-A * ratio, -A * clamp(ratio, 1 - clip, 1 + clip))

    The four cases at clip = .2; in two of them the larger number does not depend on the ratio:

         A   ratio                                     plain   clipped
         1    1.5    good, and already more probable   -1.5     -1.2    flat: enough for this batch
         1     .5    good, but less probable            -.5      -.8    raises pi
        -1    1.5    bad, but more probable             1.5      1.2    lowers pi
        -1     .5    bad, and already less probable      .5       .8    flat: enough for this batch

    All (N,), response tokens only. Returns: () and the number of tokens with flat loss, ().
    """
    ratio = (logp - old_logp).exp()                                                     # (N,)
    plain, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped).sum(), (clipped > plain).sum()


def value_loss(value, old_value, returns, clip):
    """The critic's loss: flat, too, once a value has come `clip` closer to the return.

        loss = 1/2 sum max((value - return)^2, (clamp(value, old - clip, old + clip) - return)^2)

    All (N,), response tokens only. Returns: ().
    """
    clipped = torch.clamp(value, old_value - clip, old_value + clip)                    # (N,)
    return 0.5 * torch.maximum((value - returns) ** 2, (clipped - returns) ** 2).sum()


class Losses(NamedTuple):       # of some rows, summed over their response tokens; each ()
    policy_loss: Tensor
    value_loss: Tensor
    clip_fraction: Tensor       # tokens whose loss is flat
    approx_kl: Tensor           # (change of log pi)^2 / 2, near the KL from pi_old to pi
    rollout_mismatch: Tensor    # |change of log pi|: before the first optimizer step, rounding only


def minibatch_loss(policy, critic, batch, advantage, returns, cfg):
    """Losses of some rows. batch: Rollout of b rows. advantage, returns: (b, R)."""
    keep = batch.is_response                                                            # (b, R)
    # No wider than these rows need: the last column read predicts the token in the next.
    R, T = int(keep.sum(1).max()), int(batch.columns.max()) + 2
    rows = Rows(batch.tokens[:, :T], batch.columns[:, :R], batch.targets[:, :R], keep[:, :R])
    logp = log_probs(policy, rows, cfg.temperature)[rows.is_response]                   # (N,)
    value = critic(rows.tokens, at=rows.columns)[rows.is_response]                      # (N,)
    old_logp = batch.old_logp[keep]                                                     # (N,)
    loss, flat = policy_loss(logp, old_logp, advantage[keep], cfg.clip_ratio)
    change = (logp - old_logp).detach()                                                 # (N,)
    return Losses(loss, value_loss(value, batch.value[keep], returns[keep], cfg.clip_ratio),
                  flat.to(loss), 0.5 * (change ** 2).sum(), change.abs().sum())


def linear(step, steps, peak):
    """Learning rate: falls linearly from peak at step 0 to 0."""
    return peak * (1 - step / steps)


def update(policy, critic, optimizer, rollout, advantage, returns, lr, step, cfg, world):
    """`epochs` passes over the batch, in `minibatches` optimizer steps each.

    Minibatches are rows of the *global* batch, the same ones for any number of processes.
    advantage, returns: (B, R). Returns: for the log, Losses a token and both gradient norms, means
    over all optimizer steps; rollout_mismatch is that of the first step.
    """
    last = rollout.columns.amax(1).cpu()                                                # (B,)
    losses, norms = [], []
    for epoch in range(cfg.epochs):
        order = generator(cfg.seed, "minibatch", step, epoch).permutation(len(last))    # (B,)
        for rows in torch.from_numpy(order).tensor_split(cfg.minibatches):
            rows = rows[last[rows].argsort(stable=True)]      # like lengths together: less padding
            count = rollout.is_response[rows].sum()           # one mean over all processes
            total = 0
            for part in accumulate(world.share(rows), cfg.micro_batch, policy, critic):
                some = Rollout(*(field[part] for field in rollout))
                with world.mixed():
                    sums = minibatch_loss(policy, critic, some, advantage[part], returns[part], cfg)
                share = Losses(*(x / count for x in sums))
                loss = share.policy_loss + VF_COEF * share.value_loss
                (loss * world.size).backward()         # processes are *averaged*, hence the factor
                total = total + torch.stack(share).detach()                             # (5,)
            norms.append(optimizer_step({"grad_norm": policy, "critic_grad_norm": critic},
                                        optimizer, lr, step, MAX_NORM))
            losses.append(world.sum(total))
    mean = Losses(*torch.stack(losses).mean(0).tolist())
    return {**mean._asdict(), "rollout_mismatch": Losses(*losses[0].tolist()).rollout_mismatch,
            **{name: sum(norm[name] for norm in norms) / len(norms) for name in norms[0]}}


def statistics(rollout, returns, cfg, eot):
    """What the log says of a batch of summaries before learning from it."""
    keep = rollout.is_response                                                          # (B, R)
    log_ratio = rollout.old_logp - rollout.ref_logp                                     # (B, R)
    kl = log_ratio.sum(1).mean().item()                              # nats a summary
    # That is Schulman's estimator k1; k3 = r - 1 - log r with r = pi_sft / pi.
    k3 = ((-log_ratio).expm1() + log_ratio).sum(1).mean().item()     # never negative, less noisy
    score = rollout.score.mean().item()
    unexplained = (returns - rollout.value)[keep].var() / returns[keep].var()
    # Token pairs that stood in the same summary before: near 0 in prose, 1 in a loop.
    rows = [tokens[real].tolist() for tokens, real in zip(rollout.targets, keep, strict=True)]
    repeated = sum(len(row) - 1 - len(set(pairwise(row))) for row in rows)
    return {"score": score, "kl": kl, "reward": score - cfg.kl_coef * kl,
            "length": keep.sum(1).float().mean().item(),
            "eot_rate": (rollout.targets == eot).any(1).float().mean().item(),
            "entropy": -rollout.old_logp[keep].mean().item(), "kl_k3": k3,
            "score_std": rollout.score.std().item(),
            "repeated": repeated / max(1, sum(len(row) - 1 for row in rows)),
            "explained_variance": 1 - unexplained.item(),
            "return_mean": returns[keep].mean().item()}


def prepare(cfg, world):
    """Tokenizer, posts and the four networks. Raises: Problem when they do not fit together."""
    if cfg.batch % (cfg.minibatches * world.size) or cfg.batch > cfg.episodes:
        raise Problem(f"--batch {cfg.batch} must divide over {world.size} processes times "
                      f"{cfg.minibatches} --minibatches, and be at most --episodes {cfg.episodes}")
    tokenizer = data.load_tokenizer(cfg.policy)
    if not data.same_tokenizer(tokenizer, data.load_tokenizer(cfg.reward)):
        raise Problem(f"{cfg.policy} and {cfg.reward} have different tokenizers: train the reward "
                      "model from this policy (reward.py --init)")
    policy, critic = load_model(cfg.policy, world), load_model(cfg.reward, world)
    reference = load_model(cfg.policy, world, frozen=True)
    reward_model = load_model(cfg.reward, world, frozen=True)
    longest = cfg.query_length + cfg.response_length
    for network, head, folder in ((policy, "lm", cfg.policy), (critic, "scalar", cfg.reward)):
        if network.config.head != head:
            raise Problem(f"{folder} has no {head} head: are --policy and --reward swapped?")
        if longest > network.config.context:
            raise Problem(f"rows of up to {longest} tokens do not fit the context of {folder}, "
                          f"{network.config.context}: lower --query-length")
    posts = data.read_posts(cfg.data, "train", need_summary=False)
    data.check_queries(tokenizer, posts, cfg.query_length)
    networks = (policy, reference, critic, reward_model)
    return tokenizer, posts, *(world.parallelize(network, cfg) for network in networks)


def train(cfg, world):
    """Write, score, learn; again and again."""
    cfg = filled(cfg, world, cfg.policy, cfg.reward)          # posts as both networks know them
    tokenizer, posts, policy, reference, critic, reward_model = prepare(cfg, world)
    optimizer = adam([policy, critic], eps=1e-5)          # weight decay 0, as 2019's plain Adam
    batches = data.Batches([data.characters(post) for post in posts], cfg.batch, cfg.seed, window=1)
    iterations = cfg.episodes // cfg.batch
    run = Run(cfg, world, {"policy": policy, "critic": critic}, optimizer,
              model=asdict(policy.config))
    if run.finished:
        return
    if world.rank == 0:
        data.save_tokenizer(tokenizer, cfg.out)

    for step in run.steps(iterations):
        # 1. a batch                        the policy's own summaries, read by all four networks
        began = time.perf_counter()
        mine = world.share(batches.at(step))
        queries = [data.encode_query(tokenizer, posts[i], cfg.query_length, cfg.fill) for i in mine]
        rollout = roll_out(policy, reference, critic, reward_model, queries, mine, step, cfg, world)
        run.finite(step, "the reward model's score", rollout.score, f"see the log of {cfg.reward}")
        written = time.perf_counter()

        # 2. what each token is worth
        reward = token_rewards(rollout, cfg.kl_coef)                                    # (B, R)
        advantage, returns = gae(reward, rollout.value, GAMMA, LAMBDA)          # (B, R), (B, R)
        advantage = whiten(advantage, rollout.is_response)                              # (B, R)

        # 3-4. gradients, descent           epochs of minibatches
        lr = linear(step, iterations, cfg.lr)
        found = update(policy, critic, optimizer, rollout, advantage, returns, lr, step, cfg, world)
        done = time.perf_counter()

        # 5. a line in the log, a state to come back to
        tokens = int(rollout.is_response.sum())
        run.log(step, **statistics(rollout, returns, cfg, tokenizer.eot_token), **found, lr=lr,
                episodes=(step + 1) * cfg.batch, rollout_seconds=written - began,
                rollout_tokens_per_second=tokens / (written - began), update_seconds=done - written,
                update_tokens_per_second=cfg.epochs * tokens / (done - written))
        if cfg.snapshot_every and (step + 1) % cfg.snapshot_every == 0:
            run.save(f"snapshots/step-{step + 1:06d}", policy)
            run.save(f"snapshots/critic-{step + 1:06d}", critic)
        run.save_if_due(step)
    run.finish(model=policy, critic=critic)


def main(argv=None):
    launch(train, Config, argv, __doc__, PRESETS)


if __name__ == "__main__":
    main()
