"""Other architectures' config.json as workloads: what their FLOPs and bytes are counted from, and no more.

Grouped-query attention (llama, qwen2, qwen3, olmo2, olmo3, smollm3), the same with experts (qwen3_moe, bailing_moe,
dots1), and DeepSeek's latent attention (deepseek_v2, deepseek_v3; arXiv 2405.04434), counted as it is trained: keys and
values are expanded for every head. Serving reads the latent vector alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from gossamer.cost.planner.workload import FeedForward, Layer, Mixer, Workload, workload_of
from gossamer.errors import UserError, nearest
from gossamer.model.config import FULL, MODEL_TYPE, ModelConfig

_DENSE = frozenset("llama mistral qwen2 qwen3 olmo2 olmo3 smollm3".split())
_SPARSE = frozenset("qwen3_moe bailing_moe dots1".split())
_LATENT = frozenset("deepseek_v2 deepseek_v3 pangu_ultra_moe".split())
FAMILIES = sorted(_DENSE | _SPARSE | _LATENT | {MODEL_TYPE})


def workload_from(values: Mapping[str, Any], name: str) -> Workload:
    """The network of a Hugging Face config.json.

    Args:
        values: its contents
        name: where they come from, for messages

    Raises:
        UserError: an architecture that is not counted here, or a key that is missing or no number.
    """
    family = values.get("model_type")
    if family == MODEL_TYPE:
        return workload_of(ModelConfig.from_dict(dict(values)), name)
    if family not in FAMILIES:
        hint = nearest(str(family), FAMILIES)
        raise UserError(f"{name}: model_type {family!r} is not counted{hint} (one of {', '.join(FAMILIES)})")
    keys = _Keys(values, name)
    hidden, depth = keys("hidden_size"), keys("num_hidden_layers")
    layers: Counter[Layer] = Counter()
    windows = _windows(keys, depth)
    for index in range(depth):
        mixer = _latent(keys) if family in _LATENT else _grouped(keys, windows[index], "qwen3" in str(family))
        layers[
            Layer(mixer, _feed_forward(keys, family not in _DENSE and index >= keys("first_k_dense_replace", 0)))
        ] += 1
    last = next(reversed(layers))
    return Workload(
        name=name,
        hidden=hidden,
        vocab=keys("vocab_size"),
        tied=bool(values.get("tie_word_embeddings", False)),
        layers=tuple(layers.items()),
        drafts=(last,) * keys("num_nextn_predict_layers", 0),
        twin=_twin(keys, [layer.feed_forward for layer, count in layers.items() for _ in range(count)]),
    )


class _Keys:
    """Whole numbers of a config.json, by name."""

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self.values, self.name = values, name

    def __call__(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise UserError(f"{self.name}: no key {key!r}, which model_type {self.values['model_type']!r} needs")
        if type(value) is not int or value < 0:
            raise UserError(f"{self.name}: {key} = {value!r}: must be a whole number >= 0")
        return value

    def any(self, *names: str, default: int | None = None) -> int:
        """The first of several names that is there."""
        return self(next((key for key in names if self.values.get(key) is not None), names[0]), default)


def _windows(keys: _Keys, depth: int) -> list[int]:
    """Keys that each layer's tokens see at most; 0: all."""
    kinds, window = keys.values.get("layer_types"), keys("sliding_window", 0)
    if isinstance(kinds, list) and len(kinds) == depth:
        return [window if kind == "sliding_attention" else 0 for kind in kinds]
    return [0] * depth


def _grouped(keys: _Keys, window: int, normed: bool) -> Mixer:
    hidden, heads = keys("hidden_size"), keys("num_attention_heads")
    size = keys("head_dim", hidden // heads)
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
        cache=2 * kv,
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
        cache=rank + rotary,
    )


def _feed_forward(keys: _Keys, sparse: bool) -> FeedForward:
    if not sparse:
        return FeedForward(keys("intermediate_size"))
    width = keys("moe_intermediate_size")
    return FeedForward(
        width=keys.any("n_shared_experts", "num_shared_experts", default=0) * width,
        experts=keys.any("n_routed_experts", "num_experts"),
        chosen=keys("num_experts_per_tok"),
        expert_width=width,
    )


def _twin(keys: _Keys, ffns: list[FeedForward]) -> ModelConfig:
    """A configuration of gossamer's of the same widths: its layers keep a gate's share more than these do."""
    hidden, heads = keys("hidden_size"), keys("num_attention_heads")
    latent = keys("v_head_dim", 0)
    size = (keys("qk_nope_head_dim") + keys("qk_rope_head_dim") + latent) // 2 if latent else 0
    sparse = next((ffn for ffn in ffns if ffn.experts), FeedForward(0))
    return ModelConfig(
        vocab_size=keys("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys("intermediate_size", 1) or 1,
        num_hidden_layers=len(ffns),
        num_attention_heads=heads,
        num_key_value_heads=heads if latent else keys("num_key_value_heads", heads),
        head_dim=size or keys("head_dim", hidden // heads),
        partial_rotary_factor=0.5,
        layer_types=(FULL,) * len(ffns),
        num_experts=sparse.experts,
        num_experts_per_tok=sparse.chosen or 1,
        moe_intermediate_size=sparse.expert_width or 1,
        shared_expert_intermediate_size=sparse.width or 1,
        mlp_only_layers=tuple(index for index, ffn in enumerate(ffns) if not ffn.experts) if sparse.experts else (),
        num_nextn_predict_layers=min(1, keys("num_nextn_predict_layers", 0)),
        tie_word_embeddings=bool(keys.values.get("tie_word_embeddings", False)),
    )
