"""RMS norm: every implementation against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exactness import Inputs, cast, check, every_dtype, implementations, inner_tolerance, normal, seeds
from gossamer import ops
from gossamer.errors import UserError

EPS = 1e-6


def inputs_of(shape: tuple[int, ...], seed: int = 0) -> Inputs:
    random = normal(seed)
    return {"x": random(*shape), "weight": random(shape[-1])}


shapes = st.tuples(st.integers(0, 3), st.integers(1, 5), st.sampled_from([1, 2, 7, 16, 33, 64, 130]))


@pytest.mark.parametrize("implementation", implementations("rms_norm"))
@every_dtype
@settings(max_examples=15)
@given(shape=shapes, seed=seeds)
@example(shape=(2, 3, 256), seed=0)
def test_rms_norm(implementation: str, dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> None:
    check("rms_norm", implementation, cast(inputs_of(shape, seed), dtype, "weight"), inner_tolerance(dtype), eps=EPS)


@pytest.mark.parametrize("implementation", implementations("rms_norm"))
def test_a_row_of_zeros_has_finite_gradients(implementation: str) -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    with ops.forced(rms_norm=implementation):
        ops.rms_norm(x, torch.ones(8), EPS).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="rms_norm"):
        ops.rms_norm(torch.ones(2, 3), torch.ones(2), EPS)
