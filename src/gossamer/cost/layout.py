"""How a network and the tokens of a training step are divided among chips."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """A network on `data · tensor · pipeline · context` chips, with experts on `expert` chips of a pipeline stage.

    Attributes:
        data: copies of the network, each of which computes rows of its own
        tensor: chips that share each product, and the tokens between products
        pipeline: stages, each of which holds a part of the layers
        expert: chips that the experts of a layer are spread over
        context: chips that share a sequence
        rows: rows of a micro-batch
        recompute: whether a block keeps its input alone and is computed again in the backward pass
        spread_weights: whether weights and gradients, too, are spread over the copies (FSDP); otherwise only the state
            of the optimizer is
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    context: int = 1
    rows: int = 1
    recompute: bool = False
    spread_weights: bool = True

    @property
    def chips(self) -> int:
        """All chips."""
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def stage(self) -> int:
        """Chips of a pipeline stage."""
        return self.data * self.tensor * self.context

    @property
    def copies(self) -> int:
        """Chips that weights outside of experts are spread or summed over, apart from tensor parallelism."""
        return self.data * self.context

    @property
    def expert_copies(self) -> int:
        """Chips that the weights of an expert are spread or summed over."""
        return self.stage // self.expert

    @property
    def has_equal_shares(self) -> bool:
        """Whether every chip holds the same share of everything, as under FSDP alone."""
        return self.spread_weights and self.tensor == self.pipeline == self.expert == 1

    def describe(self) -> str:
        """Return the division in short: `data 64 × tensor 2, experts 8`."""
        names = ("data", "tensor", "pipeline", "context")
        parts = [f"{name} {getattr(self, name)}" for name in names if getattr(self, name) > 1] or ["one chip"]
        line = " × ".join(parts)
        if self.expert > 1:
            line += f", experts {self.expert}"
        return line
