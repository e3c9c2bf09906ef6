"""The energy that a device has used: NVIDIA's GPUs say so. A chip disguised as one is not found in their library."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch


def energy(device: torch.device) -> float | None:
    """Joules that an accelerator has used since some moment in the past; None if it does not say.

    NVIDIA's management library, which comes with the driver, tells it of its GPUs since Volta.
    """
    if device.type != "cuda":
        return None
    try:
        library, handle = _nvml(device)
        used = ctypes.c_ulonglong()  # millijoules
        return (
            used.value / 1e3 if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used)) == 0 else None
        )
    except (OSError, AttributeError, RuntimeError):
        return None


@lru_cache
def _nvml(device: torch.device) -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    """NVIDIA's management library and its handle of a device, found by its UUID: the two count devices differently."""
    library, handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
    uuid = str(torch.get_device_module(device).get_device_properties(device).uuid)
    name = f"GPU-{uuid.removeprefix('GPU-')}".encode()
    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
        raise OSError("no such device")
    return library, handle
