"""How far slow stages have come, on standard error: a bar at a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gossamer.units import duration, percent

__all__ = ["ProgressDisplay"]

_LINE_EVERY = 10  # seconds


class ProgressDisplay:
    """Shows on standard error how far a stage has come.

    Args:
        enabled: whether anything is shown at all
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def note(self, line: str) -> None:
        """Print a line about something that was found on the way."""
        if self.enabled:
            print(line, file=sys.stderr, flush=True)

    def waiting(self) -> None:
        """Print that another process does the work."""
        if self.enabled:
            print("waiting for another process, which prepares the same text", file=sys.stderr, flush=True)

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Show a stage while it runs.

        Args:
            title: what is done
            total: bytes of the whole stage; None if they are not known

        Yields:
            A function to call with the number of bytes that are newly done.
        """
        if not (self.enabled and sys.stderr.isatty()):
            if self.enabled:
                print(title, file=sys.stderr, flush=True)
            yield _Lines(total).advance if self.enabled else lambda done: None
            return
        # imported only if a bar is drawn, because rich takes a tenth of a second
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.advance(task, done)


class _Lines:
    """Prints a line now and then that says how far a long stage has come, for a log file."""

    def __init__(self, total: int | None) -> None:
        self._total, self._done = total, 0
        self._start = self._last_line = time.monotonic()

    def advance(self, done: int) -> None:
        """Add `done` bytes to what is done."""
        self._done += done
        now = time.monotonic()
        if now - self._last_line < _LINE_EVERY or not self._total or not 0 < self._done < self._total:
            return
        self._last_line = now
        left = (now - self._start) * (self._total / self._done - 1)
        line = f"  {percent(self._done / self._total)}, {duration(round(left))} left"
        print(line, file=sys.stderr, flush=True)
