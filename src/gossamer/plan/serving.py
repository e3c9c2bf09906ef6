"""Decoding and prompt processing on a few chips: tokens a second, and what a million of them costs.

A decoding step reads every weight that its tokens touch once, each sequence's cache and state once, and writes the
state back; it computes little, and starts as many kernels as ever. Chips share all of it, and sum what they computed
after each half of a layer. Nothing here is fitted: no published serving figure is in runs.yaml.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gossamer.errors import UserError
from gossamer.plan.catalogue import Chip
from gossamer.plan.efficiency import ATTENTION, DELTA_RULE, Efficiency
from gossamer.plan.workload import Layer, Workload

_NARROW = 2  # bytes of a bfloat16
_READ = 0.8  # share of the memory's bandwidth that reading large weights and caches reaches; taken
_SPARE = 0.9  # share of the memory that weights and caches may fill; taken
_REPLAYED = 1.5e-6  # seconds that a kernel costs in a captured graph, beside its work; taken
_LATENCY = 8e-6  # seconds that a sum over chips takes, however small; taken
_KERNELS = 14  # of a layer
_MOST_CHIPS = 64


@dataclass(frozen=True)
class Serving:
    """A service on chips that share one copy of the network.

    Attributes:
        chip, chips: what it runs on
        batch: sequences that are decoded together
        context: tokens that each has behind it
        weights, caches: bytes, on all chips together
        parts: seconds of a decoding step by part
        prompt_tokens_per_second: of prompts of that context, one after another
        price: US dollars for a chip and hour; None: not known
    """

    work: Workload
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
        """Of all sequences together."""
        return self.batch / sum(self.parts.values())

    def million(self, tokens_per_second: float) -> float | None:
        """US dollars for a million tokens at such a speed of all chips together."""
        return None if self.price is None else self.price * self.chips / 3600 / tokens_per_second * 1e6

    def to_dict(self) -> dict[str, Any]:
        """What a program may want of it."""
        return {
            "model": self.work.name,
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
            "dollars_a_million_tokens": self.million(self.tokens_per_second),
            "dollars_a_million_prompt_tokens": self.million(self.prompt_tokens_per_second),
        }


def serve(
    work: Workload, chip: Chip, chips: int, batch: int, context: int, rates: Efficiency, price: float | None
) -> Serving:
    """What a service does with so many sequences of so many tokens; the draft head is left out.

    Args:
        chips: that share one copy of the network; 0: the least power of two that holds it with its caches

    Raises:
        UserError: the chips do not hold it.
    """
    weights = _NARROW * (work.dense_parameters + work.expert_parameters + work.vocabulary_parameters)
    caches = float(batch * sum(count * _sequence(layer, context) for layer, count in work.layers))
    least = math.ceil((weights + caches) / (chip.memory.value * _SPARE))
    if chips < least and (chips or least > _MOST_CHIPS):
        held = f"{chips or _MOST_CHIPS} × {chip.name}"
        raise UserError(
            f"{work.name} with {batch} sequences of {context:,} tokens takes {(weights + caches) / 1e9:,.0f} GB, which "
            f"{held} do not hold; the least that fits is {least:,}"
        )
    chips = chips or 1 << (least - 1).bit_length()
    return Serving(
        work=work,
        chip=chip,
        chips=chips,
        batch=batch,
        context=context,
        weights=weights,
        caches=caches,
        parts=_decoding(work, chip, chips, batch, caches, context, rates),
        prompt_tokens_per_second=_prompts(work, chip, chips, context, rates),
        price=price,
    )


def _sequence(layer: Layer, context: int) -> int:
    """Bytes of one sequence's cache or state in a layer."""
    kept = min(context, layer.mixer.window) if layer.mixer.window else context
    return _NARROW * (layer.mixer.cache * kept + layer.mixer.state)


def _decoding(
    work: Workload, chip: Chip, chips: int, batch: int, caches: float, context: int, rates: Efficiency
) -> dict[str, float]:
    speed, flops = chip.bandwidth.value * _READ * chips, chip.flops.value * rates.products * chips
    experts = sum(
        count * 3 * work.hidden * layer.feed_forward.expert_width
        * _touched(layer.feed_forward.experts, layer.feed_forward.chosen, batch)
        for layer, count in work.layers
    )  # fmt: skip
    others = work.dense_parameters + work.vocab * work.hidden - _draft_parameters(work)
    states = batch * sum(count * _NARROW * layer.mixer.state for layer, count in work.layers)
    scores = sum(count * 2 * layer.mixer.score_width * context for layer, count in work.layers)
    found = {
        "experts": _NARROW * experts / speed,
        "other weights": _NARROW * others / speed,
        "caches and states": (caches + states) / speed,  # states are written, too
        "computing": batch * (2 * work.active_parameters / flops + scores / (flops * ATTENTION)),
        "kernels": work.depth * _KERNELS * _REPLAYED,
    }
    if chips > 1:
        link = chip.link.value / 2 * rates.links
        size = batch * work.hidden * _NARROW * 2 * (chips - 1) / chips
        found["exchange"] = 2 * work.depth * (_LATENCY + size / link)
    return found


def _prompts(work: Workload, chip: Chip, chips: int, context: int, rates: Efficiency) -> float:
    """Tokens a second: forward FLOPs at the rates of training, and a third of the bytes that a training step moves."""
    flops = chip.flops.value * rates.products
    seconds = 2 * work.active_parameters / flops
    for layer, count in work.layers:
        mixer = layer.mixer
        seconds += count * 2 * mixer.score_width * mixer.keys(context) / (flops * ATTENTION)
        seconds += count * mixer.rule[0] / (flops * DELTA_RULE)
        rows = layer.feed_forward.chosen * (4 * work.hidden + 5 * layer.feed_forward.expert_width)
        moved = mixer.moved + 5 * work.hidden + rows + 12 * layer.feed_forward.experts
        seconds += count * _NARROW * moved / (chip.bandwidth.value * rates.memory)
    if chips > 1:
        size = 4 * work.hidden * _NARROW * (chips - 1) / chips
        seconds = seconds / chips + work.depth * size / (chip.link.value / 2 * rates.links)
    return 1 / seconds


def _touched(experts: int, chosen: int, batch: int) -> float:
    """Experts of a layer that a batch's tokens are sent to, chosen at random."""
    return experts * (1 - (1 - chosen / experts) ** batch) if experts else 0.0


def _draft_parameters(work: Workload) -> float:
    """Of the multi-token-prediction head, outside of its experts."""
    ones = sum(
        layer.mixer.parameters + work.hidden * (3 * layer.feed_forward.width + layer.feed_forward.experts)
        for layer in work.drafts
    )
    return ones + len(work.drafts) * 2 * work.hidden**2
