"""What a person sees while a run trains: a progress bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gossamer.train.config import TrainingConfig

_LEAST_BAR, _MOST_BAR = 8, 40  # characters


class Display:
    """Shows steps, losses and speed on standard error.

    Args:
        training: tells how long the run is
        done: steps taken before this start
        quiet: show nothing, as all processes but one do
    """

    def __init__(self, training: TrainingConfig, done: int = 0, quiet: bool = False) -> None:
        self.console, self._quiet = Console(stderr=True, highlight=False, quiet=quiet), quiet
        self._printed = time.monotonic()
        elsewise = training.budget or training.seconds or training.tokens
        self._steps = "" if elsewise else f"/{training.steps}"
        self._values = dict[str, Any]()  # the newest, for the bar
        self._fresh = dict[str, Any]()  # those that no line has shown
        self._bar = Progress(_Line(self.console), console=self.console, disable=not self.console.is_terminal)
        self._task = self._bar.add_task("train", total=1.0, step=f"step {done}{self._steps}", numbers=[], left="-")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(line, markup=False, soft_wrap=True)

    def step(self, step: int, done: float, elapsed: float, **values: float | str) -> None:
        """Move the bar to `done` (0 to 1).

        `values` may be loss and validation (nats), speed (tokens/s) and cost (in words). A line shows those that are
        newer than the line before; the bar keeps the newest of each.
        """
        self._values |= values
        self._fresh |= values
        left = timedelta(seconds=round(elapsed / done * (1 - done)))
        shown = f"step {step}{self._steps}"
        self._bar.update(self._task, completed=done, step=shown, numbers=_numbers(self._values), left=str(left))
        if not self.console.is_terminal and not self._quiet and ("validation" in values or self._is_time()):
            print("  ".join([shown, *_numbers(self._fresh), f"left {left}"]), file=sys.stderr, flush=True)
            self._fresh.clear()

    def _is_time(self) -> bool:
        """Where there is no terminal, a line every ten seconds tells that the run is alive."""
        now = time.monotonic()
        if due := now - self._printed >= 10:
            self._printed = now
        return due

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def _numbers(values: dict[str, Any]) -> list[str]:
    """What there is to tell, the most important first."""
    loss, validation, speed = (values.get(name) for name in ("loss", "validation", "speed"))
    parts = [
        "" if loss is None else f"loss {loss:.3f}",
        "" if validation is None else f"validation {validation:.3f}",
        "" if speed is None else f"{speed:,.0f} tokens/s",
        *values.get("cost", "").split("  "),
    ]
    return [part for part in parts if part]


def fitting(width: int, step: str, numbers: list[str], elapsed: str, left: str) -> tuple[str, int, str]:
    """What of a progress line there is room for: the step and the time left always, numbers as they come, then the time
    that has passed, then a bar.

    Returns:
        What stands before the bar, the bar's width, and what stands behind it.
    """
    shown = list[str]()
    end = f"left {left}"
    room = width - len(step) - len(end) - 2
    for number in numbers:
        if len(number) + 2 > room:
            break  # what matters less is not shown without what matters more
        shown.append(number)
        room -= len(number) + 2
    else:
        if len(elapsed) + 2 <= room:
            shown.append(elapsed)
            room -= len(elapsed) + 2
    bar = min(room - 2, _MOST_BAR)
    return step, bar if bar >= _LEAST_BAR else 0, "  ".join([*shown, end])


class _Line(ProgressColumn):
    """The whole line, made to the width that the terminal has at the moment."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Table:
        """See rich."""
        elapsed = str(timedelta(seconds=int(task.elapsed or 0)))
        fields = task.fields
        step, bar, rest = fitting(self._console.width - 1, fields["step"], fields["numbers"], elapsed, fields["left"])
        parts: list[Text | ProgressBar] = [Text(step, no_wrap=True, overflow="crop"), Text(rest, no_wrap=True)]
        if bar:
            parts.insert(1, ProgressBar(total=1.0, completed=task.completed, width=bar))
        line = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        line.add_row(*parts)
        return line
