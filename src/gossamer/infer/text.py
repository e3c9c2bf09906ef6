"""From tokens to text that may be shown: whole characters, nothing that may yet become a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.data.tokenizer import Tokenizer


class TextOut:
    """The text of one answer.

    Args:
        tokenizer: what the tokens belong to
        stop: strings before which the text ends
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._stream = tokenizer.stream()
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that `token` makes certain; sets `stopped` when a stop string is complete, and gives what is before."""
        return self._release(self._stream.push(token))

    def finish(self) -> str:
        """What is held back at the end of the text: no stop string came of it."""
        if self.stopped:
            return ""
        text = self._release(self._stream.finish())
        rest, self._held = ("" if self.stopped else self._held), ""
        return text + rest

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
