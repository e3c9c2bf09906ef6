"""/v1/responses, as far as it works without a memory of earlier requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from gossamer.serve.wire.base import Answer, Items, JsonSchema, Wire, max_keys
from gossamer.serve.wire.chat import AllowedFunction, FunctionName

__all__ = [
    "FunctionCallItem",
    "FunctionOutputItem",
    "FunctionTool",
    "InputItem",
    "InputTokensAnswer",
    "InputTokensRequest",
    "JsonSchemaText",
    "MessageItem",
    "NamedFunction",
    "ReasoningItem",
    "ResponseAnswer",
    "ResponsePrompt",
    "ResponseRequest",
    "ResponseUsage",
]

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Wire):
    """Text of the input."""

    type: Literal["input_text"]
    text: str


class OutputText(Wire):
    """Text of an earlier output."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = Field(None, max_length=0)
    logprobs: list[Any] | None = Field(None, max_length=0)


class MessageItem(Wire):
    """A message of the input."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Items[Annotated[InputText | OutputText, Field(discriminator="type")]]
    id: str | None = None
    status: Status | None = None


class FunctionCallItem(Wire):
    """A function call of an earlier response."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: FunctionName
    arguments: str = Field(description="a JSON object, as text")
    id: str | None = None
    status: Status | None = None


class FunctionOutputItem(Wire):
    """The result of a function call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Items[InputText]
    id: str | None = None
    status: Status | None = None


class ReasoningText(Wire):
    """Text of the model's reasoning."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Wire):
    """The reasoning of an earlier response."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Any] = Field(default_factory=list, max_length=0)
    content: Items[ReasoningText] | None = None
    encrypted_content: None = None
    status: Status | None = None


def _kind(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if isinstance(kind, str) else "message"


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


class FunctionTool(Wire):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class NamedFunction(AllowedFunction):
    """The function that must be called."""

    type: Literal["function"]


class PlainText(Wire):
    """Plain text, without a form."""

    type: Literal["text"]


class JsonObjectText(Wire):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaText(Wire):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    json_schema: JsonSchema = Field(alias="schema")
    strict: bool | None = None


class TextConfig(Wire):
    """The form of the text."""

    format: Annotated[PlainText | JsonObjectText | JsonSchemaText, Field(discriminator="type")] | None = None


class ResponsePrompt(Wire):
    """The fields that make the prompt; all that counting its tokens takes."""

    model: str | None = Field(None, description="default: the one that is served")
    input: str | Annotated[Items[InputItem], Field(min_length=1)]
    instructions: str | None = Field(None, description="a system message before everything else")
    tools: Items[FunctionTool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    truncation: Literal["disabled"] | None = None


class InputTokensRequest(ResponsePrompt):
    """A request to count the tokens of an input."""


class ResponseRequest(ResponsePrompt):
    """A request for a response."""

    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    stream: bool | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16), max_keys(16)] | None = Field(
        None, description="comes back with the answer"
    )
    user: str | None = Field(None, description="who asks; stands in the request log")
    store: Literal[False] | None = Field(None, description="nothing is stored here")
    background: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    include: list[str] | None = Field(None, max_length=0)


class InputTokensAnswer(Answer):
    """The number of tokens of an input."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class InputDetails(Answer):
    """Where the tokens of an input came from."""

    cached_tokens: int


class OutputDetails(Answer):
    """What the tokens of an output were used for."""

    reasoning_tokens: int


class ResponseUsage(Answer):
    """Tokens of an input and its output."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseAnswer(Answer):
    """A response, as far as it has been generated."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[dict[str, Any]] = Field(description="items of the types message, function_call and reasoning")
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    metadata: dict[str, str]
    temperature: float | None
    top_p: float | None
    max_output_tokens: int | None
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    truncation: Literal["disabled"]
    previous_response_id: None
    store: Literal[False]
    background: Literal[False]
    usage: ResponseUsage | None
