"""Files and folders that are whole or not there, locks between processes, full disks, and where the cache lies.

Everything that must survive a crash is written the same way. It is built under a hidden name beside its place, its
bytes are brought to the disk, and then it is renamed. A reader of a file finds the old content or the new, and a reader
of a folder finds all of it or nothing, also after a kill or a power cut. What a killed process has left under such a
name is removed by the next one that writes there, once nothing has been written to it for a day.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gossamer.errors import UserError
from gossamer.reading import open_to_append, user_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "MOVE_CACHE",
    "building",
    "cache_folder",
    "disk_errors",
    "is_disk_full",
    "is_temporary",
    "locked",
    "publish",
    "replacing",
    "sweep",
    "sync",
    "sync_tree",
    "try_lock",
    "write_atomically",
]

MOVE_CACHE = "set GOSSAMER_CACHE to a folder elsewhere"
"""The remedy for a cache that cannot be written."""

_PREFIX, _RANDOM = ".tmp-", 8  # a temporary name: the prefix, random hex digits, and the name it stands for
_ABANDONED = 24 * 3600  # seconds without a write after which a temporary file counts as a killed process's
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Libraries report the operating system's errors as text of their own; the last one is PyTorch's, of a short write.
_FULL_TEXTS = (*map(os.strerror, _FULL), "unexpected pos")
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)


def cache_folder() -> Path:
    """Return the folder that `GOSSAMER_CACHE` names, else `gossamer` in the user's cache; it need not exist yet.

    For a user without a home directory, as in some containers, it lies among the temporary files.
    """
    if own := os.environ.get("GOSSAMER_CACHE"):
        return user_path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "gossamer"
    try:
        return Path.home() / ".cache" / "gossamer"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"gossamer-{os.getuid()}"


# Writing whole files and folders.


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole; text is written in UTF-8.

    Args:
        path: the file, in a folder that exists
        content: all that it is to hold

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name to write a file under, which replaces `path` as a whole when the block ends without an error.

    The name has the same ending, since libraries choose a format by it.
    """
    sweep(path.parent, path.name)
    temporary = _temporary(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, to be filled and then published; it is removed if it was not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent, folder.name)
    temporary = _temporary(folder)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path, is_whole: Callable[[Path], bool] = lambda folder: False) -> None:
    """Give a finished folder its name, once all of its bytes are on the disk.

    Args:
        temporary: the folder that `building` gave
        folder: its place; what lies there is moved away first, so that for a moment there is nothing
        is_whole: whether what another process may have put there meanwhile is as good; then that stays
    """
    sync_tree(temporary)
    replaced: list[Path] = []
    try:
        while True:
            try:
                os.rename(temporary, folder)
                break
            except OSError as error:
                if error.errno not in _NOT_EMPTY:
                    raise
            if is_whole(folder):
                return
            with suppress(FileNotFoundError):  # another process has cleared the place
                os.rename(folder, old := _temporary(folder))
                replaced.append(old)
        sync(folder.parent)
    finally:
        for old in replaced:
            _remove(old)


def sync_tree(folder: Path) -> None:
    """Wait until all that a folder holds is on the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk.

    Where a system cannot do that for folders, nothing is done.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC or not path.is_dir():
            raise


def sweep(folder: Path, name: str | None = None, age: float = _ABANDONED) -> None:
    """Remove what killed processes have left in a folder.

    Args:
        folder: where they wrote
        name: of the file or folder that they were to replace; None: of any
        age: seconds for which nothing was written to it; 0 where no other process can be writing
    """
    name = "*" if name is None else f"{'?' * _RANDOM}-{glob.escape(name)}"
    for path in folder.glob(f"{_PREFIX}{name}"):
        with suppress(OSError):  # another process may be removing it at the same time
            newest = max(entry.stat().st_mtime for entry in (path, *path.rglob("*")))
            if time.time() - newest >= age:
                _remove(path)


def is_temporary(path: Path) -> bool:
    """Whether a file or folder has a name of those that are renamed when they are complete."""
    return path.name.startswith(_PREFIX)


def _temporary(path: Path) -> Path:
    """Return a new hidden name beside `path`."""
    return path.with_name(f"{_PREFIX}{secrets.token_hex(_RANDOM // 2)}-{path.name}")


def _remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


# What the operating system refuses.


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception says that there is no room on the disk, or no more in the user's share of it."""
    return getattr(error, "errno", None) in _FULL or any(text in str(error) for text in _FULL_TEXTS)


@contextmanager
def disk_errors(place: Path, remedy: str = MOVE_CACHE) -> Iterator[None]:
    """Turn a full disk, and whatever else keeps `place` from being written, into a line with a remedy.

    Args:
        place: the file or folder that is written, for the message
        remedy: what to do about it, beside making room

    Raises:
        UserError: the block raised an OSError, or the error of a library that says that the disk is full.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # PyTorch's CheckpointException is no Exception
        if is_disk_full(error):
            raise UserError(f"{place}: the disk is full; free some space, or {remedy}") from error
        if isinstance(error, OSError):
            raise UserError(f"{place}: cannot be written ({error.strerror or error}); {remedy}") from error
        raise


# Locks, which the operating system releases when their holder ends in whatever way.


def try_lock(file: BinaryIO, shared: bool = False) -> bool:
    """Lock an open file until it is closed; return False if another process holds the lock.

    Where there are no such locks, on Windows and on some file systems, nobody is kept out.

    Args:
        file: opened by `open_to_append`, or to read for a shared lock
        shared: several processes may hold it together, while none holds it alone
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


@contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`, which one process at a time can hold; wait for it if need be.

    Args:
        path: a file in the cache; made if it is missing, and left behind empty
        on_wait: called once if another process holds it

    Raises:
        UserError: the file cannot be made.
    """
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open_to_append(path)
    with file:
        if not try_lock(file):
            on_wait()
            with suppress(OSError):  # a file system whose locks have gone
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
