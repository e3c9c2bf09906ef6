"""Decoding and prompt processing on a few chips: tokens per second, and what a million of them costs.

A decoding step reads every weight that its tokens touch once, and the cache and the state of each sequence once; it
writes the states back. It computes little and starts as many kernels as ever. Chips share all of it, and sum what they
computed after each half of a layer. Nothing here is fitted: published_runs.yaml has no published figure of serving.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gossamer.cost.layer import Layer
from gossamer.cost.network import Network
from gossamer.errors import UserError
from gossamer.plan.catalogue import Chip
from gossamer.plan.efficiency import ATTENTION, DELTA_RULE, Efficiency
from gossamer.units import amount, decimal_size

_BFLOAT16 = 2  # bytes of a number
# Assumptions:
_READ = 0.8  # share of the memory's bandwidth that reading large weights and caches reaches
_SPARE = 0.9  # share of the memory that weights and caches may fill
_REPLAYED = 1.5e-6  # seconds that a kernel costs in a captured graph, beside its work
_LATENCY = 8e-6  # seconds that a sum over chips takes, however small it is
_KERNELS = 14  # kernels of a layer
_MAX_CHIPS = 64


@dataclass(frozen=True)
class Serving:
    """A service on chips that share one copy of a network.

    Attributes:
        network: the network
        chip: the kind of chip
        chips: number of chips
        batch: sequences that are decoded together
        context: tokens of each sequence so far
        weights: bytes of the weights, on all chips together
        caches: bytes of caches and states, on all chips together
        parts: seconds of a decoding step, by part
        prompt_tokens_per_second: tokens per second of prompts of that context, one after another
        price: US dollars per chip-hour; None if it is not known
    """

    network: Network
    chip: Chip
    chips: int
    batch: int
    context: int
    weights: float
    caches: float
    parts: dict[str, float]
    prompt_tokens_per_second: float
    price: float | None

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all sequences together."""
        return self.batch / sum(self.parts.values())

    def dollars_per_million_tokens(self, tokens_per_second: float) -> float | None:
        """Return the US dollars that a million tokens cost at such a speed of all chips together."""
        return None if self.price is None else self.price * self.chips / 3600 / tokens_per_second * 1e6

    def to_dict(self) -> dict[str, Any]:
        """Return the plan for a program; money in US dollars, sizes in bytes, times in seconds."""
        return {
            "model": self.network.name,
            "chip": self.chip.key,
            "chips": self.chips,
            "batch": self.batch,
            "context": self.context,
            "weight_bytes": self.weights,
            "cache_bytes": self.caches,
            "step_seconds": sum(self.parts.values()),
            "parts": self.parts,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_second_a_sequence": self.tokens_per_second / self.batch,
            "prompt_tokens_per_second": self.prompt_tokens_per_second,
            "dollars_a_million_tokens": self.dollars_per_million_tokens(self.tokens_per_second),
            "dollars_a_million_prompt_tokens": self.dollars_per_million_tokens(self.prompt_tokens_per_second),
        }


def plan_serving(
    network: Network, chip: Chip, chips: int, batch: int, context: int, rates: Efficiency, price: float | None
) -> Serving:
    """Return what a service does with so many sequences of so many tokens; the draft head is left out.

    Args:
        network: the network
        chip: the kind of chip
        chips: chips that share one copy of the network; 0 means the smallest power of two that holds it
        batch: sequences that are decoded together
        context: tokens of each sequence so far
        rates: shares of the chip's figures that are reached
        price: US dollars per chip-hour; None if it is not known

    Raises:
        UserError: the chips do not hold the network with its caches.
    """
    weights = _BFLOAT16 * network.parameters
    caches = float(batch * sum(count * _sequence_bytes(layer, context) for layer, count in network.distinct_layers))
    fewest = math.ceil((weights + caches) / (chip.memory.value * _SPARE))
    if chips < fewest and (chips or fewest > _MAX_CHIPS):
        raise UserError(
            f"{network.name} with {amount(batch, 'sequence')} of {context:,} tokens takes "
            f"{decimal_size(weights + caches)}, which {chips or _MAX_CHIPS} × {chip.name} do not hold; the fewest that "
            f"do are {fewest:,}"
        )
    chips = chips or 1 << (fewest - 1).bit_length()
    return Serving(
        network=network,
        chip=chip,
        chips=chips,
        batch=batch,
        context=context,
        weights=weights,
        caches=caches,
        parts=_decoding(network, chip, chips, batch, caches, context, rates),
        prompt_tokens_per_second=_prompt_speed(network, chip, chips, context, rates),
        price=price,
    )


def _sequence_bytes(layer: Layer, context: int) -> int:
    """Bytes of one sequence's cache or state in a layer."""
    cached = min(context, layer.mixer.window) if layer.mixer.window else context
    return layer.mixer.kv_cache_bytes * cached + layer.mixer.state_bytes


def _decoding(
    network: Network, chip: Chip, chips: int, batch: int, caches: float, context: int, rates: Efficiency
) -> dict[str, float]:
    """Seconds of a decoding step, by part."""
    speed, flops = chip.bandwidth.value * _READ * chips, chip.flops.value * rates.products * chips
    experts = sum(
        count * layer.feed_forward.one_expert
        * _touched(layer.feed_forward.num_experts, layer.feed_forward.top_k, batch)
        for layer, count in network.distinct_layers
    )  # fmt: skip
    others = network.dense_parameters + network.vocab_size * network.hidden_size - network.mtp_dense_parameters
    states = batch * sum(count * layer.mixer.state_bytes for layer, count in network.distinct_layers)
    scores = sum(count * 2 * layer.mixer.score_width * context for layer, count in network.distinct_layers)
    found = {
        "experts": _BFLOAT16 * experts / speed,
        "other weights": _BFLOAT16 * others / speed,
        "caches and states": (caches + states) / speed,  # states are written, too
        "computing": batch * (2 * network.active_parameters / flops + scores / (flops * ATTENTION)),
        "kernels": len(network.layers) * _KERNELS * _REPLAYED,
    }
    if chips > 1:
        link = chip.link.value / 2 * rates.links
        size = batch * network.hidden_size * _BFLOAT16 * 2 * (chips - 1) / chips
        found["exchange"] = 2 * len(network.layers) * (_LATENCY + size / link)
    return found


def _prompt_speed(network: Network, chip: Chip, chips: int, context: int, rates: Efficiency) -> float:
    """Tokens per second: forward FLOPs at the rates of training, and a third of the bytes that training moves."""
    flops = chip.flops.value * rates.products
    seconds = 2 * network.active_parameters / flops
    for layer, count in network.distinct_layers:
        mixer, part = layer.mixer, layer.feed_forward
        seconds += count * 2 * mixer.score_width * mixer.mean_keys(context) / (flops * ATTENTION)
        seconds += count * mixer.delta_rule_flops[0] / (flops * DELTA_RULE)
        rows = part.top_k * (4 * network.hidden_size + 5 * part.expert_width)
        moved = mixer.moved + 5 * network.hidden_size + rows + 12 * part.num_experts
        seconds += count * _BFLOAT16 * moved / (chip.bandwidth.value * rates.memory)
    if chips > 1:
        size = 4 * network.hidden_size * _BFLOAT16 * (chips - 1) / chips
        seconds = seconds / chips + len(network.layers) * size / (chip.link.value / 2 * rates.links)
    return 1 / seconds


def _touched(experts: int, top_k: int, batch: int) -> float:
    """Mean number of experts of a layer that a batch reaches if each token is sent to `top_k` of them at random."""
    return experts * (1 - (1 - top_k / experts) ** batch) if experts else 0.0
