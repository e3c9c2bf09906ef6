"""The configuration: Hugging Face's keys and defaults, and refusals that name what is wrong."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from parity_cases import CASES, TINY
from transformers import AutoConfig

from gossamer.errors import UserError
from gossamer.model.config import ModelConfig
from gossamer.model.config_json import keys_not_for_text, promised_mtp_layers
from model_configs import configs


def theirs(model_type: str = "qwen3_next", **changes: Any) -> dict[str, Any]:
    """A config.json as transformers writes it."""
    config = AutoConfig.for_model(model_type, **changes)
    return json.loads(config.to_json_string(use_diff=False))


def test_defaults_are_hugging_faces() -> None:
    defaults = theirs()
    defaults |= defaults.pop("rope_parameters")
    defaults["mlp_only_layers"] = tuple(defaults["mlp_only_layers"])
    ours = {field.name: getattr(ModelConfig(), field.name) for field in fields(ModelConfig)}
    only_ours = ours.keys() - defaults.keys()
    assert only_ours == {"full_attention_interval", "num_nextn_predict_layers"}
    assert ModelConfig().mixers == tuple(defaults.pop("layer_types"))
    ours.pop("layer_types")
    assert {key: defaults[key] for key in ours.keys() - only_ours} == {
        key: ours[key] for key in ours.keys() - only_ours
    }


def test_a_file_of_transformers_is_read() -> None:
    assert ModelConfig.from_dict(theirs()) == ModelConfig()
    changes = {"hidden_size": 64, "num_experts": 16, "mlp_only_layers": [1], "rope_parameters": {"rope_theta": 5e6}}
    config = ModelConfig.from_dict(theirs(**changes))
    assert (config.hidden_size, config.num_experts, config.mlp_only_layers, config.rope_theta) == (64, 16, (1,), 5e6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_transformers_reads_ours(case: Any) -> None:
    values = case.config.to_dict()
    read = theirs(**values)
    for key in values.keys() & read.keys():
        assert read[key] == values[key], key
    assert tuple(read["layer_types"]) == case.config.mixers


@settings(max_examples=60)
@given(config=configs())
def test_to_dict_and_back_is_the_identity(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_layers_spelt_out_are_the_interval() -> None:
    config = ModelConfig(full_attention_interval=2)
    assert ModelConfig(full_attention_interval=2, layer_types=config.mixers) == config
    assert hash(config) == hash(ModelConfig(full_attention_interval=2, layer_types=list(config.mixers)))


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        ModelConfig().hidden_size = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_expert": 4}, "num_expert'; did you mean 'num_experts'"),
        ({"hiden_size": 4}, "hiden_size'; did you mean 'hidden_size'"),
        ({"zzz": 4}, "unknown model key 'zzz'$"),
        ({"model_type": "qwen3_moe"}, "model_type 'qwen3_moe'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"rope_parameters": "x"}, "rope_parameters = 'x': expected an object"),
        ({"model_type": [{}]}, "model_type"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_computed_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig.from_dict(ModelConfig(**TINY).to_dict() | values)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_attention_heads": 5}, ["num_attention_heads = 5", "num_key_value_heads = 2"]),
        ({"linear_num_value_heads": 3}, ["linear_num_value_heads = 3", "linear_num_key_heads = 2"]),
        ({"partial_rotary_factor": 1.5}, ["partial_rotary_factor = 1.5"]),
        ({"partial_rotary_factor": 0.05}, ["partial_rotary_factor = 0.05", "head_dim = 16"]),
        ({"head_dim": 12}, ["head_dim = 12", "3 rotating dimensions"]),
        ({"num_experts_per_tok": 9}, ["num_experts_per_tok = 9", "num_experts = 8"]),
        ({"num_nextn_predict_layers": 2}, ["num_nextn_predict_layers = 2"]),
        ({"mlp_only_layers": [4]}, ["mlp_only_layers", "layer 4", "0 to 3"]),
        ({"mlp_only_layers": [-1]}, ["mlp_only_layers", "layer -1"]),
        ({"layer_types": ["linear_attention"] * 3}, ["layer_types has 3", "num_hidden_layers = 4"]),
        ({"layer_types": ["linear"] * 4}, ["layer_types", "'linear'"]),
        ({"layer_types": 5}, ["layer_types = 5: expected a list, each text or null"]),
        ({"mlp_only_layers": 5}, ["mlp_only_layers = 5: expected a list, each a whole number"]),
        ({"mlp_only_layers": [1, 1]}, ["mlp_only_layers = [1, 1]: names a layer twice"]),
        ({"hidden_size": "64"}, ["hidden_size = '64': expected a whole number"]),
        ({"hidden_size": True}, ["hidden_size = True: expected a whole number"]),
        ({"rope_theta": float("nan")}, ["rope_theta = nan: expected a number"]),
        ({"rope_theta": 10**400}, ["rope_theta = 1000", "expected a number"]),
        ({"num_hidden_layers": 10**6}, ["num_hidden_layers = 1000000: must be from 1 to 4,096"]),
        ({"num_experts": 10**9}, ["num_experts = 1000000000: must be from 0 to 1,048,576"]),
        ({"vocab_size": 10**10}, ["vocab_size = 10000000000: must be from 1 to 16,777,216"]),
        *(({key: 0}, [f"{key} = 0"]) for key in ("vocab_size", "hidden_size", "num_hidden_layers", "head_dim")),
        *(
            ({key: 0}, [f"{key} = 0"])
            for key in ("full_attention_interval", "decoder_sparse_step", "num_experts_per_tok")
        ),
        *(({key: -1}, [f"{key} = -1"]) for key in ("num_experts", "linear_conv_kernel_dim", "rope_theta")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_sizes_that_do_not_fit_are_refused_by_name(changes: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        ModelConfig(**TINY | changes)
    assert all(words in str(refusal.value) for words in named), refusal.value


def test_which_layers_are_what() -> None:
    config = ModelConfig(**TINY, full_attention_interval=3, decoder_sparse_step=2, mlp_only_layers=(3,))
    assert [mixer.split("_")[0] for mixer in config.mixers] == ["linear", "linear", "full", "linear"]
    assert [config.is_sparse(layer) for layer in range(4)] == [False, True, False, False]
    assert not any(replace(config, num_experts=0).is_sparse(layer) for layer in range(4))
    assert config.rotary_dim == 4


# What a config.json says besides the network.


def test_nulls_ask_for_nothing() -> None:
    config = ModelConfig(**TINY)
    values = config.to_dict() | dict.fromkeys(("layer_types", "quantization_config", "anything", "rope_scaling"))
    values["rope_parameters"] = values["rope_parameters"] | {"mrope_section": None, "rope_type": None}
    assert ModelConfig.from_dict(values) == config
    assert ModelConfig.from_dict(ModelConfig().to_dict() | {"rope_theta": None}) == ModelConfig()


@pytest.mark.parametrize(("outside", "inside", "tied"), [(True, False, True), (False, True, False), (None, True, True)])
def test_the_embedding_is_tied_as_is_said_beside_text_config(outside: Any, inside: bool, tied: bool) -> None:
    values = {"model_type": "qwen3_5", "text_config": {"tie_word_embeddings": inside}, "tie_word_embeddings": outside}
    assert ModelConfig.from_dict(values).tie_word_embeddings == tied


def test_layers_of_multi_token_prediction_that_are_promised() -> None:
    assert promised_mtp_layers({}) == 0
    assert promised_mtp_layers({"mtp_num_hidden_layers": 3}) == 3
    assert promised_mtp_layers({"num_nextn_predict_layers": 1, "mtp_num_hidden_layers": 3}) == 1
    with pytest.raises(UserError, match="mtp_num_hidden_layers = -1"):
        promised_mtp_layers({"mtp_num_hidden_layers": -1})


def test_keys_that_cannot_matter_for_text() -> None:
    rope = {"mrope_section": [11, 11, 10], "rope_theta": 1e7}
    assert keys_not_for_text({"rope_parameters": rope}) == ["mrope_section"]
    assert keys_not_for_text({"vision_config": {}, "text_config": {"rope_parameters": rope}}) == [
        "vision_config",
        "mrope_section",
    ]
    assert keys_not_for_text({"vision_config": None, "text_config": [], "rope_parameters": 3}) == []
