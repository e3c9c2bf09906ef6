"""Train and serve Qwen3-Next-class language models at the lowest cost, on the chips you have.

What is exported here is imported when it is first used: ``import gossamer`` and ``gossamer --help`` stay instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gossamer.lazy import lazy_exports

if TYPE_CHECKING:
    from gossamer.data.tokenizer import Tokenizer
    from gossamer.errors import UserError
    from gossamer.hub import load, save
    from gossamer.infer.generation import generate
    from gossamer.model.causal_lm import CausalLM
    from gossamer.model.config import ModelConfig

__version__ = "0.1.0"
__all__ = ["CausalLM", "ModelConfig", "Tokenizer", "UserError", "__version__", "generate", "load", "save"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "CausalLM": "gossamer.model.causal_lm",
        "ModelConfig": "gossamer.model.config",
        "Tokenizer": "gossamer.data.tokenizer",
        "UserError": "gossamer.errors",
        "generate": "gossamer.infer.generation",
        "load": "gossamer.hub",
        "save": "gossamer.hub",
    },
)
