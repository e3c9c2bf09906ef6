"""The plan of a run on a cluster: the fastest layouts, and what the run takes in time, energy and money."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from gossamer.cost.network import Network
from gossamer.errors import UserError
from gossamer.plan.catalogue import Chip
from gossamer.plan.efficiency import FittedEfficiency
from gossamer.plan.search import FittingLayout, fitting_layouts, min_chips
from gossamer.plan.timing import Job, StepTimer
from gossamer.units import SIZES

_HOUR, _DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class ClusterPlan:
    """The plan of a run on chips of one kind.

    Attributes:
        network: the network
        chip: the kind of chip
        count: number of chips
        job: what a step is made of
        tokens: tokens of the whole run
        layouts: the fastest layouts that fit, fastest first
        availability: share of the device-hours that goes into steps
        time_error: how far the time may be off, as a logarithm: the planner's own error and the grades of the figures
        price: US dollars per chip-hour; None if it is not known
        price_error: how far the price may be off, as a share of it
    """

    network: Network
    chip: Chip
    count: int
    job: Job
    tokens: float
    layouts: tuple[FittingLayout, ...]
    availability: float
    time_error: float
    price: float | None
    price_error: float

    @property
    def best(self) -> FittingLayout:
        """The fastest layout."""
        return self.layouts[0]

    def tokens_per_second(self, fitting: FittingLayout | None = None) -> float:
        """Return the tokens per second of all chips while steps are taken, with the best layout or another."""
        fitting = fitting or self.best
        return fitting.rows * self.job.length / fitting.seconds

    @property
    def passes(self) -> float:
        """Forward passes that a step is worth: 3 where everything is trained, hardly more than 2 for adapters.

        One is the forward pass, one the gradients of activations, and one the gradients of trained weights.
        """
        return 2 + self.job.trained

    @property
    def flops(self) -> dict[str, float]:
        """FLOPs per token of a training step, by part."""
        whole = self.network.flops(self.job.length, self.job.mtp_steps if self.network.mtp_layers else 0)
        return {part: flops * self.passes / 3 for part, flops in whole.items()}

    def mfu(self, fitting: FittingLayout | None = None) -> float:
        """Return the model's FLOPs as a share of the chips' bfloat16 peak, while steps are taken."""
        flops = sum(self.flops.values()) * self.tokens_per_second(fitting)
        return flops / (self.count * self.chip.flops.value)

    @property
    def mfu_by_parameters(self) -> float:
        """MFU by 6·N·D FLOPs, or 4·N·D for adapters, with N the active parameters, as others count them."""
        flops = 2 * self.passes * self.network.active_parameters * self.tokens_per_second()
        return flops / (self.count * self.chip.flops.value)

    @property
    def days(self) -> float:
        """Days of the whole run."""
        return self.tokens / self.tokens_per_second() / self.availability / _DAY

    @property
    def device_hours(self) -> float:
        """Hours of all chips together."""
        return self.days * _DAY / _HOUR * self.count

    @property
    def kilowatt_hours(self) -> float | None:
        """Energy at the chips' full power, without the machines around them; None if their power is not known."""
        return None if self.chip.power is None else self.device_hours * self.chip.power.value / 1000

    @property
    def dollars(self) -> float | None:
        """US dollars of the whole run; None if the price is not known."""
        return None if self.price is None else self.device_hours * self.price

    def uncertainty_range(self, value: float, extra_error: float = 0.0) -> tuple[float, float]:
        """Return the range that a value in proportion to the time may lie in.

        Args:
            value: the value
            extra_error: a further error, as a share of the value
        """
        width = math.exp(math.hypot(self.time_error, math.log1p(extra_error)))
        return value / width, value * width

    def to_dict(self) -> dict[str, Any]:
        """Return the plan for a program; money in US dollars, sizes in bytes, times in seconds."""
        return {
            "model": self.network.name,
            **dict(zip(SIZES, self.network.sizes, strict=True)),
            "training_flops_per_token": self.flops,
            "chip": self.chip.key,
            "grade": self.chip.worst_grade,
            "count": self.count,
            "tokens": self.tokens,
            "sequence_length": self.job.length,
            "batch_tokens": self.job.batch,
            "tokens_per_second": self.tokens_per_second(),
            "mfu": self.mfu(),
            "mfu_by_parameters": self.mfu_by_parameters,
            "days": self.days,
            "days_range": self.uncertainty_range(self.days),
            "device_hours": self.device_hours,
            "availability": self.availability,
            "kilowatt_hours": self.kilowatt_hours,
            "dollars": self.dollars,
            "dollars_range": None if self.dollars is None else self.uncertainty_range(self.dollars, self.price_error),
            "layouts": [
                asdict(fitting.layout)
                | {
                    "step_seconds": fitting.seconds,
                    "micro_batches": fitting.micro_batches,
                    "tokens_per_second": self.tokens_per_second(fitting),
                    "parts": fitting.parts,
                    "memory": asdict(fitting.memory) | {"total": fitting.memory.total, "chip": self.chip.memory.value},
                }
                for fitting in self.layouts
            ],
        }


def make_plan(
    network: Network,
    chip: Chip,
    count: int,
    job: Job,
    tokens: float,
    efficiency: FittedEfficiency,
    price: float | None = None,
    price_error: float = 0.0,
) -> ClusterPlan:
    """Find the fastest layouts, and what the run takes.

    Args:
        network: the network
        chip: the kind of chip
        count: number of chips
        job: what a step is made of
        tokens: tokens of the whole run
        efficiency: shares of the chip's figures that are reached, with their error
        price: US dollars per chip-hour; None if it is not known
        price_error: how far the price may be off, as a share of it

    Raises:
        UserError: no layout fits; the line says how many chips are enough.
    """
    timer = StepTimer(network, chip, efficiency.rates, job)
    found = fitting_layouts(timer, count)
    if not found:
        raise _does_not_fit(network, chip, count, job)
    return ClusterPlan(
        network=network,
        chip=chip,
        count=count,
        job=job,
        tokens=tokens,
        layouts=tuple(found),
        availability=efficiency.rates.availability,
        time_error=math.hypot(efficiency.error_for(network), *_sensitivities(timer, found, efficiency)),
        price=price,
        price_error=price_error,
    )


def _does_not_fit(network: Network, chip: Chip, count: int, job: Job) -> UserError:
    """Why no layout of so many chips fits, and what would."""
    fewest = min_chips(network, chip, job)
    if fewest is None:
        return UserError(f"{network.name} fits on no number of {chip.name} with rows of {job.length:,} tokens")
    if fewest <= count:  # enough of them, but each copy of the network needs a row of its own
        return UserError(
            f"{count:,} × {chip.name} cannot share a step of {job.batch:,} tokens in rows of {job.length:,}: raise "
            f"--batch-tokens, or take a --count of more factors of two; the fewest chips that it fits on are {fewest:,}"
        )
    return UserError(
        f"{network.name} does not fit {count:,} × {chip.name} in any layout; the fewest chips that it fits on are "
        f"{fewest:,}"
    )


def _sensitivities(timer: StepTimer, found: list[FittingLayout], efficiency: FittedEfficiency) -> list[float]:
    """Logarithms of how much longer a step takes with each figure at the lower end of what its grade allows.

    The layout may then be another of those found, for whoever has the chip will choose by what it does.
    """
    changes = []
    for name in ("flops", "bandwidth", "link", "network"):
        figure = getattr(timer.chip, name)
        worse = replace(timer.chip, **{name: replace(figure, value=figure.value * (1 - figure.error))})
        slower = StepTimer(timer.network, worse, efficiency.rates, timer.job)
        fastest = min(sum(slower.parts(fitting.layout).values()) / fitting.rows for fitting in found)
        changes.append(math.log(fastest / (found[0].seconds / found[0].rows)))
    return changes
