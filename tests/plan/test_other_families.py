"""Every family's config.json, as transformers writes it today and has written it before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gossamer.errors import UserError
from gossamer.plan import network_from_json
from gossamer.plan.other_families import FAMILIES

SIZES = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 96}
ROUTED = EXPERTS | {"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1}
LATENT = ROUTED | {
    "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "num_key_value_heads": 4,
}  # fmt: skip
NEXT = EXPERTS | {
    "num_experts": 8, "shared_expert_intermediate_size": 96, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 32, "linear_value_head_dim": 32, "head_dim": 64,
}  # fmt: skip
NEXT_DENSE = {key: one for key, one in NEXT.items() if "expert" not in key and key not in EXPERTS}
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", {"sliding_window": 16}),
    "smollm3": ("SmolLM3Config", {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS | {"num_experts": 8, "head_dim": 32, "mlp_only_layers": [1]}),
    "dots1": ("Dots1Config", ROUTED | {"head_dim": 64}),
    "deepseek_v2": ("DeepseekV2Config", LATENT),
    "deepseek_v3": ("DeepseekV3Config", LATENT | {"n_group": 1, "topk_group": 1}),
    "qwen3_next": ("Qwen3NextConfig", NEXT),
    "qwen3_5_text": ("Qwen3_5TextConfig", NEXT_DENSE),
    "qwen3_5_moe_text": ("Qwen3_5MoeTextConfig", NEXT),
}


def written(family: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """The config.json that transformers saves."""
    name, own = CLASSES[family]
    getattr(transformers, name)(**SIZES | own | changes).save_pretrained(folder)
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def earlier(values: dict[str, Any]) -> dict[str, Any]:
    """The same as transformers wrote it before its fifth version."""
    values = dict(values)
    rope = values.pop("rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    values |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    values |= {"rope_scaling": None, "torch_dtype": values.pop("dtype", None) or "bfloat16", "use_cache": True}
    if "num_local_experts" in values:
        values["num_experts"] = values.pop("num_local_experts")
    if values["model_type"] not in ("olmo3", "qwen3_next"):
        values.pop("layer_types", None)
    return values


@pytest.mark.parametrize("family", CLASSES)
def test_what_transformers_writes_is_counted_as_its_model(family: str, tmp_path: Path) -> None:
    values = written(family, tmp_path)
    work = network_from_json(values, "net")
    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(tmp_path)
        model = transformers.AutoModelForCausalLM.from_config(config)
    drafts = sum(
        network_from_json(values | {"num_nextn_predict_layers": 0}, "net").parameters for _ in work.mtp_layers[:1]
    )
    assert (drafts or work.parameters) == pytest.approx(sum(one.numel() for one in model.parameters()), rel=0.01)
    assert len(work.layers) == 4 and work.hidden_size == 256


@pytest.mark.parametrize("family", CLASSES)
def test_the_keys_of_before_say_the_same(family: str, tmp_path: Path) -> None:
    values = written(family, tmp_path)
    assert network_from_json(earlier(values), "net") == network_from_json(values, "net")


def test_all_families_that_transformers_has_are_tried() -> None:
    assert set(FAMILIES) - CLASSES.keys() == {"bailing_moe", "pangu_ultra_moe"}


@pytest.mark.parametrize(
    ("outer", "inner"), [("qwen3_vl", "qwen3_vl_text"), ("qwen3_vl_moe", "qwen3_vl_moe_text"), ("mistral3", "mistral")]
)
def test_a_language_model_may_lie_inside(outer: str, inner: str, tmp_path: Path) -> None:
    family = inner.removesuffix("_text").replace("_vl", "")
    values = written(family, tmp_path)
    nested = {"model_type": outer, "text_config": values | {"model_type": inner}, "vision_config": {"hidden_size": 5}}
    assert network_from_json(nested, "net") == network_from_json(values, "net")


def test_windows_of_files_without_layer_types(tmp_path: Path) -> None:
    def windows(values: dict[str, Any]) -> list[int]:
        return [layer.mixer.window for layer in network_from_json(values, "net").layers]

    values = earlier(written("qwen2", tmp_path)) | {"sliding_window": 16, "max_window_layers": 3}
    assert windows(values | {"use_sliding_window": False}) == [0] * 4
    assert windows(values | {"use_sliding_window": True}) == [0, 0, 0, 16]
    assert windows(earlier(written("mistral", tmp_path, sliding_window=8))) == [8] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": 5}, "net: layer_types = 5: expected a list, each text"),
        ({"layer_types": ["full_attention"]}, "net: layer_types has 1 entries for num_hidden_layers = 4"),
        ({"mlp_only_layers": 5}, "net: mlp_only_layers = 5: expected a list, each a whole number"),
        ({"tie_word_embeddings": "no"}, "net: tie_word_embeddings = 'no': expected true or false"),
        ({"num_hidden_layers": 10**12}, "net: num_hidden_layers = 1000000000000: must be from 1 to 4,096"),
        ({"num_attention_heads": 0}, "net: num_attention_heads = 0: must be from 1 to 65,536"),
        ({"num_local_experts": 0}, "net: num_local_experts = 0: must be from 1 to 1,048,576"),
        ({"hidden_size": 1e300}, "net: hidden_size = 1e+300: expected a whole number"),
        ({"num_experts_per_tok": 9}, "net: num_experts_per_tok = 9 exceeds num_experts = 8"),
        ({"model_type": ["qwen3_moe"]}, "net: model_type ['qwen3_moe'] is not counted"),
        ({"decoder_sparse_step": 0}, "net: decoder_sparse_step = 0: must be from 1 to 1,048,576"),
    ],
)
def test_one_line_names_the_key(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        network_from_json(written("qwen3_moe", tmp_path) | change, "net")
    assert str(caught.value).startswith(message)
