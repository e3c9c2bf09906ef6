"""A linear layer whose weight is narrower than its input: against float64, and never widened as a whole."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from decoding import assert_close
from exactness import DEVICE, normal, seeds
from gossamer import ops
from gossamer.ops import matrix
from gossamer.ops.small_linear import MAX_VECTORS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(
    st.integers(1, 3), st.sampled_from([1, 2, MAX_VECTORS, MAX_VECTORS + 1]), st.integers(1, 40), st.integers(1, 30),
    st.booleans(), st.sampled_from([1, 400, 1 << 20]), seeds,
)  # fmt: skip
def test_linear(
    dtype: torch.dtype, batch: int, tokens: int, rows: int, width: int, biased: bool, block_bytes: int, seed: int
) -> None:
    random = normal(seed)
    x, weight, bias = (
        random(*size).to(DEVICE, torch.float32) for size in ((batch, tokens, width), (rows, width), (rows,))
    )
    weight, narrow_bias = weight.to(dtype), bias.to(dtype) if biased else None
    expected = F.linear(x.double(), weight.double(), None if narrow_bias is None else narrow_bias.double())
    with mock.patch.object(matrix, "BLOCK_BYTES", block_bytes), torch.no_grad():
        assert_close(ops.linear(x, weight, narrow_bias), expected, torch.float32)


def test_gradients_have_the_types_of_what_they_belong_to() -> None:
    random = normal(0)
    x, weight = random(5, 7).float().requires_grad_(), random(3, 7).bfloat16().requires_grad_()
    ops.linear(x, weight).sum().backward()
    assert x.grad is not None and weight.grad is not None
    assert x.grad.dtype == torch.float32 and weight.grad.dtype == torch.bfloat16
    assert_close(x.grad, weight.detach().float().sum(0).expand(5, 7), torch.float32)


def test_under_autocast_its_type_is_autocasts() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.linear(torch.randn(2, 4), torch.randn(3, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 4), seeds)
def test_a_low_rank_matrix_beside_a_frozen_weight(
    dtype: torch.dtype, batch: int, tokens: int, rows: int, width: int, rank: int, seed: int
) -> None:
    """Values, and the gradients of the input and of both factors, are those of the sum; the weight has none."""
    random = normal(seed)
    weight, bias = random(rows, width).to(dtype), random(rows).float()
    leaves = [random(*size).float() for size in ((batch, tokens, width), (rank, width), (rows, rank))]
    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    y = ops.linear(ours[0], weight.requires_grad_(), bias, (ours[1], ours[2]))
    expected = F.linear(exact[0], weight.detach().double() + exact[2] @ exact[1], bias.double())
    assert_close(y.detach(), expected.detach(), torch.float32)
    y.square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(ours, exact, strict=True):
        assert one.grad is not None and other.grad is not None
        assert_close(one.grad, other.grad, torch.float32)
    assert weight.grad is None


def test_a_frozen_weight_is_kept_for_the_backward_pass_in_its_own_type() -> None:
    kept = []

    def keep(saved: torch.Tensor) -> torch.Tensor:
        kept.append(saved)
        return saved

    x, weight = normal(0)(5, 7).float().requires_grad_(), normal(1)(3, 7).bfloat16()
    for low_rank in (None, (torch.zeros(2, 7), torch.zeros(3, 2))):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            y = ops.linear(x, weight, low_rank=low_rank)
        assert any(saved.data_ptr() == weight.data_ptr() for saved in kept)
        assert not any(saved.shape == weight.shape and saved.dtype == torch.float32 for saved in kept)
        x.grad = None
        y.sum().backward()
        assert x.grad is not None
        assert_close(x.grad, weight.float().sum(0).expand(5, 7), torch.float32)
