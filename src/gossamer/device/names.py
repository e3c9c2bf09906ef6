"""What devices are called."""

from __future__ import annotations

import platform
from typing import Any

import torch


def is_accelerator(device: torch.device) -> bool:
    """Whether it is something other than the CPU."""
    return device.type != "cpu"


def cpu_name() -> str:
    """The processor's name as its maker gives it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def module_of(device: torch.device) -> Any:
    """PyTorch's module of the device, as `torch.npu`; None where there is none, as of `meta`, for shapes alone."""
    try:
        return torch.get_device_module(device)
    except RuntimeError:
        return None


def product_name(device: torch.device) -> str:
    """A device's name as its maker gives it; empty where a plug-in does not say."""
    if device.type == "cpu":
        return cpu_name()
    module = module_of(device)
    if not hasattr(module, "get_device_properties"):
        return ""
    return str(getattr(module.get_device_properties(device), "name", ""))


def device_name(device: torch.device) -> str:
    """A device's name for people, such as `cpu (AMD EPYC, 2 threads)`."""
    threads = "" if is_accelerator(device) else f", {torch.get_num_threads()} threads"
    return f"{device.type} ({product_name(device) or 'unnamed'}{threads})"
