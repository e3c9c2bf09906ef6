"""Values of YAML and of the command line against the types that a configuration's fields are annotated with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from fractions import Fraction
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gossamer.errors import UserError, nearest


class _Mismatch(Exception):
    pass


def convert(value: Any, annotation: Any, key: str) -> Any:
    """Return `value` as the annotated type: whole numbers become floats, 4k and 15T become numbers, lists become
    tuples, sections of keys become dataclasses, nothing else is bent.

    Raises:
        UserError: it is of another type; the line names the key, the value and what was expected.
    """
    try:
        return _convert(value, annotation, key)
    except _Mismatch:
        raise UserError(f"{key} = {value!r}: expected {expected(annotation)}") from None


_SUFFIXED = re.compile(r"(\d+(?:\.\d+)?)([KMBGT])", re.IGNORECASE)
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


def _convert(value: Any, annotation: Any, key: str) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        for option in arguments:
            try:
                return _convert(value, option, key)
            except _Mismatch:
                continue
        raise _Mismatch
    if origin is Literal:
        if value in arguments:
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
        types = get_type_hints(annotation)
        for name in value:
            if name not in types:
                raise UserError(f"unknown key '{key}.{name}'{nearest(str(name), types)}")
        return annotation(**{name: convert(item, types[name], f"{key}.{name}") for name, item in value.items()})
    if annotation in (int, float) and isinstance(value, str) and (count := count_of(value, annotation)) is not None:
        value = count
    if annotation is float and type(value) in (int, float) and isfinite(value):
        return float(value)
    if annotation in (int, bool, str, NoneType) and type(value) is annotation:  # True is an int to isinstance
        return value
    raise _Mismatch


def expected(annotation: Any) -> str:
    """Say in words what values a type has: `a whole number`, `a list of numbers, or null` …"""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    origin, arguments = get_origin(annotation), get_args(annotation)
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
