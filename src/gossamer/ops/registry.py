"""Registry of the operations' implementations: which one runs, and how to force another.

The device of the tensors decides: the first registered implementation that can run there is chosen. An environment
variable, `GOSSAMER_OPS="delta_rule=reference,short_conv=reference"`, or `forced(delta_rule="reference")` overrides it.
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
_RENAMED = {"draw": "sample_tokens", "few_rows": "small_linear"}  # operations' former names


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
        name: the implementation's name, as `forced` and `GOSSAMER_OPS` take it
        function: computes the operation
        obstacle: says why the implementation cannot run on a device, or "" if it can
        is_default: whether it may be chosen on a device; where this is false, it runs there only when it is forced
    """

    name: str
    function: Callable[..., Any]
    obstacle: Callable[[torch.device], str]
    is_default: Callable[[torch.device], bool] = lambda device: True


def no_obstacle(device: torch.device) -> str:
    """Return "", because an implementation by PyTorch's own functions runs on every device."""
    return ""


class Operation:
    """A named operation with its implementations, best first.

    Attributes:
        name: the operation's name
        has_gradient: whether the operation has a gradient, as those of training have
        implementations: the operation's implementations in the order of preference
    """

    def __init__(self, name: str, has_gradient: bool = True) -> None:
        self.name, self.has_gradient = name, has_gradient
        self.implementations: list[Implementation] = []
        OPERATIONS[name] = self

    def register(
        self,
        name: str,
        function: Callable[..., Any],
        obstacle: Callable[[torch.device], str] = no_obstacle,
        is_default: Callable[[torch.device], bool] = lambda device: True,
    ) -> None:
        """Add an implementation after those already registered; see `Implementation` for the arguments."""
        self.implementations.append(Implementation(name, function, obstacle, is_default))

    def choose(self, device: torch.device) -> Implementation:
        """Return the implementation that runs on `device`.

        Raises:
            UserError: the forced implementation is unknown or cannot run there.
        """
        able = [candidate for candidate in self.implementations if not candidate.obstacle(device)]
        wanted = _FORCED.get(self.name) or _from_environment().get(self.name)
        if wanted is None:
            return next(candidate for candidate in able if candidate.is_default(device))
        names = ", ".join(candidate.name for candidate in able)
        for candidate in self.implementations:
            if candidate.name == wanted:
                if reason := candidate.obstacle(device):
                    raise UserError(
                        f"{self.name} cannot run as {wanted!r} on {device}: {reason}; available here: {names}"
                    )
                return candidate
        raise UserError(f"{self.name} has no implementation {wanted!r}; available here: {names}")

    def pytorch_implementation(self) -> Implementation:
        """Return the best implementation that needs nothing but PyTorch."""
        return next(candidate for candidate in self.implementations if candidate.obstacle is no_obstacle)

    def __call__(self, device: torch.device, *args: Any) -> Any:
        """Run the implementation for `device`, without autocast, because it chooses the dtype that it computes in."""
        function = self.choose(device).function
        if not torch.is_autocast_enabled(device.type):
            return function(*args)
        with torch.autocast(device.type, enabled=False):
            return function(*args)


def deferred(module: str, function: str) -> Callable[..., Any]:
    """Return a function that imports `module` only when it is called, and then calls `function` of it.

    This is for implementations whose libraries take long to import or are not installed everywhere.
    """

    def call(*args: Any) -> Any:
        return getattr(import_module(module), function)(*args)

    call.__module__ = module  # where the implementation is written
    return call


def autocast_input(x: torch.Tensor) -> torch.Tensor:
    """Cast x as autocast casts the operands of a product, if it is enabled."""
    device_type = x.device.type
    return x.to(torch.get_autocast_dtype(device_type)) if torch.is_autocast_enabled(device_type) else x


@contextmanager
def forced(**choice: str) -> Iterator[None]:
    """Force implementations of the named operations within this context: `forced(delta_rule="reference")`."""
    _check_names(choice)
    before = dict(_FORCED)
    _FORCED.update(choice)
    try:
        yield
    finally:
        _FORCED.clear()
        _FORCED.update(before)


def _from_environment() -> dict[str, str]:
    """Read the operations and implementations that `GOSSAMER_OPS` names."""
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
    """Refuse names of operations that do not exist (UserError)."""
    for name in choice:
        if name in _RENAMED:
            raise UserError(f"unknown operation {name!r}: it is now called {_RENAMED[name]!r}")
        if name not in OPERATIONS:
            raise UserError(
                f"unknown operation {name!r}{did_you_mean(name, OPERATIONS)}; known: {', '.join(OPERATIONS)}"
            )
