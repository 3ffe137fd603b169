r"""Chapter 7. The reward model: a network that predicts which of two summaries people prefer.

    loss = - log sigmoid( r(post, chosen) - r(post, rejected) )         section 3.4, "Reward models"

Bradley and Terry (1952) suppose that every summary has a score r, and that people choose by it:

    P(A is preferred to B) = sigmoid(r_A - r_B)        sigmoid(d) = 1 / (1 + exp(-d))

as the toy's labellers do (label.py derives it). The best r makes the given labels most probable
(maximum likelihood). For three labels with differences d1, d2, d3 (chosen minus rejected)

    P(these labels) = sigmoid(d1) * sigmoid(d2) * sigmoid(d3)
    -log P          = -log sigmoid(d1) - log sigmoid(d2) - log sigmoid(d3)

is the sum of their losses: logistic regression, with a network instead of a weighted sum.

    r(chosen)  r(rejected)    d    sigmoid(d)   loss    gradient for r(chosen), r(rejected)
       1.2         0.3       0.9      .71        .34           -.29           +.29
       0.7         0.7       0.0      .50        .69           -.50           +.50
       0.3         1.2      -0.9      .29       1.24           -.71           +.71

The gradient is sigmoid(d) - 1 for the chosen summary and the opposite for the rejected one: large
where the model is wrong, nearly 0 where it is right and sure.

The network is the supervised policy with a new head: one number, read at the summary's last token.
Training sees differences only, so a constant may be added to all scores. It is chosen at the end:
2,000 summaries by the posts' own authors score 0 on average. ppo.py relies on that: it gives a
summary without an end the score -1, which is less than most summaries have.

DIFFERS: --head sum reads the sum over all of a summary's columns. It predicts answers about PPO's
own summaries better, but needs a higher beta: docs/FIGURES.md, "Where the reward model is blind".

    python reward.py --preset toy --init runs/mine/supervised \
                     --comparisons runs/mine/comparisons.jsonl --out runs/mine/reward   # a minute

Before:  label.py (where comparisons come from).    After: ppo.py (what the score is good for).
"""
from collections import namedtuple
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

import data
from model import score
from runtime import Common, Run, accumulate, adam, config_of, flag, launch, optimizer_step
from sft import cosine, start, summary_rows


@dataclass(frozen=True)
class Config(Common):
    init: str = flag(..., "the supervised policy to start from", what="DIR")
    comparisons: str = flag(..., "in OpenAI's format; several: comma between", what="FILE")
    data: str = flag("", "posts whose summaries average 0; none: those of --init", what="DIR")
    query_length: int = flag(512, "tokens of a post; longer ones lose paragraphs", least=1)
    response_length: int = flag(128, "tokens of a summary, <|endoftext|> included", least=2)
    limit: int = flag(0, "learn from the first so many comparisons; 0: all")
    batch: int = flag(64, "comparisons an optimizer step, over all processes", least=1)
    micro_batch: int = flag(16, "comparisons a forward pass; what fits the device", least=1)
    lr: float = flag(1.5e-5, "peak learning rate")
    head: str = flag("scalar", "what is read: scalar: the last token; sum: all of a summary",
                     choices=("scalar", "sum"))


PRESETS = {     # of 1.3b and 6.7b: the paper's (appendix B.1)
    # DIFFERS: 16 comparisons a step, not 64: with few labels, 64 a step would be too few steps.
    "toy": dict(query_length=256, response_length=48, batch=16, lr=1e-3),
    "laptop": dict(query_length=320, response_length=32, batch=16, lr=3e-4),
    "gpt2": {}, "1.3b": dict(micro_batch=4),           # batch and lr: see above
    "6.7b": dict(lr=5e-6, micro_batch=1)}
# DIFFERS: the paper trains 3 to 10 reward models, each with another --seed, and keeps the best on
# valid1: a loop in the shell, and the last valid_accuracy of each log.jsonl.
EPOCHS = 1                          # passes over the comparisons, as in the paper; more over-fit
WARMUP = 10                         # steps over which the learning rate rises from 0
LOG_EVERY = 10                      # steps between lines in log.jsonl,
EVAL_EVERY, EVAL_ROWS = 50, 512     # between measurements on held-out comparisons; how many
ZERO_ROWS = 2000                    # summaries whose mean score becomes 0


def pairwise_loss(chosen, rejected):
    """The mean of -log P(what the labeller chose) = -log sigmoid(chosen - rejected), nats.

    chosen, rejected: (B,) scores. Returns: (); log 2 = 0.693 for a coin toss.
    Raises: ValueError when shapes differ ((B, 1) against (B,) would broadcast to B * B pairs).
    """
    if chosen.shape != rejected.shape:
        raise ValueError(f"{tuple(chosen.shape)} scores against {tuple(rejected.shape)}")
    return -F.logsigmoid(chosen - rejected).mean()


Pair = namedtuple("Pair", "query chosen rejected")       # a comparison as lists of token ids


def encode(tokenizer, comparison, cfg):
    """A comparison as tokens: its query, the summary that was chosen, and the other one."""
    query = data.encode_query(tokenizer, comparison["info"], cfg.query_length, cfg.fill)
    responses = [data.encode_response(tokenizer, summary["text"], cfg.response_length)
                 for summary in comparison["summaries"]]
    choice = comparison["choice"]                                    # 0 or 1
    return Pair(query, chosen=responses[choice], rejected=responses[1 - choice])


def score_pairs(network, pairs):
    """Scores of b Pairs, as 2 b rows of one forward pass: chosen (b,), rejected (b,).

        query | chosen <|endoftext|>   padding              `score` reads the head at the row's
        query | rejected   <|endoftext|>                    last token ("sum": the whole response)
    """
    queries = [pair.query for pair in pairs]
    responses = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    return score(network, queries + queries, responses).chunk(2)     # (2 b,) -> (b,), (b,)


def loss_and_right(network, pairs):
    """The loss of b Pairs in nats, and how many are scored right, both summed: (), ()."""
    chosen, rejected = score_pairs(network, pairs)                   # (b,), (b,)
    right = (chosen > rejected).sum() + 0.5 * (chosen == rejected).sum()     # a tie counts half
    return pairwise_loss(chosen, rejected) * len(pairs), right


@torch.no_grad()
def validate(network, pairs, cfg, world):
    """Loss and accuracy on held-out comparisons; pairs: this rank's share of them."""
    total = torch.zeros(2, device=world.device)                      # nats, right
    with world.gathered(network), world.mixed():
        for part in accumulate(pairs, cfg.micro_batch):
            total += torch.stack(loss_and_right(network, part))
    nats, right, n = world.sum([*total.tolist(), len(pairs)])
    return {"valid_accuracy": right / n, "valid_loss": nats / n}


@torch.no_grad()
def zero_at_references(network, tokenizer, posts, cfg, world):
    """Move the head's bias so that the posts' own summaries score 0 on average (section 3.4), and
    no difference changes. Returns: the mean that was taken away."""
    total, posts = 0.0, world.share(posts)
    with world.gathered(network), world.mixed():
        for part in accumulate(posts, 2 * cfg.micro_batch):        # a pair has two rows, a post one
            queries, responses = zip(*summary_rows(tokenizer, part, cfg), strict=True)
            total += score(network, queries, responses).cpu().double().sum().item()
    total, n = world.sum([total, len(posts)])
    network.head.bias -= total / n
    return total / n


def read(tokenizer, cfg, world):
    """Comparisons to learn from, this process's share of the held-out Pairs (valid1; valid2 is for
    the report), posts whose summaries will score 0."""
    comparisons = data.read_comparisons(cfg.comparisons, "train")[:cfg.limit or None]
    held_out = data.read_comparisons(cfg.comparisons, "valid1")[:EVAL_ROWS]
    folder = cfg.data or config_of(cfg.init)["flags"].get("data")
    posts = data.read_posts(folder, "train")[:ZERO_ROWS]
    queries = [comparison["info"] for comparison in comparisons + held_out]
    data.check_queries(tokenizer, queries + posts, cfg.query_length)
    return comparisons, [encode(tokenizer, c, cfg) for c in world.share(held_out)], posts


def train(cfg, world):
    """The loop of sft.py with another loss, then the zero."""
    cfg, tokenizer, network = start(cfg, world, cfg.head)      # the policy with a new head
    comparisons, held_out, posts = read(tokenizer, cfg, world)
    batches = data.Batches([data.characters(c["info"]) for c in comparisons], cfg.batch, cfg.seed)
    steps = EPOCHS * batches.steps_per_epoch
    optimizer = adam([network])
    run = Run(cfg, world, {"model": network}, optimizer, model=asdict(network.config))
    if run.finished:
        return
    if world.rank == 0:
        data.save_tokenizer(tokenizer, cfg.out)

    for step in run.steps(steps):
        # 1. batch: this rank's share of cfg.batch comparisons
        mine = [encode(tokenizer, comparisons[i], cfg) for i in world.share(batches.at(step))]

        # 2. weigh each comparison of the global batch the same, by 1 / cfg.batch,
        # 3. gradients. DDP divides by the number of ranks; "* world.size" undoes it, as in sft.py.
        total = torch.zeros(2, device=world.device)                  # loss, accuracy
        for part in accumulate(mine, cfg.micro_batch, network):
            with world.mixed():
                nats, right = loss_and_right(network, part)
            (nats / cfg.batch * world.size).backward()
            total += torch.stack([nats.detach(), right]) / cfg.batch

        # 4. descent
        lr = cosine(step, steps, cfg.lr, WARMUP)
        norms = optimizer_step({"grad_norm": network}, optimizer, lr, step)

        # 5. log, measure on held-out comparisons, save
        measured = {}
        if (step + 1) % EVAL_EVERY == 0 or step + 1 == steps:
            measured = validate(network, held_out, cfg, world)
        if step % LOG_EVERY == 0 or measured:
            loss, accuracy = world.sum(total).tolist()
            run.log(step, loss=loss, accuracy=accuracy, **measured, lr=lr, **norms)
        run.save_if_due(step)
    # config.json keeps it: the mean score of the posts' own summaries before it became 0
    run.described["mean_taken_away"] = zero_at_references(network, tokenizer, posts, cfg, world)
    run.finish(model=network)


def main(argv=None):
    launch(train, Config, argv, __doc__, PRESETS)


if __name__ == "__main__":
    main()
