"""How many parameters a network has and how many FLOPs it spends on a token, part by part.

A multiplication and an addition are two FLOPs. Only products are counted: norms, gates and activations are
element-wise and bound by memory. Causal attention counts the half of the score matrix that is needed. The gated
delta rule is counted as its chunked form computes it, in both directions. Elsewhere training is three forward passes:
one forward, two for the gradients with respect to activations and weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gossamer.model.config import LINEAR, ModelConfig
from gossamer.ops.delta_rule import CHUNK


@dataclass(frozen=True)
class Part:
    """One part of the network.

    Attributes:
        name: its place in the checkpoint, such as `model.layers.3.self_attn`
        kind: `embedding`, `linear_attention`, `full_attention`, `router`, `experts`, `dense`, `norm`, `head` or `mtp`
        parameters: all of them
        active_parameters: those that a single token is multiplied with
        forward_flops: a token, in the forward pass
        training_flops: a token, in the forward and the backward pass
    """

    name: str
    kind: str
    parameters: int
    active_parameters: int
    forward_flops: float
    training_flops: float


@dataclass(frozen=True)
class Counts:
    """The parts of a network with their sums."""

    parts: tuple[Part, ...]

    @property
    def parameters(self) -> int:
        """All parameters; a tied head is counted once."""
        return sum(part.parameters for part in self.parts)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes: of the routed experts only the chosen ones."""
        return sum(part.active_parameters for part in self.parts)

    @property
    def mtp(self) -> Counts:
        """The multi-token-prediction head's part."""
        return Counts(tuple(part for part in self.parts if part.kind == "mtp"))

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """All parameters, those that one token passes, and the same of the multi-token-prediction head alone."""
        return self.parameters, self.active_parameters, self.mtp.parameters, self.mtp.active_parameters

    @property
    def forward_flops(self) -> float:
        """FLOPs a token in the forward pass."""
        return sum(part.forward_flops for part in self.parts)

    @property
    def training_flops(self) -> float:
        """FLOPs a token in a training step."""
        return sum(part.training_flops for part in self.parts)

    def by_kind(self) -> dict[str, float]:
        """Training FLOPs a token for each kind of part."""
        totals: dict[str, float] = {}
        for part in self.parts:
            totals[part.kind] = totals.get(part.kind, 0.0) + part.training_flops
        return totals


def count(config: ModelConfig, context: int) -> Counts:
    """Count every part of the network for sequences of `context` tokens."""
    hidden, vocab = config.hidden_size, config.vocab_size
    parts = [Part("model.embed_tokens", "embedding", vocab * hidden, hidden, 0.0, 0.0)]
    for index, mixer in enumerate(config.mixers):
        parts += _block(config, f"model.layers.{index}", mixer, config.is_sparse(index), context)
    parts.append(_norm("model.norm", hidden))
    head = vocab * hidden
    parts.append(_part("lm_head", "head", 0 if config.tie_word_embeddings else head, head, 2.0 * head))
    if config.num_nextn_predict_layers:
        parts += [_as_mtp(part) for part in _mtp(config, context)]
    return Counts(tuple(parts))


def _block(config: ModelConfig, name: str, mixer: str, sparse: bool, context: int) -> list[Part]:
    hidden = config.hidden_size
    parts = [
        _norm(f"{name}.input_layernorm", hidden),
        _linear_attention(config, name) if mixer == LINEAR else _full_attention(config, name, context),
        _norm(f"{name}.post_attention_layernorm", hidden),
    ]
    if sparse:
        return parts + _experts(config, f"{name}.mlp")
    return [*parts, _matrices(f"{name}.mlp", "dense", 3 * hidden * config.intermediate_size)]


def _linear_attention(config: ModelConfig, name: str) -> Part:
    hidden, key_dim, value_dim = config.hidden_size, config.linear_key_dim, config.linear_value_dim
    value_heads = config.linear_num_value_heads
    projections = hidden * (2 * key_dim + 2 * value_dim + 2 * value_heads) + value_dim * hidden
    convolution = config.linear_conv_dim * config.linear_conv_kernel_dim
    small = 2 * value_heads + config.linear_value_head_dim  # A_log, dt_bias, norm
    parameters = projections + convolution + small
    sizes = config.linear_num_key_heads, value_heads, config.linear_key_head_dim, config.linear_value_head_dim
    forward, backward = delta_rule_flops(*sizes), delta_rule_backward_flops(*sizes)
    dense = 2.0 * (projections + convolution)
    name = f"{name}.linear_attn"
    return Part(name, "linear_attention", parameters, parameters, dense + forward, 3 * dense + forward + backward)


def delta_rule_flops(key_heads: int, value_heads: int, key_dim: int, value_dim: int, chunk: int = CHUNK) -> float:
    """Forward FLOPs a token of the chunked gated delta rule: within the chunk, the inverse, and the state."""
    scores = key_heads * 4.0 * chunk * key_dim  # K Kᵀ and Q Kᵀ, once a key head
    within = value_heads * 2.0 * chunk * (key_dim + 2 * value_dim)  # W = A (β e^c K), U = A (β V), P Ṽ
    inverse = value_heads * 2.0 / 3.0 * chunk**2  # C³/3 multiply-adds a chunk
    state = value_heads * 6.0 * key_dim * value_dim  # W S, Q S, (r K)ᵀ Ṽ
    return scores + within + inverse + state


def delta_rule_backward_flops(
    key_heads: int, value_heads: int, key_dim: int, value_dim: int, chunk: int = CHUNK
) -> float:
    """Backward FLOPs a token of the chunked gated delta rule, what it computes again included (docs/delta-rule.md)."""
    scores = key_heads * 10.0 * chunk * key_dim  # K Kᵀ and Q Kᵀ again, Σ G K, Σ Gᵀ Q, (E + Eᵀ) K
    within = value_heads * 2.0 * chunk * (key_dim + 4 * value_dim)  # W again, Pᵀ dO, dO Ṽᵀ, X, X Ṽᵀ
    state = value_heads * 12.0 * key_dim * value_dim  # (e^c Q)ᵀ dO, (r K) dS', Wᵀ dṼ, dO Sᵀ, X Sᵀ, Ṽ dS'ᵀ
    return scores + within + state


def _full_attention(config: ModelConfig, name: str, context: int) -> Part:
    hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    projections = hidden * (2 * width + 2 * kv_width) + width * hidden
    biases = (2 * width + 2 * kv_width + hidden) if config.attention_bias else 0
    parameters = projections + biases + 2 * config.head_dim  # q_norm, k_norm
    scores = 4.0 * width * (context + 1) / 2  # a token sees (context + 1) / 2 keys in the mean
    return _part(f"{name}.self_attn", "full_attention", parameters, parameters, 2.0 * projections + scores)


def _experts(config: ModelConfig, name: str) -> list[Part]:
    hidden, one = config.hidden_size, 3 * config.hidden_size * config.moe_intermediate_size
    shared = 3 * hidden * config.shared_expert_intermediate_size + hidden  # with its gate
    chosen = config.num_experts_per_tok * one
    return [
        _matrices(f"{name}.gate", "router", config.num_experts * hidden),
        _part(f"{name}.experts", "experts", config.num_experts * one, chosen, 2.0 * chosen),
        _matrices(f"{name}.shared_expert", "experts", shared),
    ]


def _mtp(config: ModelConfig, context: int) -> list[Part]:
    hidden = config.hidden_size
    return [
        _matrices("mtp.fc", "mtp", 2 * hidden * hidden),
        _norm("mtp.pre_fc_norm_embedding", hidden),
        _norm("mtp.pre_fc_norm_hidden", hidden),
        *_block(config, "mtp.layers.0", "full_attention", config.num_experts > 0, context),
        _norm("mtp.norm", hidden),
        _part("mtp.lm_head", "mtp", 0, 0, 2.0 * config.vocab_size * hidden),  # the trunk's head, used once more
    ]


def _as_mtp(part: Part) -> Part:
    return replace(part, kind="mtp")


def _matrices(name: str, kind: str, parameters: int) -> Part:
    return _part(name, kind, parameters, parameters, 2.0 * parameters)


def _part(name: str, kind: str, parameters: int, active: int, forward: float) -> Part:
    return Part(name, kind, parameters, active, forward, 3 * forward)


def _norm(name: str, width: int) -> Part:
    return _part(name, "norm", width, width, 0.0)
