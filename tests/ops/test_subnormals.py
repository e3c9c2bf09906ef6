"""Subnormal numbers count as zero while a native kernel runs, because processors can be slow with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from exactness import implementations
from gossamer import ops

SMALL, SUBNORMAL = 1e-20, 1e-39  # the first is normal, its square is not

EXPERTS = 2 * torch.get_num_threads()  # with fewer, PyTorch computes them

# For each operation a call for some number of tokens whose results would be subnormal.
CASES: dict[str, Callable[[int], Tensor]] = {
    "rms_norm": lambda n: ops.rms_norm(torch.randn(1, n, 40), torch.full((40,), SUBNORMAL), 1e-6),
    "gated_rms_norm": lambda n: ops.gated_rms_norm(
        torch.randn(1, n, 2, 20), torch.randn(1, n, 2, 20), torch.full((20,), SUBNORMAL), 1e-6
    ),
    "short_conv": lambda n: ops.short_conv(torch.full((1, n, 40), SMALL), torch.full((40, 4), SMALL))[0],
    "attention": lambda n: ops.attention(
        torch.randn(1, n, 2, 16), torch.randn(1, n, 2, 16), torch.full((1, n, 2, 16), SUBNORMAL)
    ),
    "delta_rule": lambda n: ops.delta_rule(
        torch.randn(1, n, 2, 16), torch.randn(1, n, 2, 16), torch.full((1, n, 2, 16), SUBNORMAL),
        -torch.rand(1, n, 2), torch.rand(1, n, 2),
    )[0],
    "grouped_mlp": lambda n: ops.grouped_mlp(
        torch.randn(n, 32), torch.zeros(n, 1, dtype=torch.int64), torch.ones(n, 1), torch.randn(EXPERTS, 32, 32) / 6,
        torch.full((EXPERTS, 32, 16), SUBNORMAL),
    ),
    "small_linear": lambda n: ops.small_linear(torch.full((4, 64), SMALL), torch.full((n, 64), SMALL)),
}  # fmt: skip


def subnormal(x: Tensor) -> int:
    """Count subnormal numbers by their bits, because a comparison in flushing mode would take them for zero."""
    return int(((x.view(torch.int32) & 0x7FFFFFFF) - 1 < 0x7FFFFF).logical_and(x.view(torch.int32) << 1 != 0).sum())


@pytest.mark.parametrize("tokens", [3, 4000], ids=["one thread", "all threads"])
@pytest.mark.parametrize(
    ("operation", "implementation"),
    [pytest.param(name, *one.values, marks=one.marks) for name in CASES for one in implementations(name)
     if one.values == ("native",)],
)  # fmt: skip
def test_results_are_zero_and_other_arithmetic_is_as_it_was(operation: str, implementation: str, tokens: int) -> None:
    torch.manual_seed(0)
    with ops.forced(**{operation: "reference"}):
        assert subnormal(CASES[operation](70).float())  # the case is one
    with ops.forced(**{operation: implementation}):
        result = CASES[operation](tokens)
    assert result.count_nonzero() == 0 and result.numel()
    assert subnormal(torch.full((9,), SMALL) * SMALL) == 9


@pytest.mark.parametrize("implementation", implementations("rms_norm", but="reference"))
def test_gradients_of_native_kernels_are_zero(implementation: str) -> None:
    if implementation != "native":
        pytest.skip("of the native kernels alone")
    x = torch.randn(1, 70, 40, requires_grad=True)
    with ops.forced(rms_norm=implementation):
        ops.rms_norm(x, torch.ones(40), 1e-6).backward(torch.full_like(x, SUBNORMAL))
    assert x.grad is not None and x.grad.count_nonzero() == 0
