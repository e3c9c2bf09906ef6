"""POST /v1/responses without stored state, and /v1/responses/input_tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gossamer.data.chat.output_parser import CallArguments, CallBegins, Content, Event, Reasoning
from gossamer.serve.errors import ApiError
from gossamer.serve.generation import PING, EventStream, Generation, event
from gossamer.serve.replies import (
    PreparedReplies,
    Reply,
    ReplyRequest,
    offered_tools,
    prepare_replies,
    template_messages,
    template_tools,
)
from gossamer.serve.routes.common import (
    ERRORS,
    GENERATION_ERRORS,
    Served,
    collect,
    log_usage,
    log_values,
    now,
    stream_answer,
)
from gossamer.serve.service import FieldNames, Service, new_id
from gossamer.serve.wire.base import AnyFormat, JsonObjectFormat, JsonSchemaFormat, Sampling, SchemaOfFormat
from gossamer.serve.wire.chat import (
    AllowedFunction,
    AllowedTool,
    AssistantMessage,
    CalledFunction,
    ChatMessage,
    Function,
    SystemMessage,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMessage,
    UserMessage,
)
from gossamer.serve.wire.responses import (
    FunctionCallItem,
    FunctionOutputItem,
    FunctionTool,
    InputDetails,
    InputItem,
    InputText,
    InputTokensAnswer,
    InputTokensRequest,
    JsonObjectText,
    JsonSchemaText,
    MessageItem,
    NamedFunction,
    OutputDetails,
    OutputText,
    ReasoningItem,
    ResponseAnswer,
    ResponsePrompt,
    ResponseRequest,
    ResponseUsage,
)

router = APIRouter(tags=["responses"])
_FIELDS = FieldNames("input", "max_output_tokens")


@router.post(
    "/v1/responses",
    response_model=None,
    responses=stream_answer(ResponseAnswer, "The response") | GENERATION_ERRORS,
    summary="Answer, by the newer API",
)
async def responses(body: ResponseRequest, request: Request, service: Served) -> Response:
    """A response to the whole input; nothing is stored, so `previous_response_id` is not known here."""
    service = service.of_model(body.model)
    service.engine.check(1)
    reply_request = ReplyRequest(
        messages=_chat_messages(body),
        sampling=Sampling(temperature=body.temperature, top_p=body.top_p),
        max_tokens=body.max_output_tokens,
        tools=_chat_tools(body.tools),
        tool_choice=_chat_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_chat_format(body),
        fields=_FIELDS,
    )
    prepared = await prepare_replies(service, reply_request)
    if body.user is not None:
        log_values(request, user=body.user)
    service.log_prompt(prepared.requests)
    generation = service.engine.admit(prepared.requests)
    response = _Response(service, request, body, prepared)
    if body.stream:
        events = _events(generation, response)
        return await EventStream.begin(request, generation, events, service.options.write_timeout)
    await collect(request, generation, lambda index, delta: response.add(delta))
    return Response(response.finish().model_dump_json(), media_type="application/json")


@router.post("/v1/responses/input_tokens", responses=ERRORS, summary="Count an input's tokens")
async def input_tokens(body: InputTokensRequest, service: Served) -> InputTokensAnswer:
    """How many tokens /v1/responses makes of the same input, instructions and tools."""
    service = service.of_model(body.model)
    tools = template_tools(offered_tools(service, _chat_tools(body.tools), _chat_tool_choice(body.tool_choice)))
    prompt = await service.render(template_messages(_chat_messages(body)), tools, field=_FIELDS.prompt)
    return InputTokensAnswer(object="response.input_tokens", input_tokens=len(prompt.ids))


def _chat_format(body: ResponseRequest) -> AnyFormat | None:
    match body.text.format if body.text else None:
        case JsonObjectText():
            return JsonObjectFormat(type="json_object")
        case JsonSchemaText(name=name, json_schema=schema):
            return JsonSchemaFormat(type="json_schema", json_schema=SchemaOfFormat(name=name, schema=schema))
    return None


class _Response:
    """A response, as far as it has been generated."""

    def __init__(self, service: Service, request: Request, body: ResponseRequest, prepared: PreparedReplies) -> None:
        self._service = service
        self._request = request
        self._body = body
        self._prepared = prepared
        self._items = _OutputItems()
        self._id = new_id("resp_")
        self._created = now()
        self.ping = service.options.ping

    def add(self, delta: Any) -> list[tuple[str, dict[str, Any]]]:
        """Add what the engine has generated, and return the events that it means, each a type and its fields."""
        reply = self._prepared.replies[0]
        events = [event for item in reply.add(delta) for event in self._items.add(reply, item)]
        if reply.finish_reason is not None:
            events += self._items.finish("incomplete" if reply.finish_reason == "length" else "completed")
        return events

    def finish(self) -> ResponseAnswer:
        """Log the response, and return the whole of it."""
        reply = self._prepared.replies[0]
        log_usage(self._request, self._prepared.usage, [reply.finish_reason])
        self._service.log_answers([reply.content])
        return self.answer("incomplete" if reply.finish_reason == "length" else "completed")

    def answer(self, status: str, error: ApiError | None = None) -> ResponseAnswer:
        """Return the response as it stands."""
        body, usage = self._body, None
        if status in ("completed", "incomplete"):
            counted = self._prepared.usage
            usage = ResponseUsage(
                input_tokens=counted.prompt_tokens,
                input_tokens_details=InputDetails(cached_tokens=counted.prompt_tokens_details.cached_tokens),
                output_tokens=counted.completion_tokens,
                output_tokens_details=OutputDetails(reasoning_tokens=self._prepared.replies[0].reasoning_tokens),
                total_tokens=counted.total_tokens,
            )
        choice = body.tool_choice or "auto"
        form = body.text.format if body.text else None
        sampling = self._prepared.requests[0].sampling
        return ResponseAnswer.model_validate(
            {
                "id": self._id,
                "object": "response",
                "created_at": self._created,
                "status": status,
                "model": self._service.options.name,
                "output": self._items.items,
                "error": error and {"code": error.code or "server_error", "message": error.message},
                "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
                "instructions": body.instructions,
                "metadata": body.metadata or {},
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_output_tokens": body.max_output_tokens,
                "tools": [tool.model_dump() for tool in body.tools or ()],
                "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
                "parallel_tool_calls": body.parallel_tool_calls is not False,
                "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
                "truncation": "disabled",
                "previous_response_id": None,
                "store": False,
                "background": False,
                "usage": usage,
            }
        )


async def _events(generation: Generation, response: _Response) -> AsyncGenerator[bytes, None]:
    """Yield the events of a streamed response, numbered from 0."""
    number = -1

    def numbered(kind: str, fields: dict[str, Any]) -> bytes:
        nonlocal number
        number += 1
        return event({"type": kind, "sequence_number": number} | fields, kind)

    for kind in ("response.created", "response.in_progress"):
        yield numbered(kind, {"response": response.answer("in_progress").model_dump()})
    try:
        async for item in generation.deltas(response.ping):
            if item is None:
                yield PING
                continue
            for kind, fields in response.add(item[1]):
                yield numbered(kind, fields)
    except ApiError as error:
        yield numbered("response.failed", {"response": response.answer("failed", error).model_dump()})
        return
    answer = response.finish()
    yield numbered(f"response.{answer.status}", {"response": answer.model_dump()})


# A response and a conversation: its input as messages, a reply as its output items.


def _chat_messages(body: ResponsePrompt) -> list[ChatMessage]:
    """The messages that instructions and input stand for.

    The reasoning, text and calls of an assistant in a row are one message, as chat templates expect.
    """
    messages: list[ChatMessage] = []
    if body.instructions is not None:
        messages.append(SystemMessage(role="system", content=body.instructions))
    if isinstance(body.input, str):
        return [*messages, UserMessage(role="user", content=body.input)]
    for item in body.input:
        _append_item(messages, item)
    return messages


def _chat_tools(tools: Sequence[FunctionTool] | None) -> list[Tool]:
    """The tools in the form of chat/completions."""
    return [
        Tool(type="function", function=Function(**tool.model_dump(exclude={"type"}, exclude_none=True)))
        for tool in tools or ()
    ]


def _chat_tool_choice(choice: str | NamedFunction | None) -> ToolChoice | None:
    """The tool choice in the form of chat/completions."""
    if isinstance(choice, NamedFunction):
        return AllowedTool(type="function", function=AllowedFunction(name=choice.name))
    return choice  # type: ignore[return-value]


def _append_item(messages: list[ChatMessage], item: InputItem) -> None:
    """Add an item of the input to the messages."""
    match item:
        case MessageItem(role="assistant"):
            last = _assistant_message(
                messages, is_complete=lambda message: message.content is not None or message.tool_calls
            )
            last.content = _text(item.content)
        case MessageItem(role="user"):
            messages.append(UserMessage(role="user", content=_text(item.content)))
        case MessageItem():
            messages.append(SystemMessage(role="system", content=_text(item.content)))
        case FunctionCallItem():
            function = CalledFunction(name=item.name, arguments=item.arguments)
            last = _assistant_message(messages)
            last.tool_calls = [
                *(last.tool_calls or ()),
                ToolCall(id=item.call_id, type="function", function=function),
            ]
        case FunctionOutputItem():
            messages.append(ToolMessage(role="tool", content=_text(item.output), tool_call_id=item.call_id))
        case ReasoningItem():
            reasoning = "".join(part.text for part in item.content or ())
            _assistant_message(messages, is_complete=lambda message: True).reasoning_content = reasoning


def _assistant_message(messages: list[ChatMessage], is_complete: Any = lambda message: False) -> AssistantMessage:
    """The message of an assistant that the next item belongs to: the last one, unless it is complete, or a new one."""
    last = messages[-1] if messages else None
    if isinstance(last, AssistantMessage) and not is_complete(last):
        return last
    message = AssistantMessage(role="assistant")
    messages.append(message)
    return message


def _text(content: str | Sequence[InputText | OutputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class _OutputItems:
    """The output items of a response as they grow, and the events that report them.

    Attributes:
        items: the finished items, in order
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._text = ""

    def add(self, reply: Reply, event: Event) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the events, each a type and its fields, that an event of the reply means."""
        match event:
            case Reasoning(text):
                yield from self._open_item("reasoning")
                yield self._delta("response.reasoning_text.delta", text, content_index=0)
            case Content(text):
                yield from self._open_item("message")
                yield self._delta("response.output_text.delta", text, content_index=0, logprobs=[])
            case CallBegins(index, name):
                yield from self._close_item("completed")
                yield from self._begin_item({"type": "function_call", "call_id": reply.calls[index].id, "name": name})
            case CallArguments(_, text):
                yield self._delta("response.function_call_arguments.delta", text)

    def finish(self, status: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the events that close the last item; an answer without any is an empty message."""
        if self._open is None and not self.items:
            yield from self._open_item("message")
        yield from self._close_item(status)

    def _open_item(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._open is None or self._open["type"] != kind:
            yield from self._close_item("completed")
            yield from self._begin_item({"type": kind})

    def _begin_item(self, item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        prefixes = {"reasoning": "rs_", "message": "msg_", "function_call": "fc_"}
        self._open, self._text = {"id": new_id(prefixes[item["type"]]), **item, "status": "in_progress"}, ""
        yield "response.output_item.added", {"output_index": len(self.items), "item": self._item("in_progress", False)}
        if item["type"] != "function_call":
            yield "response.content_part.added", self._located(content_index=0, part=self._part())

    def _delta(self, kind: str, text: str, **more: Any) -> tuple[str, dict[str, Any]]:
        self._text += text
        return kind, self._located(delta=text, **more)

    def _close_item(self, status: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._open is None:
            return
        match self._open["type"]:
            case "function_call":
                done = self._located(arguments=self._text, name=self._open["name"])
                yield "response.function_call_arguments.done", done
            case kind:
                name = "reasoning_text" if kind == "reasoning" else "output_text"
                logprobs: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
                yield f"response.{name}.done", self._located(content_index=0, text=self._text, **logprobs)
                yield "response.content_part.done", self._located(content_index=0, part=self._part())
        item = self._item(status, True)
        yield "response.output_item.done", {"output_index": len(self.items), "item": item}
        self.items.append(item)
        self._open = None

    def _located(self, **fields: Any) -> dict[str, Any]:
        """The fields with the place of the open item before them."""
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.items)} | fields

    def _part(self) -> dict[str, Any]:
        assert self._open is not None
        if self._open["type"] == "reasoning":
            return {"type": "reasoning_text", "text": self._text}
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": []}

    def _item(self, status: str, is_whole: bool) -> dict[str, Any]:
        """The open item as the client sees it, with its text only if it is whole."""
        assert self._open is not None
        item = self._open | {"status": status}
        parts = [self._part()] if is_whole else []
        match item["type"]:
            case "reasoning":
                return item | {"summary": [], "content": parts}
            case "message":
                return item | {"role": "assistant", "content": parts}
            case _:
                return item | {"arguments": self._text}
