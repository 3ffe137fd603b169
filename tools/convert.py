"""Appendix. Weights in and out: Hugging Face's GPT-2 folders, and the paper's own released models.

    theirs    y = x @ W + b, W (in, out); query, key and value in one matrix, or in three
    ours      y = x @ W.T + b, as torch.nn.Linear; q apart, k and v together; the tables have more
              rows than there are tokens, one of them padding's

A square matrix that nobody turned raises no error, and what it writes is fluent nonsense: so the
tests compare numbers with those that Hugging Face's code and OpenAI's compute. Nothing here runs
what a file contains: pickles are read with weights_only, safetensors by the few lines below.

    python -m tools.convert import exported/ppo --out runs/again           # Hugging Face's folder
    python -m tools.convert import-openai data/openai-models/sup4 --out runs/openai/supervised
    python -m tools.convert export runs/demo/ppo --out exported/ppo       # seconds

The scripts read our own folders alone: config.json, model.pt, tokenizer.tiktoken. (download.py
imports GPT-2 at once.) What `export` writes, transformers and vLLM load as a GPT2LMHeadModel.

Before: model.py (the network that is filled).    The files come from download.py.
"""
import argparse
import json
import math
import os
import pickle
import re
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from data import ENDOFTEXT, build_tokenizer, load_tokenizer, save_tokenizer
from model import ACTIVATIONS, GPT, ModelConfig, load_model
from runtime import ALONE, Problem, config_of, write
from runtime.files import (
    check_config,
    in_brief,
    read_text,
    replacing,
    save_tensors,
    write_config,
)
from runtime.flags import Parser, entry

# --------------------------------------------------------------------------------- files of tensors

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
         "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
         "U8": torch.uint8, "BOOL": torch.bool}
HEADER = 100_000_000               # bytes of a safetensors file's header, at most


def read_safetensors(path):
    """The named tensors of a .safetensors file.

        8 bytes       length of the header, little-endian
        the header    JSON: {name: {"dtype", "shape", "data_offsets": [first byte, after the last]}}
        the rest      the tensors' bytes, to which the offsets refer

    Raises: Problem when the file is missing, cut short, or contradicts itself.
    """
    tensors = {}
    try:
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            start = 8 + int.from_bytes(f.read(8), "little")
            if start > min(size, HEADER):
                raise ValueError("its header does not fit into it")
            header, end = json.loads(f.read(start - 8)), 0
            header.pop("__metadata__", None)
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                kind, (first, last) = TYPES[entry["dtype"]], entry["data_offsets"]
                if not end <= first <= last <= size - start:
                    raise ValueError(f"{name} does not lie inside it, behind the one before")
                end = last
                if last - first != math.prod(entry["shape"]) * kind.itemsize:
                    raise ValueError(f"{name} has {last - first} bytes, its shape wants others")
                tensors[name] = torch.empty(entry["shape"], dtype=kind)
                f.seek(start + first)
                if last > first:
                    f.readinto(tensors[name].view(-1).view(torch.uint8).numpy())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        # (RecursionError, of a header nested too deeply, is a RuntimeError.)
        why = str(error).partition("\n")[0][:200]
        raise Problem(f"{path} cannot be read as safetensors ({why}): fetch it again") from None
    return tensors


def write_safetensors(path, tensors):
    """The reverse: one tensor's bytes after the other's; the file is whole or not there at all."""
    names, header, end = {kind: name for name, kind in TYPES.items()}, {}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": names[t.dtype], "shape": list(t.shape),
                        "data_offsets": [end, end + t.numel() * t.element_size()]}
        end = header[name]["data_offsets"][1]
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)                      # tensors begin at a multiple of 8 bytes
    with replacing(path) as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for t in tensors.values():
            if t.numel():
                f.write(t.detach().contiguous().view(-1).view(torch.uint8).numpy())


def read_pickle(path):
    """The named tensors of a torch.save file, which is a pickle, which may hold code: none is run.

    Raises: Problem when the file is missing, damaged, or holds anything but tensors.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Problem(f"{path} is missing: fetch it with `python -m tools.download`") from None
    except pickle.UnpicklingError:
        raise Problem(f"{path} is refused: it holds code, or is damaged; tensors alone are "
                      "read. Fetch it again from a place you trust") from None
    except Exception as error:           # torch raises many kinds for a damaged file
        raise Problem(f"{path} is damaged ({type(error).__name__}): fetch it again") from None
    if not (isinstance(tensors, dict) and all(map(torch.is_tensor, tensors.values()))
            and all(isinstance(name, str) for name in tensors)):
        raise Problem(f"{path} is refused: it holds more than named tensors")
    return tensors


def turned(w):
    """Theirs to ours and back: a matrix (in, out) <-> (out, in); a vector stays."""
    return w.mT.contiguous() if w.ndim == 2 else w


def in_float32(name, t):
    """Raises: ValueError for whole numbers, which mean something only with a scale beside them, and
    for a tensor that is sparse, or that has no values."""
    if not t.is_floating_point() or t.layout != torch.strided or t.is_meta:
        raise ValueError(f"{name} is of {t.dtype}, {t.layout}, {t.device}")
    return t.float()


def padded(table, n_vocab, rows):
    """The first n_vocab rows of a table of tokens, and zeros up to `rows`: padding's among them."""
    whole = torch.zeros(rows, table.shape[1])
    whole[:n_vocab] = table[:n_vocab]
    return whole


def whole_number(known, names, where):
    """The numbers that a config must give. Raises: Problem naming the first that is missing."""
    for name in names:
        if type(known.get(name)) is not int or known[name] < 1:
            raise Problem(f"{where}: {name!r} is {known.get(name)!r}, not a number that counts")
    return [known[name] for name in names]


# ------------------------------------------------------------------------- Hugging Face's folders

BLOCK = {"norm_1": "ln_1", "attention.out": "attn.c_proj", "norm_2": "ln_2", "up": "mlp.c_fc",
         "down": "mlp.c_proj"}                              # ours: theirs, OpenAI's of 2020 too
GELU = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "exact_gelu",
        "quick_gelu": "quick_gelu"}
UNUSED = r"lm_head\.weight|h\.\d+\.attn\.(masked_)?bias"    # a second wte; causal masks
SHAPE = ("vocab_size", "n_layer", "n_embd", "n_head", "n_positions")       # in ModelConfig's order


def read_known(folder):
    """What a Hugging Face folder's config.json says. Raises: Problem when it cannot be read."""
    where = f"{folder}/config.json"
    try:
        known = json.loads(read_text(where))
        if not isinstance(known, dict) or known.get("model_type") != "gpt2":
            raise ValueError("its model_type is not 'gpt2', the only one that is read here")
    except (OSError, ValueError, RecursionError) as error:
        raise Problem(f"{where} cannot be imported ({in_brief(error)}): give the folder of "
                      "a GPT-2, as Hugging Face's transformers save it") from None
    return known


def read_hugging_face(folder):
    """A GPT2LMHeadModel's folder: config.json, and model.safetensors or pytorch_model.bin.

    What config.json says of dropout and rounding (reorder_and_upcast_attn) changes no network.
    Returns: ModelConfig, our named tensors in float32.
    Raises: Problem for what we cannot compute, and for a tensor that would not be used.
    """
    where, known = f"{folder}/config.json", read_known(folder)
    sizes = whole_number(known, SHAPE, where)
    able = {"activation_function": (*GELU,), "n_inner": (None, 4 * known["n_embd"]),
            "layer_norm_epsilon": (1e-5,), "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
            "tie_word_embeddings": (True, False)}
    given = {name: known.get(name, can[0]) for name, can in able.items()}
    for name, can in able.items():
        if given[name] not in can:
            raise Problem(f"{where}: {name} is {given[name]!r}; this code computes "
                          f"{' or '.join(map(repr, can))} only")
    paths = next((found for pattern in ("model.safetensors", "model-*.safetensors",
                                        "pytorch_model.bin", "pytorch_model-*.bin")
                  if (found := sorted(Path(folder).glob(pattern)))), None)
    if paths is None:
        raise Problem(f"{folder} holds neither model.safetensors nor pytorch_model.bin")
    theirs = {}
    for path in paths:                                      # large models come in several files
        read = read_safetensors if path.suffix == ".safetensors" else read_pickle
        for name, t in read(path).items():                  # GPT-2's original files: no prefix
            name = name.removeprefix("transformer.")
            if name in theirs:
                raise Problem(f"{path}: {name} is there for the second time: which one counts?")
            theirs[name] = t
    with fitting(paths[0], theirs, UNUSED):
        table = theirs["wte.weight"]
        # Where the head that the file holds differs, it counts, whatever config.json says.
        same = torch.equal(theirs.get("lm_head.weight", table).float(), table.float())
        config = ModelConfig(*sizes, tied=bool(given["tie_word_embeddings"]) and same,
                             activation=GELU[given["activation_function"]])
        ours = from_hugging_face(theirs, config)
    check_config(config, ACTIVATIONS, where)
    compare(config, ours, paths[0])
    return config, ours


def compare(config, weights, path):
    """Raise a Problem unless these weights, which came from `path`, are all of the network's."""
    with torch.device("meta"):                              # takes no memory
        ALONE.load(GPT(config), path, weights=weights)


@contextmanager
def fitting(path, theirs, unused):
    """Fill a network from named tensors, taking out of `theirs` what is used.

    unused: a pattern of names that may stay. Raises: Problem when one is missing, odd, or left.
    """
    try:
        yield
    except (KeyError, IndexError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise Problem(f"{path} does not fit its config: {str(error).partition(chr(10))[0]}: fetch "
                      "both again") from None
    left = [name for name in theirs if not re.fullmatch(unused, name)]
    if left:
        raise Problem(f"{path} holds {', '.join(left)[:200]}, which would not be used: that is no "
                      "network of this code, or not the one that its config describes")


def from_hugging_face(theirs, config):
    """Tensors of a GPT2LMHeadModel, "transformer." taken off their names, as ours, in float32.

    What is used is taken out of `theirs`.
    """
    C, n, rows = config.width, config.n_vocab, config.rows

    def take(name):
        return in_float32(name, theirs.pop(name))

    def table(name):
        if len(theirs[name]) != n:
            raise ValueError(f"{name} has {len(theirs[name])} rows, vocab_size is {n}")
        return padded(take(name), n, rows)

    ours = {"wte.weight": table("wte.weight"), "wpe.weight": take("wpe.weight")}
    if not config.tied:
        ours["head.weight"] = table("lm_head.weight")
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = take(f"ln_f.{kind}")
        for i in range(config.layers):
            for a, b in BLOCK.items():
                ours[f"blocks.{i}.{a}.{kind}"] = turned(take(f"h.{i}.{b}.{kind}"))
            qkv = turned(take(f"h.{i}.attn.c_attn.{kind}"))              # (3 C, C) or (3 C,)
            ours[f"blocks.{i}.attention.q.{kind}"] = qkv[:C]
            ours[f"blocks.{i}.attention.kv.{kind}"] = qkv[C:]
    return ours


def to_hugging_face(ours, config):
    """The reverse; padding's rows stay behind."""
    n = config.n_vocab
    theirs = {"wte.weight": ours["wte.weight"][:n], "wpe.weight": ours["wpe.weight"]}
    for kind in ("weight", "bias"):
        theirs[f"ln_f.{kind}"] = ours[f"norm.{kind}"]
        for i in range(config.layers):
            for a, b in BLOCK.items():
                theirs[f"h.{i}.{b}.{kind}"] = turned(ours[f"blocks.{i}.{a}.{kind}"])
            qkv = [ours[f"blocks.{i}.attention.{part}.{kind}"] for part in ("q", "kv")]
            theirs[f"h.{i}.attn.c_attn.{kind}"] = turned(torch.cat(qkv))
    theirs = {f"transformer.{name}": t for name, t in theirs.items()}
    return theirs if config.tied else theirs | {"lm_head.weight": ours["head.weight"][:n]}


VOCABULARIES = ("vocab.json", "tokenizer.json")            # the former with merges.txt


def byte_characters():
    """GPT-2's printable stand-in for each byte: itself, or the next free character from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i)
                                                      for i, byte in enumerate(others)}


def read_vocabulary(folder):
    """The tokenizer of a Hugging Face folder, from its vocab.json and merges.txt or tokenizer.json.

    Ids say in which order tokens were merged, in GPT-2's vocabulary as in ours; <|endoftext|> comes
    last. Raises: Problem for a vocabulary that is otherwise, or not made of bytes.
    """
    old, new = (Path(folder) / name for name in VOCABULARIES)
    path, bytes_of = old if old.exists() else new, {c: b for b, c in byte_characters().items()}
    try:
        if path == old:
            vocabulary = json.loads(read_text(old))
            lines = read_text(old.with_name("merges.txt")).splitlines()
            merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        else:
            known = json.loads(read_text(new))["model"]
            vocabulary, merges = known["vocab"], known["merges"]         # "a b", later ["a", "b"]
            merges = [m.split(" ") if isinstance(m, str) else m for m in merges]
        order = [vocabulary["".join(pair)] for pair in merges]
        last = vocabulary.pop(ENDOFTEXT)
        ranks = {bytes(bytes_of[c] for c in token): i
                 for token, i in sorted(vocabulary.items(), key=lambda item: item[1])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Problem(f"{path} is no byte-level vocabulary like GPT-2's ({error!r:.60})") from None
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise Problem(f"{path} has not a token for every byte, which texts may hold")
    if ([*ranks.values(), last] != list(range(len(vocabulary) + 1))
            or any(type(i) is not int for i in (*ranks.values(), last))):
        raise Problem(f"{path}: the ids do not count from 0 up to {ENDOFTEXT}'s: other special "
                      "tokens are not read here")
    if order != sorted(order):
        raise Problem(f"{path} counts tokens in another order than they are merged in: such a "
                      "tokenizer is not read here")
    return build_tokenizer(ranks)


def write_vocabulary(tokenizer, folder, context):
    """vocab.json, merges.txt and tokenizer_config.json, as GPT2Tokenizer reads them.

    tiktoken joins any two neighbours that spell a token; merges.txt must say which two. So every
    way to cut a token into two tokens is listed, at the token's place.
    """
    stand_in, ranks = byte_characters(), tokenizer._mergeable_ranks
    spelled = {token: "".join(stand_in[byte] for byte in token) for token in ranks}
    merges = ["#version: 0.2"]
    for token in sorted(ranks, key=ranks.get):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [f"{spelled[a]} {spelled[b]}" for a, b in cuts if a in ranks and b in ranks]
    vocabulary = {spelled[token]: i for token, i in ranks.items()} | {ENDOFTEXT: len(ranks)}
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": context,
                "add_prefix_space": False, "clean_up_tokenization_spaces": False,
                **{f"{name}_token": ENDOFTEXT for name in ("bos", "eos", "unk")}}
    for name, text in (("vocab.json", json.dumps(vocabulary, ensure_ascii=False)),
                       ("merges.txt", "\n".join(merges) + "\n"),
                       ("tokenizer_config.json", json.dumps(settings, indent=1) + "\n")):
        write(Path(folder) / name, text)


def export(folder, out):
    """Write a policy's checkpoint as a Hugging Face GPT2LMHeadModel folder, tokenizer included.

    Raises: Problem for a reward model, or when `out` already holds something.
    """
    known, tokenizer, out = config_of(folder), load_tokenizer(folder), Path(out)
    model = load_model(folder)
    config, eot = model.config, tokenizer.eot_token
    if config.head != "lm":
        raise Problem(f"{folder} holds a reward model: GPT2LMHeadModel has no place for its head")
    claim(out)
    flags = {name: known["flags"][name] for name in ("query_length", "response_length", "fill")
             if name in known["flags"]}
    write_vocabulary(tokenizer, out, config.context)
    write(out / "generation_config.json", json.dumps(
        {"bos_token_id": eot, "eos_token_id": eot, "pad_token_id": eot,
         "max_new_tokens": flags.get("response_length", 48)}, indent=1) + "\n")
    write_safetensors(out / "model.safetensors", to_hugging_face(model.state_dict(), config))
    theirs = {mine: name for name, mine in reversed(GELU.items())}
    write(out / "config.json", json.dumps({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": "float32",
        **dict(zip(SHAPE, asdict(config).values(), strict=False)), "n_inner": None,
        "activation_function": theirs[config.activation], "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": eot,
        "eos_token_id": eot, "tie_word_embeddings": config.tied, "flags": flags}, indent=1) + "\n")


def import_hugging_face(folder, out):
    """Write a Hugging Face folder as a checkpoint folder of ours, tokenizer included.

    What `export` knew of a policy, the lengths that it was trained for, comes back too.
    """
    config, weights = read_hugging_face(folder)
    tokenizer, flags = read_vocabulary(folder), read_known(folder).get("flags")
    flags = {name: value for name, value in (flags if isinstance(flags, dict) else {}).items()
             if name in ("query_length", "response_length", "fill") and type(value) in (int, bool)}
    save_tokenizer(tokenizer, out)
    save_tensors(Path(out) / "model.pt", weights)
    write(Path(out) / "config.json", {"flags": {"source": str(folder), **flags},
                                      "model": asdict(config), "torch": torch.__version__})
    print(f"{out}: a policy of {sum(t.numel() for t in weights.values()):,} numbers")


def claim(out):
    """Refuse to write over something. Raises: Problem."""
    if (Path(out) / "config.json").exists():
        raise Problem(f"{out} already holds a model: choose another --out")


# ------------------------------------------------------------------ the paper's own released models
#
# MODEL/info.json and MODEL/checkpoint/{piece}_shard_{000}.pkl, written by each of n_shards GPUs.

UNUSED_OPENAI = r"output_head_value\..*|resblock_\d+\.attn\.k_proj\.bias"     # see read_openai


@dataclass(frozen=True)
class Imported:
    """The flags of a released model: sample.py and evaluate.py treat it as it was trained."""
    source: str
    response_length: int                 # 48 for a policy; 128 for a reward model
    query_length: int = 512
    fill: bool = True                    # queries are filled to query_length with spaces in front
    temperature: float = 0.7             # of the samples that people compared (section 3.3)
    kl_coef: float = 0.05                # and of PPO, as appendix B.1 has it
    episodes: int = 1_000_000
    batch: int = 512


def joined(name, shards):
    """One tensor from what each GPU held of it: some were cut by rows, most by columns.

    Biases that follow a sum over GPUs were added by each of them; norms and heads are copies.
    """
    shards = [in_float32(name, part) for part in shards]
    if name.endswith("c_proj.bias"):
        return shards[0] * len(shards)
    if name.endswith("c_proj.weight"):
        return torch.cat(shards)
    copies = any(part in name for part in (".ln_", "final_layer_norm", "output_head"))
    return shards[0] if copies else torch.cat(shards, -1)


def check_info(info, where):
    """Raise a Problem unless our network can compute what info.json describes, exactly."""
    known = info.get("model_hparams")
    if not isinstance(known, dict):
        raise Problem(f"{where} has no 'model_hparams': is it one of the paper's released models?")
    whole_number(known, ("n_shards", "d_model", "n_layer", "heads"), where)
    if info.get("n_shards", known["n_shards"]) != known["n_shards"]:
        raise Problem(f"{where} says n_shards {info['n_shards']} and {known['n_shards']}")
    able = {"m_attn": (1,), "m_mlp": (4,), "res_scale": (False, None),
            "use_blocksparse_attn": (False, None), "include_pos_embeddings": (True, None),
            "afn": ("quick_gelu", "gelu2", "gelu", None)}
    odd = [f"{key} {known.get(key)!r}" for key, can in able.items() if known.get(key) not in can]
    if odd:
        raise Problem(f"{where}: {', '.join(odd)}: refused, for this code computes no such network")
    return known


def read_openai(folder, n_vocab):
    """One of the paper's released models: a policy when it can say words, else a reward model.

    n_vocab: tokens of the tokenizer, which the files do not tell. (The context is as long as the
    table of positions, whatever info.json says.) A policy's value head, which the
    paper's PPO did not use, is left out; so is any bias of the keys, for it moves all of a query's
    logits equally and softmax cancels it.
    Returns: ModelConfig, our named tensors in float32.
    Raises: Problem for anything that info.json, or a shape, says otherwise than we compute.
    """
    folder = Path(folder)
    where = folder / "info.json"
    try:
        known = check_info(json.loads(read_text(where)), where)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise Problem(f"{where} cannot be read ({in_brief(error)}): give the folder of a released "
                      "model, such as `python -m tools.download sup4` fetches") from None
    shards = defaultdict(list)                       # what each GPU held of a tensor
    for path in sorted((folder / "checkpoint").glob("*_shard_*.pkl")):
        for name, part in read_pickle(path).items():
            shards[f"{path.name.partition('_shard_')[0]}.{name}"].append(part)
    with fitting(folder / "checkpoint", shards, UNUSED_OPENAI):
        config, ours = from_openai(shards, known, n_vocab)
    compare(config, ours, folder)
    return config, ours


def from_openai(shards, known, n_vocab):
    """ModelConfig, and our named tensors; what is used is taken out of `shards`."""
    policy = "output_unembeddings.unembedding_weights" in shards

    def take(name):
        parts = shards.pop(name, [])
        if len(parts) != known["n_shards"]:
            raise ValueError(f"{name} is in {len(parts)} files, not {known['n_shards']}")
        return joined(name, parts)

    def table(name):
        rows, whole = math.ceil(n_vocab / 128) * 128, take(name)
        if len(whole) != rows:
            raise ValueError(f"{name} has {len(whole)} rows, not {n_vocab} rounded up to {rows}; "
                             "it is of another tokenizer")
        return padded(whole, n_vocab, config.rows)

    wpe = take("position_embedding.weight")
    config = ModelConfig(n_vocab, known["n_layer"], known["d_model"], known["heads"], len(wpe),
                         "lm" if policy else "scalar", tied=not policy,
                         activation="gelu" if known.get("afn") == "gelu" else "quick_gelu")
    ours = {"wpe.weight": wpe, "wte.weight": table("input_embeddings.weight")}
    if policy:
        ours["head.weight"] = table("output_unembeddings.unembedding_weights")
    heads = {"norm": "final_layer_norm"} | ({} if policy else {"head": "output_head_reward"})
    for kind in ("weight", "bias"):
        ours |= {f"{name}.{kind}": take(f"{theirs}.{kind}") for name, theirs in heads.items()}
        for i in range(config.layers):
            block = f"resblock_{i:04}"
            for a, b in (BLOCK | {"attention.q": "attn.q_proj"}).items():
                ours[f"blocks.{i}.{a}.{kind}"] = turned(take(f"{block}.{b}.{kind}"))
            v = take(f"{block}.attn.v_proj.{kind}")
            k = take(f"{block}.attn.k_proj.weight") if kind == "weight" else torch.zeros_like(v)
            ours[f"blocks.{i}.attention.kv.{kind}"] = turned(torch.cat((k, v), -1))
    return config, ours


def import_openai(folder, out, tokenizer):
    """Write one of the paper's released models as a checkpoint folder of ours."""
    claim(out)
    config, weights = read_openai(folder, tokenizer.n_vocab)
    save_tokenizer(tokenizer, out)
    save_tensors(Path(out) / "model.pt", weights)
    flags = Imported(str(folder), 48 if config.head == "lm" else 128)
    write_config(Path(out) / "config.json", flags, model=asdict(config))
    kind = "policy" if config.head == "lm" else "reward model"
    print(f"{out}: a {kind} of {sum(t.numel() for t in weights.values()):,} numbers")


# ------------------------------------------------------------------------------------ command line

def import_command(args):
    claim(args.out)
    import_hugging_face(args.folder, args.out)


def main(argv=None):
    """python -m tools.convert COMMAND ..."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND")
    hugging = commands.add_parser("import", help="a Hugging Face folder of a GPT-2 as our own")
    hugging.add_argument("folder", metavar="DIR", help="folder with config.json and weights")
    hugging.add_argument("--out", required=True, help="checkpoint folder to write")
    hugging.set_defaults(run=import_command)
    theirs = commands.add_parser("import-openai", help="a released model of the paper as our own")
    theirs.add_argument("folder", metavar="DIR", help="folder with info.json and checkpoint/")
    theirs.add_argument("--out", required=True, help="checkpoint folder to write")
    theirs.add_argument("--tokenizer", default="gpt2", help="gpt2, or a folder that holds one")
    theirs.set_defaults(run=lambda a: import_openai(a.folder, a.out, load_tokenizer(a.tokenizer)))
    ours = commands.add_parser("export", help="a policy of ours, as a Hugging Face folder")
    ours.add_argument("folder", metavar="DIR", help="checkpoint folder of sft.py or ppo.py")
    ours.add_argument("--out", required=True, help="folder to write")
    ours.set_defaults(run=lambda a: export(a.folder, a.out))
    args = parser.parse_args(argv)
    if "run" not in args:
        raise Problem(f"which command? python -m tools.convert {' | '.join(commands.choices)}")
    args.run(args)


if __name__ == "__main__":
    entry(main)
