"""Where gossamer keeps what it need not make again, as folders that are either whole or not there.

An entry is built under a temporary name beside its place and renamed when complete. Two processes that build the same
entry both build it; the first to rename wins and the other throws its copy away. Whoever would rather wait for the
other's work than do it again takes a lock, which the operating system releases when its holder ends in whatever way.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer.errors import UserError
from gossamer.reading import MissingFile, checked, open_to_append, open_to_read, parse_json, read_text, user_path

try:
    import fcntl
except ImportError:  # a system without it, where several processes do the same work
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "alone",
    "cache_folder",
    "cached_folder",
    "disk_errors",
    "key_of",
    "read_sealed",
    "write_sealed",
    "write_text",
]

log = logging.getLogger("gossamer")
T = TypeVar("T")

_SEAL, _NOTES = "seal.json", "checked.json"
_OWN = {_SEAL, _NOTES}
_SETTLED = 2 * 10**9  # nanoseconds after which a file that changes again has another time of change
_ABANDONED = 24 * 3600  # seconds after which a temporary entry is taken for a crashed process' one


def cache_folder() -> Path:
    """The folder that ``GOSSAMER_CACHE`` names, or ``gossamer`` in the user's cache; it need not exist yet.

    A user without a home directory, as in some containers, has it among the temporary files.
    """
    if own := os.environ.get("GOSSAMER_CACHE"):
        return user_path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "gossamer"
    try:
        return Path.home() / ".cache" / "gossamer"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"gossamer-{os.getuid()}"


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
        file = open_to_append(path)
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
        valid: whether a folder whose files are as they were written holds what is wanted; it must not raise.
        build: fills an empty folder; whatever it raises leaves nothing behind.

    Raises:
        UserError: the cache cannot be written, or whatever ``build`` raises.
    """

    def whole(place: Path) -> bool:
        return _intact(place) and valid(place)

    if whole(folder):
        return folder
    if folder.exists():
        log.warning("%s: is not what was written there; it is made anew", folder)
    with disk_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        temporary = _temporary(folder)
        temporary.mkdir()
        try:
            build(temporary)
            _seal(temporary, folder.name)
            for path in temporary.iterdir():
                _sync(path)
            _publish(temporary, folder, whole)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


class _Seal(TypedDict):
    """What an entry's seal holds: which entry it is, and the digest of each of its files."""

    entry: str
    files: dict[str, str]


def _seal(folder: Path, entry: str) -> None:
    """Write down what lies in a finished entry, for `_intact`."""
    files = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    (folder / _SEAL).write_text(json.dumps({"entry": entry, "files": files}, indent=1) + "\n", encoding="utf-8")


def _intact(folder: Path) -> bool:
    """Whether an entry holds the files that were written, byte by byte.

    A file is read once for each time that it was changed: what was found whole is noted with its inode, size and times
    in a file beside the seal. Of these no program sets the time of change (ctime) at will. A file that was written in
    the last seconds is not noted, since it could change again under the same time.
    """
    try:
        seal = checked(parse_json(read_text(folder / _SEAL), _SEAL), _Seal, _SEAL)
        if seal["entry"] != folder.name or seal["files"].keys() != {path.name for path in folder.iterdir()} - _OWN:
            return False
        noted = _noted(folder)
        found: dict[str, list[int]] = {}
        now = time.time_ns()
        for name, digest in seal["files"].items():
            stamp = _stamp(folder / name)
            if noted.get(name) != stamp and _digest(folder / name) != digest:
                return False
            if now - stamp[-1] > _SETTLED and _stamp(folder / name) == stamp:
                found[name] = stamp
    except (UserError, OSError):
        return False
    if found != noted:
        with suppress(UserError):  # a cache that may only be read is read in full each time
            write_text(folder / _NOTES, json.dumps(found))
    return True


def _noted(folder: Path) -> dict[str, list[int]]:
    """The stamps of files that were found whole; none where nothing can be trusted."""
    try:
        return checked(parse_json(read_text(folder / _NOTES), _NOTES), dict[str, list[int]], _NOTES)
    except UserError:
        return {}


def _stamp(path: Path) -> list[int]:
    status = path.lstat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _digest(path: Path) -> str:
    """The size of a file and a digest of its bytes."""
    with open_to_read(path) as file:
        content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return f"{os.fstat(file.fileno()).st_size}:{content}"


def write_sealed(path: Path, value: Any) -> None:
    """Write a JSON file that `read_sealed` reads, with a digest of what it says and of its name."""
    write_text(path, json.dumps({"digest": key_of(path.name, value), "value": value}))


def read_sealed(path: Path, kind: type[T], most: int = 1 << 30) -> T | None:
    """What `write_sealed` has written, as a declared type; None where there is none, or something else."""
    try:
        found = parse_json(read_text(path, max_bytes=most), str(path))
        if isinstance(found, dict) and key_of(path.name, found.get("value")) == found.get("digest"):
            return checked(found["value"], kind, str(path))
        log.warning("%s: is not what was written there; it is made anew", path)
    except MissingFile:
        pass
    except UserError as error:
        log.warning("%s: it is made anew", error)
    return None


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
