"""/v1/responses and a conversation: its input as messages, a reply as its output items and events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gossamer.serve.output import CallArguments, CallBegins, Content, Event, Reasoning
from gossamer.serve.service import new_id
from gossamer.serve.turn import Reply
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
    InputItem,
    InputText,
    MessageItem,
    NamedFunction,
    OutputText,
    ReasoningItem,
    ResponsePrompt,
)

__all__ = ["OutputItems", "chat_tool_choice", "chat_tools", "conversation"]


def conversation(body: ResponsePrompt) -> list[ChatMessage]:
    """The messages that instructions and input stand for.

    What an assistant thought, said and called in a row is one message, as chat templates want it.
    """
    messages: list[ChatMessage] = []
    if body.instructions is not None:
        messages.append(SystemMessage(role="system", content=body.instructions))
    if isinstance(body.input, str):
        return [*messages, UserMessage(role="user", content=body.input)]
    for item in body.input:
        _append(messages, item)
    return messages


def chat_tools(tools: Sequence[FunctionTool] | None) -> list[Tool]:
    """Tools in the form of chat/completions."""
    return [
        Tool(type="function", function=Function(**tool.model_dump(exclude={"type"}, exclude_none=True)))
        for tool in tools or ()
    ]


def chat_tool_choice(choice: str | NamedFunction | None) -> ToolChoice | None:
    """A choice in the form of chat/completions."""
    if isinstance(choice, NamedFunction):
        return AllowedTool(type="function", function=AllowedFunction(name=choice.name))
    return choice  # type: ignore[return-value]


def _append(messages: list[ChatMessage], item: InputItem) -> None:
    match item:
        case MessageItem(role="assistant"):
            last = _assistant(messages, fresh=lambda message: message.content is not None or message.tool_calls)
            last.content = _text(item.content)
        case MessageItem(role="user"):
            messages.append(UserMessage(role="user", content=_text(item.content)))
        case MessageItem():
            messages.append(SystemMessage(role="system", content=_text(item.content)))
        case FunctionCallItem():
            function = CalledFunction(name=item.name, arguments=item.arguments)
            last = _assistant(messages)
            last.tool_calls = [
                *(last.tool_calls or ()),
                ToolCall(id=item.call_id, type="function", function=function),
            ]
        case FunctionOutputItem():
            messages.append(ToolMessage(role="tool", content=_text(item.output), tool_call_id=item.call_id))
        case ReasoningItem():
            thought = "".join(part.text for part in item.content or ())
            _assistant(messages, fresh=lambda message: True).reasoning_content = thought


def _assistant(messages: list[ChatMessage], fresh: Any = lambda message: False) -> AssistantMessage:
    """The assistant's message that the next item adds to: the last one, unless ``fresh`` says that it is complete."""
    last = messages[-1] if messages else None
    if isinstance(last, AssistantMessage) and not fresh(last):
        return last
    message = AssistantMessage(role="assistant")
    messages.append(message)
    return message


def _text(content: str | Sequence[InputText | OutputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class OutputItems:
    """The items of a response as they grow, and the events that tell of them.

    Attributes:
        items: finished ones, in order, and the open one's first state is not among them
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._text = ""

    def add(self, reply: Reply, event: Event) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events, each a type and its fields, that an event of the reply means."""
        match event:
            case Reasoning(text):
                yield from self._ensure("reasoning")
                yield self._delta("response.reasoning_text.delta", text, content_index=0)
            case Content(text):
                yield from self._ensure("message")
                yield self._delta("response.output_text.delta", text, content_index=0, logprobs=[])
            case CallBegins(index, name):
                yield from self._close("completed")
                yield from self._begin({"type": "function_call", "call_id": reply.calls[index].id, "name": name})
            case CallArguments(_, text):
                yield self._delta("response.function_call_arguments.delta", text)

    def finish(self, status: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events that close the last item. An answer without any is an empty message."""
        if self._open is None and not self.items:
            yield from self._ensure("message")
        yield from self._close(status)

    def _ensure(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._open is None or self._open["type"] != kind:
            yield from self._close("completed")
            yield from self._begin({"type": kind})

    def _begin(self, item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        prefixes = {"reasoning": "rs_", "message": "msg_", "function_call": "fc_"}
        self._open, self._text = {"id": new_id(prefixes[item["type"]]), **item, "status": "in_progress"}, ""
        yield "response.output_item.added", {"output_index": len(self.items), "item": self._shown("in_progress", False)}
        if item["type"] != "function_call":
            yield "response.content_part.added", self._place(content_index=0, part=self._part())

    def _delta(self, kind: str, text: str, **more: Any) -> tuple[str, dict[str, Any]]:
        self._text += text
        return kind, self._place(delta=text, **more)

    def _close(self, status: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._open is None:
            return
        match self._open["type"]:
            case "function_call":
                done = self._place(arguments=self._text, name=self._open["name"])
                yield "response.function_call_arguments.done", done
            case kind:
                name = "reasoning_text" if kind == "reasoning" else "output_text"
                logprobs: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
                yield f"response.{name}.done", self._place(content_index=0, text=self._text, **logprobs)
                yield "response.content_part.done", self._place(content_index=0, part=self._part())
        item = self._shown(status, True)
        yield "response.output_item.done", {"output_index": len(self.items), "item": item}
        self.items.append(item)
        self._open = None

    def _place(self, **fields: Any) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.items)} | fields

    def _part(self) -> dict[str, Any]:
        assert self._open is not None
        if self._open["type"] == "reasoning":
            return {"type": "reasoning_text", "text": self._text}
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": []}

    def _shown(self, status: str, whole: bool) -> dict[str, Any]:
        """The open item as the client sees it, its text only when it is whole."""
        assert self._open is not None
        item = self._open | {"status": status}
        parts = [self._part()] if whole else []
        match item["type"]:
            case "reasoning":
                return item | {"summary": [], "content": parts}
            case "message":
                return item | {"role": "assistant", "content": parts}
            case _:
                return item | {"arguments": self._text}
