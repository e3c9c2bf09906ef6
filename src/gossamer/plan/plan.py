"""A run on so many chips: the fastest layouts, and what the run takes in time, energy and money."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from gossamer.errors import UserError
from gossamer.model.config import SIZES
from gossamer.plan.catalogue import Chip
from gossamer.plan.efficiency import Fitted
from gossamer.plan.search import Option, least_chips, options
from gossamer.plan.timing import Job, StepTimer
from gossamer.plan.workload import Workload

_HOUR, _DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class Plan:
    """A run on one kind of chip.

    Attributes:
        work, chip, count, job: what runs where
        tokens: of the whole run
        options: the fastest layouts that fit, fastest first
        availability: share of the device-hours that goes into steps
        time_error: how far the time may be off, as a logarithm: the planner's own error and the figures' grades
        price: US dollars for a chip and hour; None: not known
        price_error: how far the price may be off, as a share
    """

    work: Workload
    chip: Chip
    count: int
    job: Job
    tokens: float
    options: tuple[Option, ...]
    availability: float
    time_error: float
    price: float | None
    price_error: float

    @property
    def best(self) -> Option:
        return self.options[0]

    def tokens_per_second(self, option: Option | None = None) -> float:
        """Of all chips, while steps are taken."""
        option = option or self.best
        return option.rows * self.job.length / option.seconds

    @property
    def passes(self) -> float:
        """Forward passes that a step is worth: one forward, one for the gradients of activations, and one for the
        gradients of weights as far as they are trained: 3 of the whole network, hardly more than 2 of adapters."""
        return 2 + self.job.trained

    @property
    def flops(self) -> dict[str, float]:
        """FLOPs a token of a training step by part."""
        whole = self.work.flops(self.job.length, self.job.mtp_steps if self.work.drafts else 0)
        return {part: flops * self.passes / 3 for part, flops in whole.items()}

    def mfu(self, option: Option | None = None) -> float:
        """The model's FLOPs, as a share of the chips' bfloat16 peak, while steps are taken."""
        flops = sum(self.flops.values()) * self.tokens_per_second(option)
        return flops / (self.count * self.chip.flops.value)

    @property
    def simple_mfu(self) -> float:
        """The same by 6·N·D, or 4·N·D of adapters, N being the active parameters: to compare with others' figures."""
        flops = 2 * self.passes * self.work.active_parameters * self.tokens_per_second()
        return flops / (self.count * self.chip.flops.value)

    @property
    def days(self) -> float:
        return self.tokens / self.tokens_per_second() / self.availability / _DAY

    @property
    def device_hours(self) -> float:
        return self.days * _DAY / _HOUR * self.count

    @property
    def kilowatt_hours(self) -> float | None:
        """At the chips' full power, without the machines around them; None: their power is not known."""
        return None if self.chip.power is None else self.device_hours * self.chip.power.value / 1000

    @property
    def dollars(self) -> float | None:
        return None if self.price is None else self.device_hours * self.price

    def between(self, value: float, more: float = 0.0) -> tuple[float, float]:
        """The range that a value in proportion to the time may lie in, with another share of error beside."""
        width = math.exp(math.hypot(self.time_error, math.log1p(more)))
        return value / width, value * width

    def to_dict(self) -> dict[str, Any]:
        """What a program may want of it; money in US dollars, bytes, seconds."""
        return {
            "model": self.work.name,
            **dict(zip(SIZES, self.work.sizes, strict=True)),
            "training_flops_per_token": self.flops,
            "chip": self.chip.key,
            "grade": self.chip.worst_grade,
            "count": self.count,
            "tokens": self.tokens,
            "sequence_length": self.job.length,
            "batch_tokens": self.job.batch,
            "tokens_per_second": self.tokens_per_second(),
            "mfu": self.mfu(),
            "mfu_by_parameters": self.simple_mfu,
            "days": self.days,
            "days_range": self.between(self.days),
            "device_hours": self.device_hours,
            "availability": self.availability,
            "kilowatt_hours": self.kilowatt_hours,
            "dollars": self.dollars,
            "dollars_range": None if self.dollars is None else self.between(self.dollars, self.price_error),
            "layouts": [
                asdict(option.layout)
                | {
                    "step_seconds": option.seconds,
                    "micro_batches": option.micro_batches,
                    "tokens_per_second": self.tokens_per_second(option),
                    "parts": option.parts,
                    "memory": asdict(option.memory) | {"total": option.memory.total, "chip": self.chip.memory.value},
                }
                for option in self.options
            ],
        }


def make_plan(
    work: Workload,
    chip: Chip,
    count: int,
    job: Job,
    tokens: float,
    efficiency: Fitted,
    price: float | None = None,
    price_error: float = 0.0,
) -> Plan:
    """Find the fastest layouts and what the run takes.

    Args:
        count: chips
        tokens: of the whole run
        price: US dollars for a chip and hour; None: not known

    Raises:
        UserError: no layout fits; the line says on how many chips one does.
    """
    timer = StepTimer(work, chip, efficiency.rates, job)
    found = options(timer, count)
    if not found:
        raise _misfit(work, chip, count, job)
    return Plan(
        work=work,
        chip=chip,
        count=count,
        job=job,
        tokens=tokens,
        options=tuple(found),
        availability=efficiency.rates.availability,
        time_error=math.hypot(efficiency.error, *_sensitivities(timer, found, efficiency)),
        price=price,
        price_error=price_error,
    )


def _misfit(work: Workload, chip: Chip, count: int, job: Job) -> UserError:
    """Why no layout of so many chips fits, and what would."""
    least = least_chips(work, chip, job)
    if least is None:
        return UserError(f"{work.name} fits on no number of {chip.name} with rows of {job.length:,} tokens")
    if least <= count:  # enough of them, but each copy of the network needs a row of its own
        return UserError(
            f"{count:,} × {chip.name} cannot share a step of {job.batch:,} tokens in rows of {job.length:,}: raise "
            f"--batch_tokens, or take a --count of more factors of two; the least that fits is {least:,}"
        )
    return UserError(
        f"{work.name} does not fit {count:,} × {chip.name} in any layout; the least that fits is {least:,}"
    )


def _sensitivities(timer: StepTimer, found: list[Option], efficiency: Fitted) -> list[float]:
    """How the step's time changes, as a logarithm, with each figure at the lower end of what its grade allows.

    The layout may change to another of those found: whoever has the chip will choose by what it does.
    """
    changes = []
    for name in ("flops", "bandwidth", "link", "network"):
        figure = getattr(timer.chip, name)
        worse = replace(timer.chip, **{name: replace(figure, value=figure.value * (1 - figure.error))})
        slower = StepTimer(timer.work, worse, efficiency.rates, timer.job)
        least = min(sum(slower.parts(option.layout).values()) / option.rows for option in found)
        changes.append(math.log(least / (found[0].seconds / found[0].rows)))
    return changes
