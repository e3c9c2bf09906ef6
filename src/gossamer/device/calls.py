"""Asking a device through its own module, as `torch.npu` is, or else through `torch.accelerator`.

Plug-ins serve the first, by PyTorch's guide; the second needs parts in C++ that not every one has.
"""

from __future__ import annotations

from typing import Any

import torch

from gossamer.device.names import is_accelerator


def call(device: torch.device, name: str, otherwise: str = "") -> Any:
    """Call `name` of the device's module, or `otherwise` (the same name, if empty) of torch.accelerator."""
    own = getattr(torch.get_device_module(device), name, None)
    return (own or getattr(torch.accelerator, otherwise or name))(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told; a CPU has."""
    if is_accelerator(device):
        call(device, "synchronize")
