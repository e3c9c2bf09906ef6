"""Which devices are here, and the plug-ins that bring them."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

import torch

from gossamer.device.backends import BACKENDS
from gossamer.errors import UserError, did_you_mean

log = logging.getLogger("gossamer")


def default_device() -> torch.device:
    """The accelerator PyTorch sees, or the CPU. `GOSSAMER_DEVICE` overrides it."""
    if wanted := os.environ.get("GOSSAMER_DEVICE"):
        return resolve(wanted)
    return torch.device(available_devices()[0])


def resolve(name: str = "auto") -> torch.device:
    """Turn a user's word (`auto`, `cpu`, `cuda`, `cuda:1`, `npu` …) into a device that is present.

    Raises:
        UserError: the word names no device type, or one that is not on this machine, or GOSSAMER_PLUGIN is wrong.
    """
    if name == "auto":
        return default_device()
    present = available_devices()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}{did_you_mean(name, present)}; here: {', '.join(present)}") from None
    if device.type not in present:
        raise UserError(f"device {name!r} is not on this machine; here: {', '.join(present)}")
    if device.index is not None and device.index >= device_count(device):
        raise UserError(f"device {name!r}: only {device_count(device)} of type {device.type!r} on this machine")
    return device


def available_devices() -> list[str]:
    """Device types a user can name here, best first."""
    load_plugins()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ([accelerator.type] if accelerator else []) + ["cpu"]


def device_count(device: torch.device) -> int:
    """How many devices of this one's type are here."""
    return 1 if device.type == "cpu" else torch.accelerator.device_count()


@lru_cache
def load_plugins() -> None:
    """Import what registers devices with PyTorch.

    PyTorch has imported plug-ins that ask for it (entry points `torch.backends`) before this. Others are imported here:
    those of the table that are installed, and the one that GOSSAMER_PLUGIN names, for a chip that the table lacks.

    Raises:
        UserError: GOSSAMER_PLUGIN names no module that can be imported. Others that fail are passed over, with a line.
    """
    if name := os.environ.get("GOSSAMER_PLUGIN"):
        if problem := _import_problem(name):
            raise UserError(f"GOSSAMER_PLUGIN {name!r} cannot be imported: {problem}")
        return  # PyTorch has room for one
    for row in BACKENDS:
        if row.plugin and find_spec(row.plugin) and (problem := _import_problem(row.plugin)):
            log.warning("%s is installed, but cannot be imported: %s", row.plugin, problem)


def _import_problem(module: str) -> str:
    try:
        import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # a driver's library is missing, or another plug-in is there
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""
