"""The configuration of a network: Hugging Face's keys, and its defaults for Qwen3-Next.

Departures from Hugging Face's class: it is frozen, refuses what it does not know, and knows its multi-token-prediction
head (`num_nextn_predict_layers`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Annotated, Any, Literal

from gossamer.errors import FieldError
from gossamer.model.config_json import MODEL_TYPES, fields_from_json, json_from_fields
from gossamer.typed import SET_BY_BUDGET, Range, Unit, check_fields, reject_unknown_fields, shown

LINEAR, FULL = "linear_attention", "full_attention"

# Ranges some orders of magnitude beyond every network that was trained or planned, and within what can be counted.
_Vocabulary = Annotated[int, Range(1, 1 << 24)]
_Width = Annotated[int, Range(1, 1 << 22)]
_Heads = Annotated[int, Range(1, 1 << 16)]
_Depth = Annotated[int, Range(1, 1 << 12)]
_Tokens = Annotated[int, Range(1, 1 << 40), Unit("tokens")]
_KernelSize = Annotated[int, Range(1, 1 << 10)]
_Every = Annotated[int, Range(1, 1 << 20)]
_Coefficient = Annotated[float, Range(0, 1_000_000)]


class LinearAttentionSizes:
    """The sizes that follow from the heads of linear attention, for a configuration and for one of its layers."""

    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int

    @property
    def linear_key_dim(self) -> int:
        """Width of all key heads together in linear attention."""
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def linear_value_dim(self) -> int:
        """Width of all value heads together in linear attention."""
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def linear_conv_dim(self) -> int:
        """Channels of the short convolution: [q | k | v]."""
        return 2 * self.linear_key_dim + self.linear_value_dim


@reject_unknown_fields
@dataclass(frozen=True)
class ModelConfig(LinearAttentionSizes):
    """A network of Qwen3-Next or of its successors.

    Attributes:
        model_type: the architecture under which Hugging Face knows it; it decides how a checkpoint is written
        vocab_size: number of token ids
        hidden_size: width of the residual stream
        intermediate_size: width of a dense feed-forward layer (see mlp_only_layers and decoder_sparse_step)
        num_hidden_layers: number of blocks
        num_attention_heads: query heads of a full-attention layer
        num_key_value_heads: key and value heads of a full-attention layer
        head_dim: width of a head in full attention
        max_position_embeddings: longest context that the model is meant for
        initializer_range: standard deviation of the initial weights
        rms_norm_eps: added to the mean square in every norm
        tie_word_embeddings: the output head and the embedding are one matrix
        rope_theta: base of the rotary frequencies
        partial_rotary_factor: share of a head's dimensions that rotate
        attention_bias: biases in the projections of full attention
        full_attention_interval: every n-th layer has full attention, the others linear attention
        layer_types: linear_attention or full_attention for each layer; overrides full_attention_interval
        linear_conv_kernel_dim: kernel size of the short convolution
        linear_key_head_dim: width of a key head in linear attention
        linear_value_head_dim: width of a value head in linear attention
        linear_num_key_heads: key heads in linear attention
        linear_num_value_heads: value heads in linear attention, a multiple of the key heads
        num_experts: routed experts of a layer; 0 makes a dense network
        num_experts_per_tok: experts that each token is sent to
        moe_intermediate_size: width of a routed expert
        shared_expert_intermediate_size: width of the expert that every token passes
        norm_topk_prob: normalize the probabilities of a token's experts so that they sum to 1
        decoder_sparse_step: every n-th layer has experts, the others are dense
        mlp_only_layers: indices of layers that are dense whatever decoder_sparse_step says
        router_aux_loss_coef: weight of the load-balancing loss
        num_nextn_predict_layers: 1 adds a multi-token-prediction head, 0 leaves it out
    """

    model_type: Literal["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"] = "qwen3_next"
    vocab_size: _Vocabulary = 151936
    hidden_size: Annotated[_Width, SET_BY_BUDGET] = 2048
    intermediate_size: Annotated[_Width, SET_BY_BUDGET] = 5632
    num_hidden_layers: Annotated[_Depth, SET_BY_BUDGET] = 48
    num_attention_heads: Annotated[_Heads, SET_BY_BUDGET] = 16
    num_key_value_heads: Annotated[_Heads, SET_BY_BUDGET] = 2
    head_dim: Annotated[_Width, SET_BY_BUDGET] = 256
    max_position_embeddings: _Tokens = 32768
    initializer_range: Annotated[float, Range(0, 1000)] = 0.02
    rms_norm_eps: Annotated[float, Range(1e-30, 1)] = 1e-6
    tie_word_embeddings: bool = False
    rope_theta: Annotated[float, Range(1, 1e12)] = 10000.0
    partial_rotary_factor: Annotated[float, Range(0, 1, excludes_minimum=True), SET_BY_BUDGET] = 0.25
    attention_bias: bool = False
    full_attention_interval: Annotated[_Every, SET_BY_BUDGET] = 4
    layer_types: Annotated[tuple[str, ...] | None, SET_BY_BUDGET] = None
    linear_conv_kernel_dim: _KernelSize = 4
    linear_key_head_dim: Annotated[_Width, SET_BY_BUDGET] = 128
    linear_value_head_dim: Annotated[_Width, SET_BY_BUDGET] = 128
    linear_num_key_heads: Annotated[_Heads, SET_BY_BUDGET] = 16
    linear_num_value_heads: Annotated[_Heads, SET_BY_BUDGET] = 32
    num_experts: Annotated[int, Range(0, 1 << 20), SET_BY_BUDGET] = 512
    num_experts_per_tok: Annotated[int, Range(1, 1 << 20), SET_BY_BUDGET] = 10
    moe_intermediate_size: Annotated[_Width, SET_BY_BUDGET] = 512
    shared_expert_intermediate_size: Annotated[_Width, SET_BY_BUDGET] = 512
    norm_topk_prob: bool = True
    decoder_sparse_step: Annotated[_Every, SET_BY_BUDGET] = 1
    mlp_only_layers: Annotated[tuple[int, ...], SET_BY_BUDGET] = ()
    router_aux_loss_coef: _Coefficient = 0.001
    num_nextn_predict_layers: Annotated[int, Range(0, 1)] = 1

    def __post_init__(self) -> None:
        if self.mlp_only_layers is None:  # as some files have it
            object.__setattr__(self, "mlp_only_layers", ())
        check_fields(self)
        self._check_dimensions()
        if self.layer_types == self._mixers_by_interval():  # a config.json spells them out; equal networks are equal
            object.__setattr__(self, "layer_types", None)

    def _check_dimensions(self) -> None:
        def require(condition: bool, name: str, problem: str) -> None:
            if not condition:
                raise FieldError(name, problem)

        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        key_heads, value_heads = self.linear_num_key_heads, self.linear_num_value_heads
        require(
            heads % kv_heads == 0,
            "num_attention_heads",
            f" = {heads} is not a multiple of num_key_value_heads = {kv_heads}",
        )
        require(
            value_heads % key_heads == 0,
            "linear_num_value_heads",
            f" = {value_heads} is not a multiple of linear_num_key_heads = {key_heads}",
        )
        require(
            self.rotary_dim >= 2 and self.rotary_dim % 2 == 0,
            "head_dim",
            f" = {self.head_dim} times partial_rotary_factor = {self.partial_rotary_factor} "
            f"gives {self.rotary_dim} rotating dimensions: must be even and at least 2",
        )
        require(
            self.num_experts == 0 or self.num_experts_per_tok <= self.num_experts,
            "num_experts_per_tok",
            f" = {self.num_experts_per_tok} exceeds num_experts = {self.num_experts}",
        )
        for key, value in MODEL_TYPES[self.model_type].fixed.items():
            problem = f" = {shown(getattr(self, key))}: must be {shown(value)} with model_type {self.model_type!r}"
            require(getattr(self, key) == value, key, problem)
        require(
            self.model_type != "qwen3_5_moe_text" or self.num_experts > 0,
            "num_experts",
            " = 0: a dense network has model_type 'qwen3_5_text'",
        )
        self._check_layers(require)

    def _check_layers(self, require: Callable[[bool, str, str], None]) -> None:
        dense, kinds, depth = self.mlp_only_layers, self.layer_types, self.num_hidden_layers
        require(len(set(dense)) == len(dense), "mlp_only_layers", f" = {shown(dense)}: names a layer twice")
        for index in dense:
            problem = f" names layer {shown(index)}, but the layers are 0 to {depth - 1}"
            require(0 <= index < depth, "mlp_only_layers", problem)
        if kinds is not None:
            require(len(kinds) == depth, "layer_types", f" has {len(kinds)} entries for num_hidden_layers = {depth}")
            for kind in kinds:
                require(kind in (LINEAR, FULL), "layer_types", f": {shown(kind)} is neither {LINEAR!r} nor {FULL!r}")

    # What follows from the fields.

    @cached_property
    def mixers(self) -> tuple[str, ...]:
        """`linear_attention` or `full_attention` for each layer."""
        return self._mixers_by_interval() if self.layer_types is None else self.layer_types

    def _mixers_by_interval(self) -> tuple[str, ...]:
        every = self.full_attention_interval
        return tuple(FULL if (i + 1) % every == 0 else LINEAR for i in range(self.num_hidden_layers))

    def is_sparse(self, layer: int) -> bool:
        """Whether the layer's feed-forward part is a mixture of experts."""
        return (
            self.num_experts > 0 and layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0
        )

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a full-attention head that rotate."""
        return int(self.head_dim * self.partial_rotary_factor)

    # To and from Hugging Face's config.json.

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Read the contents of a Hugging Face config.json.

        Raises:
            UserError: another architecture, an unknown key, or a value this implementation does not compute.
        """
        return cls(**fields_from_json(values, {field.name for field in fields(cls)}))

    def to_dict(self) -> dict[str, Any]:
        """The contents of a config.json that transformers, vLLM and SGLang read."""
        return json_from_fields(asdict(self) | {"layer_types": self.mixers})
