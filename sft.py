r"""Chapter 4. Imitation: predict the next token of what people wrote.

    loss = - mean over the tokens that count of  log pi(token | all tokens before it)

    --loss-on all        every token of every text counts: pretraining
    --loss-on summary    only the summary's tokens count, given the post: supervised fine-tuning,
                         the paper's baseline and the start of its policy (sections 3.1, 3.4, B.1)

A token that was given the probability 1/2 costs -log 1/2 = 0.69 nats. A new network gives each of
the toy's 1,024 tokens about 1/1024, which costs 6.93 (a little more, as its logits are not equal).
From the demo's two logs (loss: of 16 rows alone). The second network knows no summaries yet:

    pretraining    step 0: loss 7.31        step  199: loss 1.46, valid_loss 1.44
    fine-tuning    step 0: loss 4.71        step 1299: loss 0.52, valid_loss 0.32

    python sft.py --preset toy --data data/mine --loss-on all     --out runs/mine/pretrained
    python sft.py --preset toy --data data/mine --loss-on summary --init runs/mine/pretrained \
                  --out runs/mine/supervised                     # a minute or two on two cores

The loop's five numbered steps come back in reward.py and ppo.py: compare the files.
Before:  model.py.    After: sample.py (what it writes), reward.py (what people think of it).
"""
import math
from dataclasses import asdict, dataclass, replace

import torch

import data
from model import build, lay_out, load_model, sized, token_logp
from runtime import Common, Problem, Run, accumulate, adam, config_of, flag, launch, optimizer_step


@dataclass(frozen=True)
class Config(Common):
    data: str = flag(..., "posts: train.jsonl, valid.jsonl, tokenizer.tiktoken", what="DIR")
    loss_on: str = flag("summary", "which tokens count", choices=("all", "summary"))
    init: str = flag("", "checkpoint to start from; none: a new network", what="DIR")
    size: str = flag("toy", "of a new network: a row of model.py's table")
    query_length: int = flag(512, "tokens of a post; longer ones lose paragraphs", least=1)
    response_length: int = flag(48, "tokens of a summary; running text: a row has both", least=2)
    steps: int = flag(0, "optimizer steps; 0: one pass over the data, as in the paper")
    batch: int = flag(128, "rows an optimizer step, over all processes", least=1)
    micro_batch: int = flag(16, "rows a forward pass; what fits the device", least=1)
    lr: float = flag(6.35e-5, "peak learning rate")
    warmup: int = flag(0, "steps over which the learning rate rises from 0")
    weight_decay: float = flag(0.0, "AdamW's, on matrices only")


GPT3 = dict(query_length=2000, batch=512, warmup=500, weight_decay=0.1)
PRESETS = {     # of the last two: the paper's (B.1; `all`: Table 3, warmup and decay as in GPT-3)
    "toy": dict(all=dict(query_length=208, batch=16, lr=1e-3, warmup=50, steps=200),
                summary=dict(query_length=256, batch=16, lr=3e-3, warmup=50, steps=1300)),
    "laptop": dict(
        all=dict(size="laptop", query_length=304, batch=16, lr=2e-3, warmup=100, steps=1300),
        summary=dict(size="laptop", query_length=320, response_length=32, batch=32, micro_batch=32,
                     lr=1.5e-3, warmup=30, steps=800)),
    "gpt2": dict(all=dict(GPT3, size="gpt2", query_length=976, batch=128, lr=6e-4),
                 summary=dict(size="gpt2")),
    "1.3b": dict(all=dict(GPT3, size="1.3b", micro_batch=4, lr=2e-4),
                 summary=dict(size="1.3b", micro_batch=8)),
    "6.7b": dict(all=dict(GPT3, size="6.7b", micro_batch=1, lr=1.2e-4),
                 summary=dict(size="6.7b", micro_batch=2, lr=2.83e-5))}
LOG_EVERY = 10                      # steps between lines in log.jsonl,
EVAL_EVERY, EVAL_ROWS = 100, 256    # between measurements on held-out rows; how many rows


def running_rows(tokenizer, texts, length):
    """(query, response) token lists of running text: every token is predicted once.

    The query is one token: <|endoftext|>, or the token before the response. For length = 4 the text
    "a b c d e" and its end become the rows   <|endoftext|> | a b c   and   c | d e <|endoftext|>
    DIFFERS: GPT-3 packs many texts into one row. In a row of its own a text has nobody else's facts
    to confuse with its own, and a small network learns to copy in a fifth of the steps."""
    eot, rows = tokenizer.eot_token, []
    for tokens in tokenizer.encode_ordinary_batch(texts, num_threads=2):
        tokens = [eot, *tokens, eot]
        for i in range(0, len(tokens) - 1, length - 1):
            rows.append((tokens[i:i + 1], tokens[i + 1:i + length]))
    return rows


def summary_rows(tokenizer, posts, cfg):
    """(query, response) token lists of posts and their authors' summaries."""
    return [(data.encode_query(tokenizer, post, cfg.query_length, cfg.fill),
             data.encode_response(tokenizer, post["summary"], cfg.response_length))
            for post in posts]


def read(tokenizer, cfg, world):
    """Posts or rows of running text to learn from, their lengths, this rank's held-out rows."""
    if cfg.loss_on == "all":
        texts, length = data.pretraining_texts(cfg.data), cfg.query_length + cfg.response_length
        last = max(1, len(texts) // 50)                              # these are held out
        examples = running_rows(tokenizer, texts[:-last], length)
        lengths = [len(response) for _, response in examples]
        held_out = running_rows(tokenizer, texts[-last:], length)[:EVAL_ROWS]
    else:
        examples, held_out = data.read_posts(cfg.data, "train"), data.read_posts(cfg.data, "valid")
        data.check_queries(tokenizer, examples + held_out, cfg.query_length)
        lengths = [data.characters(post) for post in examples]
        held_out = summary_rows(tokenizer, held_out[:EVAL_ROWS], cfg)
    return examples, lengths, world.share(held_out)


def nll(network, rows):
    """-log pi(response | query) in nats, summed over some (query, response). Returns: ()."""
    rows = lay_out([query for query, _ in rows], [response for _, response in rows],
                   network.config.n_vocab).to(network.wte.weight.device)
    logits = network(rows.tokens, at=rows.columns)                   # (b, R, V)
    logp = token_logp(logits, rows.targets)                          # (b, R)
    return -logp.masked_fill(~rows.is_response, 0).sum()


@torch.no_grad()
def validate(network, rows, cfg, world):
    """The loss on held-out rows; rows: this rank's share of them."""
    total = torch.zeros((), device=world.device)
    with world.gathered(network), world.mixed():
        for part in accumulate(rows, cfg.micro_batch):               # no network: it only cuts
            total += nll(network, part)
    nats, tokens = world.sum([total.item(), sum(len(response) for _, response in rows)])
    return {"valid_loss": nats / tokens}


def cosine(step, steps, peak, warmup):
    """Learning rate: linear to the peak over `warmup` steps, then half a cosine down to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def filled(cfg, *folders):
    """cfg, with --fill if the networks in these folders learned from posts filled with spaces.
    Raises: Problem when they know posts of different forms."""
    flags = [config_of(folder)["flags"] for folder in folders]
    lengths = {f.get("query_length", cfg.query_length) if f.get("fill") else 0 for f in flags}
    if len(lengths) > 1 or lengths - {0, cfg.query_length}:
        raise Problem(f"{' and '.join(folders)} know posts filled up with spaces to "
                      f"{' or '.join(map(str, sorted(lengths)))} tokens (0: not filled): give that "
                      "--query-length, and a reward model that was trained from this policy")
    return replace(cfg, fill=cfg.fill or lengths != {0})


def start(cfg, world, head="lm"):
    """cfg as `filled` returns it, the tokenizer, and the network to train. Raises: Problem when
    rows do not fit the context, the batch cannot be shared out, or the head is another stage's."""
    if cfg.init:
        cfg = filled(cfg, cfg.init)
    tokenizer = data.load_tokenizer(cfg.init or cfg.data)
    network = (load_model(cfg.init, world, head, cfg.seed) if cfg.init else
               build(sized(cfg.size, tokenizer.n_vocab), cfg.seed, world))
    if network.config.head != head:
        raise Problem(f"{cfg.init} has a head {network.config.head!r}, not {head!r}: give another")
    network.check(cfg.query_length + cfg.response_length)
    if cfg.batch % world.size:
        raise Problem(f"--batch {cfg.batch} does not divide over {world.size} processes")
    return cfg, tokenizer, world.parallelize(network, cfg)


def train(cfg, world):
    """The loop of every training script in this book, in its simplest form."""
    cfg, tokenizer, network = start(cfg, world)
    examples, lengths, held_out = read(tokenizer, cfg, world)
    batches = data.Batches(lengths, cfg.batch, cfg.seed)
    steps = cfg.steps or batches.steps_per_epoch
    optimizer = adam([network], beta2=0.95, weight_decay=cfg.weight_decay)
    run = Run(cfg, world, {"model": network}, optimizer, model=asdict(network.config))
    if run.finished:
        return
    if world.rank == 0:
        data.save_tokenizer(tokenizer, cfg.out)

    for step in run.steps(steps):
        # 1. batch: this rank's share of cfg.batch rows
        mine = [examples[i] for i in world.share(batches.at(step))]
        if cfg.loss_on == "summary":               # posts are encoded only when they are needed
            mine = summary_rows(tokenizer, mine, cfg)

        # 2. weigh: each token the same, in whichever rank and micro-batch it is
        count = int(world.sum([sum(len(response) for _, response in mine)])[0])

        # 3. gradients. DDP divides summed gradients by the number of ranks, but `count` already
        #    makes them a mean over all tokens of all ranks: "* world.size" undoes that division.
        total = torch.zeros((), device=world.device)
        for part in accumulate(mine, cfg.micro_batch, network):
            with world.mixed():
                nats = nll(network, part)
            (nats / count * world.size).backward()
            total += nats.detach() / count

        # 4. descent                        DIFFERS: pretraining, too, ends at 0, not at a tenth
        lr = cosine(step, steps, cfg.lr, cfg.warmup)
        norms = optimizer_step({"grad_norm": network}, optimizer, lr, step)

        # 5. log, measure on held-out rows, save
        measured = {}
        if (step + 1) % EVAL_EVERY == 0 or step + 1 == steps:
            measured = validate(network, held_out, cfg, world)
        if step % LOG_EVERY == 0 or measured:
            run.log(step, loss=world.sum(total).item(), **measured, lr=lr, **norms, tokens=count)
        run.save_if_due(step)
    run.finish(model=network)


def main(argv=None):
    launch(train, Config, argv, __doc__, PRESETS, by="loss_on")


if __name__ == "__main__":
    main()
