"""From a prompt to tokens.

What is exported here is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer.infer.engine import Engine
    from gossamer.infer.generation import generate
    from gossamer.infer.options import EngineOptions
    from gossamer.infer.request import Request, SamplingParams

__all__ = ["Engine", "EngineOptions", "Request", "SamplingParams", "generate"]

_HOMES = {
    "Engine": "engine",
    "EngineOptions": "options",
    "Request": "request",
    "SamplingParams": "request",
    "generate": "generation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gossamer.infer' has no attribute {name!r}")
    value = getattr(import_module(f"gossamer.infer.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
