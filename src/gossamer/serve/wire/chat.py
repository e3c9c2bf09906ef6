"""/v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gossamer.serve.wire.base import Answer, AnyFormat, Items, JsonSchema, Logprob, Sampling, StreamOptions, Usage, Wire

__all__ = [
    "AllowedTool",
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
    type: Literal["text"]
    text: str


Content = str | Items[TextPart]


class SystemMessage(Wire):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Wire):
    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(Wire):
    name: FunctionName
    arguments: str = Field(description="a JSON object, as text")


class ToolCall(Wire):
    id: str = Field(min_length=1)
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Wire):
    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: Items[ToolCall] | None = None
    name: str | None = None
    refusal: None = None


class ToolMessage(Wire):
    role: Literal["tool"]
    content: Content
    tool_call_id: str


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]


class Function(Wire):
    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = Field(None, description="hold calls to the schema of the parameters")


class Tool(Wire):
    type: Literal["function"]
    function: Function


class AllowedFunction(Wire):
    name: FunctionName


class AllowedTool(Wire):
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
    top_logprobs: list[Logprob]


class ChoiceLogprobs(Answer):
    content: list[TokenLogprob] | None
    refusal: None = None


class CalledFunctionAnswer(Answer):
    name: str | None = None
    arguments: str | None = None


class ToolCallAnswer(Answer):
    id: str
    type: Literal["function"]
    function: CalledFunctionAnswer


class MessageAnswer(Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallAnswer] | None = None


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(Answer):
    index: int
    message: MessageAnswer
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatAnswer(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ToolCallDelta(Answer):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionAnswer


class MessageDelta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Answer):
    index: int
    delta: MessageDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Answer):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
