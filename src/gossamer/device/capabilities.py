"""What a device can do: by the table of back ends, by its own answers, and by what the user overrides."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from gossamer.device.accelerator import (
    default_device,
    device_name,
    is_accelerator,
    memory_bytes,
    module_of,
    product_name,
)
from gossamer.device.backends import backend_of
from gossamer.errors import UserError, did_you_mean

FLAGS_VARIABLE = "GOSSAMER_DEVICE_FLAGS"


@dataclass(frozen=True)
class Capabilities:
    """What may be used on a device.

    Attributes:
        fp64: float64 tensors
        bf16: products in bfloat16 in hardware; emulated ones can be a hundred times slower
        int64: 64-bit addresses in kernels
        triton: Triton's kernels, if a Triton with a compiler for the device is installed
        grouped_mm: PyTorch's grouped matrix product
        fused_adamw: AdamW over all parameters in one kernel
        collective: name of the back end of torch.distributed
    """

    fp64: bool
    bf16: bool
    int64: bool
    triton: bool
    grouped_mm: bool
    fused_adamw: bool
    collective: str


def capabilities(device: torch.device) -> Capabilities:
    """Return what this device can do; `GOSSAMER_DEVICE_FLAGS="fp64=no,triton=no,collective=gloo"` overrides it.

    Raises:
        UserError: the variable holds an unknown flag or a value that the flag cannot have.
    """
    return _capabilities(device, os.environ.get(FLAGS_VARIABLE, ""))


@lru_cache
def _capabilities(device: torch.device, overrides: str) -> Capabilities:
    """Combine the table's row, the device's answers and the overrides."""
    row = backend_of(device.type, product_name(device))
    found = Capabilities(
        fp64=row.fp64,
        bf16=_has_bfloat16(device),
        int64=row.int64,
        triton=row.triton,
        grouped_mm=row.grouped_mm and hasattr(torch.nn.functional, "grouped_mm"),
        fused_adamw=_has_fused_adamw(device),
        collective=row.collective or _registered_collective(device),
    )
    return replace(found, **_parse(overrides))


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device says that it multiplies in bfloat16."""
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))
    module = module_of(device)
    if (supported := getattr(module, "is_bf16_supported", None)) is not None:
        return bool(supported())
    # PyTorch asks plug-ins for this list before it lets autocast use them.
    dtypes = getattr(module, "get_amp_supported_dtype", None)
    return device.type in ("xpu", "mps") if dtypes is None else torch.bfloat16 in dtypes()


def _has_fused_adamw(device: torch.device) -> bool:
    """Whether the fused kernel is registered; PyTorch's optimizer assumes that every plug-in has it."""
    if device.type not in torch.utils._foreach_utils._get_fused_kernels_supported_devices():
        return False
    key = torch._C._dispatch_key_for_device(device.type)
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("aten::_fused_adamw_", key))


def _registered_collective(device: torch.device) -> str:
    """Return the back end that a plug-in registered with torch.distributed, or else gloo, through host memory."""
    if not torch.distributed.is_available():
        return "gloo"
    return torch.distributed.Backend.default_device_backend_map.get(device.type, "gloo")


def _parse(text: str) -> dict[str, Any]:
    """Parse `GOSSAMER_DEVICE_FLAGS` into fields of `Capabilities`."""
    kinds = {field.name: field.type for field in fields(Capabilities)}
    overrides: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (part.strip() for part in pair.partition("="))
        if name not in kinds:
            raise UserError(f"{FLAGS_VARIABLE}: no flag {name!r}{did_you_mean(name, kinds)}; flags: {', '.join(kinds)}")
        if name == "collective" and value:
            overrides[name] = value
        elif name != "collective" and value in ("yes", "no"):
            overrides[name] = value == "yes"
        else:
            expected = "the name of a back end" if name == "collective" else "yes or no"
            raise UserError(f"{FLAGS_VARIABLE}: {name} is {value!r}; it must be {expected}")
    return overrides


def can_hold(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tensors of this dtype can be on the device at all."""
    return dtype != torch.float64 or capabilities(device).fp64


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 run in hardware; emulated ones can be a hundred times slower."""
    return capabilities(device).bf16


def collective_backend(device: torch.device) -> str:
    """Return the name of torch.distributed's back end for tensors on the device."""
    return capabilities(device).collective


def compute_dtype(device: torch.device, precision: str) -> torch.dtype:
    """Return the dtype of products for a recipe's precision: bf16, fp32 or auto.

    auto is bfloat16 on an accelerator that has it and float32 on a CPU: even a CPU with bfloat16 units gains nothing
    from them on small matrices.

    Raises:
        UserError: bf16 was requested on a device that would emulate it.
    """
    if precision == "bf16" and not has_fast_bfloat16(device):
        raise UserError(f"precision bf16: {device} has no bfloat16 units and would be slower by far; use fp32 or auto")
    if precision == "bf16" or (precision == "auto" and device.type != "cpu" and has_fast_bfloat16(device)):
        return torch.bfloat16
    return torch.float32


def hidden_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the hidden states of a network whose weights are in `dtype`: on a CPU float32 at least.

    A CPU reads narrower weights as they are and computes in float32, which costs it nothing: with few tokens it waits
    for memory, and emulated products in bfloat16 can be a hundred times slower.
    """
    return torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Compute products in `dtype` within this context; float32 leaves everything as it is."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def device_context(device: torch.device) -> AbstractContextManager[Any]:
    """Make this the device on which Triton kernels are launched; PyTorch's own functions do not need it."""
    return nullcontext() if device.index is None else torch.accelerator.device_index(device.index)


def triton_obstacle(device: torch.device) -> str:
    """Say what keeps Triton kernels from running on the device, or "".

    On a CPU they run only in Triton's interpreter, for tests.
    """
    if not _is_installed("triton"):
        return "no Triton"
    if device.type == "cpu":
        return "" if os.environ.get("TRITON_INTERPRET") == "1" else "a CPU, and TRITON_INTERPRET is not set"
    can = capabilities(device)
    if not can.triton:
        return "Triton is not known to work there"
    if not can.int64:
        return "it is not known to have 64-bit addresses, which the kernels compute with"
    target = _triton_target()
    return "" if target and target[0] == device.type else f"this Triton has no driver for {device.type!r} here"


def triton_dot_precisions(device: torch.device) -> tuple[str, str]:
    """Return two precisions of Triton's `dot` in float32.

    Returns:
        The fastest precision that is still better than bfloat16, and a fast one that is as good as float32.
    """
    target = _triton_target() if is_accelerator(device) else None
    is_nvidia = target is not None and target[1] == "cuda" and backend_of(device.type, product_name(device)).has_tf32
    return ("tf32", "tf32x3") if is_nvidia else ("ieee", "ieee")


def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory for a block of threads, or a huge number if the device does not tell."""
    if not is_accelerator(device):
        return 1 << 30
    properties = torch.get_device_module(device).get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 1 << 30))


def fla_obstacle(device: torch.device) -> str:
    """Say what keeps flash-linear-attention from running on the device, or ""."""
    if not _is_installed("fla"):
        return "flash-linear-attention is not installed"
    if device.type == "cpu":
        return "a CPU"
    if (version := _fla_version()) < (0, 5):
        return f"flash-linear-attention {'.'.join(map(str, version))} is older than 0.5"
    return triton_obstacle(device)


def grouped_mm_obstacle(device: torch.device) -> str:
    """Say what keeps PyTorch's grouped matrix product from running on the device, or ""; a CPU has a simple form."""
    if not capabilities(device).grouped_mm:
        return "PyTorch's grouped product is not known to work there"
    return "" if device.type == "cpu" or capabilities(device).bf16 else "no bfloat16 units"


@lru_cache
def _is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return find_spec(package) is not None


@lru_cache
def _triton_target() -> tuple[str, str] | None:
    """Return the device type that Triton's driver is for, and the name of Triton's compiler for it."""
    import triton

    try:
        driver = triton.runtime.driver.active
        return driver.get_active_torch_device().type, driver.get_current_target().backend
    except (RuntimeError, AttributeError):  # no driver, or more than one
        return None


@lru_cache
def _fla_version() -> tuple[int, ...]:
    """Return the first two numbers of flash-linear-attention's version."""
    for package in ("fla-core", "flash-linear-attention"):
        try:
            return tuple(int(part) for part in metadata.version(package).split(".")[:2])
        except (metadata.PackageNotFoundError, ValueError):
            continue
    return (0,)


def describe(device: torch.device | None = None) -> dict[str, Any]:
    """Describe the machine as `gossamer doctor` prints it; `capabilities` has the fields of that class."""
    device = device or default_device()
    flags = asdict(capabilities(device))
    return {
        "device": device_name(device),
        "device_type": device.type,
        "backend": backend_of(device.type, product_name(device)).name,
        "memory_gib": round(memory_bytes(device) / 2**30, 1),
        "collective_backend": flags.pop("collective"),
        "capabilities": flags,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
