"""A linear layer for a few vectors: implementations against the float64 reference, in float32, bfloat16 and int8."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decoding import assert_close
from exactness import DEVICE, implementations, normal, seeds
from gossamer import ops
from gossamer.ops.matrix import Int8Matrix, Matrix

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])


def matrix_of(weight: Tensor, dtype: torch.dtype) -> Matrix:
    if dtype == torch.int8:
        return Int8Matrix((weight * 30).round().clamp(-127, 127).to(dtype), weight[:, 0].contiguous())
    return weight.to(dtype)


@pytest.mark.parametrize("implementation", implementations("small_linear"))
@DTYPES
@given(st.integers(0, 70), st.integers(1, 40), st.integers(1, 70), seeds)
def test_small_linear(implementation: str, dtype: torch.dtype, tokens: int, rows: int, width: int, seed: int) -> None:
    random = normal(seed)
    x, weight = random(tokens, width).to(DEVICE, torch.float32), random(rows, width).to(DEVICE, torch.float32)
    matrix = matrix_of(weight, dtype)
    with ops.forced(small_linear="reference"):
        expected = ops.small_linear(x.double(), matrix)
    with ops.forced(small_linear=implementation):
        assert_close(ops.small_linear(x, matrix), expected, torch.float32)


@DTYPES
@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 70), seeds)
def test_small_linear_of_one_vector_are_those_of_many(
    dtype: torch.dtype, tokens: int, rows: int, width: int, seed: int
) -> None:
    """A product does not depend on the others by a single bit."""
    if ops.OPERATIONS["small_linear"].choose(torch.device("cpu")).name != "native":
        pytest.skip("of the native kernels alone")
    random = normal(seed)
    x, weight = random(tokens, width).float(), random(rows, width).float()
    matrix = matrix_of(weight, dtype)
    one_by_one = torch.cat([ops.small_linear(row[None], matrix) for row in x])
    assert torch.equal(ops.small_linear(x, matrix), one_by_one)
