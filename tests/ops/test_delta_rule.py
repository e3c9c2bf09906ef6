"""The gated delta rule: every implementation against the float64 reference, and that against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exactness import (
    DEVICE,
    TOLERANCE,
    Inputs,
    assert_same,
    batches,
    cast,
    check,
    cumulative,
    evaluate,
    implementations,
    lengths,
    normal,
    seeds,
    spans,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer import ops
from gossamer.errors import UserError
from gossamer.ops.packing import document_lengths

WIDE = "g beta initial_state"  # never narrower than float32
every_implementation = pytest.mark.parametrize("implementation", implementations("delta_rule"))
every_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype).removeprefix("torch."))


def inputs_of(
    batch: int,
    length: int,
    key_heads: int = 2,
    ratio: int = 2,
    key_dim: int = 5,
    value_dim: int = 3,
    documents: int | None = None,
    cu_seqlens: Tensor | None = None,
    decay: float = 0.1,
    seed: int = 0,
) -> Inputs:
    """Random inputs; `documents` is how many initial states there are, None for no initial state."""
    random, value_heads = normal(seed), key_heads * ratio
    return {
        "q": random(batch, length, key_heads, key_dim),
        "k": random(batch, length, key_heads, key_dim),
        "v": random(batch, length, value_heads, value_dim),
        "g": -decay * random(batch, length, value_heads).exp(),
        "beta": random(batch, length, value_heads).sigmoid(),
        "initial_state": None if documents is None else random(documents, value_heads, key_dim, value_dim),
        "cu_seqlens": cu_seqlens,
    }


@st.composite
def problems(draw: st.DrawFn) -> Inputs:
    rows, length, documents, cu_seqlens = draw(batches())
    return inputs_of(
        rows,
        length,
        key_heads=draw(st.integers(1, 3)),
        ratio=draw(st.integers(1, 4)),
        key_dim=draw(st.integers(1, 9)),
        value_dim=draw(st.integers(1, 9)),
        documents=len(documents) if draw(st.booleans(), "initial state") else None,
        cu_seqlens=cu_seqlens,
        decay=draw(st.sampled_from([0.0, 0.02, 0.3, 3.0])),
        seed=draw(seeds),
    )


@every_implementation
@every_dtype
@settings(max_examples=12)
@given(problem=problems())
@example(problem=inputs_of(1, 0))
@example(problem=inputs_of(1, 0, documents=3, cu_seqlens=cumulative([0, 0, 0])))
@example(problem=inputs_of(1, 70, documents=5, cu_seqlens=cumulative([1, 0, 66, 1, 2])))
def test_float64_reference(implementation: str, dtype: torch.dtype, problem: Inputs) -> None:
    check("delta_rule", implementation, cast(problem, dtype, WIDE), dtype)


def numpy_delta_rule(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence as the paper has it, one head and one token at a time."""
    q, k, v, g, beta = (inputs[name].numpy() for name in ("q", "k", "v", "g", "beta"))
    batch, length, key_heads, key_dim = q.shape
    value_heads, value_dim = v.shape[2:]
    cu_seqlens = inputs["cu_seqlens"]
    edges = np.arange(batch + 1) * length if cu_seqlens is None else cu_seqlens.numpy()
    states = np.zeros((len(edges) - 1, value_heads, key_dim, value_dim))
    if inputs["initial_state"] is not None:
        states = inputs["initial_state"].numpy().copy()
    o = np.zeros_like(v)
    for document, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        for token in range(start, end):
            b, t = divmod(token, length)
            for head in range(value_heads):
                key_head = head // (value_heads // key_heads)
                query, key = q[b, t, key_head], k[b, t, key_head]
                query = query / np.sqrt(np.sum(query**2) + 1e-6) / np.sqrt(key_dim)
                key = key / np.sqrt(np.sum(key**2) + 1e-6)
                S = np.exp(g[b, t, head]) * states[document, head]
                S = S + np.outer(key, beta[b, t, head] * (v[b, t, head] - S.T @ key))
                states[document, head] = S
                o[b, t, head] = S.T @ query
    return o, states


@every_implementation
@settings(max_examples=10)
@given(problem=problems())
def test_numpy_recurrence(implementation: str, problem: Inputs) -> None:
    o, states = numpy_delta_rule(problem)
    with ops.forced(delta_rule=implementation):
        actual = ops.delta_rule(**cast(problem, torch.float64))
    np.testing.assert_allclose(actual[0].cpu(), o, atol=1e-11)
    np.testing.assert_allclose(actual[1].cpu(), states, atol=1e-11)


def document(inputs: Inputs, span: slice, index: int) -> Inputs:
    """One document of a packed batch as a batch of its own."""
    alone = {name: inputs[name].flatten(0, 1)[span].unsqueeze(0) for name in ("q", "k", "v", "g", "beta")}
    state = inputs["initial_state"]
    return alone | {"initial_state": None if state is None else state[index : index + 1], "cu_seqlens": None}


@every_implementation
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("given_state", [False, True])
def test_packed_documents_are_documents_apart(implementation: str, dtype: torch.dtype, given_state: bool) -> None:
    cu_seqlens = cumulative([3, 0, 65, 1, 1, 64, 2])
    inputs = cast(inputs_of(2, 68, documents=7 if given_state else None, cu_seqlens=cu_seqlens), dtype)
    with ops.forced(delta_rule=implementation):
        packed = evaluate(ops.delta_rule, inputs)
        # The output gradients must be those of the packed batch, so each document is run with its share of them.
        leaves = {k: v.requires_grad_() if v is not None and v.is_floating_point() else v for k, v in inputs.items()}
        parts = [ops.delta_rule(**document(leaves, span, n)) for n, span in enumerate(spans(cu_seqlens))]
        o = torch.cat([part[0][0] for part in parts]).view_as(inputs["v"])
        apart = evaluate_outputs((o, torch.cat([part[1] for part in parts])), leaves)
    assert_same(packed, apart, TOLERANCE[dtype])


def evaluate_outputs(outputs: tuple[Tensor, ...], leaves: Inputs) -> dict[str, Tensor]:
    """What `evaluate` gives, for outputs that were computed otherwise."""
    return evaluate(lambda **_: outputs, {}) | _gradients(outputs, leaves)


@every_implementation
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@settings(max_examples=10)
@given(before=lengths, after=lengths, seed=seeds)
def test_a_sequence_split_anywhere_is_the_whole(
    implementation: str, dtype: torch.dtype, before: int, after: int, seed: int
) -> None:
    inputs = cast(inputs_of(2, before + after, documents=2, seed=seed), dtype)

    def in_two(initial_state: Tensor, cu_seqlens: None, **sequences: Tensor) -> tuple[Tensor, Tensor]:
        o, state = ops.delta_rule(**{k: x[:, :before] for k, x in sequences.items()}, initial_state=initial_state)
        rest, state = ops.delta_rule(**{k: x[:, before:] for k, x in sequences.items()}, initial_state=state)
        return torch.cat([o, rest], dim=1), state

    with ops.forced(delta_rule=implementation):
        assert_same(evaluate(in_two, inputs), evaluate(ops.delta_rule, inputs), TOLERANCE[dtype])
