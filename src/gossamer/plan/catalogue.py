"""Chips and prices from catalogue files: each figure with where it was read, when, and how far to trust it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gossamer.errors import UserError, did_you_mean
from gossamer.plan.lined_yaml import Place, read_lined

SHIPPED = Path(__file__).parent / "catalogue.yaml"
# How far the true figure may lie from the one that is given, as a share of it: taken, not measured.
GRADES = {"vendor": 0.03, "third party": 0.10, "derived": 0.25, "assumed": 0.50}
# What no chip of these years has less or more of.
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
        value: in base units
        source, date: where and when it was read
        grade: one of GRADES
    """

    value: float
    source: str
    date: str
    grade: str

    @property
    def error(self) -> float:
        """How far the truth may be from it, as a share."""
        return GRADES[self.grade]


@dataclass(frozen=True)
class Chip:
    """An accelerator; see the head of catalogue.yaml for the figures' units.

    Attributes:
        key: its name on the command line
        name: its whole name
        devices: words of which one is in the name that PyTorch gives the device
        flops, fp8_flops, memory, bandwidth, node, link, network, power, price: figures; None: not known
        currency: of the price
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
        """The grade of the least certain of the figures that decide a run's time."""
        figures = (self.flops, self.memory, self.bandwidth, self.link, self.network)
        return max((figure.grade for figure in figures), key=GRADES.__getitem__)

    def is_device(self, name: str) -> bool:
        """Whether PyTorch's name for a device is this chip's: a whole word of it, as H200 is not in GH200."""
        words = (rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])" for word in self.devices)
        return any(re.search(word, name, re.IGNORECASE) for word in words)


@dataclass(frozen=True)
class Catalogue:
    """Chips by name, and what a unit of each currency is in US dollars."""

    chips: Mapping[str, Chip]
    currencies: Mapping[str, Figure]

    def chip(self, key: str) -> Chip:
        """A chip by its name on the command line.

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
        """Price of the chip for an hour, in US dollars."""
        return None if chip.price is None else chip.price.value * self.currencies[chip.currency].value


def load_catalogue(extra: Sequence[Path] = ()) -> Catalogue:
    """The catalogue that comes with gossamer, and the user's own files before it.

    Raises:
        UserError: a file that cannot be read, an unknown or missing key, or an absurd figure; with file and line.
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
    """A figure, and the currency of one that is a price."""
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
