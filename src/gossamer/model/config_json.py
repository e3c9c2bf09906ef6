"""What a Hugging Face config.json of the family says, as the fields of a `ModelConfig`, and the way back.

Qwen3-Next (`qwen3_next`) and its successors Qwen3.5, 3.6 and 3.8 (`qwen3_5_text`, `qwen3_5_moe_text`) share one
network. Their files differ in which keys they have and in what a missing key means. A checkpoint that also sees
pictures (`qwen3_5`, `qwen3_5_moe`) describes the network in its `text_config`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from gossamer.errors import UserError, did_you_mean
from gossamer.typed import Range, convert, shown

MTP_KEY, MTP_KEY_QWEN3_5 = "num_nextn_predict_layers", "mtp_num_hidden_layers"
_WITH_VISION = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}


@dataclass(frozen=True)
class ModelType:
    """A model type of Hugging Face's: how its config.json differs from that of `qwen3_next`.

    Attributes:
        architecture: the class of transformers, vLLM and SGLang
        defaults: what a missing key means, where that differs
        fixed: fields that its config.json does not have, each with the value that the architecture computes with
        mtp_key: the key that says how many layers the multi-token-prediction head has
    """

    architecture: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    mtp_key: str = MTP_KEY_QWEN3_5


# Defaults of transformers' Qwen3_5TextConfig and Qwen3_5MoeTextConfig.
_EVERY_LAYER = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": ()}
MODEL_TYPES = {
    "qwen3_next": ModelType("Qwen3NextForCausalLM", {}, {}, MTP_KEY),
    "qwen3_5_text": ModelType(
        "Qwen3_5ForCausalLM",
        {
            "vocab_size": 248320,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 32,
            "num_key_value_heads": 4,
        },
        {"num_experts": 0, **_EVERY_LAYER},
    ),
    "qwen3_5_moe_text": ModelType(
        "Qwen3_5MoeForCausalLM",
        {"vocab_size": 248320, "num_hidden_layers": 40, "num_experts": 256, "num_experts_per_tok": 8},
        _EVERY_LAYER,
    ),
}
# Fields that have no meaning in a network without experts, or without dense layers.
_EXPERT_FIELDS = (
    "num_experts num_experts_per_tok moe_intermediate_size shared_expert_intermediate_size norm_topk_prob "
    "decoder_sparse_step mlp_only_layers router_aux_loss_coef"
).split()
_ABSENT = {"qwen3_5_text": _EXPERT_FIELDS, "qwen3_5_moe_text": ["intermediate_size", *_EVERY_LAYER]}

# Keys of a config.json that say nothing about the network itself: today's, and those that transformers once wrote out.
_IGNORED_KEYS = frozenset(
    "architectures model_type torch_dtype dtype transformers_version use_cache output_router_logits "
    "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id sliding_window max_window_layers "
    "output_attentions output_hidden_states return_dict chunk_size_feed_forward is_encoder_decoder is_decoder id2label "
    "label2id problem_type finetuning_task task_specific_params tokenizer_class prefix auto_map torchscript "
    "use_bfloat16 tf_legacy_loss pruned_heads add_cross_attention cross_attention_hidden_size tie_encoder_decoder "
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k "
    "top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens "
    "mamba_ssm_dtype "  # the state is at least in float32 here, whatever the file says
    "quantization_config compression_config quantization".split()  # how weights are stored, which gossamer/hub/ reads
)
# Keys of rope_parameters that give pictures and videos positions of their own.
_ROPE_OF_PICTURES = ("mrope_interleaved", "mrope_section")
# Keys beside text_config that are about pictures and videos.
_VISION_KEYS = frozenset(
    "text_config vision_config image_token_id video_token_id vision_start_token_id vision_end_token_id "
    "vision_token_id language_model_only".split()
)
# Keys whose only accepted values are these: any other would change the mathematics that is implemented.
_FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_dropout": (0, 0.0),
    "rope_scaling": ({"type": "default"}, {"rope_type": "default"}),
    "use_sliding_window": (False,),
    "attn_output_gate": (True,),
    "output_gate_type": ("swish", "silu"),
    "mtp_use_dedicated_embeddings": (False,),
}


def fields_from_json(values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the fields of a `ModelConfig` that the contents of a config.json stand for.

    Args:
        values: the contents of the file
        known: the names of the fields

    Raises:
        UserError: another architecture, an unknown key, or a value that gossamer does not compute.
    """
    values = language_model(values)
    name = values.get("model_type", "qwen3_next")
    if not isinstance(name, str) or name not in MODEL_TYPES:
        raise UserError(f"model_type {shown(name)} is another architecture; gossamer reads {', '.join(MODEL_TYPES)}")
    model_type = MODEL_TYPES[name]
    values.update(_rope(values.pop("rope_parameters", None)))
    if (head := values.pop(MTP_KEY_QWEN3_5, None)) is not None:
        values.setdefault(MTP_KEY, head)
    for key, allowed in _FIXED_KEYS.items():
        if key in values and (value := values.pop(key)) not in allowed:
            raise UserError(f"{key} = {shown(value)} is not supported; gossamer computes {key} = {allowed[0]!r}")
    for key in [key for key in values if key not in known]:
        if key not in _IGNORED_KEYS | _VISION_KEYS and not key.startswith("_"):
            raise UserError(f"unknown model key {shown(key)}{did_you_mean(key, known)}")
        del values[key]
    return {**model_type.defaults, **model_type.fixed, **values, "model_type": name}


def promised_mtp_layers(values: Mapping[str, Any]) -> int:
    """Return how many layers of multi-token prediction a language model's config.json names; 0 if it names none.

    Raises:
        UserError: it is no whole number, or less than 0.
    """
    key = MTP_KEY if MTP_KEY in values else MTP_KEY_QWEN3_5
    layers: int = convert(values.get(key, 0), Annotated[int, Range(0, 1 << 12)], key)
    return layers


def keys_not_for_text(values: Mapping[str, Any]) -> list[str]:
    """Return the keys of a config.json that are about pictures and videos, and cannot matter for text."""
    inner = values.get("text_config")
    rope = (inner if isinstance(inner, Mapping) else values).get("rope_parameters")
    found = ["vision_config"] if values.get("vision_config") is not None else []
    return found + [key for key in _ROPE_OF_PICTURES if isinstance(rope, Mapping) and rope.get(key) is not None]


def language_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config.json that describes the language model, its model type in its textual form.

    Of a checkpoint that also sees pictures this is `text_config`, except that what is said outside decides whether the
    embedding is tied, as in transformers. A key with null asks for nothing, and is left out.

    Raises:
        UserError: `text_config` is no object, or there is an unknown key beside it.
    """
    values = _asked_for(values)
    outer = values.get("model_type")
    if not isinstance(outer, str) or outer not in _WITH_VISION:
        return values
    inner = values.get("text_config")
    if not isinstance(inner, Mapping):
        raise UserError(f"text_config = {shown(inner)}: expected an object, since model_type is {outer!r}")
    for key in values.keys() - _VISION_KEYS - _IGNORED_KEYS - {"tie_word_embeddings"}:
        if not key.startswith("_"):
            raise UserError(f"unknown key {shown(key)} beside text_config")
    inner = {"model_type": _WITH_VISION[outer], **_asked_for(inner)}
    if "tie_word_embeddings" in values:
        inner["tie_word_embeddings"] = values["tie_word_embeddings"]
    return inner


def _asked_for(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _rope(rope: Any) -> dict[str, Any]:
    """Return the fields that `rope_parameters` stands for.

    Sections of the rotation for time, height and width (`mrope_section`) are equal to plain rotation for text, whose
    tokens have one position.
    """
    if not isinstance(rope, dict | None):
        raise UserError(f"rope_parameters = {shown(rope)}: expected an object")
    rope = _asked_for(rope or {})
    if (kind := rope.get("rope_type", rope.get("type"))) not in (None, "default", "mrope"):
        raise UserError(f"rope_type {shown(kind)} is not supported; gossamer computes 'default'")
    return {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}


def json_from_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of the config.json for the fields of a `ModelConfig`, `layer_types` spelled out."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    name = values["model_type"]
    rope = {key: values[key] for key in ("rope_theta", "partial_rotary_factor")}
    head = values.pop(MTP_KEY)
    for key in _ABSENT.get(name, ()):
        del values[key]
    values |= {
        "architectures": [MODEL_TYPES[name].architecture],
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", **rope},
        MODEL_TYPES[name].mtp_key: head,
    }
    if name != "qwen3_next":
        values |= {"attn_output_gate": True, "mamba_ssm_dtype": "float32", "mtp_use_dedicated_embeddings": False}
    return values
