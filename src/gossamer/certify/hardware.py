"""The device itself: the types it computes in, a training step's peak of memory, and how it fails when it is full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from gossamer import device as devices
from gossamer.certify.checks import Check, judge, named
from gossamer.certify.exactness import largest_error
from gossamer.certify.speed import preset_recipe, synthetic_batches
from gossamer.errors import exception_line, is_out_of_memory
from gossamer.model.causal_lm import CausalLM
from gossamer.reading import parse_json
from gossamer.run.memory import estimate_peak
from gossamer.train.step import Learner
from gossamer.units import size

CPU = torch.device("cpu")
# Errors of a product over 61 numbers, of the largest result.
_ALLOWED = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 1e-2}


def claimed(device: torch.device) -> dict[torch.dtype, str]:
    """Return the types that certification is about, each with what the device lacks by its flags, or ""."""
    can = devices.capabilities(device)
    # A CPU computes in bfloat16 anyhow, if slowly.
    bf16 = "" if can.bf16 or not devices.is_accelerator(device) else "no products in bfloat16, by the device's flags"
    fp64 = "" if can.fp64 else "no float64, by the device's flags"
    return {torch.float32: "", torch.bfloat16: bf16, torch.float64: fp64}


def check_numbers(device: torch.device) -> Iterator[Check]:
    """Check a product, its rounding, and the rules by which types are mixed, in each type that the device claims."""
    for dtype, lacking in claimed(device).items():
        name = f"products in {named(dtype)}"
        yield Check("numbers", name, "not run", lacking) if lacking else _product(name, dtype, device)
    yield _large_indices(device)


def _product(name: str, dtype: torch.dtype, device: torch.device) -> Check:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((33, 61), (61, 17)))
    allowed = _ALLOWED[dtype]
    try:
        product = a.to(device) @ b.to(device)
        mixed = product + torch.ones((), device=device)  # a float32 scalar must not widen a narrower tensor
        if (product.dtype, mixed.dtype) != (dtype, dtype):
            wrong = next(found.dtype for found in (product, mixed) if found.dtype != dtype)
            return Check("numbers", name, "fail", f"gives {named(wrong)}", where="the plug-in's rules of promotion")
        return judge("numbers", name, largest_error(product, a.double() @ b.double()), allowed, dtype=named(dtype))
    except Exception as error:
        return Check("numbers", name, "fail", exception_line(error), dtype=named(dtype), where="the plug-in's aten::mm")


def _large_indices(device: torch.device) -> Check:
    """Check integers of 64 bits, which hold token ids and the order of experts' tokens."""
    name, numbers = "integers of 64 bits", torch.tensor([2**40 + 3, -5, 2**33])
    try:
        found = (numbers.to(device) * 3 + 1).sort().values.cpu()
    except Exception as error:
        return Check("numbers", name, "fail", exception_line(error), where="the plug-in's int64 operators")
    right = torch.equal(found, (numbers * 3 + 1).sort().values)
    message = "" if right else f"gives {found.tolist()}"
    return Check("numbers", name, "pass" if right else "fail", message, where="" if right else "int64 operators")


def checked_dtypes(device: torch.device) -> list[torch.dtype]:
    """List the types that operations are checked in on a device."""
    return [dtype for dtype, lacking in claimed(device).items() if not lacking]


# Of the estimate. A device's libraries also hold some tens of MiB, which matter little in this much.
TOLERANCE = 0.25
MIN_ESTIMATE = 256 << 20
_BLOCKS = 16  # tensors that a device's memory is filled with
_TOO_MANY_BYTES = 1 << 50  # more than today's address spaces hold


def check_memory(device: torch.device, quick: bool) -> Iterator[Check]:
    """Check the peak of a training step against its estimate, and that a full device fails cleanly."""
    yield _peak(device, "nano" if quick else "micro")
    yield _full(device)


def _peak(device: torch.device, preset: str) -> Check:
    name, where = f"peak of {preset}", "src/gossamer/run/memory.py"
    if reason := _why_unknown(device):
        return Check("memory", name, "not run", reason)
    if reason := _lacking_memory(device, preset):
        return Check("memory", name, "not run", reason)
    try:
        found = measured_separately(preset) if device.type == "cpu" else measured_peak(preset, device)
    except Exception as error:
        return Check("memory", name, "fail", exception_line(error), where=where)
    peak, estimate = found["peak"], found["estimate"]
    message = f"{size(peak)}, estimated {size(estimate)}"
    check = judge("memory", name, abs(peak - estimate) / max(estimate, MIN_ESTIMATE), TOLERANCE, message, where)
    return replace(check, message=message)


def _why_unknown(device: torch.device) -> str:
    """Explain why a device's peak cannot be known, or ""."""
    if not devices.is_accelerator(device):
        return ""
    try:
        tensor = torch.ones(1 << 10, device=device)
        is_counted = devices.peak_memory(device) >= tensor.nbytes
    except Exception as error:
        return f"the plug-in keeps no such figures: {exception_line(error)}"
    return "" if is_counted else "the plug-in does not count what tensors take"


def _lacking_memory(device: torch.device, preset: str) -> str:
    """Say how much memory a preset needs and the device has, if that is too little; "" otherwise."""
    try:
        there = devices.memory_bytes(device)
    except Exception:
        return ""
    needed = estimate_peak(preset_recipe(preset), device).needed
    return f"it needs {size(needed)}, and there are {size(there)}" if needed > there else ""


def measured_peak(preset: str, device: torch.device) -> dict[str, int]:
    """Measure the peak of two training steps of a preset on a device, in bytes, and estimate it."""
    recipe = preset_recipe(preset)
    estimate = estimate_peak(recipe, device).total
    devices.reset_peak_memory_stats(device)
    learner = Learner(CausalLM(recipe.model).to(device), recipe)
    for batches in synthetic_batches(recipe, 2):
        learner.step(batches, 1e-4)
    return {"estimate": estimate, "peak": devices.peak_memory(device)}


def measured_separately(preset: str) -> dict[str, int]:
    """Measure the same on a CPU, in a process of its own: this one's peak includes all that it has ever held."""
    command = [sys.executable, "-m", "gossamer.certify.hardware", preset]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": _path()})
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["its process ended"])[-1])
    found: dict[str, int] = parse_json(done.stdout.splitlines()[-1], "the measuring process")
    return found


def _path() -> str:
    return os.pathsep.join(path for path in sys.path if path)


def _full(device: torch.device) -> Check:
    """Take memory until there is none left: the error must say so, and afterwards everything must work again."""
    name, where = "a full device", "the plug-in's allocator"
    try:
        total = devices.memory_bytes(device)
    except Exception as error:
        return Check("memory", name, "not run", f"the plug-in does not tell how much there is: {exception_line(error)}")
    problem = _fill(device, total)
    if problem:
        return Check("memory", name, "fail", problem, where=where)
    a = torch.arange(64.0).view(8, 8)
    try:
        right = torch.equal((a.to(device) @ a.to(device)).cpu(), a @ a)
    except Exception as error:
        return Check("memory", name, "fail", f"after it, {exception_line(error)}", where=where)
    if not right:
        return Check("memory", name, "fail", "after it, a product is wrong", where=where)
    return Check("memory", name, "pass", "refused cleanly, and works again")


def _fill(device: torch.device, total: int) -> str:
    """What is wrong about how memory runs out, or ""."""
    blocks: list[Any] = []
    try:
        if device.type == "cpu":
            blocks.append(torch.empty(_TOO_MANY_BYTES, dtype=torch.uint8))
        else:
            for _ in range(_BLOCKS + _BLOCKS // 4):
                blocks.append(torch.empty(total // _BLOCKS, dtype=torch.uint8, device=device))
    except Exception as error:
        return "" if is_out_of_memory(error) else f"the error does not say that memory ran out: {exception_line(error)}"
    finally:
        blocks.clear()
        devices.reset_peak_memory_stats(device)
    return f"gave {'a petabyte' if device.type == 'cpu' else '1.25 times the memory that it has'}"


if __name__ == "__main__":
    devices.prepare_process()
    devices.keep_freed_memory()
    print(json.dumps(measured_peak(sys.argv[1], torch.device("cpu"))))
