"""From a prompt to tokens.

What is exported here is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gossamer.lazy import lazy_exports

if TYPE_CHECKING:
    from gossamer.infer.engine import Engine
    from gossamer.infer.generation import generate
    from gossamer.infer.options import EngineOptions
    from gossamer.infer.request import Request, SamplingParams

__all__ = ["Engine", "EngineOptions", "Request", "SamplingParams", "generate"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Engine": "gossamer.infer.engine",
        "EngineOptions": "gossamer.infer.options",
        "Request": "gossamer.infer.request",
        "SamplingParams": "gossamer.infer.request",
        "generate": "gossamer.infer.generation",
    },
)
