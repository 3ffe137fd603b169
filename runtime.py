"""Appendix A. The plumbing: flags, processes, checkpoints, logs, and randomness without a state.

Nothing here comes from the paper, and the chapters can be read without it. Five promises are kept:

    flags         one frozen dataclass a script; defaults < --preset < what was typed
    World         the same script alone, or as one of many processes under torchrun
    randomness    every draw is a function of (seed, purpose, step, row): nothing to be remembered
    Run           a run's folder: config.json, log.jsonl, state/ while training, model.pt at the end
    Problem       what the user can mend is said in one line, and the exit code is not 0

Read before: nothing. Read after: data.py, Chapter 1.
"""
import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
import zlib

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm


class Problem(Exception):
    """Something the user can mend: what, where, what to do, in one line."""


class Diverged(Problem):
    """A number that is not finite ended a run; its log keeps the step and the message."""

    def __init__(self, step, message):
        super().__init__(f"step {step}: {message}")
        self.step = step


def entry(main):
    """Run a script's `main`; what the user can mend becomes one line on stderr and exit code 2.

    That is a Problem, and whatever disk or memory refuse. With --debug among the arguments the
    place in the code is shown above that line.
    """
    debug, sys.argv = "--debug" in sys.argv, [word for word in sys.argv if word != "--debug"]
    who = f"rank {os.environ.get('RANK')}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    if hasattr(sys.stdout, "reconfigure"):        # a terminal without emoji shows their numbers
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except BrokenPipeError:                       # `python sample.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (Problem, OSError, MemoryError, RuntimeError) as error:
        told = in_one_line(error)
        if told is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"{who}error: {told}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None


def in_one_line(error):
    """What to tell the user of an error; None when it is none of theirs. Texts of their files may
    stand in it: what would move a terminal's cursor becomes a blank."""
    told = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search(
            "can't allocate memory|out of memory", told)):
        told = ("the memory is full: lower --micro-batch (or --rollout-batch, --rows-at-once), or "
                f"take a smaller network ({told})")
    elif isinstance(error, OSError):
        told = (f"{error.filename or 'a file or connection'}: {error.strerror or told}: check that "
                "it is there, may be used, and that the disk has room")
    elif not isinstance(error, Problem):
        return None
    return "".join(c if c.isprintable() else " " for c in told[:1000])


def first_line(error):
    """What an error says before it shows the place in the code."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def bar(total, name, world, unit="summary"):
    """A progress bar of this many units, which only the first process shows."""
    return tqdm(total=total, desc=name, unit=unit, leave=False, disable=world.rank > 0)


# ------------------------------------------------------------------------------------------ flags

def flag(default, help, choices=None):
    """A dataclass field that is also a command-line flag."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclasses.dataclass(frozen=True)
class Machine:
    """The flags that say on what a script computes."""
    device: str = flag("auto", "auto, cpu, cuda or mps")
    precision: str = flag("auto", "arithmetic; auto: bf16 on CUDA, fp32 elsewhere",
                          choices=("auto", "bf16", "fp32"))
    parallel: str = flag("ddp", "under torchrun: ddp, every process holds whole networks; fsdp, "
                                "each holds its share of every weight", choices=("ddp", "fsdp"))


@dataclasses.dataclass(frozen=True)
class Common(Machine):
    """The flags that every training script has."""
    out: str = flag("", "folder of this run: config.json, model.pt, log.jsonl, state/")
    resume: bool = flag(False, "go on where --out stopped (or start, when there is nothing yet)")
    seed: int = flag(0, "every random choice is a function of this number")
    compile: bool = flag(False, "torch.compile the networks (slow first steps, faster later)")
    checkpointing: bool = flag(False, "compute each layer's inside twice rather than remember it: "
                                      "a third slower, far less memory")
    fill: bool = flag(False, "put spaces before shorter posts, --query-length tokens in all, as "
                             "the paper's code does; a network that learned so goes on so anyway")
    save_every: int = flag(200, "steps between saved training states; the last two are kept")


COUNTS = {"batch", "micro_batch", "rollout_batch", "minibatches", "save_every", "eval_every",
          "eval_rows", "log_every", "zero_rows"}         # flags for which 0 means nothing
SIGNED = {"seed", "temperature", "missing_eot"}          # and those that may be below 0


def parse(config_class, presets, argv, doc, by=None):
    """Flags from the command line: defaults < preset < typed.

    presets: name -> {flag: value}; with `by`, name -> {value of flag `by`: {flag: value}}.
    Returns: config_class, frozen. Raises: Problem for an unknown flag, preset, choice or value.
    """
    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise Problem(f"{message} (--help lists every flag)")

    parser = Parser(description=doc, allow_abbrev=False, epilog="--debug: when something goes "
                    "wrong, also show where in the code",
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    if presets:
        parser.add_argument("--preset", default=None, choices=list(presets),
                            help="a set of values; typed flags win over it")
    groups = {c: parser.add_argument_group(title) for c, title in
              ((Common, "shared by the scripts"), (config_class, "of this script"))}
    for field in dataclasses.fields(config_class):
        group = groups[Common if field.name in Common.__dataclass_fields__ else config_class]
        name = "--" + field.name.replace("_", "-")
        shown = f"{field.metadata['help']} (default: {field.default!r})".replace("%", "%%")
        options = dict(dest=field.name, default=argparse.SUPPRESS, help=shown)
        if field.type is bool:
            group.add_argument(name, action="store_true", **options)
        else:
            group.add_argument(name, type=field.type, choices=field.metadata["choices"],
                               metavar=None if field.metadata["choices"] else
                               field.type.__name__.upper(), **options)
    typed = vars(parser.parse_args(argv))
    preset = presets.get(typed.pop("preset", None), {})
    if by and preset:
        preset = preset[typed.get(by, getattr(config_class, by))]
    cfg = config_class(**{**preset, **typed})
    for name, value in vars(cfg).items():
        if isinstance(value, str) or value is None:
            continue
        typed = f"--{name.replace('_', '-')} is {value}"
        if name in COUNTS and value < 1:
            raise Problem(f"{typed}: it counts from 1")
        if not math.isfinite(value) or (value < 0 and name not in SIGNED):
            raise Problem(f"{typed}: a number of 0 or more is expected")
    return cfg


# ------------------------------------------------------------------------------------- randomness

def generator(seed, purpose, step=0, row=0):
    """A numpy Generator that depends on nothing but its arguments (Philox, counter-based)."""
    key = np.array([seed % 2 ** 64, zlib.crc32(purpose.encode())], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, row]))


def uniforms(seed, purpose, step, rows, n):
    """n numbers in [0, 1) for each row, the same whatever other rows are asked for.

    rows: ids of the rows, any iterable of int. Returns: (len(rows), n) float64.
    """
    drawn = [generator(seed, purpose, step, int(row)).random(n) for row in rows]
    return np.stack(drawn) if drawn else np.zeros((0, n))


def finest(device):
    """The dtype for sums that may not depend on their order: float64, which MPS lacks."""
    return torch.float32 if device.type == "mps" else torch.float64


# ---------------------------------------------------------------------------------------- processes

@dataclasses.dataclass(frozen=True)
class World:
    """The processes that train together; alone, `size` is 1 and nothing is communicated."""
    rank: int
    size: int
    device: torch.device
    bf16: bool = False           # arithmetic; what is trained is stored in fp32 all the same
    parallel: str = "ddp"

    @property
    def sharded(self):
        """Whether each rank holds only its share of every weight."""
        return self.size > 1 and self.parallel == "fsdp"

    def sum(self, x):
        """The sum of a tensor over all ranks, on every rank. Same shape."""
        if self.size > 1:
            x = x.clone()
            dist.all_reduce(x)
        return x

    def max(self, n):
        """The largest of an int over all ranks."""
        if self.size > 1:
            n = torch.tensor(n, device=self.device)
            dist.all_reduce(n, dist.ReduceOp.MAX)
        return int(n)

    def share(self, rows):
        """This rank's rows of a global batch: every size-th, so that lengths stay even."""
        return rows[self.rank::self.size]

    def gather(self, x):
        """The rows of all ranks, in global order: the inverse of `share`. (b, ...) -> (B, ...)"""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)      # row i of rank r is global row i * size + r

    def merge(self, found):
        """The union of all ranks' dicts, on every rank."""
        if self.size == 1:
            return found
        parts = [None] * self.size
        dist.all_gather_object(parts, found)
        return {key: value for part in parts for key, value in part.items()}

    def wait(self):
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()


ALONE = World(0, 1, torch.device("cpu"))
PATIENCE = datetime.timedelta(minutes=20)    # with a silent rank; writing 100 GB takes a few


@contextlib.contextmanager
def last_words(cfg, rank):
    """A run that diverges says so in its log, where `evaluate.py doctor` finds it later."""
    try:
        yield
    except Diverged as end:
        if rank == 0:
            with open(pathlib.Path(cfg.out) / "log.jsonl", "a") as f:
                f.write(json.dumps({"step": end.step, "event": "stopped", "why": str(end)}) + "\n")
        raise


@contextlib.contextmanager
def join_world(cfg):
    """The World of this process: alone, or one of torchrun's (gloo on CPU, nccl on CUDA).

    cfg: a Machine. Raises: Problem for a device that is not here, when the ranks cannot meet, and
    when another is gone.
    """
    device, size = cfg.device, int(os.environ.get("WORLD_SIZE", 1))
    if device == "auto":
        device = ("cuda" if torch.cuda.is_available() else
                  "mps" if torch.backends.mps.is_available() else "cpu")
    if device == "mps" and size > 1:
        raise Problem("several processes cannot share MPS: add --device cpu")
    if device not in ("cpu", "cuda", "mps"):
        raise Problem(f"--device {device} is unknown: auto, cpu, cuda or mps")
    if device != "cpu" and not getattr(torch, device).is_available():
        raise Problem(f"--device {device} is not available here: use --device auto")
    bf16 = cfg.precision == "bf16" or (cfg.precision == "auto" and device == "cuda")
    torch.set_float32_matmul_precision("high")          # TF32, where fp32 is left on CUDA
    if size == 1:
        with last_words(cfg, 0):
            yield World(0, 1, torch.device(device), bf16)
        return
    backend, own = "gloo", None
    if device == "cuda":
        backend, own = "nccl", torch.device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(own)
    try:
        dist.init_process_group(backend, timeout=PATIENCE, device_id=own)
    except (RuntimeError, ValueError) as error:
        raise Problem(f"port {os.environ.get('MASTER_PORT')}: the processes cannot meet there "
                      f"({first_line(error)}): name a free one (torchrun --master_port, or "
                      "MASTER_PORT), unless another process says why") from None
    try:
        rank = dist.get_rank()
        with (contextlib.redirect_stdout(sys.stdout if rank == 0 else None),     # one voice
              last_words(cfg, rank)):
            yield World(rank, size, own or torch.device(device), bf16, cfg.parallel)
        dist.destroy_process_group()
    except RuntimeError as error:
        # One rank's end breaks the others' conversation with it: its message matters, not theirs.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise Problem("another process is gone; its message, above or in its log, says why "
                      f"({first_line(error)})") from None


# A network's life here: `skeleton` on the meta device -> `allocate` -> `fill` -> `parallelize`.

def allocate(network, world, frozen=False):
    """Memory for a network built on the meta device: whole or, sharded, this rank's part (FSDP2).

    What is trained is stored in fp32, what is frozen in bf16 where that is the arithmetic.
    """
    if frozen:
        network.requires_grad_(False)
        if world.bf16:
            network.bfloat16()
    if world.sharded:
        mesh = init_device_mesh(world.device.type, (world.size,))
        policy = MixedPrecisionPolicy(*(torch.bfloat16, torch.float32) if world.bf16 else ())
        for part in (*network.blocks, network):
            fully_shard(part, mesh=mesh, mp_policy=policy)
    return network.to_empty(device=world.device)


@torch.no_grad()
def fill(weight, values):
    """Set a weight; a sharded one takes this rank's part of the values, without communication."""
    if isinstance(weight, DTensor):
        values = distribute_tensor(values.to(weight.device, weight.dtype), weight.device_mesh,
                                   weight.placements, src_data_rank=None)
    weight.copy_(values)


def parallelize(network, world, cfg):
    """Checkpointing, compile and, where it is needed, DDP's wrapper (`allocate` put FSDP on).

    Take gradients only through what this returns; to read and to sample, the network will do.
    """
    for block in network.blocks:
        block.checkpointing = cfg.checkpointing
    if cfg.compile:                       # FSDP gathers weights between the blocks: compile those
        for part in network.blocks if world.sharded else [network]:
            part.compile(dynamic=True)
    trained = any(p.requires_grad for p in network.parameters())
    if world.size == 1 or world.sharded or not trained:
        return network
    return DistributedDataParallel(network, gradient_as_bucket_view=True, device_ids=[world.device]
                                   if world.device.type == "cuda" else None)


def bare(module):
    """The network inside `parallelize`'s wrapper: to read weights and to sample, not to train."""
    return module.module if isinstance(module, DistributedDataParallel) else module


@contextlib.contextmanager
def gathered(network):
    """Within, a sharded network holds its weights whole: a forward needs no other rank, and each
    rank may do as many as it likes, as in generating. Of a network that is not sharded: nothing."""
    parts = [m for m in network.modules() if isinstance(m, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield network
    finally:
        for part in parts:                # kept any longer, they would miss the next optimizer step
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def whole(network, world):
    """Name -> weight, whole and on the CPU, of rank 0; an empty dict on the others.

    Sharded weights are gathered one by one, so no rank but the first ever holds them all.
    """
    found = {}
    for name, weight in network.state_dict().items():
        weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if world.rank == 0:
            found[name] = weight.detach().cpu()
    return found


def mixed(world):
    """bf16 arithmetic where that is the fast type; fp32 elsewhere."""
    return (torch.autocast(world.device.type, torch.bfloat16) if world.bf16 else
            contextlib.nullcontext())


# ------------------------------------------------------------------------------------- descending

def accumulate(modules, rows, micro_batch):
    """Cut a rank's rows into micro-batches; under DDP gradients travel on the last one only.

    (Sharded, they travel on each: kept, they would be whole networks' gradients on every rank.)
    """
    for start in range(0, len(rows), micro_batch):
        for module in modules:
            if isinstance(module, DistributedDataParallel):
                module.require_backward_grad_sync = start + micro_batch >= len(rows)
        yield rows[start:start + micro_batch]


def adam(modules, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """One AdamW for all modules; only matrices decay, never biases, gains or embeddings' rows."""
    matrices = [p for m in modules for n, p in m.named_parameters() if p.ndim > 1 and "wte" not in n
                and "wpe" not in n]
    others = [p for m in modules for p in m.parameters() if not any(p is q for q in matrices)]
    groups = [dict(params=matrices, weight_decay=weight_decay),
              dict(params=others, weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, beta2), eps=eps, fused=True)


def optimizer_step(modules, optimizer, lr, clip, step):
    """Clip each module's gradient to norm `clip` (0: never), then step and clear.

    A weight that two modules share counts in the first alone. Returns: the list of norms before
    clipping. Raises: Problem when one is not finite; the weights are then still those of the
    optimizer step before.
    """
    norms, clipped = [], set()
    for module in modules:
        own = [p for p in module.parameters() if p not in clipped]
        norms.append(nn.utils.clip_grad_norm_(own, clip or math.inf))
        clipped.update(own)
    norms = [(n.full_tensor() if isinstance(n, DTensor) else n).item() for n in norms]
    if not all(map(math.isfinite, norms)):
        raise Diverged(step, f"the gradient is {norms}; nothing of it was kept. Start again in "
                             "another --out with a lower --lr (--resume would repeat this)")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norms


def cosine(step, steps, peak, warmup=0):
    """Learning rate: linear from 0 over `warmup` steps, then half a cosine down to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def linear(step, steps, peak):
    """Learning rate: linear from peak at step 0 to 0 at the end."""
    return peak * (1 - step / steps)


# ----------------------------------------------------------------------------------- files of a run

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


HELD = {}          # folders that this process trains in: {(inode, device): open handle}


def hold(folder):
    """Claim a folder until this process ends, however it ends: the lock is the kernel's.

    Else two might write the same files: torchrun is killed, its workers live on, --resume is typed.
    Raises: Problem when another process has it.
    """
    if os.name != "posix":
        return
    import fcntl  # Windows has none
    handle = os.open(folder, os.O_RDONLY)
    try:
        if os.fstat(handle)[1:3] not in HELD:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise Problem(f"{folder}: another process still trains there: wait for it, or end it, "
                      "then give the same command again") from None
    except OSError as error:
        print(f"warning: {folder} cannot be locked ({error.strerror}): see to it that nothing else "
              "trains there", file=sys.stderr)
    HELD.setdefault(os.fstat(handle)[1:3], handle)


# Flags that change how fast a run goes or where it lives, but not what it computes.
FREE = {"out", "resume", "device", "parallel", "compile", "checkpointing",
        "save_every", "micro_batch", "rollout_batch"}


class Run:
    """A training run's folder, its progress bar, and what Ctrl-C does.

        run = Run(cfg, world, {"model": model}, optimizer, model=asdict(model.config))
        for step in run.steps(cfg.steps):
            ...
            run.log(step, loss=loss)
            run.save_if_due(step)
        run.finish(model=model)
    """

    def __init__(self, cfg, world, modules, optimizer, **described):
        """Claims the folder. Raises: Problem when it holds a run and --resume was not given,
        or when a resumed run's flags differ from those it was started with."""
        if not cfg.out:
            raise Problem("--out is missing: say in which folder this run shall live")
        self.cfg, self.world, self.optimizer = cfg, world, optimizer
        self.modules, self.described = modules, described
        self.agent = nn.ModuleDict(modules)           # one state for all networks and their Adam
        self.out = pathlib.Path(cfg.out)
        self.first, self.seconds, self.signal = 0, 0.0, 0
        self.lines, self.warned = [], set()
        started = bool(world.max(int((self.out / "config.json").exists())))
        if started and not cfg.resume:
            raise Problem(f"{self.out} already holds a run: add --resume to go on, or choose "
                          "another --out")
        if world.rank == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            hold(self.out)
        if started:
            before = config_of(self.out)["flags"]
            for name, now in dataclasses.asdict(cfg).items():
                if name not in FREE and before.get(name, now) != now:
                    raise Problem(f"{self.out} was started with --{name.replace('_', '-')} "
                                  f"{before[name]}, not {now}: type that, or choose another --out")
            if not self.finished:
                self._load()
            elif world.rank == 0:
                print(f"{self.out} is finished: nothing is left to do")
                shutil.rmtree(self.out / "state", ignore_errors=True)    # killed before tidying up
        elif world.rank == 0:
            write_config(self.out / "config.json", cfg, **self.described)

    @property
    def finished(self):
        """Whether an earlier call already wrote the final weights."""
        return (self.out / "model.pt").exists()

    def _state(self):
        weights, moments = get_state_dict(self.agent, self.optimizer)
        return {"weights": weights, "adam": moments}

    def _check_finite(self, step):
        """Raises: Diverged, on every rank, when a weight of a network is no finite number."""
        for name, network in self.modules.items():
            parts = (p.to_local() if isinstance(p, DTensor) else p for p in network.parameters())
            if self.world.max(int(not all(bool(p.isfinite().all()) for p in parts))):
                raise Diverged(step, f"the weights of the {name} are not finite, and were not "
                                     "saved. Start again in another --out with a lower --lr "
                                     "(--resume would repeat this)")

    def _save_state(self, final):
        """Write weights and Adam's moments as a folder that appears complete; the last two stay.

        done.json is its last file, and says how long the others are.
        """
        # Its name says the step: a rank that outlives a killed run can only write there what this
        # one writes, for the steps are the same.
        temporary = final.with_name(f"writing-{final.name[5:]}")
        if self.world.rank == 0:
            for left in final.parent.glob("writing*"):           # by somebody who was killed
                shutil.rmtree(left, ignore_errors=True)
            log = self.out / "log.jsonl"
            if log.exists():                     # its lines are older than the state: so on disk
                with open(log, "rb") as f:
                    os.fsync(f.fileno())
        self.world.wait()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dcp.save(self._state(), checkpoint_id=temporary, no_dist=self.world.size == 1)
            if self.world.rank == 0:
                sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
                write_atomically(temporary / "done.json", json.dumps(sizes))
        except (OSError, RuntimeError, CheckpointException, Problem) as error:
            shutil.rmtree(temporary, ignore_errors=True)         # its half would keep the disk full
            raise Problem(f"{final} cannot be written ({in_brief(error)}); the state before it is "
                          "kept: make room, then --resume") from error
        if self.world.rank == 0:
            shutil.rmtree(final, ignore_errors=True)             # a damaged one of that name
            os.replace(temporary, final)
            sync(final.parent)
            sync(self.out)
            for old in sorted(final.parent.glob("step-*"))[:-2]:
                shutil.rmtree(old)
        self.world.wait()                              # nobody leaves before the state is in place

    def _load_state(self, folder):
        """Fill weights and Adam's moments, whatever number of processes wrote them."""
        state = self._state()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(state, checkpoint_id=folder, no_dist=self.world.size == 1)
        set_state_dict(self.agent, self.optimizer, model_state_dict=state["weights"],
                       optim_state_dict=state["adam"])

    def _fault(self, act, folder):
        """What is wrong with a state, as act(folder) finds on this or another rank; "": nothing."""
        fault = ""
        try:
            act(folder)
        except (Exception, CheckpointException) as error:   # one of many kinds, for a damaged state
            fault = in_brief(error)
        found = self.world.max(int(bool(fault)))
        return (fault or "as another process finds") if found else ""

    def _load(self):
        """Go back to the newest sound state, or the one before, and forget later lines."""
        saved = sorted(path for path in self.out.glob("state/step-*") if path.name[5:].isdigit())
        while saved and not self.first:
            newest = saved.pop()
            fault = self._fault(check_sizes, newest) or self._fault(self._load_state, newest)
            if not fault:
                self.first = int(newest.name[5:])
            elif not saved:
                raise Problem(f"{newest} is damaged ({fault}), and there is no older one: start "
                              "again in another --out")
            elif self.world.rank == 0:
                print(f"warning: {newest} is damaged ({fault}); going on from the state before it",
                      file=sys.stderr)
        self._cut_log()

    def _cut_log(self):
        """Leave in the log each step before the first still to do."""
        log = self.out / "log.jsonl"
        if not log.exists() or self.world.rank > 0:
            return
        try:                                     # (the last line may have been cut short)
            lines = [log_line(text) for text in log.read_text().splitlines() if text.endswith("}")]
        except (ValueError, RecursionError) as error:
            raise Problem(f"{log} is damaged ({error!s:.100}): repair or move it") from None
        self.lines = [line for line in lines if line["step"] < self.first and "event" not in line]
        self.seconds = float(self.lines[-1]["seconds"]) if self.lines else 0.0
        write_atomically(log, "".join(json.dumps(line) + "\n" for line in self.lines))

    def steps(self, total):
        """Yields the step numbers still to do, under a progress bar; Ctrl-C is noted, not obeyed
        yet: `save_if_due` obeys it, when the step is whole."""
        def note(number, frame):
            if self.signal and self.world.size == 1:   # a second Ctrl-C means now; but torchrun
                raise KeyboardInterrupt                # passes on what the terminal sent us already
            self.signal = self.signal or number
            if self.world.size == 1:
                self.bar.write("stopping when this step is done (again: at once)", file=sys.stderr)
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        self.total, self.began = total, time.perf_counter() - self.seconds
        self.bar = tqdm(total=total, initial=self.first, desc=self.out.name, unit="step",
                        disable=self.world.rank > 0, mininterval=0.5 if sys.stderr.isatty() else 15)
        try:
            for step in range(self.first, total):
                yield step
                self.bar.update()
        finally:
            self.bar.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def log(self, step, **values):
        """One JSON line in log.jsonl, and the first few values beside the progress bar."""
        self.seconds = time.perf_counter() - self.began
        if self.world.rank == 0:
            values = {k: v if math.isfinite(v) else None for k, v in values.items()}
            line = {"step": step, **values, "seconds": round(self.seconds, 3)}
            with open(self.out / "log.jsonl", "a") as f:
                f.write(json.dumps(line) + "\n")
            self.lines.append(line)
            self._warn()
            shown = {k: f"{v:.3g}" for k, v in list(values.items())[:6] if v is not None}
            self.bar.set_postfix(shown, refresh=False)

    def _warn(self):
        """Say once each, beside the progress bar, what ails the run by its log so far."""
        import doctor
        if len(self.lines) % (1 + len(self.lines) // 100):      # long logs: not after every line
            return
        flags = dataclasses.asdict(self.cfg)
        for finding in doctor.examine(doctor.stage_of(flags), self.lines, flags):
            if finding.check.name not in self.warned:
                self.warned.add(finding.check.name)
                self.bar.write(f"warning: {finding}; `python evaluate.py doctor {self.out}` "
                               "says more", file=sys.stderr)

    def save_if_due(self, step):
        """Save weights, Adam and the step every `save_every` steps, and when asked to stop."""
        stop = self.world.sum(torch.tensor(float(self.signal), device=self.world.device)).item()
        if not stop and (step + 1) % self.cfg.save_every:
            return
        self._check_finite(step)
        self._save_state(self.out / "state" / f"step-{step + 1:08d}")
        if stop:
            self.bar.close()
            if self.world.rank == 0:
                print(f"stopped after step {step + 1} of {self.total}; the same command with "
                      "--resume goes on from there", file=sys.stderr)
            raise SystemExit(128 + (self.signal or signal.SIGINT))

    def save(self, name, network):
        """Write a network's weights, gathered from all ranks, to `name`.pt in the run's folder."""
        weights = whole(network, self.world)
        if self.world.rank == 0:
            save_tensors(self.out / f"{name}.pt", weights)

    def finish(self, **weights):
        """Write the final weights (name -> module; model.pt last: it marks the run as finished).

        Raises: Diverged when they are not finite."""
        self._check_finite(self.total - 1)
        if self.world.rank == 0:
            write_config(self.out / "config.json", self.cfg, **self.described,
                         seconds=round(self.seconds, 1))
        for name, network in sorted(weights.items(), key=lambda item: item[0] == "model"):
            self.save(name, network)
        if self.world.rank == 0:
            shutil.rmtree(self.out / "state", ignore_errors=True)
        self.world.wait()
