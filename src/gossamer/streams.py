"""The process's standard streams, made fit to be written to in whatever state they were inherited.

They may be closed, a pipe whose reader has left, a file on a full disk, or take ASCII alone. What is told on the way,
on standard error, is never worth the work: it is thrown away where it cannot be written. An answer, on standard output,
is what the program was asked for: where it cannot be written, that is the end, told in a line.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from gossamer.errors import UserError

__all__ = ["ReaderGone", "outliving_readers", "usable_streams"]

_ASCII = str.maketrans(
    {"×": "x", "…": "...", "±": "+-", "·": ".", "²": "^2", "≤": "<=", "≥": ">=", "→": "->", "µ": "u"}
    | dict.fromkeys("–—−", "-")
    | dict.fromkeys("‘’", "'")
    | dict.fromkeys("“”", '"')
    | dict.fromkeys("─━═╌╸╺", "-")
    | dict.fromkeys("│┃║", "|")
)
_STRICT = ("strict", "surrogateescape", "backslashreplace")  # the interpreter's own choices; others are the user's


class ReaderGone(Exception):
    """Nobody reads standard output any more. No OSError: libraries that print would take it for an error of theirs."""


@contextmanager
def usable_streams() -> Iterator[None]:
    """While this holds, the standard streams can be used by whoever prints, for the whole of a command line.

    Raises:
        ReaderGone: at a write to standard output whose reader has left.
        UserError: at a write to standard output that is closed or full.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    _open_closed()
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    elif getattr(sys.stdin, "encoding", None) == "ascii" and hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    sys.stdout = _Answer(_legible(sys.stdout or _text(1), "gossamer.answer"))
    try:
        with outliving_readers():
            yield
    finally:
        with suppress(UserError, ReaderGone):
            sys.stdout.flush()
        sys.stdin, sys.stdout, sys.stderr = before


@contextmanager
def outliving_readers() -> Iterator[None]:
    """While this holds, what cannot be written to standard error is thrown away: who watches may leave at any time."""
    before = sys.stderr
    if not isinstance(before, _Told):
        sys.stderr = _Told(_legible(before or _text(2), "gossamer.told"))
    try:
        yield
    finally:
        sys.stderr = before


class _Stream:
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
        except OSError as error:
            # Beneath the stream, so that what it still holds back, and what others write there, goes the same way.
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        """What comes of it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Told(_Stream):
    """Standard error."""


class _Answer(_Stream):
    """Standard output."""

    def _failed(self, error: OSError) -> None:
        if error.errno == errno.EPIPE:
            raise ReaderGone from None
        why = "is closed" if error.errno == errno.EBADF else f"cannot be written to ({error.strerror or error})"
        raise UserError(f"standard output {why}: the answer went nowhere") from None


def _open_closed() -> None:
    """Give the numbers 0 to 2 to files that hold nothing: the next file opened would get them, and all that is told."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Standard output only to be read: what is written there has to fail.
            opened = os.open(os.devnull, os.O_WRONLY if descriptor == 2 else os.O_RDONLY)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)


def _text(descriptor: int) -> TextIO:
    return open(descriptor, "w", closefd=False, encoding="utf-8")


def _legible(stream: TextIO, errors: str) -> TextIO:
    """The stream, made to spell what its encoding does not have, where the user has not said how."""
    if getattr(stream, "errors", None) in _STRICT and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=errors)
    return stream


def _spelt(error: UnicodeError, bytes_as_they_were: bool) -> tuple[str | bytes, int]:
    """The next character that an encoding does not have, as it can be written, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character, after = error.object[error.start], error.start + 1
    if bytes_as_they_were and "\udc80" <= character <= "\udcff":  # of a name of a file, which scripts read
        return character.encode("utf-8", "surrogateescape"), after
    plain = character.translate(_ASCII)
    return plain if plain.isascii() else character.encode("ascii", "backslashreplace").decode(), after


codecs.register_error("gossamer.answer", lambda error: _spelt(error, True))
codecs.register_error("gossamer.told", lambda error: _spelt(error, False))
