"""Measurements of a device: how fast it multiplies matrices, and how much energy it has used."""

from __future__ import annotations

import ctypes
import time
from functools import lru_cache

import torch

from gossamer.device.accelerator import reset_peak_memory_stats, synchronize

_MEASUREMENTS, _PAUSE = 3, 0.05  # measurements of the first call, and seconds between them
_BEST: dict[tuple[torch.device, torch.dtype, int], float] = {}


def peak_rate(device: torch.device, dtype: torch.dtype, again: bool = False) -> float:
    """Return the FLOP/s of a product of two large square matrices, the best that this process has measured.

    The product is computed as in training: in this dtype, on PyTorch's threads, with its settings. Other programs on
    the machine can only make it slower, so the best of several measurements is the closest to what the machine can do.

    Args:
        device: where the matrices are
        dtype: dtype of the matrices
        again: whether to measure once more if the rate is known already
    """
    key = device, dtype, torch.get_num_threads()
    measurements = _MEASUREMENTS if key not in _BEST else int(again)
    for number in range(measurements):
        if number:
            time.sleep(_PAUSE)
        _BEST[key] = max(_BEST.get(key, 0.0), _measured_rate(device, dtype))
    return _BEST[key]


def _measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of a few products in a fraction of a second."""
    size = 256
    while True:
        # Random numbers would change the state of training's generators, and zeros are faster on some chips.
        a = torch.arange(size * size, device=device, dtype=torch.float32).sin_().view(size, size).to(dtype)
        _seconds_of_product(a, 1)
        seconds = _seconds_of_product(a, 1)
        if seconds >= 5e-3 or size == 8192:
            break
        size *= 2
    repeats = max(1, int(0.01 / seconds))  # in a row: an accelerator gets the next product during the last one
    best = min(seconds, *(_seconds_of_product(a, repeats) for _ in range(3)))
    del a
    reset_peak_memory_stats(device)  # so that the peak memory of training is measured without these matrices
    return 2.0 * size**3 / best


def _seconds_of_product(a: torch.Tensor, repeats: int) -> float:
    """Return the seconds that a · a takes, on average over `repeats` products."""
    out = torch.empty_like(a)
    synchronize(a.device)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, a, out=out)
    synchronize(a.device)
    return (time.perf_counter() - start) / repeats


def energy(device: torch.device) -> float | None:
    """Return the joules that an accelerator has used since some moment in the past, or None if it does not tell.

    NVIDIA's management library, which comes with the driver, tells it for NVIDIA's GPUs since Volta. A chip that is
    disguised as one of them is not found in that library.
    """
    if device.type != "cuda":
        return None
    try:
        library, handle = _nvml(device)
        millijoules = ctypes.c_ulonglong()
        status = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3 if status == 0 else None
    except (OSError, AttributeError, RuntimeError):
        return None


@lru_cache
def _nvml(device: torch.device) -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    """Return NVIDIA's management library and its handle of a device.

    The device is found by its UUID, because PyTorch and the library number devices differently.
    """
    library, handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
    uuid = str(torch.get_device_module(device).get_device_properties(device).uuid)
    name = f"GPU-{uuid.removeprefix('GPU-')}".encode()
    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
        raise OSError("no such device")
    return library, handle
