"""What a step learns: what its losses are divided by, and the losses of each micro-batch with their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gossamer.data.packing import Batch
from gossamer.model.causal_lm import CausalLM, Output, targets_ahead
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.ops.packing import document_lengths
from gossamer.train.world import World

Losses = dict[str, tuple[float, Tensor]]
"""Every loss of a micro-batch with its weight in the loss that is minimized; what is only measured has weight 0."""


class Objective(ABC):
    """Says what a network learns from the tokens of a step, beside what every step has: drafts and router losses.

    Attributes:
        needs_logprobs: whether the losses are made of `Output.token_logprobs`
    """

    needs_logprobs = False

    @abstractmethod
    def counts(self, batch: Batch) -> list[int]:
        """Count what the losses are divided by; the counts of a step are summed over micro-batches and processes."""

    @abstractmethod
    def losses(self, out: Output, batch: Batch, divisors: Sequence[int]) -> Losses:
        """Return the losses of a micro-batch, which add up over micro-batches and processes, as the gradients do.

        Args:
            out: the network's; its `loss` is divided by the first of the divisors
            batch: the micro-batch, on the CPU
            divisors: the counts of the whole step, at least 1 each
        """

    def of_step(self, batches: Sequence[Batch], token_logprobs: Callable[[Batch], Tensor], world: World) -> Objective:
        """Return the objective with what its losses need to know of the whole step.

        Args:
            batches: all micro-batches of this process
            token_logprobs: computes the log-probability of every target of a batch, without gradients
            world: the processes that share the step
        """
        return self


class NextTokenObjective(Objective):
    """The mean negative log-likelihood of the step's targets."""

    def counts(self, batch: Batch) -> list[int]:
        """Count the targets."""
        return [num_targets(batch)]

    def losses(self, out: Output, batch: Batch, divisors: Sequence[int]) -> Losses:
        """Return the loss that the network gives."""
        assert out.loss is not None
        return {"loss": (1.0, out.loss)}


NEXT_TOKEN = NextTokenObjective()


def token_logprobs(model: CausalLM, batch: Batch) -> Tensor:
    """Compute the log-probability of every target of a batch, [targets] in the order of the flattened batch."""
    device = next(model.parameters()).device
    labels = batch.labels.to(device)
    out = model(batch.input_ids.to(device), labels, batch.cu_seqlens, mtp=None, token_logprobs=True)
    assert out.token_logprobs is not None
    logprobs: Tensor = out.token_logprobs
    return logprobs


def num_targets(batch: Batch, ahead: int = 1) -> int:
    """Return how many tokens of a batch are predicted from `ahead` places before them."""
    return int((_targets(batch, ahead) != IGNORED).sum())


def targets_per_document(batch: Batch) -> Tensor:
    """Count the targets of each document of a batch, int64 [documents] on the CPU."""
    is_target = (_targets(batch) != IGNORED).flatten().long()
    through = torch.cat([is_target.new_zeros(1), is_target.cumsum(0)])
    return through[batch.cu_seqlens.long()].diff()


def _targets(batch: Batch, ahead: int = 1) -> Tensor:
    rows, length = batch.labels.shape
    return targets_ahead(batch.labels, document_lengths(rows, length, batch.cu_seqlens), ahead)
