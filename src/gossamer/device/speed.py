"""How fast a device multiplies matrices."""

from __future__ import annotations

import time

import torch

from gossamer.device.calls import synchronize
from gossamer.device.memory import forget_peak_memory

_MOMENTS, _PAUSE = 3, 0.05  # measurements of the first call, and seconds between them
_BEST: dict[tuple[torch.device, torch.dtype, int], float] = {}


def peak_rate(device: torch.device, dtype: torch.dtype, again: bool = False) -> float:
    """FLOP/s of a product of two large square matrices, the best that this process has seen.

    It is measured as training computes: in this type, on the threads that PyTorch has, by its settings. What else runs
    on the machine can only make it slower, so the best of several moments is nearest to what the machine can do.

    Args:
        device: where the matrices are
        dtype: of their numbers
        again: measure for another moment, where the rate is known already
    """
    key = device, dtype, torch.get_num_threads()
    moments = _MOMENTS if key not in _BEST else int(again)
    for moment in range(moments):
        if moment:
            time.sleep(_PAUSE)
        _BEST[key] = max(_BEST.get(key, 0.0), _measured_rate(device, dtype))
    return _BEST[key]


def _measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a few products, in a fraction of a second."""
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
