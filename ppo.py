r"""Chapter 8. Reinforcement learning: write what people prefer, without forgetting how to write.

    total = r(post, summary) - beta * log[ pi(summary | post) / pi_sft(summary | post) ]

The mean of that log over the policy's own summaries is the KL divergence: how far the policy has
moved from the supervised one. PPO (Schulman et al. 2017) raises the mean total (sections 3.4, B.1).

1. Gradient. The mean total is the sum over all summaries of pi * total. The derivative of log x is
1 / x, so grad pi = pi * grad log pi, and

    grad of the mean total = sum of  grad pi * total = sum of  pi * grad log pi * total
                           = mean of  total * grad log pi,  over the policy's own summaries

Each summary becomes more probable in proportion to its total.

2. Advantage. log pi(summary) is a sum over tokens. Let c be the same whichever token comes next:

    mean of  c * grad log pi(token) = c * sum of  grad pi = c * grad of  sum of  pi = c * grad 1 = 0

So c may be subtracted from the total: no mean changes, but there is less noise. Before token t,

    c[t] = the rewards of the tokens before t + value[t], what is then expected of the rest

What is left is the advantage A[t]: how much better it turned out than was expected. (With lambda
below 1, see `gae`, later surprises count a little less.) The gradient is the mean of the sum, over
tokens, of  A * grad log pi(token).

3. Ratio. Writing is slow, so a batch serves several optimizer steps. After the first the policy is
no longer pi_old, which wrote the batch. A token now counts for ratio = pi(token) / pi_old(token).
The gradient of  A * ratio  is A * ratio * grad log pi(token): at ratio 1 that of step 2.

4. Clip. Far from pi_old this correction cannot be trusted. Once the ratio has moved 20 % in the
direction that A pushes, the loss goes flat: its gradient is 0. See `policy_loss`.

Four networks of one architecture take part:

    policy         trained   starts as the supervised policy
    reference      frozen    the supervised policy; KL is measured from it
    critic         trained   starts as the reward model; predicts the rewards that are to come
    reward_model   frozen    scores whole summaries

One response, "He quit <|endoftext|>", to a query of n; beta .05, score 2, gamma 1, lambda .95:

    column                                                    n-1     n      n+1    n+2    n+3
    token                                                     ":"    "He"   "quit"  eot    pad
    t          of the response token that is chosen here       0      1      2       -      -
    chosen                                                    "He"  "quit"  eot
    l[t]       its log ratio, log pi - log pi_sft             .40   -.20    .10
    reward[t]  -beta * l[t]; the last token: + score         -.02    .01   1.995
    value[t]   rewards from t on, as the critic expects      1.00   1.20   1.50
    delta[t]   reward[t] + value[t+1] - value[t]              .18    .31    .495
    A[t]       delta[t] + .95 * A[t+1]                        .92    .78    .495
    return[t]  A[t] + value[t], what it should have been     1.92   1.98   1.995

Read downwards: "He" stands in column n, but is chosen, and its value read, one column earlier. The
critic expects 1.00 before "He" and 1.20 after it: with the reward of -.02, this token was .18
better than expected. It also made possible what followed: A[0] = .18 + .95 * .31 + .95^2 * .495.

    python ppo.py --preset toy --policy runs/mine/supervised --reward runs/mine/reward \
                  --data data/mine --out runs/mine/ppo                       # two minutes

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
from model import Rows, lay_out, load_model, score_rows, token_logp
from runtime import Common, Problem, Run, accumulate, adam, flag, generator, launch, optimizer_step
from sample import generate, uniforms
from sft import filled

GAMMA = 1.0       # discount a token; 1: a summary is worth the same however long it is
LAMBDA = 0.95     # GAE's lambda; 1 trusts the rewards, 0 the critic
VF_COEF = 0.1     # weight of the critic's loss: the critic is a network of its own, so no trade-off
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
    kl_coef: float = flag(0.05, "beta, the price of a nat of KL; try .2 of the log's score_std")
    temperature: float = flag(0.7, "divides the logits, in every log-probability", least=0.01)
    missing_eot: float = flag(-1.0, "score of a summary without end", least=float("-inf"))
    clip_ratio: float = flag(0.2, "how far a ratio or a value may move before its gradient stops")
    snapshot_every: int = flag(0, "iterations between snapshots/ of policy and critic; 0: none")


# DIFFERS: toy and laptop sample at temperature 1 and take 4 optimizer steps an epoch.
SMALL = dict(temperature=1.0, episodes=3072, batch=256, minibatches=4, micro_batch=64, save_every=5)
PRESETS = {     # the last two rows: the paper's (B.1); where it is silent, the 2019 code's
    "toy": dict(SMALL, query_length=256, rollout_batch=128, lr=1.5e-4, kl_coef=0.2,
                snapshot_every=4),
    "laptop": dict(SMALL, query_length=320, response_length=32, lr=2e-4),
    "gpt2": dict(lr=1.5e-5, save_every=50),
    "1.3b": dict(lr=1.5e-5, batch=512, micro_batch=8, save_every=50),
    "6.7b": dict(lr=7e-6, batch=256, micro_batch=4, rollout_batch=32, save_every=50)}


class Rollout(NamedTuple):               # all that PPO knows of a batch of summaries
    tokens: Tensor       # (B, T)  long, query | response | padding
    columns: Tensor      # (B, R)  long, where response token t is predicted
    targets: Tensor      # (B, R)  long, response token t
    is_response: Tensor  # (B, R)  bool, True up to and including the last response token
    old_logp: Tensor     # (B, R)  log pi_old(token), nats; like the next two, 0 past the end
    ref_logp: Tensor     # (B, R)  log pi_sft(token), nats
    value: Tensor        # (B, R)  the critic's, before the token is seen
    score: Tensor        # (B,)    the reward model's, or --missing-eot where no <|endoftext|> is
    advantage: Tensor = None    # (B, R)  these two are known when the whole batch is written:
    returns: Tensor = None      # (B, R)  `whiten` and `gae`, in step 2 of `train`


def log_probs(network, rows, temperature):
    """log pi(token) of the response tokens of Rows or of a Rollout, in nats. (b, R)"""
    return token_logp(network(rows.tokens, at=rows.columns), rows.targets, temperature)


@torch.no_grad()
def roll_out(policy, reference, critic, reward_model, queries, ids, iteration, cfg, world):
    """Let the policy summarise this process's queries, and the other networks read the summaries.

    queries: token lists. ids: a number for each, from which (with seed and iteration) all its
    random numbers follow. Returns: Rollout of the global batch, the same in every process."""
    pad, eot, R = policy.config.n_vocab, policy.config.n_vocab - 1, cfg.response_length
    u = uniforms(cfg.seed, "rollout", iteration, ids, R)                                # (b, R)
    parts = []
    # `gathered`: a sharded network's forward pass needs all processes at the same time, but each
    # stops writing when its own summaries have ended. So each fetches the whole policy first.
    with world.mixed(), world.gathered(policy):
        for start in range(0, len(queries), cfg.rollout_batch):
            some = slice(start, start + cfg.rollout_batch)
            said, old_logp = generate(policy, queries[some], R, cfg.temperature, u[some])
            responses = [tokens[tokens != pad].tolist() for tokens in said.cpu()]
            rows = lay_out(queries[some], responses, pad, R).to(world.device)
            if world.bf16:
                # `generate` rounds differently from `update`, by .01: it would pass for learning.
                old_logp = log_probs(policy, rows, cfg.temperature)                     # (b, R)
            ref_logp = log_probs(reference, rows, cfg.temperature)                      # (b, R)
            value = critic(rows.tokens, at=rows.columns)                                # (b, R)
            score = score_rows(reward_model, rows)                                      # (b,)
            score = score.masked_fill(~(said == eot).any(1), cfg.missing_eot)
            old_logp, ref_logp, value = [x.masked_fill(~rows.is_response, 0)
                                         for x in (old_logp, ref_logp, value)]
            parts.append((*rows, old_logp, ref_logp, value, score))
    T = world.max(max(tokens.shape[1] for tokens, *_ in parts))
    parts = [(F.pad(tokens, (0, T - tokens.shape[1]), value=pad), *rest) for tokens, *rest in parts]
    return Rollout(*(world.gather(torch.cat(field)) for field in zip(*parts, strict=True)))


def token_rewards(rollout, kl_coef):
    """What each token earns: minus beta times its log ratio; the last one also the score. (B, R)

    A row sums to the total of section 3.4. Why is the log ratio not in the loss? There its gradient
    is grad log pi, whose mean is 0. As a reward it also counts for the tokens before it (`gae`)."""
    reward = -kl_coef * (rollout.old_logp - rollout.ref_logp)                           # (B, R)
    end = rollout.is_response.sum(1, keepdim=True) - 1                                  # (B, 1)
    return reward.scatter_add(1, end, rollout.score[:, None])


def gae(reward, value, gamma, lam):
    """Generalised advantage estimation (Schulman et al. 2016): the table above, from the right.

    reward, value: (B, R), 0 past the end, where nothing more is expected. At lam = 1 the values
    cancel: A[t] is the rewards from t on minus value[t], right but noisy. At lam = 0 it is delta[t]
    alone: quiet, but only as good as the critic. Returns: advantage and return, both (B, R)."""
    advantage = torch.zeros_like(reward)                                                # (B, R)
    next_advantage = next_value = torch.zeros_like(reward[:, 0])                        # (B,)
    for t in reversed(range(reward.shape[1])):
        delta = reward[:, t] + gamma * next_value - value[:, t]                         # (B,)
        next_advantage = delta + gamma * lam * next_advantage
        next_value = value[:, t]
        advantage[:, t] = next_advantage
    return advantage, advantage + value


def whiten(advantage, is_response):
    """Mean 0, variance 1 (over N, not N - 1) of the batch's response tokens. (B, R), 0 past the end

    Variance 1: the size of a step no longer depends on the unit of the scores. Mean 0 is allowed:
    one number that is taken from every advantage is a c of step 2 above (exactly so at ratio 1)."""
    real = advantage[is_response]                                                       # (N,)
    scaled = (real - real.mean()) * (real.var(unbiased=False) + 1e-8).rsqrt()
    return torch.zeros_like(advantage).masked_scatter(is_response, scaled)


def policy_loss(logp, old_logp, advantage, clip):
    """PPO's loss: less of it means more of what turned out better than expected.

        loss = max(-A * ratio, -A * clamp(ratio, 1 - clip, 1 + clip))

    The larger of the two: so clipping takes away what a token could still gain, never what it
    costs. The four cases at clip = .2; in two of them the larger does not depend on the ratio:

         A   ratio                                     plain   clipped
         1    1.5    good, and already more probable   -1.5     -1.2    flat: enough for this batch
         1     .5    good, but less probable            -.5      -.8    raises pi
        -1    1.5    bad, but more probable             1.5      1.2    lowers pi
        -1     .5    bad, and already less probable      .5       .8    flat: enough for this batch

    Of each token, and whether it is flat: (b, R), (b, R) bool."""
    ratio = (logp - old_logp).exp()                                                     # (b, R)
    plain, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped), clipped > plain


def value_loss(value, old_value, returns, clip):
    """The critic's loss: flat, too, once a value has come `clip` closer to the return. (b, R)"""
    clipped = torch.clamp(value, old_value - clip, old_value + clip)                    # (b, R)
    return 0.5 * torch.maximum((value - returns) ** 2, (clipped - returns) ** 2)


def minibatch_loss(policy, critic, micro, T, R, cfg):
    """Losses of a micro-batch, a Rollout of b rows that reach to column T and have at most R
    response tokens, and more to log: {name: sum over tokens}."""
    rows = Rows(micro.tokens[:, :T], micro.columns[:, :R], micro.targets[:, :R],
                micro.is_response[:, :R])
    # Past the end all of these are 0, and so is every loss.
    logp, value, old_logp, old_value, advantage, returns = [                            # (b, R)
        x.masked_fill(~rows.is_response, 0) for x in (
            log_probs(policy, rows, cfg.temperature), critic(rows.tokens, at=rows.columns),
            *(x[:, :R] for x in (micro.old_logp, micro.value, micro.advantage, micro.returns)))]
    # One --clip-ratio limits both: a ratio, and a value in the unit of the scores.
    loss, is_flat = policy_loss(logp, old_logp, advantage, cfg.clip_ratio)
    change = (logp - old_logp).detach()                                                 # (b, R)
    of_tokens = {"policy_loss": loss,
                 "value_loss": value_loss(value, old_value, returns, cfg.clip_ratio),
                 "clip_fraction": is_flat.to(loss),
                 "approx_kl": 0.5 * change ** 2,           # near the KL from pi_old to pi
                 "rollout_mismatch": change.abs()}         # before the first step: rounding only
    return {name: x.sum() for name, x in of_tokens.items()}


def linear(iteration, iterations, peak):
    return peak * (1 - iteration / iterations)          # the learning rate falls from peak to 0


def update(policy, critic, optimizer, rollout, lr, iteration, cfg, world):
    """Learn from a batch: `epochs` passes over it, in `minibatches` optimizer steps each.

    All losses are means over the minibatch's tokens, not over its summaries. Each token counts the
    same, as in the gradient of step 2; so a summary of 40 tokens counts twice as much as one of 20.
    Returns: for the log, means over all optimizer steps; of rollout_mismatch, the first step's."""
    # Known to the CPU once, so that no micro-batch has to wait for the device to say its size.
    lengths, ends = torch.stack([rollout.is_response.sum(1), rollout.columns.amax(1)]).cpu()  # (B,)
    losses, norms = [], []                            # of each optimizer step
    for epoch in range(cfg.epochs):
        order = generator(cfg.seed, "minibatch", iteration, epoch).permutation(len(ends))
        for picked in torch.from_numpy(order).tensor_split(cfg.minibatches):
            picked = picked[ends[picked].argsort(stable=True)]    # similar lengths: less padding
            count = int(lengths[picked].sum())                    # tokens, of all processes
            totals = {}
            for part in accumulate(world.share(picked), cfg.micro_batch, policy, critic):
                T, R = int(ends[part].max()) + 1, int(lengths[part].max())    # no wider than needed
                part = part.to(world.device, non_blocking=True)
                micro = Rollout(*(field[part] for field in rollout))
                with world.mixed():
                    sums = minibatch_loss(policy, critic, micro, T, R, cfg)
                means = {name: x / count for name, x in sums.items()}
                loss = means["policy_loss"] + VF_COEF * means["value_loss"]
                (loss * world.size).backward()              # as in sft.py
                for name, x in means.items():
                    totals[name] = totals.get(name, 0) + x.detach()
            losses.append(world.sum(torch.stack(list(totals.values()))))                # (5,)
            norms.append(optimizer_step({"grad_norm": policy, "critic_grad_norm": critic},
                                        optimizer, lr, iteration, MAX_NORM))
    mean, first = (dict(zip(totals, x.tolist(), strict=True))
                   for x in (torch.stack(losses).mean(0), losses[0]))
    mean |= {name: sum(norm[name] for norm in norms) / len(norms) for name in norms[0]}
    return {**mean, "rollout_mismatch": first["rollout_mismatch"]}


def statistics(rollout, cfg, eot):
    """What the log says of a batch before anything is learned from it: {name: number}."""
    is_response = rollout.is_response                                                   # (B, R)
    log_ratio = rollout.old_logp - rollout.ref_logp                                     # (B, R)
    score, kl = rollout.score.mean().item(), log_ratio.sum(1).mean().item()    # kl: a summary's
    value, returns = rollout.value[is_response], rollout.returns[is_response]           # (N,), (N,)
    # Token pairs that stood in the same summary before: near 0 in prose, 1 in a loop.
    texts = [tokens[real] for tokens, real in zip(rollout.targets, is_response, strict=True)]
    pairs = [list(pairwise(tokens.tolist())) for tokens in texts]
    repeated = sum(len(each) - len(set(each)) for each in pairs)
    return {"score": score, "kl": kl, "reward": score - cfg.kl_coef * kl,
            "length": is_response.sum(1).float().mean().item(),
            "eot_rate": (rollout.targets == eot).any(1).float().mean().item(),
            "entropy": -rollout.old_logp[is_response].mean().item(),
            "kl_k3": ((-log_ratio).expm1() + log_ratio).sum(1).mean().item(),    # r - 1 - log r
            "score_std": rollout.score.std().item(),
            "repeated": repeated / max(1, sum(len(each) for each in pairs)),
            "explained_variance": 1 - ((returns - value).var() / returns.var()).item(),
            "return_mean": returns.mean().item()}


def prepare(cfg, world):
    """Tokenizer, posts and the four networks. Raises: Problem when they do not fit together."""
    if cfg.batch % (cfg.minibatches * world.size) or cfg.batch > cfg.episodes:
        raise Problem(f"--batch {cfg.batch} must divide over {world.size} processes times "
                      f"{cfg.minibatches} --minibatches, and be at most --episodes {cfg.episodes}")
    tokenizer = data.load_tokenizer(cfg.policy)
    if not data.same_tokenizer(tokenizer, data.load_tokenizer(cfg.reward)):
        raise Problem("--policy and --reward have different tokenizers: see --init of reward.py")
    policy, critic = load_model(cfg.policy, world), load_model(cfg.reward, world)
    reference = load_model(cfg.policy, world, frozen=True)
    reward_model = load_model(cfg.reward, world, frozen=True)
    if policy.config.head != "lm" or critic.config.head == "lm":
        raise Problem(f"{cfg.policy} is no policy, or {cfg.reward} no reward model: swapped?")
    for network in (policy, critic):
        network.check(cfg.query_length + cfg.response_length)
    posts = data.read_posts(cfg.data, "train", need_summary=False)
    data.check_queries(tokenizer, posts, cfg.query_length)
    return tokenizer, posts, *(world.parallelize(network, cfg) for network in
                               (policy, reference, critic, reward_model))


def train(cfg, world):
    """Write, score, learn; again and again."""
    cfg = filled(cfg, cfg.policy, cfg.reward)          # posts as both networks know them
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

    for iteration in run.steps(iterations):
        # 1. batch: the policy's own summaries, read by all four networks
        began = time.perf_counter()
        mine = world.share(batches.at(iteration))
        queries = [data.encode_query(tokenizer, posts[i], cfg.query_length, cfg.fill) for i in mine]
        rollout = roll_out(policy, reference, critic, reward_model, queries, mine, iteration, cfg,
                           world)
        run.finite(iteration, "the reward model's score", rollout.score, f"see {cfg.reward}'s log")
        written = time.perf_counter()

        # 2. weigh: how much better than expected each token was
        reward = token_rewards(rollout, cfg.kl_coef)                                    # (B, R)
        advantage, returns = gae(reward, rollout.value, GAMMA, LAMBDA)          # (B, R), (B, R)
        advantage = whiten(advantage, rollout.is_response)                              # (B, R)
        rollout = rollout._replace(advantage=advantage, returns=returns)

        # 3-4. gradients, descent: epochs of minibatches
        lr = linear(iteration, iterations, cfg.lr)
        learned = update(policy, critic, optimizer, rollout, lr, iteration, cfg, world)
        done = time.perf_counter()

        # 5. log, save
        tokens = int(rollout.is_response.sum())
        run.log(iteration, **statistics(rollout, cfg, tokenizer.eot_token), **learned, lr=lr,
                episodes=(iteration + 1) * cfg.batch, rollout_seconds=written - began,
                rollout_tokens_per_second=tokens / (written - began), update_seconds=done - written,
                update_tokens_per_second=cfg.epochs * tokens / (done - written))
        if cfg.snapshot_every and (iteration + 1) % cfg.snapshot_every == 0:
            run.save(f"snapshots/step-{iteration + 1:06d}", policy)
            run.save(f"snapshots/critic-{iteration + 1:06d}", critic)
        run.save_if_due(iteration)
    run.finish(model=policy, critic=critic)


def main(argv=None):
    launch(train, Config, argv, __doc__, PRESETS)


if __name__ == "__main__":
    main()
