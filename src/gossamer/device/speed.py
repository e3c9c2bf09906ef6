"""How fast a device multiplies matrices."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from gossamer.device.calls import synchronize
from gossamer.device.memory import forget_peak_memory


def peak_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two large square matrices, the best of a few, in a fraction of a second.

    It is measured as training computes: in this type, on the threads that PyTorch has, by its settings.
    """
    return _peak_rate(device, dtype, torch.get_num_threads())


@lru_cache
def _peak_rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    size, took = 256, 0.0
    while True:
        # No random numbers: training draws from their generators. Zeros would be faster than others on some chips.
        a = torch.arange(size * size, device=device, dtype=torch.float32).sin_().view(size, size).to(dtype)
        _seconds_of_product(a, 1)
        took = _seconds_of_product(a, 1)
        if took >= 5e-3 or size == 8192:
            break
        size *= 2
    repeats = max(1, int(0.01 / took))  # in a row: an accelerator is told of the next product during the last
    best = min(took, *(_seconds_of_product(a, repeats) for _ in range(3)))
    del a
    forget_peak_memory(device)  # what training will need at most is measured from here on
    return 2.0 * size**3 / best


def _seconds_of_product(a: torch.Tensor, repeats: int) -> float:
    out = torch.empty_like(a)
    synchronize(a.device)
    began = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, a, out=out)
    synchronize(a.device)
    return (time.perf_counter() - began) / repeats
