"""POST /v1/completions: the continuation of a text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from gossamer.data.tokenizer import IncrementalDetokenizer
from gossamer.infer.request import Delta, TokenLogprobs
from gossamer.infer.request import Request as EngineRequest
from gossamer.infer.request import Usage as EngineUsage
from gossamer.serve.generation import DONE, PING, EventStream, Generation, event
from gossamer.serve.replies import total_usage
from gossamer.serve.routes.common import (
    GENERATION_ERRORS,
    Served,
    collect,
    completion_logprobs,
    log_usage,
    log_values,
    now,
    stream_answer,
)
from gossamer.serve.service import FieldNames, Service, new_id
from gossamer.serve.wire.base import Usage
from gossamer.serve.wire.completions import CompletionAnswer, CompletionChoice, CompletionRequest, CompletionsLogprobs

router = APIRouter(tags=["completions"])

DEFAULT_MAX_TOKENS = 16  # as OpenAI's


@dataclass
class _Text:
    """One choice, as far as it has been generated.

    Attributes:
        echo: the prompt, until it has been echoed; empty if it is not
        stream: finds where in the text its tokens begin
        text: the text so far
        logprobs: the log-probabilities of its tokens, if they were asked for
        finish_reason: None until the end
        usage: the engine's, None until the end
    """

    echo: str
    stream: IncrementalDetokenizer
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    usage: EngineUsage | None = None

    def add(self, delta: Delta) -> str:
        text = self.echo + delta.text
        self.echo = ""
        self.text += text
        self.logprobs += delta.logprobs or ()
        if delta.finish_reason is not None:
            self.finish_reason = "length" if delta.finish_reason == "length" else "stop"
            self.usage = delta.usage
        return text


@router.post(
    "/v1/completions",
    response_model=None,
    responses=stream_answer(CompletionAnswer, "The texts") | GENERATION_ERRORS,
    summary="Continue a text",
)
async def completions(body: CompletionRequest, request: Request, service: Served) -> Response:
    """The continuation of a text, without a chat template; several prompts and answers are numbered consecutively."""
    service = service.of_model(body.model)
    given, count = _prompts_of(body.prompt), body.n or 1
    service.engine.check(len(given) * count, "prompt" if count == 1 else "n")
    names = [f"prompt.{index}" if len(given) > 1 else "prompt" for index in range(len(given))]
    prompts = [await _prompt(service, name, prompt, bool(body.echo)) for name, prompt in zip(names, given, strict=True)]
    requests: list[EngineRequest] = []
    texts: list[_Text] = []
    for name, (ids, echo) in zip(names, prompts, strict=True):
        max_tokens = body.max_tokens or DEFAULT_MAX_TOKENS
        requests += service.engine_requests(body, ids, max_tokens, count, body.logprobs, fields=FieldNames(name))
        texts += [_Text(echo, service.tokenizer.stream()) for _ in range(count)]
    if body.user is not None:
        log_values(request, user=body.user)
    service.log_prompt(requests)
    generation = service.engine.admit(requests)
    head: dict[str, Any] = {"id": new_id("cmpl-"), "created": now(), "model": service.options.name}
    if body.stream:
        events = _chunks(service, request, body, generation, texts, count, head)
        return await EventStream.begin(request, generation, events, service.options.write_timeout)
    await collect(request, generation, lambda index, delta: texts[index].add(delta))
    usage = _finish(service, request, texts, count)
    choices = [
        CompletionChoice(
            index=index,
            text=text.text,
            logprobs=_logprobs(service, text.logprobs, text),
            finish_reason=text.finish_reason,
        )
        for index, text in enumerate(texts)
    ]
    answer = CompletionAnswer(object="text_completion", choices=choices, usage=usage, **head)
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


def _prompts_of(given: Any) -> list[Any]:
    """The prompts of a request: one text, one list of ids, or a list of either."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)


async def _prompt(service: Service, name: str, prompt: str | list[int], echo: bool) -> tuple[tuple[int, ...], str]:
    """The tokens of the prompt in the field `name`, and its text if it is to be echoed."""
    if isinstance(prompt, str):
        return await service.encode(prompt), prompt if echo else ""
    service.check_ids(name, prompt)
    return tuple(prompt), service.tokenizer.decode(prompt) if echo else ""


def _finish(service: Service, request: Request, texts: list[_Text], count: int) -> Usage:
    """Log the answers, and return their usage."""
    usage = total_usage([texts[first : first + count] for first in range(0, len(texts), count)])
    log_usage(request, usage, [text.finish_reason for text in texts])
    service.log_answers([text.text for text in texts])
    return usage


def _logprobs(service: Service, tokens: Sequence[TokenLogprobs], text: _Text) -> CompletionsLogprobs | None:
    """The log-probabilities of the next tokens of a choice; None if none were asked for."""
    return completion_logprobs(service.tokenizer, tokens, 0, text.stream) if tokens else None


async def _chunks(
    service: Service,
    request: Request,
    body: CompletionRequest,
    generation: Generation,
    texts: list[_Text],
    count: int,
    head: dict[str, Any],
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a streamed answer; usage comes last, in a chunk without choices, if it is asked for."""
    with_usage = bool(body.stream_options and body.stream_options.include_usage)

    def chunk(choices: list[CompletionChoice], **more: Any) -> bytes:
        if with_usage:
            more.setdefault("usage", None)
        return event(CompletionAnswer(object="text_completion", choices=choices, **head, **more))

    async for item in generation.deltas(service.options.ping):
        if item is None:
            yield PING
            continue
        index, delta = item
        text = texts[index].add(delta)
        if text or delta.logprobs or texts[index].finish_reason:
            logprobs = _logprobs(service, delta.logprobs or (), texts[index])
            reason = texts[index].finish_reason
            yield chunk([CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=reason)])
    usage = _finish(service, request, texts, count)
    if with_usage:
        yield chunk([], usage=usage)
    yield DONE
