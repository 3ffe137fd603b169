"""Files that anybody may send, and files that appear whole or not at all."""
import contextlib
import dataclasses
import gzip
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zlib
from codecs import BOM_UTF8

import torch
from torch.distributed.checkpoint.api import CheckpointException

from runtime.flags import Problem, check_new, spelled


@contextlib.contextmanager
def replacing(path):
    """A file to write, which takes the place of `path` once all of it is on the disk.

    Whatever happens before - a full disk, kill -9, a power cut - `path` keeps what it had.
    Raises: Problem when the disk is full, or nothing may be written there."""
    path, temporary = pathlib.Path(path), pathlib.Path(f"{path}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(cause_of(error), OSError):
            raise Problem(f"{path} cannot be written ({in_brief(error)}); what was there before is "
                          "kept: make room, or choose another place") from error
        raise


def cause_of(error):
    """The error that torch's, or a Problem, is wrapped around; else the error."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]             # one rank's error of several
    inner = error.__context__ if type(error) is RuntimeError else error.__cause__
    return inner if isinstance(inner, OSError) else error


def in_brief(error):
    """What an error says, such as what a disk refused, without the place in the code."""
    error = cause_of(error)
    told = getattr(error, "strerror", None) or str(error)
    return (told.strip().splitlines() or [type(error).__name__])[0][:300]


def sync(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "posix":                           # elsewhere a folder cannot be opened
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def save_tensors(path, tensors):
    """torch.save, atomically: plain tensors, read with weights_only=True (map_location="cpu")."""
    with replacing(path) as f:
        torch.save({name: t.detach() for name, t in tensors.items()}, f)


def text_of(raw):
    """Bytes from outside as text: UTF-8, perhaps after a byte order mark; line ends become "\\n".

    Java and MySQL write emoji as two halves, each of 3 bytes, which UTF-8 forbids. Two halves in a
    row become the emoji; half of one alone becomes "?".
    Raises: ValueError for any other bytes: in another encoding they mean something else."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        halves = raw.decode("utf-8-sig", "surrogatepass").encode("utf-16", "surrogatepass")
        text = halves.decode("utf-16", "surrogatepass").encode(errors="replace").decode()
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_of(text):
    """The value that a JSON text spells. Half an emoji may also stand there as an escape."""
    value = json.loads(text)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    return value


def read_text(path, most=1 << 26):
    """The text of a small file, or of standard input ("-"). Raises: OSError; ValueError when it is
    not text, or has more than `most` bytes (no more are ever in memory)."""
    with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as f:
        raw = f.read(most + 1)
    if len(raw) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return text_of(raw)


def texts_from_outside(cfg):
    """Flags, with those that are TEXT read by the rule above, and for a TEXT FILE its text.

    Raises: Problem when one cannot be read, or a NEW FILE or NEW DIR is there already."""
    found = {}
    for field in dataclasses.fields(cfg):
        value, what = getattr(cfg, field.name), field.metadata["what"]
        if what in ("NEW FILE", "NEW DIR") and value:
            check_new(value)
        elif what in ("TEXT", "TEXT FILE") and value is not None:
            where = spelled(field.name) + (f" {value}" if what == "TEXT FILE" else "")
            try:
                found[field.name] = (read_text(value) if what == "TEXT FILE" else
                                     text_of(os.fsencode(value)))
            except (OSError, ValueError) as error:
                raise Problem(f"{where} cannot be read as text: {in_brief(error)}") from None
    return dataclasses.replace(cfg, **found)


def write_config(path, cfg, **more):
    """How a file or folder came to be: all flags, the code's commit, torch's version, `more`."""
    words = "git describe --always --dirty --abbrev=40 --exclude=*".split()
    commit = subprocess.run(words, cwd=pathlib.Path(__file__).parent, capture_output=True,
                            errors="replace").stdout.strip() if shutil.which("git") else ""
    write(path, {"flags": dataclasses.asdict(cfg), "commit": commit or None,   # -dirty: changed
                 "torch": torch.__version__} | more)                           # since that commit


def read_log(path):
    """The lines of a log.jsonl: of a step its seconds and figures (None: no number), or an event.
    A last line that was cut short is left out. Raises: Problem naming any other bad line."""
    lines, texts = [], pathlib.Path(path).read_text("utf-8", "replace").splitlines()
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            figures = all(value is None or type(value) in (int, float) for value in line.values())
            if type(line["step"]) is not int or not ("event" in line or (
                    figures and line["seconds"] is not None)):
                raise ValueError
            lines.append(line)
        except (ValueError, KeyError, AttributeError, RecursionError):
            if number < len(texts) or text.endswith("}"):
                raise Problem(f"{path}, line {number}: not a line of a training log: repair or "
                              "delete it") from None
    return lines


# What later stages read of an earlier one's flags.
READ = {"data": str, "comparisons": str, "query_length": int, "response_length": int, "fill": bool,
        "episodes": int, "batch": int, "temperature": float | int, "kl_coef": float | int}


def config_of(folder):
    """The config.json of a finished or running stage, as a dict; {} for flags it does not have."""
    path = pathlib.Path(folder) / "config.json"
    try:
        known = {"flags": {}, **json.loads(read_text(path))}
        if "model_type" in known:
            raise Problem(f"{folder} is a Hugging Face folder: `python -m tools.convert import "
                          f"{folder} --out DIR` makes one of ours of it")
        for name, kind in READ.items():
            value = known["flags"].get(name)
            if value is not None and (not isinstance(value, kind) or
                                      kind is not str and not 0 <= value < math.inf):
                raise ValueError(f"flag {name} is {value!r:.40}")
        return known
    except (FileNotFoundError, NotADirectoryError):
        inside = [str(other.parent) for other in sorted(pathlib.Path(folder).glob("*/config.json"))]
        near = f"did you mean {' or '.join(inside)}?" if inside else f"{path} is missing"
        raise Problem(f"{folder} is no checkpoint folder, as runs/quick-0/ppo is: {near}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Problem(f"{path} is damaged ({in_brief(error)}): run that stage again") from None


# --------------------------------------------------------------------------------------- records

LINE, ARRAY = 1 << 24, 1 << 28       # bytes of a line, of a file that is one array: 16 and 256 MB
GROWTH = 200                         # of a .gz, at most: text grows 3 times, a bomb 1,000 times


def lines_of(path):
    """Yield (line number, bytes, whether they are an array) for the lines of a file or .gz that are
    more than blanks. A file that begins with "[" is one line; of others one line is in memory.

    Raises: Problem for a line that is too long, and for a .gz that is nearly nothing but one byte.
    """
    zipped, begun = str(path).endswith(".gz"), False
    with (gzip.open if zipped else open)(path, "rb") as lines:
        grown = max(ARRAY, GROWTH * os.path.getsize(path)) if zipped else math.inf
        lines.read(len(BOM_UTF8) * lines.peek(3).startswith(BOM_UTF8))
        for number, line in enumerate(iter(lambda: lines.readline(LINE + 1), b""), 1):
            array = not begun and line.lstrip().startswith(b"[")
            line += lines.read(ARRAY) if array else b""
            most = ARRAY if array else LINE
            if len(line) > most:
                raise Problem(f"{path}, line {number}: is longer than {most >> 20} MB: write one "
                              "record a line, without brackets around them all")
            if zipped and lines.tell() > grown:
                raise Problem(f"{path}, line {number}: more than {grown >> 20} MB in a file of "
                              f"{os.path.getsize(path):,} bytes: unpack it, and look into it first")
            if not line.isspace():
                begun = True
                yield number, line, array


def read_jsonl(path):
    """Yield (line number, object) for each line of a .jsonl or .jsonl.gz file, one at a time; or
    for each object of a file that is one JSON array, as some mirrors have it.

    Raises: Problem naming the file and the line that is not a JSON object."""
    number = 0
    try:
        for number, line, array in lines_of(path):
            found = json_of(text_of(line))
            for i, record in enumerate(found if array else [found], number):
                if not isinstance(record, dict):
                    raise Problem(f"{path}, line {i}: not an object but {record!r:.40}: write "
                                  '{"field": value, ...} on each line')
                yield i, record
    except (ValueError, RecursionError) as error:                  # not JSON, or not even UTF-8
        raise Problem(f"{path}, line {number}: broken JSON ({getattr(error, 'msg', error)}): "
                      "repair or delete the line") from None
    except (OSError, EOFError, zlib.error) as error:               # absent, or a gzip cut short
        raise Problem(f"{path}: cannot be read{f' after line {number}' if number else ''} "
                      f"({in_brief(error)}): check the path, or make the file again") from None


def json_lines(records):
    """One JSON object a line, as bytes; half an emoji becomes "?"."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return "".join(lines).encode(errors="replace")


BLANKS = 100_000                     # in a row; at a million tiktoken's regular expression panics


def check_shape(where, value, shape, name=""):
    """Raise a Problem unless a JSON value has this shape, which is an example of it:

        str               text                      (0, 1)            one of these values
        {"id": str}       an object with these keys, and perhaps others
        [shape, shape]    a list of exactly so many
        a function        gives the shape of this very value

    where: file and line. name: the field."""
    at = f"{where}: field {name!r}" if name else where
    if callable(shape) and shape is not str:
        shape = shape(value)
    if shape is str:
        if not isinstance(value, str):
            raise Problem(f"{at} is {type(value).__name__}, not text: write it in quotes")
        if len(value) > BLANKS and re.search(rf"\s{{{BLANKS}}}", value):
            raise Problem(f"{at} has {BLANKS:,} blanks in a row: delete them")
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            raise Problem(f"{at} is {value!r:.20}, no object: it needs {', '.join(shape)}")
        for key, kind in shape.items():
            inner = f"{name}.{key}" if name else key
            if key not in value:
                raise Problem(f"{where}: field {inner!r} is missing: add it to the record")
            check_shape(where, value[key], kind, inner)
    elif isinstance(shape, list):
        if not isinstance(value, list) or len(value) != len(shape):
            found = len(value) if isinstance(value, list) else type(value).__name__
            raise Problem(f"{at} holds {found}, not a list of {len(shape)}")
        for i, kind in enumerate(shape):
            check_shape(where, value[i], kind, f"{name}[{i}]")
    elif not any(type(value) is type(one) and value == one for one in shape):
        raise Problem(f"{at} is {value!r:.40}: write one of {', '.join(map(repr, shape))}")


def read_records(path, shape):
    """Yield (where, record) for each line of a .jsonl, .jsonl.gz or JSON array of records; where:
    file and line, to name in a Problem. shape: see `check_shape`."""
    for number, record in read_jsonl(path):
        where = f"{path}, line {number}"
        check_shape(where, record, shape)
        yield where, record


def write(path, content, cfg=None, **more):
    """Write text, bytes, a dict (JSON) or a list of dicts (JSON lines): all of it or nothing.
    cfg: flags, which are then kept with `more` next to it, in path's name with .config.json."""
    if isinstance(content, dict):
        try:
            content = json.dumps(content, indent=1, allow_nan=False) + "\n"
        except ValueError:
            raise Problem(f"{path} is not written: a number for it is not finite; look for a "
                          "network that diverged (python -m tools.doctor RUN)") from None
    elif isinstance(content, list):
        content = json_lines(content)
    with replacing(path) as f:
        f.write(content.encode(errors="replace") if isinstance(content, str) else content)
    if cfg is not None:
        write_config(pathlib.Path(path).with_suffix(".config.json"), cfg, **more)


# ----------------------------------------------------------------------------------- checkpoints

def read_network(folder, Config, activations):
    """The network in a folder: an instance of the dataclass Config, {name: tensor}, and the path
    of the tensors. Raises: Problem when something is missing, damaged, or does not fit the rest."""
    path, where = pathlib.Path(folder) / "model.pt", pathlib.Path(folder) / "config.json"
    try:
        config = Config(**config_of(folder).get("model", {}))
    except TypeError as error:
        raise Problem(f"{where} does not describe a network of this code ({error}): is it a run of "
                      "sft.py, reward.py or ppo.py?") from None
    weights = read_weights(path)
    check_config(config, activations, where)
    layers = sum(name.endswith(".norm_1.weight") for name in weights)
    if layers != config.layers:
        raise Problem(f"{path} does not fit: it has {layers} layers, {where} says {config.layers}; "
                      "it comes from another size")
    for name, length in (("wte.weight", config.rows), ("wpe.weight", config.context)):
        check_shapes(path, weights, {name: (length, config.width)} if name in weights else {})
    return config, weights, path


def check_config(config, activations, where):
    """Raise a Problem unless a config, which came from `where`, describes a network."""
    values = dataclasses.asdict(config)
    typed = all(type(values[field.name]) is field.type for field in dataclasses.fields(config))
    if not (typed and all(n > 0 for n in values.values() if type(n) is int)
            and config.width % config.heads == 0 and config.head in ("lm", "scalar", "sum")
            and config.activation in activations):
        raise Problem(f"{where} does not describe a network of this code: {config}"[:500])


def check_shapes(path, weights, wanted):
    """Raise a Problem for the first of the `wanted` {name: shape} that `weights` do not have."""
    for name, shape in wanted.items():
        found = tuple(weights[name].shape) if name in weights else None
        if found != shape:
            raise Problem(f"{path} does not fit: {name} is {found}, the network wants {shape}; it "
                          "comes from another size or another kind of stage")


def read_weights(path):
    """The named tensors of a model.pt. Raises: Problem when it is missing, damaged or foreign."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise Problem(f"{path} is missing: that stage has not finished (--resume it)") from None
    except Exception as error:           # torch raises many kinds for a damaged file
        raise Problem(f"{path} is damaged ({type(error).__name__}): run that stage again") from None
    if not (isinstance(weights, dict) and all(
            isinstance(name, str) and torch.is_tensor(t) and t.is_floating_point()
            and t.layout == torch.strided and not t.is_meta for name, t in weights.items())):
        raise Problem(f"{path} does not hold named tensors of numbers alone: is it another "
                      "program's file?")
    return weights
