"""A stand-in for a module's function, which keeps what it was called with."""

import sys
from types import ModuleType
from typing import Any

import pytest

import gossamer


class Calls(list[tuple[tuple[Any, ...], dict[str, Any]]]):
    """Stands in for a verb's work and keeps what it was called with."""

    answer: Any = None
    error: BaseException | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.append((args, kwargs))
        if self.error is not None:
            raise self.error
        return self.answer


def replace(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> Calls:
    calls, stand_in = Calls(), ModuleType(module)
    setattr(stand_in, name, calls)
    monkeypatch.setitem(sys.modules, module, stand_in)
    parent, _, child = module.rpartition(".")
    monkeypatch.setattr(sys.modules.get(parent, gossamer), child, stand_in, raising=False)
    return calls
