"""Matrices rounded to int8: by how much, which ones, and that decoding reads what the network then holds."""

from __future__ import annotations

import copy

import pytest
import torch

from engines import engine, greedy, ids, network, request, run, tokens
from gossamer.model.quantize import quantize_to_int8


def test_a_number_moves_by_half_a_step_of_its_row_at_most() -> None:
    before, model = network(), copy.deepcopy(network())
    rounded = quantize_to_int8(model)
    names = {name for name, parameter in model.named_parameters() if parameter in rounded}
    assert "lm_head.weight" in names and "model.layers.0.mlp.experts.gate_up_proj" in names
    old, changed = dict(before.named_parameters()), set()
    for name, parameter in model.named_parameters():
        moved = (parameter - old[name]).abs()
        if parameter in rounded:
            values, scales = rounded[parameter]
            assert (moved <= 0.501 * scales.unsqueeze(-1)).all()
            assert values.abs().amax(-1).eq(127).all()
            torch.testing.assert_close(values * scales.unsqueeze(-1), parameter.detach())
        if moved.any():
            changed.add(name)
    assert changed == names
    assert not [
        name for name in changed if "norm" in name or "gate.weight" in name or "embed" in name or "conv" in name
    ]


def test_a_row_of_zeros_stays() -> None:
    model = copy.deepcopy(network())
    model.lm_head.weight[3] = 0.0
    quantize_to_int8(model)
    assert model.lm_head.weight[3].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_engine_says_what_the_rounded_network_says(dtype: torch.dtype) -> None:
    model = copy.deepcopy(network(dtype=dtype))
    tried = engine(model, weights="int8", draft_length=1)
    prompt = tokens(20)
    assert ids(run(tried, [request("x", prompt, 16)])["x"]) == greedy(model, prompt, 16)
    assert model.lm_head.weight.dtype == torch.float32  # a narrower type does not hold what was rounded
