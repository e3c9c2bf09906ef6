"""A model's text, as it comes, into reasoning, content and tool calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gossamer.serve.tool_calls import CallReader, partial_suffix

__all__ = ["CallArguments", "CallBegins", "Content", "Event", "OutputParser", "Reasoning"]

THINK, THOUGHT = "<think>", "</think>"
CALL, CALLED = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Reasoning:
    """A piece of what the model thinks."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of the answer proper."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """Call number ``index`` (from 0) of the answer goes to the function ``name``."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the JSON text of a call's arguments."""

    index: int
    text: str


Event = Reasoning | Content | CallBegins | CallArguments


class OutputParser:
    """Whatever pieces the text comes in, the events put together are the same.

    White space around reasoning and around calls belongs to the format and is left out. A call that cannot be read is
    given back as content, as the model wrote it.

    Args:
        thinking: the prompt ended in an open ``<think>``.
        thinks: the model may open one itself at the beginning.
        reader: makes a reader of one call; None: the model has no tools, and the tags mean nothing.
        trim: white space at the beginning is left out, as after the colon of a plain dialogue.
    """

    def __init__(
        self, thinking: bool, thinks: bool, reader: Callable[[], CallReader] | None, trim: bool = False
    ) -> None:
        self.thinking = thinking
        self.calls = 0
        self._opening = thinks and not thinking  # nothing but white space so far, a thought may still begin
        self._trim = thinking or trim  # leave out white space that comes next
        self._make_reader = reader
        self._reader: CallReader | None = None
        self._begun = False  # the open call's name has been told
        self._raw = ""  # of the open call
        self._gap = ""  # white space before a tag, left out
        self._text = ""

    def push(self, text: str) -> list[Event]:
        """The events that this piece completes."""
        self._text += text
        return list(self._read(last=False))

    def finish(self) -> list[Event]:
        """What was still held back when the text ended."""
        events = list(self._read(last=True))
        if self._reader is not None and not self._begun:
            events.append(Content(self._raw))
        return events

    def _read(self, last: bool) -> Iterator[Event]:
        while True:
            before = len(self._text), self.thinking, self._reader is None, self._opening
            if self._opening:
                self._open(last)
            elif self.thinking:
                yield from self._thought(last)
            elif self._reader is not None:
                yield from self._call(last)
            else:
                yield from self._content(last)
            if (len(self._text), self.thinking, self._reader is None, self._opening) == before:
                return

    def _open(self, last: bool) -> None:
        start = self._text.lstrip()
        if start.startswith(THINK):
            self._text = start[len(THINK) :]
            self.thinking = self._trim = True
            self._opening = False
        elif last or (start and not THINK.startswith(start)):
            self._opening = False

    def _thought(self, last: bool) -> Iterator[Event]:
        piece = self._take(THOUGHT, last)
        if piece:
            yield Reasoning(piece)
        if self._found(THOUGHT):
            self.thinking, self._trim = False, True

    def _content(self, last: bool) -> Iterator[Event]:
        if self._make_reader is None:
            piece, self._text = self._trimmed(self._text), ""
        else:
            piece = self._take(CALL, last, keep_end=self.calls == 0)
        if piece:
            yield Content(piece)
        if self._make_reader is not None and self._found(CALL):
            self._reader, self._begun, self._raw = self._make_reader(), False, self._gap + CALL

    def _call(self, last: bool) -> Iterator[Event]:
        assert self._reader is not None
        end = self._text.find(CALLED)
        ready = end if end >= 0 else len(self._text) if last else len(self._text) - partial_suffix(self._text, CALLED)
        piece, self._text = self._text[:ready], self._text[ready:]
        self._raw += piece
        told = self._reader.push(piece)
        if self._reader.name is not None and not self._begun:
            self._begun = True
            self.calls += 1
            yield CallBegins(self.calls - 1, self._reader.name)
        if told:
            yield CallArguments(self.calls - 1, told)
        if self._found(CALLED):
            if not self._begun:
                yield Content(self._raw + CALLED)
            self._reader, self._trim = None, self._begun

    def _found(self, tag: str) -> bool:
        """Whether the text goes on with ``tag``, which is taken out of it."""
        found = self._text.startswith(tag)
        if found:
            self._text = self._text[len(tag) :]
        return found

    def _take(self, tag: str, last: bool, keep_end: bool = False) -> str:
        """Take the text up to ``tag``, or as much of it as cannot be the tag's beginning or the white space before it.

        Args:
            tag: what is waited for.
            last: nothing comes after the text.
            keep_end: white space at the very end counts, where no tag follows.
        """
        end = self._text.find(tag)
        whole = self._text[:end] if end >= 0 else self._text
        if end < 0 and not last:
            whole = whole[: len(whole) - partial_suffix(whole, tag)]
        piece = whole if end < 0 and last and keep_end else whole.rstrip()
        self._gap = whole[len(piece) :]
        self._text = self._text[len(whole) if end >= 0 or last else len(piece) :]
        return self._trimmed(piece)

    def _trimmed(self, piece: str) -> str:
        if self._trim:
            piece = piece.lstrip()
            self._trim = not piece
        return piece
