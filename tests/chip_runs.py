"""What tests have done on the test chip, in a process of its own: PyTorch does not part with a device."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import chip
from gossamer import device as devices
from gossamer import ops
from gossamer.cli import main
from gossamer.infer.generation import sample_run
from gossamer.run.loop import train
from gossamer.run.metrics import read_metrics
from gossamer.train.recipe import Recipe

# Of a step repeated, the cost comes twice.
BY_THE_CLOCK = {"elapsed", "tokens_per_second", "mfu", "memory", "seconds", "device_seconds", "flops"}
# What the chip lacks, and the CPU has.
AS_THE_CHIP = "fused_adamw=no,bf16=no"


@contextmanager
def through_pytorch() -> Iterator[None]:
    """Every operation through PyTorch's own functions, in the order in which a chip does it.

    Attention, for which CPUs have a kernel, is computed by its definition, and tokens without a label meet the head.
    """
    alone = {name: operation.pytorch_implementation().name for name, operation in ops.OPERATIONS.items()}
    flags = {"GOSSAMER_DEVICE_FLAGS": AS_THE_CHIP}
    head = mock.patch.object(import_module("gossamer.ops.linear_cross_entropy"), "MAX_UNLABELED", 1.0)
    with ops.forced(**alone | {"attention": "reference"}), mock.patch.dict(os.environ, flags), head:
        yield


def trained(recipe: Recipe, out: Path, device: str, resume: bool = False) -> list[dict[str, Any]]:
    """Train on a device, and return what was measured on the way, but for what a clock or the device says."""
    chip.reset()
    with through_pytorch():
        train(replace(recipe, training=replace(recipe.training, device=device)), out, resume)
    kept = ("train", "eval", "end", "experts", "sample")
    events = [event for event in read_metrics(out) if event["event"] in kept]
    return [{name: value for name, value in event.items() if name not in BY_THE_CLOCK} for event in events]


def written(run: Path, device: str) -> str:
    """What the model of a run writes on a device."""
    with through_pytorch():
        return "".join(sample_run(run, "line 1", 12, {"seed": 0}, device))


def typed(arguments: list[str], **faults: Any) -> tuple[int, str]:
    """The exit status of a command on the chip, and what it says."""
    chip.plug()
    said = io.StringIO()
    try:
        for name, value in faults.items():
            getattr(chip, name)(value)
        with redirect_stderr(said):
            return main(arguments), said.getvalue()
    finally:
        chip.plug()


def attempt(code: str, **faults: Any) -> str:
    """What an expression about `device`, the chip, comes to: its value, or the error's type and message."""
    chip.plug()
    try:
        for name, value in faults.items():
            getattr(chip, name)(*value if isinstance(value, tuple) else (value,))
        return str(eval(code, {"torch": torch, "chip": chip, "device": torch.device("testchip", 0)}))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        chip.plug()


def described() -> dict[str, Any]:
    """What `gossamer doctor` says of the chip."""
    return devices.describe(torch.device("testchip", 0))
