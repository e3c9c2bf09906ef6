"""The speed of a device: products, copies, collectives, and training steps of the presets that fit."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from gossamer import device as devices
from gossamer.certify.checks import Check, named
from gossamer.certify.timing import copy_rate
from gossamer.cost.network import flops_by_part
from gossamer.data.packing import Batch
from gossamer.errors import exception_line
from gossamer.model.causal_lm import CausalLM
from gossamer.run.memory import estimate_peak
from gossamer.train.recipe import Recipe, load_recipe, recipe_names
from gossamer.train.step import Learner
from gossamer.train.world import World
from gossamer.units import byte_rate, duration, flops, percent, size

PRESETS = ("nano", "micro", "mini", "small")
MAX_SECONDS = {True: 1.0, False: 30.0}  # of a step, in a quick certification and in a whole one
_ASSUMED_MFU = 0.25


@dataclass
class Measured:
    """The rates of a device; None where there was nothing to measure.

    Attributes:
        gemm_flops: FLOP/s of large square products, by type
        copy_bytes_per_second: bytes that a copy moves in a second, reading and writing counted
        collective_bytes_per_second: bytes of a tensor that all devices here sum in a second; None with one device
        training: for each preset tokens/s, MFU (share of the product rate in the type computed in) and what was run
    """

    gemm_flops: dict[str, float] = field(default_factory=dict)
    copy_bytes_per_second: float | None = None
    collective_bytes_per_second: float | None = None
    training: list[dict[str, Any]] = field(default_factory=list)


def check_speed(
    device: torch.device, dtypes: Sequence[torch.dtype], quick: bool, measured: Measured
) -> Iterator[Check]:
    """Measure what can be measured; the figures are left in `measured`."""
    for dtype in dtypes:
        name = f"products in {named(dtype)}"
        try:
            rate = measured.gemm_flops[named(dtype)] = devices.peak_rate(device, dtype)
            yield Check("speed", name, "pass", f"{flops(rate)}/s", named(dtype))
        except Exception as error:
            yield Check("speed", name, "fail", exception_line(error), named(dtype), where="aten::mm.out")
    try:
        rate = measured.copy_bytes_per_second = copy_rate(device, 256 if quick else 1024)
        yield Check("speed", "copies", "pass", byte_rate(rate))
    except Exception as error:
        yield Check("speed", "copies", "fail", exception_line(error), where="aten::copy_")
    yield _collectives(device, measured)
    for preset in PRESETS:
        yield _training(preset, device, quick, measured)


def _collectives(device: torch.device, measured: Measured) -> Check:
    count = devices.device_count(device)
    if count < 2:
        return Check("speed", "collectives", "not run", "there is one device")
    try:
        rate = measured.collective_bytes_per_second = collective_rate(device.type, count)
    except Exception as error:
        return Check("speed", "collectives", "fail", exception_line(error), where="src/gossamer/device/backends.py")
    return Check("speed", "collectives", "pass", f"{byte_rate(rate)} over {count} devices")


def _training(preset: str, device: torch.device, quick: bool, measured: Measured) -> Check:
    name, recipe = f"training {preset}", preset_recipe(preset)
    dtype = devices.compute_dtype(device, "auto")
    peak = measured.gemm_flops.get(named(dtype))
    if peak is None:
        return Check("speed", name, "not run", "the rate of products could not be measured")
    try:
        devices.memory_bytes(device)
    except Exception as error:
        return Check(
            "speed", name, "not run", f"the plug-in does not tell how much memory there is: {exception_line(error)}"
        )
    reason = _excess(recipe, device, peak, MAX_SECONDS[quick])
    while reason and recipe.training.batch_size > 1:  # a smaller batch is nearly as good a measurement
        recipe = replace(recipe, training=replace(recipe.training, batch_size=recipe.training.batch_size // 2))
        reason = _excess(recipe, device, peak, MAX_SECONDS[quick])
    if reason:
        return Check("speed", name, "not run", f"{reason}, with one row a step")
    training = recipe.training
    tokens, each = training.batch_size * training.sequence_length, _flops(recipe)
    try:
        seconds = seconds_a_step(recipe, device, 2.0 if quick else 10.0)
    except Exception as error:
        return Check("speed", name, "fail", exception_line(error), named(dtype), where="src/gossamer/train/step.py")
    finally:
        devices.reset_peak_memory_stats(device)
    speed = tokens / seconds
    # The machine may have been busy when its rate was measured: another moment, and steps that beat it, raise it.
    peak = max(peak, devices.peak_rate(device, dtype, again=True), speed * each)
    measured.gemm_flops[named(dtype)] = peak
    measured.training.append(
        {
            "preset": preset,
            "tokens_per_second": speed,
            "mfu": speed * each / peak,
            "dtype": named(dtype),
            "batch_size": training.batch_size,
            "sequence_length": training.sequence_length,
            "seconds_per_step": seconds,
        }
    )
    return Check("speed", name, "pass", f"{speed:,.0f} tokens/s, MFU {percent(speed * each / peak)}", named(dtype))


def _excess(recipe: Recipe, device: torch.device, peak: float, max_seconds: float) -> str:
    """Explain why a step should not be taken here, for memory or time; "" if it can be."""
    estimate = estimate_peak(recipe, device)
    if not estimate.fits(device):
        return f"needs {size(estimate.needed)} of {size(devices.memory_bytes(device))}"
    seconds = recipe.training.batch_size * recipe.training.sequence_length * _flops(recipe) / peak / _ASSUMED_MFU
    return f"would take about {duration(round(seconds))} a step" if seconds > max_seconds else ""


def _flops(recipe: Recipe) -> float:
    """Count the FLOPs of a training step for each of its tokens."""
    training = recipe.training
    flops = flops_by_part(recipe.model, training.sequence_length, training.mtp_steps, training.sampled_vocab_size)
    return sum(flops.values())


def seconds_a_step(recipe: Recipe, device: torch.device, min_seconds: float) -> float:
    """Measure the mean seconds of a training step, after two that are not counted."""
    learner = Learner(CausalLM(recipe.model).to(device), recipe)
    (batches,) = synthetic_batches(recipe, 1)
    rate = recipe.optimizer.learning_rate
    for _ in range(2):
        learner.step(batches, rate)
    devices.synchronize(device)
    start, steps = time.perf_counter(), 0
    while steps < 3 or time.perf_counter() - start < min_seconds:
        learner.step(batches, rate)
        devices.synchronize(device)
        steps += 1
    return (time.perf_counter() - start) / steps


def preset_recipe(preset: str) -> Recipe:
    """Return the recipe of a preset, with one micro-batch in a step."""
    assert preset in recipe_names()
    recipe = load_recipe(preset)
    return replace(recipe, training=replace(recipe.training, gradient_accumulation=1))


def synthetic_batches(recipe: Recipe, steps: int) -> list[list[Batch]]:
    """Make for each step its micro-batches, of random tokens, with a document in each row."""
    training, generator = recipe.training, torch.Generator().manual_seed(0)
    rows, length = training.batch_size, training.sequence_length
    cu_seqlens = torch.arange(0, rows * length + 1, length, dtype=torch.int32)

    def batch() -> Batch:
        ids = torch.randint(recipe.model.vocab_size, (rows, length), generator=generator)
        return Batch(ids, ids, cu_seqlens)

    return [[batch() for _ in range(training.gradient_accumulation)] for _ in range(steps)]


_REPEATS = 5


def collective_rate(device_type: str, processes: int, megabytes: int = 64) -> float:
    """Measure how fast processes sum a tensor, in bytes of the tensor a second.

    Each process has a device of its own; on a CPU they share it.

    Raises:
        RuntimeError: a sum is wrong.
        torch.multiprocessing.ProcessRaisedException: a process failed.
    """
    context = multiprocessing.get_context("spawn")
    rates: SimpleQueue[float] = context.SimpleQueue()
    arguments = (device_type, processes, _free_port(), megabytes, rates)
    multiprocessing.spawn(_serve, args=arguments, nprocs=processes)
    return min(rates.get() for _ in range(processes))


def _serve(rank: int, device_type: str, processes: int, port: int, megabytes: int, rates: Any) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {name: str(value) for name, value in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = World.join(torch.device(device_type))
    own = torch.full((megabytes << 18,), float(rank + 1), device=world.device)
    total = processes * (processes + 1) / 2
    if not bool((world.all_reduce(own.clone()) == total).all()):
        raise RuntimeError(f"the sum over {processes} devices is wrong")
    devices.synchronize(world.device)
    world.barrier()
    start = time.perf_counter()
    for _ in range(_REPEATS):
        world.all_reduce(own)
    devices.synchronize(world.device)
    rates.put(own.nbytes * _REPEATS / (time.perf_counter() - start))
    world.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
