"""What a device refuses, and what makes the CPU wait for it: the pretend device against a real card.

    python tests/mixups.py              on a machine with CUDA: does the list below tell the truth?

tests/test_pretend.py checks the same list on the pretend device. So where both agree with the list,
the pretend device behaves as the card does.
"""
import sys
import warnings

import numpy as np
import torch
import torch.nn.functional as F

REFUSED, WAITS, FREE = "is refused", "waits", "is free"


def numbers(device, *shape):
    return torch.ones(shape or (2, 3), device=device)


def some(device):
    """Row 1 is chosen. (2,) bool"""
    return torch.arange(2, device=device) > 0


NAMES = {"np": np, "torch": torch, "F": F, "numbers": numbers, "some": some}
CASES = [(what, line.strip(), eval(f"lambda d: {line}", NAMES)) for what, lines in {   # d: the device
    REFUSED: """
        numbers(d) + numbers("cpu")
        numbers(d).add_(numbers("cpu"))
        numbers("cpu", 1).sum().add_(numbers(d, 1).sum())
        numbers(d) * torch.ones(1)
        numbers(d) @ numbers("cpu", 3, 2)
        torch.cat([numbers(d), numbers("cpu")])
        torch.stack([numbers(d, 1).sum(), torch.tensor(1.0)])
        torch.where(some("cpu")[:, None], numbers(d), 0.0)
        numbers(d).masked_fill(some("cpu")[:, None], 0.0)
        numbers(d).gather(1, torch.zeros(2, 1, dtype=torch.long))
        numbers(d).index_select(0, torch.arange(2))
        numbers(d).scatter_add(1, torch.zeros(2, 1, dtype=torch.long), numbers(d, 2, 1))
        numbers("cpu")[some(d)]
        numbers("cpu")[torch.arange(2, device=d)]
        numbers(d).index_put_((torch.arange(2, device=d),), numbers("cpu"))
        F.embedding(torch.arange(2), numbers(d))
        F.layer_norm(numbers(d), (3,), numbers("cpu", 3))
        F.cross_entropy(numbers(d), torch.arange(2))
        F.scaled_dot_product_attention(*[numbers(d, 1, 2, 2, 4)] * 3, attn_mask=some("cpu")[:, None])
        numbers(d).numpy()
        np.asarray(numbers(d))
        numbers(d).normal_(generator=torch.Generator())
        torch.randn(3, generator=torch.Generator(), device=d)
        torch.randn(3, generator=torch.Generator(d))
        torch.ones(2, 2, dtype=torch.long, device=d) @ torch.ones(2, 2, dtype=torch.long, device=d)
        F.layer_norm(numbers(d).bfloat16(), (3,), numbers(d, 3), numbers(d, 3))
        """,
    WAITS: """
        numbers(d, 1).item()
        int(numbers(d, 1))
        float(numbers(d, 1).sum())
        bool(some(d).all())
        1 if some(d).any() else 0
        numbers(d).tolist()
        numbers(d).cpu()
        numbers(d).to("cpu")
        numbers("cpu").copy_(numbers(d))
        numbers(d)[some(d)]
        some(d).nonzero()
        numbers(d).masked_select(some(d)[:, None])
        torch.equal(numbers(d), numbers(d))
        numbers(d).repeat_interleave(torch.arange(2, device=d), 0)
        numbers(d)[torch.ones((), dtype=torch.long, device=d)]
        numbers("cpu").to(d)
        torch.tensor([1.0, 2.0], device=d)
        torch.as_tensor(np.ones(3)).to(d)
        torch.as_tensor([1.0], device=d)
        numbers(d)[torch.arange(2)]
        numbers(d)[[0, 1]]
        numbers(d).copy_(numbers("cpu"))
        numbers(d).__setitem__((0, 0), torch.tensor(3.0))
        """,
    FREE: """
        numbers(d) + torch.tensor(1.0)
        numbers(d) * 2 + 1
        torch.arange(3, device=d) + torch.zeros((), device=d)
        torch.full((2, 3), 7, device=d).masked_fill(some(d)[:, None], 0)
        torch.where(some(d)[:, None], numbers(d), 0.0)
        numbers(d).masked_scatter(some(d)[:, None], numbers(d))
        numbers(d)[torch.arange(2, device=d)]
        numbers(d)[torch.arange(2, device=d), 1]
        numbers(d)[:, 1:].sum(1, keepdim=True)
        numbers(d).__setitem__(some(d), 0.0)
        numbers(d).__setitem__(0, 3.0)
        numbers(d).__setitem__(0, torch.tensor(3.0))
        numbers(d).__setitem__((torch.arange(2, device=d), 1), numbers(d, 2))
        numbers(d).scatter_(1, torch.zeros(2, 1, dtype=torch.long, device=d), numbers(d, 2, 1))
        numbers(d).gather(1, torch.zeros(2, 1, dtype=torch.long, device=d))
        numbers(d).repeat_interleave(torch.arange(2, device=d), 0, output_size=1)
        numbers(d).new_zeros(3) + torch.zeros_like(numbers(d, 3))
        numbers("cpu").to(d, non_blocking=True)
        numbers(d).to(torch.bfloat16)
        numbers(d).clone().requires_grad_().sum().backward()
        F.embedding(torch.arange(2, device=d), numbers(d).requires_grad_()).sum().backward()
        torch.randn(3, generator=torch.Generator(d), device=d)
        torch.randn(3, generator=torch.Generator()).to(d, non_blocking=True)
        numbers(d).cumsum(1).argmax(1).clamp(max=1)
        torch.searchsorted(numbers(d).cumsum(1), numbers(d, 2, 1), right=True)
        F.cross_entropy(numbers(d), torch.arange(2, device=d))
        """}.items() for line in lines.strip().splitlines()]


def on_cuda(act):
    """What a real card does."""
    act("cuda")                                          # (the first time, kernels are loaded)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            act("cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return WAITS if any("synchroniz" in str(line.message) for line in said) else FREE


def main():
    """One line for each case in which the card does something else; exit code 1 if there is any."""
    wrong = 0
    for what, line, act in CASES:
        try:
            found = on_cuda(act)
        except (RuntimeError, TypeError, IndexError) as error:
            found = f"{REFUSED} ({str(error).splitlines()[0][:80]})"
        if not found.startswith(what):
            wrong += 1
            print(f"FAIL {line}: {found}, not {what}", flush=True)
    print(f"{len(CASES) - wrong} of {len(CASES)} cases as on the pretend device")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("error: there is no CUDA here")
    main()
