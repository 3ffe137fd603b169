"""Appendix. The exercises of chapter 8: rewards, advantages, the clipped losses, four networks.

Each class is one exercise (tools/exercises_check.py says what that is). No chapter is imported
here: an oracle that used the book's own functions could not find fault with them.

    python -m tools.exercises check token_rewards

Read after: ppo.py.
"""
import inspect
import itertools
import math
from types import SimpleNamespace
from unittest import mock

import torch
import torch.nn.functional as F

from tools.exercises_check import ByHand, Exercise


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

    def right(rollout, kl_coef, reward=None, shift=0, column=None):
        """What the mistakes start from: the penalty, or another reward, and somewhere the score."""
        if reward is None:
            reward = -kl_coef * (rollout.old_logp - rollout.ref_logp)
        end = rollout.is_response.sum(1) - 1 + shift if column is None else column
        reward[torch.arange(len(reward)), end] += rollout.score
        return reward

    def all_at_the_end(rollout, kl_coef):
        price = kl_coef * (rollout.old_logp - rollout.ref_logp).sum(1)                   # (B,)
        fields = vars(rollout) | {"score": rollout.score - price}
        return TokenRewards.right(SimpleNamespace(**fields), 0.0)

    def replaced(rollout, kl_coef):
        penalty = -kl_coef * (rollout.old_logp - rollout.ref_logp)
        end = rollout.is_response.sum(1, keepdim=True) - 1
        return penalty.scatter(1, end, rollout.score[:, None])

    mistakes = [
        ("KL with the wrong sign", "the policy is paid for leaving the reference.",
         lambda rollout, kl_coef: TokenRewards.right(rollout, -kl_coef)),
        ("reward on padding", "the score stands in the table's last column, not at each row's end.",
         lambda rollout, kl_coef: TokenRewards.right(rollout, kl_coef, column=-1)),
        ("reward on padding", "the score was added in all columns, also where no token stands.",
         lambda rollout, kl_coef:
             -kl_coef * (rollout.old_logp - rollout.ref_logp) + rollout.score[:, None]),
        ("score at every token", "a longer summary would earn more for the same score.",
         lambda rollout, kl_coef: -kl_coef * (rollout.old_logp - rollout.ref_logp)
             + rollout.score[:, None] * rollout.is_response),
        ("reward at the first token", "nothing that is written later could earn the score.",
         lambda rollout, kl_coef: TokenRewards.right(rollout, kl_coef, column=0)),
        ("score one column early", "the last of n tokens stands in column n - 1.",
         lambda rollout, kl_coef: TokenRewards.right(rollout, kl_coef, shift=-1)),
        ("score one column late", "the last of n tokens stands in column n - 1.",
         lambda rollout, kl_coef: TokenRewards.right(rollout, kl_coef, shift=1),
         lambda rollout, kl_coef: (rollout.old_logp - rollout.ref_logp).scatter_add(
             1, rollout.is_response.sum(1, keepdim=True), rollout.score[:, None])),
        ("beta forgotten", "the log ratio is multiplied by kl_coef.",
         lambda rollout, kl_coef: TokenRewards.right(rollout, 1.0)),
        ("KL forgotten", "nothing keeps the policy near the reference.",
         lambda rollout, kl_coef: TokenRewards.right(rollout, 0.0)),
        ("exp of the log ratio", "the KL is a mean of log ratios: the difference, as it is.",
         lambda rollout, kl_coef: TokenRewards.right(
             rollout, kl_coef, -kl_coef * (rollout.old_logp - rollout.ref_logp).exp())),
        ("all KL at the end", "each token pays for its own log ratio.", all_at_the_end),
        ("KL of the last token lost", "the score is added to it and does not replace it.",
         replaced)]


class Gae(Exercise):
    chapter, function, results = "ppo", "gae", ("advantage", "returns")
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
        return [(t([[-0.2, 2.0]]), t([[0.5, 1.0]]), 1.0, 0.95),
                (t([[-0.02, 0.01, 1.995]]), t([[1.0, 1.2, 1.5]]), 1.0, 0.95),
                (t([[0.1, 1.0, 0], [0.2, 0.3, -1.0]]),
                 t([[0.4, 0.6, 0], [0.1, 0.5, 0.7]]), 0.9, 0.5)]

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

    def after_the_end(column):
        """This value is taken as the next one of the last token."""
        def wrong(reward, value, gamma, lam):
            reward = reward.clone()
            reward[:, -1] += gamma * value[:, column]
            return Gae.oracle(reward, value, gamma, lam)
        return wrong

    def after(value):
        """What stands behind each value."""
        return F.pad(value[:, 1:], (0, 1))

    def from_the_left(reward, value, gamma, lam):
        delta, zero = reward + gamma * Gae.after(value) - value, torch.zeros_like(value)
        advantage = Gae.oracle(delta.flip(1), zero, gamma, lam)[0].flip(1)
        return advantage, advantage + value

    def no_value(reward, value, gamma, lam):
        returns = Gae.oracle(reward, torch.zeros_like(value), gamma, lam)[0]
        return returns, returns

    mistakes = [
        ("next value left out", "a token is also worth what is expected after it.",
         lambda reward, value, gamma, lam:
             Gae.oracle(reward - gamma * Gae.after(value), value, gamma, lam)),
        ("value after the end", "nothing is expected there: 0; this takes the row's first value.",
         after_the_end(0)),
        ("last value used again", "after the last token nothing is expected: 0.",
         after_the_end(-1)),
        ("lambda forgotten", "later surprises count a little less, lam for each token.",
         lambda reward, value, gamma, lam: Gae.oracle(reward, value, gamma, 1.0)),
        ("later surprises left out", "this is delta alone, as at lambda = 0.",
         lambda reward, value, gamma, lam: Gae.oracle(reward, value, gamma, 0.0)),
        ("gamma forgotten", "it discounts the next value and the next advantage.",
         lambda reward, value, gamma, lam: Gae.oracle(reward, value, 1.0, lam)),
        ("gamma forgotten", "the next advantage, too, is multiplied by it: gamma * lam.",
         lambda reward, value, gamma, lam:
             Gae.oracle(reward + (gamma - 1) * Gae.after(value), value, 1.0, lam)),
        ("from the left", "a token cannot earn what came before it; start at the end.",
         from_the_left),
        ("value not subtracted",
         "these are sums of rewards, not how they differ from what was expected.", no_value),
        ("return of rewards alone", "here it is advantage + value, which uses lambda as well.",
         lambda reward, value, gamma, lam: (
             Gae.oracle(reward, value, gamma, lam)[0],
             Gae.oracle(reward, torch.zeros_like(value), gamma, 1.0)[0])),
        ("reward for value", "the return is advantage + value, what the critic has to learn.",
         lambda reward, value, gamma, lam: (
             Gae.oracle(reward, value, gamma, lam)[0],
             Gae.oracle(reward, value, gamma, lam)[0] + reward))]


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

    def of(among, into, unbiased=False, power=-0.5):
        """Mean and variance among some tokens, put into some: "all", or the "real" ones."""
        def wrong(advantage, is_response):
            tokens = {"all": torch.ones_like(is_response), "real": is_response}
            some = advantage[tokens[among]]
            x = (advantage - some.mean()) * (some.var(unbiased=unbiased) + 1e-8) ** power
            return x.masked_fill(~tokens[into], 0)
        return wrong

    def by_row(advantage, is_response):
        rows = zip(advantage.split(1), is_response.split(1), strict=True)
        return torch.cat([Whiten.of("real", "real")(*row) for row in rows])

    mistakes = [
        ("whitening over padding", "the zeros past the end change mean and variance.",
         of("all", "real"), of("all", "real", unbiased=True)),
        ("whitening over padding", "the zeros past the end change mean and variance, and move.",
         of("all", "all"), of("all", "all", unbiased=True)),
        ("padding moved", "past the end the advantage has to stay 0.", of("real", "all")),
        ("each row by itself", "then a bad summary's tokens look as good as a good one's.", by_row),
        ("mean not subtracted", "it has to be 0 afterwards.",
         lambda advantage, is_response:
             advantage * (advantage[is_response].var(unbiased=False) + 1e-8).rsqrt()),
        ("N - 1", "the variance's sum is divided by N here.", of("real", "real", unbiased=True)),
        ("root forgotten", "divide by the standard deviation, not by the variance.",
         of("real", "real", power=-1))]


def with_slope(function, x, *args):
    """A loss of each token (and what is returned with it), and its gradient for x."""
    x = x.clone().requires_grad_()
    found = function(x.clone(), *args)         # a copy may be changed: that is told elsewhere
    found = found if isinstance(found, dict) else {"loss": found}
    loss = found["loss"]
    slope = torch.autograd.grad(loss.sum(), x)[0] if loss.requires_grad else torch.zeros_like(x)
    return {**found, "loss": loss.detach(), "gradient": slope}


class PolicyLoss(Exercise):
    chapter, function, results = "ppo", "policy_loss", ("loss", "is_flat")
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

    def of(ratio=lambda new, old: (new - old).exp(), loss=torch.maximum, flat=torch.lt):
        """What somebody writes who differs in one of these. loss, flat: of plain, clipped."""
        def wrong(logp, old_logp, advantage, clip):
            r = ratio(logp, old_logp)
            plain, clipped = -advantage * r, -advantage * r.clamp(1 - clip, 1 + clip)
            return loss(plain, clipped), flat(plain, clipped)
        return wrong

    def product_clipped(logp, old_logp, advantage, clip):
        loss, flat = PolicyLoss.of(loss=lambda plain, _: plain)(logp, old_logp, advantage, clip)
        return -(-loss).clamp(1 - clip, 1 + clip), flat

    def smaller_ratio(logp, old_logp, advantage, clip):
        ratio = (logp - old_logp).exp()
        return (-advantage * torch.minimum(ratio, ratio.clamp(1 - clip, 1 + clip)),
                PolicyLoss.oracle(logp, old_logp, advantage, clip)[1])

    def flat_by_ratio(logp, old_logp, advantage, clip):
        loss, _ = PolicyLoss.oracle(logp, old_logp, advantage, clip)
        return loss, ((logp - old_logp).exp() - 1).abs() > clip

    mistakes = [
        ("ratio upside down", "it is pi / pi_old; the other way, good tokens become rarer.",
         of(lambda new, old: (old - new).exp())),
        ("exp forgotten", "log-probabilities are subtracted, so the ratio is exp of that.",
         of(lambda new, old: new - old)),
        ("quotient of logs", "a quotient of probabilities is exp of a difference of logs.",
         of(lambda new, old: new / old)),
        ("clip outside the minimum",
         "the clipped loss alone also stops what has gone wrong from being repaired; take the "
         "larger of both losses.", of(loss=lambda plain, clipped: clipped)),
        ("clip outside the minimum", "the ratio is clamped, not its product with the advantage.",
         product_clipped),
        ("clip outside the minimum",
         "the smaller of two ratios was taken, and then multiplied; for a negative advantage that "
         "is the wrong one.", smaller_ratio),
        ("flat where it is not",
         "far from 1, the loss is flat only on the side to which the advantage pushes.",
         flat_by_ratio),
        ("flat where it is not", "equal losses are those of an unclipped ratio: > and not >=.",
         of(flat=torch.le)),
        ("smaller for larger", "of two losses the larger; the minimum is of what is gained.",
         of(loss=torch.minimum)),
        ("clip forgotten", "nothing stops the policy once the ratio has moved far.",
         of(loss=lambda plain, clipped: plain)),
        ("wrong sign", "this is what is gained; the loss is minus that.",
         of(loss=lambda plain, clipped: -torch.maximum(plain, clipped))),
        ("mean returned", "the loss of each token is wanted, (b, R); `update` divides later.",
         of(loss=lambda plain, clipped: torch.maximum(plain, clipped).mean())),
        ("ratio without gradient", "detached from logp, this loss teaches nothing.",
         lambda logp, *rest: PolicyLoss.oracle(logp.detach(), *rest))]


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

    def of(loss, near=lambda value, old, clip: torch.clamp(value, old - clip, old + clip)):
        """What somebody writes who differs in one of these. loss: of plain, clipped."""
        def wrong(value, old_value, returns, clip):
            clipped = near(value, old_value, clip)
            return loss(0.5 * (value - returns) ** 2, 0.5 * (clipped - returns) ** 2)
        return wrong

    mistakes = [
        ("clip outside the maximum", "take the larger of both errors, not the clipped one alone.",
         of(lambda plain, clipped: clipped)),
        ("smaller for larger", "of two losses the larger.", of(torch.minimum)),
        ("clip forgotten", "nothing stops the critic once the value has moved far.",
         of(lambda plain, clipped: plain)),
        ("half forgotten", "half the squared error, whose gradient is the error itself.",
         of(lambda plain, clipped: 2 * torch.maximum(plain, clipped))),
        ("clipped as a ratio", "a value is limited to old_value plus or minus clip.",
         of(torch.maximum, lambda value, old, clip: old * (value / old).clamp(1 - clip, 1 + clip)))]


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

    def mean(policy, critic, micro, *rest):
        sums = MinibatchLoss.oracle(policy, critic, micro, *rest)
        return {name: x / micro.is_response.numel() for name, x in sums.items()}

    mistakes = [
        ("advantage not detached",
         "computed from the critic as it is now, it lets the policy's loss move the critic; take "
         "the batch's own, which is fixed.",
         lambda *args: MinibatchLoss.oracle(*args, live=True)),
        ("losses on padding", "past the end the new numbers must be 0, as the old ones are.",
         lambda *args: MinibatchLoss.oracle(*args, past_the_end=True)),
        ("mean over padding", "the sum is wanted; `update` divides by the number of real tokens.",
         mean),
        ("temperature forgotten", "old_logp is that of softmax(logits / temperature).",
         lambda *args: MinibatchLoss.oracle(*args, cold=True))]


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
        chapter = inspect.unwrap(function).__globals__
        with mock.patch.dict(chapter, load_model=load_model, data=nothing):
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

    def loaded(which):
        """P and R are trained, p and r frozen; the same letter twice is one network."""
        def wrong(cfg, world):
            made = {each: load_model(each.upper(), frozen=each.islower()) for each in which}
            return [made[each] for each in which]
        return wrong

    mistakes = [
        ("reference updated along with the policy", "they are one network, so the KL is always 0.",
         loaded("PPRr")),
        ("reward model updated along with the critic", "they are one network, so scores move.",
         loaded("PpRR")),
        ("reference updated along with the policy",
         "they are one network; so are the reward model and the critic.", loaded("PPRR")),
        ("nothing frozen", "a network that is not trained needs no gradients: frozen=True.",
         lambda cfg, world: [load_model(each) for each in "PPRR"]),
        ("critic from the policy", "the paper's starts as the reward model.",
         lambda cfg, world: [load_model(each.upper(), frozen=each.islower()) for each in "PpPr"])]
