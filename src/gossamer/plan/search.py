"""The fastest layouts that fit, and the least number of chips that anything fits on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gossamer.plan.catalogue import Chip
from gossamer.plan.layout import Layout, layouts
from gossamer.plan.memory import RESERVED, ChipMemory, chip_memory
from gossamer.plan.timing import Job, StepTimer, micro_batches
from gossamer.plan.workload import Workload

MOST_CHIPS = 1 << 20


@dataclass(frozen=True)
class Option:
    """A layout that fits.

    Attributes:
        layout: the layout
        parts: seconds of an optimizer step by part
        memory: of the fullest chip
        micro_batches: of a step, for each copy of the network
    """

    layout: Layout
    parts: dict[str, float]
    memory: ChipMemory
    micro_batches: int

    @property
    def seconds(self) -> float:
        """Of an optimizer step."""
        return sum(self.parts.values())

    @property
    def rows(self) -> float:
        """Rows of an optimizer step."""
        return self.micro_batches * self.layout.rows * self.layout.data


def options(timer: StepTimer, count: int, wanted: int = 5) -> list[Option]:
    """The fastest layouts of so many chips that fit, fastest first, no two with the same split of the network.

    Returns:
        at most `wanted`; none if nothing fits
    """
    work, job = timer.work, timer.job
    timed = []
    for layout in _candidates(work, timer.chip, count, job):
        parts = timer.parts(layout)
        tokens = micro_batches(layout, job) * layout.rows * layout.data
        timed.append((sum(parts.values()) / tokens, layout, parts))
    timed.sort(key=lambda item: item[0])
    found: list[Option] = []
    seen = set()
    for _, layout, parts in timed:
        split = layout.tensor, layout.pipeline, layout.expert, layout.spread_weights
        if split in seen:
            continue
        memory = _memory(work, layout, job)
        if memory.total <= room(timer.chip):
            seen.add(split)
            found.append(Option(layout, parts, memory, micro_batches(layout, job)))
            if len(found) == wanted:
                break
    return found


def least_chips(work: Workload, chip: Chip, job: Job) -> int | None:
    """The least number of chips that a layout fits on; None if there is none up to a million.

    More chips never need more memory each, as far as they are a multiple: the number is found by doubling and halving.
    """

    def fits(count: int) -> bool:
        return any(
            _memory(work, layout, job).total <= room(chip)
            for layout in _candidates(work, chip, count, job)
            if layout.recompute and layout.rows == 1
        )

    high = 1
    while not fits(high):
        high *= 2
        if high > MOST_CHIPS:
            return None
    low = high // 2  # does not fit, or is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def room(chip: Chip) -> float:
    """Bytes of a chip that a layout may fill."""
    return chip.memory.value * (1 - RESERVED)


def _candidates(work: Workload, chip: Chip, count: int, job: Job) -> Iterator[Layout]:
    return layouts(work, count, int(chip.node.value), job.length, job.batch)


def _memory(work: Workload, layout: Layout, job: Job) -> ChipMemory:
    steps = job.mtp_steps if work.drafts else 0
    return chip_memory(work, layout, job.length, micro_batches(layout, job), steps, trained=job.trained)
