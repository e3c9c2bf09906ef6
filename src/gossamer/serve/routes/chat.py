"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gossamer.infer.request import Delta
from gossamer.serve.logprobs import chat_logprobs
from gossamer.serve.output import CallArguments, CallBegins, Content, Event, Reasoning
from gossamer.serve.routes.common import GENERATION_ERRORS, Served, collect, note, note_usage, now, stream_answer
from gossamer.serve.run import Run
from gossamer.serve.service import Fields, Service, new_id
from gossamer.serve.stream import DONE, PING, EventStream, event
from gossamer.serve.turn import Reply, Turn, prepare
from gossamer.serve.wire.chat import (
    CalledFunctionAnswer,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatRequest,
    ChoiceLogprobs,
    ChunkChoice,
    FinishReason,
    MessageAnswer,
    MessageDelta,
    ToolCallAnswer,
    ToolCallDelta,
)

router = APIRouter(tags=["chat"])


@router.post(
    "/v1/chat/completions",
    response_model=None,
    responses=stream_answer(ChatAnswer, "The answer") | GENERATION_ERRORS,
    summary="Answer a conversation",
)
async def chat_completions(body: ChatRequest, request: Request, service: Served) -> Response:
    """The next message of a conversation, whole or as it is made (``stream``)."""
    service.check_model(body.model)
    count = body.n or 1
    service.engine.check(count)
    turn = await prepare(
        service,
        body.messages,
        body,
        body.max_completion_tokens or body.max_tokens,
        count,
        body.tools,
        body.tool_choice,
        body.parallel_tool_calls,
        body.response_format,
        (body.top_logprobs or 0) if body.logprobs else None,
        body.chat_template_kwargs,
        Fields(max_tokens="max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"),
    )
    if body.user is not None:
        note(request, user=body.user)
    service.log_prompt(turn.requests)
    run = service.engine.admit(turn.requests)
    head: dict[str, Any] = {"id": new_id("chatcmpl-"), "created": now(), "model": service.options.name}
    if body.stream:
        events = _chunks(service, request, body, run, turn, head)
        return await EventStream.begin(request, run, events, service.options.write_timeout)
    await collect(request, run, lambda index, delta: turn.replies[index].add(delta))
    note_usage(request, turn.usage, [reply.finish_reason for reply in turn.replies])
    service.log_answers([reply.content for reply in turn.replies])
    choices = [_choice(service, index, reply) for index, reply in enumerate(turn.replies)]
    answer = ChatAnswer(object="chat.completion", choices=choices, usage=turn.usage, **head)
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


def _finish(reply: Reply) -> FinishReason:
    if reply.calls and reply.finish_reason == "stop":
        return "tool_calls"
    return "length" if reply.finish_reason == "length" else "stop"


def _choice(service: Service, index: int, reply: Reply) -> ChatChoice:
    message: dict[str, Any] = {"role": "assistant", "content": reply.content or (None if reply.calls else "")}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = [
            ToolCallAnswer(
                id=call.id, type="function", function=CalledFunctionAnswer(name=call.name, arguments=call.arguments)
            )
            for call in reply.calls
        ]
    return ChatChoice(
        index=index,
        message=MessageAnswer(**message),
        logprobs=_logprobs(service, reply.logprobs),
        finish_reason=_finish(reply),
    )


def _logprobs(service: Service, told: list[Any]) -> ChoiceLogprobs | None:
    return ChoiceLogprobs(content=chat_logprobs(service.tokenizer, told)) if told else None


async def _chunks(
    service: Service, request: Request, body: ChatRequest, run: Run, turn: Turn, head: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """The events of a streamed answer; usage comes last, in a chunk without choices, where it is asked for."""
    with_usage = bool(body.stream_options and body.stream_options.include_usage)

    def chunk(choices: list[ChunkChoice], **more: Any) -> bytes:
        if with_usage:
            more.setdefault("usage", None)
        return event(ChatChunk(object="chat.completion.chunk", choices=choices, **head, **more))

    begun: set[int] = set()
    async for item in run.deltas(service.options.ping):
        if item is None:
            yield PING
            continue
        index, delta = item
        if index not in begun:
            begun.add(index)
            first = MessageDelta(role="assistant", content="")
            yield chunk([ChunkChoice(index=index, delta=first, logprobs=None, finish_reason=None)])
        for choice in _pieces(service, index, turn.replies[index], delta):
            yield chunk([choice])
    note_usage(request, turn.usage, [reply.finish_reason for reply in turn.replies])
    service.log_answers([reply.content for reply in turn.replies])
    if with_usage:
        yield chunk([], usage=turn.usage)
    yield DONE


def _pieces(service: Service, index: int, reply: Reply, delta: Delta) -> list[ChunkChoice]:
    """What a delta adds to a choice. Its log-probabilities go with the first piece, or alone where it adds no text."""
    pieces = [_message_delta(reply, item) for item in reply.add(delta)]
    ended = reply.finish_reason is not None
    if not pieces and delta.logprobs and not ended:
        pieces = [MessageDelta(content="")]
    choices = [ChunkChoice(index=index, delta=piece, logprobs=None, finish_reason=None) for piece in pieces]
    if ended:
        last = ChunkChoice(index=index, delta=MessageDelta(), logprobs=None, finish_reason=_finish(reply))
        choices.append(last)
    if choices and delta.logprobs:
        choices[0].logprobs = _logprobs(service, list(delta.logprobs))
    return choices


def _message_delta(reply: Reply, item: Event) -> MessageDelta:
    match item:
        case Reasoning(text):
            return MessageDelta(reasoning_content=text)
        case Content(text):
            return MessageDelta(content=text)
        case CallBegins(index, name):
            call = CalledFunctionAnswer(name=name, arguments="")
            begin = ToolCallDelta(index=index, id=reply.calls[index].id, type="function", function=call)
            return MessageDelta(tool_calls=[begin])
        case CallArguments(index, text):
            return MessageDelta(tool_calls=[ToolCallDelta(index=index, function=CalledFunctionAnswer(arguments=text))])
