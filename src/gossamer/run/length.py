"""How long a run is, in steps, tokens, seconds of training or by a budget, and how far it has come.

A budget of time holds everything from the start of the command to its end. What comes after the last step, the last
evaluation, sample and checkpoint, is set aside by what the same has taken so far in this run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from gossamer.cost.budget import parse_budget
from gossamer.data.packing import Batch
from gossamer.run.meter import Meter
from gossamer.train.config import TrainingConfig
from gossamer.train.schedule import progress
from gossamer.train.world import World

Pause = Literal["evaluation", "sample", "save"]

# Until a pause was measured, as a share of the budget; then the report and the end of the process, in seconds.
_UNMEASURED: dict[Pause, float] = {"evaluation": 0.02, "sample": 0.01, "save": 0.01}
_REPORT = 1.5


class Length:
    """The end of a run, and the share of it that lies behind.

    Args:
        training: says how long it is, and how much text the last evaluation reads
        meter: knows what was spent
        world: the processes, which must agree

    Attributes:
        done: 0 to 1, as of the last `update`
        seconds: that the budget comes to; None: the run's length is none of time
        flops: the same of FLOPs
    """

    def __init__(self, training: TrainingConfig, meter: Meter, world: World) -> None:
        self.training, self.meter, self.world = training, meter, world
        self.done = 0.0
        self.seconds: float | None = None
        self.flops: float | None = None
        if training.budget:
            budget = parse_budget(training.budget, training.price, training.currency)
            self.seconds = budget.seconds(training.price, world.size)
            self.flops = budget.amount if self.seconds is None else None
        self._pauses: dict[Pause, float] = {}

    @property
    def limit(self) -> tuple[str, str]:
        """How long the run is, and the key in `training` that says so."""
        name = next(name for name in ("budget", "seconds", "tokens", "steps") if getattr(self.training, name))
        value = getattr(self.training, name)
        return (value if name == "budget" else f"{value:g}"), name

    def update(self, step: int, tokens: int, elapsed: float) -> None:
        """See how far the run is, after so many steps, tokens and seconds of training. Every process calls this."""
        if self.flops is not None:
            a_step = self.meter.flops_per_token * self.meter.tokens_per_step
            self.done = min(1.0, self.meter.ledger.work.all_flops / max(self.flops - self.flops % a_step, a_step))
        elif self.seconds is not None:
            # What is set aside changes as it is measured; the run does not turn back for that.
            self.done = max(self.done, min(1.0, self._spent() / (self.seconds - self._set_aside())))
        else:
            self.done = progress(self.training, step, tokens, elapsed)

    def took(self, pause: Pause, seconds: float, share: float = 1.0) -> None:
        """A pause of training has taken so long, and was this share of the one that comes at the end."""
        self._pauses[pause] = seconds / share

    def in_time(self, batches: Iterator[Batch], least: int = 1) -> Iterator[Batch]:
        """Of the last evaluation's batches as many as a budget of time leaves room for, and `least` at least."""
        latest = None if self.seconds is None else self.seconds - self._set_aside("sample", "save")
        for number, batch in enumerate(batches):
            if latest is not None and number >= least and self._spent() > latest:
                return
            yield batch

    def _spent(self) -> float:
        """Seconds of the clock since the run was begun, stops left out; the mean over processes, so that they agree."""
        spent = torch.tensor(self.meter.seconds, dtype=torch.float64)
        return float(self.world.sum_(spent)) / self.world.size

    def _set_aside(self, *pauses: Pause) -> float:
        """Seconds for what comes after the last step, or these parts of it; at most half of the budget."""
        assert self.seconds is not None
        wanted = pauses or tuple(_UNMEASURED)
        needed = sum(self._pauses.get(pause, self.seconds * _UNMEASURED[pause]) for pause in wanted) + _REPORT
        most = torch.tensor(min(needed, self.seconds / 2), dtype=torch.float64)
        return float(self.world.sum_(most)) / self.world.size
