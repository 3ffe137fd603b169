"""What the tests share: a town of 60 posts, a tokenizer of 300 tokens, networks of width 16."""
import faulthandler
import itertools
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)           # the same sums in the same order, and no fight for the cores
tqdm.monitor_interval = 0          # a fork copies locks, but not the thread that would open them, and
tqdm.set_lock(threading.RLock())   # tqdm's own lock is one for all: who dies with it stops the others


def end_when_hanging(seconds=600):
    """A forked process that never ends says where it is, and ends: its test fails, and does not
    wait for ever. (pyproject.toml has the same for the tests themselves.)"""
    faulthandler.register(signal.SIGALRM, file=os.dup(2), chain=True)   # wherever 2 leads later
    signal.alarm(seconds)


if hasattr(os, "fork"):
    os.register_at_fork(after_in_child=end_when_hanging)

import data  # noqa: E402
import model  # noqa: E402
import reward  # noqa: E402
import sft  # noqa: E402
from runtime.world import World  # noqa: E402
from tools.tokenizer import train_tokenizer  # noqa: E402

SIZE = model.Size(layers=2, width=16, heads=2, context=160)
WHO, DID = ("my mother", "my boss", "my cat"), ("sold", "broke", "hid")
WHAT = ("bike", "phone", "oven")


@pytest.fixture
def float64():
    """Networks built inside the test are float64: there, "the same" means 1e-12, not 1e-6."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def world():
    return World(0, 1, torch.device("cpu"))


@pytest.fixture
def tiny():
    """tiny(n_vocab=40, head="lm", seed=0, ...): a network, none of whose weights is 0 or 1."""
    def build(n_vocab=40, head="lm", seed=0, layers=2, width=16, heads=2, context=48, **more):
        net = model.FastGPT(model.ModelConfig(n_vocab, layers, width, heads, context, head, **more))
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():      # biases and gains too: a forgotten one must be seen
            for name, p in net.named_parameters():
                gain = "norm" in name and name.endswith("weight")
                p.copy_(gain + 0.3 * torch.randn(p.shape, generator=draw, dtype=torch.float64))
        return net
    return build


def write_posts(folder, split, records):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.fixture(scope="session")
def posts():
    """60 posts: every (who, did, what), most of them in several subreddits."""
    facts = itertools.islice(itertools.cycle(itertools.product(WHO, DID, WHAT)), 60)
    return [{"id": f"t{i}", "subreddit": ("advice", "tifu")[i % 2], "title": f"{who} and me",
             "post": f"so {who} {did} my {what}" + " and then some" * (i % 5) + ".\nwhat now?",
             "summary": f"{who} {did} my {what}"} for i, (who, did, what) in enumerate(facts)]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, posts):
    """A folder of posts with their tokenizer, as --data wants it."""
    folder = tmp_path_factory.mktemp("data")
    for split, part in (("train", posts[:44]), ("valid", posts[44:52]), ("test", posts[52:])):
        write_posts(folder, split, part)
    data.save_tokenizer(train_tokenizer(data.full_texts(folder), 300), folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(data_dir):
    return data.load_tokenizer(data_dir)


def write_comparisons(path, posts, n, held_out):
    """n comparisons by somebody who prefers the summary that says "my mother"."""
    records = []
    for i in range(n):
        post, choice = posts[i % len(posts)], i // 2 % 2
        texts = [f" {who} {DID[i % 3]} my {WHAT[i // 3 % 3]}" for who in (WHO[0], WHO[1 + i % 2])]
        records.append({
            "info": {k: post[k] for k in ("id", "subreddit", "title", "post")},
            "summaries": [{"text": text, "policy": "sup", "note": None}
                          for text in (texts[::-1] if choice else texts)],
            "choice": choice, "worker": "w", "batch": "b", "extra": {"confidence": 7},
            "split": "valid1" if i >= n - held_out else "train"})
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture(scope="session")
def comparisons(tmp_path_factory, posts):
    """A file of 48 comparisons to learn from and 12 held out."""
    return write_comparisons(tmp_path_factory.mktemp("labels") / "comparisons.jsonl", posts, 60, 12)


@pytest.fixture(scope="session", autouse=True)
def tiny_size():
    """`--size tiny`, for training scripts that start from nothing."""
    model.SIZES["tiny"] = SIZE
    yield
    del model.SIZES["tiny"]


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A village and, beside it, a pipeline that learned there: supervised/, reward/, ppo/."""
    import village
    folder = tmp_path_factory.mktemp("home")
    return village.pipeline(village.settle(folder / "village"), folder)


@pytest.fixture(scope="session")
def supervised(tmp_path_factory, data_dir):
    """A checkpoint folder of sft.py."""
    out = tmp_path_factory.mktemp("runs") / "supervised"
    sft.main(f"--data {data_dir} --size tiny --query-length 80 --response-length 16 --batch 8 "
             f"--steps 30 --lr 1e-2 --device cpu --out {out}".split())
    return out


@pytest.fixture(scope="session")
def reward_model(supervised, comparisons):
    """A checkpoint folder of reward.py, grown from `supervised`."""
    out = supervised.parent / "reward"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "EPOCHS", 2)
        patch.setattr(reward, "WARMUP", 0)
        reward.main(f"--init {supervised} --comparisons {comparisons} --query-length 80 "
                    f"--response-length 16 --batch 8 --lr 3e-3 --device cpu --out {out}".split())
    return out
