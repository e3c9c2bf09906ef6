"""The devices of this machine: found, named, waited for, measured for memory, and seeded.

A device is asked through its own module, such as `torch.npu`, which PyTorch's guide asks plug-ins to provide, or else
through `torch.accelerator`, which needs parts in C++ that not every plug-in has.
"""

from __future__ import annotations

import logging
import os
import platform
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from gossamer.device.backends import BACKENDS
from gossamer.device.processor import processor
from gossamer.errors import UserError, did_you_mean

log = logging.getLogger("gossamer")


def default_device() -> torch.device:
    """Return the accelerator that PyTorch sees, or else the CPU; `GOSSAMER_DEVICE` overrides it."""
    if name := os.environ.get("GOSSAMER_DEVICE"):
        return resolve(name)
    return torch.device(available_devices()[0])


def resolve(name: str = "auto") -> torch.device:
    """Turn a user's word (`auto`, `cpu`, `cuda`, `cuda:1`, `npu` …) into a device of this machine.

    Raises:
        UserError: the word names no device type or a device that is not on this machine, or GOSSAMER_PLUGIN is wrong.
    """
    if name == "auto":
        return default_device()
    available = available_devices()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"unknown device {name!r}{did_you_mean(name, available)}; here: {', '.join(available)}"
        ) from None
    if device.type not in available:
        raise UserError(f"device {name!r} is not on this machine; here: {', '.join(available)}")
    if device.index is not None and device.index >= device_count(device):
        raise UserError(f"device {name!r}: only {device_count(device)} of type {device.type!r} on this machine")
    return device


def available_devices() -> list[str]:
    """List the device types that a user can name on this machine, best first."""
    load_plugins()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ([accelerator.type] if accelerator else []) + ["cpu"]


def device_count(device: torch.device) -> int:
    """Count the devices of this device's type on this machine."""
    return 1 if device.type == "cpu" else torch.accelerator.device_count()


@lru_cache
def load_plugins() -> None:
    """Import the plug-ins that register devices with PyTorch.

    PyTorch has already imported plug-ins that declare an entry point of the group `torch.backends`. This imports the
    others: those of the table of back ends that are installed, and the one that GOSSAMER_PLUGIN names, for a chip that
    is not in the table.

    Raises:
        UserError: the module that GOSSAMER_PLUGIN names cannot be imported. Other plug-ins that fail are skipped with a
            warning.
    """
    if name := os.environ.get("GOSSAMER_PLUGIN"):
        if problem := _import_problem(name):
            raise UserError(f"GOSSAMER_PLUGIN {name!r} cannot be imported: {problem}")
        return  # PyTorch has room for one plug-in only
    for row in BACKENDS:
        if row.plugin and find_spec(row.plugin) and (problem := _import_problem(row.plugin)):
            log.warning("%s is installed, but cannot be imported: %s", row.plugin, problem)


def _import_problem(module: str) -> str:
    """Import a module and return what went wrong, or ""."""
    try:
        import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # a driver's library is missing, or another plug-in is loaded
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def is_accelerator(device: torch.device) -> bool:
    """Whether the device is not the CPU."""
    return device.type != "cpu"


def module_of(device: torch.device) -> Any:
    """Return PyTorch's module of the device, such as `torch.npu`; None if there is none, as for `meta`."""
    try:
        return torch.get_device_module(device)
    except RuntimeError:
        return None


def _call_device_module(device: torch.device, name: str, otherwise: str = "") -> Any:
    """Call `name` of the device's module, or else `otherwise` (by default the same name) of torch.accelerator."""
    function = getattr(torch.get_device_module(device), name, None)
    return (function or getattr(torch.accelerator, otherwise or name))(device)


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has finished all work that it was given; a CPU never has to be waited for."""
    if is_accelerator(device):
        _call_device_module(device, "synchronize")


def product_name(device: torch.device) -> str:
    """Return a device's name as its maker gives it, or "" if a plug-in does not tell."""
    if device.type == "cpu":
        return processor().name
    module = module_of(device)
    if not hasattr(module, "get_device_properties"):
        return ""
    return str(getattr(module.get_device_properties(device), "name", ""))


def device_name(device: torch.device) -> str:
    """Name a device for people, such as `cpu (AMD EPYC, family 25 model 1, AVX2, 2 threads)`.

    A processor's product name alone does not say enough, because one name can stand for several generations.
    """
    if not is_accelerator(device):
        return f"{device.type} ({processor().describe(torch.get_num_threads())})"
    return f"{device.type} ({product_name(device) or 'unnamed'})"


def device_key(device: torch.device) -> str:
    """Return the key under which figures measured on a device are stored; figures with equal keys are comparable."""
    return processor().key(torch.get_num_threads()) if not is_accelerator(device) else device_name(device)


def memory_bytes(device: torch.device) -> int:
    """Return the device's total memory in bytes."""
    if is_accelerator(device):
        return int(_call_device_module(device, "mem_get_info", otherwise="get_memory_info")[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes, of the process on a CPU and of the allocator on an accelerator."""
    if is_accelerator(device):
        return int(_call_device_module(device, "max_memory_allocated"))
    try:  # the kernel's own mark for this program; ru_maxrss starts from that of the program that started it
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss is in bytes on macOS and in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory_stats(device: torch.device) -> None:
    """Let an accelerator return the memory that it caches, and measure its peak memory from here on."""
    if is_accelerator(device):
        with suppress(RuntimeError, AttributeError):  # a chip whose plug-in does not count memory
            torch.get_device_module(device).empty_cache()
            _call_device_module(device, "reset_peak_memory_stats")


def seed_everything(seed: int) -> None:
    """Seed the random generators of the CPU and of every device."""
    torch.manual_seed(seed)


def get_rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of the generators that a training step may use, as CPU tensors of bytes."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore what `get_rng_state` returned; the state of another device type is ignored."""
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type], device)
