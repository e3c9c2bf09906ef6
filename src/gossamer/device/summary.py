"""The machine in a few lines."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import torch

from gossamer.device.backends import backend_of
from gossamer.device.find import default_device
from gossamer.device.flags import capabilities
from gossamer.device.memory import memory_bytes
from gossamer.device.names import device_name, product_name


def describe(device: torch.device | None = None) -> dict[str, Any]:
    """What `gossamer doctor` prints of the machine; `capabilities` by the names of that class."""
    device = device or default_device()
    can = asdict(capabilities(device))
    return {
        "device": device_name(device),
        "device_type": device.type,
        "backend": backend_of(device.type, product_name(device)).name,
        "memory_gib": round(memory_bytes(device) / 2**30, 1),
        "collective_backend": can.pop("collective"),
        "capabilities": can,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
