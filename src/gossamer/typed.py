"""Values of YAML, JSON and of the command line against the types and ranges that a configuration's fields declare.

A field says what it may be in its annotation, `steps: Annotated[int, Range(1, 10**12)] = 1000`; `check_fields` holds a
dataclass to that when it is made, whoever makes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from fractions import Fraction
from functools import lru_cache
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from gossamer.errors import UserError, nearest, shorten

__all__ = ["Range", "check_fields", "convert", "count_of", "expected", "shown"]

_LONGEST = 60  # characters of a value in a message


@dataclass(frozen=True)
class Range:
    """The numbers that a value may be, both ends among them.

    Attributes:
        least: the smallest
        most: the largest
        above: `least` itself is none of them
        below: `most` itself is none of them
    """

    least: float
    most: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        enough = value > self.least if self.above else value >= self.least
        return enough and (value < self.most if self.below else value <= self.most)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """The same for what `reading.checked` reads."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._held, handler(source))

    def _held(self, value: float) -> float:
        if value not in self:
            raise ValueError(f"must be {self}")
        return value

    def __str__(self) -> str:
        least = f"above {_digits(self.least)}" if self.above else f"from {_digits(self.least)}"
        if self.below:
            return f"{least} and below {_digits(self.most)}" if self.above else f"{least} to below {_digits(self.most)}"
        return f"{least} and at most {_digits(self.most)}" if self.above else f"{least} to {_digits(self.most)}"


class _Mismatch(Exception):
    pass


_SUFFIXED = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)([KMBGT])", re.IGNORECASE | re.ASCII)
_MULTIPLES = {"K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


def count_of(text: str, annotation: Any) -> int | float | None:
    """The number that a text such as 300B, 1.5M or 4k stands for, where a number is expected; None for other texts."""
    kinds = {annotation, *get_args(annotation)}
    found = _SUFFIXED.fullmatch(text)
    if found is None or not kinds & {int, float}:
        return None
    exact = Fraction(found[1]) * _MULTIPLES[found[2].upper()]
    if exact.denominator == 1:
        return int(exact)
    return float(exact) if float in kinds else None


def convert(value: Any, annotation: Any, key: str) -> Any:
    """Return `value` as the annotated type: whole numbers become floats, lists become tuples, sections of keys become
    dataclasses, nothing else is bent.

    Raises:
        UserError: it is of another type, or out of the declared range; the line names the key, the value and what was
            expected.
    """
    try:
        return _convert(value, annotation, key)
    except _Mismatch:
        raise UserError(f"{key} = {shown(value)}: expected {expected(annotation)}") from None


def check_fields(instance: Any, prefix: str = "") -> None:
    """Hold the fields of a dataclass, frozen or not, to what they declare, and make them the types that they declare.

    Args:
        instance: the dataclass
        prefix: what stands before a field's name in messages

    Raises:
        UserError: as `convert`.
    """
    kind: Any = type(instance)
    for name, annotation in _hints(kind).items():
        value = getattr(instance, name)
        object.__setattr__(instance, name, convert(value, annotation, prefix + name))


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _convert(value: Any, annotation: Any, key: str) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        found = _convert(value, arguments[0], key)
        for allowed in arguments[1:]:
            if isinstance(allowed, Range) and found not in allowed:
                raise UserError(f"{key} = {shown(value)}: must be {allowed}")
        return found
    if origin in (Union, UnionType):
        for option in arguments:
            try:
                return _convert(value, option, key)
            except _Mismatch:
                continue
        raise _Mismatch
    if origin is Literal:
        if isinstance(value, str | int) and value in arguments:
            return value
        raise _Mismatch
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _Mismatch
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            raise _Mismatch
        return tuple(_convert(item, kind, key) for item, kind in zip(value, kinds, strict=True))
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise _Mismatch
        return {name: convert(item, arguments[1], f"{key}.{name}") for name, item in value.items()}
    if is_dataclass(annotation) and isinstance(annotation, type):
        if isinstance(value, annotation):
            return value
        if not isinstance(value, Mapping):
            raise _Mismatch
        types = _hints(annotation)
        for name in value:
            if name not in types:
                raise UserError(f"unknown key '{key}.{name}'{nearest(str(name), types)}")
        return annotation(**{name: convert(item, types[name], f"{key}.{name}") for name, item in value.items()})
    if annotation is float and type(value) in (int, float):
        try:
            number = float(value) + 0.0  # no zero has a sign
        except OverflowError:
            raise _Mismatch from None
        if isfinite(number):
            return number
        raise _Mismatch
    if annotation in (int, bool, str, NoneType) and type(value) is annotation:  # True is an int to isinstance
        return value
    if annotation is Path and isinstance(value, Path):
        return value
    raise _Mismatch


def expected(annotation: Any) -> str:
    """Say in words what values a type has: `a whole number`, `a list of numbers, or null` …"""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    names[Path] = "a path"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return expected(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(expected(option) for option in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in arguments)
    if origin is tuple:
        count = "a list, each" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}, each"
        return f"{count} {expected(arguments[0])}"
    if origin is dict:
        return f"names, each with {expected(arguments[1])}"
    if is_dataclass(annotation):
        return "a section of " + ", ".join(get_type_hints(annotation))
    return names[annotation]


def shown(value: Any) -> str:
    """A value as a message shows it, short whatever it is."""
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return shorten(text, _LONGEST)


def _digits(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**13 else f"{value:g}"
