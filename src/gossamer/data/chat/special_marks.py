"""Special tokens that a message spells out, which must not become those tokens.

A template receives a text with a mark after each character of such a token. The mark occurs nowhere else. What carries
the marks in the template's text is encoded as text.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["SpecialMarks"]


class SpecialMarks:
    """Marks special tokens in what a template is given, and finds them in what it writes.

    Args:
        special: the special tokens that are no part of a text
        sources: the templates
    """

    def __init__(self, special: Iterable[str], sources: str) -> None:
        self._special = sorted(special, key=len, reverse=True)
        self._sources = sources
        self._pattern = re.compile("|".join(map(re.escape, self._special)) or r"(?!)")

    def mark_for(self, variables: Any) -> str:
        """Return a mark that occurs neither in the variables nor in the templates, as it is or as JSON escapes it.

        It is empty where the variables spell out no special token.
        """
        if not any(map(self._pattern.search, _texts(variables))):
            return ""
        used = json.dumps(variables, ensure_ascii=False) + self._sources
        return next(mark for mark in _marks() if mark not in used and not any(map(used.__contains__, _escapes(mark))))

    def marked(self, value: Any, mark: str) -> Any:
        """Return a copy of a value with marks in every special token in all of its texts."""
        if not mark:
            return value
        if isinstance(value, str):
            return self._pattern.sub(lambda found: "".join(letter + mark for letter in found.group()), value)
        if isinstance(value, Mapping):
            return {self.marked(key, mark): self.marked(item, mark) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.marked(item, mark) for item in value]
        return value

    def split(self, text: str, mark: str) -> list[str]:
        """Split a text, without its marks, at special tokens that stay text; these have the odd indices."""
        if not mark:
            return [text]
        for escape in _escapes(mark):
            text = text.replace(escape, mark)
        spelled = ("".join(re.escape(letter + mark) for letter in token) for token in self._special)
        return [part.replace(mark, "") for part in re.split(f"({'|'.join(spelled)})", text)]

    def last(self, text: str) -> re.Match[str] | None:
        """Return the last special token of a marked text, if nothing but white space follows it."""
        found = list(self._pattern.finditer(text))
        return found[-1] if found and not text[found[-1].end() :].strip() else None

    def first_after(self, text: str, begin: int) -> re.Match[str] | None:
        """Return the first special token of a marked text from a place on."""
        return self._pattern.search(text, begin)

    def first_at(self, text: str) -> str | None:
        """Return the special token that a text begins with; None if it begins with none."""
        return next((token for token in self._special if text.startswith(token)), None)


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts within a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _marks() -> Iterator[str]:
    """Yield characters that do not occur in texts, then pairs of them: more than one text can hold."""
    letters = [chr(code) for code in (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))]
    return itertools.chain(letters, map("".join, itertools.permutations(letters, 2)))


def _escapes(mark: str) -> Iterable[str]:
    """Return the ways in which JSON may write a mark in ASCII."""
    return (form % tuple(map(ord, mark)) for form in ("\\u%04x" * len(mark), "\\u%04X" * len(mark)))
