"""Orthogonalization: every implementation against the float64 reference, and its properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exactness import DEVICE, assert_same, implementations, normal, seeds
from gossamer import ops
from gossamer.errors import UserError

every_implementation = pytest.mark.parametrize("implementation", implementations("orthogonalize"))
sizes = st.sampled_from([1, 2, 5, 16, 33, 64])


@every_implementation
@settings(max_examples=30)
@given(count=st.integers(0, 5), rows=sizes, columns=sizes, seed=seeds)
@example(count=2, rows=300, columns=40, seed=0)
@example(count=1, rows=260, columns=260, seed=0)  # more than the native kernel takes
def test_float64_reference(implementation: str, count: int, rows: int, columns: int, seed: int) -> None:
    matrices = normal(seed)(count, rows, columns).float().to(DEVICE)
    with ops.forced(orthogonalize="reference"):
        expected = ops.orthogonalize(matrices.double())
    with ops.forced(orthogonalize=implementation):
        found = ops.orthogonalize(matrices)
    assert found.dtype == torch.float32
    assert_same({"matrices": found}, {"matrices": expected}, 1e-3)  # rounds of a polynomial enlarge a rounding error


@every_implementation
@pytest.mark.parametrize("shape", [(8, 8), (3, 16, 40), (2, 40, 16), (4, 1, 8), (2, 3, 8, 24)])
def test_singular_values_come_near_one(implementation: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    with ops.forced(orthogonalize=implementation):
        values = torch.linalg.svdvals(ops.orthogonalize(torch.randn(shape, device=DEVICE)).double().cpu())
    assert values.min() > 0.6
    assert values.max() < 1.25


@every_implementation
def test_the_direction_is_the_polar_factors(implementation: str) -> None:
    torch.manual_seed(1)
    matrix = torch.randn(12, 30)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    with ops.forced(orthogonalize=implementation):
        made = ops.orthogonalize(matrix.to(DEVICE)).cpu()
    assert torch.nn.functional.cosine_similarity(made.flatten(), (left @ right).flatten(), dim=0) > 0.97


@every_implementation
def test_a_part_of_a_larger_tensor(implementation: str) -> None:
    """Muon passes every second block of rows, or of columns, of a fused projection."""
    whole = normal(2)(6, 24, 10).float().to(DEVICE)
    with ops.forced(orthogonalize=implementation):
        for part in (whole[:, 8:16], whole[..., 2:7], whole.mT):
            torch.testing.assert_close(ops.orthogonalize(part), ops.orthogonalize(part.contiguous()))


@every_implementation
def test_zeros_give_zeros(implementation: str) -> None:
    zeros = torch.zeros(3, 4, 5, device=DEVICE)
    with ops.forced(orthogonalize=implementation):
        assert torch.equal(ops.orthogonalize(zeros), zeros)


def test_a_vector_is_refused() -> None:
    with pytest.raises(UserError, match="is not a matrix"):
        ops.orthogonalize(torch.zeros(3))
