"""Gated RMS norm: every implementation against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exactness import DEVICE, Inputs, cast, check, every_dtype, implementations, inner_tolerance, normal, seeds
from gossamer import ops
from gossamer.errors import UserError

EPS = 1e-6


def inputs_of(shape: tuple[int, ...], seed: int = 0) -> Inputs:
    random = normal(seed)
    return {"x": random(*shape), "weight": random(shape[-1]), "gate": random(*shape)}


shapes = st.tuples(st.integers(0, 3), st.integers(1, 5), st.sampled_from([1, 2, 7, 16, 33, 64, 130]))


@pytest.mark.parametrize("implementation", implementations("gated_rms_norm"))
@every_dtype
@settings(max_examples=15)
@given(shape=shapes, seed=seeds)
@example(shape=(2, 3, 256), seed=0)
def test_gated_rms_norm(implementation: str, dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> None:
    inputs = cast(inputs_of(shape, seed), dtype, "weight")
    check("gated_rms_norm", implementation, inputs, inner_tolerance(dtype), eps=EPS)


@pytest.mark.parametrize("implementation", implementations("gated_rms_norm"))
def test_gated_rms_norm_of_parts_of_a_larger_tensor(implementation: str) -> None:
    """Inputs as a split projection gives them, not contiguous, and a gradient that was broadcast."""
    whole = normal(0)(4, 3, 24).float().to(DEVICE)
    weight = normal(1)(8).float().to(DEVICE)
    x, gate = whole[..., :8].requires_grad_(), whole[..., 16:].requires_grad_()
    with ops.forced(gated_rms_norm=implementation):
        y = ops.gated_rms_norm(x, gate, weight, EPS)
        got = torch.autograd.grad(y.sum(), (x, gate))
    with ops.forced(gated_rms_norm="reference"):
        want = torch.autograd.grad(ops.gated_rms_norm(x, gate, weight, EPS).sum(), (x, gate))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="gated_rms_norm"):
        ops.gated_rms_norm(torch.ones(2, 3), torch.ones(2, 2), torch.ones(3), EPS)
