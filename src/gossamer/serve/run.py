"""One HTTP request's generations while they run: what the engine makes, in order, with the service's time limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from gossamer.infer.request import Delta, Request
from gossamer.serve.errors import ApiError, invalid, unavailable
from gossamer.serve.metrics import Metrics
from gossamer.serve.options import ServeOptions

__all__ = ["Run"]

log = logging.getLogger("gossamer.serve")

Release = Callable[[str, bool, float], None]
"""Told of each request's end: its id, whether the engine still works on it, the seconds it took."""


class Run:
    """Whoever gets one closes it, whatever happens: that is what frees the engine's slots.

    Args:
        requests: with the engine; several for several choices.
        options: time limits.
        metrics: told about tokens and times.
        release: called once for each request.
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
        self._latest: dict[str, float] = {}  # when each request's newest token came

    def put(self, request_id: str, item: Delta | ApiError) -> None:
        """From the engine: a delta, or what ends the request instead."""
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
            item = _told(item)
        self._items.append(item if isinstance(item, ApiError) else (self._index[request_id], item))
        self._changed.set()

    async def begin(self) -> None:
        """Wait for the first token, for a moment at most: an error until then still has its own HTTP status.

        Raises:
            ApiError: the engine refuses the request or fails.
        """
        if not await self._arrived(min(self._options.ping, self._options.queue_timeout)):
            self._time_left()
        if self._items and isinstance(self._items[0], ApiError):
            raise self._items[0]

    async def deltas(self, ping: float = math.inf) -> AsyncIterator[tuple[int, Delta] | None]:
        """Yield each delta with the index of its request, until all have ended; None after ``ping`` idle seconds.

        Raises:
            ApiError: the engine fails, or a time limit has passed.
        """
        finished = 0
        while finished < len(self.requests):
            left = self._time_left()
            if await self._arrived(min(left, ping)):
                item = self._items.popleft()
                if isinstance(item, ApiError):
                    raise item
                finished += item[1].finish_reason is not None
                yield item
            elif ping < left:
                yield None

    def close(self) -> None:
        """Nobody waits any more: the engine forgets what it has not finished."""
        for request_id in self._open:
            self._release(request_id, True, 0.0)
        self._open.clear()

    async def _arrived(self, timeout: float) -> bool:
        if not self._items:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout if timeout < math.inf else None):
                    await self._changed.wait()
        return bool(self._items)

    def _time_left(self) -> float:
        """Seconds until this request has waited or run for too long."""
        passed, options = time.monotonic() - self._start, self._options
        if not self._latest and passed >= options.queue_timeout:
            raise unavailable(f"no token within {options.queue_timeout:g} seconds; try again", "queue_timeout", 10)
        if passed >= options.request_timeout:
            raise unavailable(f"not complete within {options.request_timeout:g} seconds", "request_timeout", 10)
        return min(options.request_timeout, math.inf if self._latest else options.queue_timeout) - passed

    def _measure(self, delta: Delta) -> None:
        now = time.monotonic()
        if delta.token_ids:
            before = self._latest.get(delta.id)
            if before is None:
                self._metrics.first_token.observe(now - self._start)
            else:
                self._metrics.next_token.observe((now - before) / len(delta.token_ids))
            self._latest[delta.id] = now
        if delta.usage is not None and delta.finish_reason is not None:
            self._metrics.finished(delta.finish_reason, delta.usage)


def _told(delta: Delta) -> ApiError:
    """What a client hears of an error: the engine's own line where that is about the request."""
    if delta.cause == "grammar":
        return invalid(str(delta.error), code="constraint_failed")
    if delta.cause == "logits":
        return ApiError(500, str(delta.error), "logits_not_finite")
    return ApiError(500, "the engine failed at this request", "engine_error")
