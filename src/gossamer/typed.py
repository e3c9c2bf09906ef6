"""What a field of a configuration declares, and how a value is held to it.

A field declares its type, its range and whatever else the program has to know of it in its annotation::

    seconds: Annotated[float, Range(0, 10**10), Unit("seconds"), RESUMABLE] = 0.0

`check_fields` holds a dataclass to that when it is made, whoever makes it: a recipe in YAML, the command line, a
config.json or a line of Python. `gossamer/options.py` reads the same annotations to make flags and help of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from gossamer.errors import FieldError, UnknownKeyError, UserError, did_you_mean, shorten

__all__ = [
    "PYTHON_ONLY",
    "RESUMABLE",
    "SET_BY_BUDGET",
    "Flag",
    "Formerly",
    "Help",
    "Metavar",
    "Range",
    "Unit",
    "check_fields",
    "convert",
    "expected",
    "hints_of",
    "metadata_of",
    "parse_suffixed_number",
    "reject_unknown_fields",
    "shown",
]

T = TypeVar("T")

_MAX_SHOWN = 60  # characters of a value in a message


# What an annotation can give beside the type.


@dataclass(frozen=True)
class Range:
    """The numbers that a value may be: an interval with both its ends, unless they are said to lie outside.

    Attributes:
        minimum: the smallest number
        maximum: the largest number; infinite where there is no largest
        excludes_minimum: whether the minimum itself lies outside
        excludes_maximum: whether the maximum itself lies outside
    """

    minimum: float
    maximum: float
    excludes_minimum: bool = False
    excludes_maximum: bool = False

    def __contains__(self, value: float) -> bool:
        is_large_enough = value > self.minimum if self.excludes_minimum else value >= self.minimum
        return is_large_enough and (value < self.maximum if self.excludes_maximum else value <= self.maximum)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Hold the files that `reading.checked` reads to the same range."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._validated, handler(source))

    def _validated(self, value: float) -> float:
        if value not in self:
            raise ValueError(f"must be {self}")
        return value

    def __str__(self) -> str:
        if self.maximum == math.inf:
            return f"above {_digits(self.minimum)}" if self.excludes_minimum else f"{_digits(self.minimum)} or more"
        minimum = f"above {_digits(self.minimum)}" if self.excludes_minimum else f"from {_digits(self.minimum)}"
        maximum = _digits(self.maximum)
        if self.excludes_maximum:
            return f"{minimum} and below {maximum}" if self.excludes_minimum else f"{minimum} to below {maximum}"
        return f"{minimum} and at most {maximum}" if self.excludes_minimum else f"{minimum} to {maximum}"


class TextMetadata:
    """A word or sentence that an annotation gives beside the type."""

    def __init__(self, text: str) -> None:
        self.text = text


class Unit(TextMetadata):
    """The unit that a number is given in, in the plural: `Unit("seconds")`."""


class Metavar(TextMetadata):
    """The word that stands for a value in the help, where neither its unit nor its name says enough: `PATH`."""


class Flag(TextMetadata):
    """A short flag that a value of a recipe has beside its dotted one: `Flag("data")` makes --data of corpus.paths."""


class Help(TextMetadata):
    """What the help says about an option that several verbs have in common, in place of their docstrings."""


class Formerly:
    """Names that a field had in earlier releases: `Formerly("best_by")`.

    A recipe and the config.yaml of a run may still use them. A flag may not, and is told the new name.
    """

    def __init__(self, *names: str) -> None:
        self.names = names


class Marker:
    """A property that a field either has or has not."""


RESUMABLE = Marker()
"""`gossamer train --resume` may change the value: how long the run is, what it reports, where it runs."""

SET_BY_BUDGET = Marker()
"""`gossamer train --budget` decides the value."""

PYTHON_ONLY = Marker()
"""The value can be set from Python, and has no flag."""


def metadata_of(annotation: Any) -> list[Any]:
    """Return everything that an annotation gives beside the type, that of the parts of a union or a tuple included."""
    if get_origin(annotation) is Literal:
        return []
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return [*metadata_of(inner), *metadata]
    return [item for part in get_args(annotation) for item in metadata_of(part)]


# Values and their types.


class _Mismatch(Exception):
    """A value is of another type than it should be."""


_SUFFIXED = re.compile(r"(\d{1,30})(?:\.(\d{1,30}))?([KMBGT])", re.IGNORECASE | re.ASCII)
_MULTIPLES = {"K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


def parse_suffixed_number(text: str, annotation: Any) -> int | float | None:
    """Return the number that a text such as 300B, 1.5M or 4k stands for.

    Args:
        text: what was written
        annotation: the type that is wanted; only where it has a number among its values is such a text a number

    Returns:
        The number, or None if the text is no such number.
    """
    kinds = _simple_kinds(annotation)
    found = _SUFFIXED.fullmatch(text)
    if found is None or not kinds & {int, float}:
        return None
    whole, decimals, letter = found[1], found[2] or "", found[3].upper()
    exact, divisor = int(whole + decimals) * _MULTIPLES[letter], 10 ** len(decimals)
    if exact % divisor == 0:
        return exact // divisor
    return exact / divisor if float in kinds else None


def _simple_kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is a union of, without what it says of their ranges."""
    if get_origin(annotation) is Annotated:
        return _simple_kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(_simple_kinds, get_args(annotation)))
    return {annotation}


def convert(value: Any, annotation: Any, name: str) -> Any:
    """Return a value as the annotated type.

    Whole numbers become floats, lists become tuples and sections of keys become dataclasses. No other conversion is
    made.

    Args:
        value: as YAML, JSON or Python has it
        annotation: the type, with a `Range` where it has one
        name: of the value, for the message

    Raises:
        FieldError: the value is of another type, or out of range; the line says what was expected.
    """
    try:
        return _convert(value, annotation, name)
    except _Mismatch:
        raise FieldError(
            name, f" = {shown(value)}: expected {expected(annotation)}{_nearest(value, annotation)}"
        ) from None


def _nearest(value: Any, annotation: Any) -> str:
    """The hint that names which of a few words was probably meant."""
    words = [word for kind in _simple_kinds(annotation) if get_origin(kind) is Literal for word in get_args(kind)]
    return did_you_mean(value, map(str, words)) if isinstance(value, str) else ""


def reject_unknown_fields(kind: type[T]) -> type[T]:
    """Decorate a dataclass so that a keyword which no field has is refused with the name that was probably meant."""
    construct = kind.__init__

    @functools.wraps(construct)
    def checked(self: T, *values: Any, **named: Any) -> None:
        known = [field.name for field in dataclasses.fields(cast(Any, kind))]
        for name in named:
            if name not in known:
                raise UserError(f"{kind.__name__} has no {name!r}{_instead(name, kind, known)}")
        construct(self, *values, **named)

    kind.__init__ = checked  # type: ignore[assignment]
    return kind


def _instead(name: str, kind: Any, known: list[str]) -> str:
    """The hint that names the field that was meant: the one that had the name before, or one like it."""
    for field, annotation in hints_of(kind).items():
        if any(isinstance(item, Formerly) and name in item.names for item in metadata_of(annotation)):
            return f"; it is now called {field!r}"
    return did_you_mean(name, known) or f" (there are {', '.join(known)})"


def check_fields(instance: Any, except_for: Collection[str] = ()) -> None:
    """Hold the fields of a dataclass, frozen or not, to what they declare, and make them the types that they declare.

    Args:
        instance: the dataclass
        except_for: names of fields that it checks by itself

    Raises:
        FieldError: see `convert`.
    """
    kind: Any = type(instance)
    for name, annotation in hints_of(kind).items():
        if name not in except_for:
            object.__setattr__(instance, name, convert(getattr(instance, name), annotation, name))


@functools.lru_cache
def hints_of(kind: Any) -> dict[str, Any]:
    """The annotations of a dataclass or a function, with what they say beside the types."""
    return get_type_hints(kind, include_extras=True)


def _convert(value: Any, annotation: Any, name: str) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        converted = _convert(value, arguments[0], name)
        for item in arguments[1:]:
            if isinstance(item, Range) and converted not in item:
                raise FieldError(name, f" = {shown(value)}: must be {item}")
        return converted
    if origin in (Union, UnionType):
        for option in arguments:
            try:
                return _convert(value, option, name)
            except _Mismatch:
                continue
        raise _Mismatch
    if origin is Literal:
        if isinstance(value, str | int) and value in arguments:
            return value
        raise _Mismatch
    if origin is tuple:
        return _convert_list(value, arguments, name)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _Mismatch
        return {key: convert(item, arguments[1], f"{name}.{key}") for key, item in value.items()}
    if is_dataclass(annotation) and isinstance(annotation, type):
        return _convert_section(value, annotation, name)
    if annotation is float and type(value) in (int, float):
        try:
            number = float(value) + 0.0  # no zero has a sign
        except OverflowError:
            raise _Mismatch from None
        if math.isfinite(number):
            return number
        raise _Mismatch
    if annotation in (int, bool, str, NoneType) and type(value) is annotation:  # True is an int to isinstance
        return value
    if annotation is Path and isinstance(value, Path):
        return value
    raise _Mismatch


def _convert_list(value: Any, kinds: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _Mismatch
    kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
    if len(kinds) != len(value):
        raise _Mismatch
    return tuple(_convert(item, kind, name) for item, kind in zip(value, kinds, strict=True))


def _convert_section(value: Any, section: type, name: str) -> Any:
    if isinstance(value, section):
        return value
    if not isinstance(value, Mapping):
        raise _Mismatch
    known = hints_of(section)
    for key in value:
        if key not in known:
            raise UnknownKeyError(f"{name}.{key}", did_you_mean(str(key), known))
    try:
        return section(**value)
    except FieldError as error:
        raise error.inside(name) from None


def expected(annotation: Any) -> str:
    """Say in words which values a type has: `a whole number`, `a list, each a number`, `text or null`."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    names[Path] = "a path"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return expected(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(expected(option) for option in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in arguments) if len(arguments) > 1 else str(arguments[0])
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
    return shorten(text, _MAX_SHOWN)


def _digits(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**13 else f"{value:g}"
