"""A run outlives whoever watches it: a closed terminal or pipe is no reason to stop training."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

__all__ = ["outliving_readers"]


@contextmanager
def outliving_readers() -> Iterator[None]:
    """While this holds, what can no longer be written to standard error is thrown away.

    A run's records are in its folder; standard error shows some of them. The reader of a pipe that has gone (`| head`),
    a closed terminal or a full disk under a log file end the showing alone.
    """
    before = sys.stderr
    sys.stderr = _Outliving(before)
    try:
        yield
    finally:
        sys.stderr = before


class _Outliving:
    """A text stream that goes silent for good when it cannot be written to, in every other way as it was."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._or_silence():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._or_silence():
            self._stream.flush()

    @contextmanager
    def _or_silence(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # Beneath the stream, so that what it still holds back, and what others write there, goes the same way.
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
