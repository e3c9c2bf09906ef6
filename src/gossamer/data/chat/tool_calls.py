"""Reads tool calls from the text of a model while it is generated, in the two formats that the family's models use.

Both readers get what comes after `<tool_call>`, in parts, up to and including the `</tool_call>` that ends it: only
they know whether such a tag stands within an argument. They return the name of the function as soon as it is known,
then its arguments, which together are the text of a JSON object. The result does not depend on how the text was cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from gossamer.data.chat.json_schema import accepted_types

__all__ = [
    "CALL",
    "END_CALL",
    "ArgumentsText",
    "CallPart",
    "CallReader",
    "FunctionName",
    "JsonCall",
    "Unreadable",
    "XmlCall",
    "partial_suffix",
]

CALL, END_CALL = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class FunctionName:
    """The beginning of a call: the name of the function."""

    name: str


@dataclass(frozen=True)
class ArgumentsText:
    """The next characters of the arguments of the call that began last."""

    text: str


@dataclass(frozen=True)
class Unreadable:
    """Text in the place of a call that cannot be read as one."""

    text: str


CallPart = FunctionName | ArgumentsText | Unreadable


class CallReader(Protocol):
    """Reads the calls between one `<tool_call>` and its `</tool_call>`.

    Attributes:
        opens: what a call begins with after `<tool_call>` and white space; anything else is no call
        closed: whether `</tool_call>` has been read
        rest: the text after that tag, once it has been read
    """

    opens: ClassVar[tuple[str, ...]]
    closed: bool
    rest: str

    def push(self, text: str) -> list[CallPart]:
        """Read more of the model's text, and return what is known now."""
        ...

    def finish(self, cut: bool) -> list[CallPart]:
        """Return what was held back when the text ended without the closing tag.

        Args:
            cut: whether something else than the model ended the text
        """
        ...


def partial_suffix(text: str, *tags: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of one of `tags`, but not a whole one."""
    max_size = min(len(text), max(map(len, tags)) - 1)
    return next((size for size in range(max_size, 0, -1) if any(tag.startswith(text[-size:]) for tag in tags)), 0)


class _CallParts:
    """Collects the parts that a reader returns; neighboring characters of arguments become one part."""

    def __init__(self) -> None:
        self._parts: list[CallPart] = []
        self._text: list[str] = []

    def arguments(self, text: str) -> None:
        self._text.append(text)

    def add(self, part: CallPart) -> None:
        self._flush()
        self._parts.append(part)

    def _flush(self) -> None:
        if text := "".join(self._text):
            self._parts.append(ArgumentsText(text))
        self._text = []

    def take(self) -> list[CallPart]:
        self._flush()
        parts, self._parts = self._parts, []
        return parts


_STRING_STOP = re.compile(r'["\\\x00-\x1f]')


class JsonCall:
    """Reads `{"name": "f", "arguments": {...}}`, as Qwen3-Next writes it.

    Several objects, in an array or one after the other, are several calls. The arguments are passed on as the model
    writes them. If the name comes after them, they wait for it. A tag within a string is part of the string. If the
    arguments are a string with a JSON object in it, they are that object. A call without arguments has `{}`. Control
    characters within strings, which JSON does not allow, are escaped.
    """

    opens: ClassVar[tuple[str, ...]] = ("{", "[")

    def __init__(self) -> None:
        self.closed = False
        self.rest = ""
        self._text = ""
        self._place = 0
        self._parts = _CallParts()
        self._begin_object(0)

    def _begin_object(self, place: int) -> None:
        self._object = place
        self._name: str | None = None
        self._key: str | None = None
        self._depth = 0
        self._begin: int | None = None  # where the current key or value at depth 1 begins
        self._string = self._escape = False
        self._streaming = self._has_arguments = False
        self._held = ""  # arguments of a function whose name is not known yet

    def push(self, text: str) -> list[CallPart]:
        """Read more of the model's text; see `CallReader`."""
        self._text += text
        while self._place < len(self._text) and not self.closed:
            if self._string:
                self._read_string()
            elif self._text[self._place] == "<" and END_CALL.startswith(self._text[self._place :][: len(END_CALL)]):
                if len(self._text) - self._place < len(END_CALL):
                    break  # may become the end of the call
                self._close()
            else:
                self._read_character(self._text[self._place])
                self._place += 1
        if self._name is not None and (self._begin is None or self._streaming):
            self._text, self._place = self._text[self._place :], 0  # what has been passed on is not read again
        return self._parts.take()

    def finish(self, cut: bool) -> list[CallPart]:
        """Return what was held back; see `CallReader`."""
        return []

    def _close(self) -> None:
        if self._depth and self._name is None:
            self._parts.add(Unreadable(self._text[self._object : self._place]))
        self.closed, self.rest = True, self._text[self._place + len(END_CALL) :]

    def _read_string(self) -> None:
        """Read on within a string, up to its end or the end of the text."""
        if self._escape:
            self._escape = False
            self._pass_on(self._text[self._place])
            self._place += 1
            return
        found = _STRING_STOP.search(self._text, self._place)
        end = found.start() if found else len(self._text)
        self._pass_on(self._text[self._place : end])
        self._place = end
        if found is None:
            return
        character = found.group()
        self._place += 1
        self._pass_on(json.dumps(character)[1:-1] if character < " " else character)
        if character == "\\":
            self._escape = True
        elif character == '"':
            self._string = False
            if self._depth == 1 and self._begin is not None:
                self._end_string(self._text[self._begin : self._place])

    def _end_string(self, text: str) -> None:
        """Handle a complete key, or a value that is a complete string."""
        value = _string_value(text)
        if self._key is None:
            self._key = value
        elif self._key == "name" and self._name is None:
            self._name = value
            self._parts.add(FunctionName(value))
            self._parts.arguments(self._held)
            self._held = ""
        elif self._is_arguments():
            self._set_arguments(value if _is_object(value) else "{}" if not value.strip() else json.dumps(value))
        self._begin = None

    def _is_arguments(self) -> bool:
        return self._key in ("arguments", "parameters") and not self._has_arguments

    def _set_arguments(self, text: str) -> None:
        """Pass on arguments that are known as a whole."""
        self._streaming = self._has_arguments = True
        self._pass_on(text)
        self._streaming = False

    def _pass_on(self, text: str) -> None:
        """Pass on text of the arguments, if the current value is the arguments."""
        if not self._streaming:
            return
        if self._name is None:
            self._held += text
        else:
            self._parts.arguments(text)

    def _read_character(self, character: str) -> None:
        """Read one character outside of strings."""
        if self._depth == 0:
            if character == "{":
                self._begin_object(self._place)
                self._depth = 1
            return
        if self._depth == 1 and character in ",}":
            self._end_part()
            if character == "}":
                self._end_object()
            return
        if self._depth == 1 and (character.isspace() or character == ":"):
            return  # between two parts; a number or a name holds no such character
        if self._begin is None:
            self._begin = self._place
            if self._key is not None and self._is_arguments() and character in "{[":
                self._streaming = self._has_arguments = True
        if character == '"':
            self._string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        self._pass_on(character)
        if self._depth == 1 and character in "}]":
            self._streaming = False

    def _end_part(self) -> None:
        if self._begin is not None and not self._streaming and self._is_arguments():
            scalar = self._text[self._begin : self._place].strip()
            self._set_arguments("{}" if scalar == "null" else scalar)
        self._key, self._begin, self._streaming = None, None, False

    def _end_object(self) -> None:
        if self._name is None:
            self._parts.add(Unreadable(self._text[self._object : self._place + 1]))
        elif not self._has_arguments:
            self._set_arguments("{}")
        self._begin_object(self._place + 1)


def _string_value(text: str) -> str:
    """The value of the text of a JSON string, which may hold a bare line end or a bad escape."""
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
_ENDS = ("</parameter>", "<parameter=", "</function>", END_CALL, CALL, "<function=")
_OPEN_NAME = re.compile(r"\n?<(?:parameter|function)=[^<>\n]{0,200}\Z")


class XmlCall:
    """Reads `<function=f>` with `<parameter=k>` value `</parameter>`, as Qwen3.5 and Qwen3-Coder write it.

    A parameter whose schema says that it is a string is passed on as it is written. Any other is passed on when it is
    complete, as the JSON value that the text spells, or as a string if it spells none of the schema's types.

    Models forget closing tags. A value without `</parameter>` ends where a parameter of the function begins, or at
    `</function>` or `</tool_call>`. But these tags are part of the value if a `</parameter>` follows before the next
    parameter or call, so what comes after one of them waits until that is known.

    Args:
        schemas: the schema of the parameters of each function, by its name
    """

    opens: ClassVar[tuple[str, ...]] = ("<function=",)

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self.closed = False
        self.rest = ""
        self._schemas = schemas
        self._text = ""
        self._parts = _CallParts()
        self._function: str | None = None
        self._num_parameters = 0  # of the open function so far
        self._key: str | None = None
        self._is_string = self._has_begun = False  # the open value is passed on as it comes; some of it has been
        self._scanned: list[str] = []  # text of the open value in which no tag begins
        self._seen = 0  # up to here no tag begins in the text after that
        self._end: int | None = None  # where the open value ends unless a </parameter> follows

    def push(self, text: str) -> list[CallPart]:
        """Read more of the model's text; see `CallReader`."""
        self._text += text
        while not self.closed and self._step():
            pass
        return self._parts.take()

    def finish(self, cut: bool) -> list[CallPart]:
        """Return what was held back; see `CallReader`."""
        if self._key is not None and self._end is not None:
            self._end_value(self._end, self._end)
            while not self.closed and self._step():
                pass
        if self._function is not None and self._key is None and not cut:
            self._end_function()
        return self._parts.take()

    def _step(self) -> bool:
        """Read the next tag, or as much of a value as is certain; returns False if more text is needed."""
        if self._key is not None:
            return self._read_value()
        found = (_OUTSIDE if self._function is None else _BETWEEN).search(self._text)
        if found is None:
            return False
        tag, self._text = found.group(), self._text[found.end() :]
        if tag.startswith("<parameter="):
            self._begin_value(found.group(1).strip())
            return True
        if self._function is not None:
            self._end_function()
        if tag == END_CALL:
            self.closed, self.rest = True, self._text
        elif tag.startswith("<function="):
            self._function, self._num_parameters = found.groups()[-1].strip(), 0
            self._parts.add(FunctionName(self._function))
            self._parts.arguments("{")
        return True

    def _end_function(self) -> None:
        self._parts.arguments("}")
        self._function = None

    def _begin_value(self, key: str) -> None:
        self._key, self._has_begun, self._seen, self._end = key, False, 0, None
        self._is_string = accepted_types(self._schema(key), self._parameters()) == {"string"}
        comma = "" if self._num_parameters == 0 else ", "
        self._num_parameters += 1
        self._parts.arguments(comma + json.dumps(key, ensure_ascii=False) + ": " + '"' * self._is_string)

    def _read_value(self) -> bool:
        """Look for the end of the open value; returns whether it was found."""
        while (found := _WITHIN.search(self._text, self._seen)) is not None:
            tag, self._seen = found.group(), found.end()
            if tag == "</parameter>":
                self._end_value(found.start(), found.end())
                return True
            if tag in ("</function>", END_CALL):
                self._end = found.start() if self._end is None else self._end
            elif tag.startswith("<parameter="):
                if self._is_parameter(found.group(1).strip()):
                    end = found.start() if self._end is None else self._end
                    self._end_value(end, end)
                    return True
            elif self._end is not None:  # another call begins
                self._end_value(self._end, self._end)
                return True
        if self._end is None:
            self._pass_on_certain()
        return False

    def _pass_on_certain(self) -> None:
        """Pass on what certainly belongs to the open value: no beginning of a tag, and no line end before one."""
        tail = self._text[-256:]
        name = _OPEN_NAME.search(tail)
        held = len(tail) - name.start() if name else partial_suffix(tail, *_ENDS, *("\n" + tag for tag in _ENDS))
        ready = len(self._text) - held
        self._seen = max(0, ready)
        if ready <= 0:
            return
        if self._is_string:
            self._parts.arguments(_escaped(self._string_text(self._text[:ready])))
        else:
            self._scanned.append(self._text[:ready])
        self._text, self._seen = self._text[ready:], 0

    def _end_value(self, end: int, next_start: int) -> None:
        """End the open value at `end` and read on at `next_start`; a line end on either side is not part of it."""
        assert self._key is not None
        text, self._text = self._text[:end], self._text[next_start:]
        if self._is_string:
            self._parts.arguments(_escaped(self._string_text(text).removesuffix("\n")) + '"')
        else:
            text = "".join([*self._scanned, text]).removeprefix("\n").removesuffix("\n")
            self._scanned = []
            value = coerce(text, self._schema(self._key), self._parameters())
            self._parts.arguments(json.dumps(value, ensure_ascii=False))
        self._key = None

    def _string_text(self, text: str) -> str:
        """Text of the open string, without the line end before the first of it."""
        has_begun, self._has_begun = self._has_begun, True
        return text if has_begun else text.removeprefix("\n")

    def _parameters(self) -> Mapping[str, Any]:
        found = self._schemas.get(self._function or "", {})
        return found if isinstance(found, Mapping) else {}

    def _properties(self) -> Mapping[str, Any]:
        found = self._parameters().get("properties")
        return found if isinstance(found, Mapping) else {}

    def _schema(self, key: str) -> Mapping[str, Any]:
        schema = self._properties().get(key)
        return schema if isinstance(schema, Mapping) else {}

    def _is_parameter(self, key: str) -> bool:
        """Whether the open function may have a parameter of this name."""
        return not self._properties() or key in self._properties()


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def coerce(raw: str, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Any:
    """Return the value that the text of a parameter stands for, by the schema's types, or else the text itself.

    Args:
        raw: the text
        schema: the schema of the parameter
        root: the schema of all parameters, in which references are looked up
    """
    types = accepted_types(schema, root or schema)
    if types == {"string"}:
        return raw
    try:
        value = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        word = raw.strip().lower()
        if "boolean" in types and word in ("true", "false"):
            return word == "true"
        return None if "null" in types and word in ("null", "none") else raw
    fits = {
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, (int, float)) and not isinstance(value, bool),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
        "null": value is None,
    }
    if "integer" in types and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if any(fits[kind] for kind in types & fits.keys()) else raw


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
