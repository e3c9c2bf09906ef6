"""How long a training step takes under a layout, part by part.

A part's time is that of its FLOPs at the rate that products reach, and that of the bytes it moves at the rate that
memory reaches, one after the other: large products are hardly slowed by it, small ones as much as they are in practice.
Collectives move bytes over the link within a node and over the network between nodes; what gathers weights, sums
gradients and sends tokens to experts hides behind the computing of another micro-batch (as in arXiv 2412.19437, 3.2),
tensor parallelism does not. A pipeline of p stages waits (p − 1) / (v m) of its time for m micro-batches and v parts of
a stage (arXiv 2104.04473).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from gossamer.cost.layer import FeedForward, Layer, Mixer, Product
from gossamer.cost.layout import Layout
from gossamer.cost.network import Network
from gossamer.model.config import LINEAR
from gossamer.plan.catalogue import Chip
from gossamer.plan.efficiency import ATTENTION, DELTA_RULE, KERNEL_SECONDS, NEVER_HIDDEN, TILE, Efficiency

_BFLOAT16, _FLOAT32 = 2, 4  # bytes of a number
# Kernels of a layer's forward pass; the backward pass starts twice as many.
_KERNELS = {"linear_attention": 20, "full_attention": 10, "dense": 5, "experts": 16}
PARTS = (
    "products", "experts", "linear attention", "attention", "vocabulary", "memory-bound", "router and dispatch",
    "expert exchange", "tensor exchange", "weights and gradients", "context exchange", "optimizer", "pipeline bubble",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """The shape of a training step: its tokens, its precision and what it trains.

    Attributes:
        length: tokens of a row, which is one document
        batch: tokens of an optimizer step
        mtp_steps: how often the multi-token-prediction head is applied
        fp8: whether products of layers are computed in FP8 where the chip has it
        trained: share of the parameters that is trained; adapters in fine-tuning are a small one
    """

    length: int
    batch: int
    mtp_steps: int
    fp8: bool = False
    trained: float = 1.0


def micro_batches(layout: Layout, job: Job) -> int:
    """Return the micro-batches of an optimizer step, for each copy of the network."""
    return max(1, round(job.batch / (layout.data * layout.rows * job.length)))


class StepTimer:
    """The time of a training step of one network on one kind of chip; `parts` gives it for a layout.

    Args:
        network: the network
        chip: the chip that it runs on
        rates: shares of the chip's figures that are reached
        job: what a step is made of
    """

    def __init__(self, network: Network, chip: Chip, rates: Efficiency, job: Job) -> None:
        self.network, self.chip, self.job = network, chip, job
        self._flops = chip.flops.value * rates.products
        eight = chip.fp8_flops.value if job.fp8 and chip.fp8_flops else chip.flops.value
        self._layer_flops = eight * rates.products
        self._bytes = chip.bandwidth.value * rates.memory
        self._link = chip.link.value / 2 * rates.links  # one direction
        self._network = chip.network.value * rates.links
        self._backward = 1.0 + job.trained  # gradients of activations, and of what is trained

    def parts(self, layout: Layout) -> dict[str, float]:
        """Return the seconds of an optimizer step by part; their sum is its time."""
        count = micro_batches(layout, self.job)
        found: dict[str, float] = defaultdict(float)
        drafts = [(layer, self.job.mtp_steps) for layer in self.network.mtp_layers[:1]]
        for layer, times in [*self.network.distinct_layers, *drafts]:
            for part, seconds in self._layer(layer, layout).items():
                found[part] += times * seconds
        heads = 1 + (self.job.mtp_steps if self.network.mtp_layers else 0)
        found["vocabulary"] += heads * self._vocabulary(layout)
        # Stages with a layer more than others are waited for.
        uneven = -(-len(self.network.layers) // layout.pipeline) * layout.pipeline / len(self.network.layers)
        one = {part: seconds * uneven / layout.pipeline for part, seconds in found.items()}
        exchange = one.pop("expert exchange", 0.0)
        computing = sum(one.values())
        gather, once = self._weights(layout)
        visible = _visible(exchange + gather, computing)
        step = {part: count * seconds for part, seconds in one.items()}
        step["expert exchange"] = count * visible * exchange
        working = sum(step.values())
        step["weights and gradients"] = count * visible * gather + once * _visible(once, computing)
        step["optimizer"] = self._optimizer(layout)
        step["pipeline bubble"] = working * self._bubble(layout, count)
        return {part: step[part] for part in PARTS if step.get(part)}

    # A micro-batch in one layer, forward and backward.

    def _layer(self, layer: Layer, layout: Layout) -> dict[str, float]:
        tokens = layout.rows * self.job.length / layout.context
        mixer, ffn = layer.mixer, layer.feed_forward
        passes = 1 + self._backward + layout.recompute  # forward passes that all products together are worth
        found = {
            "products": passes * sum(self._product(tokens, layout.tensor, product) for product in mixer.products),
            "memory-bound": self._moved(tokens / layout.tensor * mixer.moved, layout),
        }
        found["linear attention" if mixer.kind == LINEAR else "attention"] = self._mixing(mixer, tokens, layout)
        started = _KERNELS[mixer.kind]
        if ffn.num_experts:
            found |= self._experts(ffn, tokens / layout.tensor, layout, passes)
            started += _KERNELS["experts"]
        else:
            started += _KERNELS["dense"]
        if ffn.width:
            found["products"] += passes * self._swiglu(tokens, ffn.width, layout.tensor)
            found["memory-bound"] += self._moved(tokens * 5 * ffn.width / layout.tensor, layout)
        found["memory-bound"] += self._moved(5 * self.network.hidden_size * tokens / layout.tensor, layout)
        found["memory-bound"] += started * KERNEL_SECONDS * (3 + layout.recompute)
        found["tensor exchange"] = self._tensor_exchange(tokens, layout)
        found["context exchange"] = self._context_exchange(mixer, tokens, layout)
        return found

    def _product(self, tokens: float, tensor: int, product: Product) -> float:
        inputs, outputs = product[0], product[1] / tensor
        numbers = tokens * inputs + inputs * outputs + tokens * outputs
        return 2 * tokens * inputs * outputs / self._layer_flops + _BFLOAT16 * numbers / self._bytes

    def _swiglu(self, tokens: float, width: int, tensor: int) -> float:
        hidden = self.network.hidden_size
        return self._product(tokens, tensor, (hidden, 2 * width)) + self._product(tokens, tensor, (hidden, width))

    def _moved(self, numbers: float, layout: Layout) -> float:
        """Seconds for the numbers that a forward pass moves; the backward pass moves twice as many."""
        return _BFLOAT16 * numbers * (3 + layout.recompute) / self._bytes

    def _mixing(self, mixer: Mixer, tokens: float, layout: Layout) -> float:
        """Scores with their sums, or the delta rule: fused, so that the backward pass computes scores again."""
        forward, backward = mixer.delta_rule_flops
        if mixer.kind == LINEAR:
            flops = forward * (1 + layout.recompute) + backward
            return tokens / layout.tensor * flops / (self._flops * DELTA_RULE)
        flops = 2 * mixer.score_width * mixer.mean_keys(self.job.length) * (3.5 + layout.recompute)
        return tokens / layout.tensor * flops / (self._flops * ATTENTION)

    def _experts(self, ffn: FeedForward, tokens: float, layout: Layout, passes: float) -> dict[str, float]:
        """Router, dispatch, products of this chip's experts, and the exchange of their tokens."""
        hidden, width = self.network.hidden_size, ffn.expert_width
        rows, here = tokens * ffn.top_k, ffn.num_experts / layout.expert  # of this chip, spread evenly
        flops = 2 * (rows + here * TILE / 2) * 3 * hidden * width
        numbers = rows * (2 * hidden + 3 * width) + here * 3 * hidden * width
        products = flops / self._layer_flops + _BFLOAT16 * numbers / self._bytes
        # The router computes in float32; its probabilities are read and written a few times for the softmax, the
        # choice, the load and the loss. A row goes to its expert's place and back; SwiGLU is between.
        logits = 2 * tokens * hidden * ffn.num_experts / (self._flops / 2) * passes
        moved = tokens * ffn.num_experts * 12 + rows * (4 * hidden + 5 * width)
        return {
            "experts": passes * products,
            "router and dispatch": logits + self._moved(moved, layout),
            "expert exchange": (4 + 2 * layout.recompute) * self._exchange(tokens, ffn.top_k, layout),
        }

    def _vocabulary(self, layout: Layout) -> float:
        """Head and loss, in bfloat16 at all times; logits in float32 are written and read twice."""
        tokens, width = layout.rows * self.job.length / layout.context, self.network.vocab_size / layout.tensor
        flops = 2 * tokens * self.network.hidden_size * width * (1 + self._backward)
        return flops / self._flops + 4 * _FLOAT32 * tokens * width / self._bytes

    # What chips send to one another.

    def _exchange(self, tokens: float, top_k: int, layout: Layout) -> float:
        """Every token to the chips of its experts: over the network once to each node, then once to each chip."""
        if layout.expert == 1:
            return 0.0
        chips, node = layout.expert, int(self.chip.node.value)
        size = tokens * self.network.hidden_size * _BFLOAT16
        seconds = size * _reached(chips, top_k) * (chips - 1) / chips / self._link
        if chips > node:
            nodes = chips / node
            seconds = max(seconds, size * _reached(nodes, top_k) * (nodes - 1) / nodes / self._network)
        return seconds

    def _tensor_exchange(self, tokens: float, layout: Layout) -> float:
        """Gather and scatter around each half of a layer, forward and backward."""
        if layout.tensor == 1:
            return 0.0
        size = tokens * self.network.hidden_size * _BFLOAT16 * (layout.tensor - 1) / layout.tensor
        return (8 + 4 * layout.recompute) * size / self._link

    def _context_exchange(self, mixer: Mixer, tokens: float, layout: Layout) -> float:
        """Keys and values of the whole sequence, or the states at the ends of its parts; gradients on the way back."""
        if layout.context == 1:
            return 0.0
        keys_and_values = mixer.kv_cache_bytes * tokens / layout.tensor * (layout.context - 1)
        return 3 * (keys_and_values + mixer.state_bytes * layout.rows) / self._between(layout.context * layout.tensor)

    def _weights(self, layout: Layout) -> tuple[float, float]:
        """Seconds of gathering weights and summing gradients over the copies: per micro-batch, and per step."""
        dense = (self.network.dense_parameters + self.network.vocabulary_parameters) / layout.pipeline / layout.tensor
        experts = self.network.expert_parameters / layout.pipeline / layout.expert
        gather = self._collective(dense, layout.copies, layout.tensor)
        gather += self._collective(experts, layout.expert_copies, layout.expert)
        if layout.spread_weights:  # in the forward and in the backward pass, and then the gradients in float32
            return gather * (2 * _BFLOAT16 + _FLOAT32 * self.job.trained), 0.0
        return 0.0, gather * (_BFLOAT16 + _FLOAT32) * self.job.trained

    def _collective(self, numbers: float, chips: int, inner: int) -> float:
        """Seconds per byte of a number, for gathering so many numbers on each of `chips`.

        Args:
            numbers: numbers that each chip ends up with
            chips: chips that gather the same
            inner: neighboring chips that each gather something else, so that fewer chips of a node gather the same
        """
        if chips == 1:
            return 0.0
        node = int(self.chip.node.value)
        together = max(1, min(chips, node // min(inner, node)))
        seconds = numbers * (together - 1) / together / self._link
        if chips > together:  # what comes from other nodes enters each node once
            seconds += numbers * (1 - together / chips) / together / self._network
        return seconds

    def _between(self, chips: int) -> float:
        return self._link if chips <= self.chip.node.value else self._network

    # Once per step.

    def _optimizer(self, layout: Layout) -> float:
        """Weights, gradients and both moments are read, all but the gradients written."""
        dense = (self.network.dense_parameters + self.network.vocabulary_parameters) / layout.tensor / layout.copies
        experts = self.network.expert_parameters / layout.expert / layout.expert_copies
        return (dense + experts) / layout.pipeline * self.job.trained * 7 * _FLOAT32 / self._bytes

    def _bubble(self, layout: Layout, count: int) -> float:
        parts = max(1, min(4, len(self.network.layers) // layout.pipeline))
        return (layout.pipeline - 1) / count / parts


def _reached(places: float, top_k: int) -> float:
    """Mean number of different places that a token reaches when it chooses among `places` so many times at random."""
    return places * (1 - (1 - 1 / places) ** top_k)


def _visible(collective: float, computing: float) -> float:
    """The share of a collective's time that the computation of a micro-batch cannot hide."""
    return max(1 - computing / collective, NEVER_HIDDEN) if collective else 0.0
