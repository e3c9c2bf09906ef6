"""The account of one layer: its parameters, its FLOPs, the bytes that it moves and the state that it leaves behind.

Everything that counts reads this account: the sizes and FLOPs of a network (`cost.network`), the memory of a training
step (`cost.memory`), and the planner, which also fills it in for other architectures (`plan.other_families`). What a
layer keeps for its backward pass depends on how it runs, and is in `cost.activations`.

A multiplication and an addition are two FLOPs. Only products are counted: norms, gates and activations are element-wise
and bound by memory. Causal attention counts the half of the score matrix that is needed. The gated delta rule is
counted as its chunked form computes it, in both directions. Elsewhere training is three forward passes: one forward,
two for the gradients with respect to activations and weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.model.config import FULL, LINEAR
from gossamer.model.layer_spec import LayerSpec
from gossamer.ops.delta_rule import CHUNK_SIZE

__all__ = ["FeedForward", "Layer", "Mixer", "Product", "delta_rule_backward_flops", "delta_rule_flops", "layer_of"]

Product = tuple[int, int]
"""A matrix that every token is multiplied with: its input width and its output width."""

_BFLOAT16, _FLOAT32 = 2, 4  # bytes of a number


@dataclass(frozen=True)
class Mixer:
    """The part of a layer that mixes tokens: full or linear attention.

    Attributes:
        kind: `linear_attention` or `full_attention`
        products: matrices of the projections, and the short convolution as a matrix of its channels and its width
        parameters: all parameters, those of the mixer's own norms included
        score_width: H · (d_qk + d_v); a token costs twice as many FLOPs for each key in scores and their sum
        window: the largest number of keys that a token sees; 0 means all keys before it
        delta_rule_flops: forward and backward FLOPs of the delta rule per token
        moved: numbers per token that the forward pass reads and writes outside of products: norms, the residual sum,
            rotation, gates, the convolution, and what the kernels of the delta rule hand to one another
        kv_cache_bytes: bytes of keys and values per token, in bfloat16
        state_bytes: bytes of the recurrent state per sequence: float32, with the convolution's inputs in bfloat16
    """

    kind: str
    products: tuple[Product, ...]
    parameters: int
    score_width: int = 0
    window: int = 0
    delta_rule_flops: tuple[float, float] = (0.0, 0.0)
    moved: float = 0.0
    kv_cache_bytes: int = 0
    state_bytes: int = 0

    def mean_keys(self, context: float) -> float:
        """Return how many keys a token sees on average in a sequence of `context` tokens."""
        if not self.window or context <= self.window:
            return (context + 1) / 2
        return self.window - self.window * (self.window - 1) / (2 * context)

    def forward_flops(self, context: float) -> float:
        """Return the FLOPs per token of a forward pass over sequences of `context` tokens."""
        return self._dense_flops(context) + self.delta_rule_flops[0]

    def training_flops(self, context: float) -> float:
        """Return the FLOPs per token of a forward and a backward pass over sequences of `context` tokens."""
        return 3 * self._dense_flops(context) + sum(self.delta_rule_flops)

    def _dense_flops(self, context: float) -> float:
        products = sum(inputs * outputs for inputs, outputs in self.products)
        return 2.0 * products + 2.0 * self.score_width * self.mean_keys(context)


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward part of a layer: a dense SwiGLU (`num_experts` is 0) or a mixture of experts.

    Attributes:
        hidden_size: width of the residual stream
        width: width of the dense part, or of all shared experts together
        num_experts: routed experts of the layer
        top_k: routed experts that a token is sent to
        expert_width: width of one routed expert
        has_gate: whether the shared expert has a gate of its own
    """

    hidden_size: int
    width: int
    num_experts: int = 0
    top_k: int = 0
    expert_width: int = 0
    has_gate: bool = False

    @property
    def one_expert(self) -> int:
        """Parameters of one routed expert."""
        return 3 * self.hidden_size * self.expert_width

    @property
    def expert_parameters(self) -> int:
        """Parameters of all routed experts."""
        return self.num_experts * self.one_expert

    @property
    def active_expert_parameters(self) -> int:
        """Parameters of the routed experts that one token passes."""
        return self.top_k * self.one_expert

    @property
    def router_parameters(self) -> int:
        """Parameters of the router."""
        return self.num_experts * self.hidden_size

    @property
    def shared_parameters(self) -> int:
        """Parameters that every token passes: the dense part, or the shared experts with their gate."""
        return self.hidden_size * (3 * self.width + self.has_gate)


@dataclass(frozen=True)
class Layer:
    """One layer: a mixer and a feed-forward part, each with a norm before it."""

    mixer: Mixer
    feed_forward: FeedForward

    @property
    def norm_parameters(self) -> int:
        """Parameters of the two norms."""
        return 2 * self.feed_forward.hidden_size

    @property
    def dense_parameters(self) -> int:
        """Parameters outside of the routed experts."""
        part = self.feed_forward
        return self.mixer.parameters + self.norm_parameters + part.router_parameters + part.shared_parameters


def layer_of(spec: LayerSpec) -> Layer:
    """Return the account of a layer."""
    return Layer(_linear_attention(spec) if spec.is_linear else _full_attention(spec), _feed_forward(spec))


def _full_attention(spec: LayerSpec) -> Mixer:
    hidden, width = spec.hidden_size, spec.num_attention_heads * spec.head_dim
    kv_width = spec.num_key_value_heads * spec.head_dim
    products = ((hidden, 2 * width), (hidden, 2 * kv_width), (width, hidden))
    biases = 2 * width + 2 * kv_width + hidden if spec.attention_bias else 0
    return Mixer(
        kind=FULL,
        products=products,
        parameters=sum(inputs * outputs for inputs, outputs in products) + biases + 2 * spec.head_dim,
        score_width=2 * width,
        # Norm and residual sum; norms and rotation of q and k; what attention itself reads and writes; the gate.
        moved=5 * hidden + 4 * (width + kv_width) + 2 * (width + kv_width) + 3 * width,
        kv_cache_bytes=2 * kv_width * _BFLOAT16,
    )


def _linear_attention(spec: LayerSpec) -> Mixer:
    hidden, key, value = spec.hidden_size, spec.linear_key_dim, spec.linear_value_dim
    key_heads, value_heads = spec.linear_num_key_heads, spec.linear_num_value_heads
    dk, dv = spec.linear_key_head_dim, spec.linear_value_head_dim
    products = (
        (hidden, 2 * key + 2 * value),
        (hidden, 2 * value_heads),
        (value, hidden),
        (spec.linear_conv_dim, spec.linear_conv_kernel_dim),
    )
    conv_inputs = spec.linear_conv_dim * (spec.linear_conv_kernel_dim - 1)  # those before a token's own
    # Chunk by chunk, for each value head (the kernels of gossamer.ops.delta_rule): k and q are read four times, v, U
    # and Ṽ written and read, A twice; the state before each chunk is written and read once.
    rule = value_heads * (4 * dk + 5 * dv + 4 * CHUNK_SIZE + 2 * dk * dv / CHUNK_SIZE)
    return Mixer(
        kind=LINEAR,
        products=products,
        # Beside the products: A_log and dt_bias, a number per value head each, and the weight of the gated norm.
        parameters=sum(inputs * outputs for inputs, outputs in products) + 2 * value_heads + dv,
        delta_rule_flops=(
            delta_rule_flops(key_heads, value_heads, dk, dv),
            delta_rule_backward_flops(key_heads, value_heads, dk, dv),
        ),
        # Norm and residual sum; convolution; norms of q and k; gates in float32; the gated norm.
        moved=5 * hidden + 2 * spec.linear_conv_dim + 4 * key + 12 * value_heads + 3 * value + rule,
        state_bytes=value_heads * dk * dv * _FLOAT32 + conv_inputs * _BFLOAT16,
    )


def _feed_forward(spec: LayerSpec) -> FeedForward:
    if not spec.is_sparse:
        return FeedForward(spec.hidden_size, spec.intermediate_size)
    return FeedForward(
        hidden_size=spec.hidden_size,
        width=spec.shared_expert_intermediate_size,
        num_experts=spec.num_experts,
        top_k=spec.num_experts_per_tok,
        expert_width=spec.moe_intermediate_size,
        has_gate=True,
    )


def delta_rule_flops(key_heads: int, value_heads: int, key_dim: int, value_dim: int, chunk: int = CHUNK_SIZE) -> float:
    """Return the forward FLOPs per token of the chunked gated delta rule: within a chunk, its inverse, and the state.

    Args:
        key_heads: heads of the keys and queries
        value_heads: heads of the values
        key_dim: width of a key head
        value_dim: width of a value head
        chunk: tokens of a chunk
    """
    scores = key_heads * 4.0 * chunk * key_dim  # K Kᵀ and Q Kᵀ, once per key head
    within = value_heads * 2.0 * chunk * (key_dim + 2 * value_dim)  # W = A (β e^c K), U = A (β V), P Ṽ
    inverse = value_heads * 2.0 / 3.0 * chunk**2  # C³/3 multiply-adds per chunk
    state = value_heads * 6.0 * key_dim * value_dim  # W S, Q S, (r K)ᵀ Ṽ
    return scores + within + inverse + state


def delta_rule_backward_flops(
    key_heads: int, value_heads: int, key_dim: int, value_dim: int, chunk: int = CHUNK_SIZE
) -> float:
    """Return the backward FLOPs per token of the chunked gated delta rule, recomputation included (docs/delta-rule.md).

    Args:
        key_heads: heads of the keys and queries
        value_heads: heads of the values
        key_dim: width of a key head
        value_dim: width of a value head
        chunk: tokens of a chunk
    """
    scores = key_heads * 10.0 * chunk * key_dim  # K Kᵀ and Q Kᵀ again, Σ G K, Σ Gᵀ Q, (E + Eᵀ) K
    within = value_heads * 2.0 * chunk * (key_dim + 4 * value_dim)  # W again, Pᵀ dO, dO Ṽᵀ, X, X Ṽᵀ
    state = value_heads * 12.0 * key_dim * value_dim  # (e^c Q)ᵀ dO, (r K) dS', Wᵀ dṼ, dO Sᵀ, X Sᵀ, Ṽ dS'ᵀ
    return scores + within + state
