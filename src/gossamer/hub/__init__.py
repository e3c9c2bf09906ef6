"""Checkpoints in and out of other people's formats: Hugging Face directories of safetensors, never pickle; out, GGUF.

What is exported here is imported when it is first used: who only looks for a model's folder needs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer.hub.find import find_model
    from gossamer.hub.gguf_file import export_gguf
    from gossamer.hub.read import load
    from gossamer.hub.write import export, save

__all__ = ["export", "export_gguf", "find_model", "load", "save"]

_HOMES = {"find_model": "find", "load": "read", "export": "write", "export_gguf": "gguf_file", "save": "write"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gossamer.hub' has no attribute {name!r}")
    value = getattr(import_module(f"gossamer.hub.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
