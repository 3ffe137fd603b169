"""Weights in and out, against numbers that other people's code computed."""
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken
import torch
from conftest import ROOT, write_posts

import data
import model
import sample
import sft
from runtime import ALONE, Problem
from tools import convert
from tools.download import PUBLISHED, checksum

SHARED = ROOT.parent / "shared"
FIXTURES, SAVED = SHARED / "fixtures", SHARED / "tiktoken_cache"
needs_fixtures = pytest.mark.skipif(not FIXTURES.exists(), reason="shared fixtures are not here")
TEXTS = ["cat", "the", " ", "  ", "\n", "\n\n", "\t", "'s", "'", "é", "猫", "😀", "12", "-", "!", "my",
         " mother", "TL;DR:", "<|endoftext|>", "so", " sold"]


def texts(n):
    rng = random.Random(0)
    return ["".join(rng.choice(TEXTS) for _ in range(rng.randint(0, 30))) for _ in range(n)]


def far(ours, theirs):
    """The largest absolute difference; ours: tensor, theirs: array."""
    assert tuple(ours.shape) == theirs.shape
    return np.abs(ours.detach().numpy() - theirs).max()


def hugging(folder, tensors, **changes):
    """A Hugging Face folder with these tensors, and the fixture's config but for the changes."""
    folder.mkdir(exist_ok=True)
    known = json.loads((FIXTURES / "gpt2_tiny" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | changes))
    if tensors:
        convert.write_safetensors(folder / "model.safetensors", tensors)
    return folder


def read(folder):
    """The network that `import` makes of a Hugging Face folder without a tokenizer."""
    config, weights = convert.read_hugging_face(folder)
    net = model.build(config)
    ALONE.load(net, folder, weights=weights)
    return net.eval()


@pytest.fixture
def theirs():
    if not FIXTURES.exists():
        pytest.skip("shared fixtures are not here")
    return convert.read_safetensors(FIXTURES / "gpt2_tiny" / "model.safetensors")


# --------------------------------------------------------------------------- Hugging Face's folders

@needs_fixtures
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_logits_equal_hugging_faces(tmp_path, file):
    for name in ("config.json", file):
        shutil.copy(FIXTURES / "gpt2_tiny" / name, tmp_path)
    expected = np.load(FIXTURES / "gpt2_tiny" / "expected.npz")
    net = read(tmp_path)
    assert far(net(torch.from_numpy(expected["tokens"])), expected["logits"]) < 1e-5
    assert net.wte.weight.shape[0] == net.config.rows == 256 > net.config.n_vocab == 211
    assert not net.wte.weight[211:].any()


def test_the_original_names_in_several_half_precision_files_are_read(tmp_path, theirs):
    expected = np.load(FIXTURES / "gpt2_tiny" / "expected.npz")
    bare = {name.removeprefix("transformer."): t for name, t in theirs.items()}
    bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8) for i in range(2)}
    bare["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    names, folder = sorted(bare), hugging(tmp_path / "two", {})
    for i, part in enumerate((names[:9], names[9:])):
        convert.write_safetensors(folder / f"model-0000{i}-of-00002.safetensors",
                                  {name: bare[name] for name in part})
    net = read(folder)
    assert far(net(torch.from_numpy(expected["tokens"])), expected["logits"]) < 1e-5
    half = hugging(tmp_path / "half", {k: t.half() for k, t in theirs.items()}, n_inner=192)
    weights = read(half).state_dict()
    assert all(t.dtype == torch.float32 for t in weights.values())
    assert torch.equal(weights["wpe.weight"], theirs["transformer.wpe.weight"].half().float())


@pytest.mark.parametrize("changes, told", [
    ({"model_type": "llama"}, "is not 'gpt2'"), ({"n_head": 5}, "does not describe a network"), ({"n_layer": None}, "'n_layer' is None"),
    ({"activation_function": "relu"}, "activation_function is 'relu'"), ({"n_inner": 7}, "n_inner"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"), ({"n_layer": 3}, "h.2"),
    ({"scale_attn_by_inverse_layer_idx": True}, "inverse_layer"), ({"n_embd": 64}, "does not fit"),
    ({"vocab_size": 300}, "does not fit"), ({"n_layer": 1}, "h.1.attn"),
    ({"vocab_size": 200}, "211 rows"), ({"tie_word_embeddings": None}, "tie_word_embeddings is None"),
    ({"tie_word_embeddings": False}, "lm_head.weight")])
def test_what_we_cannot_compute_is_refused_in_one_line(tmp_path, theirs, changes, told):
    with pytest.raises(Problem) as caught:
        convert.main(["import", str(hugging(tmp_path / "x", theirs, **changes)), "--out",
                      str(tmp_path / "out")])
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("said", [{"tie_word_embeddings": True}, {}, {"tie_word_embeddings": False}])
def test_a_head_that_differs_from_the_table_of_tokens_is_read_and_an_equal_one_is_tied(
        tmp_path, theirs, file, said):
    expected = np.load(FIXTURES / "gpt2_tiny" / "expected.npz")
    table, tokens = theirs["transformer.wte.weight"], torch.from_numpy(expected["tokens"])
    known = json.loads((FIXTURES / "gpt2_tiny" / "config.json").read_text())
    del known["tie_word_embeddings"]
    for name, head in (("equal", table.clone()), ("other", -2 * table)):
        folder, tensors = tmp_path / name, {**theirs, "lm_head.weight": head}
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(known | said))
        write = convert.write_safetensors if file.endswith("rs") else lambda p, t: torch.save(t, p)
        write(folder / file, tensors)
        net = read(folder)
        assert net.config.tied == (name == "equal" and said.get("tie_word_embeddings", True))
        assert far(net(tokens) / (1 if name == "equal" else -2), expected["logits"]) < 1e-5


@pytest.mark.parametrize("name, like, told", [
    ("score.weight", (2, 48), "holds score.weight, which would not be used"),
    ("v_head.summary.weight", (1, 48), "would not be used"), ("lm_head.bias", (211,), "would not be used"),
    ("h.0.crossattention.c_attn.weight", (48, 96), "would not be used"),
    ("h.2.ln_1.weight", (48,), "would not be used"), ("wte.weight", (211, 48), "second time"),
    ("transformer.wte.weight", (1, 48), "wte.weight has 1 rows, vocab_size is 211"),
    ("transformer.wte.weight", (256, 48), "wte.weight has 256 rows, vocab_size is 211"),
    ("transformer.h.0.mlp.c_fc.weight", torch.int8, "is of torch.int8")])
def test_every_tensor_of_a_foreign_file_is_used_or_refused_by_name(tmp_path, theirs, name, like, told):
    odd = theirs[name].to(like) if isinstance(like, torch.dtype) else torch.zeros(like)
    with pytest.raises(Problem, match=told):
        read(hugging(tmp_path / "x", {**theirs, name: odd}))
    torch.save({**theirs, 5: torch.zeros(1)}, tmp_path / "x.bin")
    with pytest.raises(Problem, match="more than named tensors"):
        convert.read_pickle(tmp_path / "x.bin")


def test_safetensors_of_every_type_come_back(tmp_path):
    some = {kind: (torch.arange(6) % 2).reshape(2, 3).to(t) for kind, t in convert.TYPES.items()}
    some["none"], some["one"] = torch.zeros(0, 4), torch.tensor(3.5)
    convert.write_safetensors(tmp_path / "x", some)
    back = convert.read_safetensors(tmp_path / "x")
    assert back.keys() == some.keys()
    assert all(torch.equal(back[k], t) and back[k].dtype == t.dtype for k, t in some.items())


def test_damaged_safetensors_are_a_problem(tmp_path):
    path = tmp_path / "x.safetensors"
    convert.write_safetensors(path, {"a": torch.arange(8.0)})
    whole = path.read_bytes()
    for damaged in (b"", whole[:5], whole[:20], whole[:-1], b"\xff" * 64, b"<html>" * 9,
                    whole.replace(b'"F32"', b'"F99"'), whole.replace(b"[0, 32]", b"[8, 32]"),
                    whole.replace(b"[0, 32]", b"[-9,32]"), whole.replace(b"[8]", b"[9]"),
                    b"\x02" + bytes(7) + b"[]"):
        path.write_bytes(damaged)
        with pytest.raises(Problem, match="x.safetensors cannot be read"):
            convert.read_safetensors(path)


class Malice:
    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path):
    Malice.mark = tmp_path / "was run"
    for zipped in (True, False):
        torch.save({"wte.weight": Malice()}, tmp_path / "x.bin",
                   _use_new_zipfile_serialization=zipped)
        with pytest.raises(Problem, match="x.bin is refused: it holds code"):
            convert.read_pickle(tmp_path / "x.bin")
    assert not Malice.mark.exists()
    for content, told in ((b"no pickle", "damaged|refused"), (b"", "damaged")):
        (tmp_path / "x.bin").write_bytes(content)
        with pytest.raises(Problem, match=told):
            convert.read_pickle(tmp_path / "x.bin")
    torch.save({"a": 1}, tmp_path / "x.bin")
    with pytest.raises(Problem, match="more than named tensors"):
        convert.read_pickle(tmp_path / "x.bin")


# ------------------------------------------------------------------------------ the paper's models

def released(name, head=None):
    config, weights = convert.read_openai(FIXTURES / "openai_tiny" / name, 250)
    net = model.build(config)
    ALONE.load(net, name, weights=weights)
    return net.eval()


@needs_fixtures
@pytest.mark.parametrize("name, number", [
    ("policy", "logits"), ("policy_2shards", "logits"), ("reward", "scores"),
    ("reward_half", "scores_half")])
def test_released_models_compute_what_openais_code_does(name, number):
    expected = np.load(FIXTURES / "openai_tiny" / "expected.npz")
    net = released(name)
    assert far(net(torch.from_numpy(expected["tokens"])), expected[number]) < 1e-5


@needs_fixtures
def test_a_released_reward_model_scores_a_summary_as_openais_code_does():
    expected = np.load(FIXTURES / "openai_tiny" / "expected.npz")
    responses = [[t for t in row[0] if t >= 0] for row in expected["response_tokens"].tolist()]
    scores = model.score(released("reward"), expected["query_tokens"].tolist(), responses)
    assert far(scores[:, None], expected["rewards"]) < 1e-5


@needs_fixtures
def test_options_that_we_do_not_compute_are_refused(tmp_path):
    with pytest.raises(Problem) as caught:
        released("reward_options")
    told = str(caught.value)
    assert "res_scale True, use_blocksparse_attn True: refused" in told and "\n" not in told
    shutil.copytree(FIXTURES / "openai_tiny" / "reward", tmp_path / "x", copy_function=shutil.copy)
    known = json.loads((tmp_path / "x" / "info.json").read_text())
    for changes, told in (({"m_mlp": 2}, "m_mlp 2"), ({"afn": "swish"}, "afn 'swish'"),
                          ({"heads": 0}, "'heads'"), ({"n_layer": 3}, "resblock_0002"),
                          ({"d_model": 64}, "does not fit"), ({"n_shards": 2}, "in 1 files, not 2"),
                          ({"n_layer": 1}, "resblock_0001.* would not be used")):
        changed = {"model_hparams": known["model_hparams"] | changes}
        (tmp_path / "x" / "info.json").chmod(0o644)
        (tmp_path / "x" / "info.json").write_text(json.dumps(changed))
        with pytest.raises(Problem, match=told):
            convert.read_openai(tmp_path / "x", 250)
    with pytest.raises(Problem, match="another tokenizer"):
        convert.read_openai(FIXTURES / "openai_tiny" / "policy", 300)
    with pytest.raises(Problem, match="info.json cannot be read"):
        convert.read_openai(tmp_path, 250)


@needs_fixtures
@pytest.mark.parametrize("name, changed, told", [
    ("resblock_0000", {"attn.rel.bias": 3}, "resblock_0000.attn.rel.bias, which would not be used"),
    ("resblock_0000", {"attn.q_proj.bias": None}, "resblock_0000.attn.q_proj.bias is in 0 files"),
    ("resblock_0001", {"mlp.c_fc.weight": None}, "resblock_0001.mlp.c_fc.weight is in 0 files"),
    ("input_embeddings", {"bias": 32}, "input_embeddings.bias, which"),
    ("input_embeddings", {"weight": None}, "input_embeddings.weight is in 0"),
    ("input_embeddings", {"weight": ()}, "does not fit"),
    ("output_head_reward", {"weight": 32, "bias": 1}, "output_head_reward.*would not be used"),
    ("resblock_0001", {"attn.k_proj.bias": 32}, ""), ("output_head_value", {"more": 3}, ""),
    ("resblock_0000", {"mlp.c_fc.bias": torch.int8}, "mlp.c_fc.bias is of torch.int8")])
def test_every_tensor_of_a_released_model_is_used_or_refused_by_name(tmp_path, name, changed, told):
    shutil.copytree(FIXTURES / "openai_tiny" / "policy", tmp_path / "x", copy_function=shutil.copyfile)
    path = tmp_path / "x" / "checkpoint" / f"{name}_shard_000.pkl"
    tensors = dict(convert.read_pickle(path)) if path.exists() else {}
    tensors |= {key: tensors[key].to(to) if isinstance(to, torch.dtype) else torch.ones(to)
                for key, to in changed.items() if to is not None}
    path.unlink(missing_ok=True)
    torch.save({k: t for k, t in tensors.items() if changed.get(k, 0) is not None}, path)
    if told:
        with pytest.raises(Problem, match=told):
            convert.read_openai(tmp_path / "x", 250)
    else:
        ours, plain = (convert.read_openai(folder, 250)[1]
                       for folder in (tmp_path / "x", FIXTURES / "openai_tiny" / "policy"))
        assert all(torch.equal(ours[key], t) for key, t in plain.items())


def write_openai(folder, net):
    """A network of ours in the format of the released models, on one GPU."""
    c, w = net.config, {k: v.detach().clone() for k, v in net.state_dict().items()}
    rows = -(-c.n_vocab // 128) * 128
    pieces = {"position_embedding": {"weight": w["wpe.weight"]},
              "final_layer_norm": {k: w[f"norm.{k}"] for k in ("weight", "bias")}}

    def table(name):
        return torch.nn.functional.pad(w[f"{name}.weight"][:c.n_vocab], (0, 0, 0, rows - c.n_vocab))
    pieces["input_embeddings"] = {"weight": table("wte")}
    if c.head == "lm":
        pieces["output_unembeddings"] = {"unembedding_weights": table("head")}
    else:
        pieces["output_head_reward"] = {k: w[f"head.{k}"] for k in ("weight", "bias")}
    for i in range(c.layers):
        block = pieces[f"resblock_{i:04}"] = {}
        for kind in ("weight", "bias"):
            ours = {theirs: w[f"blocks.{i}.{mine}.{kind}"] for mine, theirs in convert.BLOCK.items()}
            ours["attn.q_proj"] = w[f"blocks.{i}.attention.q.{kind}"]
            ours["attn.k_proj"], ours["attn.v_proj"] = w[f"blocks.{i}.attention.kv.{kind}"].chunk(2)
            block |= {f"{name}.{kind}": convert.turned(t) for name, t in ours.items()}
    (folder / "checkpoint").mkdir(parents=True)
    for name, tensors in pieces.items():
        torch.save(tensors, folder / "checkpoint" / f"{name}_shard_000.pkl")
    (folder / "info.json").write_text(json.dumps({"model_hparams": dict(
        n_shards=1, d_model=c.width, n_layer=c.layers, heads=c.heads, m_attn=1, m_mlp=4,
        n_ctx=c.context, use_blocksparse_attn=False)}))
    return folder


@pytest.fixture(scope="module")
def imported(tmp_path_factory, data_dir, tokenizer):
    """A policy and a reward model as `import-openai` writes them."""
    home = tmp_path_factory.mktemp("openai")
    for name, head in (("supervised", "lm"), ("reward", "scalar")):
        config = model.ModelConfig(tokenizer.n_vocab, 2, 16, 2, 700, head, head == "scalar",
                                   "quick_gelu")
        net = model.build(config, 1)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
        write_openai(home / name, net)
        convert.main(f"import-openai {home / name} --tokenizer {data_dir} "
                   f"--out {home / 'ours' / name}".split())
    return home / "ours"


def test_an_imported_policy_reads_queries_filled_with_spaces(imported, posts, tokenizer, data_dir,
                                                              capsys, float64):
    policy = sample.load_checkpoint(imported / "supervised")
    assert (policy.query_length, policy.response_length, policy.fill) == (512, 48, True)
    space, = tokenizer.encode_ordinary(" ")
    plain = data.encode_query(tokenizer, posts[0], 512)
    filled = [space] * (512 - len(plain)) + plain
    assert data.encode_query(tokenizer, posts[0], 512, fill=True) == filled
    policy = policy._replace(response_length=8)
    said = sample.summarise(policy, posts[:3])
    other = sample.summarise(policy._replace(fill=False), posts[:3])
    by_hand = sample.generate(policy.model, [filled], 8)[0][0]
    assert said[0] == data.decode_response(tokenizer, by_hand) and said != other
    reward = sample.load_checkpoint(imported / "reward", head="scalar", like=policy)
    summary = data.encode_response(tokenizer, "my cat", 128)
    assert reward.fill and reward.response_length == 128
    assert sample.score_texts(reward, posts[:1], ["my cat"]) == pytest.approx(
        model.score(reward.model, [filled], [summary]).tolist(), abs=1e-5)
    sample.main(f"--policy {imported / 'supervised'} --post hello --device cpu --best-of 2 "
                f"--reward {imported / 'reward'}".split())
    assert "score" in capsys.readouterr().out
    with pytest.raises(Problem, match="--data: valid.jsonl .* is missing"):
        sample.main(["--policy", str(imported / "supervised"), "--device", "cpu"])


def test_evaluate_compares_ours_with_theirs(imported, supervised, data_dir, tmp_path):
    judges = pytest.importorskip("tools.judges")
    small = "--posts 3 --device cpu --judge rouge"
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(supervised, run / "supervised")
    judges.main(f"--run {run} --data {data_dir} {small} --against {imported / 'supervised'}".split())
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["against"]["n"] == 3
    shutil.copytree(imported / "supervised", imported / "ppo", dirs_exist_ok=True)
    judges.main(f"--run {imported} --data {data_dir} {small} --out {tmp_path / 'theirs'}".split())
    report = json.loads((tmp_path / "theirs" / "report.json").read_text())
    assert abs(report["policies"]["human_feedback"]["kl"]) < 1e-4       # the same network twice
    shutil.rmtree(imported / "ppo")


def test_an_import_overwrites_nothing(imported):
    with pytest.raises(Problem, match="already holds a model"):
        convert.claim(imported / "supervised")


def test_an_imported_policy_grows_a_reward_head_and_is_trained_on(imported, data_dir, tmp_path):
    grown = model.load_model(imported / "supervised", head="scalar")
    assert grown.head.weight.shape == (1, 16) and grown.config.activation == "quick_gelu"
    flags = (f"--data {data_dir} --init {imported / 'supervised'} --steps 2 --response-length 16 "
             f"--batch 4 --device cpu --out {tmp_path / 'tuned'} --query-length")
    with pytest.raises(Problem, match="filled up with spaces to 512 tokens"):
        sft.main([*flags.split(), "80"])
    sft.main([*flags.split(), "512"])
    before, after = (model.load_model(f).state_dict() for f in (imported / "supervised",
                                                                tmp_path / "tuned"))
    assert not torch.equal(before["head.weight"], after["head.weight"])


# -------------------------------------------------------------------------------------------- export

@pytest.mark.parametrize("kind", ["supervised", "imported"])
def test_what_is_exported_and_imported_again_is_the_same_to_the_bit(kind, request, tmp_path):
    folder = request.getfixturevalue(kind) / ("supervised" if kind == "imported" else "")
    convert.main(["export", str(folder), "--out", str(tmp_path / "out")])
    with pytest.raises(Problem, match=f"python -m tools.convert import {tmp_path / 'out'}"):
        sample.load_checkpoint(tmp_path / "out")
    convert.main(["import", str(tmp_path / "out"), "--out", str(tmp_path / "back")])
    ours, back = (sample.load_checkpoint(f) for f in (folder, tmp_path / "back"))
    assert ours.model.config == back.model.config
    assert data.same_tokenizer(ours.tokenizer, back.tokenizer)
    assert ours[3:6] == back[3:6]                              # lengths, and whether to fill
    n, theirs = ours.model.config.n_vocab, back.model.state_dict()
    for name, t in ours.model.state_dict().items():
        part = slice(n if name in ("wte.weight", "head.weight") else None)
        assert torch.equal(t[part], theirs[name][part])
    with pytest.raises(Problem, match="already holds"):
        convert.main(["export", str(folder), "--out", str(tmp_path / "out")])
    with pytest.raises(Problem, match="already holds"):
        convert.main(["import", str(tmp_path / "out"), "--out", str(tmp_path / "back")])


@pytest.mark.parametrize("ours, theirs", [
    ("gelu", "gelu_new"), ("exact_gelu", "gelu"), ("quick_gelu", "quick_gelu")])
def test_an_activation_has_hugging_faces_name_there_and_ours_here(ours, theirs, supervised, tmp_path):
    folder = shutil.copytree(supervised, tmp_path / "in")
    known = json.loads((folder / "config.json").read_text())
    known["model"]["activation"] = ours
    (folder / "config.json").write_text(json.dumps(known))
    convert.main(["export", str(folder), "--out", str(tmp_path / "out")])
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    assert exported["activation_function"] == theirs
    assert convert.read_hugging_face(tmp_path / "out")[0].activation == ours


def test_a_reward_model_is_not_exported(reward_model, tmp_path):
    with pytest.raises(Problem, match="holds a reward model"):
        convert.main(["export", str(reward_model), "--out", str(tmp_path / "out")])


def encode_by_merges(text, folder):
    """Byte-level BPE as Hugging Face does it: merge the pair that comes first in merges.txt."""
    ids = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().splitlines()[1:]
    place = {tuple(line.split(" ")): i for i, line in enumerate(lines)}
    stand_in, found = convert.byte_characters(), []
    for piece in regex.findall(data.PATTERN, text):
        parts = [stand_in[byte] for byte in piece.encode()]
        while len(parts) > 1:
            at, i = min((place.get(pair, len(place)), i) for i, pair in enumerate(
                zip(parts, parts[1:], strict=False)))
            if at == len(place):
                break
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        found += [ids[part] for part in parts]
    return found


def test_written_merges_give_the_same_tokens(tmp_path, tokenizer):
    convert.write_vocabulary(tokenizer, tmp_path, 100)
    for text in texts(300):
        assert encode_by_merges(text, tmp_path) == tokenizer.encode_ordinary(text)
    assert data.same_tokenizer(tokenizer, convert.read_vocabulary(tmp_path))


@pytest.mark.parametrize("joined", [True, False])
def test_a_folder_with_tokenizer_json_alone_is_read(tmp_path, tokenizer, joined):
    convert.write_vocabulary(tokenizer, tmp_path, 100)
    merges = (tmp_path / "merges.txt").read_text().splitlines()[1:]
    known = {"vocab": json.loads((tmp_path / "vocab.json").read_text()),
             "merges": merges if joined else [line.split(" ") for line in merges]}
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "tokenizer.json").write_text(json.dumps({"model": known}))
    assert data.same_tokenizer(tokenizer, convert.read_vocabulary(tmp_path / "new"))


def test_gpt2s_own_vocabulary_is_read(tmp_path, monkeypatch):
    if not SAVED.exists():
        pytest.skip("no cached copy of GPT-2's tokenizer")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SAVED))
    for path in SAVED.iterdir():                       # Hugging Face has the same two files
        name = "vocab.json" if path.read_bytes().startswith(b"{") else "merges.txt"
        shutil.copy(path, tmp_path / name)
        assert PUBLISHED[f"openai-community/gpt2/resolve/main/{name}"] == checksum(path)
    assert data.same_tokenizer(convert.read_vocabulary(tmp_path), data.load_tokenizer("gpt2"))


@pytest.mark.parametrize("change, told", [
    (lambda v: v.pop(data.ENDOFTEXT), "no byte-level"), (lambda v: v.update({"<pad>": 301}), "count"),
    (lambda v: v.update({"猫": 301}), "no byte-level"), (lambda v: v.clear(), "no byte-level")])
def test_a_foreign_vocabulary_is_refused(tmp_path, tokenizer, change, told):
    convert.write_vocabulary(tokenizer, tmp_path, 100)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    change(vocabulary)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(Problem, match=told):
        convert.read_vocabulary(tmp_path)


def test_merges_in_another_order_than_the_ids_are_refused(tmp_path, tokenizer):
    convert.write_vocabulary(tokenizer, tmp_path, 100)
    first, *lines = (tmp_path / "merges.txt").read_text().splitlines()
    (tmp_path / "merges.txt").write_text("\n".join([first, *lines[::-1]]))
    with pytest.raises(Problem, match="another order"):
        convert.read_vocabulary(tmp_path)


@pytest.mark.parametrize("kind", ["supervised", "imported"])
def test_transformers_gives_equal_logits_and_equal_text(kind, request, tmp_path, posts):
    transformers = pytest.importorskip("transformers")
    folder = request.getfixturevalue(kind) / ("supervised" if kind == "imported" else "")
    convert.main(["export", str(folder), "--out", str(tmp_path / "out")])
    policy = sample.load_checkpoint(folder)
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs.save_pretrained(tmp_path / "saved")
    assert data.same_tokenizer(policy.tokenizer, convert.read_vocabulary(tmp_path / "saved"))
    for text in texts(300):
        text = text.replace(data.ENDOFTEXT, "")            # there it is the token, in ours text
        assert theirs(text)["input_ids"] == policy.tokenizer.encode_ordinary(text)
    for post in posts[:20]:
        query = data.encode_query(policy.tokenizer, post, policy.query_length, policy.fill)
        tokens = torch.tensor([query])
        assert far(policy.model(tokens), net(tokens).logits.detach().numpy()) < 1e-4
        said = net.generate(tokens, do_sample=False, max_new_tokens=policy.response_length)
        ours = sample.respond(policy, [query])[0]
        assert said[0, len(query):].tolist() == ours


# ---------------------------------------------------------------------------------- sft.py --init

def test_imitation_starts_from_an_imported_folder(supervised, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = (f"--data {data_dir} --query-length 80 --response-length 16 --batch 4 --steps 1 --lr 0 "
            "--device cpu").split()
    with pytest.raises(Problem, match="data/gpt2-medium is no checkpoint folder"):
        sft.main([*line, "--init", "data/gpt2-medium", "--out", "x"])
    convert.main(["export", str(supervised), "--out", "theirs"])
    with pytest.raises(Problem, match="python -m tools.convert import"):
        sft.main([*line, "--init", "theirs", "--out", "x"])
    convert.main(["import", "theirs", "--out", "data/gpt2-medium"])
    sft.main([*line, "--init", "data/gpt2-medium", "--out", "x"])
    assert Path("x/tokenizer.tiktoken").exists()
    before, x = (model.load_model(f).state_dict() for f in (supervised, "x"))
    n = model.load_model("x").config.n_vocab
    assert torch.equal(before["wte.weight"][:n], x["wte.weight"][:n])


def test_a_run_with_gpt2s_tokenizer_never_needs_the_network_again(tmp_path, posts, monkeypatch,
                                                                  capsys):
    if not SAVED.exists():
        pytest.skip("no cached copy of GPT-2's tokenizer")
    for split in ("train", "valid"):
        write_posts(tmp_path / "posts", split, posts[:8])
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SAVED))
    data.save_tokenizer(data.load_tokenizer("gpt2"), tmp_path / "posts")
    sft.main(f"--data {tmp_path / 'posts'} --size tiny --query-length 80 --batch 2 "
             f"--response-length 16 --steps 1 --device cpu --out {tmp_path / 'run'}".split())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    sample.main(f"--policy {tmp_path / 'run'} --post hello --device cpu".split())
    assert capsys.readouterr().out
