"""Which aten operators training asks of a device: how often, whether each is right, and where it really ran.

An operator that a plug-in lacks can be run on the CPU by its fall-back: right, and slow. PyTorch's dispatcher knows
which operators have a kernel for the device; a plug-in that falls back in its own way usually says so in a warning.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gossamer import ops
from gossamer.certify import network
from gossamer.certify.checks import Check, first_line, named
from gossamer.certify.shadow import Compared, Shadow

CPU = torch.device("cpu")
_WARNED = re.compile(r"(aten::[\w.]+).*?(?:fall|fell)\w*[ -]?back", re.IGNORECASE | re.DOTALL)
_COMPOSITE = ("CompositeExplicitAutograd", "CompositeImplicitAutograd")

# Where an operator can have run.
NATIVE, COMPOSED, PLUGIN, FELL_BACK = "natively", "composed of others", "by the plug-in", "on the CPU"


@dataclass
class Census:
    """For each operator: calls in two steps of training, where it ran, and its largest error."""

    operators: list[dict[str, Any]] = field(default_factory=list)

    def fell_back(self) -> list[str]:
        return [row["operator"] for row in self.operators if row["ran"] == FELL_BACK]


def check_operators(
    device: torch.device, precisions: Mapping[str, torch.dtype], quick: bool, census: Census
) -> Iterator[Check]:
    """Two training steps in each precision, every operator beside the CPU's; the counts are left in `census`.

    Operations run through PyTorch alone here, so that operators are seen which a fused kernel would hide.
    """
    calls: dict[str, int] = {}
    compared: dict[str, list[Compared]] = {}
    skipped: dict[str, str] = {}
    said: set[str] = set()
    batches = network.batches(2)
    for precision, dtype in precisions.items():
        shadow = Shadow(device, each=3 if quick else 12)
        problem = ""
        with warnings.catch_warnings(record=True) as caught, ops.forced(**ops.pytorch_alone()):
            warnings.simplefilter("always")
            try:
                learner = network.learner(device, precision)
                with shadow:
                    network.train(learner, batches)
            except Exception as error:
                problem = first_line(error)
        said |= {name for warning in caught for name in _WARNED.findall(str(warning.message))}
        for name, count in shadow.calls.items():
            calls[name] = calls.get(name, 0) + count
        for one in shadow.compared:
            compared.setdefault(one.operator, []).append(one)
        skipped |= shadow.not_compared
        if problem:
            yield from _broken(shadow, problem, named(dtype))
    for name in sorted(compared):
        yield _worst(compared[name])
    for name in sorted(set(skipped) - set(compared)):
        yield Check("operators", name, "not run", skipped[name])
    census.operators = [_row(name, count, device, said, compared.get(name, [])) for name, count in calls.items()]
    census.operators.sort(key=lambda row: -row["calls"])


def _broken(shadow: Shadow, problem: str, dtype: str) -> Iterator[Check]:
    """The steps did not end: that, unless the operator that failed tells it already, and what was not reached."""
    if not shadow.wrong:
        yield Check("operators", "two training steps", "fail", problem, dtype, where="src/gossamer/train/step.py")
    wanted = Shadow(CPU, each=0)
    learner = network.learner(CPU, "fp32", torch.float64)
    with ops.forced(**ops.pytorch_alone()), wanted:
        network.train(learner, network.batches(2))
    missed = sorted(set(wanted.calls) - set(shadow.calls))
    if missed:
        message = f"the step ended before them: {', '.join(missed[:5])}{' …' if len(missed) > 5 else ''}"
        yield Check("operators", f"{len(missed)} operators of the CPU's step", "not run", message, dtype)


def _worst(found: list[Compared]) -> Check:
    worst = max(found, key=lambda one: one.error / one.tolerance if one.tolerance else (one.error or 0.0))
    about = {"dtype": worst.dtype, "shape": worst.shapes, "error": worst.error, "tolerance": worst.tolerance}
    if worst.right:
        return Check("operators", worst.operator, "pass", **about)  # type: ignore[arg-type]
    said = worst.problem or f"is off by {worst.error:.1e}, allowed {worst.tolerance:.0e}"
    where = f"the plug-in's {worst.operator}"
    return Check("operators", worst.operator, "fail", said, where=where, **about)  # type: ignore[arg-type]


def _row(name: str, count: int, device: torch.device, said: set[str], found: list[Compared]) -> dict[str, Any]:
    errors = [one.error for one in found]
    return {"operator": name, "calls": count, "ran": where_it_ran(name, device, said)} | (
        {"error": max(errors)} if errors else {}
    )


def where_it_ran(name: str, device: torch.device, said: set[str]) -> str:
    """By what PyTorch's dispatcher has registered, and by warnings of a fall-back.

    Args:
        name: of an operator, with its overload
        said: operators, with or without their overload, whose fall-back was told in a warning
    """
    base = name.split(".")[0]
    if name in said or base in said:
        return FELL_BACK
    key = torch._C._dispatch_key_for_device(device.type)
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    out = f"{base}.out"  # a structured operator is only a shell around this overload
    if has(name, key) or (has(name, "CompositeExplicitAutogradNonFunctional") and _known(out) and has(out, key)):
        return NATIVE
    if any(has(name, composite) for composite in _COMPOSITE):
        return COMPOSED
    parsed = torch._C._parse_dispatch_key(key)
    return FELL_BACK if parsed is not None and torch._C._dispatch_has_backend_fallback(parsed) else PLUGIN


def _known(name: str) -> bool:
    return bool(torch._C._dispatch_has_kernel(name))
