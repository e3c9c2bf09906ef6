"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gossamer.data.chat.output_parser import CallArguments, CallBegins, Content, Event, Reasoning
from gossamer.infer.request import Delta
from gossamer.serve.generation import DONE, PING, EventStream, Generation, event
from gossamer.serve.replies import PreparedReplies, Reply, ReplyRequest, prepare_replies
from gossamer.serve.routes.common import (
    GENERATION_ERRORS,
    Served,
    chat_logprobs,
    collect,
    log_usage,
    log_values,
    now,
    stream_answer,
)
from gossamer.serve.service import FieldNames, Service, new_id
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
    """The next message of a conversation, whole or as it is made (`stream`)."""
    service = service.of_model(body.model)
    service.engine.check(body.n or 1)
    prepared = await prepare_replies(service, _reply_request(body))
    if body.user is not None:
        log_values(request, user=body.user)
    service.log_prompt(prepared.requests)
    generation = service.engine.admit(prepared.requests)
    head: dict[str, Any] = {"id": new_id("chatcmpl-"), "created": now(), "model": service.options.name}
    if body.stream:
        events = _chunks(service, request, body, generation, prepared, head)
        return await EventStream.begin(request, generation, events, service.options.write_timeout)
    await collect(request, generation, lambda index, delta: prepared.replies[index].add(delta))
    log_usage(request, prepared.usage, [reply.finish_reason for reply in prepared.replies])
    service.log_answers([reply.content for reply in prepared.replies])
    choices = [_choice(service, index, reply) for index, reply in enumerate(prepared.replies)]
    answer = ChatAnswer(object="chat.completion", choices=choices, usage=prepared.usage, **head)
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


def _reply_request(body: ChatRequest) -> ReplyRequest:
    max_tokens_field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return ReplyRequest(
        messages=body.messages,
        sampling=body,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        num_choices=body.n or 1,
        tools=body.tools,
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=body.response_format,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        template_kwargs=body.chat_template_kwargs,
        fields=FieldNames(max_tokens=max_tokens_field),
    )


def _finish_reason(reply: Reply) -> FinishReason:
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
        finish_reason=_finish_reason(reply),
    )


def _logprobs(service: Service, tokens: list[Any]) -> ChoiceLogprobs | None:
    return ChoiceLogprobs(content=chat_logprobs(service.tokenizer, tokens)) if tokens else None


async def _chunks(
    service: Service,
    request: Request,
    body: ChatRequest,
    generation: Generation,
    prepared: PreparedReplies,
    head: dict[str, Any],
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a streamed answer; usage comes last, in a chunk without choices, if it is asked for."""
    with_usage = bool(body.stream_options and body.stream_options.include_usage)

    def chunk(choices: list[ChunkChoice], **more: Any) -> bytes:
        if with_usage:
            more.setdefault("usage", None)
        return event(ChatChunk(object="chat.completion.chunk", choices=choices, **head, **more))

    has_begun: set[int] = set()
    async for item in generation.deltas(service.options.ping):
        if item is None:
            yield PING
            continue
        index, delta = item
        if index not in has_begun:
            has_begun.add(index)
            first = MessageDelta(role="assistant", content="")
            yield chunk([ChunkChoice(index=index, delta=first, logprobs=None, finish_reason=None)])
        for choice in _chunk_choices(service, index, prepared.replies[index], delta):
            yield chunk([choice])
    log_usage(request, prepared.usage, [reply.finish_reason for reply in prepared.replies])
    service.log_answers([reply.content for reply in prepared.replies])
    if with_usage:
        yield chunk([], usage=prepared.usage)
    yield DONE


def _chunk_choices(service: Service, index: int, reply: Reply, delta: Delta) -> list[ChunkChoice]:
    """What a delta adds to a choice; its log-probabilities go with the first part, or alone if it adds no text."""
    messages = [_message_delta(reply, item) for item in reply.add(delta)]
    ended = reply.finish_reason is not None
    if not messages and delta.logprobs and not ended:
        messages = [MessageDelta(content="")]
    choices = [ChunkChoice(index=index, delta=message, logprobs=None, finish_reason=None) for message in messages]
    if ended:
        last = ChunkChoice(index=index, delta=MessageDelta(), logprobs=None, finish_reason=_finish_reason(reply))
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
            first = ToolCallDelta(index=index, id=reply.calls[index].id, type="function", function=call)
            return MessageDelta(tool_calls=[first])
        case CallArguments(index, text):
            return MessageDelta(tool_calls=[ToolCallDelta(index=index, function=CalledFunctionAnswer(arguments=text))])
