"""A device that is not there: finds, without a GPU, what would fail or wait on one.

    with Pretend() as pretend:
        network = build(config, world=World(0, 1, pretend.device))
        ...
    pretend.counts()              {"ppo.py:252 boolean index": 96, ...}

The pretend device is `cpu:7`. All numbers stay real and in the CPU's memory: training learns, and
code may look at what it computed. But each tensor's memory is known to be either the device's or
the CPU's, from how it was made: `device=`, `.to`, or of what it was computed. Raises Misplaced, with
the line of our code, where CUDA would raise:

    a tensor of the CPU and one of the device in one operation (a CPU tensor without dimensions may
        stand in arithmetic, and a CPU tensor of indices may stand in x[...]: CUDA allows both)
    .numpy() or np.asarray of a tensor on the device
    a random generator of the other device
    products of integers, and layer norms of two types, which only CPUs have

and notes where the CPU would wait until the device has done all its work (`waits`): where it reads
a number, where a shape depends on numbers, and where it copies in either direction without
non_blocking=True. Under autocast, what CUDA computes in fp32 is computed in fp32 here, too.

Two modes of torch see everything: a function mode sees what Python calls, a dispatch mode what is
computed then, backward passes included. Whose memory it is, is known by storage, for all views share
one. tests/mixups.py lists what is refused and what waits, and compares it with a real card.

Not seen: several devices, streams, kernels that have too little memory or no bf16; tensors that
torch.load puts on the device by itself (map_location).
"""
import contextlib
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ROOT = Path(__file__).resolve().parent.parent
DEVICE, CPU = torch.device("cpu", 7), torch.device("cpu")
aten = torch.ops.aten

MOVES = {aten.copy_, aten._to_copy}                              # from one device to another
SCALARS = {aten.masked_fill, aten.masked_fill_, aten.where, aten.fill_, aten.fill,
           aten.index_put, aten.index_put_, aten._index_put_impl_}   # and all pointwise operations
INDEXED = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._unsafe_index_put,
           aten._index_put_impl_}
PUTS = INDEXED - {aten.index, aten._unsafe_index}
COUNTED = {aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.unique_dim,
           aten.unique_consecutive, aten.bincount}               # their shape, or answer, is data
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.dot}
READS = {"item": ".item()", "__bool__": "bool()", "__int__": "int()", "__float__": "float()",
         "__index__": "int()", "is_nonzero": "bool()"}
# What autocast computes in fp32 on CUDA (torch's list, as far as a language model could use it).
FULL = {"exp", "expm1", "log", "log2", "log10", "log1p", "pow", "reciprocal", "rsqrt", "softplus",
        "layer_norm", "group_norm", "kl_div", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
        "nll_loss", "binary_cross_entropy_with_logits", "logsumexp", "cdist", "dist", "norm",
        "prod", "softmax", "log_softmax", "cumprod", "cumsum", "sum", "cross_entropy"}


class Misplaced(AssertionError):
    """What CUDA would refuse."""


class Wait(NamedTuple):
    line: str           # "ppo.py:312"
    why: str            # ".item()", "boolean index", ...

    def __str__(self):
        return f"{self.line} {self.why}"


class Call(NamedTuple):
    """The Python call under which an operation runs."""
    name: str = ""
    on_device: bool = False             # whether one of its tensors is the device's
    device: torch.device | None = None  # what it names


def our_line():
    """file:line of the innermost frame that is in this repository, and not in this file."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path != __file__ and path.startswith(str(ROOT)) and "site-packages" not in path:
            return f"{Path(path).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"


def tensors_in(values):
    """All tensors in tuples, lists and dicts of others."""
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (tuple, list)):
        return []
    return [x for value in values for x in tensors_in(value)]


class Functions(TorchFunctionMode):
    """What Python calls."""

    def __init__(self, pretend):
        self.pretend = pretend
        super().__init__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():
            return self.pretend.call(func, args, kwargs or {})


class Operations(TorchDispatchMode):
    """What is computed."""

    def __init__(self, pretend):
        self.pretend = pretend
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():
            return self.pretend.compute(func, args, kwargs or {})


class Pretend(contextlib.ExitStack):
    """The context in which cpu:7 is a device of its own."""
    device = DEVICE

    def __init__(self):
        super().__init__()
        self.owner = {}         # storage: ("device" or "unknown", reference); else it is the CPU's
        self.masks = {}         # storage of a boolean index: lines that wait again, backward
        self.calls = [Call()]
        self.waits = []
        self.faults = []

    def __enter__(self):
        super().__enter__()
        self.functions = Functions(self)
        # C++ groups tensors by the device that they are really on.
        for module in ("torch.nn.utils.clip_grad", "torch.utils._foreach_utils"):
            self.enter_context(mock.patch(f"{module}._group_tensors_by_device_and_dtype",
                                          self.grouped))
        self.enter_context(mock.patch("torch.Generator", Generator))
        self.enter_context(Operations(self))
        self.enter_context(self.functions)
        return self

    def __exit__(self, kind, *error):
        super().__exit__(kind, *error)
        if kind is None and self.faults:
            raise Misplaced(self.faults[0])

    def grouped(self, tensors, with_indices=False):
        """What torch's function returns, with the devices that our tensors are told to be on."""
        found = GROUPED(tensors, with_indices)
        return {(DEVICE if self.on_device(next(x for x in group[0][0] if x is not None)) else device,
                 kind): group for (device, kind), group in found.items()}

    # ---------------------------------------------------------------------------- whose a tensor is

    def owner_of(self, x):
        """"device", "cpu", or "unknown": made inside of torch, and whatever it first meets."""
        key = x.untyped_storage()._cdata
        return self.owner[key][0] if key in self.owner else "cpu"

    def on_device(self, x):
        return self.owner_of(x) == "device"

    def own(self, x, owner):
        """Note whose a tensor's memory is. Returns: the tensor."""
        storage = x.untyped_storage()
        if owner == "cpu":
            self.owner.pop(storage._cdata, None)
        else:        # the reference keeps the address from being used again, not the memory
            self.owner[storage._cdata] = owner, StorageWeakRef(storage)
        if len(self.owner) > 20_000:
            self.owner = {key: (owner, ref) for key, (owner, ref) in self.owner.items()
                          if not ref.expired()}
        return x

    def complain(self, what):
        """Raise, and remember it, for somebody may catch it."""
        self.faults.append(f"{our_line()}: {what}")
        raise Misplaced(self.faults[-1])

    def wait(self, why, line=None):
        """Note that the CPU waits here."""
        self.waits.append(Wait(line or our_line(), why))

    def counts(self):
        """{"line why": how often}, the most frequent first."""
        return dict(Counter(map(str, self.waits)).most_common())

    # ------------------------------------------------------------------------------ calls of Python

    def call(self, func, args, kwargs):
        """A function of torch that Python calls: answer it, or let it run."""
        name, of = getattr(func, "__name__", ""), getattr(func, "__self__", None)
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if of is torch.Tensor.device and self.on_device(first):
            return DEVICE
        if of is torch.Tensor.is_cpu and self.on_device(first):
            return False
        if name in ("__get__", "__len__", "dim", "size", "stride"):      # .shape, .dtype, .grad, ...
            return func(*args, **kwargs)
        if func is torch.Tensor.backward:
            gradient = kwargs.pop("gradient")
            with torch._C._EnableTorchFunction(), self.functions:        # checkpoints compute again
                return self.within(Call(name, True), torch.autograd.backward, first, gradient, **kwargs)
        mine = first is not None and self.on_device(first)
        if mine and name in ("numpy", "__array__"):
            self.complain(f"{'.numpy()' if name == 'numpy' else 'numpy'} of a tensor on the device:"
                          " .cpu() first")
        if mine and name == "tolist":
            self.wait(".tolist()")
        if first is not None and (name in ("to", "cpu", "type_as") or name in ("as_tensor", "asarray")
                                  and kwargs.get("device") is not None):
            return self.moved(name, first, args[1:], kwargs)

        inputs = tensors_in((args, kwargs))
        if torch.is_autocast_enabled("cpu") and name in FULL and not kwargs.get("dtype"):
            args, kwargs = tree_map_only(
                torch.Tensor, lambda x: x.float() if x.dtype in (torch.bfloat16, torch.float16)
                else x, (args, kwargs))
        device = kwargs.get("device")
        device = torch.device(device) if device is not None else None
        known = Call(name, any(map(self.on_device, inputs)), device)
        draw = kwargs.get("generator")
        if draw is not None:
            on = DEVICE if device == DEVICE or (device is None and known.on_device) else CPU
            if getattr(draw, "claimed", CPU) != on:
                self.complain(f"{name} on {on} with a generator of the other device")
        found = self.within(known, func, *args, **kwargs)
        if name in ("tensor", "new_tensor", "as_tensor", "asarray"):     # of a list, or of an array
            if device == DEVICE or (device is None and known.on_device):
                self.wait("to the device")
                found = self.own(found.clone(), "device")       # (an array's memory stays the CPU's)
        return found

    def moved(self, name, x, args, kwargs):
        """x.to(...) and x.cpu(): a copy on another device, as CUDA makes it."""
        copy = kwargs.pop("copy", False)
        if name == "cpu":
            device, dtype, quick, layout = CPU, None, kwargs.get("non_blocking", False), None
        elif args and isinstance(args[0], torch.Tensor):
            device, dtype = DEVICE if self.on_device(args[0]) else args[0].device, args[0].dtype
            quick, layout = kwargs.get("non_blocking", False), None
        else:
            device, dtype, quick, layout = torch._C._nn._parse_to(*args, **kwargs)
        at, dtype = DEVICE if self.on_device(x) else x.device, dtype or x.dtype
        if device is None or device == at:
            return self.within(Call("to", at == DEVICE), x.to, dtype, copy=copy, memory_format=layout)
        if device.type == at.type:
            self.moves(at, device, quick)
        return self.within(Call("to", at == DEVICE, device), aten._to_copy.default, x, dtype=dtype,
                           device=device, memory_format=layout)

    def within(self, call, func, /, *args, **kwargs):
        """func(...), whose operations belong to this call."""
        self.calls.append(call)
        try:
            return func(*args, **kwargs)
        finally:
            self.calls.pop()

    def moves(self, source, target, quick):
        """A copy between CPU and device: whether the CPU waits."""
        if source != target and not quick:
            self.wait(".cpu()" if source == DEVICE else "to the device")

    # ----------------------------------------------------------------------------------- operations

    def compute(self, func, args, kwargs):
        """An operation: check its tensors, note a wait, run it, and note whose its results are."""
        packet, call = func.overloadpacket, self.calls[-1]
        inputs = tensors_in((args, kwargs))
        owners = [self.owner_of(x) for x in inputs]
        on_device = "device" in owners
        if packet is aten.copy_:
            source = DEVICE if self.on_device(args[1]) else args[1].device
            target = DEVICE if self.on_device(args[0]) else args[0].device
            if "unknown" not in owners and source.type == target.type == "cpu":
                self.moves(source, target, kwargs.get("non_blocking") or args[2:3] == (True,))
        elif packet not in MOVES and on_device:
            self.check(func, packet, args, kwargs, inputs, owners)
            self.note_waits(packet, args, kwargs, call)
        met = {owner for x, owner in zip(inputs, owners, strict=True) if x.dim() or owner != "cpu"}
        for x in inputs:
            if len(met) > 1 and self.owner_of(x) == "unknown":
                self.own(x, "device" if on_device else "cpu")
        found = func(*args, **kwargs)

        if packet is aten.lift_fresh and not on_device and call.on_device and call.name in (
                "__getitem__", "__setitem__"):
            if args[0].dim():
                self.wait("to the device")                # x[[0, 1]]
            self.own(found, "unknown")
            return found
        named, before = kwargs.get("device"), {x.untyped_storage()._cdata for x in inputs}
        for x in tensors_in(found):
            if x.untyped_storage()._cdata in before:
                continue                                  # in place, or a view
            if named == DEVICE:
                self.own(x, "device")
            elif named is not None and call.device is not None:
                self.own(x, "cpu")
            elif on_device:
                self.own(x, "device")
            elif (not inputs and call.on_device) or met == {"unknown"}:
                self.own(x, "unknown")                    # made by torch itself for its own use
        return found

    def check(self, func, packet, args, kwargs, inputs, owners):
        """Complain of what CUDA would refuse."""
        strangers = [x for x, owner in zip(inputs, owners, strict=True)
                     if owner == "cpu" and x.device.type == "cpu"]
        if packet in INDEXED and self.owner_of(args[0]) != "cpu":
            indices = [i for i in args[1] if i is not None]
            strangers = [x for x in strangers if not any(x is i for i in indices)]
        if torch.Tag.pointwise in func.tags or packet in SCALARS or "_foreach_" in func.name():
            changed = {id(x) for x, spec in zip(args, func._schema.arguments, strict=False)
                       if isinstance(x, torch.Tensor) and spec.alias_info and spec.alias_info.is_write}
            strangers = [x for x in strangers if x.dim() or id(x) in changed]
        if strangers:
            shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in strangers)
            self.complain(f"{packet.__name__} of tensors on the device and on the CPU ({shapes})")
        if packet in PRODUCTS and not inputs[0].is_floating_point():
            self.complain(f"{packet.__name__} of {inputs[0].dtype}, which CUDA does not have")
        if packet is aten.native_layer_norm and len({x.dtype for x in inputs}) > 1:
            self.complain(f"layer norm of {inputs[0].dtype} with weights of {inputs[-1].dtype}, "
                          "which CUDA does not have")

    def note_waits(self, packet, args, kwargs, call):
        """Note an operation for whose result the CPU waits."""
        if packet is aten._local_scalar_dense:
            self.wait(READS.get(call.name, f"{call.name or 'torch'} reads a number"))
        elif packet in COUNTED:
            self.wait(packet.__name__.strip("_"))
        elif packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            self.wait("repeat_interleave without output_size")
        elif packet in INDEXED:
            for index in args[1]:
                if index is None:
                    continue
                if self.owner_of(index) == "cpu":
                    self.wait("index from the CPU")
                elif index.dtype in (torch.bool, torch.uint8):
                    if packet in PUTS and args[2].numel() == 1 and len(args) < 4:
                        continue                          # masked_fill
                    lines = self.masks.setdefault(index.untyped_storage()._cdata, [])
                    if call.name == "backward":
                        self.wait("boolean index, backward", lines.pop() if lines else None)
                        continue
                    if args[0].requires_grad:
                        lines.append(our_line())
                    self.wait("boolean index")


GROUPED = _foreach_utils._group_tensors_by_device_and_dtype


class Generator(torch.Generator):
    """torch.Generator that remembers for which device it was made."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        made.claimed = torch.device(device)
        return made
