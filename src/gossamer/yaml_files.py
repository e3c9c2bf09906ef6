"""YAML, read as strictly as `gossamer/reading.py` reads JSON, and written so that it is read back the same.

It is a module of its own because loading PyYAML takes longer than all else that `gossamer --help` needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from gossamer.errors import UserError, did_you_mean, shorten
from gossamer.reading import MAX_DEPTH, MAX_DIGITS, parse_number, read_text
from gossamer.typed import shown

__all__ = ["MAX_YAML", "YamlValue", "compose_yaml", "parse_yaml", "plain_values", "read_yaml_values", "yaml_text"]

MAX_YAML = 1 << 20
"""Maximum size of a YAML file; a recipe has some hundred bytes."""

_MAX_NODES = 200_000  # with every alias written out: a few lines of aliases can stand for more than any memory holds


class _Loader(yaml.SafeLoader):
    """Reads YAML in which 1e-3 is a number, as in YAML 1.2, no number is infinite and no key is duplicated."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise _at(key, f"duplicate key {shorten(repr(key.value))}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Read a number, and refuse one that no float can hold."""
        if len(node.value) > MAX_DIGITS:
            raise _at(node, f"a number of {len(node.value)} digits")
        value = parse_number(node.value)
        if value is None or (isinstance(value, float) and node.tag.endswith(":int")):
            raise _at(node, f"{shorten(node.value)} is no number, or beyond every one")
        return value if node.tag.endswith(":int") else float(value)


class _Dumper(yaml.SafeDumper):
    """Writes YAML in which a text that `_Loader` would read as a number stands in quotes."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def _at(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def compose_yaml(text: str, where: str) -> yaml.Node | None:
    """Parse a text in YAML into nodes, each with its line.

    Args:
        text: the whole text
        where: where it comes from, for the message

    Returns:
        The outermost node, or None if the text is empty.

    Raises:
        UserError: it is not YAML, longer than `MAX_YAML`, nested more than `MAX_DEPTH` deep, or its aliases stand for
            too much; the message names the place and the line.
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
        if node is not None and _expanded(node, {}) > _MAX_NODES:
            raise _at(node, "its aliases stand for more than any memory holds, or for themselves")
        return node


def parse_yaml(text: str, where: str) -> Any:
    """Parse a text in YAML into dictionaries, lists and scalars; see `compose_yaml`."""
    node = compose_yaml(text, where)
    with _yaml_errors(where):
        return None if node is None else _Loader("").construct_document(node)


def yaml_text(value: Any) -> str:
    """Write dictionaries, lists and scalars as YAML that `parse_yaml` reads as the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=120)


class _yaml_errors:
    """Turns what PyYAML raises about syntax, and about scalars that are not what their tag says, into a UserError."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, UserError) or not isinstance(error, Exception):
            return
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        # PyYAML's constructors raise whatever int(), dates and tables of words do.
        what = problem or (str(error) if isinstance(error, ValueError | yaml.YAMLError) else "a value is not YAML")
        place = f"{self.where}:{mark.line + 1}" if mark else self.where
        raise UserError(f"{place}: {shorten(str(what), 200)}") from None


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """How many nodes a node holds with every alias written out; infinite if an alias stands for what it is part of."""
    if id(node) not in known:
        known[id(node)] = math.inf
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = isinstance(node, yaml.MappingNode)
        known[id(node)] = 1 + sum(
            _expanded(part, known) for child in children for part in (child if pairs else (child,))
        )
    return known[id(node)]


def plain_values(value: Any) -> Any:
    """Return a value with lists in place of tuples, all the way down, as YAML and JSON write them."""
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    return [plain_values(item) for item in value] if isinstance(value, list | tuple) else value


# Values with their lines, so that an error can name them.


@dataclass(frozen=True)
class YamlValue:
    """A value in a YAML file that knows its line.

    Attributes:
        file: the file
        key: dotted name of the value
        node: the value as PyYAML parsed it
    """

    file: Path
    key: str
    node: yaml.Node

    def wrong(self, problem: str) -> UserError:
        """Return an error that names the file, the line and the key."""
        return UserError(f"{self.file}:{self.node.start_mark.line + 1}: {self.key}: {problem}")

    def items(self, known: frozenset[str] | None = None) -> Iterator[tuple[str, YamlValue]]:
        """Yield the keys of a section with their values.

        Args:
            known: keys that the section may have; None allows any

        Raises:
            UserError: this is no section, or a key is unknown or given twice.
        """
        if not isinstance(self.node, yaml.MappingNode):
            raise self.wrong("must be a section of keys")
        seen: set[str] = set()
        for key, value in self.node.value:
            name = str(key.value)
            place = YamlValue(self.file, f"{self.key}.{name}".lstrip("."), value)
            at_key = YamlValue(self.file, place.key, key)
            if name in seen:
                raise at_key.wrong("duplicate key")
            if known is not None and name not in known:
                raise at_key.wrong(f"unknown key{did_you_mean(name, known)}")
            seen.add(name)
            yield name, place

    def text(self) -> str:
        """Return the value as text.

        Raises:
            UserError: it is something else, or empty.
        """
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value.strip():
            raise self.wrong("must be text")
        return str(self.node.value).strip()

    def number(self, minimum: float, maximum: float) -> float:
        """Return the value as a number within a range; YAML's text `4e12` is a number, too.

        Raises:
            UserError: it is no number, or out of range.
        """
        value = parse_number(self.text())
        if value is None:
            raise self.wrong(f"{shown(self.text())} is no number")
        if not minimum <= value <= maximum:
            raise self.wrong(f"{self.text()} is out of range; must be from {minimum:g} to {maximum:g}")
        return float(value)

    def texts(self) -> tuple[str, ...]:
        """Return the value as a list of texts.

        Raises:
            UserError: it is something else.
        """
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.wrong("must be a list of texts")
        return tuple(YamlValue(self.file, self.key, node).text() for node in self.node.value)


def read_yaml_values(path: Path) -> YamlValue:
    """Read a YAML file into values that know their lines.

    Raises:
        UserError: there is no such file, it cannot be read, it is empty, or it is no YAML.
    """
    node = compose_yaml(read_text(path, max_bytes=MAX_YAML), str(path))
    if node is None:
        raise UserError(f"{path}: is empty")
    return YamlValue(path, "", node)
