"""The description of a layer: which parts it has, and their sizes.

The network's modules, the decoder, its native kernels, the account of parameters, FLOPs and memory, and the tables of
GGUF all read a layer here.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.model.config import FULL, LINEAR, LinearAttentionSizes, ModelConfig

_COMMON = ("hidden_size", "rms_norm_eps")
_FULL_ATTENTION = ("num_attention_heads", "num_key_value_heads", "head_dim", "rotary_dim", "attention_bias")
_LINEAR_ATTENTION = (
    "linear_conv_kernel_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
)
_EXPERTS = (
    "num_experts",
    "num_experts_per_tok",
    "norm_topk_prob",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)
_DENSE = ("intermediate_size",)


@dataclass(frozen=True)
class LayerSpec(LinearAttentionSizes):
    """A layer of the network: a token mixer and a feed-forward part.

    Sizes have the names that config.json gives them. They are 0 for a part that the layer does not have.

    Attributes:
        name: the layer's place in the checkpoint, such as `model.layers.3` or `mtp.layers.0`
        layer_type: the token mixer, `linear_attention` or `full_attention`
        hidden_size: width of the residual stream
        rms_norm_eps: added to the mean square in every norm
        num_attention_heads: query heads of full attention
        num_key_value_heads: key and value heads of full attention
        head_dim: width of a head of full attention
        rotary_dim: dimensions of such a head that rotate
        attention_bias: whether the projections of full attention have biases
        linear_conv_kernel_dim: kernel size of the short convolution in linear attention
        linear_num_key_heads: key heads of linear attention
        linear_num_value_heads: value heads of linear attention
        linear_key_head_dim: width of a key head of linear attention
        linear_value_head_dim: width of a value head of linear attention
        num_experts: routed experts of a sparse layer
        num_experts_per_tok: experts that each token is sent to
        norm_topk_prob: whether the probabilities of these experts are renormalized to sum to 1
        moe_intermediate_size: width of a routed expert
        shared_expert_intermediate_size: width of the expert that every token passes
        intermediate_size: width of the feed-forward network of a dense layer
    """

    name: str
    layer_type: str
    hidden_size: int
    rms_norm_eps: float
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    rotary_dim: int = 0
    attention_bias: bool = False
    linear_conv_kernel_dim: int = 0
    linear_num_key_heads: int = 0
    linear_num_value_heads: int = 0
    linear_key_head_dim: int = 0
    linear_value_head_dim: int = 0
    num_experts: int = 0
    num_experts_per_tok: int = 0
    norm_topk_prob: bool = False
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    intermediate_size: int = 0

    @property
    def is_linear(self) -> bool:
        """Whether the token mixer is linear attention."""
        return self.layer_type == LINEAR

    @property
    def is_sparse(self) -> bool:
        """Whether the feed-forward part is a mixture of experts."""
        return self.num_experts > 0


def layer_specs(config: ModelConfig) -> tuple[LayerSpec, ...]:
    """Describe the layers of the trunk, followed by that of the multi-token-prediction head if there is one."""
    trunk = [
        _layer_spec(config, f"model.layers.{index}", layer_type, config.is_sparse(index))
        for index, layer_type in enumerate(config.mixers)
    ]
    heads = range(config.num_nextn_predict_layers)
    return (*trunk, *(_layer_spec(config, f"mtp.layers.{index}", FULL, config.num_experts > 0) for index in heads))


def _layer_spec(config: ModelConfig, name: str, layer_type: str, is_sparse: bool) -> LayerSpec:
    mixer = _LINEAR_ATTENTION if layer_type == LINEAR else _FULL_ATTENTION
    fields = (*_COMMON, *mixer, *(_EXPERTS if is_sparse else _DENSE))
    return LayerSpec(name, layer_type, **{field: getattr(config, field) for field in fields})
