"""The file in which ratings of answers are kept: JSON lines, each of them whole or not there.

The lines of one answer share a `rating_id`. The last of them counts, and one whose `label` is null takes the rating
back, so that the file is only ever appended to.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from gossamer.errors import UserError
from gossamer.files import disk_errors, sync, try_lock
from gossamer.reading import open_to_append, open_to_read, parse_json, user_path

__all__ = ["MAX_LINE", "FeedbackFile"]

MAX_LINE = 1 << 20
"""Maximum size of a request that rates an answer (bytes)."""

_LOCK_SECONDS = 10.0  # for which another process may hold the file's lock; it needs milliseconds
_REMEDY = "name another file with --feedback"
log = logging.getLogger("gossamer.serve")


class FeedbackFile:
    """A file of ratings, to which several processes and threads may append at the same time.

    Args:
        path: the file; made if it is missing, in a folder that exists

    Raises:
        UserError: it cannot be read and written, or holds something other than ratings.
    """

    def __init__(self, path: Path) -> None:
        self.path = user_path(path).absolute()
        self._lock = threading.Lock()  # where the system has no locks between processes, threads still wait
        is_new = not self.path.exists()
        with disk_errors(self.path, _REMEDY):
            open_to_append(self.path).close()
        if is_new:
            sync(self.path.parent)
        self._check_first_line()

    def append(self, rating: Mapping[str, Any]) -> None:
        """Write a rating as one line and wait until it is on the disk.

        Args:
            rating: what JSON can hold

        Raises:
            UserError: it cannot be written, as on a full disk; then nothing of it is in the file.
            ValueError: it holds what no reader of such files takes, such as NaN.
        """
        line = json.dumps(rating, ensure_ascii=False, allow_nan=False)
        try:
            parse_json(line, "the rating")  # what is written can be read
            data = line.encode() + b"\n"
        except (UserError, UnicodeEncodeError) as error:
            raise ValueError(str(error)) from error
        with self._lock, disk_errors(self.path, _REMEDY), open_to_append(self.path) as file:
            self._wait_for_lock(file)
            end = _end_of_lines(file)
            try:
                _write(file.fileno(), data)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), end)
                raise

    def _check_first_line(self) -> None:
        """Refuse a file that holds no ratings, before a line is added to it."""
        with open_to_read(self.path, _REMEDY) as file:
            first = file.readline(2 * MAX_LINE + 1)
        if not first.strip():
            return
        try:
            is_rating = {"messages", "label"} <= parse_json(first, "it").keys()
        except (UserError, AttributeError):
            is_rating = False
        if not is_rating:
            raise UserError(f"--feedback {self.path}: its first line is no rating; {_REMEDY}")

    def _wait_for_lock(self, file: BinaryIO) -> None:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not try_lock(file):
            if time.monotonic() > deadline:
                raise UserError(f"{self.path}: another process has held its lock for {_LOCK_SECONDS:g} seconds")
            time.sleep(0.005)


def _end_of_lines(file: BinaryIO) -> int:
    """Return where the last whole line ends; what a killed process has left behind it is taken away."""
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    start = max(size - 4 * MAX_LINE, 0)
    rest = os.pread(descriptor, size - start, start)
    end = start + rest.rfind(b"\n") + 1
    try:
        parse_json(rest[end - start :], "the last line")
    except UserError:
        log.warning("%s: its last line was not whole, and is taken away", file.name)
        os.ftruncate(descriptor, end)
        return end
    _write(descriptor, b"\n")  # whole, but for its end: somebody has edited the file
    return size + 1


def _write(descriptor: int, data: bytes) -> None:
    """Write bytes at the end of a file and wait until they are on the disk."""
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)
