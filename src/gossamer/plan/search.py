"""Every layout of a network on so many chips, the fastest ones that fit, and the fewest chips that anything fits on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gossamer.cost.activations import MicroBatchShape
from gossamer.cost.layout import Layout
from gossamer.cost.memory import ResidentBytes, StepMemory, StepSpec, step_memory, trace_step
from gossamer.cost.network import Network
from gossamer.plan.catalogue import Chip
from gossamer.plan.timing import Job, StepTimer, micro_batches

__all__ = ["FittingLayout", "all_layouts", "chip_memory", "fitting_layouts", "min_chips", "usable_memory"]

MAX_CHIPS = 1 << 20
RESERVED = 0.08
"""Share of a chip's memory that a driver, the buffers of collectives and the allocator's gaps take; an assumption."""
MIN_PART = 2048
"""The fewest tokens that a chip should have of a sequence that is divided among several."""

_POWERS = (1, 2, 4, 8, 16, 32, 64)
_BFLOAT16, _FLOAT32 = 2, 4  # bytes of a number
_ADAMW_MOMENTS = 2  # numbers of AdamW's state per parameter


@dataclass(frozen=True)
class FittingLayout:
    """A layout that fits the memory of the chips, and the time of its step.

    Attributes:
        layout: the layout
        parts: seconds of an optimizer step, by part
        memory: what the fullest chip holds
        micro_batches: micro-batches of a step, for each copy of the network
    """

    layout: Layout
    parts: dict[str, float]
    memory: StepMemory
    micro_batches: int

    @property
    def seconds(self) -> float:
        """Seconds of an optimizer step."""
        return sum(self.parts.values())

    @property
    def rows(self) -> float:
        """Rows of an optimizer step."""
        return self.micro_batches * self.layout.rows * self.layout.data


def fitting_layouts(timer: StepTimer, count: int, max_layouts: int = 5) -> list[FittingLayout]:
    """Return the fastest layouts of so many chips that fit, fastest first, each with another division of the network.

    Args:
        timer: the network, the chip and the job
        count: number of chips
        max_layouts: the largest number of layouts to return

    Returns:
        The layouts; none if nothing fits.
    """
    network, job = timer.network, timer.job
    timed = []
    for layout in _candidates(network, timer.chip, count, job):
        parts = timer.parts(layout)
        rows = micro_batches(layout, job) * layout.rows * layout.data
        timed.append((sum(parts.values()) / rows, layout, parts))
    timed.sort(key=lambda item: item[0])
    found: list[FittingLayout] = []
    seen = set()
    for _, layout, parts in timed:
        division = layout.tensor, layout.pipeline, layout.expert, layout.spread_weights
        if division in seen:
            continue
        memory = _memory(network, layout, job)
        if memory.total <= usable_memory(timer.chip):
            seen.add(division)
            found.append(FittingLayout(layout, parts, memory, micro_batches(layout, job)))
            if len(found) == max_layouts:
                break
    return found


def min_chips(network: Network, chip: Chip, job: Job) -> int | None:
    """Return the fewest chips that a layout fits on; None if there is no such number up to a million.

    More chips never need more memory each, as far as they are a multiple: the number is found by doubling and halving.
    """

    def fits(count: int) -> bool:
        return any(
            _memory(network, layout, job).total <= usable_memory(chip)
            for layout in _candidates(network, chip, count, job)
            if layout.recompute and layout.rows == 1
        )

    high = 1
    while not fits(high):
        high *= 2
        if high > MAX_CHIPS:
            return None
    low = high // 2  # does not fit, or is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def usable_memory(chip: Chip) -> float:
    """Return the bytes of a chip that a layout may fill."""
    return chip.memory.value * (1 - RESERVED)


# All layouts, whether or not they fit.


def all_layouts(network: Network, chips: int, node: int, length: int, batch: int) -> Iterator[Layout]:
    """Yield every layout of so many chips, whether or not it fits their memory.

    Args:
        network: the network
        chips: number of chips
        node: chips that the fast link joins; tensor parallelism stays within it
        length: tokens of a row
        batch: tokens of an optimizer step
    """
    heads = network.activation_config.num_attention_heads
    experts = max((layer.feed_forward.num_experts for layer in network.layers), default=0)
    for tensor in _divisors(chips, min(node, 8, heads)):
        for pipeline in _divisors(chips // tensor, min(len(network.layers), 64)):
            for context in _divisors(chips // tensor // pipeline, max(1, length // MIN_PART)):
                data = chips // tensor // pipeline // context
                for expert in _expert_counts(experts, data * tensor * context):
                    for rows in (1, 2, 4, 8, 16):
                        if rows * data * length > batch and (rows, data) != (1, 1):
                            break
                        for recompute in (False, True):
                            for spread in (True, False) if data * context > 1 else (True,):
                                if spread and pipeline > 1:
                                    continue  # weights would be gathered again for every micro-batch of every stage
                                yield Layout(data, tensor, pipeline, expert, context, rows, recompute, spread)


def _divisors(whole: int, largest: int) -> list[int]:
    return [power for power in _POWERS if power <= largest and whole % power == 0]


def _expert_counts(experts: int, chips: int) -> list[int]:
    if not experts:
        return [1]
    return [power for power in _POWERS if experts % power == 0 and chips % power == 0]


def _candidates(network: Network, chip: Chip, count: int, job: Job) -> Iterator[Layout]:
    return all_layouts(network, count, int(chip.node.value), job.length, job.batch)


# Memory.


def _memory(network: Network, layout: Layout, job: Job) -> StepMemory:
    steps = job.mtp_steps if network.mtp_layers else 0
    return chip_memory(network, layout, job.length, micro_batches(layout, job), steps, trained=job.trained)


def chip_memory(
    network: Network,
    layout: Layout,
    length: int,
    micro_batches: int,
    mtp_steps: int,
    itemsize: int = _BFLOAT16,
    native: frozenset[str] = frozenset(),
    trained: float = 1.0,
) -> StepMemory:
    """Return what the fullest chip of a layout holds at the fullest moment of a step with AdamW.

    Args:
        network: the network
        layout: how it is divided
        length: tokens of a row
        micro_batches: micro-batches of an optimizer step, for each copy of the network
        mtp_steps: how often the multi-token-prediction head is applied
        itemsize: bytes of a number in the computing type
        native: operations that run by the native CPU kernels
        trained: share of the parameters that is trained; below 1 the others are held in bfloat16
    """
    tokens = max(1, length // (layout.context * layout.tensor))
    step = StepSpec(
        MicroBatchShape(layout.rows, tokens, itemsize, native),
        recompute=layout.recompute,
        accumulates=micro_batches > 1,
        mtp_steps=mtp_steps,
        casts=layout.chips == 1 and trained == 1,
    )
    timeline = trace_step(network.activation_config, layout, step, trained)
    return step_memory(timeline, layout, _resident_bytes(network, layout, trained), micro_batches)


def _resident_bytes(network: Network, layout: Layout, trained: float) -> ResidentBytes:
    """Bytes that a chip holds of the network, its gradients and AdamW's state.

    Weights and gradients are in float32 where they are spread. Where every copy holds them all, the weights are in
    bfloat16, and their float32 original lies with the optimizer's state, which is spread over the copies.
    """
    dense = (network.dense_parameters + network.vocabulary_parameters) / layout.pipeline / layout.tensor
    experts = network.expert_parameters / layout.pipeline / layout.expert
    spread, whole = dense / layout.copies + experts / layout.expert_copies, dense + experts
    if layout.spread_weights:
        weights = spread * (_FLOAT32 if trained == 1 else _BFLOAT16 + _FLOAT32 * trained)
        optimizer, gradients = spread * _FLOAT32 * _ADAMW_MOMENTS * trained, spread * _FLOAT32 * trained
    else:
        weights, optimizer = whole * _BFLOAT16, spread * _FLOAT32 * (_ADAMW_MOMENTS + 1) * trained
        gradients = whole * _FLOAT32 * trained
    return ResidentBytes(int(weights), int(gradients), int(optimizer))
