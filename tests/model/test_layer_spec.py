"""Descriptions of layers: what each says of a configuration, and that the native kernels know the same names."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given

from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import FULL, LINEAR, ModelConfig
from gossamer.model.decode import layers
from gossamer.model.layer_spec import LayerSpec, layer_specs
from gossamer.ops import native
from model_configs import configs


@given(configs())
def test_a_description_has_the_sizes_of_the_configuration_where_the_layer_has_the_part(config: ModelConfig) -> None:
    specs = layer_specs(config)
    assert [spec.layer_type for spec in specs] == [*config.mixers, *[FULL] * config.num_nextn_predict_layers]
    for index, spec in enumerate(specs):
        in_trunk = index < config.num_hidden_layers
        assert spec.name == (f"model.layers.{index}" if in_trunk else "mtp.layers.0")
        assert spec.is_sparse == (config.is_sparse(index) if in_trunk else config.num_experts > 0)
        for field in fields(LayerSpec)[2:]:
            value = getattr(spec, field.name)
            part = {"linear": spec.is_linear, "num_at": not spec.is_linear, "num_ke": not spec.is_linear}
            has = part.get(field.name[:6], True)
            if field.name in ("head_dim", "rotary_dim", "attention_bias"):
                has = not spec.is_linear
            if field.name in ("norm_topk_prob", "moe_intermediate_size") or "expert" in field.name:
                has = spec.is_sparse
            if field.name == "intermediate_size":
                has = not spec.is_sparse
            assert value == (getattr(config, field.name) if has else 0), field.name


def test_the_network_is_built_by_its_descriptions() -> None:
    config = ModelConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=12,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        layer_types=[LINEAR, FULL, FULL, LINEAR], mlp_only_layers=[1], intermediate_size=24,
    )  # fmt: skip
    model = CausalLM(config)
    assert model.mtp is not None
    assert tuple(block.spec for block in [*model.model.layers, *model.mtp.layers]) == layer_specs(config)
    assert model.model.layers[1].mlp.up_proj.out_features == 24


@pytest.mark.skipif(bool(native.obstacle(torch.device("cpu"))), reason="needs the native kernels")
def test_a_table_of_other_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layers._check_fields.__wrapped__()  # type: ignore[attr-defined]
    monkeypatch.setattr(layers, "_SIZES", ("hidden_size", "heads", *layers._SIZES[2:]))
    with pytest.raises(AssertionError, match=r"layer\.h"):
        layers._check_fields.__wrapped__()  # type: ignore[attr-defined]
