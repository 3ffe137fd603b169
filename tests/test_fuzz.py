"""Feed it anything: each input either works, or ends in one line that says what and where.

Sound files and command lines are damaged - bytes flipped, cut, doubled; JSON values replaced,
fields renamed - and given to the scripts' own `main` through `runtime.flags.entry`, as the command line
does. FUZZ=10000 is the long form: so many inputs, and 60 of them in processes of their own.
"""
import ast
import copy
import gzip
import http.client
import io
import json
import os
import random
import resource
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_posts
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_convert import write_openai

import data
import label
import model
import ppo
import reward
import runtime
import sample
import sft
from tools import convert, download, label_site, labelling, plan, rouge, tokenizer
from tools.label_store import Store

FUZZ = int(os.environ.get("FUZZ", 0))                  # FUZZ=10000 for the long version
INPUTS = Counter()                                     # what was tried, and how it ended
SOME = settings(max_examples=30, deadline=None, derandomize=not FUZZ, database=None,
                phases=[Phase.generate, *([] if FUZZ else [Phase.shrink])],    # shrinking takes minutes
                suppress_health_check=list(HealthCheck))


def tries(share):
    """Hypothesis's settings: `share` of FUZZ inputs, or of 250 in the suite."""
    return settings(SOME, max_examples=max(5, round(share * (FUZZ or 250))))


# ------------------------------------------------------------------------------------ one input

@dataclass
class Ended:
    """How a command ended: exit code, what it wrote to stderr."""
    code: int
    err: str


def run(module, argv, capsys=None):
    """module.main(argv) as from the command line, in this process."""
    old, caught = sys.argv, io.StringIO()
    sys.argv = [f"{module.__name__}.py", *map(str, argv)]
    out, err, sys.stdout, sys.stderr = sys.stdout, sys.stderr, io.StringIO(), caught
    code = 0
    try:
        if module.__name__.startswith("tools"):
            runtime.flags.entry(module.main)
        else:                                                      # their `launch` does so
            module.main()
    except SystemExit as left:
        code = left.code or 0
    finally:
        sys.argv, sys.stdout, sys.stderr = old, out, err
    return Ended(code, caught.getvalue())


def judge(ended, kind, names=(), out=None):
    """Assert that an input worked, or ended in one clear line and left nothing half done."""
    INPUTS[kind, ended.code] += 1
    assert "Traceback" not in ended.err and "panicked" not in ended.err, ended.err
    if ended.code:
        told = [line for line in ended.err.splitlines() if "error: " in line]
        assert ended.code in (1, 2) and len(told) == 1, ended.err
        assert ended.err.rstrip().endswith(told[0].strip())          # it is the last line
        assert 15 < len(told[0]) < 1100 and told[0].isprintable()
        assert not names or any(str(name) in told[0] for name in names), told[0]
        for path in out or ():
            assert not path.exists(), f"{path} is left behind"
    return ended


# ---------------------------------------------------------------------------------- damage

ODD = [None, True, False, 0, -1, 1, 2 ** 63, 10 ** 30, 0.5, float("nan"), float("inf"), "", " ", "a",
       "\n", "\x00", "\x1b[2J", "é猫😀", "\ud800", "../../x", "/etc/passwd", "{title}", "<|endoftext|>",
       "x" * 3000, " " * 3000, [], {}, [[]], {"": None}, [1, "a"], {"a": {"b": [None]}}]
odd = st.one_of(st.sampled_from(ODD), st.text(max_size=20), st.integers(), st.floats(),
                st.recursive(st.none() | st.text(max_size=3),
                             lambda inner: st.lists(inner, max_size=3)
                             | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5))
spot = st.floats(0, 1, exclude_max=True)
BYTES = [b"", b"\x00", b"\xff", b"\n", b"\r\n", b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"-",
         b"null", b"NaN", b"1e999", b"\\ud800", b"\xef\xbb\xbf", b"\xed\xa0\xbd", b"\xc0\x80", b" " * 500, b"[" * 2000, b"9" * 5000]
byte_damage = st.lists(st.tuples(st.sampled_from(["cut", "put", "flip", "double", "drop", "over"]),
                                 spot, spot, st.sampled_from(BYTES) | st.binary(max_size=8)),
                       min_size=1, max_size=4)
TEXTS = ["", " ", "\n", "x", "\n" * 50, "x" * 3000, " " * 3000, "x y\n" * 800, "é猫😀" * 20, "\ud800\udc00",
         "\ud800", "\x00\x1b[2J", "{title} {0}", "<|endoftext|>", "TL;DR:", "SUBREDDIT: r/", "%s%n", "1" * 400]
json_damage = st.lists(
    st.tuples(st.sampled_from(["set", "drop", "rename", "add", "double"]), spot, odd, st.text(max_size=5))
    | st.tuples(st.just("text"), spot, st.sampled_from(TEXTS) | st.text(max_size=200), st.just("")),
    min_size=1, max_size=3)


def damaged_bytes(content, damage):
    """Bytes with some cut off, put in, changed, doubled, dropped or written over."""
    for how, a, b, extra in damage:
        i = int(a * (len(content) + 1))
        j = min(len(content), i + int(b * 50) + 1)
        content = {"cut": lambda c, i=i: c[:i],
                   "put": lambda c, i=i, e=extra: c[:i] + e + c[i:],
                   "flip": lambda c, i=i, b=b: c[:i] + bytes(x ^ 1 << int(8 * b) for x in c[i:i + 1])
                   + c[i + 1:],
                   "double": lambda c, i=i, j=j: c[:j] + c[i:j] + c[j:],
                   "drop": lambda c, i=i, j=j: c[:i] + c[j:],
                   "over": lambda c, i=i, e=extra: c[:i] + e + c[i + len(e):]}[how](content)
    return content


def places(value, path=()):
    """Every place of a JSON value: the keys that lead there, and what is there."""
    yield path, value
    items = (value.items() if isinstance(value, dict) else
             enumerate(value) if isinstance(value, list) else ())
    for key, inner in items:
        yield from places(inner, (*path, key))


def damaged_json(value, damage):
    """A JSON value with some places set to odd values, dropped, renamed, added to or doubled; or a
    text replaced by another, which passes the checks of form and goes further."""
    value = json.loads(json.dumps(value))
    for how, a, what, name in damage:
        what = copy.deepcopy(what)                     # each its own: a list in itself is no JSON
        found = [(path, v) for path, v in places(value) if how != "text" or isinstance(v, str)]
        path = found[int(a * len(found))][0] if found else ()
        if not path:
            value = what if how == "set" else value
            continue
        owner = value
        for key in path[:-1]:
            owner = owner[key]
        key = path[-1]
        if how in ("set", "text"):
            owner[key] = what
        elif how == "drop":
            del owner[key]
        elif how == "double" and isinstance(owner, list):
            owner.append(owner[key])
        elif isinstance(owner, dict):
            owner[name] = owner.pop(key) if how == "rename" else what
    return value


def lines_of(records):
    return "".join(json.dumps(r) + "\n" for r in records).encode("utf-8", "replace")


@st.composite
def records(draw, sound):
    """The bytes of a file of records, some of them damaged, as JSON, as bytes, or both; perhaps as
    one array, perhaps gzipped. Returns: (content, gzipped)."""
    some = list(sound)
    for _ in range(draw(st.integers(0, 3))):
        i = draw(st.integers(0, len(some) - 1))
        some[i] = damaged_json(some[i], draw(json_damage))
    array = draw(st.integers(0, 9)) == 0
    content = json.dumps(some).encode("utf-8", "replace") if array else lines_of(some)
    if draw(st.integers(0, 2)) == 0:
        content = damaged_bytes(content, draw(byte_damage))
    zipped = draw(st.integers(0, 5)) == 0
    if zipped:
        content = gzip.compress(content, 1)
        if draw(st.booleans()):
            content = damaged_bytes(content, draw(byte_damage))
    return content, zipped


# ---------------------------------------------------------------------------- what the tests share

LINE = "--query-length 80 --response-length 16 --batch 4 --device cpu".split()


class Ground:
    """Sound inputs, and a folder for each damaged one."""

    def __init__(self, base, **sound):
        self.base = base
        vars(self).update(sound)

    def fresh(self):
        """An empty folder, the one before it deleted."""
        shutil.rmtree(self.base / "now", ignore_errors=True)
        folder = self.base / "now"
        folder.mkdir(parents=True)
        return folder


@pytest.fixture(scope="module")
def ground(tmp_path_factory, posts, data_dir, supervised, reward_model, comparisons):
    base = tmp_path_factory.mktemp("fuzz")
    posts = posts[:8]
    compared = [json.loads(text) for text in comparisons.read_text().splitlines()][-20:]
    pairs = [{"info": c["info"], "summaries": c["summaries"], "batch": "b", "split": c["split"],
              "reference": " my cat sold my bike"} for c in compared[:6]]
    axes = [{"info": c["info"], "split": "test", "worker": "w", "batch": "b", "summary": {
        "text": " t", "policy": "sup", "note": None, "axes": {"overall": 7, "accuracy": None}}}
        for c in compared[:4]]
    (base / "tok").mkdir()
    shutil.copy(data_dir / "tokenizer.tiktoken", base / "tok")
    net = model.load_model(supervised)
    theirs = hugging_folder(base / "hf", net, data.load_tokenizer(supervised))
    store = Store(base / "labels.db")
    store.add(pairs)
    with store.transaction():
        for pair in range(1, 5):
            store.record(pair, "ann", 7)
    store.close()
    return Ground(base, posts=posts, compared=compared, pairs=pairs, axes=axes, data=data_dir,
                  supervised=supervised, reward=reward_model, hf=theirs, db=base / "labels.db",
                  comparisons=comparisons)


def hugging_folder(folder, net, tokenizer):
    """A sound Hugging Face folder of a network of ours."""
    convert.write_vocabulary(tokenizer, folder, net.config.context)
    convert.write_safetensors(folder / "model.safetensors",
                              convert.to_hugging_face(net.state_dict(), net.config))
    sizes = (net.config.n_vocab, net.config.layers, net.config.width, net.config.heads,
             net.config.context)
    (folder / "config.json").write_text(json.dumps({
        "model_type": "gpt2", **dict(zip(convert.SHAPE, sizes, strict=True)),
        "activation_function": "gelu_new", "tie_word_embeddings": True}))
    return folder


# --------------------------------------------------------------------------------- files of records

@given(st.data())
@tries(0.2)
def test_posts(ground, draw):
    folder = ground.fresh()
    for split in ("train", "valid"):
        content, zipped = draw.draw(records(ground.posts))
        (folder / f"{split}.jsonl{'.gz' * zipped}").write_bytes(content)
    shutil.copy(ground.data / "tokenizer.tiktoken", folder)
    out = folder / "run"
    how = draw.draw(st.sampled_from(["sft", "all", "ppo", "describe", "tokenizer", "sample", "pairs"]))
    if how in ("sft", "all"):
        argv = [*LINE, "--data", folder, "--size", "tiny", "--steps", 1, "--out", out, "--loss-on",
                "all" if how == "all" else "summary"]
        ended = run(sft, argv)
    elif how == "ppo":
        ended = run(ppo, [*LINE, "--policy", ground.supervised, "--reward", ground.reward, "--data",
                          folder, "--episodes", 4, "--epochs", 1, "--out", out])
    elif how == "sample":
        ended = run(sample, ["--policy", ground.supervised, "--data", folder, "--device", "cpu"])
    elif how == "pairs":
        ended = run(sample, ["--policy", ground.supervised, "--data", folder, "--device", "cpu",
                             "--pairs", 3, "--out", out])
    else:
        ended = (run(data, ["describe", folder]) if how == "describe" else
                 run(tokenizer, ["--data", folder, "--vocab", 280]))
    judge(ended, "posts", [folder, "post ", "--vocab", "batch", "--pairs"], [out])


@given(st.data())
@tries(0.15)
def test_comparisons(ground, draw):
    folder = ground.fresh()
    content, zipped = draw.draw(records(ground.compared))
    path = folder / f"c.jsonl{'.gz' * zipped}"
    path.write_bytes(content)
    if draw.draw(st.integers(0, 3)) == 0:
        ended = run(data, ["describe", folder])
    else:
        ended = run(reward, [*LINE, "--init", ground.supervised, "--comparisons", path, "--data",
                             ground.data, "--out", folder / "run"])
    judge(ended, "comparisons", [folder, "post ", "batch"], [folder / "run"])


@given(st.data())
@tries(0.1)
def test_pairs(ground, draw):
    folder = ground.fresh()
    content, zipped = draw.draw(records(ground.pairs))
    path = folder / f"p.jsonl{'.gz' * zipped}"
    path.write_bytes(content)
    who = draw.draw(st.sampled_from(["rouge", "rouge", "toy"]))
    ended = run(label if who == "toy" else rouge, ["--pairs", path, "--out", folder / "c.jsonl"])
    judge(ended, "pairs", [folder, "--labeller", "these people", "toy judge"], [folder / "c.jsonl"])


@given(st.data())
@tries(0.03)
def test_grades(ground, draw):
    folder = ground.fresh()
    content, zipped = draw.draw(records(ground.axes))
    (folder / f"axes.jsonl{'.gz' * zipped}").write_bytes(content)
    judge(run(data, ["describe", folder]), "grades", [folder])


# ----------------------------------------------------------------------- tokenizers and checkpoints

@given(st.data())
@tries(0.06)
def test_tokenizer_files(ground, draw):
    folder = ground.fresh()
    write_posts(folder, "train", ground.posts)
    write_posts(folder, "valid", ground.posts)
    content = (ground.data / "tokenizer.tiktoken").read_bytes()
    (folder / "tokenizer.tiktoken").write_bytes(damaged_bytes(content, draw.draw(byte_damage)))
    out = folder / "run"
    ended = run(sft, [*LINE, "--data", folder, "--size", "tiny", "--steps", 1, "--out", out])
    judge(ended, "tokenizer files", [folder, "post "], [out])


def write_damaged_json(draw, path):
    """Damage a file of JSON: its values, or its bytes."""
    known = json.loads(path.read_text())
    if draw.draw(st.booleans()):
        path.write_bytes(json.dumps(damaged_json(known, draw.draw(json_damage))).encode(
            "utf-8", "replace"))
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), draw.draw(byte_damage)))


def damaged_tensors(draw, weights):
    """Named tensors of which one is missing, renamed, or something else."""
    weights, names = dict(weights), sorted(weights)
    name = draw.draw(st.sampled_from(names))
    t = weights.pop(name)
    how = draw.draw(st.sampled_from(["drop", "rename", "int", "nan", "shape", "sparse", "meta", "list",
                                     "half", "complex", "number", "key", "wide", "bool"]))
    if how == "drop":
        return weights
    if how == "key":
        return {**weights, 5: t}
    return {**weights, name + "x" * (how == "rename"): {
        "rename": t, "int": t.long(), "nan": t * float("nan"), "shape": t[..., None],
        "sparse": t.to_sparse(), "meta": t.to("meta"), "list": [t], "half": t.half(),
        "complex": t * 1j, "number": 3, "wide": torch.cat([t, t]), "bool": t > 0}[how]}


@given(st.data())
@tries(0.1)
def test_checkpoints(ground, draw):
    folder, kind = ground.fresh(), draw.draw(st.sampled_from(["policy", "reward", "init"]))
    broken = shutil.copytree(ground.reward if kind == "reward" else ground.supervised, folder / "c")
    what = draw.draw(st.sampled_from(["config", "weights", "bytes", "missing", "folder"]))
    path = broken / draw.draw(st.sampled_from(["config.json", "model.pt", "tokenizer.tiktoken"]))
    if what == "config":
        write_damaged_json(draw, broken / "config.json")
    elif what == "weights":
        torch.save(damaged_tensors(draw, torch.load(broken / "model.pt")), broken / "model.pt")
    elif what == "bytes":
        path.write_bytes(damaged_bytes(path.read_bytes(), draw.draw(byte_damage)))
    else:
        path.unlink()
        if what == "folder":
            path.mkdir()
    out = folder / "run"
    if kind == "init":
        ended = run(sft, [*LINE, "--data", ground.data, "--init", broken, "--steps", 1, "--out", out])
    else:
        ended = run(sample, ["--policy", broken if kind == "policy" else ground.supervised, "--post",
                             "so my cat sold my bike", "--device", "cpu"]
                    + ["--reward", broken] * (kind == "reward"))
    judge(ended, "checkpoints", [broken, ground.supervised, "the gradient is", "--query-length"],
          [] if "step " in ended.err else [out])


@given(st.data())
@tries(0.06)
def test_hugging_face_folders(ground, draw):
    folder = ground.fresh()
    broken = shutil.copytree(ground.hf, folder / "c")
    path = broken / draw.draw(st.sampled_from(sorted(p.name for p in ground.hf.iterdir())))
    if path.suffix == ".json":
        write_damaged_json(draw, path)
    elif path.suffix == ".safetensors" and draw.draw(st.booleans()):
        content = path.read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        head = json.dumps(damaged_json(json.loads(content[8:8 + size]), draw.draw(json_damage)))
        head = head.encode("utf-8", "replace")
        path.write_bytes(struct.pack("<Q", len(head)) + head + content[8 + size:])
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), draw.draw(byte_damage)))
    out = folder / "run"
    ended = judge(run(convert, ["import", broken, "--out", out]), "Hugging Face folders", [broken], [out])
    if ended.code == 0:
        ended = run(sample, ["--policy", out, "--post", "so my cat", "--device", "cpu",
                             "--response-length", 4])
        judge(ended, "Hugging Face folders", [out, "--response-length"])


@given(st.data())
@tries(0.04)
def test_released_models(ground, draw):
    folder, tokenizer = ground.fresh(), data.load_tokenizer(ground.data)
    kind = draw.draw(st.sampled_from(["lm", "scalar"]))
    write_openai(folder / "c", model.build(model.ModelConfig(
        tokenizer.n_vocab, 1, 16, 2, 40, kind, kind == "scalar", "quick_gelu"), 1))
    path = draw.draw(st.sampled_from(sorted(p for p in (folder / "c").rglob("*") if p.is_file())))
    if path.suffix == ".json":
        write_damaged_json(draw, path)
    elif draw.draw(st.booleans()):
        torch.save(damaged_tensors(draw, torch.load(path)), path)
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), draw.draw(byte_damage)))
    out = folder / "out"
    ended = run(convert, ["import-openai", folder / "c", "--tokenizer", ground.data, "--out", out])
    judge(ended, "released models", [folder / "c"], [out])


@given(st.data())
@tries(0.02)
def test_pickles_are_never_obeyed(ground, draw):
    """Weights that are code, or whatever bytes: in torch's zip and in its old format."""
    folder = ground.fresh()
    broken, mark = shutil.copytree(ground.supervised, folder / "c"), folder / "was run"
    zipped = draw.draw(st.booleans())
    call = draw.draw(st.sampled_from([(os.mkdir, (str(mark),)), (exec, ("import os",)),
                                      (Path.touch, (mark,)), (subprocess.call, (["true"],))]))
    malice = type("Malice", (), {"__reduce__": lambda self: call})()
    torch.save({"wte.weight": malice}, broken / "model.pt", _use_new_zipfile_serialization=zipped)
    if draw.draw(st.booleans()):
        path = broken / "model.pt"
        path.write_bytes(damaged_bytes(path.read_bytes(), draw.draw(byte_damage)))
    ended = run(sample, ["--policy", broken, "--post", "a", "--device", "cpu"])
    judge(ended, "pickles", [broken])
    assert ended.code and not mark.exists()


# ------------------------------------------------------------------------------------------- flags

VALUES = ["", "0", "1", "-1", "2", "3.5", "nan", "inf", "-inf", "1e999", "10**9", "abc", "../x", "/",
          ".", "é😀", "\udcff", "x" * 300, "--seed", "-", "0x10", "1_0", " ", "[]", "/dev/null",
          "/dev/full", "/proc/1/mem", "None", "true", "cpu", "toy"]
HEAVY = {"--steps", "--episodes", "--epochs", "--best-of", "--pairs", "--posts", "--samples",
         "--pool", "--candidates", "--vocab", "--examples", "--gpus", "--minibatches", "--port",
         "--labels", "--host"}                         # a large value there is a wish, not a mistake


def flags_of(config):
    return ["--" + name.replace("_", "-") for name in config.__dataclass_fields__]


@given(st.data())
@tries(0.2)
def test_flags(ground, draw):
    """A command that works, with up to two flags changed, to any value."""
    folder = ground.fresh()
    out = folder / "run"
    module, config, base = draw.draw(st.sampled_from([
        (sft, sft.Config, ["--data", ground.data, "--size", "tiny", "--steps", 1, "--out", out]),
        (sft, sft.Config, ["--data", ground.data, "--size", "tiny", "--steps", 1, "--out", out,
                           "--loss-on", "all", "--query-length", 24]),
        (reward, reward.Config, ["--init", ground.supervised, "--comparisons", ground.comparisons,
                                 "--limit", 4, "--out", out]),
        (ppo, ppo.Config, ["--policy", ground.supervised, "--reward", ground.reward, "--data",
                           ground.data, "--episodes", 4, "--epochs", 1, "--out", out]),
        (sample, sample.Config, ["--policy", ground.supervised, "--post", "so my cat", "--device",
                                 "cpu"]),
        (rouge, rouge.Config, ["--pairs", ground.base / "p.jsonl", "--out", out]),
        (labelling, labelling.Export, ["export", "--db", ground.db, "--out", out]),
        (labelling, labelling.Stats, ["stats", "--db", ground.db, "--device", "cpu"]),
        (model, plan.Config, ["plan", "--size", "gpt2"])]))
    runtime.write(ground.base / "p.jsonl", ground.pairs)
    argv = [*LINE * (module in (sft, reward, ppo)), *base]
    if module in (label, labelling, model):                       # the command's name comes first
        argv = base
    for _ in range(draw.draw(st.integers(0, 2))):
        name = draw.draw(st.sampled_from([*flags_of(config), "--nonsense", "--preset", "--debugg"]))
        if name == "--compile":
            continue                                   # works, after a minute
        if name in HEAVY:
            value = draw.draw(st.sampled_from(["0", "-1", "1", "nan", "x", "1.5", ""]))
        else:
            value = draw.draw(st.sampled_from(VALUES) | st.integers(-5, 5000).map(str))
        if name in ("--out", "--db") and value in ("", ".", "/", "-", "../x", " "):
            value = str(folder / "a file" / value)
            (folder / "a file").write_text("in the way")
        argv += [name, value] if draw.draw(st.integers(0, 9)) else [name]
    old = os.getcwd()
    os.chdir(folder)
    try:
        ended = run(module, argv)
    finally:
        os.chdir(old)
    judge(ended, "flags")


# ------------------------------------------------------------------------ damaged runs and databases

@given(st.data())
@tries(0.05)
def test_damaged_runs_are_resumed_or_refused(ground, draw):
    folder = ground.fresh()
    out, half = folder / "run", ground.base / "half"
    argv = [*LINE, "--data", ground.data, "--size", "tiny", "--steps", 6, "--save-every", 2,
            "--out", out, "--resume"]
    if not half.exists():
        descend = sft.optimizer_step

        def dies(*args):
            if args[-1] == 5:
                raise runtime.Problem("step 5: killed")
            return descend(*args)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sft, "optimizer_step", dies)
            assert run(sft, argv).code == 2
        shutil.copytree(out, half)
        shutil.rmtree(out)
    shutil.copytree(half, out)
    for _ in range(draw.draw(st.integers(1, 2))):
        files = sorted(p for p in out.rglob("*") if p.is_file())
        path = files[draw.draw(st.integers(0, len(files) - 1))]
        if draw.draw(st.integers(0, 4)) == 0:
            path.unlink()
        else:
            path.write_bytes(damaged_bytes(path.read_bytes(), draw.draw(byte_damage)))
    ended = judge(run(sft, argv), "damaged runs", [out, "the gradient is"])
    if not ended.code:
        last = (out / "log.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["step"] == 5 and (out / "model.pt").exists()


@given(st.data())
@tries(0.05)
def test_damaged_databases(ground, draw):
    folder = ground.fresh()
    path = folder / "l.db"
    content = ground.db.read_bytes()
    damage = draw.draw(byte_damage)
    path.write_bytes(damaged_bytes(content, [(how if how == "cut" else "over", a, b, extra or b"\xff")
                                             for how, a, b, extra in damage]))
    argv = draw.draw(st.sampled_from([["stats"], ["stats", "--json"], ["export", "--out", folder / "c"],
                                      ["release", "--labeller", "ann"]]))
    judge(run(labelling, [argv[0], "--db", path, *argv[1:]]), "databases", [folder, "--labeller"],
          [folder / "c"])


# ------------------------------------------------------------------------ what comes over a network

@pytest.fixture(scope="module")
def site(ground):
    """A labelling site on a thread; what its handlers print is kept."""
    store = Store(ground.base / "site.db")
    store.add(ground.pairs)
    settings = {"labeller": "", "naive": True, "axes": [{"name": name} for name in labelling.AXIS_QUESTIONS],
                "onboarding": 0}
    server = label_site.Site("127.0.0.1", 0, store, settings, lambda: {})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    store.close()


REQUEST = {"labeller": "ann", "item": 1, "confidence": 7, "notes": ["a", "b"], "comment": "c",
           "axes": [{"overall": 7}, {"accuracy": 1}]}


def test_a_full_disk_loses_no_answer_that_was_confirmed(ground, site):
    """SQLite's own "database or disk is full", in the middle of labelling."""
    def ask(path, **body):
        line = http.client.HTTPConnection("127.0.0.1", site.server_port, timeout=30)
        line.request("POST", path, json.dumps({"labeller": "full", **body}),
                     {"Content-Type": "application/json"})
        reply = line.getresponse()
        return reply.status, json.loads(reply.read())
    store, told, sys.stderr = site.store, sys.stderr, io.StringIO()
    try:
        item = ask("/next")[1]["item"]
        pages = store.one("PRAGMA page_count")[0]
        store.db.execute(f"PRAGMA max_page_count = {pages}")
        status, answer = ask("/answer", item=item, confidence=7, comment="x" * 4000,
                             notes=["y" * 4000] * 2)
        assert status == 503 and "full" in answer["error"]
        assert sys.stderr.getvalue().startswith("error: ") and "Traceback" not in sys.stderr.getvalue()
        store.db.execute("PRAGMA max_page_count = 1000000")
        assert ask("/next")[1]["item"] == item and ask("/answer", item=item, confidence=7)[0] == 200
    finally:
        sys.stderr = told
    assert store.one("SELECT confidence FROM items WHERE id = ?", item)[0] in (3, 7)


@given(st.data())
@tries(0.08)
def test_label_requests(site, draw):
    body = json.dumps(damaged_json(REQUEST, draw.draw(json_damage))).encode("utf-8", "replace")
    if draw.draw(st.booleans()):
        body = damaged_bytes(body, draw.draw(byte_damage))
    path = draw.draw(st.sampled_from(["/next", "/answer", "/undo", "/", "/settings", "/numbers",
                                      "/../label.py", "/%2e%2e/etc/passwd", "//x", "/next?token=1"]))
    verb = draw.draw(st.sampled_from(["POST"] * 5 + ["GET", "HEAD", "PUT"]))
    headers = {"Content-Type": "application/json"} | draw.draw(st.dictionaries(
        st.sampled_from(["Content-Length", "Content-Type", "Host", "Origin", "Transfer-Encoding"]),
        st.sampled_from(["", "0", "-1", "9" * 20, "1e3", "x", "text/html", "127.0.0.1", "chunked",
                         "http://evil.example", "\xff", "application/json; charset=x"]), max_size=1))
    told, sys.stderr = sys.stderr, io.StringIO()
    try:
        line = http.client.HTTPConnection("127.0.0.1", site.server_port, timeout=5)
        if headers.get("Content-Length") not in (None, "0", "-1", "", "x", "1e3"):
            body = b""
        line.request(verb, path, body, headers)
        reply = line.getresponse()
        text = reply.read()
        line.close()
        said = sys.stderr.getvalue()
    finally:
        sys.stderr = told
    INPUTS["label requests", reply.status] += 1
    assert reply.status < 500 or reply.status == 501, (reply.status, text, said)
    assert "Traceback" not in said
    if reply.status >= 400 and verb != "HEAD":
        assert set(json.loads(text)) == {"error"}


class Answers(threading.Thread):
    """A server that sends, byte for byte, what it is told to, and hangs up."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url, self.answer = f"http://127.0.0.1:{self.socket.getsockname()[1]}", b""
        self.start()

    def run(self):
        while True:
            try:
                line, _ = self.socket.accept()
            except OSError:
                return
            with line:
                try:
                    line.recv(1 << 16)
                    line.sendall(self.answer)
                except OSError:
                    continue


@pytest.fixture(scope="module")
def server():
    server = Answers()
    yield server
    server.socket.close()


@given(st.data())
@tries(0.08)
def test_download_answers(ground, server, draw):
    folder = ground.fresh()
    what = draw.draw(st.sampled_from(["tldr", "queries", "axis", "comparisons", "sup4", "gpt2"]))
    if what == "sup4":
        info = {"model_hparams": {"n_shards": 1, "n_layer": 1, "d_model": 16, "heads": 2}}
        body = json.dumps(damaged_json(info, draw.draw(json_damage))).encode("utf-8", "replace")
    else:
        body = draw.draw(records({"axis": ground.axes, "comparisons": ground.compared[:3]}.get(
            what, ground.posts[:3])))[0]
    headers = {"Content-Length": len(body), "Content-Type": "application/json"} | draw.draw(
        st.dictionaries(st.sampled_from(["Content-Length", "Content-Type", "Content-Range", "ETag",
                                         "Location", "Content-MD5", "X-Linked-ETag", "Retry-After"]),
                        st.sampled_from(["", "0", "-5", "7", "9" * 30, "x", '"t"', "text/html",
                                         "bytes 0-1/2", "bytes 5-9/99", "é", "file:///etc/passwd",
                                         "../../x", "AAAA"]), max_size=2))
    status = draw.draw(st.sampled_from([200] * 8 + [206, 204, 302, 404, 416, 429, 503, 999]))
    answer = f"HTTP/1.1 {status} x\r\n".encode() + "".join(
        f"{k}: {v}\r\n" for k, v in headers.items()).encode("latin-1") + b"Connection: close\r\n\r\n"
    if draw.draw(st.integers(0, 5)) == 0:
        answer = damaged_bytes(answer, draw.draw(byte_damage))
    server.answer = answer + body
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "WAITS", ())
        patch.setattr(download.time, "sleep", lambda seconds: None)
        ended = run(data, ["download", what, "--base-url", server.url, "--out", folder / "d"])
    judge(ended, "download answers", [server.url, folder])
    assert {p.name for p in folder.iterdir()} <= {"d"}


# ---------------------------------------------------------------------------------- memory, and paths

def in_little_memory(act, most=400 << 20):
    """Run act() in a process that may take no more than `most` bytes on top; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + most, used + most))
            code = act()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


HUGE = ("train.jsonl", "comparisons.jsonl", "tokenizer.tiktoken", "config.json", "post.txt",
        "model.safetensors", "array.jsonl")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
@pytest.mark.parametrize("name", HUGE)
def test_a_file_of_2_gb_without_an_end_is_refused_unread(ground, name):
    folder = ground.fresh()
    path = folder / name
    for split in ("train", "valid"):
        write_posts(folder, split, ground.posts)
    shutil.copy(ground.data / "tokenizer.tiktoken", folder)
    if name == "model.safetensors":
        shutil.copytree(ground.hf, folder, dirs_exist_ok=True)
    start = {"array.jsonl": b"[", "model.safetensors": struct.pack("<Q", (2 << 30) - 8)}.get(name, b'"')
    with open(path, "wb") as f:
        f.write(start)
        f.truncate(2 << 30)                            # sparse: it takes no room

    def act():
        began = time.process_time()
        argv = [*LINE, "--size", "tiny", "--out", folder / "run", "--steps", 1]
        ended = {
            "comparisons.jsonl": lambda: run(reward, [*LINE, "--init", ground.supervised, "--out",
                                                      folder / "run", "--comparisons", path]),
            "array.jsonl": lambda: run(reward, [*LINE, "--init", ground.supervised, "--out",
                                                folder / "run", "--comparisons", path]),
            "config.json": lambda: run(sft, [*argv, "--data", folder, "--init", folder]),
            "post.txt": lambda: run(sample, ["--policy", ground.supervised, "--post-file", path]),
            "model.safetensors": lambda: run(convert, ["import", folder, "--out", folder / "run"]),
        }.get(name, lambda: run(sft, [*argv, "--data", folder]))()
        judge(ended, "2 GB files", [path], [folder / "run"])
        assert ended.code == 2 and time.process_time() - began < 20
        return 5
    assert in_little_memory(act, 1 << 30 if name == "array.jsonl" else 400 << 20) == 5


@pytest.mark.parametrize("content", [b"\0", b"\n", b'{"id": "1"}\n'])
def test_a_gzip_bomb_is_refused(ground, content, monkeypatch):
    folder = ground.fresh()
    monkeypatch.setattr(runtime.files, "ARRAY", 1 << 20)        # of which it is said that more is too much
    with gzip.open(folder / "train.jsonl.gz", "wb", 9) as f:
        for _ in range(12):
            f.write(content * ((1 << 20) // len(content)))
    ended = judge(run(download, ["describe", folder]), "gzip bombs", [folder / "train.jsonl.gz"])
    assert ended.code == 2 and ("MB" in ended.err or "field" in ended.err)


def test_an_archive_writes_nothing_outside_and_is_never_unpacked(tmp_path):
    """Hostile names, links and sizes in the archive of news stories."""
    raw = tmp_path / "out" / "raw"
    raw.mkdir(parents=True)
    story = b"(CNN) A cat.\n\n@highlight\n\nA cat"
    names = ["../../evil.story", "/tmp/evil.story", "a/../../evil.story", "sound.story", "\udcff.story"]
    with tarfile.open(raw / "cnn_stories.tgz", "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(story)
            archive.addfile(member, io.BytesIO(story))
        for kind, name in ((tarfile.SYMTYPE, "link.story"), (tarfile.LNKTYPE, "hard.story"),
                           (tarfile.FIFOTYPE, "fifo.story"), (tarfile.CHRTYPE, "dev.story")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    before = set(tmp_path.rglob("*"))
    found = dict(download.stories_of(raw / "cnn_stories.tgz"))
    assert set(found) == {"evil", "sound", "\udcff"} and "root" not in "".join(found.values())
    assert set(tmp_path.rglob("*")) == before and not Path("/tmp/evil.story").exists()
    bomb = tarfile.TarInfo("bomb.story")
    bomb.size = 1 << 30
    (raw / "x.tgz").write_bytes(gzip.compress(bomb.tobuf() + bytes(1 << 20)))
    with pytest.raises(runtime.Problem, match="x.tgz: 'bomb.story' has 1,073,741,824 bytes"):
        list(download.stories_of(raw / "x.tgz"))


def test_ids_and_names_in_data_never_become_paths(ground):
    folder = ground.fresh()
    hostile = [{**post, "id": name, "subreddit": name, "title": name} for post, name in zip(
        ground.posts, ["../../evil", "/tmp/evil", "a\0b", "..", "~/evil", "C:\\evil", "|evil", "$(evil)"],
        strict=True)]
    for split in ("train", "valid"):
        write_posts(folder / "d", split, hostile)
    shutil.copy(ground.data / "tokenizer.tiktoken", folder / "d")
    before = set(folder.rglob("*"))
    ended = run(sample, ["--policy", ground.supervised, "--data", folder / "d", "--device", "cpu",
                         "--pairs", 4, "--out", folder / "o" / "pairs.jsonl"])
    assert ended.code == 0, ended.err
    ended = run(rouge, ["--pairs", folder / "o/pairs.jsonl", "--out", folder / "o" / "c.jsonl"])
    assert ended.code == 0, ended.err
    new = set(folder.rglob("*")) - before
    assert all(path == folder / "o" or path.parent == folder / "o" for path in new)
    assert not Path("/tmp/evil").exists()


def test_debug_shows_where_an_error_arose(ground):
    plain = run(sft, ["--data", ground.base / "nowhere"])
    shown = run(sft, ["--data", ground.base / "nowhere", "--debug"])
    assert plain.code == shown.code == 2
    assert "Traceback" in shown.err and "read" not in plain.err.partition("error")[0]
    assert shown.err.splitlines()[-1] == plain.err.splitlines()[-1]


# --------------------------------------------------------------------------- what is never even called

FORBIDDEN = {"eval", "exec", "compile", "__import__", "execfile", "os.system", "os.popen",
             "extractall", "extract", "unpack_archive", "pickle.load", "pickle.loads",
             "pickle.Unpickler", "marshal.loads", "shelve.open", "importlib.util", "yaml.load"}


@pytest.mark.parametrize("name", sorted(str(path.relative_to(ROOT)) for folder in ("", "runtime", "tools")
                                         for path in (ROOT / folder).glob("*.py")))
def test_nothing_foreign_is_executed_or_unpickled(name):
    """Every call by name: weights are loaded with weights_only=True, nothing is unpacked or run."""
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {
                (getattr(node, "module", "") or "").split(".")[0]}
            assert not names & {"dill", "joblib", "marshal", "shelve", "cloudpickle", "yaml"}
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        where = f"{name}:{node.lineno}: {called}"
        assert called not in FORBIDDEN and called.split(".")[-1] not in FORBIDDEN - {"compile"}, where
        if called == "torch.load":
            assert given.get("weights_only") == "True", where
        if called == "np.load":
            assert "allow_pickle" not in given, where
        assert "shell" not in given, where


# --------------------------------------------------------------------------- processes of their own

@pytest.mark.skipif(not FUZZ, reason="the long form: FUZZ=10000")
def test_real_processes(ground, capsys):
    """The same in processes of their own: nothing here depends on how the tests call `main`."""
    rng, folder = random.Random(1), ground.fresh()
    from hypothesis.errors import NonInteractiveExampleWarning
    for number in range(60):
        with pytest.warns(NonInteractiveExampleWarning):
            content, zipped = records(ground.posts).example()
        kind = number % 6
        path = folder / f"{number}"
        path.mkdir()
        for split in ("train", "valid"):
            (path / f"{split}.jsonl{'.gz' * zipped}").write_bytes(content)
        shutil.copy(ground.data / "tokenizer.tiktoken", path)
        argv = [
            ["-m", "tools.download", "describe", path],
            ["-m", "tools.tokenizer", "--data", path, "--vocab", 280],
            ["sft.py", *LINE, "--data", path, "--size", "toy", "--steps", 1, "--out", path / "run"],
            ["sample.py", "--policy", ground.supervised, "--data", path, "--device", "cpu"],
            ["reward.py", *LINE, "--init", ground.supervised, "--comparisons",
             next(path.glob("train*")), "--out", path / "run"],
            ["sft.py", *LINE, "--data", ground.data, "--size", "toy", "--steps", 1, "--out",
             path / "run", rng.choice(flags_of(sft.Config)), rng.choice(VALUES)]][kind]
        done = subprocess.run([sys.executable, *(["-m"] if argv[0] == "-m" else [str(ROOT / argv[0])]),
                               *map(str, argv[1:])], cwd=path,
                              capture_output=True, text=True, errors="replace",
                              env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
        judge(Ended(done.returncode, done.stderr), "processes")


@pytest.mark.skipif(not FUZZ, reason="the count of the long form: set FUZZ=10000")
def test_how_many_were_tried(capsys):
    """The table of the long form, in one process, and that it was as long as asked for."""
    with capsys.disabled():
        print("\ninputs by kind: all, and how they ended")
        for kind in sorted({kind for kind, _ in INPUTS}):
            ends = {code: n for (k, code), n in sorted(INPUTS.items()) if k == kind}
            print(f"  {kind:22}{sum(ends.values()):7,}   {ends}")
        print(f"  {'all':22}{INPUTS.total():7,}")
    assert INPUTS.total() >= FUZZ
