"""/v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gossamer.serve.wire.base import Answer, AnyFormat, Items, JsonSchema, Logprob, Sampling, StreamOptions, Usage, Wire

__all__ = [
    "AllowedTool",
    "AssistantMessage",
    "ChatAnswer",
    "ChatChoice",
    "ChatChunk",
    "ChatMessage",
    "ChatPrompt",
    "ChatRequest",
    "ChunkChoice",
    "Function",
    "Tool",
    "ToolChoice",
]

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class TextPart(Wire):
    """Text as a part of a message."""

    type: Literal["text"]
    text: str


Content = str | Items[TextPart]


class SystemMessage(Wire):
    """Instructions to the model."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Wire):
    """A message of the user."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(Wire):
    """The function of a tool call and its arguments."""

    name: FunctionName
    arguments: str = Field(description="a JSON object, as text")


class ToolCall(Wire):
    """A tool call of the assistant."""

    id: str = Field(min_length=1)
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Wire):
    """A message of the assistant."""

    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: Items[ToolCall] | None = None
    name: str | None = None
    refusal: None = None


class ToolMessage(Wire):
    """The result of a tool call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]


class Function(Wire):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = Field(None, description="hold calls to the schema of the parameters")


class Tool(Wire):
    """A tool that the model may use."""

    type: Literal["function"]
    function: Function


class AllowedFunction(Wire):
    """The name of the function that must be called."""

    name: FunctionName


class AllowedTool(Wire):
    """The tool that must be used."""

    type: Literal["function"]
    function: AllowedFunction


ToolChoice = Literal["none", "auto", "required"] | AllowedTool


class ChatPrompt(Wire):
    """The fields that make the prompt; all that counting its tokens takes."""

    model: str | None = Field(None, description="default: the one that is served")
    messages: Items[ChatMessage] = Field(min_length=1)
    tools: Items[Tool] | None = Field(None, max_length=128)
    tool_choice: ToolChoice | None = Field(None, description="default: auto where there are tools")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="for the checkpoint's template, such as enable_thinking"
    )

    @field_validator("tools")
    @classmethod
    def _names_differ(cls, tools: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in tools or []]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        return tools


class ChatRequest(ChatPrompt, Sampling):
    """A request for the next message of a conversation."""

    max_tokens: int | None = Field(None, ge=1, description="the older name of max_completion_tokens")
    max_completion_tokens: int | None = Field(None, ge=1, description="default: what is left of the context")
    n: int | None = Field(None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    parallel_tool_calls: bool | None = Field(
        None, description="false: one call at most; needs tool_choice other than auto"
    )
    response_format: AnyFormat | None = None
    user: str | None = Field(None, description="who asks; stands in the request log")
    store: Literal[False] | None = Field(None, description="nothing is stored here")
    service_tier: Literal["auto", "default"] | None = None
    modalities: Items[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens name the same limit; give one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class TokenLogprob(Logprob):
    """A token of an answer with the likeliest alternatives."""

    top_logprobs: list[Logprob]


class ChoiceLogprobs(Answer):
    """The log-probabilities of a choice."""

    content: list[TokenLogprob] | None
    refusal: None = None


class CalledFunctionAnswer(Answer):
    """The function of a tool call, or some of its arguments."""

    name: str | None = None
    arguments: str | None = None


class ToolCallAnswer(Answer):
    """A tool call of the model."""

    id: str
    type: Literal["function"]
    function: CalledFunctionAnswer


class MessageAnswer(Answer):
    """The message of a choice."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallAnswer] | None = None


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(Answer):
    """One of several answers."""

    index: int
    message: MessageAnswer
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatAnswer(Answer):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ToolCallDelta(Answer):
    """What a chunk adds to a tool call."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionAnswer


class MessageDelta(Answer):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Answer):
    """What a chunk adds to a choice."""

    index: int
    delta: MessageDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Answer):
    """An event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
