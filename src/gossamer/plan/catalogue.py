"""Chips and prices from catalogue files: each figure with where it was read, when, and how far to trust it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gossamer.errors import UserError, did_you_mean
from gossamer.yaml_files import YamlValue, read_yaml_values

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
        value: the figure, in base units
        source: where it was read
        date: when it was read
        grade: one of `GRADES`
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
        key: its name on the command line
        name: its whole name
        devices: words of which one is in the name that PyTorch gives the device
        flops: rate of dense products in bfloat16
        memory: memory of one chip
        bandwidth: bandwidth of that memory
        node: chips that the link joins
        link: bandwidth of the link between them, both directions together
        network: bandwidth between nodes, per chip and in one direction
        fp8_flops: rate of dense products in FP8
        power: highest power of one chip
        price: price per chip-hour
        currency: currency of the price
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
        chips: chips by their names on the command line
        currencies: what a unit of each currency is worth in US dollars
    """

    chips: Mapping[str, Chip]
    currencies: Mapping[str, Figure]

    def chip(self, key: str) -> Chip:
        """Return a chip by its name on the command line.

        Raises:
            UserError: there is none of that name.
        """
        found = self.chips.get(key.lower())
        if found is None:
            hint = did_you_mean(key.lower(), self.chips)
            raise UserError(
                f"unknown chip {key!r}{hint} (one of {', '.join(self.chips)}; --catalogue FILE adds others)"
            )
        return found

    def dollars(self, chip: Chip) -> float | None:
        """Return the price of the chip in US dollars per hour; None if it is not known."""
        return None if chip.price is None else chip.price.value * self.currencies[chip.currency].value


def load_catalogue(extra: Sequence[Path] = ()) -> Catalogue:
    """Return the catalogue that comes with gossamer, and the user's own files, which come first.

    Args:
        extra: the user's own files

    Raises:
        UserError: a file cannot be read, a key is unknown or missing, or a figure is out of range; with file and line.
    """
    chips: dict[str, Chip] = {}
    currencies: dict[str, Figure] = {}
    for path in (SHIPPED, *extra):
        for title, section in read_yaml_values(path).items(frozenset({"chips", "currencies"})):
            if title == "currencies":
                currencies |= {name: _figure(item, (1e-9, 1e9))[0] for name, item in section.items()}
            else:
                chips |= {name.lower(): _chip(name.lower(), item) for name, item in section.items()}
        for chip in chips.values():
            if chip.currency not in currencies:
                known = ", ".join(currencies)
                raise UserError(f"{path}: chips.{chip.key}.price: currency {chip.currency!r} is none of {known}")
    return Catalogue(chips, currencies)


def _chip(key: str, section: YamlValue) -> Chip:
    name, currency = key, "USD"
    devices: tuple[str, ...] = ()
    figures: dict[str, Figure] = {}
    for field, item in section.items(frozenset({"name", "devices", *_RANGES})):
        if field == "name":
            name = item.text()
        elif field == "devices":
            devices = item.texts()
        else:
            figures[field], own = _figure(item, _RANGES[field], priced=field == "price")
            currency = own or currency
    for field in _RANGES:
        if field not in figures and field not in _OPTIONAL:
            raise section.wrong(f"has no {field}")
    return Chip(key=key, name=name, devices=devices or (name,), currency=currency, **figures)


def _figure(section: YamlValue, allowed: tuple[float, float], priced: bool = False) -> tuple[Figure, str]:
    """A figure, and its currency if it is a price."""
    items = dict(section.items(_FIGURE | ({"currency"} if priced else frozenset())))
    for field in sorted(_FIGURE):
        if field not in items:
            raise section.wrong(f"has no {field}")
    value, grade = items["value"].number(*allowed), items["grade"].text()
    if section.key.endswith(".node") and value != int(value):
        raise items["value"].wrong("must be a whole number of chips")
    if grade not in GRADES:
        raise items["grade"].wrong(f"{grade!r} is none of {', '.join(GRADES)}")
    figure = Figure(value, items["source"].text(), items["date"].text(), grade)
    return figure, items["currency"].text() if "currency" in items else ""
