"""Chips and prices from catalogue files: each figure with where it was read, when, and how far to trust it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from gossamer.errors import UserError, did_you_mean
from gossamer.reading import parse_number, read_text
from gossamer.typed import shown
from gossamer.yaml_files import MAX_YAML, compose_yaml

SHIPPED = Path(__file__).parent / "catalogue.yaml"
GRADES = {"vendor": 0.03, "third party": 0.10, "derived": 0.25, "assumed": 0.50}
"""How far the true figure may lie from the one that is given, as a share of it; an assumption, not measured."""

# Beyond these ranges lies no chip of these years.
_RANGES = {
    "flops": (1e9, 1e17),
    "fp8_flops": (1e9, 1e17),
    "memory": (1e8, 1e13),
    "bandwidth": (1e9, 1e15),
    "node": (1, 1e5),
    "link": (1e8, 1e14),
    "network": (1e7, 1e13),
    "power": (1, 1e5),
    "price": (1e-6, 1e5),
}
_OPTIONAL = frozenset({"fp8_flops", "power", "price"})
_FIGURE = frozenset({"value", "source", "date", "grade"})


@dataclass(frozen=True)
class Figure:
    """A figure of the catalogue.

    Attributes:
        value: The figure, in base units.
        source: Where it was read.
        date: When it was read.
        grade: One of `GRADES`.
    """

    value: float
    source: str
    date: str
    grade: str

    @property
    def error(self) -> float:
        """How far the true figure may lie from this one, as a share of it."""
        return GRADES[self.grade]


@dataclass(frozen=True)
class Chip:
    """An accelerator.

    The head of catalogue.yaml says what the figures mean and gives their units. None means that a figure is not known.

    Attributes:
        key: Its name on the command line.
        name: Its whole name.
        devices: Words of which one is in the name that PyTorch gives the device.
        flops: Rate of dense products in bfloat16.
        memory: Memory of one chip.
        bandwidth: Bandwidth of that memory.
        node: Chips that the link joins.
        link: Bandwidth of the link between them, both directions together.
        network: Bandwidth between nodes, per chip and in one direction.
        fp8_flops: Rate of dense products in FP8.
        power: Highest power of one chip.
        price: Price of one chip for an hour.
        currency: Currency of the price.
    """

    key: str
    name: str
    devices: tuple[str, ...]
    flops: Figure
    memory: Figure
    bandwidth: Figure
    node: Figure
    link: Figure
    network: Figure
    fp8_flops: Figure | None = None
    power: Figure | None = None
    price: Figure | None = None
    currency: str = "USD"

    @property
    def worst_grade(self) -> str:
        """The grade of the least certain figure among those that decide a run's time."""
        figures = (self.flops, self.memory, self.bandwidth, self.link, self.network)
        return max((figure.grade for figure in figures), key=GRADES.__getitem__)

    def is_device(self, name: str) -> bool:
        """Return whether PyTorch's name for a device is this chip's: a whole word of it, since H200 is not in GH200."""
        words = (rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])" for word in self.devices)
        return any(re.search(word, name, re.IGNORECASE) for word in words)


@dataclass(frozen=True)
class Catalogue:
    """Chips and currencies.

    Attributes:
        chips: Chips by their names on the command line.
        currencies: What a unit of each currency is worth in US dollars.
    """

    chips: Mapping[str, Chip]
    currencies: Mapping[str, Figure]

    def chip(self, key: str) -> Chip:
        """Return a chip by its name on the command line.

        Raises:
            UserError: There is none of that name.
        """
        found = self.chips.get(key.lower())
        if found is None:
            hint = did_you_mean(key.lower(), self.chips)
            raise UserError(
                f"unknown chip {key!r}{hint} (one of {', '.join(self.chips)}; --catalogue FILE adds others)"
            )
        return found

    def dollars(self, chip: Chip) -> float | None:
        """Return the price of the chip for an hour in US dollars; None if it is not known."""
        return None if chip.price is None else chip.price.value * self.currencies[chip.currency].value


def load_catalogue(extra: Sequence[Path] = ()) -> Catalogue:
    """Return the catalogue that comes with gossamer, and the user's own files, which come first.

    Args:
        extra: The user's own files.

    Raises:
        UserError: A file cannot be read, a key is unknown or missing, or a figure is absurd; with file and line.
    """
    chips: dict[str, Chip] = {}
    currencies: dict[str, Figure] = {}
    for path in (SHIPPED, *extra):
        for section, place in read_lined(path).items(frozenset({"chips", "currencies"})):
            if section == "currencies":
                currencies |= {name: _figure(item, (1e-9, 1e9))[0] for name, item in place.items()}
            else:
                chips |= {name.lower(): _chip(name.lower(), item) for name, item in place.items()}
        for chip in chips.values():
            if chip.currency not in currencies:
                known = ", ".join(currencies)
                raise UserError(f"{path}: chips.{chip.key}.price: currency {chip.currency!r} is none of {known}")
    return Catalogue(chips, currencies)


def _chip(key: str, place: Place) -> Chip:
    name, currency = key, "USD"
    devices: tuple[str, ...] = ()
    figures: dict[str, Figure] = {}
    for field, item in place.items(frozenset({"name", "devices", *_RANGES})):
        if field == "name":
            name = item.text()
        elif field == "devices":
            devices = item.texts()
        else:
            figures[field], own = _figure(item, _RANGES[field], priced=field == "price")
            currency = own or currency
    for field in _RANGES:
        if field not in figures and field not in _OPTIONAL:
            raise place.wrong(f"has no {field}")
    return Chip(key=key, name=name, devices=devices or (name,), currency=currency, **figures)


def _figure(place: Place, allowed: tuple[float, float], priced: bool = False) -> tuple[Figure, str]:
    """A figure, and its currency if it is a price."""
    items = dict(place.items(_FIGURE | ({"currency"} if priced else frozenset())))
    for field in sorted(_FIGURE):
        if field not in items:
            raise place.wrong(f"has no {field}")
    value, grade = items["value"].number(*allowed), items["grade"].text()
    if place.key.endswith(".node") and value != int(value):
        raise items["value"].wrong("must be a whole number of chips")
    if grade not in GRADES:
        raise items["grade"].wrong(f"{grade!r} is none of {', '.join(GRADES)}")
    figure = Figure(value, items["source"].text(), items["date"].text(), grade)
    return figure, items["currency"].text() if "currency" in items else ""


# YAML whose values know the line that they stand on, so that an error can name it.


@dataclass(frozen=True)
class Place:
    """A value in a YAML file.

    Attributes:
        file: The file.
        key: Dotted name of the value.
        node: What stands there.
    """

    file: Path
    key: str
    node: yaml.Node

    def wrong(self, problem: str) -> UserError:
        """Return an error that names the file, the line and the key."""
        return UserError(f"{self.file}:{self.node.start_mark.line + 1}: {self.key}: {problem}")

    def items(self, known: frozenset[str] | None = None) -> Iterator[tuple[str, Place]]:
        """Yield the keys of a section with their values.

        Args:
            known: Keys that the section may have; None allows any.

        Raises:
            UserError: This is no section, or a key is unknown or stands there twice.
        """
        if not isinstance(self.node, yaml.MappingNode):
            raise self.wrong("must be a section of keys")
        seen: set[str] = set()
        for key, value in self.node.value:
            name = str(key.value)
            place = Place(self.file, f"{self.key}.{name}".lstrip("."), value)
            at_key = Place(self.file, place.key, key)
            if name in seen:
                raise at_key.wrong("duplicate key")
            if known is not None and name not in known:
                raise at_key.wrong(f"unknown key{did_you_mean(name, known)}")
            seen.add(name)
            yield name, place

    def text(self) -> str:
        """Return the value as text.

        Raises:
            UserError: It is something else, or empty.
        """
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value.strip():
            raise self.wrong("must be text")
        return str(self.node.value).strip()

    def number(self, minimum: float, maximum: float) -> float:
        """Return the value as a number within a range; YAML's text `4e12` is a number, too.

        Raises:
            UserError: It is no number, or out of range.
        """
        value = parse_number(self.text())
        if value is None:
            raise self.wrong(f"{shown(self.text())} is no number")
        if not minimum <= value <= maximum:
            raise self.wrong(f"{self.text()} is absurd; must be from {minimum:g} to {maximum:g}")
        return float(value)

    def texts(self) -> tuple[str, ...]:
        """Return the value as a list of texts.

        Raises:
            UserError: It is something else.
        """
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.wrong("must be a list of texts")
        return tuple(Place(self.file, self.key, node).text() for node in self.node.value)


def read_lined(path: Path) -> Place:
    """Read the whole of a YAML file.

    Raises:
        UserError: There is no such file, it cannot be read, it is empty, or it is no YAML.
    """
    node = compose_yaml(read_text(path, max_bytes=MAX_YAML), str(path))
    if node is None:
        raise UserError(f"{path}: is empty")
    return Place(path, "", node)
