"""The operations of decoding: implementations against the reference, which is held to the training operations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exactness import DEVICE, implementations, normal, seeds
from gossamer import ops
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.model.decoder import Decoder
from gossamer.model.pool import StatePool
from gossamer.ops.decode_layers import Int8
from gossamer.ops.delta_step import DeltaMemory, DeltaWeights
from gossamer.ops.sequences import Sequences
from model_configs import configs

MOST = 4  # tokens of a step
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


@st.composite
def batches(draw: st.DrawFn, page_size: int = 4, least: int = 0, most: int = MOST) -> Sequences:
    """Sequences with any pasts, in slots and pages that lie anywhere."""
    count = draw(st.integers(1, 4))
    slots = draw(st.permutations(range(6)))[:count]
    lengths = draw(st.lists(st.integers(least, most), min_size=count, max_size=count))
    past = draw(st.lists(st.integers(0, 11), min_size=count, max_size=count))
    kept = [draw(st.integers(0, min(MOST, before))) for before in past]
    pages, tables, first = draw(st.permutations(range(20))), [], 0
    for before, length in zip(past, lengths, strict=True):
        needed = -(-(before + length) // page_size)
        tables.append(tuple(pages[first : first + needed]))
        first += needed
    return Sequences(tuple(slots), tuple(kept), tuple(past), tuple(lengths), tuple(tables), page_size)


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


@pytest.mark.parametrize("implementation", implementations("decode_layers", but="reference"))
@settings(max_examples=40)
@given(configs(), st.booleans(), st.data(), st.booleans(), seeds)
def test_decode_layers(implementation: str, config: ModelConfig, stay: bool, data: Any, biased: bool, seed: int):
    """Networks of every kind, from states that hold anything: outputs, and what the states are afterwards."""
    sequences = data.draw(batches(least=1, most=9) if stay else batches())
    torch.manual_seed(seed)
    model = CausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "norm" in name or "A_log" in name else parameter.shape[-1] ** -0.5)
    if biased:
        for block in model.model.layers:
            if hasattr(block.mlp, "gate"):
                block.mlp.gate.e_score_correction_bias = torch.randn(config.num_experts)
    found = []
    for name in ("reference", implementation):
        pool = StatePool(config, 6, 20, sequences.page_size, MOST, torch.device("cpu"), torch.float32)
        generator = torch.Generator().manual_seed(seed)
        states = [x for memory in pool.memory.values() for x in memory] + [x for kv in pool.pages.values() for x in kv]
        for x in states:
            x.copy_(torch.randn(x.shape, generator=generator) * 0.3)
        for memory in pool.memory.values():
            memory.gates.abs_().neg_()
        decoder = Decoder(model, pool)
        ids = torch.randint(config.vocab_size, (sum(sequences.lengths),), generator=generator)
        with ops.forced(decode_layers=name), torch.inference_mode():
            hidden = [decoder.take(ids, sequences, steps=not stay)]
            if model.mtp is not None:
                hidden.append(decoder.draft(ids, hidden[0], sequences))
        places = sequences.places
        kept = [x.flatten(0, 1)[places] for kv in pool.pages.values() for x in kv]
        found.append([*hidden, *kept, *(memory.recurrent for memory in pool.memory.values())])
        before = config.linear_conv_kernel_dim - 1
        window = before + (0 if stay else min(sequences.lengths))  # what a later step may read
        found[-1] += [memory.conv[list(sequences.slots), :window] for memory in pool.memory.values()]
    for expected, actual in zip(*found, strict=True):
        close(actual, expected, torch.float32)


@pytest.fixture
def threads() -> Iterator[int]:
    """More threads than there are cores, so that they wait for one another in every way there is."""
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    yield 7
    torch.set_num_threads(before)


def test_what_a_token_gives_does_not_depend_on_how_many_threads_there_are(threads: int) -> None:
    """Not by a single bit."""
    if ops.OPERATIONS["decode_layers"].choose(torch.device("cpu")).name != "native":
        pytest.skip("of the native kernels alone")
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=50, hidden_size=160, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=24,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=20,
        num_experts=6, num_experts_per_tok=2, moe_intermediate_size=80, shared_expert_intermediate_size=64,
    )  # fmt: skip
    model, results = CausalLM(config).eval().requires_grad_(False), []
    for number in (threads, 1):
        torch.set_num_threads(number)
        pool = StatePool(config, 8, 30, 4, MOST, torch.device("cpu"), torch.float32)
        decoder, made = Decoder(model, pool), []
        for place in range(10):
            tables = tuple((3 * n, 3 * n + 1, 3 * n + 2) for n in range(6))
            sequences = Sequences(tuple(range(6)), (min(place, 1),) * 6, (place,) * 6, (1,) * 6, tables, 4)
            made.append(decoder.take(torch.arange(place, place + 6), sequences, steps=True))
        results.append(torch.cat(made))
    assert torch.equal(*results)


def test_what_a_token_gives_does_not_depend_on_what_is_decoded_beside_it() -> None:
    """Not by a single bit."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=50, hidden_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=24,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=12,
        num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20, shared_expert_intermediate_size=16,
    )  # fmt: skip
    model = CausalLM(config).eval().requires_grad_(False)
    if ops.OPERATIONS["decode_layers"].choose(torch.device("cpu")).name != "native":
        pytest.skip("of the native kernels alone")
    results = []
    for others, steps in product((0, 1, 2, 6), (True, False)):
        pool = StatePool(config, 8, 30, 4, MOST, torch.device("cpu"), torch.float32)
        decoder, made = Decoder(model, pool), []
        for place in range(9):
            count = 1 + others
            sequences = Sequences(
                tuple(range(count)), (min(place, 1) if steps else 0,) * count, (place,) * count, (1,) * count,
                tuple((3 * n, 3 * n + 1, 3 * n + 2) for n in range(count)), 4,
            )  # fmt: skip
            made.append(decoder.take(torch.arange(place, place + count), sequences, steps)[0])
        results.append(torch.stack(made))
    assert all(torch.equal(result, results[0]) for result in results)
