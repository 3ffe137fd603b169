"""Files that anybody may send, and files that appear whole or not at all."""
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import torch
from torch.distributed.checkpoint.api import CheckpointException

from runtime.flags import Problem


@contextlib.contextmanager
def replacing(path):
    """A file to write, which takes the place of `path` once all of it is on the disk.

    Whatever happens before - a full disk, kill -9, the power - `path` holds what it held. (The
    name, too, is on the disk only when its folder is.)
    Raises: Problem when the disk is full, or nothing may be written there.
    """
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
        cause = error.__context__ if type(error) is RuntimeError else error   # torch.save wraps it
        if isinstance(cause, OSError):
            raise Problem(f"{path} cannot be written ({cause.strerror or cause}); what was there "
                          "before is kept: make room, or choose another place") from error
        raise


def check_new(path):
    """Raise a Problem where a file or folder is, before anything is made to be put in its place."""
    if pathlib.Path(path).exists():
        raise Problem(f"{path} exists already: name another --out, or delete it")


def sync(folder):
    """Wait until the names in a folder are on the disk."""
    if os.name == "posix":                           # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path, content):
    """Write text or bytes so that the path holds either the old file or the whole new one."""
    with replacing(path) as f:
        f.write(content.encode(errors="replace") if isinstance(content, str) else content)


def save_tensors(path, tensors):
    """torch.save, atomically: plain tensors, read with weights_only=True (map_location="cpu")."""
    with replacing(path) as f:
        torch.save({name: t.detach() for name, t in tensors.items()}, f)


def text_of(raw):
    """Bytes from outside as text: UTF-8, perhaps behind a byte order mark; line ends become "\\n".

    Half an emoji, which UTF-8 cannot hold though Java and MySQL write it, becomes "?"; its two
    halves, side by side, become the emoji.
    Raises: ValueError for any other bytes: in another encoding they mean something else.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        halves = raw.decode("utf-8-sig", "surrogatepass").encode("utf-16", "surrogatepass")
        text = halves.decode("utf-16", "surrogatepass").encode(errors="replace").decode()
    return text.replace("\r\n", "\n").replace("\r", "\n")


def typed(name, text):
    """What was typed behind a flag, read by that rule. Raises: Problem naming the flag."""
    try:
        return text_of(os.fsencode(text))
    except ValueError as error:
        raise Problem(f"{name} cannot be read as text: {error}") from None


def json_of(text):
    """The value that a JSON text spells. Half an emoji may also stand there as an escape."""
    value = json.loads(text)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    return value


def read_text(path, most=1 << 26):
    """The text of a file that is small, or of standard input ("-").

    Raises: OSError; ValueError when it is not text, or has more than `most` bytes: no more than
    those are ever in memory.
    """
    with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as f:
        raw = f.read(most + 1)
    if len(raw) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return text_of(raw)


def write_config(path, cfg, **more):
    """How a file or folder came to be: all flags, the code's commit, torch's version, `more`."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=pathlib.Path(__file__).parent,
                                capture_output=True, text=True).stdout.strip()
    except OSError:                                  # a machine without git
        commit = ""
    known = dict(flags=dataclasses.asdict(cfg), commit=commit or None, torch=torch.__version__,
                 **more)
    write_atomically(path, json.dumps(known, indent=1) + "\n")


def log_line(text):
    """A line of log.jsonl as a dict: its step, its seconds and figures, None where they were no
    numbers; or an event. Raises: ValueError for anything else."""
    line = json.loads(text)
    if not (isinstance(line, dict) and type(line.get("step")) is int and (
            "event" in line or type(line.get("seconds")) in (int, float)
            and all(v is None or type(v) in (int, float) for v in line.values()))):
        raise ValueError(f"{text[:60]!r} is no line of a training log")
    return line


def check_sizes(folder):
    """Raise unless a training state's files are as long as its done.json says."""
    for name, size in json.loads(read_text(folder / "done.json")).items():
        if (folder / name).stat().st_size != size:
            raise ValueError(f"{name} is not {size} bytes long")


def in_brief(error):
    """What is at an error's root, in one line: what a disk refused, or its last words."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]             # one rank's error of several
    if not isinstance(error, OSError) and isinstance(error.__context__, OSError):
        error = error.__context__                                  # torch.save wraps it
    told = getattr(error, "strerror", None) or str(error)
    return (told.strip().splitlines() or [type(error).__name__])[-1][:200]


# What later stages read of an earlier one's flags.
READ = {"data": str, "comparisons": str, "query_length": int, "response_length": int, "fill": bool,
        "episodes": int, "batch": int, "temperature": float | int, "kl_coef": float | int}


def config_of(folder):
    """The config.json of a finished or running stage, as a dict; {} for flags it does not have."""
    path = pathlib.Path(folder) / "config.json"
    try:
        known = {"flags": {}, **json.loads(read_text(path))}
        for name, kind in READ.items():
            value = known["flags"].get(name)
            if value is not None and (not isinstance(value, kind) or
                                      kind is not str and not 0 <= value < math.inf):
                raise ValueError(f"flag {name} is {value!r:.40}")
        return known
    except (FileNotFoundError, NotADirectoryError):
        raise Problem(f"{folder} is no checkpoint folder: {path} is missing") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Problem(f"{path} is damaged ({error}): run that stage again") from None


def filled(cfg, world, *folders):
    """cfg with --fill as the networks in these folders know posts; warns of another length.

    Raises: Problem when two of them differ: no post can be written so that both know it.
    """
    known = [config_of(folder)["flags"] for folder in folders]
    lengths = [flags.get("query_length", cfg.query_length) if flags.get("fill") else None
               for flags in known]
    if len(set(lengths)) > 1:
        raise Problem(f"{' and '.join(folders)} know posts filled up with spaces to "
                      f"{' and '.join(str(n or 'no') for n in lengths)} tokens: train the reward "
                      "model from this policy (reward.py --init)")
    if lengths[0] not in (None, cfg.query_length) and world.rank == 0:
        print(f"warning: {folders[0]} knows posts filled up with spaces to {lengths[0]} tokens, "
              f"not {cfg.query_length}: better is --query-length {lengths[0]}", file=sys.stderr)
    return dataclasses.replace(cfg, fill=cfg.fill or lengths[0] is not None)
