"""The step of a linear-attention layer: implementations against the reference, and against the training operations."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decoding import MAX_STEP, assert_close, sequence_batches
from exactness import DEVICE, exact_dtypes, implementations, normal, seeds
from gossamer import ops
from gossamer.errors import UserError
from gossamer.ops.delta_step import DeltaState, DeltaWeights
from gossamer.ops.sequences import Sequences


def delta_inputs(
    sequences: Sequences, key_heads: int, repeats: int, dims: tuple[int, int], kernel_size: int, seed: int
) -> Any:
    """Projections, weights and state in float64; the last step in the state is such as a step would leave."""
    random, (dk, dv), Hv = normal(seed), dims, key_heads * repeats
    tokens, channels = sum(sequences.lengths), 2 * key_heads * dk + Hv * dv
    keys = random(6, MAX_STEP, key_heads, dk)
    state = DeltaState(
        random(6, kernel_size - 1 + MAX_STEP, channels),
        random(6, Hv, dk, dv),
        keys / keys.norm(dim=-1, keepdim=True),
        random(6, MAX_STEP, Hv, dv),
        -random(6, MAX_STEP, Hv).abs(),
    )
    weights = DeltaWeights(random(channels, kernel_size), random(Hv), random(Hv), random(dv), 1e-6)
    return random(tokens, channels + Hv * dv), random(tokens, 2 * Hv), weights, state


def moved(weights: DeltaWeights, state: DeltaState, dtype: torch.dtype) -> tuple[DeltaWeights, DeltaState]:
    """Copies on the device under test."""
    tensors = (x.to(DEVICE, dtype) for x in weights[:-1])
    return DeltaWeights(*tensors, weights.eps), DeltaState(*(x.clone().to(DEVICE, dtype) for x in state))


@exact_dtypes
@pytest.mark.parametrize("implementation", implementations("delta_step", but="reference"))
@given(
    sequence_batches(),
    st.integers(1, 2),
    st.integers(1, 3),
    st.tuples(st.integers(1, 9), st.integers(1, 20)),
    st.integers(1, 5),
    seeds,
)
def test_delta_step(
    implementation: str, dtype: torch.dtype, sequences: Sequences, key_heads: int, repeats: int, dims: tuple[int, int],
    kernel_size: int, seed: int,
) -> None:  # fmt: skip
    qkvz, ba, weights, state = delta_inputs(sequences, key_heads, repeats, dims, kernel_size, seed)
    after = DeltaState(*(x.clone() for x in state))
    with ops.forced(delta_step="reference"):
        expected = ops.delta_step(qkvz, ba, weights, after, sequences)
    narrow_weights, narrow = moved(weights, state, dtype)
    with ops.forced(delta_step=implementation):
        actual = ops.delta_step(qkvz.to(DEVICE, dtype), ba.to(DEVICE, dtype), narrow_weights, narrow, sequences)
    assert_close(actual, expected, dtype)
    for slot, length in zip(sequences.slots, sequences.lengths, strict=True):
        assert_close(narrow.recurrent[slot], after.recurrent[slot], dtype)
        assert_close(narrow.conv[slot, : kernel_size - 1 + length], after.conv[slot, : kernel_size - 1 + length], dtype)
        for name in ("keys", "updates", "gates"):
            assert_close(getattr(narrow, name)[slot, :length], getattr(after, name)[slot, :length], dtype)
    for slot in set(range(6)) - set(sequences.slots):
        assert all(torch.equal(x[slot], y[slot]) for x, y in zip(narrow, moved(weights, state, dtype)[1], strict=True))


@pytest.mark.parametrize("implementation", implementations("delta_step"))
@pytest.mark.parametrize("accepted", [[1] * 12, [4, 0, 2, 1, 3, 1, 4], [0, 0, 4, 4, 4]], ids=str)
def test_steps_with_rejected_tokens_equal_the_operations_on_the_accepted_ones(
    implementation: str, accepted: list[int]
) -> None:
    """Convolution and delta rule over the accepted tokens, and steps of four tokens of which so many are accepted."""
    total, kernel_size, dims = sum(accepted), 4, (6, 5)
    whole = Sequences((2,), (0,), (0,), (total,), ((),), 1)
    qkvz, ba, weights, state = delta_inputs(whole, 2, 2, dims, kernel_size, seed=0)
    weights, state = moved(weights, DeltaState(*(torch.zeros_like(x) for x in state)), torch.float32)
    qkvz, ba = qkvz.to(DEVICE, torch.float32), ba.to(DEVICE, torch.float32)
    q, k, v, z = qkvz.view(total, 2, -1).split([6, 6, 10, 10], dim=2)
    mixed, _ = ops.short_conv(torch.cat([x.flatten(1) for x in (q, k, v)], 1)[None], weights.conv)
    q, k, v = (x.unflatten(2, (heads, -1)) for x, heads in zip(mixed.split([12, 12, 20], 2), (2, 2, 4), strict=True))
    b, a = (x.reshape(1, total, 4) for x in ba.view(total, 2, 2, 2).unbind(2))
    g = -weights.A_log.exp() * torch.nn.functional.softplus(a + weights.dt_bias)
    o, final_state = ops.delta_rule(q, k, v, g, b.sigmoid())
    expected = ops.gated_rms_norm(o, z.reshape(o.shape), weights.norm, weights.eps)[0].flatten(1)

    noise, found, before = normal(9), [], 0
    starts = [0, *accumulate(accepted)]
    with ops.forced(delta_step=implementation):
        for start, count in zip(starts, accepted, strict=False):
            wrong = noise(MAX_STEP - count, qkvz.shape[1]).to(qkvz), noise(MAX_STEP - count, ba.shape[1]).to(ba)
            step = Sequences((2,), (before,), (start,), (MAX_STEP,), ((),), 1)
            rows = (torch.cat([x[start : start + count], y]) for x, y in zip((qkvz, ba), wrong, strict=True))
            found.append(ops.delta_step(*rows, weights, state, step)[:count])
            before = count
        nothing = Sequences((2,), (before,), (total,), (0,), ((),), 1)
        assert ops.delta_step(qkvz[:0], ba[:0], weights, state, nothing).shape == (0, 20)
    assert_close(torch.cat(found), expected, torch.float32)
    assert_close(state.recurrent[2], final_state[0], torch.float32)


def test_more_tokens_than_there_is_room_for_are_refused() -> None:
    sequences = Sequences((0,), (0,), (0,), (MAX_STEP + 1,), ((),), 1)
    qkvz, ba, weights, state = delta_inputs(sequences, 1, 1, (2, 2), 4, seed=0)
    with pytest.raises(UserError, match=f"room for {MAX_STEP}"):
        ops.delta_step(qkvz, ba, weights, state, sequences)
    with pytest.raises(UserError, match="do not fit"):
        ops.delta_step(qkvz[:2], ba, weights, state, sequences)
