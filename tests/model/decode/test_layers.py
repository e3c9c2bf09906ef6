"""Layers that decode: the native call against the network's own modules, and these against a full forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decoding import MAX_STEP, sequence_batches
from exactness import implementations, seeds
from gossamer import ops
from gossamer.device import hidden_dtype
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.model.decode.decoder import Decoder
from gossamer.model.decode.pool import StatePool
from gossamer.ops.sequences import Sequences
from model_configs import configs


def close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    if expected.numel():
        error = float((actual.double() - expected.double()).abs().max())
        assert error <= 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("implementation", implementations("decode_layers", but="reference"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=40)
@given(configs(), st.booleans(), st.data(), st.booleans(), seeds)
def test_decode_layers(
    implementation: str, dtype: torch.dtype, config: ModelConfig, speculative: bool, data: Any, biased: bool, seed: int
) -> None:
    """Networks of every kind, from states that hold anything: outputs, and what the states are afterwards.

    The reference has the same weights in float64.
    """
    sequences = data.draw(sequence_batches() if speculative else sequence_batches(min_length=1, max_length=9))
    torch.manual_seed(seed)
    model = CausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "norm" in name or "A_log" in name else parameter.shape[-1] ** -0.5)
    if biased:
        for block in model.model.layers:
            if hasattr(block.mlp, "gate"):
                block.mlp.gate.e_score_correction_bias = torch.randn(config.num_experts)
    model, found = model.to(dtype), []
    wide = copy.deepcopy(model).double()
    for name, network in (("reference", wide), (implementation, model)):
        dtype_of_states = hidden_dtype(torch.device("cpu"), network.lm_head.weight.dtype)
        pool = StatePool(config, 6, 20, sequences.page_size, MAX_STEP, torch.device("cpu"), dtype_of_states)
        generator = torch.Generator().manual_seed(seed)
        states = [x for state in pool.delta_states.values() for x in state] + [
            x for kv in pool.kv_pages.values() for x in kv
        ]
        for x in states:
            x.copy_(torch.randn(x.shape, generator=generator) * 0.3)
        for state in pool.delta_states.values():
            state.gates.abs_().neg_()
        decoder = Decoder(network, pool)
        assert network is wide or decoder._trunk.is_readable_by_kernels
        ids = torch.randint(config.vocab_size, (sum(sequences.lengths),), generator=generator)
        with ops.forced(decode_layers=name), torch.inference_mode():
            hidden = [decoder.forward(ids, sequences, speculative)]
            if network.mtp is not None:
                assert decoder._head is not None
                hidden.append(decoder._head.forward(ids, hidden[0], sequences))
        places = sequences.new_kv_indices
        kept = [x.flatten(0, 1)[places] for kv in pool.kv_pages.values() for x in kv]
        found.append([*hidden, *kept, *(state.recurrent for state in pool.delta_states.values())])
        before = config.linear_conv_kernel_dim - 1
        window = before + (min(sequences.lengths) if speculative else 0)  # what a later step may read
        found[-1] += [state.conv[list(sequences.slots), :window] for state in pool.delta_states.values()]
    for expected, actual in zip(*found, strict=True):
        close(actual, expected)


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
        pool = StatePool(config, 8, 30, 4, MAX_STEP, torch.device("cpu"), torch.float32)
        decoder, made = Decoder(model, pool), []
        for place in range(10):
            tables = tuple((3 * n, 3 * n + 1, 3 * n + 2) for n in range(6))
            sequences = Sequences(tuple(range(6)), (min(place, 1),) * 6, (place,) * 6, (1,) * 6, tables, 4)
            made.append(decoder.forward(torch.arange(place, place + 6), sequences, speculative=True))
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
    for others, speculative in product((0, 1, 2, 6), (True, False)):
        pool = StatePool(config, 8, 30, 4, MAX_STEP, torch.device("cpu"), torch.float32)
        decoder, made = Decoder(model, pool), []
        for place in range(9):
            count = 1 + others
            sequences = Sequences(
                tuple(range(count)), (min(place, 1) if speculative else 0,) * count, (place,) * count, (1,) * count,
                tuple((3 * n, 3 * n + 1, 3 * n + 2) for n in range(count)), 4,
            )  # fmt: skip
            made.append(decoder.forward(torch.arange(place, place + count), sequences, speculative)[0])
        results.append(torch.stack(made))
    assert all(torch.equal(result, results[0]) for result in results)
