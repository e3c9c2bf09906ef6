"""How a network is spread over chips, and all the ways that fit together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gossamer.plan.workload import Workload

_POWERS = (1, 2, 4, 8, 16, 32, 64)
SHORTEST = 2048  # tokens that a chip should have at least of a sequence that is spread over several


@dataclass(frozen=True)
class Layout:
    """A network over `data · tensor · pipeline · context` chips; experts over `expert` of those of a pipeline stage.

    Attributes:
        data: copies of the network, each with rows of its own
        tensor: chips that share each product, and the tokens between products
        pipeline: stages, each with a part of the layers
        expert: chips that a layer's experts are spread over
        context: chips that share a sequence
        rows: of a micro-batch
        recompute: blocks keep their input alone
        spread_weights: weights and gradients are spread over the copies, too, not the optimizer's state alone (FSDP)
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
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def stage(self) -> int:
        """Chips of a pipeline stage."""
        return self.data * self.tensor * self.context

    @property
    def copies(self) -> int:
        """Chips that weights outside of experts are spread over, or summed over, beside tensor parallelism."""
        return self.data * self.context

    @property
    def expert_copies(self) -> int:
        """The same for experts."""
        return self.stage // self.expert

    def describe(self) -> str:
        """The split in short: `data 64 × tensor 2, experts 8`."""
        names = ("data", "tensor", "pipeline", "context")
        parts = [f"{name} {getattr(self, name)}" for name in names if getattr(self, name) > 1] or ["one chip"]
        line = " × ".join(parts)
        if self.expert > 1:
            line += f", experts {self.expert}"
        return line


def layouts(work: Workload, chips: int, node: int, length: int, batch: int) -> Iterator[Layout]:
    """Every layout of so many chips, whether or not it fits their memory.

    Args:
        node: chips that the fast link joins: tensor parallelism stays within it
        length: of a row (tokens)
        batch: of an optimizer step (tokens)
    """
    heads = work.twin.num_attention_heads
    experts = max((layer.feed_forward.experts for layer, _ in work.layers), default=0)
    for tensor in _divisors(chips, min(node, 8, heads)):
        for pipeline in _divisors(chips // tensor, min(work.depth, 64)):
            for context in _divisors(chips // tensor // pipeline, max(1, length // SHORTEST)):
                data = chips // tensor // pipeline // context
                for expert in _expert_counts(experts, data * tensor * context):
                    for rows in (1, 2, 4, 8, 16):
                        if rows * data * length > batch and (rows, data) != (1, 1):
                            break
                        for recompute in (False, True):
                            for spread in (True, False) if data * context > 1 else (True,):
                                if spread and pipeline > 1:
                                    continue  # weights would be gathered again for every micro-batch of every stage
                                yield Layout(data, tensor, pipeline, expert, context, rows, recompute, spread)


def _divisors(whole: int, most: int) -> list[int]:
    return [power for power in _POWERS if power <= most and whole % power == 0]


def _expert_counts(experts: int, chips: int) -> list[int]:
    if not experts:
        return [1]
    return [power for power in _POWERS if experts % power == 0 and chips % power == 0]
