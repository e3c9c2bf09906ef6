"""POST /v1/responses without stored state, and /v1/responses/input_tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gossamer.serve.errors import ApiError
from gossamer.serve.response_items import OutputItems, chat_tool_choice, chat_tools, conversation
from gossamer.serve.routes.common import (
    ERRORS,
    GENERATION_ERRORS,
    Served,
    collect,
    note,
    note_usage,
    now,
    stream_answer,
)
from gossamer.serve.run import Run
from gossamer.serve.service import Fields, Service, new_id
from gossamer.serve.stream import PING, EventStream, event
from gossamer.serve.turn import Turn, offered_tools, prepare, template_messages, template_tools
from gossamer.serve.wire.base import AnyFormat, JsonObjectFormat, JsonSchemaFormat, Sampling, SchemaOfFormat
from gossamer.serve.wire.responses import (
    InputDetails,
    InputTokensAnswer,
    InputTokensRequest,
    JsonObjectText,
    JsonSchemaText,
    OutputDetails,
    ResponseAnswer,
    ResponseRequest,
    ResponseUsage,
)

router = APIRouter(tags=["responses"])
_FIELDS = Fields("input", "max_output_tokens")


@router.post(
    "/v1/responses",
    response_model=None,
    responses=stream_answer(ResponseAnswer, "The response") | GENERATION_ERRORS,
    summary="Answer, by the newer API",
)
async def responses(body: ResponseRequest, request: Request, service: Served) -> Response:
    """A response to the whole input; nothing is stored, so ``previous_response_id`` is not known here."""
    service.check_model(body.model)
    service.engine.check(1)
    turn = await prepare(
        service,
        conversation(body),
        Sampling(temperature=body.temperature, top_p=body.top_p),
        body.max_output_tokens,
        1,
        chat_tools(body.tools),
        chat_tool_choice(body.tool_choice),
        body.parallel_tool_calls,
        _format(body),
        fields=_FIELDS,
    )
    if body.user is not None:
        note(request, user=body.user)
    service.log_prompt(turn.requests)
    run = service.engine.admit(turn.requests)
    state = _State(service, request, body, turn)
    if body.stream:
        return await EventStream.begin(request, run, _events(run, state), service.options.write_timeout)
    await collect(request, run, lambda index, delta: state.add(delta))
    return Response(state.end().model_dump_json(), media_type="application/json")


@router.post("/v1/responses/input_tokens", responses=ERRORS, summary="Count an input's tokens")
async def input_tokens(body: InputTokensRequest, service: Served) -> InputTokensAnswer:
    """How many tokens /v1/responses makes of the same input, instructions and tools."""
    service.check_model(body.model)
    tools = template_tools(offered_tools(service, chat_tools(body.tools), chat_tool_choice(body.tool_choice)))
    prompt = await service.render(template_messages(conversation(body)), tools, field=_FIELDS.prompt)
    return InputTokensAnswer(object="response.input_tokens", input_tokens=len(prompt.ids))


def _format(body: ResponseRequest) -> AnyFormat | None:
    match body.text.format if body.text else None:
        case JsonObjectText():
            return JsonObjectFormat(type="json_object")
        case JsonSchemaText(name=name, json_schema=schema):
            return JsonSchemaFormat(type="json_schema", json_schema=SchemaOfFormat(name=name, schema=schema))
    return None


class _State:
    """A response as it grows."""

    def __init__(self, service: Service, request: Request, body: ResponseRequest, turn: Turn) -> None:
        self._service = service
        self._request = request
        self._body = body
        self._turn = turn
        self._items = OutputItems()
        self._id = new_id("resp_")
        self._created = now()
        self.ping = service.options.ping

    def add(self, delta: Any) -> list[tuple[str, dict[str, Any]]]:
        """Events that the engine's next piece means."""
        reply = self._turn.replies[0]
        events = [told for item in reply.add(delta) for told in self._items.add(reply, item)]
        if reply.finish_reason is not None:
            events += self._items.finish("incomplete" if reply.finish_reason == "length" else "completed")
        return events

    def end(self) -> ResponseAnswer:
        """The whole response, told to the log too."""
        reply = self._turn.replies[0]
        note_usage(self._request, self._turn.usage, [reply.finish_reason])
        self._service.log_answers([reply.content])
        return self.answer("incomplete" if reply.finish_reason == "length" else "completed")

    def answer(self, status: str, error: ApiError | None = None) -> ResponseAnswer:
        """The response as it stands."""
        body, usage = self._body, None
        if status in ("completed", "incomplete"):
            counted = self._turn.usage
            usage = ResponseUsage(
                input_tokens=counted.prompt_tokens,
                input_tokens_details=InputDetails(cached_tokens=counted.prompt_tokens_details.cached_tokens),
                output_tokens=counted.completion_tokens,
                output_tokens_details=OutputDetails(reasoning_tokens=self._turn.replies[0].reasoning_tokens),
                total_tokens=counted.total_tokens,
            )
        choice = body.tool_choice or "auto"
        form = body.text.format if body.text else None
        sampling = self._turn.requests[0].sampling
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


async def _events(run: Run, state: _State) -> AsyncGenerator[bytes, None]:
    number = -1

    def numbered(kind: str, fields: dict[str, Any]) -> bytes:
        nonlocal number
        number += 1
        return event({"type": kind, "sequence_number": number} | fields, kind)

    for kind in ("response.created", "response.in_progress"):
        yield numbered(kind, {"response": state.answer("in_progress").model_dump()})
    try:
        async for item in run.deltas(state.ping):
            if item is None:
                yield PING
                continue
            for kind, fields in state.add(item[1]):
                yield numbered(kind, fields)
    except ApiError as error:
        yield numbered("response.failed", {"response": state.answer("failed", error).model_dump()})
        return
    answer = state.end()
    yield numbered(f"response.{answer.status}", {"response": answer.model_dump()})
