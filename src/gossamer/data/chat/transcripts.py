"""Whole conversations as one sample, in which answers may stand behind a context that serving never builds.

What is learned is what the template marks with `{% generation %}`, as in transformers. In a template without the tag it
is every answer, from what begins a message of the assistant to the token that ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gossamer.data.chat.messages import Message
from gossamer.data.chat.template import Conversation, TemplateRefusal
from gossamer.data.chat.turns import Asked, Turn, TurnFinder
from gossamer.errors import UserError, shorten

__all__ = ["Transcript", "TranscriptReader"]

Span = tuple[int, int]


@dataclass(frozen=True)
class Transcript:
    """A conversation as one sample.

    Attributes:
        ids: its tokens
        is_target: for each token whether it is learned
        ends: the tokens that end its answers
        num_answers: the number of answers that are learned
        num_foreign: those of them that serving would have asked for with other tokens
    """

    ids: list[int]
    is_target: list[bool]
    ends: tuple[int, ...]
    num_answers: int
    num_foreign: int


class TranscriptReader:
    """Makes transcripts for one chat template.

    Args:
        finder: finds the answers as serving asks for them
        marks_answers: whether the template has the tag
    """

    def __init__(self, finder: TurnFinder, marks_answers: bool) -> None:
        self._finder, self._marks_answers = finder, marks_answers

    def transcript(
        self, where: str, conversation: Conversation, messages: Sequence[Message], weights: Sequence[int]
    ) -> Transcript:
        """Return a conversation as one sample; the arguments are those of `TurnFinder.turns`.

        Raises:
            UserError: the template does not take the messages, or its answers cannot be found.
        """
        try:
            text, marked = conversation.transcript_with_spans()
        except TemplateRefusal as error:
            raise UserError(
                f"{where}: messages: the chat template does not take them ({shorten(error, 200)})"
            ) from error
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        learned = [index for index in answers if weights[index]]
        self._finder.prepare(conversation, messages, learned, None)
        asked = {index: self._asked(where, conversation, index, messages[index]) for index in learned}
        spans = marked if self._marks_answers else self._spans(conversation, text, answers, asked)
        if len(spans) == len(answers):
            by_answer = dict(zip(answers, spans, strict=True))
            spans = [by_answer[index] for index in learned]
        elif not self._marks_answers or len(learned) < len(answers):
            raise UserError(
                f"{where}: messages: the answers cannot be told apart in the transcript; take --turns exact"
            )
        ids, is_target = _encoded(conversation, text, spans)
        foreign = len(learned)
        if len(spans) == len(learned):
            pairs = zip(spans, (asked[index] for index in learned), strict=True)
            foreign = sum(not _is_asked(conversation, text, span, answer) for span, answer in pairs)
        ends = tuple(dict.fromkeys(answer.end for answer in asked.values() if answer is not None))
        return Transcript(ids, is_target, ends, len(learned), foreign)

    def num_marked_otherwise(
        self, conversation: Conversation, messages: Sequence[Message], turns: Sequence[Turn]
    ) -> int:
        """Return of how many answers the template marks other text as what is learned than what is generated."""
        try:
            text, spans = conversation.transcript_with_spans()
        except TemplateRefusal:
            return 0
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(spans) != len(answers):
            return len(turns)
        by_answer = dict(zip(answers, spans, strict=True))
        return sum(conversation.encode(text[slice(*by_answer[turn.index])]) != turn.target for turn in turns)

    def _asked(self, where: str, conversation: Conversation, index: int, message: Message) -> Asked | None:
        """The answer as serving asks for it; None if it never does."""
        try:
            return self._finder.asked(where, conversation, index, message)
        except UserError:
            return None

    def _spans(
        self, conversation: Conversation, text: str, answers: Sequence[int], asked: dict[int, Asked | None]
    ) -> list[Span]:
        """Where the answers lie in a transcript; too few if they cannot all be found."""
        header = _header(conversation, answers[-1])
        if not header or text.count(header) != len(answers):
            return []
        spans: list[Span] = []
        begin = 0
        for index in answers:
            begin = text.index(header, begin) + len(header)
            end = conversation.end_after(text, begin)
            answer = asked.get(index)
            if answer is not None and text[begin:end].endswith(answer.answer):
                begin = end - len(answer.answer)  # what stands before it belongs to the prompt
            spans.append((begin, end))
        return spans


def _encoded(conversation: Conversation, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
    """The tokens of a text, and for each whether some of its characters lie in one of the spans."""
    ids, places = conversation.encode_with_places(text)
    before = np.zeros(len(text) + 1, np.int64)  # characters in spans before each place
    for begin, end in spans:
        before[len(conversation.plain(text[:begin])) + 1 : len(conversation.plain(text[:end])) + 1] = 1
    before = np.cumsum(before)
    return ids, [bool(before[end] > before[begin]) for begin, end in places]


def _header(conversation: Conversation, index: int) -> str:
    """What begins a message of the assistant, without a thought that the prompt opens."""
    try:
        bare, prompt = conversation.transcript(index), conversation.prompt(index)
    except TemplateRefusal:
        return ""
    return prompt[len(bare) :].split("<think>")[0] if prompt.startswith(bare) else ""


def _is_asked(conversation: Conversation, text: str, span: Span, asked: Asked | None) -> bool:
    """Whether an answer in a transcript, and all that precedes it, is what serving would have asked for."""
    begin, end = span
    return asked is not None and text[:begin] == asked.prompt and text[begin:end] == asked.answer
