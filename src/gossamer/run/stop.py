"""When a run ends: by its steps, tokens, seconds of training or budget, or by a signal.

A budget of time covers everything from the start of the command to its end. What comes after the last step, that is the
last validation, sample and checkpoint, is allowed the time that the same has taken so far in this run.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from gossamer.cost.budget import parse_budget
from gossamer.data.packing import Batch
from gossamer.run.cost import CostMeter
from gossamer.train.config import TrainingConfig
from gossamer.train.world import World
from gossamer.typed import Range

__all__ = ["NOTHING_YET", "Progress", "StopRule", "interruptible"]

Pause = Literal["validation", "sample", "save", "guard"]

# A pause that was not measured yet is expected to need this share of the budget; a guard has only a tuning, which
# measures it before its first step.
_UNMEASURED: dict[Pause, float] = {"validation": 0.02, "sample": 0.01, "save": 0.01}
_REPORT_SECONDS = 1.5  # for the report and the end of the process

_Count = Annotated[int, Range(0, (1 << 63) - 1)]


@dataclass(frozen=True)
class Progress:
    """How far a run has come. `StopRule` makes a new one after each step.

    Attributes:
        step: optimizer steps so far
        tokens: tokens trained on so far
        elapsed: seconds of training so far: of steps and the start from bigrams, not of validation, samples and saves
        fraction: the share of the run that is behind it, 0 to 1
    """

    step: _Count
    tokens: _Count
    elapsed: Annotated[float, Range(0, 1e30)]
    fraction: Annotated[float, Range(0, 1)]

    @property
    def is_complete(self) -> bool:
        """Whether the run has taken its last step."""
        return self.fraction >= 1


NOTHING_YET = Progress(0, 0, 0.0, 0.0)
"""The progress of a run before its first step."""


class StopRule:
    """Decides how far a run has come, and so when it takes its last step.

    Args:
        training: says what ends the run
        costs: what the run has spent
        world: the processes, which must agree

    Attributes:
        budget_seconds: seconds of the clock that the budget comes to; None: no budget of time ends the run
        budget_flops: FLOPs that the budget comes to; None: no budget of FLOPs ends the run
    """

    def __init__(self, training: TrainingConfig, costs: CostMeter, world: World) -> None:
        self.training, self.costs, self.world = training, costs, world
        self.budget_seconds: float | None = None
        self.budget_flops: float | None = None
        if training.budget:
            budget = parse_budget(training.budget, training.price, training.currency)
            self.budget_seconds = budget.seconds(training.price, world.size)
            self.budget_flops = budget.amount if self.budget_seconds is None else None
        self._pauses: dict[Pause, float] = {}  # seconds

    @property
    def setting(self) -> tuple[str, str]:
        """The amount that ends the run, and its key in `training`: budget if set, else seconds, tokens or steps."""
        name = next(name for name in ("budget", "seconds", "tokens", "steps") if getattr(self.training, name))
        value = getattr(self.training, name)
        return (value if name == "budget" else f"{value:,.10g}"), name

    def advance(self, progress: Progress, steps: int = 0, tokens: int = 0, seconds: float = 0.0) -> Progress:
        """Return the progress after more steps, tokens and seconds of training. Every process calls this.

        After a pause only the fraction changes, since a pause uses up a budget of time, too.
        """
        step, all_tokens, elapsed = progress.step + steps, progress.tokens + tokens, progress.elapsed + seconds
        if self.budget_flops is not None:
            step_flops = self.costs.flops_per_token * self.costs.tokens_per_step
            flops_of_whole_steps = max(self.budget_flops - self.budget_flops % step_flops, step_flops)
            # A sum of steps may be rounded down, and would then be short of what it is.
            fraction = self.costs.ledger.work.all_flops * (1 + 1e-9) / flops_of_whole_steps
        elif self.budget_seconds is not None:
            # The time for what comes at the end changes as it is measured; the run does not turn back for that.
            fraction = max(
                progress.fraction, self._seconds_spent() / (self.budget_seconds - self._seconds_at_the_end())
            )
        elif self.training.seconds:
            fraction = elapsed / self.training.seconds
        elif self.training.tokens:
            fraction = all_tokens / self.training.tokens
        else:
            fraction = step / self.training.steps
        return Progress(step, all_tokens, elapsed, min(1.0, fraction))

    def record_pause(self, pause: Pause, seconds: float, share: float = 1.0) -> None:
        """Note how long a pause of training was, and which share it was of the one that comes at the end."""
        self._pauses[pause] = seconds / share

    def batches_in_time(self, batches: Iterator[Batch], min_batches: int = 1) -> Iterator[Batch]:
        """Yield as many batches of the last validation as a budget of time leaves room for, or `min_batches`."""
        latest = (
            None
            if self.budget_seconds is None
            else self.budget_seconds - self._seconds_at_the_end("sample", "save", "guard")
        )
        for number, batch in enumerate(batches):
            if latest is not None and number >= min_batches and self._seconds_spent() > latest:
                return
            yield batch

    def _seconds_spent(self) -> float:
        """Return seconds of the clock since the run was begun, without the times in which it was stopped."""
        return self.world.mean_over_ranks(self.costs.wall_seconds)

    def _seconds_at_the_end(self, *pauses: Pause) -> float:
        """Return the seconds for what comes after the last step, or for some of it; at most half of the budget."""
        assert self.budget_seconds is not None
        unmeasured = {pause: self.budget_seconds * share for pause, share in _UNMEASURED.items()}
        seconds = unmeasured | self._pauses
        needed = sum(seconds.get(pause, 0.0) for pause in pauses or seconds) + _REPORT_SECONDS
        return self.world.mean_over_ranks(min(needed, self.budget_seconds / 2))


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP, to be acted on between steps; a second Ctrl-C stops at once.

    The list is empty until a signal comes. SIGHUP, which a terminal sends when it is closed, stays ignored
    where the process was started with it ignored, as nohup does.
    """
    caught: list[int] = []

    def handle(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        numbers.append(hangup)
    try:
        before = {number: signal.signal(number, handle) for number in numbers}
    except ValueError:  # not the main thread: its caller handles signals
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
