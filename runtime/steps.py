"""Steps of training: randomness without a state, micro-batches, AdamW."""
import math
import zlib

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from runtime.flags import Diverged


def generator(seed, purpose, step=0, row=0):
    """A numpy Generator that depends on nothing but its arguments (Philox, counter-based)."""
    key = np.array([seed % 2 ** 64, zlib.crc32(purpose.encode())], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, row]))


def accumulate(rows, micro_batch, *networks):
    """Cut a rank's rows into micro-batches, whose gradients add up in the networks.

    Under DDP the ranks average them after the last one only. (Under FSDP after each: else every
    rank would have to store whole networks' gradients.)"""
    for start in range(0, len(rows), micro_batch):
        for module in networks:
            if isinstance(module, DistributedDataParallel):
                module.require_backward_grad_sync = start + micro_batch >= len(rows)
        yield rows[start:start + micro_batch]


def adam(modules, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """One AdamW for all modules; only matrices decay, never biases, gains or embeddings."""
    named = dict(nn.ModuleList(modules).named_parameters())
    matrices = [p for n, p in named.items() if p.ndim > 1 and "wte" not in n and "wpe" not in n]
    others = [p for p in named.values() if not any(p is q for q in matrices)]
    groups = [dict(params=matrices, weight_decay=weight_decay), dict(params=others, weight_decay=0)]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, beta2), eps=eps, fused=True)


def optimizer_step(networks, optimizer, lr, step, clip=1.0):
    """Clip each network's gradient to norm `clip` (0: never), then step and clear.

    networks: {name of the norm in the log: network}; a weight of two counts in the first. Returns:
    {name: norm before clipping}. Raises: Problem when one is not finite, before any weight changes.
    """
    norms, clipped = [], set()
    for network in networks.values():
        own = [p for p in network.parameters() if p not in clipped]
        norm = nn.utils.clip_grad_norm_(own, clip or math.inf)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        clipped.update(own)
    norms = dict(zip(networks, torch.stack(norms).tolist(), strict=True))
    if not all(map(math.isfinite, norms.values())):
        raise Diverged(step, f"the gradient is {list(norms.values())}; nothing of it was kept")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norms
