"""What keeps faster kernels than PyTorch's own functions from running on a device, and what they must know of it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from gossamer.device.backends import backend_of
from gossamer.device.flags import capabilities
from gossamer.device.names import is_accelerator, product_name


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Make it the device that kernels are launched on; PyTorch's own functions need no such help."""
    return nullcontext() if device.index is None else torch.accelerator.device_index(device.index)


def triton_obstacle(device: torch.device) -> str:
    """What keeps Triton kernels from running there, or ""; on a CPU they run in Triton's interpreter, for tests."""
    if not _installed("triton"):
        return "no Triton"
    if device.type == "cpu":
        return "" if os.environ.get("TRITON_INTERPRET") == "1" else "a CPU, and TRITON_INTERPRET is not set"
    can = capabilities(device)
    if not can.triton:
        return "Triton is not known to work there"
    if not can.int64:
        return "no 64-bit addresses are known of it, which the kernels compute with"
    target = _triton_target()
    return "" if target and target[0] == device.type else f"this Triton has no driver for {device.type!r} here"


def triton_dot_precisions(device: torch.device) -> tuple[str, str]:
    """Words for Triton's `dot` of float32: the fastest that still beats bfloat16, and a fast one as good as float32."""
    target = _triton_target() if is_accelerator(device) else None
    nvidia = target is not None and target[1] == "cuda" and backend_of(device.type, product_name(device)).has_tf32
    return ("tf32", "tf32x3") if nvidia else ("ieee", "ieee")


def shared_memory(device: torch.device) -> int:
    """Bytes of fast memory that one block of threads may have; a great many where the device does not say."""
    if not is_accelerator(device):
        return 1 << 30
    properties = torch.get_device_module(device).get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 1 << 30))


def fla_obstacle(device: torch.device) -> str:
    """What keeps flash-linear-attention from running there, or ""."""
    if not _installed("fla"):
        return "flash-linear-attention is not installed"
    if device.type == "cpu":
        return "a CPU"
    if (version := _fla_version()) < (0, 5):
        return f"flash-linear-attention {'.'.join(map(str, version))} is older than 0.5"
    return triton_obstacle(device)


def grouped_mm_obstacle(device: torch.device) -> str:
    """What keeps PyTorch's grouped matrix product from running there, or ""; a CPU has a simple form of it."""
    if not capabilities(device).grouped_mm:
        return "PyTorch's grouped product is not known to work there"
    return "" if device.type == "cpu" or capabilities(device).bf16 else "no bfloat16 units"


@lru_cache
def _installed(package: str) -> bool:
    return find_spec(package) is not None


@lru_cache
def _triton_target() -> tuple[str, str] | None:
    """PyTorch's name of the device type that Triton's driver is for, and the name of Triton's compiler for it."""
    import triton

    try:
        driver = triton.runtime.driver.active
        return driver.get_active_torch_device().type, driver.get_current_target().backend
    except (RuntimeError, AttributeError):  # no driver, or more than one
        return None


@lru_cache
def _fla_version() -> tuple[int, ...]:
    for package in ("fla-core", "flash-linear-attention"):
        try:
            return tuple(int(part) for part in metadata.version(package).split(".")[:2])
        except (metadata.PackageNotFoundError, ValueError):
            continue
    return (0,)
