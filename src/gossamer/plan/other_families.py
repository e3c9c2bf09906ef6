"""The account of other architectures, read from their config.json: what FLOPs and bytes are counted from, and no more.

There is grouped-query attention (llama, qwen2, qwen3, olmo2, olmo3, smollm3), the same with experts (qwen3_moe,
bailing_moe, dots1), and DeepSeek's latent attention (deepseek_v2, deepseek_v3; arXiv 2405.04434), counted as it is
trained: keys and values are expanded for every head. Serving reads the latent vector alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from gossamer.cost.layer import FeedForward, Layer, Mixer
from gossamer.cost.network import Network, network_of
from gossamer.errors import UserError, did_you_mean
from gossamer.model.config import FULL, ModelConfig
from gossamer.model.config_json import MODEL_TYPES, language_model
from gossamer.typed import Range, convert, shown

_DENSE = frozenset("llama mistral qwen2 qwen3 olmo2 olmo3 smollm3".split())
_SPARSE = frozenset("qwen3_moe bailing_moe dots1".split())
_LATENT = frozenset("deepseek_v2 deepseek_v3 pangu_ultra_moe".split())
FAMILIES = sorted(_DENSE | _SPARSE | _LATENT | MODEL_TYPES.keys())

# What the language model of a checkpoint that also sees pictures is called.
_INNER = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
# Other names that transformers writes for a key today, or has written for it before.
_ALIASES = {
    "num_experts": ("n_routed_experts", "num_local_experts"),
    "n_shared_experts": ("num_shared_experts",),
    "num_nextn_predict_layers": ("num_mtp_layers",),
}
_TIED = frozenset({"smollm3"})  # where the key is missing
_Width = Annotated[int, Range(1, 1 << 22)]
_Count = Annotated[int, Range(0, 1 << 22)]
_KINDS: dict[str, Any] = {
    "num_hidden_layers": Annotated[int, Range(1, 1 << 12)],
    "num_attention_heads": Annotated[int, Range(1, 1 << 16)],
    "num_key_value_heads": Annotated[int, Range(1, 1 << 16)],
    "vocab_size": Annotated[int, Range(1, 1 << 24)],
    "num_experts": Annotated[int, Range(1, 1 << 20)],
    "decoder_sparse_step": Annotated[int, Range(1, 1 << 20)],
    "num_nextn_predict_layers": Annotated[int, Range(0, 64)],
    "sliding_window": Annotated[int, Range(0, 1 << 40)],
} | dict.fromkeys(("hidden_size", "head_dim", "num_experts_per_tok", "moe_intermediate_size"), _Width)


def network_from_json(values: Mapping[str, Any], name: str) -> Network:
    """Return the account of the network of a Hugging Face config.json.

    Args:
        values: the contents of the file
        name: where they come from, for messages

    Raises:
        UserError: the architecture is not counted here, or a key is missing or no number.
    """
    try:
        return _network(values, name)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _network(values: Mapping[str, Any], name: str) -> Network:
    values = _language_model(values)
    family = values.get("model_type")
    if isinstance(family, str) and family in MODEL_TYPES:
        return network_of(ModelConfig.from_dict(dict(values)), name)
    if not isinstance(family, str) or family not in FAMILIES:
        hint = did_you_mean(str(family), FAMILIES)
        raise UserError(f"model_type {shown(family)} is not counted{hint} (one of {', '.join(FAMILIES)})")
    keys = _Keys(values)
    hidden, depth = keys("hidden_size"), keys("num_hidden_layers")
    windows, sparse = _windows(keys, family, depth), _sparse(keys, family, depth)
    layers = [
        Layer(
            _latent(keys) if family in _LATENT else _grouped(keys, window, "qwen3" in family),
            _feed_forward(keys, has_experts),
        )
        for window, has_experts in zip(windows, sparse, strict=True)
    ]
    return Network(
        name=name,
        hidden_size=hidden,
        vocab_size=keys("vocab_size"),
        tied=_tied(keys, family),
        layers=tuple(layers),
        mtp_layers=(layers[-1],) * keys("num_nextn_predict_layers", 0),
        activation_config=_activation_config(keys, family, [layer.feed_forward for layer in layers]),
    )


def _language_model(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that describes the language model, with the name of its family."""
    values = language_model(values)
    inner = values.get("text_config")
    if isinstance(inner, dict) and values.get("model_type") not in FAMILIES:
        values = {"tie_word_embeddings": values.get("tie_word_embeddings")} | inner
    family = values.get("model_type")
    return {**values, "model_type": _INNER.get(family, family) if isinstance(family, str) else family}


class _Keys:
    """The values of a config.json, under their names and their other names."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __call__(self, key: str, default: int | None = None) -> int:
        """Return a whole number in the key's range; the default if it is missing or null."""
        found: int | None = self.any(key, _KINDS.get(key, _Count))
        if found is None:
            found = default
        if found is None:
            raise UserError(f"no key {key!r}, which model_type {self.values['model_type']!r} needs")
        return found

    def any(self, key: str, kind: Any) -> Any:
        """Return a value of a declared type under one of the key's names; None where all are missing or null."""
        names = (key, *_ALIASES.get(key, ()))
        name = next((name for name in names if self.values.get(name) is not None), None)
        return None if name is None else convert(self.values[name], kind, name)


def _tied(keys: _Keys, family: str) -> bool:
    found: bool | None = keys.any("tie_word_embeddings", bool)
    return family in _TIED if found is None else found


def _windows(keys: _Keys, family: str, depth: int) -> list[int]:
    """The largest number of keys that the tokens of each layer see; 0 means all."""
    kinds: tuple[str, ...] | None = keys.any("layer_types", tuple[str, ...])
    window, used = keys("sliding_window", 0), keys.any("use_sliding_window", bool)
    if kinds is not None:
        if len(kinds) != depth:
            raise UserError(f"layer_types has {len(kinds)} entries for num_hidden_layers = {depth}")
        return [window if kind == "sliding_attention" else 0 for kind in kinds]
    # Files from before layer_types.
    if family == "mistral":
        return [window] * depth
    first = keys("max_window_layers", 0) if used else depth
    return [window if index >= first else 0 for index in range(depth)]


def _sparse(keys: _Keys, family: str, depth: int) -> list[bool]:
    """Whether each layer has experts."""
    if family in _DENSE:
        return [False] * depth
    dense: tuple[int, ...] = keys.any("mlp_only_layers", tuple[int, ...]) or ()
    first, every, without = keys("first_k_dense_replace", 0), keys("decoder_sparse_step", 1), set(dense)
    return [index >= first and (index + 1) % every == 0 and index not in without for index in range(depth)]


def _grouped(keys: _Keys, window: int, normed: bool) -> Mixer:
    hidden, heads = keys("hidden_size"), keys("num_attention_heads")
    size = keys("head_dim", max(hidden // heads, 1))
    width, kv = heads * size, keys("num_key_value_heads", heads) * size
    products = ((hidden, width + 2 * kv), (width, hidden))
    return Mixer(
        kind=FULL,
        products=products,
        parameters=sum(inputs * outputs for inputs, outputs in products) + (2 * size if normed else 0),
        score_width=2 * width,
        window=window,
        # Norm and residual sum; norms and rotation of q and k; what attention itself reads and writes.
        moved=5 * hidden + (4 if normed else 2) * (width + kv) + 2 * width + 2 * kv,
        kv_cache_bytes=2 * 2 * kv,
    )


def _latent(keys: _Keys) -> Mixer:
    hidden, heads = keys("hidden_size"), keys("num_attention_heads")
    plain, rotary, value = keys("qk_nope_head_dim"), keys("qk_rope_head_dim"), keys("v_head_dim")
    rank, queries = keys("kv_lora_rank"), keys("q_lora_rank", 0)
    width = heads * (plain + rotary)
    down = ((hidden, queries), (queries, width)) if queries else ((hidden, width),)
    products = (*down, (hidden, rank + rotary), (rank, heads * (plain + value)), (heads * value, hidden))
    return Mixer(
        kind=FULL,
        products=products,
        parameters=sum(inputs * outputs for inputs, outputs in products) + rank + queries,
        score_width=heads * (plain + rotary + value),
        # Norm and residual sum, the latent norms, rotation, keys put together from both halves; attention itself.
        moved=5 * hidden + 2 * (rank + queries) + 4 * heads * rotary + 2 * width + 2 * (width + heads * value),
        kv_cache_bytes=2 * (rank + rotary),
    )


def _feed_forward(keys: _Keys, sparse: bool) -> FeedForward:
    if not sparse:
        return FeedForward(keys("hidden_size"), keys("intermediate_size"))
    width = keys("moe_intermediate_size")
    return FeedForward(
        hidden_size=keys("hidden_size"),
        width=keys("n_shared_experts", 0) * width,
        num_experts=keys("num_experts"),
        top_k=keys("num_experts_per_tok"),
        expert_width=width,
    )


def _activation_config(keys: _Keys, family: str, ffns: list[FeedForward]) -> ModelConfig:
    """A configuration of gossamer's with the same widths, for counting activations; its layers add those of a gate."""
    hidden, heads = keys("hidden_size"), keys("num_attention_heads")
    latent = keys("v_head_dim", 0)
    size = (keys("qk_nope_head_dim") + keys("qk_rope_head_dim") + latent) // 2 if latent else 0
    sparse = next((ffn for ffn in ffns if ffn.num_experts), FeedForward(hidden, 0))
    return ModelConfig(
        vocab_size=keys("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys("intermediate_size", 1) or 1,
        num_hidden_layers=len(ffns),
        num_attention_heads=heads,
        num_key_value_heads=heads if latent else keys("num_key_value_heads", heads),
        head_dim=size or keys("head_dim", max(hidden // heads, 1)),
        partial_rotary_factor=0.5,
        layer_types=(FULL,) * len(ffns),
        num_experts=sparse.num_experts,
        num_experts_per_tok=sparse.top_k or 1,
        moe_intermediate_size=sparse.expert_width or 1,
        shared_expert_intermediate_size=sparse.width or 1,
        mlp_only_layers=tuple(index for index, ffn in enumerate(ffns) if not ffn.num_experts)
        if sparse.num_experts
        else (),
        num_nextn_predict_layers=min(1, keys("num_nextn_predict_layers", 0)),
        tie_word_embeddings=_tied(keys, family),
    )
