"""Names that a package exports and imports only when they are first used, so that importing the package stays cheap."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy_exports"]


def lazy_exports(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package (PEP 562) whose exports are imported on first use.

    The package imports the same names under `TYPE_CHECKING`, for type checkers, and lists them in `__all__`, which is
    what `dir()` shows.

    Args:
        package: its `__name__`
        modules: for each name the module that defines it

    Returns:
        The two functions, to be assigned under these names.
    """

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted(sys.modules[package].__all__)
