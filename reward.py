r"""Chapter 7. A network that knows what people prefer.

    loss = - log sigmoid( r(post, chosen) - r(post, rejected) )         section 3.4, "Reward models"

The reward model is the supervised policy's decoder with its vocabulary head taken off and a single
number put in its place, read at the summary's last token. It is trained on pairs, so only
differences of scores mean something; at the end the head's bias is moved so that the summaries
that people wrote themselves score 0 on average.

    python reward.py --preset toy --init runs/demo/supervised \
                     --comparisons runs/demo/comparisons.jsonl --out runs/demo/reward   # a minute

Before:  label.py (where comparisons come from).    After: ppo.py (what the score is good for).
"""
import sys
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from data import (
    Batches,
    check_queries,
    encode_query,
    encode_response,
    load_tokenizer,
    read_comparisons,
    read_posts,
    save_tokenizer,
    size,
    warn_of_cuts,
)
from model import lay_out, load_model, score
from runtime import (
    Common,
    Problem,
    Run,
    accumulate,
    adam,
    config_of,
    cosine,
    entry,
    filled,
    finest,
    flag,
    gathered,
    join_world,
    mixed,
    optimizer_step,
    parallelize,
    parse,
)


@dataclass(frozen=True)
class Config(Common):
    init: str = flag("", "checkpoint folder of the supervised policy")
    comparisons: str = flag("", "files of comparisons, comma between: OpenAI's records, one a line")
    data: str = flag("", "posts whose own summaries shall score 0; none: those --init learned from")
    query_length: int = flag(512, "longest post in tokens; longer ones lose their last paragraphs")
    response_length: int = flag(128, "longest summary in tokens, <|endoftext|> included")
    limit: int = flag(0, "comparisons to learn from, the files' first ones; 0: all")
    epochs: float = flag(1.0, "passes over the comparisons; the paper makes one, more over-fit")
    batch: int = flag(64, "comparisons an optimizer step, over all processes")
    micro_batch: int = flag(16, "comparisons a forward pass, in one process")
    lr: float = flag(1.5e-5, "peak learning rate; falls to 0 along a cosine")
    warmup: int = flag(0, "steps over which the learning rate rises from 0")
    weight_decay: float = flag(0.0, "AdamW's, on matrices only")
    clip: float = flag(1.0, "largest norm of the gradient; 0: any")
    eval_every: int = flag(50, "steps between looks at held-out comparisons")
    eval_rows: int = flag(512, "held-out comparisons looked at")
    zero_rows: int = flag(2000, "reference summaries whose mean score becomes 0")
    log_every: int = flag(10, "steps between lines in log.jsonl")


PRESETS = {     # the paper's in the last two rows (appendix B.1)
    # DIFFERS: toy and laptop take 16 comparisons a step, not 64: so few labels make too few steps.
    "toy": dict(query_length=256, response_length=48, batch=16, lr=1e-3, warmup=10),
    "laptop": dict(query_length=320, response_length=32, batch=16, lr=3e-4, warmup=10),
    "gpt2": dict(lr=1.5e-5),
    "1.3b": dict(lr=1.5e-5, micro_batch=4),
    "6.7b": dict(lr=5e-6, micro_batch=1),
}


def pairwise_loss(chosen, rejected):
    """How surprised the reward model is by the labeller's choice.

        loss = -mean log sigmoid(chosen - rejected)          section 3.4, "Reward models"

    chosen, rejected: (B,) scores; only their difference has a meaning.
    Returns: () in nats; log 2 = 0.693 is a coin toss.
    Raises: ValueError when shapes differ ((B, 1) against (B,) would broadcast to B * B pairs).
    """
    if chosen.shape != rejected.shape:
        raise ValueError(f"{tuple(chosen.shape)} scores against {tuple(rejected.shape)}")
    return -F.logsigmoid(chosen - rejected).mean()


def comparison_rows(tokenizer, comparisons, cfg):
    """(query, chosen, rejected) token lists."""
    rows = []
    for c in comparisons:
        texts = [s["text"] for s in c["summaries"]]
        rows.append((encode_query(tokenizer, c["info"], cfg.query_length, cfg.fill),
                     encode_response(tokenizer, texts[c["choice"]], cfg.response_length),
                     encode_response(tokenizer, texts[1 - c["choice"]], cfg.response_length)))
    return rows


def score_pairs(model, part, pad, device):
    """Scores of a micro-batch of (query, chosen, rejected): chosen (b,), rejected (b,).

    Both summaries of a pair go through the same forward pass, as 2 b rows.
    """
    queries, chosen, rejected = zip(*part, strict=True)
    rows = lay_out(queries + queries, chosen + rejected, pad).to(device)
    scores = model(rows.tokens, at=rows.last)[:, 0]                  # (2 b,)
    return scores.chunk(2)                                           # (b,), (b,)


def warn_of_pairs(tokenizer, comparisons, limit):
    """Say on stderr how many summaries are cut, and how many pairs are then equal."""
    texts = [s["text"] for c in comparisons for s in c["summaries"]]
    if warn_of_cuts(tokenizer, texts, limit):
        rows = [encode_response(tokenizer, text, limit) for text in texts]
        equal = sum(a == b for a, b in zip(rows[::2], rows[1::2], strict=True))
        if equal:
            print(f"warning: {equal:,} of {len(comparisons):,} pairs "
                  f"({equal / len(comparisons):.1%}) are then equal and teach nothing",
                  file=sys.stderr)


def right(chosen, rejected):
    """How many of the chosen summaries score higher, a tie counting half. Returns: ()."""
    return (chosen > rejected).sum() + 0.5 * (chosen == rejected).sum()


@torch.no_grad()
def accuracy(model, rows, cfg, world):
    """Share of comparisons that the model gets right, and the mean loss, nats.

    rows: this rank's share of the held-out (query, chosen, rejected).
    """
    totals = torch.zeros(3, device=world.device)                     # right, nats, pairs
    for part in accumulate(rows, cfg.micro_batch):
        with mixed(world):
            chosen, rejected = score_pairs(model, part, model.config.n_vocab, world.device)
        totals += torch.stack([right(chosen, rejected), pairwise_loss(chosen, rejected) * len(part),
                               torch.tensor(float(len(part)), device=world.device)])
    agreed, nats, pairs = world.sum(totals).tolist()
    return agreed / pairs, nats / pairs


@torch.no_grad()
def zero_at_references(model, tokenizer, posts, cfg, world):
    """Move the head's bias so that the posts' own summaries score 0 on average (section 3.4).

    Only the mean moves, not the scale, as in the paper. Returns: the mean that was taken away.
    """
    total = torch.zeros(2, dtype=torch.float64)                      # score, summaries
    with gathered(model):
        for part in accumulate(world.share(posts), 2 * cfg.micro_batch):
            with mixed(world):
                scores = score(model, [encode_query(tokenizer, p, cfg.query_length, cfg.fill)
                                       for p in part],
                               [encode_response(tokenizer, p["summary"], cfg.response_length)
                                for p in part])                          # (b,)
            total += torch.tensor([scores.cpu().double().sum().item(), len(part)])
    points, summaries = world.sum(total.to(world.device, finest(world.device))).tolist()
    model.head.bias -= points / summaries
    return points / summaries


def train(cfg, world):
    """--epochs passes over the comparisons, then the zero.

    DIFFERS: the paper trains 3 to 10, each with another seed, and keeps the best on valid1. That
    is a loop over --seed in the shell, and the last valid_accuracy of each log.jsonl.
    """
    if not (cfg.init and cfg.comparisons):
        raise Problem("--init (a supervised policy) and --comparisons (a file) are both needed")
    cfg = filled(cfg, world, cfg.init)
    data = cfg.data or config_of(cfg.init)["flags"].get("data")
    tokenizer = load_tokenizer(cfg.init)
    network = load_model(cfg.init, world, head="scalar", seed=cfg.seed)
    if cfg.query_length + cfg.response_length > network.config.context:
        raise Problem(f"rows of up to {cfg.query_length + cfg.response_length} tokens do not fit "
                      f"the context of {cfg.init}, {network.config.context}: lower --query-length")
    if cfg.batch % world.size:
        raise Problem(f"--batch {cfg.batch} does not divide over {world.size} processes")
    comparisons = read_comparisons(cfg.comparisons, "train")[:cfg.limit or None]
    held_out = read_comparisons(cfg.comparisons, "valid1")[:cfg.eval_rows]
    posts = read_posts(data, "train")[:cfg.zero_rows]
    check_queries(tokenizer, [c["info"] for c in comparisons + held_out] + posts, cfg.query_length)
    rows = comparison_rows(tokenizer, world.share(held_out), cfg)
    batches = Batches([size(c["info"]) for c in comparisons], cfg.batch, cfg.seed)
    steps = round(cfg.epochs * batches.steps_per_epoch)
    if steps < 1:
        raise Problem(f"--epochs {cfg.epochs:g} of {len(comparisons)} comparisons are no optimizer "
                      f"step of --batch {cfg.batch}: raise --epochs")
    model, pad = parallelize(network, world, cfg), tokenizer.n_vocab
    optimizer = adam([network], weight_decay=cfg.weight_decay)
    run = Run(cfg, world, {"model": network}, optimizer, model=asdict(network.config))
    if run.finished:
        return
    if world.rank == 0:
        save_tokenizer(tokenizer, cfg.out)
        warn_of_pairs(tokenizer, comparisons + held_out, cfg.response_length)

    for step in run.steps(steps):
        # 1. a batch                        this rank's share of cfg.batch comparisons
        mine = [comparisons[i] for i in world.share(batches.at(step))]
        mine = comparison_rows(tokenizer, mine, cfg)

        # 2. averaged over what             every comparison the same
        count = cfg.batch

        # 3. gradients
        totals = torch.zeros(2, device=world.device)                 # loss, accuracy
        for part in accumulate(mine, cfg.micro_batch, model):
            with mixed(world):
                chosen, rejected = score_pairs(model, part, pad, world.device)
            loss = pairwise_loss(chosen, rejected) * len(part) / count
            (loss * world.size).backward()         # ranks are *averaged*, hence the factor
            totals += torch.stack([loss.detach(), right(chosen, rejected) / count])

        # 4. descent
        lr = cosine(step, steps, cfg.lr, cfg.warmup)
        norms = optimizer_step({"grad_norm": network}, optimizer, lr, step, cfg.clip)

        # 5. a look at unseen comparisons, a line in the log, a state to come back to
        last = step + 1 == steps
        judged = {}
        if (step + 1) % cfg.eval_every == 0 or last:
            with gathered(network):
                agreed, nats = accuracy(network, rows, cfg, world)
            judged = {"valid_accuracy": agreed, "valid_loss": nats}
        if step % cfg.log_every == 0 or judged:
            mean_loss, agreed = world.sum(totals).tolist()
            run.log(step, loss=mean_loss, accuracy=agreed, **judged, lr=lr, **norms)
        run.save_if_due(step)
    zero_at_references(network, tokenizer, posts, cfg, world)
    run.finish(model=network)


def main(argv=None):
    cfg = parse(Config, PRESETS, argv, __doc__)
    with join_world(cfg) as world:
        train(cfg, world)


if __name__ == "__main__":
    entry(main)
