"""What the routes share: the service behind a request, the statuses they may answer with, what the log is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import Depends, Request

from gossamer.infer.request import Delta
from gossamer.serve.run import Run
from gossamer.serve.service import Service
from gossamer.serve.stream import LOG_KEY, unless_gone
from gossamer.serve.wire.base import ErrorAnswer, Usage

__all__ = ["ERRORS", "GENERATION_ERRORS", "Served", "collect", "note", "note_usage", "now", "stream_answer"]

_MEANINGS = {
    400: "A field is wrong, unknown or not supported, or the prompt does not fit the model",
    401: "No API key, or one that is not known",
    404: "The model is not served here",
    408: "The body did not arrive in time",
    413: "The body is too large",
    429: "The queue is full; Retry-After tells when to try again",
    500: "The engine failed at this request",
    503: "The model is being loaded, the service shuts down, or a time limit has passed; Retry-After",
}


Statuses = dict[int | str, dict[str, Any]]


def _errors(*statuses: int) -> Statuses:
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in statuses}


ERRORS = _errors(400, 401, 404, 408, 413, 503)
GENERATION_ERRORS = _errors(400, 401, 404, 408, 413, 429, 500, 503)


def stream_answer(model: type, description: str) -> Statuses:
    """Status 200 of a route that answers with JSON, or with a stream of events where the request asks for one."""
    fields = {"data": {"type": "string", "description": "JSON, or [DONE] at the end"}, "event": {"type": "string"}}
    media = {"text/event-stream": {"schema": {"type": "object", "properties": fields, "required": ["data"]}}}
    return {200: {"model": model, "description": description, "content": media}}


async def _service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


Served = Annotated[Service, Depends(_service)]


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


def note(request: Request, **values: Any) -> None:
    """Add to the request's line in the log."""
    request.scope.setdefault(LOG_KEY, {}).update(values)


def note_usage(request: Request, usage: Usage, reasons: Sequence[str | None]) -> None:
    """Add what an answer took to the request's line in the log."""
    note(
        request,
        prompt=usage.prompt_tokens,
        cached=usage.prompt_tokens_details.cached_tokens,
        completion=usage.completion_tokens,
        finish=",".join(str(reason) for reason in reasons),
    )


async def collect(request: Request, run: Run, take: Callable[[int, Delta], Any]) -> None:
    """Hand every delta to ``take(index, delta)`` until the run ends or the client leaves; then close the run."""

    async def all_of_it() -> None:
        async for item in run.deltas():
            assert item is not None
            take(*item)

    try:
        await unless_gone(request, all_of_it())
    finally:
        run.close()
