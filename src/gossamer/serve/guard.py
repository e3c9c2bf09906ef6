"""What every request passes first and last: its number, who may come in, the body's deadline, the log, the metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gossamer.serve.errors import ApiError, error_response
from gossamer.serve.keys import ApiKeys
from gossamer.serve.metrics import Metrics
from gossamer.serve.options import ServeOptions, is_loopback
from gossamer.serve.service import new_id
from gossamer.serve.stream import LOG_KEY

__all__ = ["Guard", "is_public"]

METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")
"""That the metrics count apart; a client may make up others."""
BODIES = 16
"""Largest bodies that may be on their way at a time; the memory for them."""
TOO_LARGE = ApiError(413, "the body is too large; send less")
log = logging.getLogger("gossamer.serve.requests")


def is_public(path: str) -> bool:
    """Whether a path needs no key: the page, which asks for one, and what tells whether the service is up."""
    return path in ("/", "/favicon.ico", "/health", "/ready") or path.startswith("/page/")


class Guard:
    """Middleware around the whole application, whose ``routes`` the metrics tell apart.

    Without keys, a service for this machine answers only requests that name it by a loopback address: a page on the
    web whose name was made to point here (DNS rebinding) names another host.
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
        self._arriving = _Arriving(BODIES * options.max_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
                await self._app(scope, _bounded(receive, self._options, self._arriving, number), send_marked)
        finally:
            self._arriving.forget(number)
            seconds = time.monotonic() - start
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.http.labels(method, route, status).inc()
            self._metrics.http_seconds.labels(route).observe(seconds)
            told = " ".join(f"{name}={_quiet(value)}" for name, value in details.items())
            line = f"{number} {scope['method']} {_quiet(scope['path'])} {status} {seconds:.3f}s {told}"
            log.info(line.rstrip())

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        return self._stranger(scope, headers) or self._too_large(headers)

    def _route(self, scope: Scope) -> str:
        """The path of the route that a request is for, as it is declared, also where the request does not get there."""
        matching = (route for route in self._routes if route.matches(scope)[0] is not Match.NONE)
        return getattr(next(matching, None), "path", "none")

    def _too_large(self, headers: Headers) -> ApiError | None:
        length = headers.get("content-length", "0")
        return TOO_LARGE if length.isdigit() and int(length) > self._options.max_body else None

    def _stranger(self, scope: Scope, headers: Headers) -> ApiError | None:
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


class _Arriving:
    """Bodies that have not arrived whole: together they take ``most`` bytes; for more, the oldest give way."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bodies: dict[str, tuple[int, asyncio.Timeout]] = {}  # oldest first: bytes, and what it waits in

    def add(self, request: str, size: int, waiting: asyncio.Timeout) -> None:
        """So many bytes of a request's body are here, and it waits for more."""
        self._bodies[request] = size, waiting
        total = sum(size for size, _ in self._bodies.values())
        for other, (taken, patience) in list(self._bodies.items()):
            if total <= self._most:
                return
            if other != request:
                patience.reschedule(asyncio.get_running_loop().time())
                self.forget(other)
                total -= taken

    def forget(self, request: str) -> None:
        """The body is complete, or nobody waits for it any more."""
        self._bodies.pop(request, None)


def _bounded(receive: Receive, options: ServeOptions, arriving: _Arriving, request: str) -> Receive:
    """``receive`` with limits on the body's size and on all that arrive at a time, and a deadline for its end."""
    begun = asyncio.get_running_loop().time()
    complete, size = False, 0

    async def receive_bounded() -> Message:
        nonlocal complete, size
        if complete:
            return await receive()
        try:
            async with asyncio.timeout_at(begun + options.body_timeout) as waiting:
                if size:
                    arriving.add(request, size, waiting)
                message = await receive()
        except TimeoutError:
            late = asyncio.get_running_loop().time() - begun >= options.body_timeout
            why = f"within {options.body_timeout:g} seconds" if late else "before others that had to have room"
            raise HTTPException(408, f"the body did not arrive {why}") from None
        size += len(message.get("body", b""))
        if size > options.max_body:
            raise HTTPException(413)  # the framework lets this kind pass, and no other
        complete = message["type"] != "http.request" or not message.get("more_body", False)
        if complete:
            arriving.forget(request)
        return message

    return receive_bounded


def _quiet(value: object) -> str:
    """A value in one word of the log: nobody writes a line of his own into it."""
    text = str(value)
    return text if text.isprintable() and " " not in text else ascii(text)
