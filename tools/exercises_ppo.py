"""Appendix. The exercises of chapter 8: rewards, advantages, the clipped losses, four networks.

Each class is one exercise (tools/exercises_check.py says what that is). No chapter is imported
here: an oracle that used the book's own functions could not find fault with them.

    python -m tools.exercises check token_rewards

Read after: ppo.py.
"""
import itertools
import math
from types import SimpleNamespace
from unittest import mock

import torch
import torch.nn.functional as F

from tools.exercises_check import ByHand, Exercise, mistake


def tensors(**fields):
    """A namespace whose lists are tensors."""
    return SimpleNamespace(**{name: torch.tensor(x) for name, x in fields.items()})


class TokenRewards(Exercise):
    chapter, function = "ppo", "token_rewards"
    question = "What does each token earn: the KL penalty, and where the score goes?"
    hints = (
        "The log ratio of a token is old_logp - ref_logp. Writing what the reference would not "
        "have written costs kl_coef times that.",
        "The score is of the whole summary: it is added once, at the last response token of each "
        "row, in column is_response.sum(1) - 1; not in the table's last column.",
        "reward = -kl_coef * (old_logp - ref_logp); end = is_response.sum(1, keepdim=True) - 1; "
        "reward.scatter_add(1, end, score[:, None])")

    def cases():
        """A rollout and kl_coef."""
        return [(tensors(old_logp=[[-1.0, -2.0]], ref_logp=[[-1.4, -1.8]], score=[2.0],
                         is_response=[[True, True]]), 0.5),
                (tensors(old_logp=[[-1.0, -2.0, -1.0], [-0.5, 0, 0]], score=[2.0, -1.0],
                         ref_logp=[[-1.4, -1.8, -1.1], [-1.5, 0, 0]],
                         is_response=[[True, True, True], [True, False, False]]), 0.05)]

    def oracle(rollout, kl_coef):
        """One token at a time."""
        reward = torch.zeros_like(rollout.old_logp)
        for i, t in itertools.product(*map(range, reward.shape)):
            reward[i, t] = kl_coef * (rollout.ref_logp[i, t] - rollout.old_logp[i, t])
            if rollout.is_response[i, t] and not rollout.is_response[i, t + 1:].any():
                reward[i, t] += rollout.score[i]
        return reward

    def right(rollout, kl_coef, column=None, price=None):
        """What the mistakes start from."""
        penalty = -kl_coef * (rollout.old_logp - rollout.ref_logp) if price is None else price
        end = rollout.is_response.sum(1, keepdim=True) - 1
        end = end if column is None else torch.full_like(end, column)
        return penalty.scatter_add(1, end, rollout.score[:, None])

    @mistake
    def wrong_sign(rollout, kl_coef):
        """KL with the wrong sign: the policy is paid for leaving the reference."""
        return TokenRewards.right(rollout, -kl_coef)

    @mistake
    def at_padding(rollout, kl_coef):
        """reward on padding: the score stands in the table's last column, not at each row's end."""
        return TokenRewards.right(rollout, kl_coef, column=rollout.is_response.shape[1] - 1)

    @mistake
    def everywhere(rollout, kl_coef):
        """score at every token: a longer summary would earn more for the same score."""
        penalty = -kl_coef * (rollout.old_logp - rollout.ref_logp)
        return penalty + rollout.score[:, None] * rollout.is_response

    @mistake
    def everywhere_and_padding(rollout, kl_coef):
        """reward on padding: the score was added in all columns, also where no token stands."""
        return -kl_coef * (rollout.old_logp - rollout.ref_logp) + rollout.score[:, None]

    @mistake
    def at_the_start(rollout, kl_coef):
        """reward at the first token: nothing that is written later could earn the score."""
        return TokenRewards.right(rollout, kl_coef, column=0)

    @mistake
    def no_price(rollout, kl_coef):
        """beta forgotten: the log ratio is multiplied by kl_coef."""
        return TokenRewards.right(rollout, 1.0)

    @mistake
    def no_kl(rollout, kl_coef):
        """KL forgotten: nothing keeps the policy near the reference."""
        return TokenRewards.right(rollout, 0.0)

    @mistake
    def replaced(rollout, kl_coef):
        """KL of the last token lost: the score is added to it and does not replace it."""
        penalty = -kl_coef * (rollout.old_logp - rollout.ref_logp)
        end = rollout.is_response.sum(1, keepdim=True) - 1
        return penalty.scatter(1, end, rollout.score[:, None])


class Gae(Exercise):
    chapter, function = "ppo", "gae"
    question = "How much better than expected was each token?"
    hints = (
        "delta[t] = reward[t] + gamma * value[t + 1] - value[t]: one step's surprise. After the "
        "last token nothing is expected: value[R] = 0.",
        "A[t] = delta[t] + gamma * lam * A[t + 1], so go from the right to the left, with "
        "A[R] = 0. The return is A + value.",
        "Keep next_value and next_advantage, (B,) zeros at first; for t in reversed(range(R)): "
        "delta, then next_advantage = delta + gamma * lam * next_advantage, next_value = "
        "value[:, t], advantage[:, t] = next_advantage.")

    def cases():
        """reward, value: (B, R); gamma, lam."""
        t = torch.tensor
        return [(t([[2.0]]), t([[0.5]]), 1.0, 0.95),
                (t([[-0.02, 0.01, 1.995]]), t([[1.0, 1.2, 1.5]]), 1.0, 0.95),
                (t([[0.1, 1.0, 0], [0.2, 0.3, -1.0]]),
                 t([[0.4, 0.6, 0], [0.1, 0.5, 0.7]]), 0.9, 0.5)]

    def run(function, *args):
        """By name."""
        return dict(zip(("advantage", "returns"), function(*args), strict=True))

    def oracle(reward, value, gamma, lam):
        """A[t] = sum over k >= t of (gamma lam)^(k - t) delta[k], each t on its own."""
        B, R = reward.shape
        advantage = torch.zeros(B, R)
        for i, t in itertools.product(range(B), range(R)):
            for k in range(t, R):
                after = value[i, k + 1] if k + 1 < R else 0.0
                advantage[i, t] += (gamma * lam) ** (k - t) * (
                    reward[i, k] + gamma * after - value[i, k])
        return advantage, advantage + value

    @mistake
    def no_next_value(reward, value, gamma, lam):
        """next value left out: a token is also worth what is expected after it."""
        return Gae.oracle(reward - gamma * F.pad(value[:, 1:], (0, 1)), value, gamma, lam)

    @mistake
    def round_the_end(reward, value, gamma, lam):
        """value after the end: nothing is expected there, but this takes the row's first value."""
        wrapped = reward.clone()
        wrapped[:, -1] += gamma * value[:, 0]
        return Gae.oracle(wrapped, value, gamma, lam)

    @mistake
    def no_lambda(reward, value, gamma, lam):
        """lambda forgotten: later surprises count a little less, lam for each token."""
        return Gae.oracle(reward, value, gamma, 1.0)

    @mistake
    def only_delta(reward, value, gamma, lam):
        """later surprises left out: this is delta alone, as at lambda = 0."""
        return Gae.oracle(reward, value, gamma, 0.0)

    @mistake
    def no_gamma(reward, value, gamma, lam):
        """gamma forgotten: it discounts the next value and the next advantage."""
        return Gae.oracle(reward, value, 1.0, lam)

    @mistake
    def from_the_left(reward, value, gamma, lam):
        """from the left: a token cannot earn what came before it; start at the end."""
        delta = reward + gamma * F.pad(value[:, 1:], (0, 1)) - value
        zero = torch.zeros_like(value)
        advantage = Gae.oracle(delta.flip(1), zero, gamma, lam)[0].flip(1)
        return advantage, advantage + value

    @mistake
    def no_value(reward, value, gamma, lam):
        """value not subtracted: these are sums of rewards, not how they differ from what was
        expected."""
        returns = Gae.oracle(reward, torch.zeros_like(value), gamma, lam)[0]
        return returns, returns

    @mistake
    def rewards_to_go(reward, value, gamma, lam):
        """return of rewards alone: here it is advantage + value, which uses lambda as well."""
        return (Gae.oracle(reward, value, gamma, lam)[0],
                Gae.oracle(reward, torch.zeros_like(value), gamma, 1.0)[0])


class Whiten(Exercise):
    chapter, function = "ppo", "whiten"
    question = "Why does the unit of the scores not matter?"
    hints = (
        "Only real tokens count: advantage[is_response] is one list (N,) of them, of the whole "
        "batch.",
        "Subtract its mean, divide by its standard deviation, of variance + 1e-8 with N below (not "
        "N - 1).",
        "Put the result back where it came from, zeros elsewhere: torch.zeros_like(advantage)"
        ".masked_scatter(is_response, scaled)")

    def cases():
        """advantage (B, R), 0 past the end; is_response."""
        return [(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]])),
                (torch.tensor([[1.0, 2, 4], [6, 0, 0]]),
                 torch.tensor([[True, True, True], [True, False, False]]))]

    def oracle(advantage, is_response):
        """With lists."""
        real = [a for row, keep in zip(advantage.tolist(), is_response.tolist(), strict=True)
                for a, k in zip(row, keep, strict=True) if k]
        mean = sum(real) / len(real)
        size = math.sqrt(sum((a - mean) ** 2 for a in real) / len(real))
        return torch.tensor([[(a - mean) / size if k else 0.0 for a, k in zip(*row, strict=True)]
                             for row in zip(advantage.tolist(), is_response.tolist(), strict=True)])

    def scaled(advantage, among, keep, unbiased=False, power=-0.5):
        """What the mistakes start from: mean and variance among some tokens."""
        real = advantage[among]
        x = (advantage - real.mean()) * (real.var(unbiased=unbiased) + 1e-8) ** power
        return x.masked_fill(~keep, 0)

    @mistake
    def over_padding(advantage, is_response):
        """whitening over padding: the zeros past the end change mean and variance."""
        return Whiten.scaled(advantage, torch.ones_like(is_response), is_response)

    @mistake
    def over_and_into_padding(advantage, is_response):
        """whitening over padding: the zeros past the end change mean and variance, and move."""
        every = torch.ones_like(is_response)
        return Whiten.scaled(advantage, every, every)

    @mistake
    def over_padding_by_std(advantage, is_response):
        """whitening over padding: the zeros past the end change mean and variance."""
        every = torch.ones_like(is_response)
        return Whiten.scaled(advantage, every, is_response, unbiased=True)

    @mistake
    def over_and_into_padding_by_std(advantage, is_response):
        """whitening over padding: the zeros past the end change mean and variance, and move."""
        every = torch.ones_like(is_response)
        return Whiten.scaled(advantage, every, every, unbiased=True)

    @mistake
    def into_padding(advantage, is_response):
        """padding moved: past the end the advantage has to stay 0."""
        return Whiten.scaled(advantage, is_response, torch.ones_like(is_response))

    @mistake
    def by_row(advantage, is_response):
        """each row by itself: then a bad summary's tokens look as good as a good one's."""
        return torch.cat([Whiten.scaled(a[None], k[None], k[None])
                          for a, k in zip(advantage, is_response, strict=True)])

    @mistake
    def mean_left(advantage, is_response):
        """mean not subtracted: it has to be 0 afterwards."""
        return advantage * (advantage[is_response].var(unbiased=False) + 1e-8).rsqrt()

    @mistake
    def sample_variance(advantage, is_response):
        """N - 1: the variance's sum is divided by N here."""
        return Whiten.scaled(advantage, is_response, is_response, unbiased=True)

    @mistake
    def by_the_variance(advantage, is_response):
        """root forgotten: divide by the standard deviation, not by the variance."""
        return Whiten.scaled(advantage, is_response, is_response, power=-1)


def with_slope(function, x, *args):
    """A loss of each token, and its gradient for x. A second result says where it is flat."""
    x = x.clone().requires_grad_()
    loss, *more = found if isinstance(found := function(x, *args), tuple) else (found,)
    slope = torch.autograd.grad(loss.sum(), x)[0] if loss.requires_grad else torch.zeros_like(x)
    return {"loss": loss.detach(), **({"is_flat": more[0]} if more else {}), "gradient": slope}


class PolicyLoss(Exercise):
    chapter, function = "ppo", "policy_loss"
    question = "How far may one batch move the policy?"
    hints = (
        "ratio = pi / pi_old = exp(logp - old_logp). Without clipping the loss is -advantage * "
        "ratio.",
        "The clipped one uses ratio.clamp(1 - clip, 1 + clip). Take the larger of the two losses, "
        "token by token: clipping takes away gains only, never costs.",
        "plain, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip); return "
        "torch.maximum(plain, clipped), clipped > plain")

    def cases():
        """logp, old_logp, advantage: (b, R); clip. Ratios of 1.5, .5 and 1.1."""
        ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.1]])
        old, advantage = torch.tensor([[-1.0, -2, -1, -1, -3]]), torch.tensor([[1.0, 1, -1, -1, 2]])
        one = slice(0, 1)
        return [(old[:, one] + ratio[:, one].log(), old[:, one], advantage[:, one], 0.2),
                (old + ratio.log(), old, advantage, 0.2)]

    def run(function, logp, *args):
        """The loss, where it is flat, and its gradient for logp."""
        return with_slope(function, logp, *args)

    def oracle(logp, old_logp, advantage, clip):
        """One token at a time, the four cases of the docstring as ifs."""
        losses, flat = torch.zeros(0), []
        for new, old, a in zip(logp[0], old_logp[0], advantage[0], strict=True):
            ratio = math.e ** (new - old)
            far = (a > 0 and ratio > 1 + clip) or (a < 0 and ratio < 1 - clip)
            limit = 1 + clip if a > 0 else 1 - clip
            loss = -a * limit + 0 * new if far else -a * ratio
            losses, flat = torch.cat([losses, loss[None]]), [*flat, bool(far)]
        return losses[None], torch.tensor([flat])

    def parts(logp, old_logp, advantage, clip):
        """What the mistakes start from."""
        ratio = (logp - old_logp).exp()
        return -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)

    @mistake
    def upside_down(logp, old_logp, advantage, clip):
        """ratio upside down: it is pi / pi_old; the other way, good tokens become rarer."""
        plain, clipped = PolicyLoss.parts(-logp, -old_logp, advantage, clip)
        return torch.maximum(plain, clipped), clipped > plain

    @mistake
    def always_clipped(logp, old_logp, advantage, clip):
        """clip outside the minimum: the clipped loss alone also stops what has gone wrong from
        being repaired; take the larger of both losses."""
        plain, clipped = PolicyLoss.parts(logp, old_logp, advantage, clip)
        return clipped, clipped > plain

    @mistake
    def product_clipped(logp, old_logp, advantage, clip):
        """clip outside the minimum: the ratio is clamped, not its product with the advantage."""
        plain, clipped = PolicyLoss.parts(logp, old_logp, advantage, clip)
        return -(-plain).clamp(1 - clip, 1 + clip), clipped > plain

    @mistake
    def smaller_ratio(logp, old_logp, advantage, clip):
        """clip outside the minimum: the smaller of two ratios was taken, and then multiplied; for a
        negative advantage that is the wrong one."""
        plain, clipped = PolicyLoss.parts(logp, old_logp, advantage, clip)
        ratio = (logp - old_logp).exp()
        return -advantage * torch.minimum(ratio, ratio.clamp(1 - clip, 1 + clip)), clipped > plain

    @mistake
    def flat_by_ratio(logp, old_logp, advantage, clip):
        """flat where it is not: far from 1, the loss is flat only on the side to which the
        advantage pushes."""
        plain, clipped = PolicyLoss.parts(logp, old_logp, advantage, clip)
        return torch.maximum(plain, clipped), ((logp - old_logp).exp() - 1).abs() > clip

    @mistake
    def optimistic(logp, old_logp, advantage, clip):
        """smaller for larger: of two losses the larger; the minimum is of what is gained."""
        plain, clipped = PolicyLoss.parts(logp, old_logp, advantage, clip)
        return torch.minimum(plain, clipped), clipped > plain

    @mistake
    def unclipped(logp, old_logp, advantage, clip):
        """clip forgotten: nothing stops the policy once the ratio has moved far."""
        plain, clipped = PolicyLoss.parts(logp, old_logp, advantage, clip)
        return plain, clipped > plain

    @mistake
    def gain(logp, old_logp, advantage, clip):
        """wrong sign: this is what is gained; the loss is minus that."""
        plain, clipped = PolicyLoss.parts(logp, old_logp, advantage, clip)
        return -torch.maximum(plain, clipped), clipped > plain

    @mistake
    def no_exp(logp, old_logp, advantage, clip):
        """exp forgotten: log-probabilities are subtracted, so the ratio is exp of that."""
        ratio = logp - old_logp
        plain, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
        return torch.maximum(plain, clipped), clipped > plain

    @mistake
    def detached(logp, old_logp, advantage, clip):
        """ratio without gradient: detached from logp, this loss teaches nothing."""
        return PolicyLoss.oracle(logp.detach(), old_logp, advantage, clip)


class ValueLoss(Exercise):
    chapter, function = "ppo", "value_loss"
    question = "How far may one batch move the critic?"
    hints = (
        "Half the squared error: 0.5 * (value - returns)^2.",
        "The same of a second value, that may differ from old_value by `clip` at most.",
        "clipped = torch.clamp(value, old_value - clip, old_value + clip); 0.5 * torch.maximum of "
        "the two squared errors.")

    def cases():
        """value, old_value, returns: (b, R); clip."""
        value, old = torch.tensor([[1.5, 0.5, 1.1, 0.3]]), torch.tensor([[1.0, 1.0, 1.0, 0.6]])
        returns, one = torch.tensor([[2.0, 2.0, 2.0, 0.0]]), slice(0, 1)
        return [(value[:, one], old[:, one], returns[:, one], 0.2), (value, old, returns, 0.2)]

    def run(function, value, *args):
        """The loss and its gradient for the value."""
        return with_slope(function, value, *args)

    def oracle(value, old_value, returns, clip):
        """One token at a time."""
        losses = []
        for new, old, goal in zip(value[0], old_value[0], returns[0], strict=True):
            near = old + clip if new > old + clip else old - clip if new < old - clip else new
            plain, clipped = (new - goal) ** 2 / 2, (near - goal) ** 2 / 2
            losses.append(clipped if clipped > plain else plain)
        return torch.stack(losses)[None]

    def parts(value, old_value, returns, clip):
        """What the mistakes start from."""
        clipped = torch.clamp(value, old_value - clip, old_value + clip)
        return 0.5 * (value - returns) ** 2, 0.5 * (clipped - returns) ** 2

    @mistake
    def always_clipped(value, old_value, returns, clip):
        """clip outside the maximum: take the larger of both errors, not the clipped one alone."""
        return ValueLoss.parts(value, old_value, returns, clip)[1]

    @mistake
    def optimistic(value, old_value, returns, clip):
        """smaller for larger: of two losses the larger."""
        return torch.minimum(*ValueLoss.parts(value, old_value, returns, clip))

    @mistake
    def unclipped(value, old_value, returns, clip):
        """clip forgotten: nothing stops the critic once the value has moved far."""
        return ValueLoss.parts(value, old_value, returns, clip)[0]

    @mistake
    def whole(value, old_value, returns, clip):
        """half forgotten: half the squared error, whose gradient is the error itself."""
        return 2 * torch.maximum(*ValueLoss.parts(value, old_value, returns, clip))

    @mistake
    def as_a_ratio(value, old_value, returns, clip):
        """clipped as a ratio: a value is limited to old_value plus or minus clip."""
        clipped = torch.clamp(value / old_value, 1 - clip, 1 + clip) * old_value
        return 0.5 * torch.maximum((value - returns) ** 2, (clipped - returns) ** 2)


LOSSES = "policy_loss", "value_loss", "clip_fraction", "approx_kl", "rollout_mismatch"


class MinibatchLoss(Exercise):
    chapter, function = "ppo", "minibatch_loss"
    question = "What do policy and critic learn from one piece of a batch?"
    told = ("Names: policy_loss, value_loss (the functions above), clip_fraction (where the first "
            "is flat), approx_kl (half the squared change of logp), rollout_mismatch (its size).")
    hints = (
        "Ask the policy for logp (`log_probs`) and the critic for values at rows.columns, now; "
        "what was true when the batch was written is in `micro`.",
        "Past the end, all six tables of numbers must be 0: masked_fill(~rows.is_response, 0). "
        "Advantage and returns come from `micro`, fixed: no gradient goes through them.",
        "policy_loss(logp, old_logp, advantage, cfg.clip_ratio) gives loss and is_flat; value_loss("
        "value, old_value, returns, cfg.clip_ratio); change = (logp - old_logp).detach(); return "
        "the sum of each over all tokens.")

    def cases():
        """Networks by hand; two rows, of 2 and of 1 response token; T, R, cfg."""
        micro = tensors(
            tokens=[[1, 2, 3, 5], [4, 3, 5, 6]], columns=[[1, 2], [1, 2]],
            targets=[[3, 5], [5, 6]], is_response=[[True, True], [True, False]],
            old_logp=[[-1.5, -1.0], [-2.0, 0.0]], ref_logp=[[-1.4, -1.1], [-1.7, 0.0]],
            value=[[0.5, 1.0], [2.0, 0.0]], score=[1.0, -1.0],
            advantage=[[0.5, -1.2], [0.7, 0.0]], returns=[[1.1, 0.2], [1.5, 0.0]])
        one = SimpleNamespace(**{name: x[:1] for name, x in vars(micro).items()})
        cfg = SimpleNamespace(temperature=0.7, clip_ratio=0.2)
        return [(ByHand(6), ByHand(6, "scalar"), some, 4, 2, cfg) for some in (one, micro)]

    def run(function, policy, critic, *args):
        """All sums, and where the gradients of two of them go."""
        def pull(name, network):
            loss = sums[name]
            if not loss.requires_grad:
                return torch.zeros_like(network.weight)
            found = torch.autograd.grad(loss, network.weight, retain_graph=True, allow_unused=True)
            return torch.zeros_like(network.weight) if found[0] is None else found[0]
        sums = function(policy, critic, *args)
        return {"policy_loss moves the critic": bool(pull("policy_loss", critic).any()),
                **{name: sums[name].detach() for name in LOSSES},
                "gradient for the policy": pull("policy_loss", policy),
                "gradient for the critic": pull("value_loss", critic)}

    def oracle(policy, critic, micro, T, R, cfg, live=False, past_the_end=False, cold=False):
        """One token at a time, by the oracles of policy_loss and value_loss; and variants."""
        sums = dict.fromkeys(LOSSES, 0.0)
        values, logits = critic(micro.tokens), policy(micro.tokens)
        for i, t in itertools.product(*map(range, micro.is_response.shape)):
            if not (past_the_end or micro.is_response[i, t]):
                continue
            at, token = micro.columns[i, t], int(micro.targets[i, t]) % 6      # padding as id 0
            scaled = logits[i, at] / (1.0 if cold else cfg.temperature)
            logp, value = scaled[token] - scaled.exp().sum().log(), values[i, at]
            old_logp, old_value, advantage, returns = (
                x[i, t] for x in (micro.old_logp, micro.value, micro.advantage, micro.returns))
            advantage = returns - value if live else advantage
            loss, flat = PolicyLoss.oracle(*(x[None, None] for x in (logp, old_logp, advantage)),
                                           cfg.clip_ratio)
            of_value = ValueLoss.oracle(*(x[None, None] for x in (value, old_value, returns)),
                                        cfg.clip_ratio)
            change = (logp - old_logp).detach()
            for name, x in zip(LOSSES, (loss.sum(), of_value.sum(), flat.sum().float(),
                                        change ** 2 / 2, change.abs()), strict=True):
                sums[name] = sums[name] + x
        return sums

    @mistake
    def live_advantage(policy, critic, micro, T, R, cfg):
        """advantage not detached: computed from the critic as it is now, it lets the policy's loss
        move the critic; take the batch's own, which is fixed."""
        return MinibatchLoss.oracle(policy, critic, micro, T, R, cfg, live=True)

    @mistake
    def padding(policy, critic, micro, T, R, cfg):
        """losses on padding: past the end the new numbers must be 0, as the old ones are."""
        return MinibatchLoss.oracle(policy, critic, micro, T, R, cfg, past_the_end=True)

    @mistake
    def mean(policy, critic, micro, T, R, cfg):
        """mean over padding: the sum is wanted; `update` divides by the number of real tokens."""
        sums = MinibatchLoss.oracle(policy, critic, micro, T, R, cfg)
        return {name: x / micro.is_response.numel() for name, x in sums.items()}

    @mistake
    def cold(policy, critic, micro, T, R, cfg):
        """temperature forgotten: old_logp is that of softmax(logits / temperature)."""
        return MinibatchLoss.oracle(policy, critic, micro, T, R, cfg, cold=True)


def load_model(folder, world=None, head=None, seed=0, frozen=False):
    """In the place of model.load_model: what was asked for, no network. `Prepare` counts them."""
    config = SimpleNamespace(head="scalar" if folder == "R" else "lm", context=100)
    return SimpleNamespace(folder=folder, frozen=frozen, config=config, check=lambda T: None)


class Prepare(Exercise):
    chapter, function = "ppo", "prepare"
    assigned = "policy", "reference", "reward_model"
    question = "Which four networks take part, and which of them learn?"
    told = "Only the networks are missing: policy, critic, reference, reward_model (see the top)."
    hints = (
        "Two are trained, two are frozen. The policy starts as the supervised policy (cfg.policy), "
        "the critic as the reward model (cfg.reward).",
        "The reference stays what the policy was at the start: so it needs weights of its own. The "
        "same for the reward model and the critic.",
        "load_model four times: cfg.policy and cfg.reward with `world`, and both once more with "
        "`world, frozen=True`.")

    def cases():
        """cfg and a world of one process."""
        cfg = SimpleNamespace(policy="P", reward="R", data="D", batch=4, minibatches=2, episodes=8,
                              query_length=8, response_length=4)
        world = SimpleNamespace(size=1, rank=0, parallelize=lambda network, cfg: network)
        return [(cfg, world)]

    def run(function, cfg, world):
        """Of the four networks: from which folder, frozen or not, and which of them are one."""
        nothing = SimpleNamespace(load_tokenizer=str, same_tokenizer=lambda a, b: True,
                                  read_posts=lambda *a, **b: [], check_queries=lambda *a: None)
        with mock.patch.dict(function.__globals__, load_model=load_model, data=nothing):
            networks = dict(zip(("policy", "reference", "critic", "reward model"),
                                function(cfg, world)[-4:], strict=True))
        one = [f"{a} and {b}" for a, b in itertools.combinations(networks, 2)
               if networks[a] is networks[b]]
        return {"the same network": one, **{
            name: f"from {network.folder}, {'frozen' if network.frozen else 'trained'}"
            for name, network in networks.items()}}

    def oracle(cfg, world):
        return (load_model("P"), load_model("P", frozen=True), load_model("R"),
                load_model("R", frozen=True))

    @mistake
    def one_policy(cfg, world):
        """reference updated along with the policy: they are one network, so the KL is always 0."""
        policy = load_model("P")
        return policy, policy, load_model("R"), load_model("R", frozen=True)

    @mistake
    def one_reward_model(cfg, world):
        """reward model updated along with the critic: they are one network, so scores move."""
        critic = load_model("R")
        return load_model("P"), load_model("P", frozen=True), critic, critic

    @mistake
    def both(cfg, world):
        """reference updated along with the policy: they are one network; so are the reward model
        and the critic."""
        policy, critic = load_model("P"), load_model("R")
        return policy, policy, critic, critic

    @mistake
    def warm(cfg, world):
        """nothing frozen: a network that is not trained needs no gradients: frozen=True."""
        return load_model("P"), load_model("P"), load_model("R"), load_model("R")

    @mistake
    def critic_from_policy(cfg, world):
        """critic from the policy: the paper's starts as the reward model."""
        return (load_model("P"), load_model("P", frozen=True), load_model("P"),
                load_model("R", frozen=True))


EXERCISES = [TokenRewards, Gae, Whiten, PolicyLoss, ValueLoss, MinibatchLoss, Prepare]
