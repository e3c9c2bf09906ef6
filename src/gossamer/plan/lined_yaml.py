"""YAML whose values know the line they stand on, so that a wrong one can be named with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from gossamer.errors import UserError, did_you_mean
from gossamer.reading import parse_number, read_text
from gossamer.typed import shown
from gossamer.yaml_files import MAX_YAML, compose_yaml


@dataclass(frozen=True)
class Place:
    """A value in a file.

    Attributes:
        file: the file
        key: dotted name of the value
        node: what stands there
    """

    file: Path
    key: str
    node: yaml.Node

    def wrong(self, problem: str) -> UserError:
        """An error that names file, line and field."""
        return UserError(f"{self.file}:{self.node.start_mark.line + 1}: {self.key}: {problem}")

    def items(self, known: frozenset[str] | None = None) -> Iterator[tuple[str, Place]]:
        """The keys of a section with their values; `known` are those it may have."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.wrong("must be a section of keys")
        seen: set[str] = set()
        for key, value in self.node.value:
            name = str(key.value)
            place = Place(self.file, f"{self.key}.{name}".lstrip("."), value)
            at_key = Place(self.file, place.key, key)
            if name in seen:
                raise at_key.wrong("stands twice")
            if known is not None and name not in known:
                raise at_key.wrong(f"unknown key{did_you_mean(name, known)}")
            seen.add(name)
            yield name, place

    def text(self) -> str:
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value.strip():
            raise self.wrong("must be text")
        return str(self.node.value).strip()

    def number(self, least: float, most: float) -> float:
        """A number between two others; YAML's text `4e12` is one too."""
        value = parse_number(self.text())
        if value is None:
            raise self.wrong(f"{shown(self.text())} is no number")
        if not least <= value <= most:
            raise self.wrong(f"{self.text()} is absurd; must be from {least:g} to {most:g}")
        return float(value)

    def texts(self) -> tuple[str, ...]:
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.wrong("must be a list of texts")
        return tuple(Place(self.file, self.key, node).text() for node in self.node.value)


def read_lined(path: Path) -> Place:
    """The whole of a YAML file.

    Raises:
        UserError: there is none, it cannot be read, or it is no YAML.
    """
    node = compose_yaml(read_text(path, max_bytes=MAX_YAML), str(path))
    if node is None:
        raise UserError(f"{path}: is empty")
    return Place(path, "", node)
