"""What devices are called."""

from __future__ import annotations

from typing import Any

import torch

from gossamer.device.processor import processor


def is_accelerator(device: torch.device) -> bool:
    """Whether it is something other than the CPU."""
    return device.type != "cpu"


def module_of(device: torch.device) -> Any:
    """PyTorch's module of the device, as `torch.npu`; None where there is none, as of `meta`, for shapes alone."""
    try:
        return torch.get_device_module(device)
    except RuntimeError:
        return None


def product_name(device: torch.device) -> str:
    """A device's name as its maker gives it; empty where a plug-in does not say."""
    if device.type == "cpu":
        return processor().name
    module = module_of(device)
    if not hasattr(module, "get_device_properties"):
        return ""
    return str(getattr(module.get_device_properties(device), "name", ""))


def device_name(device: torch.device) -> str:
    """A device's name for people, such as `cpu (AMD EPYC, family 25 model 1, AVX2, 2 threads)`.

    Of a processor the maker's name alone does not say enough: one name can stand for several generations.
    """
    if not is_accelerator(device):
        return f"{device.type} ({processor().describe(torch.get_num_threads())})"
    return f"{device.type} ({product_name(device) or 'unnamed'})"


def device_key(device: torch.device) -> str:
    """What figures that were measured on a device are kept under: equal keys, comparable figures."""
    return processor().key(torch.get_num_threads()) if not is_accelerator(device) else device_name(device)
