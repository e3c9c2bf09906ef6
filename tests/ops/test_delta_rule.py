"""The gated delta rule: every implementation against the float64 reference, and that against NumPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
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
    check_threads,
    cumulative,
    double,
    evaluate,
    every_dtype,
    exact_dtypes,
    implementations,
    lengths,
    normal,
    seeds,
    spans,
)
from gossamer import ops
from gossamer.errors import UserError

WIDE = "g beta initial_state"  # never narrower than float32
every_implementation = pytest.mark.parametrize("implementation", implementations("delta_rule"))


def tolerance(implementation: str, dtype: torch.dtype) -> float:
    """flash-linear-attention multiplies in bfloat16 and keeps the states and the inverse in it; the others do not."""
    return INNER_ROUNDING if implementation == "fla" and dtype == torch.bfloat16 else TOLERANCE[dtype]


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
    check("delta_rule", implementation, cast(problem, dtype, WIDE), tolerance(implementation, dtype))


def numpy_delta_rule(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Compute the recurrence as the paper writes it, one head and one token at a time."""
    q, k, v, g, beta = (inputs[name].numpy() for name in ("q", "k", "v", "g", "beta"))
    batch, length, key_heads, key_dim = q.shape
    value_heads, value_dim = v.shape[2:]
    cu_seqlens = inputs["cu_seqlens"]
    edges = np.arange(batch + 1) * length if cu_seqlens is None else cu_seqlens.numpy()
    states = np.zeros((len(edges) - 1, value_heads, key_dim, value_dim))
    if inputs["initial_state"] is not None:
        states = inputs["initial_state"].numpy().copy()
    o = np.zeros_like(v)
    for document, (start, end) in enumerate(pairwise(edges)):
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


def documents_apart(initial_state: Tensor | None, cu_seqlens: Tensor, **sequences: Tensor) -> tuple[Tensor, Tensor]:
    """Each document of a packed batch as a batch of its own."""
    parts = []
    for index, span in enumerate(spans(cu_seqlens)):
        alone = {name: x.flatten(0, 1)[span].unsqueeze(0) for name, x in sequences.items()}
        state = None if initial_state is None else initial_state[index : index + 1]
        parts.append(ops.delta_rule(**alone, initial_state=state))
    o = torch.cat([o for o, _ in parts], dim=1).view_as(sequences["v"])
    return o, torch.cat([state for _, state in parts])


@every_implementation
@exact_dtypes
@pytest.mark.parametrize("states", [None, 7], ids=["from zero", "from given states"])
def test_packed_documents_are_documents_apart(implementation: str, dtype: torch.dtype, states: int | None) -> None:
    cu_seqlens = cumulative([3, 0, 65, 1, 1, 64, 2])
    inputs = cast(inputs_of(2, 68, documents=states, cu_seqlens=cu_seqlens), dtype)
    with ops.forced(delta_rule=implementation):
        assert_same(evaluate(ops.delta_rule, inputs), evaluate(documents_apart, inputs), TOLERANCE[dtype])


@every_implementation
@exact_dtypes
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


@every_implementation
@pytest.mark.parametrize("packed", [False, True])
def test_one_token_without_gradients_is_the_same(implementation: str, packed: bool) -> None:
    """Decoding does this, and implementations may have a separate path for it."""
    cu_seqlens = cumulative([1, 1, 1]) if packed else None
    rows, length = (1, 3) if packed else (3, 1)
    inputs = cast(inputs_of(rows, length, ratio=3, documents=3, cu_seqlens=cu_seqlens), torch.float32)
    with ops.forced(delta_rule="reference"):
        expected = ops.delta_rule(**double(inputs))
    with ops.forced(delta_rule=implementation), torch.no_grad():
        actual = ops.delta_rule(**inputs)
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=1e-6)


@every_implementation
def test_the_given_state_is_not_changed(implementation: str) -> None:
    for length in (0, 1, 66):
        inputs = cast(inputs_of(2, length, documents=2), torch.float32)
        before = inputs["initial_state"].clone()
        with ops.forced(delta_rule=implementation), torch.no_grad():
            ops.delta_rule(**inputs)
        assert torch.equal(inputs["initial_state"], before)


@every_implementation
def test_gradcheck(implementation: str) -> None:
    inputs = cast(inputs_of(1, 5, key_heads=1, key_dim=2, value_dim=2, documents=2), torch.float64)
    leaves = [inputs[name].requires_grad_() for name in ("q", "k", "v", "g", "beta", "initial_state")]
    with ops.forced(delta_rule=implementation):
        assert torch.autograd.gradcheck(lambda *x: ops.delta_rule(*x, cumulative([2, 3])), leaves)


# Numerically hard cases. Tolerances are those of the easy cases unless a reason is given.


@every_implementation
@exact_dtypes
def test_repeated_keys_written_in_full(implementation: str, dtype: torch.dtype) -> None:
    """beta = 1 and g = 0 on one key, 256 times: powers of the triangular matrix reach 1e18, its inverse stays at 1."""
    inputs = inputs_of(1, 256, key_dim=8, decay=0.0, documents=1)
    inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"]).contiguous()
    inputs["beta"] = torch.ones_like(inputs["beta"])
    check("delta_rule", implementation, cast(inputs, dtype, WIDE), TOLERANCE[dtype])


@every_implementation
@exact_dtypes
@pytest.mark.parametrize("decay", [-50.0, -1e4])
def test_strong_decay_forgets_without_overflow(implementation: str, dtype: torch.dtype, decay: float) -> None:
    inputs = inputs_of(1, 130, documents=1)
    inputs["g"] = torch.full_like(inputs["g"], decay)
    check("delta_rule", implementation, cast(inputs, dtype, WIDE), TOLERANCE[dtype])


@every_implementation
@pytest.mark.parametrize("decay", [-50.0, -1e4])
def test_strong_decay_among_weak(implementation: str, decay: float) -> None:
    """One token in seven forgets everything; the decay of the others must survive next to it.

    A sum of gates inside a chunk has float32's spacing at 64/7 · decay: that much of each later decay may be lost.
    """
    inputs = inputs_of(1, 130, decay=0.05, documents=1)
    inputs["g"][:, ::7] = decay
    lost = 64 / 7 * abs(decay) * 2.0**-23
    check("delta_rule", implementation, cast(inputs, torch.float32), TOLERANCE[torch.float32] + lost)


@every_implementation
@every_dtype
def test_zero_keys_and_queries(implementation: str, dtype: torch.dtype) -> None:
    """The norm of a zero vector: ε keeps value and gradient finite (x · 1000, and its gradient · 1000)."""
    inputs = inputs_of(1, 70, documents=1)
    inputs["q"][:, ::3] = 0
    inputs["k"][:, ::2] = 0
    check("delta_rule", implementation, cast(inputs, dtype, WIDE), tolerance(implementation, dtype))


@every_implementation
@exact_dtypes
def test_nothing_written_and_nothing_forgotten(implementation: str, dtype: torch.dtype) -> None:
    inputs = cast(inputs_of(2, 66, documents=2, decay=0.0), dtype)
    inputs["beta"].zero_()
    with ops.forced(delta_rule=implementation):
        _, state = ops.delta_rule(**inputs)
    torch.testing.assert_close(state, inputs["initial_state"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"q": torch.zeros(1, 4, 2, 3)},
        {"k": torch.zeros(1, 3, 2, 5)},
        {"v": torch.zeros(1, 3, 3, 3)},
        {"v": torch.zeros(1, 4, 3)},
        {"g": torch.zeros(1, 4, 2)},
        {"beta": torch.zeros(1, 3, 4)},
        {"initial_state": torch.zeros(2, 4, 5, 3)},
        {"initial_state": torch.zeros(1, 4, 3, 5)},
    ],
    ids=lambda wrong: " ".join(f"{name} {list(value.shape)}" for name, value in wrong.items()),
)
def test_wrong_shapes_are_refused_by_name(wrong: Inputs) -> None:
    with pytest.raises(UserError, match="delta_rule"):
        ops.delta_rule(**inputs_of(1, 4, documents=1) | wrong)


@pytest.mark.parametrize("edges", [[0, 3], [0, 5], [1, 4], [0, 3, 2, 4], [4], []], ids=str)
def test_wrong_document_edges_are_refused(edges: list[int]) -> None:
    with pytest.raises(UserError, match="cu_seqlens"):
        ops.delta_rule(**inputs_of(1, 4) | {"cu_seqlens": torch.tensor(edges, dtype=torch.int32)})


@pytest.mark.parametrize(
    "inputs",
    [
        inputs_of(1, 64 * 9, key_heads=1, ratio=1, documents=1),
        inputs_of(1, 900, key_heads=1, ratio=3, key_dim=9, value_dim=72),
        inputs_of(1, 804, documents=4, cu_seqlens=cumulative([1, 0, 701, 102])),
    ],
    ids=["one document", "columns apart", "a long one among short ones"],
)
def test_the_number_of_threads_changes_no_bit(inputs: Inputs) -> None:
    """More threads than heads compute the chunks of a head in parallel, with the same sums in the same order."""
    check_threads("delta_rule", cast(inputs, torch.float32))
