"""Options: what a dataclass or a verb of the command line lets its user choose, read from its own declaration.

The name, the type, the default and all that `gossamer/typed.py` can say stand in a field or a parameter; the sentence
of help stands in the docstring, under `Attributes:` or `Args:`. The command line, its help, what --resume may change,
what --budget decides and docs/options.md all follow from these declarations.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, is_dataclass
from functools import lru_cache
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from gossamer.typed import (
    PYTHON_ONLY,
    RESUMABLE,
    SET_BY_BUDGET,
    Flag,
    Formerly,
    Help,
    Range,
    Unit,
    hints_of,
    metadata_of,
)

__all__ = ["Option", "description_of", "documented", "options_of", "plain_type", "without_none"]

M = TypeVar("M")


@dataclass(frozen=True)
class Option:
    """One value that a user may choose.

    Attributes:
        name: of the field or parameter, with a dot after each section that it lies in
        annotation: the declared type, with all that it says beside
        default: the value if the user chooses none; `MISSING` if the user has to
        owner: the dataclass or function that declares it
    """

    name: str
    annotation: Any
    default: Any
    owner: Any

    @property
    def help(self) -> str:
        """The sentence that the docstring says about it."""
        shared = self.metadata(Help)
        return shared.text if shared is not None else documented(self.owner)[self.name.rpartition(".")[2]]

    @property
    def range(self) -> Range | None:
        """The numbers that it may be; None where it is no number."""
        return self.metadata(Range)

    @property
    def unit(self) -> str:
        """The unit that it is given in, in the plural; empty where it has none."""
        unit = self.metadata(Unit)
        return "" if unit is None else unit.text

    @property
    def short_flag(self) -> str:
        """Its flag without the section, empty where there is none."""
        flag = self.metadata(Flag)
        return "" if flag is None else flag.text

    @property
    def former_names(self) -> tuple[str, ...]:
        """Its names in earlier releases, dotted as its own is."""
        former = self.metadata(Formerly)
        section = self.name.rpartition(".")[0]
        return () if former is None else tuple(f"{section}.{name}".lstrip(".") for name in former.names)

    @property
    def is_resumable(self) -> bool:
        """Whether --resume may change it."""
        return RESUMABLE in metadata_of(self.annotation)

    @property
    def is_set_by_budget(self) -> bool:
        """Whether --budget decides it."""
        return SET_BY_BUDGET in metadata_of(self.annotation)

    @property
    def has_flag(self) -> bool:
        """Whether it can be chosen on the command line."""
        return PYTHON_ONLY not in metadata_of(self.annotation)

    def metadata(self, kind: type[M]) -> M | None:
        """The first thing of a kind that its annotation says; None if it says none."""
        return next((item for item in metadata_of(self.annotation) if isinstance(item, kind)), None)


def options_of(owner: Any, section: str = "") -> dict[str, Option]:
    """The options that a dataclass or a function declares, by name.

    Args:
        owner: the dataclass, or the function
        section: name to put before theirs, with a dot
    """
    defaults = _field_defaults(owner) if is_dataclass(owner) else _parameter_defaults(owner)
    options = {}
    for name, default in defaults.items():
        dotted = f"{section}.{name}" if section else name
        options[dotted] = Option(dotted, hints_of(owner)[name], default, owner)
    return options


def _field_defaults(owner: Any) -> dict[str, Any]:
    return {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in dataclasses.fields(owner)
    }


def _parameter_defaults(owner: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(owner).parameters.values()
    return {item.name: MISSING if item.default is item.empty else item.default for item in parameters}


@lru_cache
def documented(owner: Any) -> dict[str, str]:
    """What a docstring says about each field or parameter."""
    from docstring_parser import parse  # only help asks for it

    described = parse(inspect.getdoc(owner) or "").params
    return {item.arg_name: " ".join((item.description or "").replace("`", "").split()) for item in described}


def description_of(owner: Any) -> list[str]:
    """The paragraphs of a docstring before its first section."""
    from docstring_parser import parse

    parsed = parse(inspect.getdoc(owner) or "")
    paragraphs = [parsed.short_description or "", *(parsed.long_description or "").split("\n\n")]
    return [" ".join(text.replace("`", "").split()) for text in paragraphs if text]


def plain_type(annotation: Any) -> Any:
    """A type without what its annotation says beside, of its outermost level."""
    return plain_type(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def without_none(annotation: Any) -> Any:
    """The type of an optional value when it is not None; other types as they are."""
    annotation = plain_type(annotation)
    if get_origin(annotation) in (tuple, dict, Literal):
        return annotation
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return plain_type(kinds[0]) if NoneType in get_args(annotation) and len(kinds) == 1 else annotation
