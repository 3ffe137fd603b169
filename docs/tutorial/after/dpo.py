r"""After chapter 7: direct preference optimisation (DPO, Rafailov et al. 2023). No reward model, no
sampling: the policy itself learns from the comparisons, by the loss of reward.py.

    loss = - log sigmoid( beta * l(chosen) - beta * l(rejected) ),       l = log pi - log pi_ref

1. ppo.py raises the mean of r - beta * l. Let pi* = pi_ref * exp(r / beta) / Z, where Z(post) makes
   probabilities sum to 1. The mean is then beta * (log Z - KL(pi, pi*)): largest where pi = pi*.
2. Solve the first equation for r:        r = beta * log(pi* / pi_ref) + beta * log Z.
3. Bradley and Terry see only r(chosen) - r(rejected), of one post: there beta * log Z cancels.
4. So put beta * l in the place of r in reward.py's loss, and train the policy on it.

At beta = .1, log ratios l of whole summaries in nats:

    l(chosen)  l(rejected)   beta * difference   loss    gradient for l(chosen), l(rejected)
        3          -2               .5            .47          -.038          +.038
       -8         -13               .5            .47          -.038          +.038

Both rows lose as little, for differences are all that is seen. (The log has the means of both l.)

    python -m docs.tutorial.after.dpo --preset toy --policy runs/demo/supervised \
           --comparisons runs/demo/comparisons.jsonl --out runs/demo/dpo

Before:  reward.py, whose loop this is.    After: rloo.py; then AFTER.md, which compares them.
"""
from dataclasses import asdict, dataclass

import torch

import data
from model import lay_out, load_model
from ppo import log_probs
from reward import EVAL_EVERY, EVAL_ROWS, LOG_EVERY, WARMUP, encode, pairwise_loss
from runtime import Common, Run, accumulate, adam, flag, launch, optimizer_step
from sft import cosine, start


@dataclass(frozen=True)
class Config(Common):
    policy: str = flag(..., "checkpoint folder of the supervised policy", what="DIR")
    comparisons: str = flag(..., "OpenAI's records; several: comma between", what="FILE")
    query_length: int = flag(512, "tokens of a post; longer ones lose paragraphs", least=1)
    response_length: int = flag(48, "tokens of a summary, <|endoftext|> included", least=2)
    batch: int = flag(64, "comparisons an optimizer step, over all processes", least=1)
    micro_batch: int = flag(16, "comparisons a forward pass; what fits the device", least=1)
    lr: float = flag(1e-6, "peak learning rate")
    beta: float = flag(0.1, "price of a nat of KL; the smaller, the farther the policy may go")
    init = property(lambda self: self.policy)            # the name that sft.start looks for


# DIFFERS: Rafailov et al., whose values the defaults are, use RMSprop and a rate that never falls.
PRESETS = {"toy": dict(query_length=256, batch=16, lr=1e-4)}


def log_ratios(policy, reference, pairs):
    """log pi(summary) - log pi_ref(summary) of b Pairs, nats: chosen (b,), rejected (b,)."""
    queries = [pair.query for pair in pairs] * 2
    responses = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    rows = lay_out(queries, responses, policy.config.n_vocab).to(policy.wte.weight.device)
    ratio = log_probs(policy, rows, 1.0) - log_probs(reference, rows, 1.0)       # (2 b, R)
    return ratio.masked_fill(~rows.is_response, 0).sum(1).chunk(2)               # (b,), (b,)


def dpo_loss(chosen, rejected, beta):
    """The reward model's loss, with beta * log ratio for a score. (b,), (b,) -> () in nats"""
    return pairwise_loss(beta * chosen, beta * rejected)


def learn(policy, reference, pairs, cfg, world):
    """Add up gradients, unless under no_grad. Returns: means over all processes' Pairs."""
    total = torch.zeros(4, device=world.device)
    for part in accumulate(pairs, cfg.micro_batch, policy):
        with world.mixed():
            chosen, rejected = log_ratios(policy, reference, part)               # (b,), (b,)
            loss = dpo_loss(chosen, rejected, cfg.beta) * len(part)
        if torch.is_grad_enabled():
            (loss / cfg.batch * world.size).backward()                           # as in sft.py
        right = (chosen > rejected).sum() + 0.5 * (chosen == rejected).sum()
        total += torch.stack([loss, right, chosen.sum(), rejected.sum()]).detach()
    *sums, count = world.sum([*total.tolist(), len(pairs)])
    return dict(zip(("loss", "accuracy", "chosen", "rejected"), (x / count for x in sums),
                    strict=True))


def train(cfg, world):
    """The loop of reward.py, with two language models."""
    cfg, tokenizer, policy = start(cfg, world)
    reference = world.parallelize(load_model(cfg.policy, world, frozen=True), cfg)
    comparisons = data.read_comparisons(cfg.comparisons, "train")
    held_out = data.read_comparisons(cfg.comparisons, "valid1")[:EVAL_ROWS]
    data.check_queries(tokenizer, [c["info"] for c in comparisons + held_out], cfg.query_length)
    held_out = [encode(tokenizer, comparison, cfg) for comparison in world.share(held_out)]
    batches = data.Batches([data.characters(c["info"]) for c in comparisons], cfg.batch, cfg.seed)
    steps, optimizer = batches.steps_per_epoch, adam([policy])                   # one pass
    run = Run(cfg, world, {"model": policy}, optimizer, model=asdict(policy.config))
    if run.finished:
        return
    if world.rank == 0:
        data.save_tokenizer(tokenizer, cfg.out)

    for step in run.steps(steps):
        mine = [encode(tokenizer, comparisons[i], cfg) for i in world.share(batches.at(step))]
        learned = learn(policy, reference, mine, cfg, world)
        lr = cosine(step, steps, cfg.lr, WARMUP)
        norms = optimizer_step({"grad_norm": policy}, optimizer, lr, step)
        if (step + 1) % EVAL_EVERY == 0 or step + 1 == steps:
            with torch.no_grad(), world.gathered(policy), world.gathered(reference):
                found = learn(policy, reference, held_out, cfg, world)
            learned |= {f"valid_{name}": x for name, x in found.items()}
        if step % LOG_EVERY == 0 or "valid_loss" in learned:
            run.log(step, **learned, lr=lr, **norms)
        run.save_if_due(step)
    run.finish(model=policy)


def main(argv=None):
    launch(train, Config, argv, __doc__, PRESETS)


if __name__ == "__main__":
    main()
