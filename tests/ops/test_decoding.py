"""The operations of decoding: implementations against the reference, which is held to the training operations."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decoding import MAX_STEP as MOST
from decoding import batches
from exactness import DEVICE, implementations, normal, seeds
from gossamer import ops
from gossamer.errors import UserError
from gossamer.ops.delta_step import DeltaMemory, DeltaWeights
from gossamer.ops.matrix import Int8
from gossamer.ops.sequences import Sequences

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape
    if expected.numel():
        error = float((actual.double().cpu() - expected.double().cpu()).abs().max())
        assert error <= TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))


@dtypes
@pytest.mark.parametrize("implementation", implementations("paged_attention", but="reference"))
@given(batches(), st.integers(1, 3), st.integers(1, 3), st.sampled_from([4, 12]), seeds)
def test_paged_attention(
    implementation: str, dtype: torch.dtype, sequences: Sequences, kv_heads: int, repeats: int, width: int, seed: int
) -> None:
    random = normal(seed)
    q = random(sum(sequences.lengths), kv_heads * repeats, width)
    k, v = (random(20, sequences.page_size, kv_heads, width) for _ in range(2))
    with ops.forced(paged_attention="reference"):
        expected = ops.paged_attention(q, k, v, sequences)
    with ops.forced(paged_attention=implementation):
        actual = ops.paged_attention(*(x.to(DEVICE, dtype) for x in (q, k, v)), sequences)
    close(actual, expected, dtype)


@pytest.mark.parametrize("implementation", implementations("paged_attention"))
@pytest.mark.parametrize(("past", "length"), [(0, 200), (130, 70), (63, 1), (200, 5)])
def test_paged_attention_is_the_attention_of_a_whole_text(implementation: str, past: int, length: int) -> None:
    q, k, v = (normal(n)(1, past + length, heads, 8).float() for n, heads in enumerate((4, 2, 2)))
    size, table = 16, torch.randperm(30, generator=torch.Generator().manual_seed(0))[: -(-(past + length) // 16)]
    pages = []
    for x in (k, v):
        pages.append(torch.zeros(30, size, 2, 8))
        pages[-1][table] = torch.nn.functional.pad(x[0], (0, 0, 0, 0, 0, -x.shape[1] % size)).view(-1, size, 2, 8)
    sequences = Sequences((0,), (0,), (past,), (length,), (tuple(table.tolist()),), size)
    expected = ops.attention(q, k, v)[0, past:]
    with ops.forced(paged_attention=implementation):
        actual = ops.paged_attention(q[0, past:].to(DEVICE), *(x.to(DEVICE) for x in pages), sequences)
    close(actual, expected, torch.float32)


def delta_inputs(
    sequences: Sequences, key_heads: int, repeats: int, dims: tuple[int, int], taps: int, seed: int
) -> Any:
    """Projections, weights and memory in float64; what is kept of the last step is such as a step would leave."""
    random, (dk, dv), Hv = normal(seed), dims, key_heads * repeats
    tokens, channels = sum(sequences.lengths), 2 * key_heads * dk + Hv * dv
    keys = random(6, MOST, key_heads, dk)
    memory = DeltaMemory(
        random(6, taps - 1 + MOST, channels),
        random(6, Hv, dk, dv),
        keys / keys.norm(dim=-1, keepdim=True),
        random(6, MOST, Hv, dv),
        -random(6, MOST, Hv).abs(),
    )
    weights = DeltaWeights(random(channels, taps), random(Hv), random(Hv), random(dv), 1e-6)
    return random(tokens, channels + Hv * dv), random(tokens, 2 * Hv), weights, memory


def moved(weights: DeltaWeights, memory: DeltaMemory, dtype: torch.dtype) -> tuple[DeltaWeights, DeltaMemory]:
    """Copies on the device under test."""
    tensors = (x.to(DEVICE, dtype) for x in weights[:-1])
    return DeltaWeights(*tensors, weights.eps), DeltaMemory(*(x.clone().to(DEVICE, dtype) for x in memory))


@dtypes
@pytest.mark.parametrize("implementation", implementations("delta_step", but="reference"))
@given(
    batches(),
    st.integers(1, 2),
    st.integers(1, 3),
    st.tuples(st.integers(1, 9), st.integers(1, 20)),
    st.integers(1, 5),
    seeds,
)
def test_delta_step(
    implementation: str, dtype: torch.dtype, sequences: Sequences, key_heads: int, repeats: int, dims: tuple[int, int],
    taps: int, seed: int,
) -> None:  # fmt: skip
    qkvz, ba, weights, memory = delta_inputs(sequences, key_heads, repeats, dims, taps, seed)
    after = DeltaMemory(*(x.clone() for x in memory))
    with ops.forced(delta_step="reference"):
        expected = ops.delta_step(qkvz, ba, weights, after, sequences)
    narrow_weights, narrow = moved(weights, memory, dtype)
    with ops.forced(delta_step=implementation):
        actual = ops.delta_step(qkvz.to(DEVICE, dtype), ba.to(DEVICE, dtype), narrow_weights, narrow, sequences)
    close(actual, expected, dtype)
    for slot, length in zip(sequences.slots, sequences.lengths, strict=True):
        close(narrow.recurrent[slot], after.recurrent[slot], dtype)
        close(narrow.conv[slot, : taps - 1 + length], after.conv[slot, : taps - 1 + length], dtype)
        for name in ("keys", "updates", "gates"):
            close(getattr(narrow, name)[slot, :length], getattr(after, name)[slot, :length], dtype)
    for slot in set(range(6)) - set(sequences.slots):
        assert all(torch.equal(x[slot], y[slot]) for x, y in zip(narrow, moved(weights, memory, dtype)[1], strict=True))


@pytest.mark.parametrize("implementation", implementations("delta_step"))
@pytest.mark.parametrize("kept", [[1] * 12, [4, 0, 2, 1, 3, 1, 4], [0, 0, 4, 4, 4]], ids=str)
def test_steps_of_which_some_tokens_are_forgotten_are_the_whole_operation(implementation: str, kept: list[int]) -> None:
    """Convolution and delta rule over what counts, and four tokens a step of which so many count."""
    total, taps, dims = sum(kept), 4, (6, 5)
    whole = Sequences((2,), (0,), (0,), (total,), ((),), 1)
    qkvz, ba, weights, memory = delta_inputs(whole, 2, 2, dims, taps, seed=0)
    weights, memory = moved(weights, DeltaMemory(*(torch.zeros_like(x) for x in memory)), torch.float32)
    qkvz, ba = qkvz.to(DEVICE, torch.float32), ba.to(DEVICE, torch.float32)
    q, k, v, z = qkvz.view(total, 2, -1).split([6, 6, 10, 10], dim=2)
    mixed, _ = ops.short_conv(torch.cat([x.flatten(1) for x in (q, k, v)], 1)[None], weights.conv)
    q, k, v = (x.unflatten(2, (heads, -1)) for x, heads in zip(mixed.split([12, 12, 20], 2), (2, 2, 4), strict=True))
    b, a = (x.reshape(1, total, 4) for x in ba.view(total, 2, 2, 2).unbind(2))
    g = -weights.A_log.exp() * torch.nn.functional.softplus(a + weights.dt_bias)
    o, state = ops.delta_rule(q, k, v, g, b.sigmoid())
    expected = ops.gated_rms_norm(o, z.reshape(o.shape), weights.norm, weights.eps)[0].flatten(1)

    noise, found, before = normal(9), [], 0
    starts = [0, *accumulate(kept)]
    with ops.forced(delta_step=implementation):
        for start, count in zip(starts, kept, strict=False):
            wrong = noise(MOST - count, qkvz.shape[1]).to(qkvz), noise(MOST - count, ba.shape[1]).to(ba)
            step = Sequences((2,), (before,), (start,), (MOST,), ((),), 1)
            rows = (torch.cat([x[start : start + count], y]) for x, y in zip((qkvz, ba), wrong, strict=True))
            found.append(ops.delta_step(*rows, weights, memory, step)[:count])
            before = count
        nothing = Sequences((2,), (before,), (total,), (0,), ((),), 1)
        assert ops.delta_step(qkvz[:0], ba[:0], weights, memory, nothing).shape == (0, 20)
    close(torch.cat(found), expected, torch.float32)
    close(memory.recurrent[2], state[0], torch.float32)


def test_more_tokens_than_there_is_room_for_are_refused() -> None:
    sequences = Sequences((0,), (0,), (0,), (MOST + 1,), ((),), 1)
    qkvz, ba, weights, memory = delta_inputs(sequences, 1, 1, (2, 2), 4, seed=0)
    with pytest.raises(UserError, match=f"room for {MOST}"):
        ops.delta_step(qkvz, ba, weights, memory, sequences)
    with pytest.raises(UserError, match="do not fit"):
        ops.delta_step(qkvz[:2], ba, weights, memory, sequences)


@pytest.mark.parametrize("implementation", implementations("few_rows", but="reference"))
@pytest.mark.parametrize("is_int8", [False, True])
@given(st.integers(0, 70), st.integers(1, 40), st.integers(1, 70), seeds)
def test_few_rows(implementation: str, is_int8: bool, tokens: int, rows: int, width: int, seed: int) -> None:
    random = normal(seed)
    x, weight = random(tokens, width).to(DEVICE, torch.float32), random(rows, width).to(DEVICE, torch.float32)
    matrix = (
        Int8((weight * 30).round().clamp(-127, 127).to(torch.int8), weight[:, 0].contiguous()) if is_int8 else weight
    )
    with ops.forced(few_rows="reference"):
        expected = ops.few_rows(x, matrix)
    with ops.forced(few_rows=implementation):
        close(ops.few_rows(x, matrix), expected, torch.float32)


@pytest.mark.parametrize("is_int8", [False, True])
@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 70), seeds)
def test_few_rows_of_one_vector_are_those_of_many(is_int8: bool, tokens: int, rows: int, width: int, seed: int) -> None:
    """Not a bit of a product depends on the others."""
    if ops.OPERATIONS["few_rows"].choose(torch.device("cpu")).name != "native":
        pytest.skip("of the native kernels alone")
    random = normal(seed)
    x, weight = random(tokens, width).float(), random(rows, width).float()
    values = (weight * 30).round().clamp(-127, 127).to(torch.int8)
    matrix = Int8(values, weight[:, 0].contiguous()) if is_int8 else weight
    alone = torch.cat([ops.few_rows(row[None], matrix) for row in x])
    assert torch.equal(ops.few_rows(x, matrix), alone)
