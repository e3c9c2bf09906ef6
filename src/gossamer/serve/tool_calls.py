"""Tool calls out of a model's text while it is being written, in the two formats that the family's models use.

Both classes read what comes after ``<tool_call>``, piece by piece, up to and including the ``</tool_call>`` that ends
it: only they know whether such a tag stands within an argument. They tell the function's name as soon as it is known,
then its arguments, which together are the text of a JSON object. What they tell does not depend on how the text was
cut into pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from gossamer.serve.schemas import accepted_types

__all__ = [
    "CALL",
    "CALLED",
    "ArgumentsText",
    "CallReader",
    "FunctionName",
    "JsonCall",
    "NoCall",
    "XmlCall",
    "partial_suffix",
]

CALL, CALLED = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class FunctionName:
    """A call begins: the function's name."""

    name: str


@dataclass(frozen=True)
class ArgumentsText:
    """The next characters of the arguments of the call that began last."""

    text: str


@dataclass(frozen=True)
class NoCall:
    """Something stands in the place of a call and cannot be read as one: its text."""

    text: str


Piece = FunctionName | ArgumentsText | NoCall


class CallReader(Protocol):
    """Attributes:
    opens: what a call begins with after ``<tool_call>`` and white space; anything else is no call
    closed: ``</tool_call>`` has been read
    rest: the text behind that, once it is closed
    """

    opens: ClassVar[tuple[str, ...]]
    closed: bool
    rest: str

    def push(self, text: str) -> list[Piece]:
        """Take more of the model's text; return what can be told now."""
        ...

    def finish(self, cut: bool) -> list[Piece]:
        """The text is over without the closing tag; ``cut``: not because the model ended it."""
        ...


def partial_suffix(text: str, *tags: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of one of ``tags`` (whole ones not counted)."""
    longest = min(len(text), max(map(len, tags)) - 1)
    return next((size for size in range(longest, 0, -1) if any(tag.startswith(text[-size:]) for tag in tags)), 0)


class _Told:
    """Collects what a reader tells; neighbouring characters of arguments become one piece."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._text: list[str] = []

    def arguments(self, text: str) -> None:
        self._text.append(text)

    def add(self, piece: Piece) -> None:
        self._flush()
        self.pieces.append(piece)

    def _flush(self) -> None:
        if text := "".join(self._text):
            self.pieces.append(ArgumentsText(text))
        self._text = []

    def take(self) -> list[Piece]:
        self._flush()
        pieces, self.pieces = self.pieces, []
        return pieces


_STRING_STOP = re.compile(r'["\\\x00-\x1f]')


class JsonCall:
    """``{"name": "f", "arguments": {...}}``, as Qwen3-Next writes it; several in an array or a row are several calls.

    The arguments are handed on as the model writes them. Where the name comes after them, they wait for it. A tag
    within a string is a part of the string. Arguments that are a JSON object in a string are taken out of it, a call
    without arguments has ``{}``, and control characters within strings, which JSON does not allow, are escaped.
    """

    opens: ClassVar[tuple[str, ...]] = ("{", "[")

    def __init__(self) -> None:
        self.closed = False
        self.rest = ""
        self._text = ""
        self._place = 0
        self._told = _Told()
        self._begin_object(0)

    def _begin_object(self, place: int) -> None:
        self._object = place
        self._name: str | None = None
        self._key: str | None = None
        self._depth = 0
        self._begin: int | None = None  # of the key or value at depth 1 that is being read
        self._string = self._escape = False
        self._streaming = self._argued = False
        self._held = ""  # of arguments whose function is not known yet

    def push(self, text: str) -> list[Piece]:
        """See ``CallReader``."""
        self._text += text
        while self._place < len(self._text) and not self.closed:
            if self._string:
                self._in_string()
            elif self._text[self._place] == "<" and CALLED.startswith(self._text[self._place :][: len(CALLED)]):
                if len(self._text) - self._place < len(CALLED):
                    break  # perhaps the end of the call
                self._close()
            else:
                self._step(self._text[self._place])
                self._place += 1
        if self._name is not None and (self._begin is None or self._streaming):
            self._text, self._place = self._text[self._place :], 0  # what has been told is not looked at again
        return self._told.take()

    def finish(self, cut: bool) -> list[Piece]:
        """See ``CallReader``."""
        return []

    def _close(self) -> None:
        if self._depth and self._name is None:
            self._told.add(NoCall(self._text[self._object : self._place]))
        self.closed, self.rest = True, self._text[self._place + len(CALLED) :]

    def _in_string(self) -> None:
        """Go on within a string, to its end or as far as the text has come."""
        if self._escape:
            self._escape = False
            self._tell(self._text[self._place])
            self._place += 1
            return
        found = _STRING_STOP.search(self._text, self._place)
        end = found.start() if found else len(self._text)
        self._tell(self._text[self._place : end])
        self._place = end
        if found is None:
            return
        character = found.group()
        self._place += 1
        self._tell(json.dumps(character)[1:-1] if character < " " else character)
        if character == "\\":
            self._escape = True
        elif character == '"':
            self._string = False
            if self._depth == 1 and self._begin is not None:
                self._string_ends(self._text[self._begin : self._place])

    def _string_ends(self, text: str) -> None:
        """A key, or a value that is a string, is complete."""
        value = _string_value(text)
        if self._key is None:
            self._key = value
        elif self._key == "name" and self._name is None:
            self._name = value
            self._told.add(FunctionName(value))
            self._told.arguments(self._held)
            self._held = ""
        elif self._is_arguments():
            self._argue(value if _is_object(value) else "{}" if not value.strip() else json.dumps(value))
        self._begin = None

    def _is_arguments(self) -> bool:
        return self._key in ("arguments", "parameters") and not self._argued

    def _argue(self, text: str) -> None:
        """Tell arguments that are known as a whole."""
        self._streaming = self._argued = True
        self._tell(text)
        self._streaming = False

    def _tell(self, text: str) -> None:
        if not self._streaming:
            return
        if self._name is None:
            self._held += text
        else:
            self._told.arguments(text)

    def _step(self, character: str) -> None:
        """One character outside of strings."""
        if self._depth == 0:
            if character == "{":
                self._begin_object(self._place)
                self._depth = 1
            return
        if self._depth == 1 and character in ",}":
            self._part_ends()
            if character == "}":
                self._object_ends()
            return
        if self._depth == 1 and (character.isspace() or character == ":"):
            return  # between two parts; a value of numbers or names holds none
        if self._begin is None:
            self._begin = self._place
            if self._key is not None and self._is_arguments() and character in "{[":
                self._streaming = self._argued = True
        if character == '"':
            self._string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        self._tell(character)
        if self._depth == 1 and character in "}]":
            self._streaming = False

    def _part_ends(self) -> None:
        if self._begin is not None and not self._streaming and self._is_arguments():
            scalar = self._text[self._begin : self._place].strip()
            self._argue("{}" if scalar == "null" else scalar)
        self._key, self._begin, self._streaming = None, None, False

    def _object_ends(self) -> None:
        if self._name is None:
            self._told.add(NoCall(self._text[self._object : self._place + 1]))
        elif not self._argued:
            self._argue("{}")
        self._begin_object(self._place + 1)


def _string_value(text: str) -> str:
    """What the text of a JSON string stands for; with a bare line end or a bad escape it is read all the same."""
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        return text[1:-1]


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


_NAME = r"([^<>\n]{0,200})"
_OUTSIDE = re.compile(rf"<function={_NAME}>|</tool_call>")
_BETWEEN = re.compile(rf"<parameter={_NAME}>|</function>|<function={_NAME}>|</tool_call>")
_WITHIN = re.compile(rf"</parameter>|<parameter={_NAME}>|</function>|</tool_call>|<tool_call>|<function={_NAME}>")
_ENDS = ("</parameter>", "<parameter=", "</function>", CALLED, CALL, "<function=")
_OPEN_NAME = re.compile(r"\n?<(?:parameter|function)=[^<>\n]{0,200}\Z")


class XmlCall:
    """``<function=f>`` with ``<parameter=k>`` value ``</parameter>``, as Qwen3.5 and Qwen3-Coder write it.

    A parameter whose schema says string is handed on as it is written; any other when it is complete, as the JSON
    value that the text spells, or as a string where it spells none of the schema's types.

    Models forget closing tags. A value without ``</parameter>`` ends where a parameter of the function begins, or at
    ``</function>`` or ``</tool_call>``. These may as well be a part of the value: they are where a ``</parameter>``
    follows before the next parameter or call, so what comes behind one of them waits until that is known.

    Args:
        schemas: of each function's parameters, by its name.
    """

    opens: ClassVar[tuple[str, ...]] = ("<function=",)

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self.closed = False
        self.rest = ""
        self._schemas = schemas
        self._text = ""
        self._told = _Told()
        self._function: str | None = None
        self._count = 0  # parameters of the open function so far
        self._key: str | None = None
        self._streams = self._begun = False  # the open parameter's value: is told as it comes; has been told in part
        self._scanned: list[str] = []  # of the open value: no tag begins in it
        self._seen = 0  # of the text behind that: nor before this place
        self._end: int | None = None  # of the open value, unless a </parameter> follows

    def push(self, text: str) -> list[Piece]:
        """See ``CallReader``."""
        self._text += text
        while not self.closed and self._step():
            pass
        return self._told.take()

    def finish(self, cut: bool) -> list[Piece]:
        """See ``CallReader``."""
        if self._key is not None and self._end is not None:
            self._value_ends(self._end, self._end)
            while not self.closed and self._step():
                pass
        if self._function is not None and self._key is None and not cut:
            self._function_ends()
        return self._told.take()

    def _step(self) -> bool:
        """Read the next tag, or what of a value can be told; False: more text is needed."""
        if self._key is not None:
            return self._value()
        found = (_OUTSIDE if self._function is None else _BETWEEN).search(self._text)
        if found is None:
            return False
        tag, self._text = found.group(), self._text[found.end() :]
        if tag.startswith("<parameter="):
            self._value_begins(found.group(1).strip())
            return True
        if self._function is not None:
            self._function_ends()
        if tag == CALLED:
            self.closed, self.rest = True, self._text
        elif tag.startswith("<function="):
            self._function, self._count = found.groups()[-1].strip(), 0
            self._told.add(FunctionName(self._function))
            self._told.arguments("{")
        return True

    def _function_ends(self) -> None:
        self._told.arguments("}")
        self._function = None

    def _value_begins(self, key: str) -> None:
        self._key, self._begun, self._seen, self._end = key, False, 0, None
        self._streams = accepted_types(self._schema(key), self._parameters()) == {"string"}
        comma = "" if self._count == 0 else ", "
        self._count += 1
        self._told.arguments(comma + json.dumps(key, ensure_ascii=False) + ": " + '"' * self._streams)

    def _value(self) -> bool:
        """Look for the end of the open value."""
        while (found := _WITHIN.search(self._text, self._seen)) is not None:
            tag, self._seen = found.group(), found.end()
            if tag == "</parameter>":
                self._value_ends(found.start(), found.end())
                return True
            if tag in ("</function>", CALLED):
                self._end = found.start() if self._end is None else self._end
            elif tag.startswith("<parameter="):
                if self._knows(found.group(1).strip()):
                    end = found.start() if self._end is None else self._end
                    self._value_ends(end, end)
                    return True
            elif self._end is not None:  # another call begins
                self._value_ends(self._end, self._end)
                return True
        if self._end is None:
            self._string_so_far()
        return False

    def _string_so_far(self) -> None:
        """Tell what certainly belongs to the open string: not the beginning of a tag, nor a line end before one."""
        tail = self._text[-256:]
        name = _OPEN_NAME.search(tail)
        held = len(tail) - name.start() if name else partial_suffix(tail, *_ENDS, *("\n" + tag for tag in _ENDS))
        ready = len(self._text) - held
        self._seen = max(0, ready)
        if ready <= 0:
            return
        if self._streams:
            self._told.arguments(_escaped(self._string_text(self._text[:ready])))
        else:
            self._scanned.append(self._text[:ready])
        self._text, self._seen = self._text[ready:], 0

    def _value_ends(self, end: int, behind: int) -> None:
        """The open value ends at ``end``, the text goes on at ``behind``; one line end on either side is no part."""
        assert self._key is not None
        text, self._text = self._text[:end], self._text[behind:]
        if self._streams:
            self._told.arguments(_escaped(self._string_text(text).removesuffix("\n")) + '"')
        else:
            text = "".join([*self._scanned, text]).removeprefix("\n").removesuffix("\n")
            self._scanned = []
            value = coerce(text, self._schema(self._key), self._parameters())
            self._told.arguments(json.dumps(value, ensure_ascii=False))
        self._key = None

    def _string_text(self, text: str) -> str:
        """``text`` of a string's value, without the line end that comes before the whole of it."""
        begun, self._begun = self._begun, True
        return text if begun else text.removeprefix("\n")

    def _parameters(self) -> Mapping[str, Any]:
        found = self._schemas.get(self._function or "", {})
        return found if isinstance(found, Mapping) else {}

    def _properties(self) -> Mapping[str, Any]:
        found = self._parameters().get("properties")
        return found if isinstance(found, Mapping) else {}

    def _schema(self, key: str) -> Mapping[str, Any]:
        schema = self._properties().get(key)
        return schema if isinstance(schema, Mapping) else {}

    def _knows(self, key: str) -> bool:
        """Whether the open function may have a parameter of this name."""
        return not self._properties() or key in self._properties()


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def coerce(raw: str, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Any:
    """The value that the text of a parameter stands for: of the schema's types the one that fits, else the text.

    Args:
        raw: the text.
        schema: of the parameter.
        root: the schema of all parameters, in which references are looked up.
    """
    types = accepted_types(schema, root or schema)
    if types == {"string"}:
        return raw
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
