"""Processes: the same script alone, or as one of many under torchrun (DDP, FSDP2)."""
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from runtime.files import check_shapes, in_brief, read_weights, texts_from_outside
from runtime.flags import Diverged, Machine, Problem, check_moved, entry, parse


class Lines:
    """Standard error for a progress bar in a file or pipe: a line wherever it would begin anew."""

    def write(self, text):
        if text.strip():
            print(text.strip(), file=sys.stderr, flush=True)


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
        """The sum over all ranks, on every rank: of a tensor, or of a list of numbers."""
        if self.size == 1:
            return x
        if isinstance(x, list):
            return self.sum(torch.tensor(x, dtype=torch.float64, device=self.device)).tolist()
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

    def mixed(self):
        """A context of bf16 arithmetic where that is the fast type; of fp32 elsewhere."""
        return (torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else
                contextlib.nullcontext())

    def bar(self, total, name, unit="summary", leave=False, **more):
        """A progress bar of this many units, shown by the first process; leave: it stays when done.
        Without a terminal: a line every 30 seconds, and of one that stays the first and last."""
        if not sys.stderr.isatty():
            more |= dict(file=Lines(), mininterval=30, maxinterval=30, delay=0 if leave else 30)
        return tqdm(total=total, desc=name, unit=unit, leave=leave, disable=self.rank > 0, **more)

    @contextlib.contextmanager
    def gathered(self, network):
        """Within, a sharded network has its weights whole: a forward needs no other rank, and
        each rank may do as many as it likes, as in generating. Else: nothing."""
        parts = [m for m in network.modules() if isinstance(m, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield network
        finally:
            for part in parts:            # kept any longer, they would miss the next optimizer step
                part.set_reshard_after_forward(True, recurse=False)
                part.reshard()

    def allocate(self, network, frozen=False):
        """Memory for a network built on the meta device: whole or, sharded (FSDP2), this rank's
        part. Trained weights are stored in fp32, frozen ones in bf16 where that is the type."""
        if frozen:
            network.requires_grad_(False)
            if self.bf16:
                network.bfloat16()
        if self.sharded:
            mesh = init_device_mesh(self.device.type, (self.size,))
            policy = MixedPrecisionPolicy(*(torch.bfloat16, torch.float32) if self.bf16 else ())
            for part in (*network.blocks, network):
                fully_shard(part, mesh=mesh, mp_policy=policy)
        return network.to_empty(device=self.device)

    @torch.no_grad()
    def set(self, weight, values):
        """Set a weight; a sharded one takes this rank's part, without communication."""
        if isinstance(weight, DTensor):
            values = distribute_tensor(values.to(weight.device, weight.dtype), weight.device_mesh,
                                       weight.placements, src_data_rank=None)
        weight.copy_(values)

    def load(self, network, path, fresh=(), weights=None):
        """Fill a network from a file of plain tensors, or from `weights`, which came from there;
        not what begins with one of the names `fresh`. Raises: Problem when tensors do not fit, or
        are not finite."""
        weights, start = read_weights(path) if weights is None else weights, tuple(fresh)
        own = {name: p for name, p in network.state_dict().items() if not name.startswith(start)}
        weights = {name: w for name, w in weights.items() if not name.startswith(start)}
        check_shapes(path, weights, {name: tuple(own[name].shape) if name in own else None
                                     for name in sorted(own.keys() | weights.keys())})
        for name, p in own.items():
            if not weights[name].isfinite().all():
                raise Problem(f"{path}: weight {name} is not finite: that stage has diverged; "
                              "train it again with a lower --lr")
            self.set(p, weights[name])       # from disk, one weight at a time

    def parallelize(self, network, cfg):
        """A network to train in this world: checkpointing, compile and, where every process has
        all of it, DDP, which averages their gradients (`allocate` put FSDP on)."""
        if cfg.checkpointing:
            compute_again(network)
        if cfg.compile:                   # FSDP gathers weights between the blocks: compile those
            for part in network.blocks if self.sharded else [network]:
                part.compile(dynamic=True)
        trained = any(p.requires_grad for p in network.parameters())
        if self.size == 1 or self.sharded or not trained:
            return network
        return Averaged(network, gradient_as_bucket_view=True, device_ids=[self.device]
                        if self.device.type == "cuda" else None)


def compute_again(network):
    """Let each layer of a network remember its input alone, and compute the rest again in the
    backward pass: a third more compute, a tenth of the memory."""
    for block in network.blocks:
        def forward(*inputs, plain=block.forward):
            if torch.is_grad_enabled():
                return checkpoint(plain, *inputs, use_reentrant=False)
            return plain(*inputs)
        block.forward = forward


class Averaged(DistributedDataParallel):
    """DDP around a network, which can also be read as that network: .config, .wte, ..."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


ALONE = World(0, 1, torch.device("cpu"))
PATIENCE = datetime.timedelta(minutes=20)    # with a silent rank; writing 100 GB takes a few


@contextlib.contextmanager
def join_world(cfg):
    """The World of this process: alone, or one of torchrun's (gloo on CPU, nccl on CUDA).

    cfg: a Machine. Raises: Problem for a device that is not here, when the processes cannot meet,
    and when another is gone."""
    device, size = cfg.device, int(os.environ.get("WORLD_SIZE", 1))
    if device == "auto":
        device = ("cuda" if torch.cuda.is_available() else
                  "mps" if torch.backends.mps.is_available() else "cpu")
    if device == "mps" and size > 1:
        raise Problem("several processes cannot share MPS: add --device cpu")
    if device != "cpu" and not getattr(torch, device).is_available():
        raise Problem(f"--device {device} is not available here: use --device auto")
    bf16 = cfg.precision == "bf16" or (cfg.precision == "auto" and device == "cuda")
    torch.set_float32_matmul_precision("high")          # TF32, where fp32 is left on CUDA
    if size == 1:
        yield World(0, 1, torch.device(device), bf16)
        return
    own = None
    if device == "cuda":
        own = torch.device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(own)
    try:
        dist.init_process_group("nccl" if own else "gloo", timeout=PATIENCE, device_id=own)
    except (RuntimeError, ValueError) as error:
        raise Problem(f"port {os.environ.get('MASTER_PORT')}: the processes cannot meet there "
                      f"({in_brief(error)}): name a free one (torchrun --master_port, or "
                      "MASTER_PORT), unless another process says why") from None
    try:
        rank = dist.get_rank()
        with contextlib.redirect_stdout(sys.stdout if rank == 0 else None):     # one voice
            yield World(rank, size, own or torch.device(device), bf16, cfg.parallel)
        dist.destroy_process_group()
    except RuntimeError as error:
        # One rank's end breaks the others' conversation with it: its message matters, not theirs.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise Problem("another process is gone; its message, above or in its log, says why "
                      f"({in_brief(error)})") from None


def launch(act, config_class, argv, doc, presets=None, by=None, command=None, moved=None):
    """Do a script's work, act(cfg, world), with the flags in argv.

    argv: a list of words when called from Python, where what goes wrong is raised. None: those of
    the command line; what the user can repair then becomes one line and exit code 2 (`entry`).
    A config_class that is no Machine needs no processes: act(cfg) is called; without any, the
    script only shows its doc. command: a first word that may be left out. moved: see check_moved.
    """
    def work():
        words = sys.argv[1:] if argv is None else list(argv)        # `entry` took out --debug
        check_moved(words, moved or {})
        if config_class is None:
            print(doc)
            return
        rest = words[1:] if command and words[:1] == [command] else words
        cfg = texts_from_outside(parse(config_class, presets or {}, rest, doc, by))
        if not issubclass(config_class, Machine):
            act(cfg)
            return
        with join_world(cfg) as world:
            try:
                act(cfg, world)
            except Diverged as end:                # its log says so, where the doctor finds it
                if world.rank == 0:
                    line = {"step": end.step, "event": "stopped", "why": str(end)}
                    with open(pathlib.Path(cfg.out) / "log.jsonl", "a", encoding="utf-8") as f:
                        f.write(json.dumps(line) + "\n")
                raise
    if argv is None:
        entry(work)
    else:
        work()


def lock(folder):
    """Lock a folder until this process ends, however it ends: the lock is the kernel's. Returns: a
    handle. Raises: BlockingIOError or PermissionError when another process has the lock."""
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
        flock(handle := os.open(folder, os.O_RDONLY), LOCK_EX | LOCK_NB)
    except ImportError:                                  # Windows: it opens no folder, but a file
        from msvcrt import LK_NBLCK, locking
        handle = os.open(pathlib.Path(folder, "lock"), os.O_RDWR | os.O_CREAT)
        locking(handle, LK_NBLCK, 1)
    return handle


def bare(module):
    """The network inside `parallelize`'s wrapper, whose weights have the names of all files."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def whole(network, world):
    """Name -> weight, whole and on the CPU, on rank 0; {} on the others. Sharded weights are
    gathered one by one, so that no other rank ever has them all."""
    found = {}
    for name, weight in bare(network).state_dict().items():
        weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if world.rank == 0:
            found[name] = weight.detach().cpu()
    return found
