"""Where gossamer keeps what it need not make again, as folders that are either whole or not there.

An entry is built under a temporary name beside its place and renamed when complete. Two processes that build the same
entry both build it; the first to rename wins and the other throws its copy away. Whoever would rather wait for the
other's work than do it again takes a lock, which the operating system releases when its holder ends in whatever way.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gossamer.errors import UserError

try:
    import fcntl
except ImportError:  # a system without it, where several processes do the same work
    fcntl = None  # type: ignore[assignment]

__all__ = ["alone", "cache_folder", "cached_folder", "disk_errors", "key_of", "write_text"]

_ABANDONED = 24 * 3600  # seconds after which a temporary entry is taken for a crashed process' one


def cache_folder() -> Path:
    """The folder that ``GOSSAMER_CACHE`` names, or ``gossamer`` in the user's cache; it need not exist yet.

    A user without a home directory, as in some containers, has it among the temporary files.
    """
    if own := os.environ.get("GOSSAMER_CACHE"):
        return _with_home(Path(own))
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "gossamer"
    try:
        return Path.home() / ".cache" / "gossamer"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"gossamer-{os.getuid()}"


def _with_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # ~user that nobody is
        raise UserError(f"GOSSAMER_CACHE = {path}: there is no such user; give a path") from error


def key_of(*parts: object) -> str:
    """A short name (32 hex digits) for these JSON values: equal values, equal names."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into ``folder`` into a UserError that names it."""
    try:
        yield
    except OSError as error:
        remedy = "set GOSSAMER_CACHE to a folder elsewhere"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{folder}: the disk is full; free some space, or {remedy}") from error
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); {remedy}") from error


@contextmanager
def alone(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file ``path``, of which one process at a time is the holder.

    Args:
        path: made if need be, and left behind empty.
        waiting: called once if somebody else holds it.
    """
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 (closed below; the caller's own errors are not the disk's)
    with file:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks: as without fcntl
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cached_folder(folder: Path, valid: Callable[[Path], bool], build: Callable[[Path], None]) -> Path:
    """Return ``folder``, building it first unless it is there and ``valid``.

    Args:
        folder: the entry's place; a damaged entry there is replaced.
        valid: whether a folder is whole; it must not raise.
        build: fills an empty folder; whatever it raises leaves nothing behind.

    Raises:
        UserError: the cache cannot be written, or whatever ``build`` raises.
    """
    if valid(folder):
        return folder
    with disk_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        temporary = _temporary(folder)
        temporary.mkdir()
        try:
            build(temporary)
            for path in temporary.iterdir():
                _sync(path)
            _publish(temporary, folder, valid)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a whole file under a temporary name and rename it."""
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f"tmp-{os.getpid()}-{uuid.uuid4().hex}")


def _publish(temporary: Path, folder: Path, valid: Callable[[Path], bool]) -> None:
    while True:
        try:
            os.rename(temporary, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        if valid(folder):  # another process was first
            return
        aside = _temporary(folder)
        with suppress(FileNotFoundError):  # another process cleared the damaged entry
            os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):  # a plain file in the entry's place
            aside.unlink()


def _sync(path: Path) -> None:
    """Have the file's bytes on the disk before its name is, so that a power cut leaves no entry of zeros."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sweep(parent: Path) -> None:
    """Remove what processes that were killed in the middle have left."""
    for path in parent.glob("tmp-*"):
        with suppress(OSError):  # it may be vanishing under another process' broom
            newest = max(entry.stat().st_mtime for entry in (path, *path.glob("*")))
            if time.time() - newest > _ABANDONED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
