"""The one reader of files that others wrote: bounded in size and depth, numbers in range, types declared.

Whatever a run's folder, a cache, a checkpoint or a recipe holds comes in through here: JSON, YAML, plain text and the
opening of files and locks. What cannot be read is a `UserError` of one line that names the file and the field, never
another exception and never a wait: a pipe or a device where a file should lie is refused, not opened.
`tests/test_reading.py` holds the line that nothing else in the package parses JSON or YAML.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from functools import lru_cache
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from gossamer.errors import UserError, shorten

__all__ = [
    "MAX_DEPTH",
    "MAX_TOKENIZER",
    "MAX_YAML",
    "MissingFile",
    "checked",
    "compose_yaml",
    "is_number",
    "open_to_append",
    "open_to_read",
    "parse_json",
    "parse_number",
    "parse_yaml",
    "plain_values",
    "read_bytes",
    "read_json",
    "read_object",
    "read_text",
    "text_of_name",
    "user_path",
    "yaml_text",
]

MAX_DEPTH = 64
"""Levels of nesting that JSON and YAML may have."""

MAX_BYTES = 64 << 20
"""Bytes of a file that is read as a whole, where its reader names no other bound."""

MAX_TOKENIZER = 512 << 20
"""Bytes of a tokenizer.json; the largest that are published have some 40 MiB."""

MAX_YAML = 1 << 20
"""Bytes of a YAML file: a recipe has some hundred."""

_MAX_YAML_NODES = 200_000  # with every alias written out: a few lines of aliases can stand for more than any memory
_MAX_DIGITS = 308  # of a whole number: what has more is beyond every float
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
_SURROGATE = re.compile("[\ud800-\udfff]")
_WHOLE = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_HEXADECIMAL = re.compile(r"[-+]?0x[0-9a-fA-F]+")
_FRACTION = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")

T = TypeVar("T")


class MissingFile(UserError):
    """There is no such file."""


# Paths and files.


def user_path(text: str | Path) -> Path:
    """A path as a user gives it, `~` and `~name` replaced by home folders.

    Raises:
        UserError: a NUL character, a user who does not exist, or no home folder that is known.
    """
    if "\0" in str(text):
        raise UserError(f"{str(text)!r}: holds a NUL character, which no path can; check the path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        whose = "its home folder is not known (HOME is not set)" if re.match(r"~(/|$)", str(text)) else "no such user"
        raise UserError(f"{text}: {whose}; write the path out") from None


def text_of_name(name: str) -> str:
    """A file's name as text that can be written in UTF-8: what is none in it becomes U+FFFD."""
    try:
        return os.fsencode(name).decode("utf-8", "replace")
    except UnicodeEncodeError:  # of a system whose names are no bytes
        return name.encode("utf-8", "replace").decode()


def open_to_read(path: Path, remedy: str = "") -> BufferedReader:
    """Open a regular file for reading, without waiting for anybody.

    Args:
        path: the file
        remedy: what to do when it cannot be read, for the message

    Raises:
        MissingFile: there is none.
        UserError: it is a folder, a pipe, a socket or a device, or cannot be opened.
    """
    remedy = remedy or "check the path and its permissions"
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFile(f"{path}: no such file; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from error
    except ValueError:  # NUL, or what no name of a file can be encoded from
        raise UserError(f"{str(path)!r}: is no path; check it") from None
    _regular(descriptor, path)
    return open(path, "rb", opener=lambda *_: descriptor)


def open_to_append(path: Path) -> BufferedWriter:
    """Open a regular file for appending, made if need be, without waiting for anybody; for logs and locks.

    Raises:
        UserError: something else than a file lies there.
        OSError: the file cannot be made or opened, which whoever writes says in the words of their folder.
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
    _regular(descriptor, path)
    return open(path, "ab", opener=lambda *_: descriptor)


def _regular(descriptor: int, path: Path) -> None:
    """Close what is no regular file, and refuse it."""
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        names = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise UserError(f"{path}: is {names.get(stat.S_IFMT(kind), 'a device')}, not a file; move it away")


def read_bytes(path: Path, remedy: str = "", most: int = MAX_BYTES) -> bytes:
    """All bytes of a regular file.

    Args:
        path: the file
        remedy: what to do when it cannot be read, for the message
        most: bytes that it may have

    Raises:
        MissingFile: there is none.
        UserError: it cannot be read, or is larger.
    """
    with open_to_read(path, remedy) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its disk") from error
    if len(content) > most:
        raise UserError(f"{path}: is larger than {most:,} bytes, which no file of its kind is; {remedy or 'check it'}")
    return content


def read_text(path: Path, remedy: str = "save it anew", most: int = MAX_BYTES) -> str:
    """All text of a regular file in UTF-8, without a byte order mark; raises as `read_bytes` does."""
    return _decoded(read_bytes(path, remedy, most), str(path), remedy)


def _decoded(content: bytes, where: str, remedy: str) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text at byte {error.start}; {remedy}") from None


# JSON.


class _Wrong(ValueError):
    """What JSON allows and no file needs."""


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _Wrong(f"a number of {len(text)} digits")
    return int(text)


def _fraction(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Wrong(f"{shorten(text)} is beyond every number")
    return value


def _constant(name: str) -> float:
    raise _Wrong(f"{name} is no number")


def _lenient_whole(text: str) -> float:
    return int(text) if len(text) <= _MAX_DIGITS else math.inf


def parse_json(text: str | bytes, where: str, remedy: str = "save it anew", strict: bool = True) -> Any:
    """What a text in JSON says.

    Args:
        text: the whole of it; bytes are UTF-8
        where: it comes from, for the message
        remedy: what to do about what is wrong
        strict: refuse NaN, infinities, numbers that no float can hold and halves of surrogate pairs. Where a record may
            hold anything beside the one field that is read, they pass.

    Raises:
        UserError: it is no JSON, is nested more than `MAX_DEPTH` deep, or holds what is refused.
    """
    if isinstance(text, bytes):
        text = _decoded(text, where, remedy)
    try:
        if strict:
            value = json.loads(text, parse_int=_whole, parse_float=_fraction, parse_constant=_constant)
        else:
            value = json.loads(text, parse_int=_lenient_whole)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise UserError(f"{where}: not JSON ({error.msg.removesuffix(' at')} at {place}); {remedy}") from None
    except RecursionError:
        raise UserError(f"{where}: not JSON (nested more than {MAX_DEPTH} deep); {remedy}") from None
    except _Wrong as error:
        field = _first_infinite(text)
        raise UserError(f"{where}: {f'{field}: ' if field else ''}{error}; {remedy}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper(value):
        raise UserError(f"{where}: nested more than {MAX_DEPTH} deep; {remedy}")
    if strict and "\\u" in text and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise UserError(f"{where}: holds half of a surrogate pair, which is no character; {remedy}")
    return value


def _first_infinite(text: str) -> str:
    """The dotted name of the first number that is not finite, of a JSON text that is read as far as that."""
    try:
        stack = [("", json.loads(text, parse_int=_lenient_whole))]
    except (ValueError, RecursionError):  # what follows is no JSON
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


def read_object(path: Path, remedy: str = "save it anew", most: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file that holds one JSON object; raises as `read_json` does."""
    return read_json(path, dict, remedy, most)


def read_json(path: Path, kind: type[T], remedy: str = "save it anew", most: int = MAX_BYTES) -> T:
    """Read a JSON file as a declared type.

    Args:
        path: the file
        kind: a class, a TypedDict or a dataclass; what the file holds must be one, field by field
        remedy: what to do about what is wrong
        most: bytes that the file may have

    Raises:
        MissingFile: there is none.
        UserError: it cannot be read, is no JSON or holds another type; the line names the file and the field.
    """
    return checked(parse_json(read_text(path, remedy, most), str(path), remedy), kind, str(path), remedy)


def checked(value: Any, kind: type[T], where: str, remedy: str = "save it anew") -> T:
    """`value`, as JSON holds it, as a declared type: nothing is bent, no text becomes a number.

    Raises:
        UserError: it is of another type; the line names the field.
    """
    if kind is dict or kind is list:
        if isinstance(value, kind):
            return value
        raise UserError(f"{where}: holds no JSON {'object' if kind is dict else 'list'}; {remedy}")
    import pydantic  # a tenth of a second, which verbs that read no such file need not wait for

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


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def parse_number(text: str) -> int | float | None:
    """The number that a text is, wherever people write one; None: it is none, or one that no float can hold.

    Digits may stand in groups with underscores between. 1_000_000, -3, 1e-3, .5 and 0x10 are numbers, 010 is ten; 1:30,
    nan and inf are none.
    """
    if len(text) > _MAX_DIGITS:
        return None
    if _WHOLE.fullmatch(text):
        return int(text)
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    value = float(text) if _FRACTION.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


# YAML.


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in YAML 1.2, no number is infinite or endless and no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise _at(key, f"key {shorten(repr(key.value))} stands twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A number that a float can hold."""
        if len(node.value) > _MAX_DIGITS:
            raise _at(node, f"a number of {len(node.value)} digits")
        value = parse_number(node.value)
        if value is None or (isinstance(value, float) and node.tag.endswith(":int")):
            raise _at(node, f"{shorten(node.value)} is no number, or beyond every one")
        return value if node.tag.endswith(":int") else float(value)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that `_Loader` would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def _at(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def compose_yaml(text: str, where: str) -> yaml.Node | None:
    """The nodes of a text in YAML, each with its line; None where it says nothing.

    Raises:
        UserError: it is no YAML, longer than `MAX_YAML`, nested more than `MAX_DEPTH` deep, or its aliases stand for
            too much; the message names where, and the line there.
    """
    if len(text) > MAX_YAML:
        raise UserError(f"{where}: is longer than {MAX_YAML:,} characters, which no YAML file here is; check it")
    with _yaml_errors(where):
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise yaml.parser.ParserError(
                    None, None, f"nested more than {MAX_DEPTH} deep", cast(Any, event.start_mark)
                )
        node = yaml.compose(text, Loader=_Loader)
        if node is not None and _expanded(node, {}) > _MAX_YAML_NODES:
            raise _at(node, "its aliases stand for more than any memory holds, or for themselves")
        return node


def parse_yaml(text: str, where: str) -> Any:
    """What a text in YAML says, with `_Loader`'s idea of numbers; raises as `compose_yaml` does."""
    node = compose_yaml(text, where)
    with _yaml_errors(where):
        return None if node is None else _Loader("").construct_document(node)


def yaml_text(value: Any) -> str:
    """The YAML that `parse_yaml` reads as the same dictionaries, lists and scalars."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=120)


class _yaml_errors:
    """Turns what PyYAML raises, about syntax and about scalars that are not what their tag says, into a UserError."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, UserError) or not isinstance(error, Exception):
            return
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        # PyYAML's constructors raise whatever int(), dates and tables of words do.
        what = problem or (
            " ".join(str(error).split()) if isinstance(error, ValueError | yaml.YAMLError) else "a value is not YAML"
        )
        place = f"{self.where}:{mark.line + 1}" if mark else self.where
        raise UserError(f"{place}: {shorten(str(what), 200)}") from None


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """Nodes below a node, with every alias written out; infinite where one stands for what it is part of."""
    if id(node) not in known:
        known[id(node)] = math.inf
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = isinstance(node, yaml.MappingNode)
        known[id(node)] = 1 + sum(
            _expanded(part, known) for child in children for part in (child if pairs else (child,))
        )
    return known[id(node)]


def plain_values(value: Any) -> Any:
    """Tuples as lists, all the way down, as YAML and JSON write them."""
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    return [plain_values(item) for item in value] if isinstance(value, list | tuple) else value
