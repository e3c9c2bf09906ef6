"""What a device can do: as the table of back ends says, as the device itself answers, and as the user overrides."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch

from gossamer.device.backends import backend_of
from gossamer.device.names import module_of, product_name
from gossamer.errors import UserError, did_you_mean

VARIABLE = "GOSSAMER_DEVICE_FLAGS"


@dataclass(frozen=True)
class Capabilities:
    """What may be asked of a device.

    Attributes:
        fp64: float64 tensors
        bf16: products in bfloat16, in hardware; emulated ones can be a hundred times slower
        int64: 64-bit addresses in kernels
        triton: Triton's kernels, if a Triton with a compiler for it is installed
        compile: torch.compile
        grouped_mm: PyTorch's grouped matrix product
        fused_adamw: AdamW over all parameters in one kernel
        collective: name of the back end of torch.distributed
    """

    fp64: bool
    bf16: bool
    int64: bool
    triton: bool
    compile: bool
    grouped_mm: bool
    fused_adamw: bool
    collective: str


def capabilities(device: torch.device) -> Capabilities:
    """What this device can do. `GOSSAMER_DEVICE_FLAGS="fp64=no,triton=no,collective=gloo"` overrides it, on each.

    Raises:
        UserError: that variable holds what is no flag, or no value of one.
    """
    return _capabilities(device, os.environ.get(VARIABLE, ""))


def can_hold(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tensors of this type can be there at all."""
    return dtype != torch.float64 or capabilities(device).fp64


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 run in hardware; where they are emulated they can be a hundred times slower."""
    return capabilities(device).bf16


def collective_backend(device: torch.device) -> str:
    """Name of torch.distributed's back end for tensors there."""
    return capabilities(device).collective


@lru_cache
def _capabilities(device: torch.device, overrides: str) -> Capabilities:
    row = backend_of(device.type, product_name(device))
    found = Capabilities(
        fp64=row.fp64,
        bf16=_has_bfloat16(device),
        int64=row.int64,
        triton=row.triton,
        compile=row.compile,
        grouped_mm=row.grouped_mm and hasattr(torch.nn.functional, "grouped_mm"),
        fused_adamw=_has_fused_adamw(device),
        collective=row.collective or _registered_collective(device),
    )
    return replace(found, **_parse(overrides))


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))
    module = module_of(device)
    if (supported := getattr(module, "is_bf16_supported", None)) is not None:
        return bool(supported())
    # PyTorch asks plug-ins for this list before it lets autocast use them.
    listed = getattr(module, "get_amp_supported_dtype", None)
    return device.type in ("xpu", "mps") if listed is None else torch.bfloat16 in listed()


def _has_fused_adamw(device: torch.device) -> bool:
    """Whether a kernel is registered. PyTorch's optimizer believes it of every plug-in."""
    if device.type not in torch.utils._foreach_utils._get_fused_kernels_supported_devices():
        return False
    key = torch._C._dispatch_key_for_device(device.type)
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("aten::_fused_adamw_", key))


def _registered_collective(device: torch.device) -> str:
    """What a plug-in told torch.distributed to use for its tensors; gloo, through host memory, where it did not."""
    if not torch.distributed.is_available():
        return "gloo"
    return torch.distributed.Backend.default_device_backend_map.get(device.type, "gloo")


def _parse(text: str) -> dict[str, Any]:
    kinds = {field.name: field.type for field in fields(Capabilities)}
    chosen: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (part.strip() for part in pair.partition("="))
        if name not in kinds:
            raise UserError(f"{VARIABLE}: no flag {name!r}{did_you_mean(name, kinds)}; flags: {', '.join(kinds)}")
        if name == "collective" and value:
            chosen[name] = value
        elif name != "collective" and value in ("yes", "no"):
            chosen[name] = value == "yes"
        else:
            wanted = "the name of a back end" if name == "collective" else "yes or no"
            raise UserError(f"{VARIABLE}: {name} is {value!r}; it must be {wanted}")
    return chosen
