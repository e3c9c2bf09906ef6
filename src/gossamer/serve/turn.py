"""One answer of an assistant, whichever API asks for it: the prompt, the engine's requests, the parsed replies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gossamer.infer.request import Delta, Grammar, GrammarKind, Request
from gossamer.infer.request import Usage as EngineUsage
from gossamer.serve.errors import invalid
from gossamer.serve.grammars import CallRules, call_grammar, format_grammar
from gossamer.serve.output import CallArguments, CallBegins, Content, Event, OutputParser, Reasoning
from gossamer.serve.service import CHAT_FIELDS, Fields, Service, new_id
from gossamer.serve.tool_calls import CallReader, JsonCall, XmlCall
from gossamer.serve.wire.base import (
    AnyFormat,
    CompletionTokensDetails,
    GrammarFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    PromptTokensDetails,
    RegexFormat,
    Sampling,
    TextFormat,
    Usage,
)
from gossamer.serve.wire.chat import AllowedTool, ChatMessage, Tool, ToolChoice

__all__ = ["Call", "Reply", "Turn", "prepare", "template_messages", "template_tools", "usage_of"]


@dataclass
class Call:
    """Attributes:
    id: for the message that brings the function's answer
    arguments: the text of a JSON object
    """

    id: str
    name: str
    arguments: str = ""


@dataclass
class Reply:
    """One choice, as far as it has come.

    Attributes:
        finish_reason: the engine's, None until the end
        usage: the engine's, None until the end
        reasoning_tokens: made while a thought was open
    """

    parser: OutputParser
    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    usage: EngineUsage | None = None
    reasoning_tokens: int = 0

    def add(self, delta: Delta) -> list[Event]:
        """Take the engine's next piece; return what it means."""
        was_thinking = self.parser.thinking
        events = self.parser.push(delta.text)
        if was_thinking or self.parser.thinking:
            self.reasoning_tokens += len(delta.token_ids)
        self.logprobs += delta.logprobs or ()
        if delta.finish_reason is not None:
            events += self.parser.finish(cut=delta.finish_reason != "stop")
            self.finish_reason, self.usage = delta.finish_reason, delta.usage
        for event in events:
            match event:
                case Reasoning(text):
                    self.reasoning += text
                case Content(text):
                    self.content += text
                case CallBegins(_, name):
                    self.calls.append(Call(new_id("call_"), name))
                case CallArguments(index, text):
                    self.calls[index].arguments += text
        return events


@dataclass(frozen=True)
class Turn:
    """Attributes:
    requests: one for each choice
    replies: beside them
    """

    requests: list[Request]
    replies: list[Reply]

    @property
    def usage(self) -> Usage:
        """Of all choices; the prompt counts once."""
        return usage_of([self.replies], sum(reply.reasoning_tokens for reply in self.replies))


def usage_of(groups: Sequence[Sequence[Any]], reasoning_tokens: int | None = None) -> Usage:
    """Sum what the engine counted, ``usage`` of each item, over choices in groups that share a prompt."""
    counted = [[item.usage for item in group if item.usage is not None] for group in groups]
    prompt = sum(group[0].prompt_tokens for group in counted if group)
    cached = sum(group[0].cached_tokens for group in counted if group)
    made = sum(usage.completion_tokens for group in counted for usage in group)
    answer = Usage(
        prompt_tokens=prompt,
        completion_tokens=made,
        total_tokens=prompt + made,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )
    if reasoning_tokens is not None:
        answer.completion_tokens_details = CompletionTokensDetails(reasoning_tokens=reasoning_tokens)
    return answer


async def prepare(
    service: Service,
    messages: Sequence[ChatMessage],
    wanted: Sampling,
    max_tokens: int | None,
    count: int = 1,
    tools: Sequence[Tool] | None = None,
    tool_choice: ToolChoice | None = None,
    parallel: bool | None = None,
    form: AnyFormat | None = None,
    logprobs: int | None = None,
    extra: dict[str, Any] | None = None,
    fields: Fields = CHAT_FIELDS,
) -> Turn:
    """Everything that comes before the engine.

    Raises:
        ApiError: 400 for what the model, its template or the limits do not allow.
    """
    offered = offered_tools(service, tools, tool_choice)
    prompt = await service.render(template_messages(messages), template_tools(offered), extra, fields.prompt)
    grammar = _grammar(service, offered, tool_choice, parallel, form, prompt.thinking)
    requests = service.answers(
        wanted,
        prompt.ids,
        max_tokens,
        count,
        logprobs=logprobs,
        grammar=grammar,
        stop=service.template.stop,
        boundaries=prompt.boundaries,
        fields=fields,
    )
    reader = _reader(service, offered)
    template = service.template
    parsers = [OutputParser(prompt.thinking, template.thinks, reader, template.is_default) for _ in requests]
    return Turn(requests, [Reply(parser) for parser in parsers])


def offered_tools(service: Service, tools: Sequence[Tool] | None, choice: ToolChoice | None) -> list[Tool]:
    """The tools that the model is told of: none where it must not call any."""
    if not tools:
        if choice is not None and choice != "none":
            raise invalid("tool_choice: there are no tools to choose from; give tools", "tool_choice")
        return []
    if choice == "none":
        return []
    if service.template.tools is None:
        raise invalid("tools: this model's chat template cannot call any; leave them out", "tools", "unsupported_field")
    names = [tool.function.name for tool in tools]
    if isinstance(choice, AllowedTool) and choice.function.name not in names:
        raise invalid(f"tool_choice: {choice.function.name!r} is none of the tools {', '.join(names)}", "tool_choice")
    return list(tools)


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    """Tools as a chat template knows them; ``strict`` is for the service alone."""
    described = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]
    return described or None


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as a chat template knows them: text in one piece, arguments as objects, system for developer."""
    plain = []
    for index, message in enumerate(messages):
        values = message.model_dump(exclude_none=True, exclude={"refusal"})
        content = values.get("content") or ""
        values["content"] = content if isinstance(content, str) else "".join(part["text"] for part in content)
        if values["role"] == "developer":
            values["role"] = "system"
        for number, call in enumerate(values.get("tool_calls", ())):
            place = f"messages.{index}.tool_calls.{number}.function.arguments"
            call["function"]["arguments"] = _object(call["function"]["arguments"], place)
        plain.append(values)
    return plain


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise invalid(f"{place}: not JSON ({error})", place) from error
    if not isinstance(value, dict):
        raise invalid(f"{place}: expected a JSON object", place)
    return value


def _reader(service: Service, tools: Sequence[Tool]) -> Callable[[], CallReader] | None:
    if not tools:
        return None
    if service.template.tools == "json":
        return JsonCall
    return partial(XmlCall, {tool.function.name: tool.function.parameters or {} for tool in tools})


def _grammar(
    service: Service,
    tools: Sequence[Tool],
    choice: ToolChoice | None,
    parallel: bool | None,
    form: AnyFormat | None,
    thinking: bool,
) -> Grammar | None:
    if form is None or isinstance(form, TextFormat):
        if not tools:
            return None
        assert service.template.tools is not None
        named = choice.function.name if isinstance(choice, AllowedTool) else None
        allowed = [tool for tool in tools if named in (None, tool.function.name)]
        described = [tool.model_dump(exclude_none=True) for tool in allowed]
        rules = CallRules(described, choice == "required" or named is not None, named is not None or parallel is False)
        return call_grammar(rules, service.template.tools, thinking) if rules.binding else None
    if tools:
        raise invalid(
            "response_format together with tools is not supported; leave one of them out, or set tool_choice to none",
            "response_format",
            "unsupported_field",
        )
    grammar = format_grammar(*_kind_and_text(form), thinking)
    if grammar is None:
        raise invalid(
            "response_format: a grammar cannot follow a thought, and this prompt begins one; with some templates "
            "chat_template_kwargs {enable_thinking: false} leaves it out",
            "response_format",
            "unsupported_field",
        )
    return grammar


def _kind_and_text(form: JsonObjectFormat | JsonSchemaFormat | RegexFormat | GrammarFormat) -> tuple[GrammarKind, str]:
    match form:
        case JsonSchemaFormat():
            return "json_schema", json.dumps(form.json_schema.json_schema)
        case RegexFormat():
            return "regex", form.pattern
        case GrammarFormat():
            return "lark", form.grammar
        case JsonObjectFormat():
            return "json_object", ""
