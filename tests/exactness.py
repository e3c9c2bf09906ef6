"""How the tests of an operation compare one of its implementations with the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from gossamer import ops
from gossamer.certify.exactness import INNER_ROUNDING, TOLERANCE, evaluate, worst_difference
from gossamer.device import default_device
from gossamer.ops import native as kernels

DEVICE = default_device()
Inputs = dict[str, Tensor | None]


def _dtypes(*dtypes: torch.dtype) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))


every_dtype = _dtypes(*TOLERANCE)
exact_dtypes = _dtypes(torch.float64, torch.float32)


def inner_tolerance(dtype: torch.dtype) -> float:
    """Of an operation whose intermediate results are rounded to `dtype`."""
    return INNER_ROUNDING if dtype == torch.bfloat16 else TOLERANCE[dtype]


def implementations(operation: str, but: str = "") -> list[Any]:
    """Every registered implementation's name, as a parameter; skipped is only what cannot run on this device."""
    return [
        pytest.param(one.name, marks=pytest.mark.skipif(bool(reason := one.obstacle(DEVICE)), reason=reason))
        for one in ops.OPERATIONS[operation].implementations
        if one.name != but
    ]


def normal(seed: int) -> Callable[..., Tensor]:
    """A source of normally distributed float64 tensors: `normal(3)(2, 5)`."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def cast(inputs: Inputs, dtype: torch.dtype, wide: str = "") -> Inputs:
    """Floating-point inputs in `dtype`, those named in `wide` no narrower than float32, on the device under test."""
    result: Inputs = {}
    for name, value in inputs.items():
        if value is not None and value.is_floating_point():
            value = value.to(torch.promote_types(dtype, torch.float32) if name in wide.split() else dtype)
        # Where documents begin is read on the host.
        result[name] = value if value is None or name == "cu_seqlens" else value.to(DEVICE)
    return result


def double(inputs: Inputs) -> Inputs:
    """The same numbers in float64."""
    return {k: v.double() if v is not None and v.is_floating_point() else v for k, v in inputs.items()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Differences below `tolerance` times the largest magnitude, or below `tolerance` where all is smaller than one."""
    name, error, problem = worst_difference(actual, expected)
    assert not problem, f"{name} {problem}"
    assert error <= tolerance, f"{name}: off by {error:.2e}, allowed {tolerance:.0e}"


def check(operation: str, implementation: str, inputs: Inputs, tolerance: float, **constants: Any) -> None:
    """The implementation on these inputs against the float64 reference on the same numbers, gradients included."""
    function = partial(getattr(ops, operation), **constants)
    with ops.forced(**{operation: "reference"}):
        expected = evaluate(function, double(inputs))
    with ops.forced(**{operation: implementation}):
        actual = evaluate(function, inputs)
    assert_same(actual, expected, tolerance)


def check_threads(operation: str, inputs: Inputs, **constants: Any) -> None:
    """The native kernel gives the same bits, gradients included, with one thread, with some, and with many."""
    if reason := kernels.obstacle(DEVICE):
        pytest.skip(reason)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3, 16):
            torch.set_num_threads(count)
            with ops.forced(**{operation: "native"}):
                found.append(evaluate(partial(getattr(ops, operation), **constants), inputs))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(other[name], value), name


def cumulative(lengths: list[int]) -> Tensor:
    """cu_seqlens of documents of these lengths."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def spans(cu_seqlens: Tensor) -> Iterator[slice]:
    """Each document's tokens in the flattened batch."""
    for start, end in pairwise(cu_seqlens.tolist()):
        yield slice(start, end)


# Lengths around which a chunked implementation can go wrong, for chunks of 64 tokens.
lengths = st.one_of(st.integers(0, 5), st.sampled_from([31, 32, 33, 63, 64, 65, 127, 129]))


@st.composite
def batches(draw: st.DrawFn, most: int = 200) -> tuple[int, int, list[int], Tensor | None]:
    """(rows, tokens a row, documents' lengths, cu_seqlens or None where each row is a document)."""
    if draw(st.booleans(), "packed"):
        documents = draw(st.lists(lengths, min_size=1, max_size=6).filter(lambda x: sum(x) <= most))
        rows = draw(st.sampled_from([rows for rows in (1, 2, 3) if sum(documents) % rows == 0]))
        return rows, sum(documents) // rows, documents, cumulative(documents)
    rows, length = draw(st.integers(1, 3)), draw(lengths)
    return rows, length, [length] * rows, None


seeds = st.integers(0, 2**20)
