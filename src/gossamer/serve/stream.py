"""Answers that take long: server-sent events, and noticing that the client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gossamer.serve.errors import ApiError
from gossamer.serve.run import Run

__all__ = ["LOG_KEY", "ClientGone", "EventStream", "event", "unless_gone"]

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
LOG_KEY = "gossamer.log"
"""In a request's scope: what its line in the log tells besides."""
T = TypeVar("T")


class ClientGone(Exception):
    """Nobody reads the answer any more."""


def event(data: BaseModel | dict[str, Any], name: str | None = None) -> bytes:
    """One server-sent event; of a model only the fields that were set."""
    text = data.model_dump_json(exclude_unset=True, by_alias=True) if isinstance(data, BaseModel) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + b"data: " + text.encode() + b"\n\n"


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, which is cancelled when the client leaves.

    Raises:
        ClientGone: it left.
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


class EventStream(Response):
    """Sends events as they are made, and closes the run however it ends: read, left, or not read for too long.

    Args:
        run: what makes them.
        events: bytes to send; an ``ApiError`` that they raise becomes the last event.
        write_timeout: seconds that a client may leave a piece unread.
    """

    media_type = "text/event-stream"

    def __init__(self, run: Run, events: AsyncGenerator[bytes, None], write_timeout: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._run = run
        self._events = events
        self._write_timeout = write_timeout

    @classmethod
    async def begin(
        cls, request: Request, run: Run, events: AsyncGenerator[bytes, None], write_timeout: float
    ) -> EventStream:
        """The stream, once there is something to send.

        Raises:
            ApiError: there will not be: the engine refuses the request.
            ClientGone: nobody waits for it any more.
        """
        try:
            await unless_gone(request, run.begin())
        except BaseException:
            run.close()
            raise
        return cls(run, events, write_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
            self._run.close()
            await _cancel(sending, leaving)
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self._events:
                await self._timely(send({"type": "http.response.body", "body": piece, "more_body": True}))
        except ApiError as error:
            await self._timely(send({"type": "http.response.body", "body": event(error.body()), "more_body": True}))
        await self._timely(send({"type": "http.response.body", "body": b"", "more_body": False}))

    async def _timely(self, sending: Awaitable[None]) -> None:
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
