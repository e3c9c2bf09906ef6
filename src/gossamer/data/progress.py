"""Progress of the slow stages: a bar where somebody watches, one line a stage where a log file does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

__all__ = ["Progress"]

_SILENCE = 10  # seconds


class Progress:
    """Tells on standard error how far a stage has come.

    Args:
        enabled: say anything at all.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def note(self, line: str) -> None:
        """Tell something that was found on the way."""
        if self.enabled:
            print(line, file=sys.stderr, flush=True)

    def waiting(self) -> None:
        """Tell that another process is at it."""
        if self.enabled:
            print("waiting for another process, which prepares the same text", file=sys.stderr, flush=True)

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Announce a stage of ``total`` bytes (None: unknown); yields a function that is told of bytes newly done."""
        if not (self.enabled and sys.stderr.isatty()):
            if self.enabled:
                print(title, file=sys.stderr, flush=True)
            yield _Lines(total).advance if self.enabled else lambda done: None
            return
        # rich takes a tenth of a second to import: only where a bar is drawn
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.advance(task, done)


class _Lines:
    """A line now and then, in a log file, that tells how far a long stage has come."""

    def __init__(self, total: int | None) -> None:
        self._total, self._done = total, 0
        self._began = self._told = time.monotonic()

    def advance(self, done: int) -> None:
        """So much more is done."""
        self._done += done
        now = time.monotonic()
        if now - self._told < _SILENCE or not self._total or not 0 < self._done < self._total:
            return
        self._told = now
        left = (now - self._began) * (self._total / self._done - 1)
        line = f"  {self._done / self._total:.0%}, {timedelta(seconds=round(left))} left"
        print(line, file=sys.stderr, flush=True)
