"""Models in other people's formats: Hugging Face directories of safetensors, never pickle, and GGUF files; in and out.

The names below are imported when they are first used, so that finding a model's folder needs no PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gossamer.lazy import lazy_exports

if TYPE_CHECKING:
    from gossamer.hub.adapter import load_adapter, save_adapter
    from gossamer.hub.find import find_model
    from gossamer.hub.gguf_file import export_gguf
    from gossamer.hub.read import load
    from gossamer.hub.write import export, export_adapter, save

__all__ = ["export", "export_adapter", "export_gguf", "find_model", "load", "load_adapter", "save", "save_adapter"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "find_model": "gossamer.hub.find",
        "load": "gossamer.hub.read",
        "load_adapter": "gossamer.hub.adapter",
        "export": "gossamer.hub.write",
        "export_adapter": "gossamer.hub.write",
        "export_gguf": "gossamer.hub.gguf_file",
        "save": "gossamer.hub.write",
        "save_adapter": "gossamer.hub.adapter",
    },
)
