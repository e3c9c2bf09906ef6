"""An assistant's reply, whichever API asks for it: the prompt, the engine's requests, and the parsed answers.

`prepare_replies` does everything that comes before the engine. A `Reply` collects what the engine then generates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gossamer.data.chat.output_parser import CallArguments, CallBegins, Content, Event, OutputParser, Reasoning
from gossamer.data.chat.tool_calls import CallReader, JsonCall, XmlCall
from gossamer.infer.request import Delta, Grammar, GrammarKind, Request
from gossamer.infer.request import Usage as EngineUsage
from gossamer.serve.errors import invalid
from gossamer.serve.grammars import CallRules, call_grammar, format_grammar
from gossamer.serve.service import CHAT_FIELDS, FieldNames, Service, new_id
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

__all__ = [
    "Call",
    "PreparedReplies",
    "Reply",
    "ReplyRequest",
    "offered_tools",
    "prepare_replies",
    "template_messages",
    "template_tools",
    "total_usage",
]


@dataclass
class Call:
    """A tool call in a reply.

    Attributes:
        id: identifies the call in the message that brings the function's answer
        name: the function
        arguments: the text of a JSON object
    """

    id: str
    name: str
    arguments: str = ""


@dataclass
class Reply:
    """One choice, as far as it has been generated.

    Attributes:
        parser: turns the engine's text into reasoning, content and tool calls
        reasoning: the reasoning so far
        content: the answer proper so far
        calls: the tool calls so far
        logprobs: the log-probabilities of the tokens so far, if they were asked for
        finish_reason: the engine's, None until the end
        usage: the engine's, None until the end
        reasoning_tokens: number of tokens that were generated while the model was reasoning
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
        """Add what the engine has generated, and return the events that it means."""
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
class PreparedReplies:
    """The choices of one answer before and while they are generated.

    Attributes:
        requests: the requests to the engine, one for each choice
        replies: the reply to each of them
    """

    requests: list[Request]
    replies: list[Reply]

    @property
    def usage(self) -> Usage:
        """The usage of all choices; the prompt counts once."""
        return total_usage([self.replies], sum(reply.reasoning_tokens for reply in self.replies))


def total_usage(groups: Sequence[Sequence[Any]], reasoning_tokens: int | None = None) -> Usage:
    """Sum what the engine has counted, the `usage` of each item.

    Args:
        groups: the choices, in groups that share a prompt
        reasoning_tokens: number of tokens of reasoning; None if the API does not report them
    """
    counted = [[item.usage for item in group if item.usage is not None] for group in groups]
    prompt = sum(group[0].prompt_tokens for group in counted if group)
    cached = sum(group[0].cached_tokens for group in counted if group)
    completion = sum(usage.completion_tokens for group in counted for usage in group)
    total = Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )
    if reasoning_tokens is not None:
        total.completion_tokens_details = CompletionTokensDetails(reasoning_tokens=reasoning_tokens)
    return total


@dataclass(frozen=True, kw_only=True)
class ReplyRequest:
    """What an API asks for: the next message of a conversation, and how it is generated.

    Attributes:
        messages: the conversation
        sampling: how tokens are sampled, and what ends the reply
        max_tokens: tokens that a reply may have; None for as many as fit
        num_choices: the number of replies
        tools: the functions that the model may call
        tool_choice: whether it may, must or must not call one, or which one it must call
        parallel_tool_calls: False allows one call at most
        response_format: the form that a reply must have
        logprobs: the number of alternatives to report with each token; None reports no log-probabilities
        template_kwargs: further variables for the chat template
        fields: what the API calls the fields that may ask for too much
    """

    messages: Sequence[ChatMessage]
    sampling: Sampling
    max_tokens: int | None
    num_choices: int = 1
    tools: Sequence[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: AnyFormat | None = None
    logprobs: int | None = None
    template_kwargs: dict[str, Any] | None = None
    fields: FieldNames = CHAT_FIELDS


async def prepare_replies(service: Service, request: ReplyRequest) -> PreparedReplies:
    """Do everything that comes before the engine: render the prompt, make the grammar and the engine's requests.

    Raises:
        ApiError: 400 for what the model, its template or the limits do not allow.
    """
    tools = offered_tools(service, request.tools, request.tool_choice)
    messages = template_messages(request.messages)
    prompt = await service.render(messages, template_tools(tools), request.template_kwargs, request.fields.prompt)
    template = service.template
    requests = service.engine_requests(
        request.sampling,
        prompt.ids,
        request.max_tokens,
        request.num_choices,
        logprobs=request.logprobs,
        grammar=_grammar(service, request, tools, prompt.thinking),
        stop=template.stop,
        boundaries=prompt.boundaries,
        fields=request.fields,
    )
    reader = _call_reader(service, tools)
    parsers = [OutputParser(prompt.thinking, template.thinks, reader, template.is_default) for _ in requests]
    return PreparedReplies(requests, [Reply(parser) for parser in parsers])


def offered_tools(service: Service, tools: Sequence[Tool] | None, choice: ToolChoice | None) -> list[Tool]:
    """Return the tools that the model is told about, none if it must not call any.

    Raises:
        ApiError: 400 if the model cannot call tools, or the choice is none of them.
    """
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
    """Return tools as chat templates know them, without `strict`, which is for the service alone."""
    described = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]
    return described or None


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages as chat templates know them: content as one text, arguments as objects, system for developer.

    Raises:
        ApiError: 400 if the arguments of a call are not a JSON object.
    """
    plain = []
    for index, message in enumerate(messages):
        values = message.model_dump(exclude_none=True, exclude={"refusal"})
        content = values.get("content") or ""
        values["content"] = content if isinstance(content, str) else "".join(part["text"] for part in content)
        if values["role"] == "developer":
            values["role"] = "system"
        for number, call in enumerate(values.get("tool_calls", ())):
            field_name = f"messages.{index}.tool_calls.{number}.function.arguments"
            call["function"]["arguments"] = _parse_object(call["function"]["arguments"], field_name)
        plain.append(values)
    return plain


def _parse_object(text: str, field_name: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise invalid(f"{field_name}: not JSON ({error})", field_name) from error
    if not isinstance(value, dict):
        raise invalid(f"{field_name}: expected a JSON object", field_name)
    return value


def _call_reader(service: Service, tools: Sequence[Tool]) -> Callable[[], CallReader] | None:
    if not tools:
        return None
    if service.template.tools == "json":
        return JsonCall
    return partial(XmlCall, {tool.function.name: tool.function.parameters or {} for tool in tools})


def _grammar(service: Service, request: ReplyRequest, tools: Sequence[Tool], thinking: bool) -> Grammar | None:
    """The grammar that the reply must follow, from `response_format` or from the tools; None if it is free."""
    form, choice = request.response_format, request.tool_choice
    if form is None or isinstance(form, TextFormat):
        if not tools:
            return None
        assert service.template.tools is not None
        named = choice.function.name if isinstance(choice, AllowedTool) else None
        allowed = [tool for tool in tools if named in (None, tool.function.name)]
        described = [tool.model_dump(exclude_none=True) for tool in allowed]
        is_single = named is not None or request.parallel_tool_calls is False
        rules = CallRules(described, choice == "required" or named is not None, is_single)
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
