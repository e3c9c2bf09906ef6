"""/v1/completions, /v1/models and counting tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gossamer.serve.wire.base import Answer, Items, Sampling, StreamOptions, TokenId, Usage, Wire
from gossamer.serve.wire.chat import ChatPrompt

__all__ = [
    "CompletionAnswer",
    "CompletionChoice",
    "CompletionRequest",
    "CompletionsLogprobs",
    "ModelAnswer",
    "ModelsAnswer",
    "TextPrompt",
    "TokenizeAnswer",
]

Ids = Annotated[Items[TokenId], Field(min_length=1)]
Prompt = (
    str
    | Annotated[Items[str], Field(min_length=1, max_length=128)]
    | Ids
    | Annotated[Items[Ids], Field(min_length=1, max_length=128)]
)


class CompletionRequest(Sampling):
    """A request for the continuation of a text."""

    model: str | None = Field(None, description="default: the one that is served")
    prompt: Prompt = Field(description="a text or token ids, or several of them")
    max_tokens: int | None = Field(None, ge=1, description="default: 16")
    n: int | None = Field(None, ge=1, le=128)
    echo: bool | None = Field(None, description="the prompt before the answer")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, ge=0, le=20, description="how many of the likeliest tokens to tell")
    user: str | None = Field(None, description="who asks; stands in the request log")

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo together with logprobs is not supported; leave one of them out")
        return self


class CompletionsLogprobs(Answer):
    """The log-probabilities of a text, as parallel lists over its tokens."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(Answer):
    """One of several continuations."""

    index: int
    text: str
    logprobs: CompletionsLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionAnswer(Answer):
    """A whole answer, or an event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ModelAnswer(Answer):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int = Field(description="prompt and answer at most (tokens)")
    chat_template: Literal["checkpoint", "default"] = Field(
        description="default: the checkpoint brings none, so messages become a plain dialogue"
    )
    tools: bool = Field(description="whether the chat template can call tools")
    sampling: dict[str, float] = Field(
        description="what `gossamer chat` and the page sample with where their user says nothing; a request that says "
        "nothing gets the checkpoint's values, else OpenAI's"
    )
    feedback: str | None = Field(description="the server's file in which ratings are kept; null: none are")


class ModelsAnswer(Answer):
    """The list of models."""

    object: Literal["list"]
    data: list[ModelAnswer]


class TextPrompt(Wire):
    """A text of which the tokens are counted."""

    model: str | None = None
    prompt: str


TokenizeRequest = TextPrompt | ChatPrompt


class TokenizeAnswer(Answer):
    """The tokens of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
