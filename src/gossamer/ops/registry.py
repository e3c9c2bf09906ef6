"""One operation, several implementations: which one runs, and how to force another.

The choice is made by the device that the tensors are on, the first registered implementation that can run there
winning. `GOSSAMER_OPS="delta_rule=reference,short_conv=reference"` or `forced(delta_rule="reference")` overrides it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from gossamer.errors import UserError, did_you_mean

OPERATIONS: dict[str, Operation] = {}
_FORCED: dict[str, str] = {}


@dataclass(frozen=True)
class Implementation:
    """A way to compute an operation.

    `obstacle(device)` says why it cannot run there, or "" if it can. Where `unasked(device)` is false it runs only when
    it is forced: it can, but is not what anybody would want there.
    """

    name: str
    function: Callable[..., Any]
    obstacle: Callable[[torch.device], str]
    unasked: Callable[[torch.device], bool] = lambda device: True


def anywhere(device: torch.device) -> str:
    """The obstacle of an implementation through PyTorch's own functions: none."""
    return ""


class Operation:
    """A named operation with its implementations, best first; one that no gradient passes does not `train`."""

    def __init__(self, name: str, trains: bool = True) -> None:
        self.name, self.trains = name, trains
        self.implementations: list[Implementation] = []
        OPERATIONS[name] = self

    def register(
        self,
        name: str,
        obstacle: Callable[[torch.device], str] = anywhere,
        unasked: Callable[[torch.device], bool] = lambda device: True,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Add an implementation behind those already registered."""

        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            self.implementations.append(Implementation(name, function, obstacle, unasked))
            return function

        return add

    def choose(self, device: torch.device) -> Implementation:
        """The implementation that runs on `device`.

        Raises:
            UserError: the forced one is unknown or cannot run there.
        """
        able = [candidate for candidate in self.implementations if not candidate.obstacle(device)]
        wanted = _FORCED.get(self.name) or _from_environment().get(self.name)
        if wanted is None:
            return next(candidate for candidate in able if candidate.unasked(device))
        names = ", ".join(candidate.name for candidate in able)
        for candidate in self.implementations:
            if candidate.name == wanted:
                if reason := candidate.obstacle(device):
                    raise UserError(f"{self.name} cannot run as {wanted!r} on {device}: {reason}; able here: {names}")
                return candidate
        raise UserError(f"{self.name} has no implementation {wanted!r}; able here: {names}")

    def through_pytorch(self) -> Implementation:
        """The best implementation that needs nothing but PyTorch."""
        return next(candidate for candidate in self.implementations if candidate.obstacle is anywhere)

    def __call__(self, device: torch.device, *args: Any) -> Any:
        """Run it. Autocast ends here: an implementation decides itself what it computes in."""
        function = self.choose(device).function
        if not torch.is_autocast_enabled(device.type):
            return function(*args)
        with torch.autocast(device.type, enabled=False):
            return function(*args)


def deferred(module: str, function: str) -> Callable[..., Any]:
    """A function that imports the module of the one it stands for when it is first called.

    For implementations whose libraries take long to import, or are not everywhere.
    """

    def call(*args: Any) -> Any:
        return getattr(import_module(module), function)(*args)

    call.__module__ = module  # where to look
    return call


def autocast_input(x: torch.Tensor) -> torch.Tensor:
    """What autocast would make of the left operand of a product."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


@contextmanager
def forced(**choice: str) -> Iterator[None]:
    """Inside this context the named operations run as told: `forced(delta_rule="reference")`."""
    _check_names(choice)
    before = dict(_FORCED)
    _FORCED.update(choice)
    try:
        yield
    finally:
        _FORCED.clear()
        _FORCED.update(before)


def _from_environment() -> dict[str, str]:
    text = os.environ.get("GOSSAMER_OPS", "")
    if not text:
        return {}
    pairs = [pair.partition("=") for pair in text.split(",")]
    for name, equals, value in pairs:
        if not equals or not value:
            raise UserError(f"GOSSAMER_OPS: {name!r} is not of the form operation=implementation")
    choice = {name.strip(): value.strip() for name, _, value in pairs}
    _check_names(choice)
    return choice


def _check_names(choice: dict[str, str]) -> None:
    for name in choice:
        if name not in OPERATIONS:
            raise UserError(
                f"unknown operation {name!r}{did_you_mean(name, OPERATIONS)}; known: {', '.join(OPERATIONS)}"
            )
