"""Where numbers stop being finite."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from engines import network, tokens
from gossamer.model.causal_lm import CausalLM
from gossamer.model.nonfinite import explain_nonfinite


@pytest.mark.parametrize(
    ("weight", "place"),
    [
        ("model.embed_tokens.weight", "the embedding"),
        ("model.layers.0.linear_attn.in_proj_qkvz.weight", "layer 0"),
        ("model.layers.1.linear_attn.A_log", "layer 1"),
        ("model.layers.2.mlp.experts.down_proj", "layer 2"),
        ("model.layers.2.mlp.gate.weight", "layer 2"),
        ("model.layers.3.self_attn.q_norm.weight", "layer 3"),
        ("model.norm.weight", "the last norm"),
        ("lm_head.weight", "the output head"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_layer_and_the_weights_are_named(weight: str, place: str, value: float) -> None:
    model = deepcopy(network())
    model.get_parameter(weight).data.fill_(value)
    numbers = model.get_parameter(weight).numel()
    told = explain_nonfinite(model, torch.tensor(tokens(9))).line
    assert told == (
        f"the model's logits are not finite at {place}: {numbers} of {numbers} numbers of {weight} are NaN or infinite"
    )


def test_an_overflow_is_told_from_weights_that_are_not_finite() -> None:
    model = deepcopy(network())
    for name in ("up_proj", "down_proj"):
        getattr(model.model.layers[1].mlp.shared_expert, name).weight.data *= 1e30
    told = explain_nonfinite(model, torch.tensor(tokens(9))).line
    assert told.startswith("the model's logits are not finite at layer 1: model.layers.1.mlp.shared_expert")
    assert told.endswith("overflows, though its weights are finite")


def test_a_sound_text_is_not_blamed() -> None:
    model: CausalLM = network()
    assert "do not show where" in explain_nonfinite(model, torch.tensor(tokens(9))).line
    assert not any(module._forward_hooks for module in model.modules())
