"""What all families of endpoints share: strict fields, sampling, response formats, usage."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    "Answer",
    "AnyFormat",
    "CompletionTokensDetails",
    "ErrorAnswer",
    "GrammarFormat",
    "Items",
    "JsonObjectFormat",
    "JsonSchema",
    "JsonSchemaFormat",
    "Logprob",
    "PromptTokensDetails",
    "RegexFormat",
    "Sampling",
    "StreamOptions",
    "TextFormat",
    "TokenId",
    "Usage",
    "Wire",
    "max_keys",
]

MAX_FIELDS = 256
T = TypeVar("T")
Items = Annotated[list[T], Field(fail_fast=True)]
"""A list that a client sends, of which only the first wrong item is reported, not a million of them."""


def max_keys(count: int) -> BeforeValidator:
    """Return a validator that refuses objects with more keys before each of them is validated."""

    def validate(data: Any) -> Any:
        if isinstance(data, dict) and len(data) > count:
            raise ValueError(f"{len(data)} keys; {count} are taken")
        return data

    return BeforeValidator(validate)


JsonSchema = dict[str, Any]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
Biases = dict[TokenKey, Annotated[float, Field(ge=-100, le=100)]]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]


class Wire(BaseModel):
    """What a client sends: no field beyond these, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _check_number_of_fields(cls, data: Any) -> Any:
        """Refuse an object with too many fields once, instead of reporting each of a million unknown ones."""
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise ValueError(f"{len(data)} fields; no object here has more than {MAX_FIELDS}")
        return data


class Answer(BaseModel):
    """What a client gets; fields that were not set are left out."""

    model_config = ConfigDict(protected_namespaces=())


class Sampling(Wire):
    """How the next token is chosen; OpenAI's fields, and those that vLLM and SGLang add.

    What is left out follows the checkpoint's generation_config.json, else OpenAI's defaults.
    """

    temperature: float | None = Field(None, ge=0, le=100, description="0 takes the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="0: all tokens")
    min_p: float | None = Field(None, ge=0, le=1, description="of the likeliest token's probability")
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[Biases, Field(max_length=1024), max_keys(1024)] | None = Field(
        None, description="added to the logits of token ids, which are the keys"
    )
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = Field(
        None, description="texts that end the answer, not part of it"
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool | None = Field(None, description="continue to max_tokens")


class StreamOptions(Wire):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(None, description="a last chunk with usage and no choices")


class TextFormat(Wire):
    """Plain text, without a form."""

    type: Literal["text"]


class JsonObjectFormat(Wire):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaOfFormat(Wire):
    """The JSON schema of an answer."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    json_schema: JsonSchema = Field(alias="schema")
    strict: bool | None = Field(None, description="the schema is kept to, strict or not")


class JsonSchemaFormat(Wire):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaOfFormat


class RegexFormat(Wire):
    """Beyond OpenAI's: the whole answer matches a regular expression."""

    type: Literal["regex"]
    pattern: str = Field(min_length=1)


class GrammarFormat(Wire):
    """Beyond OpenAI's: the answer follows a grammar in llguidance's variant of Lark."""

    type: Literal["grammar"]
    grammar: str = Field(min_length=1)


AnyFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | GrammarFormat, Field(discriminator="type")
]


class PromptTokensDetails(Answer):
    """Where the tokens of a prompt came from."""

    cached_tokens: int = Field(description="of the prompt, not computed again")


class CompletionTokensDetails(Answer):
    """What the tokens of an answer were used for."""

    reasoning_tokens: int


class Usage(Answer):
    """Tokens of a prompt and of its answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = None


class Logprob(Answer):
    """A token and its natural logarithm of probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class ErrorDetail(Answer):
    """What went wrong, in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """The answer to a request that failed."""

    error: ErrorDetail
