"""/feedback."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from gossamer.serve.wire.base import Answer, Items, Sampling, Wire
from gossamer.serve.wire.chat import AssistantMessage, ChatMessage, Tool

__all__ = ["FeedbackAnswer", "FeedbackRequest"]


class FeedbackRequest(Wire):
    """A rating of an answer."""

    model: str | None = Field(None, description="default: the one that is served")
    messages: Items[ChatMessage] = Field(min_length=1, description="the conversation that was answered")
    tools: Items[Tool] | None = Field(None, max_length=128)
    completion: str | Items[AssistantMessage] = Field(description="the answer: its text, or a list of its one message")
    label: bool | None = Field(description="true: good; false: bad; null: an earlier rating is taken back")
    sampling: Sampling | None = Field(None, description="how the answer was sampled")
    note: str | None = Field(None, max_length=10_000, description="what was good or bad, in words")
    rating_id: str | None = Field(
        None,
        pattern=r"^[a-zA-Z0-9_-]{1,64}$",
        description="of the ratings of one identifier the last one counts; default: a new one",
    )

    @field_validator("completion")
    @classmethod
    def _is_one_message(cls, completion: str | list[AssistantMessage]) -> list[AssistantMessage]:
        messages = (
            [AssistantMessage(role="assistant", content=completion)] if isinstance(completion, str) else completion
        )
        if len(messages) != 1:
            raise ValueError(f"a completion is one message of the assistant, not {len(messages)}")
        return messages


class FeedbackAnswer(Answer):
    """What was kept."""

    object: Literal["feedback"]
    rating_id: str = Field(description="with which the rating can be changed or taken back")
