"""Splits the text of a model, while it is generated, into reasoning, content and tool calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gossamer.data.chat.tool_calls import (
    CALL,
    ArgumentsText,
    CallPart,
    CallReader,
    FunctionName,
    Unreadable,
    partial_suffix,
)

__all__ = ["CallArguments", "CallBegins", "Content", "Event", "OutputParser", "Reasoning"]

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True)
class Reasoning:
    """Some text of the model's reasoning."""

    text: str


@dataclass(frozen=True)
class Content:
    """Some text of the answer proper."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """The beginning of call number `index` (from 0) of the answer, to the function `name`."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """Some of the JSON text of the arguments of a call."""

    index: int
    text: str


Event = Reasoning | Content | CallBegins | CallArguments


class OutputParser:
    """Turns the text of a model into events, which put together do not depend on how the text was cut.

    White space around reasoning and around calls belongs to the format and is left out. A call that cannot be read is
    passed on as it was written: as content, or as reasoning if it stands within the reasoning.

    Args:
        thinking: whether the prompt ended in an open `<think>`
        thinks: whether the model may begin with a `<think>` of its own
        reader: makes a reader of one call; None if the model has no tools, and the tags mean nothing
        trim: whether white space at the beginning is left out, as after the colon of a plain dialogue

    Attributes:
        thinking: whether the text is inside of the reasoning
        num_calls: number of calls so far
    """

    def __init__(
        self, thinking: bool, thinks: bool, reader: Callable[[], CallReader] | None, trim: bool = False
    ) -> None:
        self.thinking = thinking
        self.num_calls = 0
        self._may_open = thinks and not thinking  # only white space so far, so reasoning may still begin
        self._trim = thinking or trim  # white space that comes next is left out
        self._make_reader = reader
        self._reader: CallReader | None = None
        self._has_name = False  # the name of a function in the open <tool_call> is known
        self._raw = ""  # the text of the open <tool_call>
        self._unreadable: list[str] = []  # its parts before the first call that cannot be read as calls
        self._unclosed = False  # a call has ended the reasoning, whose closing tag may still come
        self._gap = ""  # white space before a tag that was left out
        self._text = ""

    def push(self, text: str) -> list[Event]:
        """Return the events that this text completes."""
        self._text += text
        return list(self._read(is_end=False))

    def finish(self, cut: bool = False) -> list[Event]:
        """Return the events that were still held back when the text ended.

        Args:
            cut: whether something else than the model ended the text
        """
        events = list(self._read(is_end=True))
        if self._reader is not None:
            events += self._call_events(self._reader.finish(cut))
            if not self._has_name:
                events.append(self._plain_event(self._raw))
        return events

    def _read(self, is_end: bool) -> Iterator[Event]:
        while True:
            before = len(self._text), self.thinking, self._reader is None, self._may_open, self._unclosed
            if self._reader is not None:
                yield from self._read_call()
            elif self._may_open:
                self._read_opening(is_end)
            elif self.thinking:
                yield from self._read_reasoning(is_end)
            else:
                yield from self._read_content(is_end)
            if (len(self._text), self.thinking, self._reader is None, self._may_open, self._unclosed) == before:
                return

    def _read_opening(self, is_end: bool) -> None:
        start = self._text.lstrip()
        if start.startswith(THINK):
            self._text = start[len(THINK) :]
            self.thinking = self._trim = True
            self._may_open = False
        elif is_end or (start and not THINK.startswith(start)):
            self._may_open = False

    def _read_reasoning(self, is_end: bool) -> Iterator[Event]:
        tags = (END_THINK,) if self._make_reader is None else (END_THINK, CALL)
        text = self._take_text(tags, is_end)
        if text:
            yield Reasoning(text)
        if self._skip_tag(END_THINK):
            self.thinking, self._trim = False, True
        elif self._make_reader is not None and self._text.startswith(CALL):
            # A model may forget to close its reasoning before a call, but it may also reason about the tag.
            opens = self._make_reader().opens
            start = self._text[len(CALL) :].lstrip()
            if start.startswith(opens):
                self._skip_tag(CALL)
                self._begin_call()
            elif is_end or not any(tag.startswith(start) for tag in opens):
                yield self._plain_event(self._gap + CALL)
                self._text, self._gap, self._trim = self._text[len(CALL) :], "", False

    def _read_content(self, is_end: bool) -> Iterator[Event]:
        if self._make_reader is None:
            text, self._text = self._trimmed(self._text), ""
        else:
            tags = (CALL, END_THINK) if self._unclosed else (CALL,)
            text = self._take_text(tags, is_end, keep_end=self.num_calls == 0)
        if text:
            yield Content(text)
        if self._make_reader is None:
            return
        if self._skip_tag(CALL):
            self._begin_call()
        elif self._unclosed and self._skip_tag(END_THINK):
            self._unclosed, self._trim = False, True

    def _begin_call(self) -> None:
        assert self._make_reader is not None
        self._reader, self._has_name, self._unreadable, self._raw = self._make_reader(), False, [], self._gap + CALL
        self._gap = ""

    def _read_call(self) -> Iterator[Event]:
        reader = self._reader
        assert reader is not None
        text, self._text = self._text, ""
        parts = reader.push(text)
        if reader.closed:
            self._text = reader.rest
        if not self._has_name:
            self._raw += text[: len(text) - len(self._text)]
        yield from self._call_events(parts)
        if not reader.closed:
            return
        self._reader = None
        if self._has_name:
            self._trim = True
        else:
            yield self._plain_event(self._raw)
            self._trim = False

    def _call_events(self, parts: Sequence[CallPart]) -> Iterator[Event]:
        """Yield the events that the parts of a call mean."""
        for part in parts:
            match part:
                case FunctionName(name):
                    yield from map(self._plain_event, self._unreadable)
                    self._has_name, self._unreadable = True, []
                    self._unclosed, self.thinking = self._unclosed or self.thinking, False
                    self.num_calls += 1
                    yield CallBegins(self.num_calls - 1, name)
                case ArgumentsText(text):
                    yield CallArguments(self.num_calls - 1, text)
                case Unreadable(text) if self._has_name:
                    yield self._plain_event(text)
                case Unreadable(text):
                    self._unreadable.append(text)

    def _plain_event(self, text: str) -> Event:
        return Reasoning(text) if self.thinking else Content(text)

    def _skip_tag(self, tag: str) -> bool:
        """Skip a tag if the text begins with it, and return whether it does."""
        found = self._text.startswith(tag)
        if found:
            self._text = self._text[len(tag) :]
        return found

    def _take_text(self, tags: tuple[str, ...], is_end: bool, keep_end: bool = False) -> str:
        """Take the text up to a tag, or as much as can be neither the beginning of a tag nor the white space before it.

        Args:
            tags: the tags that may come
            is_end: whether nothing comes after the text
            keep_end: whether white space at the very end is part of the text if no tag follows
        """
        ends = [index for tag in tags if (index := self._text.find(tag)) >= 0]
        end = min(ends, default=-1)
        before_tag = self._text[:end] if end >= 0 else self._text
        if end < 0 and not is_end:
            before_tag = before_tag[: len(before_tag) - partial_suffix(before_tag, *tags)]
        text = before_tag if end < 0 and is_end and keep_end else before_tag.rstrip()
        if before_tag:
            self._gap = before_tag[len(text) :]
        self._text = self._text[len(before_tag) if end >= 0 or is_end else len(text) :]
        return self._trimmed(text)

    def _trimmed(self, text: str) -> str:
        if self._trim:
            text = text.lstrip()
            self._trim = not text
        return text
