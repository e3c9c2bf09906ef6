"""A model's text, as it comes, into reasoning, content and tool calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gossamer.serve.tool_calls import CALL, ArgumentsText, CallReader, FunctionName, NoCall, Piece, partial_suffix

__all__ = ["CallArguments", "CallBegins", "Content", "Event", "OutputParser", "Reasoning"]

THINK, THOUGHT = "<think>", "</think>"


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
    given back as it was written, as content, or as reasoning where it stands within a thought.

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
        self._begun = False  # a function of the open <tool_call> has been told
        self._raw = ""  # of the open <tool_call>
        self._unread: list[str] = []  # parts of it that are no calls, before the first that is one
        self._unclosed = False  # a call has ended the thought, whose closing tag may yet come
        self._gap = ""  # white space before a tag, left out
        self._text = ""

    def push(self, text: str) -> list[Event]:
        """The events that this piece completes."""
        self._text += text
        return list(self._read(last=False))

    def finish(self, cut: bool = False) -> list[Event]:
        """What was still held back when the text ended; ``cut``: it was not the model that ended it."""
        events = list(self._read(last=True))
        if self._reader is not None:
            events += self._told(self._reader.finish(cut))
            if not self._begun:
                events.append(self._written(self._raw))
        return events

    def _read(self, last: bool) -> Iterator[Event]:
        while True:
            before = len(self._text), self.thinking, self._reader is None, self._opening, self._unclosed
            if self._reader is not None:
                yield from self._call()
            elif self._opening:
                self._open(last)
            elif self.thinking:
                yield from self._thought(last)
            else:
                yield from self._content(last)
            if (len(self._text), self.thinking, self._reader is None, self._opening, self._unclosed) == before:
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
        tags = (THOUGHT,) if self._make_reader is None else (THOUGHT, CALL)
        piece = self._take(tags, last)
        if piece:
            yield Reasoning(piece)
        if self._found(THOUGHT):
            self.thinking, self._trim = False, True
        elif self._make_reader is not None and self._text.startswith(CALL):
            # A model that forgets to close its thought calls all the same; one that thinks about the tag does not.
            opens = self._make_reader().opens
            start = self._text[len(CALL) :].lstrip()
            if start.startswith(opens):
                self._found(CALL)
                self._begin_call()
            elif last or not any(tag.startswith(start) for tag in opens):
                yield self._written(self._gap + CALL)
                self._text, self._gap, self._trim = self._text[len(CALL) :], "", False

    def _content(self, last: bool) -> Iterator[Event]:
        if self._make_reader is None:
            piece, self._text = self._trimmed(self._text), ""
        else:
            tags = (CALL, THOUGHT) if self._unclosed else (CALL,)
            piece = self._take(tags, last, keep_end=self.calls == 0)
        if piece:
            yield Content(piece)
        if self._make_reader is None:
            return
        if self._found(CALL):
            self._begin_call()
        elif self._unclosed and self._found(THOUGHT):
            self._unclosed, self._trim = False, True

    def _begin_call(self) -> None:
        assert self._make_reader is not None
        self._reader, self._begun, self._unread, self._raw = self._make_reader(), False, [], self._gap + CALL
        self._gap = ""

    def _call(self) -> Iterator[Event]:
        reader = self._reader
        assert reader is not None
        text, self._text = self._text, ""
        pieces = reader.push(text)
        if reader.closed:
            self._text = reader.rest
        if not self._begun:
            self._raw += text[: len(text) - len(self._text)]
        yield from self._told(pieces)
        if not reader.closed:
            return
        self._reader = None
        if self._begun:
            self._trim = True
        else:
            yield self._written(self._raw)
            self._trim = False

    def _told(self, pieces: Sequence[Piece]) -> Iterator[Event]:
        """Events of what a reader tells."""
        for piece in pieces:
            match piece:
                case FunctionName(name):
                    yield from map(self._written, self._unread)
                    self._begun, self._unread = True, []
                    self._unclosed, self.thinking = self._unclosed or self.thinking, False
                    self.calls += 1
                    yield CallBegins(self.calls - 1, name)
                case ArgumentsText(text):
                    yield CallArguments(self.calls - 1, text)
                case NoCall(text) if self._begun:
                    yield self._written(text)
                case NoCall(text):
                    self._unread.append(text)

    def _written(self, text: str) -> Event:
        return Reasoning(text) if self.thinking else Content(text)

    def _found(self, tag: str) -> bool:
        """Whether the text goes on with ``tag``, which is taken out of it."""
        found = self._text.startswith(tag)
        if found:
            self._text = self._text[len(tag) :]
        return found

    def _take(self, tags: tuple[str, ...], last: bool, keep_end: bool = False) -> str:
        """Take the text up to a tag, or as much of it as cannot be a tag's beginning or the white space before it.

        Args:
            tags: what is waited for.
            last: nothing comes after the text.
            keep_end: white space at the very end counts, where no tag follows.
        """
        ends = [place for tag in tags if (place := self._text.find(tag)) >= 0]
        end = min(ends, default=-1)
        whole = self._text[:end] if end >= 0 else self._text
        if end < 0 and not last:
            whole = whole[: len(whole) - partial_suffix(whole, *tags)]
        piece = whole if end < 0 and last and keep_end else whole.rstrip()
        if whole:
            self._gap = whole[len(piece) :]
        self._text = self._text[len(whole) if end >= 0 or last else len(piece) :]
        return self._trimmed(piece)

    def _trimmed(self, piece: str) -> str:
        if self._trim:
            piece = piece.lstrip()
            self._trim = not piece
        return piece
