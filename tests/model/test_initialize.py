"""Initial weights are those of the table in model/initialize.py."""

from __future__ import annotations

import math

import pytest
import torch
from parity_cases import TINY

from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig

CHANGES = {"num_nextn_predict_layers": 1, "hidden_size": 64, "attention_bias": True, "initializer_range": 0.05}
CONFIG = ModelConfig(**TINY | CHANGES)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: parameter.detach() for name, parameter in CausalLM(CONFIG).named_parameters()}


def expected_kind(name: str) -> str:
    if name.endswith((".bias", "norm.weight")) and "linear_attn.norm" not in name:
        return "zero"
    if "pre_fc_norm" in name or "layernorm" in name:
        return "zero"
    if "linear_attn.norm" in name or name.endswith("dt_bias"):
        return "one"
    return "A_log" if name.endswith("A_log") else "router" if name.endswith("mlp.gate.weight") else "normal"


def test_every_parameter_begins_as_the_table_says(weights: dict[str, torch.Tensor]) -> None:
    kinds = {expected_kind(name) for name in weights}
    assert kinds == {"zero", "one", "A_log", "router", "normal"}
    for name, weight in weights.items():
        match expected_kind(name):
            case "zero":
                assert not weight.any(), name
            case "one":
                assert (weight == 1).all(), name
            case "A_log":
                assert (weight.exp() >= 0.01).all() and (weight.exp() <= 16).all(), name
            case "router":
                torch.testing.assert_close(weight.norm(dim=1), torch.full((len(weight),), 0.05 * 64**0.5), msg=name)
            case "normal":
                error = 5 / math.sqrt(2 * weight.numel())  # five standard errors
                assert weight.std().item() == pytest.approx(0.05, rel=error), name
                assert abs(weight.mean().item()) < 0.05 * 5 / math.sqrt(weight.numel()), name


def test_the_seed_decides() -> None:
    def first(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return CausalLM(CONFIG).state_dict()

    one, same, other = first(1), first(1), first(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_random_weights_are_left_out_where_a_loader_will_set_them() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.device("meta"):
        CausalLM(CONFIG, random_weights=False)
    assert torch.equal(torch.get_rng_state(), before)
