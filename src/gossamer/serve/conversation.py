"""A conversation with the engine of this process: what has been said, and how it is kept within the model's context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gossamer.errors import UserError
from gossamer.infer.request import Request, SamplingParams
from gossamer.serve.output import Event, OutputParser
from gossamer.serve.template import ChatTemplate, RenderedPrompt, TemplateRefusal
from gossamer.serve.turn import Reply
from gossamer.serve.worker import Engine

__all__ = ["Conversation", "LeftOut"]

SHARE = 4
"""An answer may take one part in so many of the context, unless the user says otherwise: a model that finds no end
would fill it with a single one."""


@dataclass(frozen=True)
class LeftOut:
    """The conversation has outgrown the context. Comes before the answer.

    Attributes:
        turns: the oldest ones, which it has lost: questions with their answers; 0: the beginning of the question
    """

    turns: int


@dataclass
class Conversation:
    """Messages so far, and the means to answer the last one.

    Attributes:
        ends: tokens that end an answer beside the tokenizer's end of text
        sampling: keywords of ``SamplingParams``, without ``max_tokens``
        longest: prompt and answer at most (tokens)
        max_tokens: of an answer at most; None: a quarter of ``longest``
    """

    engine: Engine
    template: ChatTemplate
    ends: tuple[int, ...]
    longest: int
    max_tokens: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def answer(self) -> Iterator[Event | LeftOut]:
        """Answer the last message, piece by piece; what has been said joins the conversation, stopped or not.

        The oldest turns go where they leave no room for an answer.

        Raises:
            UserError: the last message alone does not fit the model.
        """
        before = self._turns()
        prompt, whole = self._fitting()
        if not whole or len(before) > len(self._turns()):
            yield LeftOut(len(before) - len(self._turns()))
        params = SamplingParams(
            max_tokens=min(self.longest - len(prompt.ids), self.max_tokens or self._share),
            stop=self.template.stop,
            stop_token_ids=self.ends,
            **self.sampling,
        )
        reply = Reply(OutputParser(prompt.thinking, self.template.thinks, None, self.template.is_default))
        self.engine.submit(Request("chat", prompt.ids, params, prompt.boundaries))
        try:
            while self.engine.has_work:
                for delta in self.engine.step():
                    yield from reply.add(delta)
                    if delta.finish_reason == "error":
                        raise UserError(f"the engine failed: {delta.error}")
        finally:
            self.engine.abort("chat")
            said = {"role": "assistant", "content": reply.content}
            self.messages.append(said | ({"reasoning_content": reply.reasoning} if reply.reasoning else {}))

    def undo(self) -> str | None:
        """Take back the last question and its answer; return the question."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return str(message["content"])
        return None

    @property
    def _share(self) -> int:
        return max(1, self.longest // SHARE)

    def _turns(self) -> list[int]:
        """Where each question stands among the messages."""
        return [index for index, message in enumerate(self.messages) if message["role"] == "user"]

    def _fitting(self) -> tuple[RenderedPrompt, bool]:
        """The prompt with as many turns as leave room for an answer, and whether it holds them whole.

        What does not fit leaves the messages. A plain dialogue is text like any other: of a question that is too long
        by itself, a base model gets the end.
        """
        room = self.longest - min(self._share, self.max_tokens or self._share)
        for start in self._turns():
            prompt = self._rendered(self.messages[start:])
            if len(prompt.ids) <= room:
                del self.messages[:start]
                return prompt, True
        if not self.template.is_default:
            with_it = "" if self.system is None else "with the system message, which /system TEXT replaces, "
            raise UserError(
                f"{with_it}this is {len(prompt.ids)} tokens, and the model takes {room} beside its answer; shorten it"
            )
        del self.messages[:start]
        return self.template.end_of(prompt, room), False

    def _rendered(self, messages: list[dict[str, Any]]) -> RenderedPrompt:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        try:
            return self.template.render(first + messages)
        except TemplateRefusal as refusal:
            raise UserError(f"the chat template does not take this: {refusal}") from refusal
