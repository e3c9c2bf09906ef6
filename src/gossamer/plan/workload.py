"""A network as the planner sees it: products, scores and numbers moved, a token, layer by layer.

Nothing is built. `workload_of` reads gossamer's own configuration, `families.py` those of other architectures; a test
holds parameters and FLOPs to `gossamer.model.counts`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from gossamer.model.config import FULL, LINEAR, ModelConfig
from gossamer.model.counts import delta_rule_backward_flops, delta_rule_flops
from gossamer.ops.delta_rule import CHUNK

Product = tuple[int, int]  # widths of a matrix that every token is multiplied with: in, out


@dataclass(frozen=True)
class Mixer:
    """Attention of either kind.

    Attributes:
        kind: linear_attention or full_attention
        products: of the projections
        parameters: all of them, norms aside
        score_width: H·(d_qk + d_v): a token and a key cost twice as many FLOPs in scores and their sum
        window: keys that a token sees at most; 0: all before it
        rule: forward and backward FLOPs a token of the delta rule
        moved: numbers a token that the forward pass reads and writes outside of products: norms, the residual sum,
            rotation, gates, convolution, and what the delta rule's kernels hand to one another
        cache: numbers a token in the cache
        state: numbers a sequence in the recurrent state
    """

    kind: str
    products: tuple[Product, ...]
    parameters: int
    score_width: int = 0
    window: int = 0
    rule: tuple[float, float] = (0.0, 0.0)
    moved: float = 0.0
    cache: int = 0
    state: int = 0

    def keys(self, context: float) -> float:
        """Keys that a token sees in the mean, in a sequence of so many."""
        if not self.window or context <= self.window:
            return (context + 1) / 2
        return self.window - self.window * (self.window - 1) / (2 * context)


@dataclass(frozen=True)
class FeedForward:
    """A dense SwiGLU (`experts` = 0), or a mixture of experts.

    Attributes:
        width: of the dense part, or of all shared experts together
        experts, chosen, expert_width: routed experts of a layer, those a token is sent to, and the width of one
        gated: the shared expert has a gate of its own
    """

    width: int
    experts: int = 0
    chosen: int = 0
    expert_width: int = 0
    gated: bool = False


@dataclass(frozen=True)
class Layer:
    mixer: Mixer
    feed_forward: FeedForward


@dataclass(frozen=True)
class Workload:
    """A network.

    Attributes:
        name: for people
        hidden: width of the residual stream
        vocab: token ids
        tied: the head is the embedding
        layers: each different layer of the trunk with how many of it there are
        drafts: layers of multi-token prediction, each with a projection of two hidden vectors and the head once more
        twin: a configuration of gossamer's whose activations are this network's, exactly or as nearly as one can be
    """

    name: str
    hidden: int
    vocab: int
    tied: bool
    layers: tuple[tuple[Layer, int], ...]
    drafts: tuple[Layer, ...]
    twin: ModelConfig

    @property
    def depth(self) -> int:
        return sum(count for _, count in self.layers)

    @cached_property
    def all_layers(self) -> tuple[tuple[Layer, int], ...]:
        return (*self.layers, *((layer, 1) for layer in self.drafts))

    @cached_property
    def expert_parameters(self) -> int:
        """Routed experts."""
        return sum(
            count * layer.feed_forward.experts * 3 * self.hidden * layer.feed_forward.expert_width
            for layer, count in self.all_layers
        )

    @cached_property
    def dense_parameters(self) -> int:
        """All but routed experts, embedding and head."""
        layers = sum(count * _dense(layer, self.hidden) for layer, count in self.all_layers)
        return layers + len(self.drafts) * (2 * self.hidden**2 + 3 * self.hidden) + self.hidden

    @property
    def vocabulary_parameters(self) -> int:
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.dense_parameters + self.expert_parameters + self.vocabulary_parameters

    @cached_property
    def active_parameters(self) -> int:
        """Those a token passes in the trunk, the output head and one row of the embedding included: N of 6·N·D."""
        chosen = sum(count * _active(layer, self.hidden) for layer, count in self.layers)
        return chosen + self.vocab * self.hidden + 2 * self.hidden

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """All parameters, those that one token passes, and the same of the multi-token-prediction head alone."""
        own = len(self.drafts) * (2 * self.hidden**2 + 3 * self.hidden)
        everything = own + sum(
            _dense(layer, self.hidden) + 3 * self.hidden * layer.feed_forward.experts * layer.feed_forward.expert_width
            for layer in self.drafts
        )
        active = own + sum(_active(layer, self.hidden) for layer in self.drafts)
        return self.parameters, self.active_parameters + active, everything, active

    def flops(self, context: int, drafts: int | None = None) -> dict[str, float]:
        """Training FLOPs a token by part, for sequences of `context` tokens.

        Args:
            drafts: steps of multi-token prediction; None: one for each of its layers
        """
        found: dict[str, float] = defaultdict(float)
        for layer, count in self.layers:
            for part, flops in _layer_flops(layer, self.hidden, context):
                found[part] += count * flops
        found["head"] += 6.0 * self.vocab * self.hidden
        steps = len(self.drafts) if drafts is None else drafts
        for layer in self.drafts[:1]:
            own = sum(flops for _, flops in _layer_flops(layer, self.hidden, context))
            found["mtp"] += steps * (own + 12.0 * self.hidden**2 + 6.0 * self.vocab * self.hidden)
        return {part: flops for part, flops in found.items() if flops}


def _dense(layer: Layer, hidden: int) -> int:
    """Parameters of a layer outside of its routed experts."""
    ffn = layer.feed_forward
    return layer.mixer.parameters + 2 * hidden + hidden * (3 * ffn.width + ffn.experts + ffn.gated)


def _active(layer: Layer, hidden: int) -> int:
    """Parameters of a layer that one token passes."""
    return _dense(layer, hidden) + layer.feed_forward.chosen * 3 * hidden * layer.feed_forward.expert_width


def _layer_flops(layer: Layer, hidden: int, context: int) -> Iterator[tuple[str, float]]:
    mixer, ffn = layer.mixer, layer.feed_forward
    products = sum(inputs * outputs for inputs, outputs in mixer.products)
    yield mixer.kind, 6.0 * products + sum(mixer.rule) + 6.0 * mixer.score_width * mixer.keys(context)
    if not ffn.experts:
        yield "dense", 18.0 * hidden * ffn.width
        return
    yield "router", 6.0 * hidden * ffn.experts
    yield "experts", 6.0 * hidden * (3 * ffn.chosen * ffn.expert_width + 3 * ffn.width + ffn.gated)


# From gossamer's own configuration.


def workload_of(config: ModelConfig, name: str = "") -> Workload:
    """The network of a configuration."""
    layers: Counter[Layer] = Counter()
    for index, kind in enumerate(config.mixers):
        mixer = _linear_attention(config) if kind == LINEAR else _full_attention(config)
        layers[Layer(mixer, _feed_forward(config, config.is_sparse(index)))] += 1
    draft = Layer(_full_attention(config), _feed_forward(config, config.num_experts > 0))
    return Workload(
        name=name,
        hidden=config.hidden_size,
        vocab=config.vocab_size,
        tied=config.tie_word_embeddings,
        layers=tuple(layers.items()),
        drafts=(draft,) * config.num_nextn_predict_layers,
        twin=config,
    )


def _feed_forward(config: ModelConfig, sparse: bool) -> FeedForward:
    if not sparse:
        return FeedForward(config.intermediate_size)
    return FeedForward(
        width=config.shared_expert_intermediate_size,
        experts=config.num_experts,
        chosen=config.num_experts_per_tok,
        expert_width=config.moe_intermediate_size,
        gated=True,
    )


def _full_attention(config: ModelConfig) -> Mixer:
    hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    products = ((hidden, 2 * width), (hidden, 2 * kv), (width, hidden))
    biases = 2 * width + 2 * kv + hidden if config.attention_bias else 0
    return Mixer(
        kind=FULL,
        products=products,
        parameters=sum(inputs * outputs for inputs, outputs in products) + biases + 2 * config.head_dim,
        score_width=2 * width,
        # Norm and residual sum; norms and rotation of q and k; what attention itself reads and writes; the gate.
        moved=5 * hidden + 4 * (width + kv) + 2 * (width + kv) + 3 * width,
        cache=2 * kv,
    )


def _linear_attention(config: ModelConfig) -> Mixer:
    hidden, key, value = config.hidden_size, config.linear_key_dim, config.linear_value_dim
    key_heads, value_heads = config.linear_num_key_heads, config.linear_num_value_heads
    dk, dv = config.linear_key_head_dim, config.linear_value_head_dim
    products = ((hidden, 2 * key + 2 * value), (hidden, 2 * value_heads), (value, hidden))
    taps = config.linear_conv_dim * config.linear_conv_kernel_dim
    # Chunk by chunk, for each value head (the kernels of gossamer.ops.delta_rule): k and q are read four times, v, U
    # and Ṽ written and read, A twice; the state before each chunk is written and read once.
    rule = value_heads * (4 * dk + 5 * dv + 4 * CHUNK + 2 * dk * dv / CHUNK)
    return Mixer(
        kind=LINEAR,
        products=(*products, (config.linear_conv_dim, config.linear_conv_kernel_dim)),
        parameters=sum(inputs * outputs for inputs, outputs in products) + taps + 2 * value_heads + dv,
        rule=(
            delta_rule_flops(key_heads, value_heads, dk, dv),
            delta_rule_backward_flops(key_heads, value_heads, dk, dv),
        ),
        # Norm and residual sum; convolution; norms of q and k; gates in float32; the gated norm.
        moved=5 * hidden + 2 * config.linear_conv_dim + 4 * key + 12 * value_heads + 3 * value + rule,
        state=value_heads * dk * dv * 2 + config.linear_conv_dim * config.linear_conv_kernel_dim,  # float32: two each
    )
