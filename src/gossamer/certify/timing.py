"""The speed of each operation, by each of its implementations, beside what the machine could do.

A call's time is set against the roofline: the larger of its FLOPs over the rate of a large matrix product and of the
bytes that must move over the rate of a large copy. That share has no unit, so that it can be compared between machines.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer import device as devices
from gossamer import ops
from gossamer.certify.exactness import Inputs, cotangents
from gossamer.certify.inputs import cast, inputs_of, moved
from gossamer.cost.layer import delta_rule_backward_flops, delta_rule_flops
from gossamer.errors import exception_line
from gossamer.model.config import ModelConfig
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.units import duration

MAX_SECONDS = 1.0  # of a call
FORWARD, BOTH = "forward", "forward and backward"
FRESH = ", a fresh network's gates"  # behind the name of an operation that is timed with other inputs as well


Call = Callable[[], object]


def seconds_of_one(call: Call, device: torch.device) -> float:
    """Measure the seconds of one call, including what it started on the device."""
    devices.synchronize(device)
    start = time.perf_counter()
    call()
    devices.synchronize(device)
    return time.perf_counter() - start


def seconds_of(call: Call, device: torch.device, min_seconds: float = 0.2, min_calls: int = 3) -> float:
    """Measure the median seconds of a call in this process, after one that is not counted."""
    call()
    times: list[float] = []
    while len(times) < min_calls or sum(times) < min_seconds:
        times.append(seconds_of_one(call, device))
    return statistics.median(times)


def copy_rate(device: torch.device, megabytes: int = 256) -> float:
    """Measure the bytes a second that a copy moves, reading and writing counted, far outside the caches."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / seconds_of(lambda: target.copy_(source), device)


def in_turns(
    calls: Mapping[str, Call], device: torch.device, min_seconds: float = 1.0, min_turns: int = 3
) -> dict[str, float]:
    """Measure the median seconds of each call, A B C A B C … in this process, all of them warm already.

    Args:
        calls: by name
        device: where they run
        min_seconds: the shortest time for all of them together
        min_turns: how often each is called at least
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    start, turns = time.perf_counter(), 0
    while calls and (turns < min_turns or time.perf_counter() - start < min_seconds):
        turns += 1
        for name, call in calls.items():
            times[name].append(seconds_of_one(call, device))
    return {name: statistics.median(found) for name, found in times.items()}


@dataclass(frozen=True)
class Rates:
    """The rates of a machine: FLOP/s of a large product, bytes/s of a large copy."""

    gemm: float
    copy: float

    def mean(self, other: Rates) -> Rates:
        """Take the mean of two measurements."""
        return Rates((self.gemm + other.gemm) / 2, (self.copy + other.copy) / 2)


def caller(operation: str, inputs: Inputs) -> Callable[[], dict[str, Tensor]]:
    """Make a call forward and backward: outputs by number, gradients by name, for fixed gradients of the outputs."""
    leaves = {
        name: x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in inputs.items()
    }
    sources = {name: x for name, x in leaves.items() if isinstance(x, Tensor) and x.requires_grad}
    grads: list[Tensor] = []  # made once, so that no timing includes it

    def call() -> dict[str, Tensor]:
        outputs = getattr(ops, operation)(**leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if not grads:
            grads.extend(cotangents(outputs))
        found = torch.autograd.grad(outputs, list(sources.values()), grads, materialize_grads=True)
        result = {f"output {number}": out.detach() for number, out in enumerate(outputs)}
        return result | {f"gradient of {name}": grad for name, grad in zip(sources, found, strict=True)}

    return call


def training_inputs(
    config: ModelConfig, rows: int, length: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Inputs]:
    """Make for each operation the inputs of a training step: `rows` documents of `length` tokens, and no state.

    The delta rule comes twice, the second time under its name and `FRESH`: its inputs change while a network learns,
    and with them, on some processors, the time that it takes.
    """
    found = {}
    for name in ops.training_operations():
        found[name] = inputs_of(name, config, [length] * rows)
        if name == "delta_rule":
            found[name + FRESH] = inputs_of(name, config, [length] * rows, gates="fresh")
    for name, inputs in found.items():
        inputs.pop("initial_state", None)
        found[name] = moved(cast(inputs, dtype), device)
    return found


def operation_of(timed: str) -> str:
    """Return the operation of a name in `training_inputs`."""
    return timed.removesuffix(FRESH)


def forward_caller(operation: str, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """Make a call without gradients."""

    @torch.no_grad()
    def call() -> tuple[Tensor, ...]:
        outputs = getattr(ops, operation)(**inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return call


def flops_of(operation: str, config: ModelConfig, inputs: Inputs, length: int) -> tuple[float, float]:
    """Count FLOPs forward and backward of what has a name in `training_inputs`, in rows of `length` tokens."""
    match operation_of(operation):
        case "attention":
            tokens, heads, width = inputs["q"].shape[1:]
            forward = 4.0 * heads * width * tokens * (length + 1) / 2
        case "delta_rule":
            tokens, key_heads, key_dim = inputs["q"].shape[1:]
            sizes = key_heads, inputs["v"].shape[2], key_dim, inputs["v"].shape[3]
            return tokens * delta_rule_flops(*sizes), tokens * delta_rule_backward_flops(*sizes)
        case "short_conv":
            forward = 2.0 * inputs["x"].numel() * inputs["weight"].shape[1]
        case "grouped_mlp" | "frozen_grouped_mlp":
            _, hidden, width = inputs["down_proj"].shape
            forward = 6.0 * hidden * width * inputs["expert_indices"].numel()
            if operation == "frozen_grouped_mlp":  # no gradient of the weights; the thin products are left out
                return forward, forward
        case "linear_cross_entropy" | "token_logprobs":
            forward = 2.0 * inputs["weight"].numel() * int((inputs["labels"] != IGNORED).sum())
        case _:
            forward = 0.0
    return forward, 2 * forward


def bytes_of(inputs: Inputs, outputs: tuple[Tensor, ...]) -> tuple[int, int]:
    """Count bytes that must move forward, inputs read and outputs written, and backward, with their gradients added."""
    tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
    read, written = sum(x.nbytes for x in tensors), sum(x.nbytes for x in outputs)
    gradients = sum(x.nbytes for x in tensors if x.is_floating_point())
    return read + written, read + written + gradients


def roofline(flops: float, moved: float, rates: Rates) -> float:
    """Compute the shortest time that the work can take at the machine's measured rates, in seconds."""
    return max(flops / rates.gemm, moved / rates.copy)


def time_operations(
    config: ModelConfig,
    inputs: Mapping[str, Inputs],
    length: int,
    rates: Callable[[], Rates],
    seconds: float = 1.0,
    is_wanted: Callable[[ops.Operation, str], bool] = lambda operation, implementation: True,
) -> list[dict[str, Any]]:
    """Time operations.

    Args:
        config: the network that the inputs were made for
        inputs: for each operation, as `training_inputs` gives them
        length: tokens in a row
        rates: measures the machine, before and after each operation
        seconds: time for an operation
        is_wanted: whether an operation is to be timed by the implementation of this name

    Returns:
        A row for each operation, implementation and direction: seconds, FLOPs, bytes and share of the roofline.
    """
    rows, before = list[dict[str, Any]](), rates()
    for name, given in inputs.items():
        found = _time_operation(name, given, flops_of(name, config, given, length), seconds, is_wanted)
        after = rates()
        beside, before = before.mean(after), after
        for row in found:
            if "seconds" in row:
                shortest = roofline(row["flops"], row["bytes"], beside)
                row |= {"gemm_gflops": beside.gemm / 1e9, "copy_gbytes": beside.copy / 1e9}
                row["roofline_share"] = shortest / row["seconds"]
        rows += found
    return rows


def _time_operation(
    name: str,
    inputs: Inputs,
    flops: tuple[float, float],
    seconds: float,
    is_wanted: Callable[[ops.Operation, str], bool],
) -> list[dict[str, Any]]:
    operation, rows, calls = ops.OPERATIONS[operation_of(name)], list[dict[str, Any]](), dict[str, Call]()
    device = next(value.device for value in inputs.values() if isinstance(value, Tensor) and value.is_floating_point())
    default = operation.choose(device).name
    moved: tuple[int, int] | None = None
    for one in operation.implementations:
        if one.obstacle(device) or not is_wanted(operation, one.name):
            continue
        call = forward_caller(operation.name, inputs)
        works: tuple[tuple[str, Call], ...] = ((FORWARD, call), (BOTH, caller(operation.name, inputs)))
        for place, (direction, work) in enumerate(works):
            row = {"operation": name, "implementation": one.name, "direction": direction, "chosen": one.name == default}
            rows.append(row)
            timed = _forcing(operation.name, one.name, work)
            try:
                first = seconds_of_one(timed, device)
                # The first call may build or allocate something.
                first = seconds_of_one(timed, device) if first <= 10 * MAX_SECONDS else first
            except Exception as error:  # a kernel that fails here must not keep the others from their turn
                row["failure"] = exception_line(error, 120)
                break
            if first > MAX_SECONDS:
                row["left_out"] = f"left out: {duration(first)} a call"
                break
            calls[f"{one.name} {direction}"] = timed
            if moved is None:
                with torch.no_grad():
                    forward, backward = bytes_of(inputs, call())
                moved = forward, forward + backward
            row["flops"], row["bytes"] = flops[0] + place * flops[1], moved[place]
    medians = in_turns(calls, device, seconds)
    for row in rows:
        found = medians.get(f"{row['implementation']} {row['direction']}")
        if found is not None:
            row["seconds"] = found
    return rows


def _forcing(operation: str, implementation: str, call: Call) -> Call:
    def forced() -> object:
        with ops.forced(**{operation: implementation}):
            return call()

    return forced
