"""Tool calls out of a model's text while it is being written, in the two formats that the family's models use.

Both classes read what stands between ``<tool_call>`` and ``</tool_call>``, piece by piece, and tell the function's name
as soon as it is known, then its arguments, which together are the text of a JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["CallReader", "JsonCall", "XmlCall", "partial_suffix"]


class CallReader(Protocol):
    """Attributes:
    name: of the function, None until it is known
    closed: the call is complete
    """

    name: str | None
    closed: bool

    def push(self, text: str) -> str:
        """Take more of the model's text; return what of the arguments can be told now."""
        ...


def partial_suffix(text: str, *tags: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of one of ``tags`` (whole ones not counted)."""
    longest = min(len(text), max(map(len, tags)) - 1)
    return next((size for size in range(longest, 0, -1) if any(tag.startswith(text[-size:]) for tag in tags)), 0)


class JsonCall:
    """``{"name": "f", "arguments": {...}}``, as Qwen3-Next writes it.

    The arguments are handed on character by character as the model writes them. Where the name comes after them, they
    wait for it.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.closed = False
        self._text = ""
        self._place = 0
        self._key: str | None = None
        self._depth = 0
        self._begin: int | None = None  # of the value that is being read
        self._string = self._escape = False
        self._held = ""

    def push(self, text: str) -> str:
        """See ``CallReader``."""
        self._text += text
        told = ""
        while self._place < len(self._text) and not self.closed:
            character = self._text[self._place]
            told += self._string_step(character) if self._string else self._step(character)
            self._place += 1
        if self.name is None:
            self._held += told
            return ""
        told, self._held = self._held + told, ""
        return told

    def _telling(self) -> bool:
        return self._key in ("arguments", "parameters") and self._begin is not None

    def _string_step(self, character: str) -> str:
        if self._escape:
            self._escape = False
        elif character == "\\":
            self._escape = True
        elif character == '"':
            self._string = False
            if self._depth == 1 and self._begin is not None:
                self._scalar_string(self._text[self._begin : self._place + 1])
        return character if self._telling() else ""

    def _scalar_string(self, text: str) -> None:
        """A key, or a value that is a string, has ended."""
        try:
            value = json.loads(text)
        except ValueError:  # a bare line end or a bad escape: what follows is read all the same
            value = text[1:-1]
        if self._key is None:
            self._key, self._begin = value, None
        elif self._key == "name":
            self.name, self._begin = value, None

    def _step(self, character: str) -> str:
        if self._depth == 0:
            self._depth = int(character == "{")
            return ""
        if self._depth == 1 and character in ",}":
            self._key, self._begin = None, None
            self.closed = character == "}"
            return ""
        if self._depth == 1 and (character.isspace() or character == ":"):
            return ""  # between two parts; a value of numbers or names holds none
        if self._begin is None:
            self._begin = self._place
        if character == '"':
            self._string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        return character if self._telling() else ""


class XmlCall:
    """``<function=f>`` with ``<parameter=k>`` value ``</parameter>``, as Qwen3.5 and Qwen3-Coder write it.

    A parameter whose schema says string is handed on as it is written; any other when it is complete, as the JSON
    value that the text spells, or as a string where it spells none of the schema's types.

    Args:
        schemas: of each function's parameters, by its name.
    """

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self.name: str | None = None
        self.closed = False
        self._schemas = schemas
        self._text = ""
        self._key: str | None = None
        self._streams = self._begun = False  # the open parameter's value: is told as it comes; has been told in part
        self._count = 0

    def push(self, text: str) -> str:
        """See ``CallReader``."""
        self._text += text
        told = ""
        while not self.closed:
            piece = self._function() if self.name is None else self._between() if self._key is None else self._value()
            if piece is None:
                break
            told += piece
        return told

    def _tag(self, opening: str) -> str | None:
        """The name in the next tag ``opening`` … ``>``, taken out of the text with all before it."""
        begin = self._text.find(opening)
        end = self._text.find(">", begin + len(opening)) if begin >= 0 else -1
        if end < 0:
            return None
        name, self._text = self._text[begin + len(opening) : end], self._text[end + 1 :]
        return name.strip()

    def _function(self) -> str | None:
        self.name = self._tag("<function=")
        return None if self.name is None else "{"

    def _between(self) -> str | None:
        end, begin = self._text.find("</function>"), self._text.find("<parameter=")
        if end >= 0 and not 0 <= begin < end:
            self.closed = True
            return "}"
        key = self._tag("<parameter=") if begin >= 0 else None
        if key is None:
            return None
        self._key = key
        self._streams = _types(self._schema(key)) == {"string"}
        self._count += 1
        return ("" if self._count == 1 else ", ") + json.dumps(key, ensure_ascii=False) + ": " + '"' * self._streams

    def _value(self) -> str | None:
        """The open parameter's value; one line end on either side belongs to the tags."""
        assert self._key is not None
        end = self._text.find("</parameter>")
        if not self._streams:
            if end < 0:
                return None
            raw = self._text[:end].removeprefix("\n").removesuffix("\n")
            told = json.dumps(coerce(raw, self._schema(self._key)), ensure_ascii=False)
        elif end < 0:
            return self._string_so_far()
        else:
            told = _escaped(self._told(self._text[:end]).removesuffix("\n")) + '"'
        self._text, self._key, self._begun = self._text[end + len("</parameter>") :], None, False
        return told

    def _string_so_far(self) -> str | None:
        ready = len(self._text) - partial_suffix(self._text, "\n</parameter>")
        if ready == 0:
            return None
        told, self._text = self._told(self._text[:ready]), self._text[ready:]
        return _escaped(told)

    def _told(self, text: str) -> str:
        """``text`` of a string's value, without the line end that comes before the whole of it."""
        begun, self._begun = self._begun, True
        return text if begun else text.removeprefix("\n")

    def _schema(self, key: str) -> Mapping[str, Any]:
        properties = self._schemas.get(self.name or "", {}).get("properties")
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        return schema if isinstance(schema, Mapping) else {}


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _types(schema: Mapping[str, Any]) -> set[str]:
    declared = schema.get("type")
    found = {declared} if isinstance(declared, str) else {kind for kind in _listed(declared) if isinstance(kind, str)}
    for union in ("anyOf", "oneOf"):
        for branch in _listed(schema.get(union)):
            found |= _types(branch) if isinstance(branch, Mapping) else set()
    return found


def _listed(value: Any) -> list[Any]:
    """A list that a schema should hold; it is the client's, and may hold anything."""
    return value if isinstance(value, list) else []


def coerce(raw: str, schema: Mapping[str, Any]) -> Any:
    """The value that the text of a parameter stands for: of the schema's types the one that fits, else the text."""
    types = _types(schema)
    try:
        value = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        word = raw.strip().lower()
        if "boolean" in types and word in ("true", "false"):
            return word == "true"
        return None if "null" in types and word in ("null", "none") else raw
    kinds = {
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, (int, float)) and not isinstance(value, bool),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
        "null": value is None,
    }
    if "integer" in types and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if any(kinds[kind] for kind in types & kinds.keys()) else raw


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
