"""Every implementation of an operation that can run on a device, beside the float64 reference on the CPU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gossamer
from gossamer import device as devices
from gossamer import ops
from gossamer.certify.aten_operators import culprit
from gossamer.certify.checks import Check, judge, named, off_by
from gossamer.certify.exactness import Inputs, evaluate, tolerance, worst_difference
from gossamer.certify.inputs import Case, cases, cast, moved
from gossamer.errors import exception_line
from gossamer.ops.registry import Implementation

CPU = torch.device("cpu")


def check_operations(device: torch.device, dtypes: Sequence[torch.dtype], quick: bool) -> Iterator[Check]:
    """Check each implementation of each operation, type and case; `quick` tries fewer cases."""
    for name in checked_operations():
        yield from check_operation(name, cases(name, quick), dtypes, device)


def checked_operations() -> list[str]:
    """Name the operations that can be called by themselves; those of decoding change the states of sequences."""
    return [*ops.training_operations(), "orthogonalize"]


def check_operation(
    name: str, which: Iterable[Case], dtypes: Sequence[torch.dtype], device: torch.device
) -> Iterator[Check]:
    """Check each implementation in each case and type; what cannot run there is `not run`, with the reason."""
    able = []
    for one in ops.OPERATIONS[name].implementations:
        if reason := one.obstacle(device):
            yield Check("operations", f"{name} {one.name}", "not run", reason)
        else:
            able.append(one)
    for case in which:
        for dtype in dtypes:
            if not (case.wide_only and dtype.itemsize < 4):
                yield from check_case(name, able, case, dtype, device)


def check_case(
    operation: str, implementations: Sequence[Implementation], case: Case, dtype: torch.dtype, device: torch.device
) -> Iterator[Check]:
    """Check implementations on the same inputs in one type; the reference sees the numbers as that type holds them."""
    inputs = cast(case.inputs(), dtype)
    function = partial(_call, operation, case.views)
    with ops.forced(**{operation: "reference"}):
        expected = evaluate(function, _widened(cast(inputs, torch.float64), case.views))
    given = _widened(inputs, case.views)
    for one in implementations:
        start = time.perf_counter()
        with ops.forced(**{operation: one.name}):
            found = _compare(operation, one, function, given, expected, dtype, device)
        shape = ", ".join(
            f"{name} {list(x.shape)}"
            for name, x in inputs.items()
            if isinstance(x, Tensor) and name in ("q", "v", "x", "hidden", "gate_up_proj", "weight", "matrices")
        )
        seconds = time.perf_counter() - start
        yield judge("operations", dtype=named(dtype), case=case.name, shape=shape, seconds=seconds, **found)


def _compare(
    operation: str,
    one: Implementation,
    function: Any,
    given: Inputs,
    expected: dict[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    """Compare one implementation with the reference; returns the arguments of `judge`."""
    found: dict[str, Any] = {
        "name": f"{operation} {one.name}",
        "tolerance": tolerance(operation, one.name, _rounded_to(operation, one.name, dtype, device)),
        "where": source_of(one),
    }

    def run() -> dict[str, Tensor]:
        return evaluate(function, moved(given, device))

    try:
        difference = worst_difference(run(), expected)
    except Exception as error:  # one that fails must not keep the others from their turn
        return found | {"error": float("inf"), "message": f"{exception_line(error)}{culprit(run, device)}"}
    if difference.error <= found["tolerance"]:
        return found | {"error": difference.error}
    wrong = difference.problem or f"is {off_by(difference.error, found['tolerance'])}"
    return found | {"error": difference.error, "message": f"{difference.name} {wrong}{culprit(run, device)}"}


def _rounded_to(operation: str, implementation: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the type that decides how exact an implementation is; Muon multiplies in bfloat16 where that is fast."""
    if (operation, implementation, dtype) == ("orthogonalize", "batched", torch.float32):
        return devices.compute_dtype(device, "auto")
    return dtype


def source_of(one: Implementation) -> str:
    """Name the file that an implementation is written in."""
    path = one.function.__module__.replace(".", "/")
    is_package = (Path(gossamer.__file__).parents[1] / path).is_dir()
    return f"src/{path}/__init__.py" if is_package else f"src/{path}.py"


def _call(operation: str, views: bool, **inputs: Any) -> Any:
    if views:
        inputs = {name: x[..., : x.shape[-1] // 2] if _splits(x) else x for name, x in inputs.items()}
    return getattr(ops, operation)(**inputs)


def _widened(inputs: Inputs, views: bool) -> Inputs:
    """Make each matrix the first half of a larger one, for `_call` with views."""
    return {name: torch.cat([x, x], dim=-1) if views and _splits(x) else x for name, x in inputs.items()}


def _splits(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 1
