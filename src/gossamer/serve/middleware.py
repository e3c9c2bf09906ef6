"""What every request passes first and last: its number, its API key, the deadline of its body, the log, the metrics."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gossamer.errors import UserError
from gossamer.reading import read_text
from gossamer.serve.errors import ApiError, error_response
from gossamer.serve.feedback import MAX_LINE
from gossamer.serve.generation import LOG_KEY
from gossamer.serve.metrics import Metrics
from gossamer.serve.options import ServeOptions, is_loopback
from gossamer.serve.service import new_id

__all__ = ["ApiKeys", "RequestMiddleware", "is_public"]

METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")
"""The methods that the metrics count apart; a client may make up others."""
MAX_BODIES = 16
"""Memory for bodies that are arriving, in bodies of the largest size."""
TOO_LARGE = ApiError(413, "the body is too large; send less")
MIN_KEY_LENGTH = 16
request_log = logging.getLogger("gossamer.serve.requests")
log = logging.getLogger("gossamer.serve")


def is_public(path: str) -> bool:
    """Return whether a path needs no key: the page, which asks for one, and what says whether the service is up."""
    return path in ("/", "/favicon.ico", "/health", "/ready") or path.startswith("/page/")


class RequestMiddleware:
    """Middleware around the whole application.

    Without keys, a service for this machine answers only requests that name it by a loopback address. A page on the web
    whose name was made to point here (DNS rebinding) names another host.

    Args:
        app: the application
        options: limits and the address of the service
        keys: the API keys; None if no key is needed
        metrics: counts requests and times
        routes: the routes that the metrics count apart
    """

    def __init__(
        self,
        app: ASGIApp,
        options: ServeOptions,
        keys: ApiKeys | None,
        metrics: Metrics,
        routes: Sequence[BaseRoute],
    ) -> None:
        self._app = app
        self._routes = routes
        self._options = options
        self._keys = keys
        self._metrics = metrics
        self._arriving = _ArrivingBodies(MAX_BODIES * options.max_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, and measure and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, number, status, route = time.monotonic(), new_id("req_"), 499, self._route(scope)

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = number
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        details = scope.setdefault(LOG_KEY, {})
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await error_response(refusal)(scope, receive, send_marked)
            else:
                bounded = _bounded(receive, self._max_body(scope), self._options.body_timeout, self._arriving, number)
                await self._app(scope, bounded, send_marked)
        finally:
            self._arriving.remove(number)
            seconds = time.monotonic() - start
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.http.labels(method, route, status).inc()
            self._metrics.http_seconds.labels(route).observe(seconds)
            logged = " ".join(f"{name}={_as_one_word(value)}" for name, value in details.items())
            line = f"{number} {scope['method']} {_as_one_word(scope['path'])} {status} {seconds:.3f}s {logged}"
            request_log.info(line.rstrip())

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        return self._access_error(scope, headers) or self._size_error(scope, headers)

    def _route(self, scope: Scope) -> str:
        """The path of the request's route as it is declared, even if the request does not get as far as that."""
        matching = (route for route in self._routes if route.matches(scope)[0] is not Match.NONE)
        return getattr(next(matching, None), "path", "none")

    def _max_body(self, scope: Scope) -> int:
        """The maximum size of the request's body (bytes)."""
        return min(self._options.max_body, MAX_LINE) if scope["path"] == "/feedback" else self._options.max_body

    def _size_error(self, scope: Scope, headers: Headers) -> ApiError | None:
        length = headers.get("content-length", "0")
        return TOO_LARGE if length.isdigit() and int(length) > self._max_body(scope) else None

    def _access_error(self, scope: Scope, headers: Headers) -> ApiError | None:
        if self._keys is None:
            host = headers.get("host", "")
            name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
            if is_loopback(self._options.host) and not is_loopback(name):
                return ApiError(400, f"the host {name!r} is not served here; use http://localhost", "unknown_host")
            return None
        if is_public(scope["path"]):
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return ApiError(401, "give an API key: Authorization: Bearer KEY", "missing_api_key")
        name_of_key = self._keys.name_of(key.strip())
        if name_of_key is None:
            return ApiError(401, "this API key is not known", "invalid_api_key")
        scope[LOG_KEY]["key"] = name_of_key
        return None


class _ArrivingBodies:
    """The bodies that have not arrived completely.

    Args:
        max_bytes: bytes that they may take together; beyond that, the oldest are given up
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bodies: dict[str, tuple[int, asyncio.Timeout]] = {}  # oldest first: bytes so far, and the running timeout

    def add(self, request: str, size: int, timeout: asyncio.Timeout) -> None:
        """Note that `size` bytes of the body of a request are here, and that it waits for more."""
        self._bodies[request] = size, timeout
        total = sum(size for size, _ in self._bodies.values())
        for other, (other_size, other_timeout) in list(self._bodies.items()):
            if total <= self._max_bytes:
                return
            if other != request:
                other_timeout.reschedule(asyncio.get_running_loop().time())
                self.remove(other)
                total -= other_size

    def remove(self, request: str) -> None:
        """Note that a body is complete, or that nobody waits for it any more."""
        self._bodies.pop(request, None)


def _bounded(receive: Receive, max_body: int, timeout: float, arriving: _ArrivingBodies, request: str) -> Receive:
    """Return `receive` with limits on the size of the body and of all arriving bodies, and a deadline for its end."""
    start = asyncio.get_running_loop().time()
    complete, size = False, 0

    async def receive_bounded() -> Message:
        nonlocal complete, size
        if complete:
            return await receive()
        try:
            async with asyncio.timeout_at(start + timeout) as running:
                if size:
                    arriving.add(request, size, running)
                message = await receive()
        except TimeoutError:
            is_late = asyncio.get_running_loop().time() - start >= timeout
            why = f"within {timeout:g} seconds" if is_late else "before others that had to have room"
            raise HTTPException(408, f"the body did not arrive {why}") from None
        size += len(message.get("body", b""))
        if size > max_body:
            raise HTTPException(413)  # the only kind of exception that the framework passes on
        complete = message["type"] != "http.request" or not message.get("more_body", False)
        if complete:
            arriving.remove(request)
        return message

    return receive_bounded


def _as_one_word(value: object) -> str:
    """A value as one word of the log, so that nobody can write a line of his own into it."""
    text = str(value)
    return text if text.isprintable() and " " not in text else ascii(text)


class ApiKeys:
    """The keys that open the service, from a file that is read again whenever it changes.

    The file has a line for each key: `KEY` or `NAME KEY`. The name, or else the number of the line, stands for the key
    in the request log. Blank lines and lines that begin with `#` are ignored. A line that is added or removed takes
    effect with the next request. If the file is gone or cannot be understood, no key is valid: to revoke a key must
    never fail silently.

    Args:
        path: the file

    Raises:
        UserError: at the start, the file cannot be read, holds no key, or holds one with fewer than 16 characters.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = self._file_version()
        self._digests = _read_keys(path)
        mode = path.stat().st_mode
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            log.warning("keys file %s can be read by other users of this machine; chmod 600 it", path)

    def name_of(self, key: str) -> str | None:
        """Return the name that stands for a key in the log, None for an unknown key.

        The key is compared with every known one, by its digest and in constant time, so the time that this takes
        reveals nothing about them.
        """
        self._reload()
        digest, found = _digest(key), None
        for name, known in self._digests.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _reload(self) -> None:
        version = self._file_version()
        if version == self._version:
            return
        self._version = version
        try:
            self._digests = _read_keys(self._path)
            log.info("keys file %s read again: %d keys", self._path, len(self._digests))
        except UserError as error:
            self._digests = {}
            log.error("no key is valid until the keys file is mended: %s", error)

    def _file_version(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _read_keys(path: Path) -> dict[str, bytes]:
    """Return the digest of each key by its name."""
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
        if len(words[-1]) < MIN_KEY_LENGTH:
            raise UserError(
                f"--keys {path}, line {number}: a key has at least {MIN_KEY_LENGTH} characters; "
                "python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
            )
        if name in digests:
            raise UserError(f"--keys {path}, line {number}: the name {name!r} occurs twice")
        digests[name] = _digest(words[-1])
    if not digests:
        raise UserError(f"--keys {path}: holds no key; write a line with one for each user")
    return digests
