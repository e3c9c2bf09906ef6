"""The configuration of a network: Hugging Face's keys and defaults for Qwen3-Next.

Departures from Hugging Face's class: it is frozen, refuses what it does not know, knows its multi-token-prediction
head (`num_nextn_predict_layers`), and counts its own parameters and FLOPs (see `model/counts.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gossamer.errors import UserError, names_meant, nearest

if TYPE_CHECKING:
    from gossamer.model.counts import Counts

LINEAR, FULL = "linear_attention", "full_attention"

# Keys of a config.json that say nothing about the network itself.
_IGNORED_KEYS = frozenset(
    "architectures model_type torch_dtype dtype transformers_version use_cache output_router_logits "
    "bos_token_id eos_token_id pad_token_id sliding_window max_window_layers "
    "output_attentions output_hidden_states return_dict chunk_size_feed_forward is_encoder_decoder id2label label2id "
    "problem_type _name_or_path".split()
)
# Keys whose only accepted values are these: any other would change the mathematics that is implemented.
_FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_dropout": (0, 0.0),
    "rope_scaling": (None,),
    "use_sliding_window": (False, None),
}
MODEL_TYPE = "qwen3_next"


@names_meant
@dataclass(frozen=True)
class ModelConfig:
    """A Qwen3-Next network.

    Attributes:
        vocab_size: number of token ids
        hidden_size: width of the residual stream
        intermediate_size: width of a dense feed-forward layer (see mlp_only_layers and decoder_sparse_step)
        num_hidden_layers: number of blocks
        num_attention_heads: query heads of a full-attention layer
        num_key_value_heads: key and value heads of a full-attention layer
        head_dim: width of a head in full attention
        max_position_embeddings: longest context the model is meant for, in tokens
        initializer_range: standard deviation of the initial weights
        rms_norm_eps: added to the mean square in every norm
        tie_word_embeddings: the output head is the embedding
        rope_theta: base of the rotary frequencies
        partial_rotary_factor: share of a head's dimensions that rotate
        attention_bias: biases in the projections of full attention
        full_attention_interval: every n-th layer is full attention, the others are linear
        layer_types: linear_attention or full_attention for each layer; overrides full_attention_interval
        linear_conv_kernel_dim: taps of the short convolution
        linear_key_head_dim: width of a key head in linear attention
        linear_value_head_dim: width of a value head in linear attention
        linear_num_key_heads: key heads in linear attention
        linear_num_value_heads: value heads in linear attention, a multiple of the key heads
        num_experts: routed experts of a layer; 0 for a dense network
        num_experts_per_tok: experts that each token is sent to
        moe_intermediate_size: width of a routed expert
        shared_expert_intermediate_size: width of the expert that every token passes
        norm_topk_prob: renormalise the chosen experts' probabilities to sum to 1
        decoder_sparse_step: every n-th layer has experts, the others are dense
        mlp_only_layers: indices of layers that are dense whatever decoder_sparse_step says
        router_aux_loss_coef: weight of the load-balancing loss
        num_nextn_predict_layers: 1 for a multi-token-prediction head, 0 for none
    """

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 256
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.25
    attention_bias: bool = False
    full_attention_interval: int = 4
    layer_types: tuple[str, ...] | None = None
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    num_experts: int = 512
    num_experts_per_tok: int = 10
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    norm_topk_prob: bool = True
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    router_aux_loss_coef: float = 0.001
    num_nextn_predict_layers: int = 1

    def __post_init__(self) -> None:
        # Lists come from JSON and YAML; tuples keep the frozen class hashable.
        object.__setattr__(self, "mlp_only_layers", tuple(self.mlp_only_layers or ()))
        if self.layer_types is not None:
            object.__setattr__(self, "layer_types", tuple(self.layer_types))
        self._check_types()
        self._check_ranges()
        self._check_dimensions()
        if self.layer_types == self._mixers_by_interval():  # a config.json spells them out; equal networks are equal
            object.__setattr__(self, "layer_types", None)

    def _check_types(self) -> None:
        kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}
        for field in fields(self):
            value, allowed = getattr(self, field.name), kinds.get(str(field.type))
            if allowed and (not isinstance(value, allowed) or isinstance(value, bool) != (bool in allowed)):
                raise UserError(f"{field.name} = {value!r}: must be of type {field.type}")

    def _check_ranges(self) -> None:
        zero_allowed = {"num_experts", "num_nextn_predict_layers", "initializer_range", "router_aux_loss_coef"}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if value < 0 or (value == 0 and field.name not in zero_allowed):
                raise UserError(f"{field.name} = {value}: must be {'>= 0' if field.name in zero_allowed else '> 0'}")

    def _check_dimensions(self) -> None:
        def require(condition: bool, message: str) -> None:
            if not condition:
                raise UserError(message)

        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        require(
            heads % kv_heads == 0,
            f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}",
        )
        key_heads, value_heads = self.linear_num_key_heads, self.linear_num_value_heads
        require(
            value_heads % key_heads == 0,
            f"linear_num_value_heads = {value_heads} is not a multiple of linear_num_key_heads = {key_heads}",
        )
        require(self.partial_rotary_factor <= 1, f"partial_rotary_factor = {self.partial_rotary_factor}: must be <= 1")
        require(
            self.rotary_dim >= 2 and self.rotary_dim % 2 == 0,
            f"head_dim = {self.head_dim} times partial_rotary_factor = {self.partial_rotary_factor} "
            f"gives {self.rotary_dim} rotating dimensions: must be even and at least 2",
        )
        require(
            self.num_experts == 0 or self.num_experts_per_tok <= self.num_experts,
            f"num_experts_per_tok = {self.num_experts_per_tok} exceeds num_experts = {self.num_experts}",
        )
        require(
            self.num_nextn_predict_layers in (0, 1),
            f"num_nextn_predict_layers = {self.num_nextn_predict_layers}: must be 0 or 1",
        )
        for index in self.mlp_only_layers:
            require(
                0 <= index < self.num_hidden_layers,
                f"mlp_only_layers names layer {index}, but the layers are 0 to {self.num_hidden_layers - 1}",
            )
        if self.layer_types is not None:
            require(
                len(self.layer_types) == self.num_hidden_layers,
                f"layer_types has {len(self.layer_types)} entries for num_hidden_layers = {self.num_hidden_layers}",
            )
            for kind in self.layer_types:
                require(kind in (LINEAR, FULL), f"layer_types: {kind!r} is neither {LINEAR!r} nor {FULL!r}")

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

    def counts(self, context: int = 4096) -> Counts:
        """Parameters and FLOPs, part by part, for sequences of `context` tokens."""
        from gossamer.model.counts import count  # counts reads this class

        return count(self, context)

    # To and from Hugging Face's config.json.

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Read the contents of a Hugging Face config.json.

        Raises:
            UserError: another architecture, an unknown key, or a value this implementation does not compute.
        """
        values = dict(values)
        model_type = values.get("model_type", MODEL_TYPE)
        if model_type != MODEL_TYPE:
            raise UserError(f"model_type {model_type!r} is another architecture; gossamer reads {MODEL_TYPE!r}")
        rope = values.pop("rope_parameters", None) or {}
        if rope.get("rope_type", "default") != "default":
            raise UserError(f"rope_type {rope['rope_type']!r} is not supported; gossamer computes 'default'")
        values.update({key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope})
        for key, allowed in _FIXED_KEYS.items():
            if key in values and (value := values.pop(key)) not in allowed:
                raise UserError(f"{key} = {value!r} is not supported; gossamer computes {key} = {allowed[0]!r}")
        known = {field.name for field in fields(cls)}
        for key in [key for key in values if key not in known]:
            if key not in _IGNORED_KEYS:
                raise UserError(f"unknown model key {key!r}{nearest(key, known)}")
            del values[key]
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a config.json that transformers, vLLM and SGLang read."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        rope = {key: values[key] for key in ("rope_theta", "partial_rotary_factor")}
        return values | {
            "architectures": ["Qwen3NextForCausalLM"],
            "model_type": MODEL_TYPE,
            "hidden_act": "silu",
            "layer_types": list(self.mixers),
            "rope_parameters": {"rope_type": "default", **rope},
        }
