"""What happens in the engine's process: the weights are loaded once, engines are made on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gossamer.infer.options import EngineOptions
from gossamer.serve.worker import Engine, ModelInfo

__all__ = ["EngineConfig", "build_engine"]


@dataclass(frozen=True)
class EngineConfig:
    """Attributes:
    device: auto, cpu, cuda, cuda:1, npu …
    options: sizes and switches of the engine
    """

    device: str = "auto"
    options: EngineOptions = field(default_factory=EngineOptions)


def build_engine(folder: Path, config: EngineConfig) -> Callable[[], tuple[Engine, ModelInfo]]:
    """Load a Hugging Face directory; what is returned makes an engine on it, each time a fresh one.

    Raises:
        UserError: it cannot be loaded.
    """
    from gossamer import device as devices
    from gossamer import hub
    from gossamer.data.tokenizer import Tokenizer
    from gossamer.infer.engine import Engine as InferEngine

    devices.keep_freed_memory()
    model = hub.load(folder, device=devices.resolve(config.device)).eval()
    tokenizer = Tokenizer.load(folder)

    def make() -> tuple[Engine, ModelInfo]:
        engine = InferEngine(model, tokenizer, config.options)
        return engine, ModelInfo(engine.max_length, model.config.vocab_size, config.options.max_batch)

    return make
