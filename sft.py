r"""Chapter 4. Imitation: predict the next token of what people wrote.

    loss = - mean over the tokens that count of  log pi(token | all tokens before it)

    --loss-on all        every token of every text counts: pretraining
    --loss-on summary    only the summary's tokens count, given the post: supervised fine-tuning,
                         the paper's baseline and the start of its policy (sections 3.1, 3.4, B.1)

The two differ in what is called a query: a whole post, or a single token, <|endoftext|> where a
text begins. The loop is the same, and its five numbered beats come back in reward.py and ppo.py.

    python sft.py --preset toy --data data/toy --loss-on all     --out runs/demo/pretrained
    python sft.py --preset toy --data data/toy --loss-on summary --init runs/demo/pretrained \
                  --out runs/demo/supervised                     # a minute each on two cores

Before:  model.py.    After: sample.py (what it says), reward.py (what people think of it).
"""
from dataclasses import asdict, dataclass

import torch

from data import (
    Batches,
    check_queries,
    encode_query,
    encode_response,
    load_tokenizer,
    pretraining_texts,
    read_posts,
    save_tokenizer,
    size,
    warn_of_cuts,
)
from model import build, lay_out, load_model, sized, token_logp
from runtime import (
    Common,
    Problem,
    Run,
    accumulate,
    adam,
    cosine,
    entry,
    filled,
    flag,
    gathered,
    join_world,
    mixed,
    optimizer_step,
    parallelize,
    parse,
    published,
)


@dataclass(frozen=True)
class Config(Common):
    data: str = flag("", "folder of posts: train.jsonl, valid.jsonl, tokenizer.tiktoken")
    loss_on: str = flag("summary", "which tokens count", choices=("all", "summary"))
    init: str = flag("", "checkpoint folder, Hugging Face's too, or gpt2 ... gpt2-xl; none: --size")
    size: str = flag("toy", "a row of model.py's table, when there is no --init")
    tokenizer: str = flag("", "gpt2, or a folder with tokenizer.tiktoken; none: --init's, --data's")
    query_length: int = flag(512, "longest post in tokens; longer ones lose their last paragraphs")
    response_length: int = flag(48, "longest summary in tokens, <|endoftext|> included")
    block_length: int = flag(512, "tokens in a row of running text, for --loss-on all")
    steps: int = flag(0, "optimizer steps; 0: one pass over the data, as in the paper")
    batch: int = flag(128, "rows an optimizer step, over all processes")
    micro_batch: int = flag(16, "rows a forward pass, in one process; what fits the device")
    lr: float = flag(6.35e-5, "peak learning rate; falls to 0 along a cosine")
    warmup: int = flag(0, "steps over which the learning rate rises from 0")
    beta2: float = flag(0.95, "Adam's memory of squared gradients")
    weight_decay: float = flag(0.0, "AdamW's, on matrices only")
    clip: float = flag(1.0, "largest norm of the gradient; 0: any")
    eval_every: int = flag(100, "steps between looks at the validation loss")
    eval_rows: int = flag(256, "validation rows looked at")
    log_every: int = flag(10, "steps between lines in log.jsonl")


PRESETS = {     # the last two rows: the paper's (Table 3, B.1); `all`, where it began: GPT-3's
    "toy": dict(
        all=dict(size="toy", block_length=256, batch=16, lr=1e-3, warmup=50, steps=200),
        summary=dict(size="toy", query_length=256, batch=16, lr=3e-3, warmup=50, steps=1300)),
    "laptop": dict(
        all=dict(size="laptop", block_length=352, batch=16, lr=2e-3, warmup=100, steps=1300),
        summary=dict(size="laptop", query_length=320, response_length=32, batch=32, micro_batch=32,
                     lr=1.5e-3, warmup=30, steps=800)),
    "gpt2": dict(
        all=dict(size="gpt2", batch=128, lr=6e-4, warmup=500, block_length=1024, weight_decay=0.1),
        summary=dict(size="gpt2", lr=6.35e-5)),
    "1.3b": dict(
        all=dict(size="1.3b", batch=512, micro_batch=4, lr=2e-4, warmup=500, block_length=2048,
                 weight_decay=0.1),
        summary=dict(size="1.3b", micro_batch=8, lr=6.35e-5)),
    "6.7b": dict(
        all=dict(size="6.7b", batch=512, micro_batch=1, lr=1.2e-4, warmup=500, block_length=2048,
                 weight_decay=0.1),
        summary=dict(size="6.7b", micro_batch=2, lr=2.83e-5)),
}


def summary_rows(tokenizer, posts, cfg):
    """(query, response) token lists: a post and its author's summary."""
    return [(encode_query(tokenizer, post, cfg.query_length, cfg.fill),
             encode_response(tokenizer, post["summary"], cfg.response_length)) for post in posts]


def running_rows(tokenizer, texts, length):
    """(query, response) token lists of running text: <|endoftext|> is the query that every text
    answers, and also its last token. Longer texts are cut every `length` tokens; each further piece
    takes the last token of the piece before as its query.

    DIFFERS: GPT-3 packs many texts into one row. In a row of its own a text has nobody else's facts
    to confuse with its own, and a small network learns to copy in a fifth of the steps.
    """
    eot, rows = tokenizer.eot_token, []
    for tokens in tokenizer.encode_ordinary_batch(texts, num_threads=2):
        stream = [eot, *tokens, eot]
        rows += [stream[i:i + length] for i in range(0, len(stream) - 1, length - 1)]
    return [(row[:1], row[1:]) for row in rows]


def read_examples(tokenizer, cfg):
    """Training and validation examples, as --loss-on says: posts, to be encoded when their turn
    comes, each in one process only; or rows of running text, of which one in fifty is held out."""
    if cfg.loss_on == "summary":
        splits = tuple(read_posts(cfg.data, split) for split in ("train", "valid"))
        for posts in splits:
            check_queries(tokenizer, posts, cfg.query_length)
        return splits
    texts = pretraining_texts(cfg.data)
    if len(texts) < 2:
        raise Problem(f"{cfg.data} holds a single text to pretrain on, and one in fifty, at least "
                      "one, is held out: cut it into several")
    held_out = max(1, len(texts) // 50)
    return tuple(running_rows(tokenizer, part, cfg.block_length)
                 for part in (texts[:-held_out], texts[-held_out:]))


def encode(tokenizer, examples, cfg):
    """(query, response) token lists of examples."""
    return summary_rows(tokenizer, examples, cfg) if cfg.loss_on == "summary" else examples


def nll(model, rows):
    """Summed negative log-likelihood of the response tokens, in nats; rows: Rows. Returns: ()."""
    logits = model(rows.tokens, at=rows.columns)                     # (b, R, V)
    return -token_logp(logits, rows.targets)[rows.is_response].sum()


@torch.no_grad()
def validation_loss(model, rows, cfg, world):
    """Mean negative log-likelihood of a token in nats; rows: this rank's validation rows."""
    total = torch.zeros(2, device=world.device)                      # nats, tokens
    for part in accumulate(rows, cfg.micro_batch):
        batch = lay_out(*zip(*part, strict=True), model.config.n_vocab).to(world.device)
        with mixed(world):
            total += torch.stack([nll(model, batch), batch.is_response.sum()])
    nats, tokens = world.sum(total).tolist()
    return nats / tokens


def start(cfg, world):
    """Tokenizer and network to start from. Raises: Problem when flags contradict each other."""
    if not cfg.data:
        raise Problem("--data is missing: a folder of posts, such as `python toy.py --out` makes")
    if cfg.block_length < 2 or cfg.beta2 >= 1:
        raise Problem(f"--block-length {cfg.block_length} must be 2 or more, --beta2 {cfg.beta2:g} "
                      "less than 1")
    tokenizer = load_tokenizer(cfg.tokenizer or published(cfg.init) or cfg.data)
    model = (load_model(published(cfg.init), world, head="lm") if cfg.init else
             build(sized(cfg.size, tokenizer.n_vocab), cfg.seed, world))
    longest = (cfg.query_length + cfg.response_length if cfg.loss_on == "summary" else
               cfg.block_length)
    if longest > model.config.context:
        too_long = "--query-length" if cfg.loss_on == "summary" else "--block-length"
        raise Problem(f"rows of up to {longest} tokens do not fit the context of "
                      f"{model.config.context}: lower {too_long}")
    if model.config.n_vocab != tokenizer.n_vocab:
        raise Problem(f"{cfg.init} speaks {model.config.n_vocab} tokens, the tokenizer has "
                      f"{tokenizer.n_vocab}: leave --tokenizer out")
    return tokenizer, model


def train(cfg, world):
    """The loop of every training script in this book, at its simplest."""
    if cfg.batch % world.size:
        raise Problem(f"--batch {cfg.batch} does not divide over {world.size} processes")
    if cfg.init:
        cfg = filled(cfg, world, published(cfg.init))      # gpt2 is the folder data/gpt2
    tokenizer, network = start(cfg, world)
    examples, held_out = read_examples(tokenizer, cfg)
    held_out = encode(tokenizer, world.share(held_out[:cfg.eval_rows]), cfg)
    lengths = ([size(post) for post in examples] if cfg.loss_on == "summary" else
               [len(q) + len(r) for q, r in examples])
    batches = Batches(lengths, cfg.batch, cfg.seed, or_else=(
        f", or --block-length to less than {max(lengths)}" if cfg.loss_on == "all" else ""))
    steps = cfg.steps or batches.steps_per_epoch
    model, pad = parallelize(network, world, cfg), tokenizer.n_vocab
    optimizer = adam([network], cfg.beta2, weight_decay=cfg.weight_decay)
    run = Run(cfg, world, {"model": network}, optimizer, model=asdict(network.config))
    if run.finished:
        return
    if world.rank == 0:
        save_tokenizer(tokenizer, cfg.out)
        if cfg.loss_on == "summary":
            warn_of_cuts(tokenizer, [post["summary"] for post in examples], cfg.response_length)

    for step in run.steps(steps):
        # 1. a batch                        this rank's share of cfg.batch rows
        mine = [examples[i] for i in world.share(batches.at(step))]
        mine = encode(tokenizer, mine, cfg)

        # 2. averaged over what             one mean over every rank and micro-batch
        count = torch.tensor(float(sum(len(r) for _, r in mine)), device=world.device)
        count = world.sum(count)

        # 3. gradients
        loss = torch.zeros((), device=world.device)
        for part in accumulate(mine, cfg.micro_batch, model):
            batch = lay_out(*zip(*part, strict=True), pad).to(world.device)
            with mixed(world):
                share = nll(model, batch) / count
            (share * world.size).backward()        # ranks are *averaged*, hence the factor
            loss += share.detach()

        # 4. descent                        DIFFERS: pretraining, too, ends at 0, not at a tenth
        lr = cosine(step, steps, cfg.lr, cfg.warmup)
        norms = optimizer_step({"grad_norm": network}, optimizer, lr, step, cfg.clip)

        # 5. a look at unseen text, a line in the log, a state to come back to
        last = step + 1 == steps
        judged = {}
        if (step + 1) % cfg.eval_every == 0 or last:
            with gathered(network):
                judged = {"valid_loss": validation_loss(network, held_out, cfg, world)}
        if step % cfg.log_every == 0 or judged:
            run.log(step, loss=world.sum(loss).item(), **judged, lr=lr, **norms,
                    tokens=int(count))
        run.save_if_due(step)
    run.finish(model=network)


def main(argv=None):
    cfg = parse(Config, PRESETS, argv, __doc__, by="loss_on")
    with join_world(cfg) as world:
        train(cfg, world)


if __name__ == "__main__":
    entry(main)
