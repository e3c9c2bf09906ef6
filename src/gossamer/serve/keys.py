"""API keys from a file that is read again whenever it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import stat
from pathlib import Path

from gossamer.errors import UserError
from gossamer.reading import read_text

__all__ = ["ApiKeys"]

MIN_LENGTH = 16
log = logging.getLogger("gossamer.serve")


class ApiKeys:
    """Keys that open the service.

    The file has a line for each: ``KEY``, or ``NAME KEY``; the name, else the line's number, stands in the request log
    for the key. Blank lines and lines that begin with ``#`` count for nothing. A line that is added or taken out holds
    from the next request on. A file that has gone or cannot be understood lets nobody in: to take a key back must
    never fail silently.

    Raises:
        UserError: at the start, the file cannot be read, holds no key, or holds one shorter than 16 characters.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = self._stamp()
        self._digests = _read(path)
        mode = path.stat().st_mode
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            log.warning("keys file %s can be read by other users of this machine; chmod 600 it", path)

    def name_of(self, key: str) -> str | None:
        """Who a key belongs to, None for an unknown one.

        Every key is compared, each by its digest and in constant time: how long it takes tells nothing about them.
        """
        self._reload()
        digest, found = _digest(key), None
        for name, known in self._digests.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _reload(self) -> None:
        version = self._stamp()
        if version == self._version:
            return
        self._version = version
        try:
            self._digests = _read(self._path)
            log.info("keys file %s read again: %d keys", self._path, len(self._digests))
        except UserError as error:
            self._digests = {}
            log.error("no key is valid until the keys file is mended: %s", error)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _read(path: Path) -> dict[str, bytes]:
    try:
        lines = read_text(path, "write a line with a key for each user").splitlines()
    except UserError as error:
        raise UserError(f"--keys {error}") from None
    digests: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or line.lstrip().startswith("#"):
            continue
        if len(words) > 2:
            raise UserError(f"--keys {path}, line {number}: expected KEY or NAME KEY")
        name = words[0] if len(words) == 2 else f"line {number}"
        if len(words[-1]) < MIN_LENGTH:
            raise UserError(
                f"--keys {path}, line {number}: a key has at least {MIN_LENGTH} characters; "
                "python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
            )
        if name in digests:
            raise UserError(f"--keys {path}, line {number}: the name {name!r} stands there twice")
        digests[name] = _digest(words[-1])
    if not digests:
        raise UserError(f"--keys {path}: holds no key; write a line with one for each user")
    return digests
