"""The comparison of an operation with its float64 reference: what is evaluated, and how far off it may be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Inputs = dict[str, Any]

# Largest difference over largest magnitude. Seen in thousands of examples on a CPU: 1e-13, 3e-5 (gradients through the
# norm of a vector that happens to be short; all else 1e-5) and 4e-3 (one rounding to bfloat16, at the end).
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-2}
# For operations that round to bfloat16 in between, too; 8.9e-2 seen, where large terms nearly cancel in a gradient. The
# mathematics is held by float32, and here what a wrong data type does.
INNER_ROUNDING = 0.15
# Its rounds of a polynomial enlarge a rounding error.
ORTHOGONALIZE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.3}
# These compute in float32 whatever comes in and round once, at the end; flash-linear-attention does not.
_ROUNDED_ONCE = {("delta_rule", name) for name in ("native", "triton", "chunked", "reference")}


def tolerance(operation: str, implementation: str, dtype: torch.dtype) -> float:
    """Return how far an implementation may be from the reference, as a share of its largest magnitude."""
    if operation == "orthogonalize":
        return ORTHOGONALIZE[dtype]
    if dtype == torch.bfloat16 and (operation, implementation) not in _ROUNDED_ONCE:
        return INNER_ROUNDING
    return TOLERANCE[dtype]


def cotangents(outputs: Iterable[Tensor]) -> list[Tensor]:
    """Make a gradient for each output, from the shape alone and exact in every type."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in outputs]


def evaluate(function: Callable[..., Any], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Compute outputs by number, and gradients of floating-point inputs by name, for fixed gradients of the outputs."""
    leaves = {
        name: value.detach().clone().requires_grad_() if _floating(value) else value for name, value in inputs.items()
    }
    outputs = function(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    result = {f"output {index}": out.detach() for index, out in enumerate(outputs)}
    sources = {name: leaf for name, leaf in leaves.items() if _floating(leaf)}
    # An output may be a constant (nothing comes of no tokens); then the gradients are zero, and compared as such.
    pairs = [(out, grad) for out, grad in zip(outputs, cotangents(outputs), strict=True) if out.requires_grad]
    if not pairs:
        return result | {f"gradient of {name}": torch.zeros_like(leaf) for name, leaf in sources.items()}
    roots, grads = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(roots, list(sources.values()), grads, materialize_grads=True)
    for (name, leaf), gradient in zip(sources.items(), gradients, strict=True):
        assert gradient.dtype == leaf.dtype, name
        result[f"gradient of {name}"] = gradient
    return result


class Difference(NamedTuple):
    """The distance of a result from its reference: the largest difference over the largest magnitude, at least one."""

    name: str
    error: float
    problem: str = ""  # of another kind: a wrong shape


def worst_difference(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Difference:
    """Find the result that is furthest from its reference; what is not finite is infinitely far."""
    assert actual.keys() == expected.keys()
    worst = Difference("", 0.0)
    for name, want in expected.items():
        got = actual[name]
        if got.shape != want.shape:
            return Difference(name, float("inf"), f"is of shape {list(got.shape)} instead of {list(want.shape)}")
        if (error := largest_error(got, want)) > worst.error or not worst.name:
            worst = Difference(name, error)
    return worst


def largest_error(got: Tensor, want: Tensor, scale: float | None = None) -> float:
    """Compute the largest difference, over `scale` or the largest magnitude of what is expected, one at least."""
    if not want.numel():
        return 0.0
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    if not bool(got.isfinite().all()):
        return float("inf")
    return float((got - want).abs().max()) / (scale or max(float(want.abs().max()), 1.0))


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
