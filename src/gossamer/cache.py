"""What gossamer keeps so that it need not be made again: folders and values with checksums, rebuilt when damaged.

An entry is built beside its place and renamed when it is complete. Two processes that build the same entry both build
it; the first to rename wins and the other throws its copy away. A process that would rather wait for the other's work
than do it again takes a lock (`gossamer.files.locked`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer.errors import UserError
from gossamer.files import building, disk_errors, is_temporary, publish, sweep, write_atomically
from gossamer.reading import MissingFile, checked, open_to_read, parse_json, read_text

__all__ = ["cached_folder", "json_digest", "read_cached_json", "write_cached_json"]

log = logging.getLogger("gossamer")
T = TypeVar("T")

_MANIFEST, _VERIFIED = "seal.json", "checked.json"
_OWN_FILES = {_MANIFEST, _VERIFIED}
_SETTLED = 2 * 10**9  # nanoseconds after which a file that changes again has another time of change


def json_digest(*parts: object) -> str:
    """Return the digest of JSON values (32 hex digits); equal values have equal digests."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def cached_folder(folder: Path, is_valid: Callable[[Path], bool], build: Callable[[Path], None]) -> Path:
    """Return `folder`, building it first unless it is there and valid.

    Args:
        folder: the entry's place; a damaged entry there is replaced
        is_valid: whether a folder whose files are as they were written holds what is wanted; it must not raise
        build: fills an empty folder; whatever it raises leaves nothing behind

    Raises:
        UserError: the cache cannot be written, or whatever `build` raises.
    """

    def is_whole(place: Path) -> bool:
        return _is_intact(place) and is_valid(place)

    if is_whole(folder):
        return folder
    if folder.exists():
        log.warning("%s: is damaged; rebuilding it", folder)
    with disk_errors(folder.parent), building(folder) as temporary:
        sweep(folder.parent)
        build(temporary)
        _write_manifest(temporary, folder.name)
        publish(temporary, folder, is_whole)
    return folder


class _Manifest(TypedDict):
    """What an entry holds: its name, and the checksum of each of its files."""

    entry: str
    files: dict[str, str]


def _write_manifest(folder: Path, entry: str) -> None:
    """Write down what lies in a finished entry, for `_is_intact`."""
    files = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps({"entry": entry, "files": files}, indent=1) + "\n", encoding="utf-8")


def _is_intact(folder: Path) -> bool:
    """Whether an entry holds the files that were written, byte by byte.

    A file is read once for each time that it was changed: once it was found whole, its inode, size and times are noted
    in a file beside the manifest. Of these no program sets the time of change (ctime) at will. A file that was written
    in the last seconds is not noted, since it could change again under the same time.
    """
    try:
        manifest = checked(parse_json(read_text(folder / _MANIFEST), _MANIFEST), _Manifest, _MANIFEST)
        names = {path.name for path in folder.iterdir() if not is_temporary(path)} - _OWN_FILES
        if manifest["entry"] != folder.name or manifest["files"].keys() != names:
            return False
        verified = _verified(folder)
        found: dict[str, list[int]] = {}
        now = time.time_ns()
        for name, checksum in manifest["files"].items():
            stamp = _stamp(folder / name)
            if verified.get(name) != stamp and _checksum(folder / name) != checksum:
                return False
            if now - stamp[-1] > _SETTLED and _stamp(folder / name) == stamp:
                found[name] = stamp
    except (UserError, OSError):
        return False
    if found != verified:
        with suppress(OSError):  # a cache that may only be read is read in full each time
            write_atomically(folder / _VERIFIED, json.dumps(found))
    return True


def _verified(folder: Path) -> dict[str, list[int]]:
    """Return the stamps of files that were found whole; none where nothing can be trusted."""
    try:
        return checked(parse_json(read_text(folder / _VERIFIED), _VERIFIED), dict[str, list[int]], _VERIFIED)
    except UserError:
        return {}


def _stamp(path: Path) -> list[int]:
    """Return what changes when a file is written: inode, size and times."""
    status = path.lstat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _checksum(path: Path) -> str:
    """Return the size of a file and a digest of its bytes."""
    with open_to_read(path) as file:
        content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return f"{os.fstat(file.fileno()).st_size}:{content}"


def write_cached_json(path: Path, value: Any) -> None:
    """Write a JSON file that `read_cached_json` reads, with a checksum of its value and its name."""
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"digest": json_digest(path.name, value), "value": value}))


def read_cached_json(path: Path, kind: type[T], max_bytes: int = 1 << 30) -> T | None:
    """Return what `write_cached_json` has written, as a declared type; None where there is none, or it is damaged."""
    remedy = "rebuilding it"
    try:
        found = parse_json(read_text(path, remedy, max_bytes), str(path), remedy)
        if isinstance(found, dict) and json_digest(path.name, found.get("value")) == found.get("digest"):
            return checked(found["value"], kind, str(path), remedy)
        log.warning("%s: is damaged; %s", path, remedy)
    except MissingFile:
        pass
    except UserError as error:
        log.warning("%s", error)
    return None
