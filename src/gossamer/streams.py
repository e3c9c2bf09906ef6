"""The process's standard streams, made usable in whatever state they were inherited.

They may be closed, a pipe whose reader has left, a file on a full disk, or limited to ASCII. A message on standard
error is never worth the work: it is thrown away where it cannot be written. An answer on standard output is what the
program was asked for: where it cannot be written, the program ends with a line that says so.
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
_DEFAULT_ERRORS = ("strict", "surrogateescape", "backslashreplace")  # the interpreter's; others the user has chosen


class ReaderGone(Exception):
    """Nobody reads standard output any more.

    It is no OSError, which libraries that print would take for an error of theirs.
    """


@contextmanager
def usable_streams() -> Iterator[None]:
    """Make the standard streams usable for all code that prints, for the whole of a command line.

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
    sys.stdout = _Output(_encodable(sys.stdout or _text(1), "gossamer.output"))
    try:
        with outliving_readers():
            yield
    finally:
        with suppress(UserError, ReaderGone):
            sys.stdout.flush()
        sys.stdin, sys.stdout, sys.stderr = before


@contextmanager
def outliving_readers() -> Iterator[None]:
    """Throw away what cannot be written to standard error, whose reader may leave at any time."""
    before = sys.stderr
    if not isinstance(before, _Messages):
        sys.stderr = _Messages(_encodable(before or _text(2), "gossamer.messages"))
    try:
        yield
    finally:
        sys.stderr = before


class _Stream:
    """A text stream that goes silent for good once it cannot be written to, and is otherwise as it was."""

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
        """React to the first write that failed; here it is ignored."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Messages(_Stream):
    """Standard error: what cannot be written is thrown away."""


class _Output(_Stream):
    """Standard output: what cannot be written ends the program."""

    def _failed(self, error: OSError) -> None:
        if error.errno == errno.EPIPE:
            raise ReaderGone from None
        why = "is closed" if error.errno == errno.EBADF else f"cannot be written to ({error.strerror or error})"
        raise UserError(f"standard output {why}: the answer went nowhere") from None


def _open_closed() -> None:
    """Give the descriptors 0 to 2, if they are closed, to an empty device.

    Otherwise the next file that is opened would get such a number, and with it all that is printed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Standard output is opened for reading only, so that writing to it fails.
            opened = os.open(os.devnull, os.O_WRONLY if descriptor == 2 else os.O_RDONLY)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)


def _text(descriptor: int) -> TextIO:
    """Return a text stream that writes to a descriptor."""
    return open(descriptor, "w", closefd=False, encoding="utf-8")


def _encodable(stream: TextIO, errors: str) -> TextIO:
    """Return the stream, set to replace what its encoding does not have, unless the user has chosen a way."""
    if getattr(stream, "errors", None) in _DEFAULT_ERRORS and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=errors)
    return stream


def _replacement(error: UnicodeError, keep_bytes: bool) -> tuple[str | bytes, int]:
    """Return what is written for a character that an encoding does not have, and where to go on.

    Args:
        error: from the encoder
        keep_bytes: whether bytes of names that are no text stay as they are, for scripts that read them
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character, after = error.object[error.start], error.start + 1
    if keep_bytes and "\udc80" <= character <= "\udcff":
        return character.encode("utf-8", "surrogateescape"), after
    plain = character.translate(_ASCII)
    return plain if plain.isascii() else character.encode("ascii", "backslashreplace").decode(), after


codecs.register_error("gossamer.output", lambda error: _replacement(error, True))
codecs.register_error("gossamer.messages", lambda error: _replacement(error, False))
