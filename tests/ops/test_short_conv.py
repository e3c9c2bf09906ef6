"""The short convolution: every implementation against the float64 reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from exactness import (
    INNER_ROUNDING,
    TOLERANCE,
    Inputs,
    assert_same,
    batches,
    cast,
    check,
    cumulative,
    evaluate,
    every_dtype,
    exact_dtypes,
    implementations,
    inner_tolerance,
    lengths,
    normal,
    seeds,
    spans,
)
from gossamer import ops
from gossamer.errors import UserError

every_implementation = pytest.mark.parametrize("implementation", implementations("short_conv"))


def inputs_of(
    batch: int,
    length: int,
    channels: int = 5,
    kernel_size: int = 4,
    documents: int | None = None,
    cu_seqlens: Tensor | None = None,
    seed: int = 0,
) -> Inputs:
    """Random inputs; `documents` is how many initial states there are, None for no initial state."""
    random = normal(seed)
    return {
        "x": random(batch, length, channels),
        "weight": random(channels, kernel_size),
        "initial_state": None if documents is None else random(documents, kernel_size - 1, channels),
        "cu_seqlens": cu_seqlens,
    }


@st.composite
def problems(draw: st.DrawFn) -> Inputs:
    rows, length, documents, cu_seqlens = draw(batches())
    return inputs_of(
        rows,
        length,
        channels=draw(st.integers(1, 9)),
        kernel_size=draw(st.integers(1, 5)),
        documents=len(documents) if draw(st.booleans(), "initial state") else None,
        cu_seqlens=cu_seqlens,
        seed=draw(seeds),
    )


@every_implementation
@every_dtype
@settings(max_examples=15)
@given(problem=problems())
@example(problem=inputs_of(1, 0))
@example(problem=inputs_of(1, 0, documents=3, cu_seqlens=cumulative([0, 0, 0])))
@example(problem=inputs_of(1, 12, documents=5, cu_seqlens=cumulative([1, 0, 2, 3, 6])))
def test_float64_reference(implementation: str, dtype: torch.dtype, problem: Inputs) -> None:
    check("short_conv", implementation, cast(problem, dtype), inner_tolerance(dtype))


@every_implementation
def test_weights_wider_than_the_tokens(implementation: str) -> None:
    """Under autocast the master weights stay in float32, and so must their gradient."""
    check("short_conv", implementation, cast(inputs_of(2, 9), torch.bfloat16, "weight"), INNER_ROUNDING)


@every_implementation
@exact_dtypes
@settings(max_examples=10)
@given(length=st.integers(0, 9), kernel_size=st.integers(1, 5), seed=seeds)
def test_the_sum_written_out(implementation: str, dtype: torch.dtype, length: int, kernel_size: int, seed: int) -> None:
    inputs = cast(inputs_of(2, length, kernel_size=kernel_size, documents=2, seed=seed), dtype)
    with ops.forced(short_conv=implementation):
        y, state = ops.short_conv(**inputs)
    past = torch.cat([inputs["initial_state"], inputs["x"]], dim=1)
    for t in range(length):
        total = sum(inputs["weight"][:, j] * past[:, t + j] for j in range(kernel_size))
        torch.testing.assert_close(y[:, t], F.silu(total))
    assert torch.equal(state, past[:, length:])


def documents_apart(initial_state: Tensor | None, cu_seqlens: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Each document of a packed batch as a batch of its own."""
    parts = []
    for index, span in enumerate(spans(cu_seqlens)):
        state = None if initial_state is None else initial_state[index : index + 1]
        parts.append(ops.short_conv(x.flatten(0, 1)[span].unsqueeze(0), weight, state))
    return torch.cat([y for y, _ in parts], dim=1).view_as(x), torch.cat([state for _, state in parts])


@every_implementation
@exact_dtypes
@pytest.mark.parametrize("states", [None, 7], ids=["from zero", "from given states"])
def test_packed_documents_are_documents_apart(implementation: str, dtype: torch.dtype, states: int | None) -> None:
    inputs = cast(inputs_of(2, 9, documents=states, cu_seqlens=cumulative([3, 0, 8, 1, 1, 2, 3])), dtype)
    with ops.forced(short_conv=implementation):
        assert_same(evaluate(ops.short_conv, inputs), evaluate(documents_apart, inputs), TOLERANCE[dtype])


@every_implementation
@exact_dtypes
@settings(max_examples=10)
@given(before=lengths, after=lengths, kernel_size=st.integers(1, 5), seed=seeds)
def test_a_sequence_split_anywhere_is_the_whole(
    implementation: str, dtype: torch.dtype, before: int, after: int, kernel_size: int, seed: int
) -> None:
    inputs = cast(inputs_of(2, before + after, kernel_size=kernel_size, documents=2, seed=seed), dtype)

    def in_two(x: Tensor, weight: Tensor, initial_state: Tensor, cu_seqlens: None) -> tuple[Tensor, Tensor]:
        y, state = ops.short_conv(x[:, :before], weight, initial_state)
        rest, state = ops.short_conv(x[:, before:], weight, state)
        return torch.cat([y, rest], dim=1), state

    with ops.forced(short_conv=implementation):
        assert_same(evaluate(in_two, inputs), evaluate(ops.short_conv, inputs), TOLERANCE[dtype])


@every_implementation
def test_the_given_state_is_not_changed(implementation: str) -> None:
    for length in (0, 1, 2, 6):
        inputs = cast(inputs_of(2, length, documents=2), torch.float32)
        before = inputs["initial_state"].clone()
        with ops.forced(short_conv=implementation), torch.no_grad():
            ops.short_conv(**inputs)
        assert torch.equal(inputs["initial_state"], before)


@every_implementation
def test_gradcheck(implementation: str) -> None:
    inputs = cast(inputs_of(1, 5, channels=2, documents=3), torch.float64)
    leaves = [inputs[name].requires_grad_() for name in ("x", "weight", "initial_state")]
    with ops.forced(short_conv=implementation):
        assert torch.autograd.gradcheck(lambda *x: ops.short_conv(*x, cumulative([1, 0, 4])), leaves)


@pytest.mark.parametrize(
    "wrong",
    [
        {"x": torch.zeros(1, 4, 6)},
        {"x": torch.zeros(4, 5)},
        {"weight": torch.zeros(5, 1, 4)},
        {"weight": torch.zeros(6, 4)},
        {"initial_state": torch.zeros(2, 3, 5)},
        {"initial_state": torch.zeros(1, 4, 5)},
    ],
    ids=lambda wrong: " ".join(f"{name} {list(value.shape)}" for name, value in wrong.items()),
)
def test_wrong_shapes_are_refused_by_name(wrong: Inputs) -> None:
    with pytest.raises(UserError, match="short_conv"):
        ops.short_conv(**inputs_of(1, 4, documents=1) | wrong)


def test_wrong_document_edges_are_refused() -> None:
    with pytest.raises(UserError, match="cu_seqlens"):
        ops.short_conv(**inputs_of(1, 4) | {"cu_seqlens": torch.tensor([0, 3])})
