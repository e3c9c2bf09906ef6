"""An answer while it is generated: what the engine makes, in order, and how it reaches the client.

A `Generation` collects what the engine makes for one HTTP request and keeps the time limits of the service. An
`EventStream` sends it as server-sent events. `unless_gone` notices that the client has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gossamer.infer.request import Delta, Request
from gossamer.serve.errors import ApiError, invalid, unavailable
from gossamer.serve.metrics import Metrics
from gossamer.serve.options import ServeOptions

__all__ = ["LOG_KEY", "ClientGone", "EventStream", "Generation", "event", "unless_gone"]

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
LOG_KEY = "gossamer.log"
"""The key in the scope of a request under which further values for its line in the log are collected."""
log = logging.getLogger("gossamer.serve")
T = TypeVar("T")

Release = Callable[[str, bool, float], None]
"""Is called at the end of each request with its id, whether the engine still works on it, and its seconds."""


class Generation:
    """What the engine generates for one HTTP request.

    Whoever gets one must close it, whatever happens, because that frees the slots of the engine.

    Args:
        requests: the requests to the engine, one for each choice
        options: the time limits
        metrics: counts tokens and times
        release: called once for each request
    """

    def __init__(self, requests: Sequence[Request], options: ServeOptions, metrics: Metrics, release: Release) -> None:
        self.requests = requests
        self._options = options
        self._metrics = metrics
        self._release = release
        self._index = {request.id: index for index, request in enumerate(requests)}
        self._open = set(self._index)
        self._items: deque[tuple[int, Delta] | ApiError] = deque()
        self._changed = asyncio.Event()
        self._start = time.monotonic()
        self._last_token: dict[str, float] = {}  # when the newest token of each request came

    def put(self, request_id: str, item: Delta | ApiError) -> None:
        """Add what comes from the engine: a delta, or an error that ends the request instead."""
        if request_id not in self._open:
            return
        ended = isinstance(item, ApiError) or item.finish_reason is not None
        if isinstance(item, Delta):
            self._measure(item)
        if ended:
            self._open.discard(request_id)
            self._release(request_id, False, time.monotonic() - self._start)
        if isinstance(item, Delta) and item.finish_reason in ("error", "abort"):
            log.error("request %s: %s", request_id, item.error)
            item = _client_error(item)
        self._items.append(item if isinstance(item, ApiError) else (self._index[request_id], item))
        self._changed.set()

    async def begin(self) -> None:
        """Wait for the first token, but only for a moment: until then an error still has an HTTP status of its own.

        Raises:
            ApiError: the engine refuses the request or fails.
        """
        if not await self._wait_for_item(min(self._options.ping, self._options.queue_timeout)):
            self._seconds_left()
        if self._items and isinstance(self._items[0], ApiError):
            raise self._items[0]

    async def deltas(self, ping: float = math.inf) -> AsyncIterator[tuple[int, Delta] | None]:
        """Yield each delta with the index of its request, until all have ended, and None after `ping` idle seconds.

        Raises:
            ApiError: the engine fails, or a time limit has passed.
        """
        finished = 0
        while finished < len(self.requests):
            left = self._seconds_left()
            if await self._wait_for_item(min(left, ping)):
                item = self._items.popleft()
                if isinstance(item, ApiError):
                    raise item
                finished += item[1].finish_reason is not None
                yield item
            elif ping < left:
                yield None

    def close(self) -> None:
        """Make the engine drop what it has not finished, because nobody waits for it any more."""
        for request_id in self._open:
            self._release(request_id, True, 0.0)
        self._open.clear()

    async def _wait_for_item(self, timeout: float) -> bool:
        if not self._items:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout if timeout < math.inf else None):
                    await self._changed.wait()
        return bool(self._items)

    def _seconds_left(self) -> float:
        """The seconds until this request has waited or run for too long; raises ApiError if it has."""
        passed, options = time.monotonic() - self._start, self._options
        if not self._last_token and passed >= options.queue_timeout:
            raise unavailable(f"no token within {options.queue_timeout:g} seconds; try again", "queue_timeout", 10)
        if passed >= options.request_timeout:
            raise unavailable(f"not complete within {options.request_timeout:g} seconds", "request_timeout", 10)
        return min(options.request_timeout, math.inf if self._last_token else options.queue_timeout) - passed

    def _measure(self, delta: Delta) -> None:
        now = time.monotonic()
        if delta.token_ids:
            before = self._last_token.get(delta.id)
            if before is None:
                self._metrics.first_token.observe(now - self._start)
            else:
                self._metrics.next_token.observe((now - before) / len(delta.token_ids))
            self._last_token[delta.id] = now
        if delta.usage is not None and delta.finish_reason is not None:
            self._metrics.finished(delta.finish_reason, delta.usage)


def _client_error(delta: Delta) -> ApiError:
    """What a client is told about an error: the engine's own line if it is about the request."""
    if delta.cause == "grammar":
        return invalid(str(delta.error), code="constraint_failed")
    if delta.cause == "logits":
        return ApiError(500, str(delta.error), "logits_not_finite")
    return ApiError(500, "the engine failed at this request", "engine_error")


# The way to the client.


class ClientGone(Exception):
    """The client has left, so nobody reads the answer any more."""


async def unless_gone(request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and cancel it when the client leaves.

    Raises:
        ClientGone: the client has left.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _cancel(task, leaving)


def event(data: BaseModel | dict[str, Any], name: str | None = None) -> bytes:
    """Return one server-sent event; of a model only the fields that were set."""
    text = data.model_dump_json(exclude_unset=True, by_alias=True) if isinstance(data, BaseModel) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + b"data: " + text.encode() + b"\n\n"


class EventStream(Response):
    """Sends events as they are made, and closes the generation however it ends: read, left or not read for too long.

    Args:
        generation: what the events are made from
        events: yields the bytes to send; an `ApiError` that it raises becomes the last event
        write_timeout: seconds that a client may leave an event unread
    """

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, events: AsyncGenerator[bytes, None], write_timeout: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._generation = generation
        self._events = events
        self._write_timeout = write_timeout

    @classmethod
    async def begin(
        cls, request: HttpRequest, generation: Generation, events: AsyncGenerator[bytes, None], write_timeout: float
    ) -> EventStream:
        """Return the stream once there is something to send.

        Raises:
            ApiError: the engine refuses the request or fails.
            ClientGone: the client has left.
        """
        try:
            await unless_gone(request, generation.begin())
        except BaseException:
            generation.close()
            raise
        return cls(generation, events, write_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client leaves."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            with contextlib.suppress(ClientGone):
                if not sending.done():
                    raise ClientGone
                sending.result()
                return
            scope.setdefault(LOG_KEY, {})["finish"] = "left"
        finally:
            self._generation.close()
            await _cancel(sending, leaving)
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for data in self._events:
                await self._in_time(send({"type": "http.response.body", "body": data, "more_body": True}))
        except ApiError as error:
            await self._in_time(send({"type": "http.response.body", "body": event(error.body()), "more_body": True}))
        await self._in_time(send({"type": "http.response.body", "body": b"", "more_body": False}))

    async def _in_time(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._write_timeout):
                await sending
        except TimeoutError:
            raise ClientGone from None


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
