"""What the routes share: the service, the statuses of their answers, values for the log, log-probabilities."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import Depends, Request

from gossamer.data.tokenizer import IncrementalDetokenizer, Tokenizer
from gossamer.infer.request import Delta, TokenLogprobs
from gossamer.serve.generation import LOG_KEY, Generation, unless_gone
from gossamer.serve.service import Service
from gossamer.serve.wire.base import ErrorAnswer, Logprob, Usage
from gossamer.serve.wire.chat import TokenLogprob
from gossamer.serve.wire.completions import CompletionsLogprobs

__all__ = [
    "ERRORS",
    "FEEDBACK_ERRORS",
    "GENERATION_ERRORS",
    "Served",
    "Statuses",
    "chat_logprobs",
    "collect",
    "completion_logprobs",
    "log_usage",
    "log_values",
    "now",
    "stream_answer",
]

_MEANINGS = {
    400: "A field is wrong, unknown or not supported, or the prompt does not fit the model",
    401: "No API key, or one that is not known",
    404: "The model is not served here, or what the path is for is switched off",
    408: "The body did not arrive in time",
    413: "The body is too large",
    429: "The queue is full; Retry-After tells when to try again",
    500: "The engine failed at this request",
    503: "The model is being loaded, the service shuts down, or a time limit has passed; Retry-After",
    507: "The disk is full, or the file cannot be written; nothing of this request is in it",
}

Statuses = dict[int | str, dict[str, Any]]


def _errors(*statuses: int) -> Statuses:
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in statuses}


ERRORS = _errors(400, 401, 404, 408, 413, 503)
GENERATION_ERRORS = _errors(400, 401, 404, 408, 413, 429, 500, 503)
FEEDBACK_ERRORS = _errors(400, 401, 404, 408, 413, 503, 507)


def stream_answer(model: type, description: str) -> Statuses:
    """Return status 200 of a route that answers with JSON, or with a stream of events if the request asks for one."""
    fields = {"data": {"type": "string", "description": "JSON, or [DONE] at the end"}, "event": {"type": "string"}}
    media = {"text/event-stream": {"schema": {"type": "object", "properties": fields, "required": ["data"]}}}
    return {200: {"model": model, "description": description, "content": media}}


async def _service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


Served = Annotated[Service, Depends(_service)]


def now() -> int:
    """Return the seconds since 1970."""
    return int(time.time())


def log_values(request: Request, **values: Any) -> None:
    """Add values to the request's line in the log."""
    request.scope.setdefault(LOG_KEY, {}).update(values)


def log_usage(request: Request, usage: Usage, reasons: Sequence[str | None]) -> None:
    """Add the usage and the finish reasons of an answer to the request's line in the log."""
    log_values(
        request,
        prompt=usage.prompt_tokens,
        cached=usage.prompt_tokens_details.cached_tokens,
        completion=usage.completion_tokens,
        finish=",".join(str(reason) for reason in reasons),
    )


async def collect(request: Request, generation: Generation, add: Callable[[int, Delta], Any]) -> None:
    """Call `add(index, delta)` for every delta until the generation ends or the client leaves; then close it."""

    async def collect_all() -> None:
        async for item in generation.deltas():
            assert item is not None
            add(*item)

    try:
        await unless_gone(request, collect_all())
    finally:
        generation.close()


# Log-probabilities. A token that is a part of a character has no text of its own. It is written by its bytes, as OpenAI
# writes it: `\xe6\x97` in an answer of chat/completions, `bytes:\xe6\x97` in one of completions. So U+FFFD stands for
# the character U+FFFD alone.


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenLogprobs]) -> list[TokenLogprob]:
    """Return the log-probabilities of an answer in the form of chat/completions: a list of tokens with alternatives."""
    return [
        TokenLogprob(
            token=_token_text(tokenizer, token.token),
            logprob=token.logprob,
            bytes=list(_token_bytes(tokenizer, token.token)),
            top_logprobs=[
                Logprob(
                    token=_token_text(tokenizer, index), logprob=logprob, bytes=list(_token_bytes(tokenizer, index))
                )
                for index, logprob in token.top
            ],
        )
        for token in tokens
    ]


def completion_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[TokenLogprobs], offset: int, stream: IncrementalDetokenizer | None = None
) -> CompletionsLogprobs:
    """Return the log-probabilities of an answer in the form of completions: parallel lists over the tokens.

    Args:
        tokenizer: the tokenizer of the model
        tokens: the tokens of an answer, or of a part of it
        offset: number of characters before the answer
        stream: has decoded the tokens of the answer before these, and decodes these; None if these are the first
    """
    stream = tokenizer.stream() if stream is None else stream
    offsets = []
    for token in tokens:
        stream.push(token.token)
        offsets.append(offset + stream.token_start)
    top = [_by_token_text(tokenizer, token.top) for token in tokens]
    return CompletionsLogprobs(
        tokens=[_token_text(tokenizer, token.token, "bytes:") for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=top if any(top) else None,
        text_offset=offsets,
    )


def _by_token_text(tokenizer: Tokenizer, top: Sequence[tuple[int, float]]) -> dict[str, float]:
    """Log-probabilities by the texts of the tokens; of two tokens with the same text, the likelier one keeps it.

    The other one is named by its id, as vLLM does.
    """
    found: dict[str, float] = {}
    for index, logprob in sorted(top, key=lambda one: -one[1]):
        text = _token_text(tokenizer, index, "bytes:")
        found[f"token_id:{index}" if text in found else text] = logprob
    return found


def _token_text(tokenizer: Tokenizer, token: int, prefix: str = "") -> str:
    data = _token_bytes(tokenizer, token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in data)


def _token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes that a token stands for, none for one that the network has and the tokenizer has not."""
    return tokenizer.token_byte_values[token] if token < tokenizer.vocab_size else b""
