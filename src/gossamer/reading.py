"""The one reader of files that others wrote: bounded in size and depth, with numbers in range and types declared.

Whatever a run's folder, a cache or a checkpoint holds comes in through here: JSON, plain text, and the opening of files
and locks; `gossamer/yaml_files.py` reads YAML in the same way. A file that cannot be read raises a `UserError` of one
line that names the file and the field, never another exception, and nothing waits: a pipe or a device in the place of
a file is refused, not opened. `tests/test_reading.py` makes sure that nothing else in the package parses JSON or YAML.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from functools import lru_cache
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from gossamer.errors import UserError, shorten
from gossamer.units import decimal_size

__all__ = [
    "MAX_DEPTH",
    "MAX_DIGITS",
    "MAX_TOKENIZER",
    "MissingFile",
    "TextErrors",
    "checked",
    "open_to_append",
    "open_to_read",
    "parse_json",
    "parse_number",
    "read_bytes",
    "read_json",
    "read_object",
    "read_text",
    "text_of_name",
    "user_path",
]

MAX_DEPTH = 64
"""Maximum depth of nesting in JSON and YAML."""

MAX_BYTES = 64 << 20
"""Maximum size of a file that is read as a whole, where its reader names no other."""

MAX_TOKENIZER = 512 << 20
"""Maximum size of a tokenizer.json; the largest that are published have some 40 MiB."""

MAX_DIGITS = 308
"""Digits that a whole number may have: one with more is beyond every float."""

_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
_SURROGATE = re.compile("[\ud800-\udfff]")
_WHOLE = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_HEXADECIMAL = re.compile(r"[-+]?0x[0-9a-fA-F]+")
_FRACTION = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")

TextErrors = Literal["strict", "replace"]
"""What to do about bytes that are not UTF-8: refuse them, or read each as U+FFFD."""

T = TypeVar("T")


class MissingFile(UserError):
    """A file that has to be there is not."""


# Paths and files.


def user_path(text: str | Path) -> Path:
    """Return the path that a user gives, with `~` and `~name` replaced by home folders.

    Raises:
        UserError: a NUL character, a user who does not exist, or a home folder that is not known.
    """
    if "\0" in str(text):
        raise UserError(f"{str(text)!r}: holds a NUL character, which no path can; check the path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        whose = "its home folder is not known (HOME is not set)" if re.match(r"~(/|$)", str(text)) else "no such user"
        raise UserError(f"{text}: {whose}; write the path out") from None


def text_of_name(name: str) -> str:
    """Return a file's name as text that can be written in UTF-8: bytes of it that cannot become U+FFFD."""
    try:
        return os.fsencode(name).decode("utf-8", "replace")
    except UnicodeEncodeError:  # on a system where names are not bytes
        return name.encode("utf-8", "replace").decode()


def open_to_read(path: Path, remedy: str = "") -> BufferedReader:
    """Open a regular file for reading, without waiting for other processes.

    Args:
        path: the file
        remedy: what to do when it cannot be read, for the message

    Raises:
        MissingFile: there is no such file.
        UserError: it is a folder, a pipe, a socket or a device, or cannot be opened.
    """
    remedy = remedy or "check the path and its permissions"
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFile(f"{path}: no such file; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from error
    except ValueError:  # a NUL character, or one that no name of a file can hold
        raise UserError(f"{str(path)!r}: is not a valid path") from None
    _require_regular(descriptor, path)
    return open(path, "rb", opener=lambda *_: descriptor)


def open_to_append(path: Path) -> BufferedWriter:
    """Open a regular file for appending, for logs and locks; it is made if there is none, and nothing waits.

    Raises:
        UserError: something other than a file has that path.
        OSError: the file cannot be made or opened; the caller knows what its folder is for, and says so.
    """
    flags = _READ_FLAGS & ~os.O_RDONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT
    try:
        descriptor = os.open(path, flags, 0o666)
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a file; move it away") from None
    except OSError as error:
        if error.errno != errno.ENXIO:  # a socket
            raise
        raise UserError(f"{path}: is a socket, not a file; move it away") from None
    _require_regular(descriptor, path)
    return open(path, "ab", opener=lambda *_: descriptor)


def _require_regular(descriptor: int, path: Path) -> None:
    """Close a descriptor that is not a regular file's, and refuse it."""
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        names = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise UserError(f"{path}: is {names.get(stat.S_IFMT(kind), 'a device')}, not a file; move it away")


def read_bytes(path: Path, remedy: str = "", max_bytes: int = MAX_BYTES) -> bytes:
    """Return all bytes of a regular file.

    Args:
        path: the file
        remedy: what to do when it cannot be read, for the message
        max_bytes: maximum size of the file

    Raises:
        MissingFile: there is no such file.
        UserError: it cannot be read, or is larger.
    """
    with open_to_read(path, remedy) as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its disk") from error
    if len(content) > max_bytes:
        raise UserError(
            f"{path}: is larger than {decimal_size(max_bytes)}, which no file of its kind is; {remedy or 'check it'}"
        )
    return content


def read_text(path: Path, remedy: str = "save it again", max_bytes: int = MAX_BYTES) -> str:
    """Return all text of a regular file in UTF-8, without a byte order mark; see `read_bytes`."""
    return _decoded(read_bytes(path, remedy, max_bytes), str(path), remedy)


def _decoded(content: bytes, where: str, remedy: str) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text at byte {error.start}; {remedy}") from None


# JSON.


class _RefusedError(ValueError):
    """JSON allows a value that no file here needs."""


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _RefusedError(f"a number of {len(text)} digits")
    return int(text)


def _fraction(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError(f"{shorten(text)} is beyond every number")
    return value


def _constant(name: str) -> float:
    raise _RefusedError(f"{name} is no number")


def _lenient_whole(text: str) -> float:
    return int(text) if len(text) <= MAX_DIGITS else math.inf


def parse_json(text: str | bytes, where: str, remedy: str = "save it again", strict: bool = True) -> Any:
    """Parse a text in JSON.

    Args:
        text: the whole text; bytes are UTF-8
        where: where the text comes from, for the message
        remedy: what to do about a mistake in it, for the message
        strict: refuse NaN, infinities, numbers that no float can hold and halves of surrogate pairs; not strict where a
            record may hold anything beside the one field that is read

    Raises:
        UserError: it is not JSON, is nested more than `MAX_DEPTH` deep, or holds what is refused.
    """
    if isinstance(text, bytes):
        text = _decoded(text, where, remedy)
    try:
        if strict:
            value = json.loads(text, parse_int=_whole, parse_float=_fraction, parse_constant=_constant)
        else:
            value = json.loads(text, parse_int=_lenient_whole)
    except json.JSONDecodeError as error:
        end = min(error.pos, len(text.rstrip()))  # a mistake behind the last character is one of its line
        column = f"column {end - text.rfind(chr(10), 0, end)}"
        place = f"line {error.lineno}, {column}" if "\n" in text.strip() else column
        raise UserError(f"{where}: not JSON ({error.msg.removesuffix(' at')} at {place}); {remedy}") from None
    except RecursionError:
        raise UserError(f"{where}: not JSON (nested more than {MAX_DEPTH} deep); {remedy}") from None
    except _RefusedError as error:
        field = _first_infinite(text)
        raise UserError(f"{where}: {f'{field}: ' if field else ''}{error}; {remedy}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper(value):
        raise UserError(f"{where}: nested more than {MAX_DEPTH} deep; {remedy}")
    if strict and "\\u" in text and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise UserError(f"{where}: holds half of a surrogate pair, which is no character; {remedy}")
    return value


def _first_infinite(text: str) -> str:
    """The dotted name of the first number in a JSON text that is not finite, or nothing."""
    try:
        stack = [("", json.loads(text, parse_int=_lenient_whole))]
    except (ValueError, RecursionError):  # the rest of the text is not JSON
        return ""
    while stack:
        name, item = stack.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return shorten(name)
        if isinstance(item, dict | list):
            parts = list(item.items() if isinstance(item, dict) else enumerate(item))
            stack += [(f"{name}.{key}".lstrip("."), part) for key, part in reversed(parts)]
    return ""


def _deeper(value: Any) -> bool:
    """Whether a value is nested more than `MAX_DEPTH` deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return False
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return True


def read_object(path: Path, remedy: str = "save it again", max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file that holds one JSON object; see `read_json`."""
    return read_json(path, dict, remedy, max_bytes)


def read_json(path: Path, kind: type[T], remedy: str = "save it again", max_bytes: int = MAX_BYTES) -> T:
    """Read a JSON file as a declared type.

    Args:
        path: the file
        kind: a class, a TypedDict or a dataclass, which the file has to match field by field
        remedy: what to do about a mistake in it, for the message
        max_bytes: maximum size of the file

    Raises:
        MissingFile: there is no such file.
        UserError: it cannot be read, is not JSON or holds another type; the line names the file and the field.
    """
    return checked(parse_json(read_text(path, remedy, max_bytes), str(path), remedy), kind, str(path), remedy)


def checked(value: Any, kind: type[T], where: str, remedy: str = "save it again") -> T:
    """Return a value that JSON holds as a declared type; nothing is converted, and no text becomes a number.

    Args:
        value: what was parsed
        kind: a class, a TypedDict or a dataclass
        where: where the value comes from, for the message
        remedy: what to do about a mistake in it, for the message

    Raises:
        UserError: the value is of another type; the line names the field.
    """
    if kind is dict or kind is list:
        if isinstance(value, kind):
            return value
        raise UserError(f"{where}: holds no JSON {'object' if kind is dict else 'list'}; {remedy}")
    import pydantic  # this takes a tenth of a second, and many verbs read no such file

    try:
        # As JSON once more: in that mode a list may stand for a tuple, and an object for a dataclass, strict or not.
        return cast(T, _adapter(cast(Any, kind)).validate_json(json.dumps(value), strict=True))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        found = "" if first["type"] == "missing" else f", not {shorten(repr(first['input']))}"
        what = first["msg"].removeprefix("Value error, ")
        what = what[0].lower() + what[1:]
        raise UserError(f"{where}: {f'{shorten(field)}: ' if field else ''}{what}{found}; {remedy}") from None


@lru_cache
def _adapter(kind: Any) -> Any:
    import pydantic

    return pydantic.TypeAdapter(kind)


def parse_number(text: str) -> int | float | None:
    """Return the number that a text stands for, or None if it is no number, or one that no float can hold.

    Groups of digits may be joined by underscores. 1_000_000, -3, 1e-3, .5 and 0x10 are numbers, 010 is ten; 1:30, nan
    and inf are not numbers.
    """
    if len(text) > MAX_DIGITS:
        return None
    if _WHOLE.fullmatch(text):
        return int(text)
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    value = float(text) if _FRACTION.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None
