"""Causal attention: every implementation against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from exactness import (
    TOLERANCE,
    Inputs,
    assert_same,
    batches,
    cast,
    check,
    check_threads,
    cumulative,
    evaluate,
    every_dtype,
    exact_dtypes,
    implementations,
    inner_tolerance,
    normal,
    seeds,
    spans,
)
from gossamer import ops
from gossamer.errors import UserError

every_implementation = pytest.mark.parametrize("implementation", implementations("attention"))


def inputs_of(
    batch: int,
    queries: int,
    earlier: int = 0,
    kv_heads: int = 2,
    ratio: int = 2,
    width: int = 5,
    cu_seqlens: Tensor | None = None,
    seed: int = 0,
) -> Inputs:
    """Random inputs; `earlier` is how many keys come before the first query's own."""
    random, keys = normal(seed), queries + earlier
    return {
        "q": random(batch, queries, kv_heads * ratio, width),
        "k": random(batch, keys, kv_heads, width),
        "v": random(batch, keys, kv_heads, width),
        "cu_seqlens": cu_seqlens,
    }


@st.composite
def problems(draw: st.DrawFn) -> Inputs:
    rows, length, _, cu_seqlens = draw(batches())
    return inputs_of(
        rows,
        length,
        earlier=draw(st.integers(0, 5)) if cu_seqlens is None else 0,
        kv_heads=draw(st.integers(1, 3)),
        ratio=draw(st.integers(1, 4)),
        width=draw(st.integers(1, 9)),
        cu_seqlens=cu_seqlens,
        seed=draw(seeds),
    )


@every_implementation
@every_dtype
@settings(max_examples=12)
@given(problem=problems())
@example(problem=inputs_of(1, 0))
@example(problem=inputs_of(2, 0, earlier=3))
@example(problem=inputs_of(1, 0, cu_seqlens=cumulative([0, 0, 0])))
@example(problem=inputs_of(2, 1, earlier=3))
@example(problem=inputs_of(1, 12, cu_seqlens=cumulative([1, 0, 2, 3, 1, 5, 0])))
@example(problem=inputs_of(2, 6, cu_seqlens=cumulative([4, 4, 0, 4])))
def test_float64_reference(implementation: str, dtype: torch.dtype, problem: Inputs) -> None:
    check("attention", implementation, cast(problem, dtype), inner_tolerance(dtype))


@every_implementation
@pytest.mark.parametrize("earlier", [0, 2])
def test_the_sum_written_out(implementation: str, earlier: int) -> None:
    inputs = cast(inputs_of(2, 4, earlier=earlier, ratio=3), torch.float64)
    q, k, v, _ = inputs.values()
    with ops.forced(attention=implementation):
        y = ops.attention(q, k, v)
    for b in range(2):
        for t in range(4):
            for head in range(6):
                seen = slice(0, earlier + t + 1)
                weights = (k[b, seen, head // 3] @ q[b, t, head] / 5**0.5).softmax(0)
                torch.testing.assert_close(y[b, t, head], weights @ v[b, seen, head // 3])


def documents_apart(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Each document of a packed batch as a batch of its own."""
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    parts = [ops.attention(*(x[span].unsqueeze(0) for x in flat)) for span in spans(cu_seqlens)]
    return torch.cat(parts, dim=1).view_as(q)


@every_implementation
@exact_dtypes
@pytest.mark.parametrize("lengths", [[3, 0, 65, 1, 1, 64, 2], [34, 34, 34, 34], [68, 68], [136]], ids=str)
def test_packed_documents_are_documents_apart(implementation: str, dtype: torch.dtype, lengths: list[int]) -> None:
    inputs = cast(inputs_of(2, 68, cu_seqlens=cumulative(lengths)), dtype)
    with ops.forced(attention=implementation):
        assert_same(evaluate(ops.attention, inputs), evaluate(documents_apart, inputs), TOLERANCE[dtype])


@every_implementation
@exact_dtypes
def test_a_sequence_split_anywhere_is_the_whole(implementation: str, dtype: torch.dtype) -> None:
    inputs = cast(inputs_of(2, 9), dtype)
    q, k, v, _ = inputs.values()
    with ops.forced(attention=implementation):
        whole = ops.attention(q, k, v)
        for cut in range(10):
            first = ops.attention(q[:, :cut], k[:, :cut], v[:, :cut])
            second = ops.attention(q[:, cut:], k, v)
            torch.testing.assert_close(torch.cat([first, second], dim=1), whole)


@every_implementation
def test_gradcheck(implementation: str) -> None:
    leaves = [x.requires_grad_() for x in cast(inputs_of(1, 5, width=2), torch.float64).values() if x is not None]
    with ops.forced(attention=implementation):
        assert torch.autograd.gradcheck(lambda *x: ops.attention(*x, cumulative([1, 4])), leaves)


@pytest.mark.parametrize(
    "wrong",
    [
        {"q": torch.zeros(1, 5, 4, 5)},
        {"q": torch.zeros(1, 4, 3, 5)},
        {"q": torch.zeros(1, 4, 4, 4)},
        {"q": torch.zeros(2, 4, 4, 5)},
        {"q": torch.zeros(4, 4, 5)},
        {"k": torch.zeros(1, 4, 1, 5)},
        {"v": torch.zeros(1, 3, 2, 5)},
        {"k": torch.zeros(1, 6, 2, 5), "v": torch.zeros(1, 6, 2, 5), "cu_seqlens": torch.tensor([0, 2, 4])},
    ],
    ids=lambda wrong: " ".join(f"{name} {list(value.shape)}" for name, value in wrong.items()),
)
def test_wrong_shapes_are_refused_by_name(wrong: Inputs) -> None:
    with pytest.raises(UserError, match="attention"):
        ops.attention(**cast(inputs_of(1, 4), torch.float32) | wrong)


def test_wrong_document_edges_are_refused() -> None:
    with pytest.raises(UserError, match="cu_seqlens"):
        ops.attention(**inputs_of(1, 4) | {"cu_seqlens": torch.tensor([0, 3])})


@pytest.mark.parametrize(
    "inputs",
    [inputs_of(1, 500, kv_heads=1), inputs_of(1, 430, cu_seqlens=cumulative([1, 0, 299, 130]))],
    ids=["one document", "a long one among short ones"],
)
def test_the_number_of_threads_changes_no_bit(inputs: Inputs) -> None:
    """More threads than heads compute the gradients of queries and keys separately, with the same sums."""
    check_threads("attention", cast(inputs, torch.float32))
