"""What a person sees while a run trains: a progress bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gossamer.train.config import TrainingConfig

_WIDE = 130  # characters


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
        # What there is to tell takes two lines of a narrow terminal.
        self._between = "\n" if self.console.is_terminal and self.console.width < _WIDE else "  "
        self._bar = Progress(
            TextColumn("{task.fields[step]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=1.0, step=f"step {done}{self._steps}", numbers="", left="-")

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
        self._bar.update(self._task, completed=done, step=shown, numbers=self._numbers(self._values), left=str(left))
        if not self.console.is_terminal and not self._quiet and ("validation" in values or self._is_time()):
            print(f"{shown}  {self._numbers(self._fresh)}  left {left}", file=sys.stderr, flush=True)
            self._fresh.clear()

    def _is_time(self) -> bool:
        """Where there is no terminal, a line every ten seconds tells that the run is alive."""
        now = time.monotonic()
        if due := now - self._printed >= 10:
            self._printed = now
        return due

    def _numbers(self, values: dict[str, Any]) -> str:
        loss, validation, speed = (values.get(name) for name in ("loss", "validation", "speed"))
        parts = [
            "" if loss is None else f"loss {loss:.3f}",
            "" if validation is None else f"validation {validation:.3f}",
            "" if speed is None else f"{speed:,.0f} tokens/s",
        ]
        learned = "  ".join(part for part in parts if part)
        return self._between.join(part for part in (learned, values.get("cost", "")) if part)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
