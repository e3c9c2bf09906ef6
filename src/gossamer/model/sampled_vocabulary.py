"""A sample of the vocabulary for the output head in training: its products are with K tokens instead of all V.

In a small network with a vocabulary of thousands, the output head is half of a step. The tokens that occur in a batch
matter most, since each of them is to be predicted somewhere. The others are only pushed down, and a few of them can
stand for all: log Σ exp is taken over the tokens that occur and over a sample of the others, each of which is counted
as often as there are others for every one in the sample (sampled softmax, arXiv 1412.2007, with its correction for a
uniform sample). The sum under the logarithm is right in the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops.checks import describe

MIN_SAMPLED_FRACTION = 0.25  # of the size that is asked for, however many different tokens a batch has


@dataclass(frozen=True, eq=False)
class SampledVocabulary:
    """The tokens that get a logit.

    Attributes:
        tokens: [K] int64, ascending
        log_counts: [K] float32, the logarithm of how many tokens each stands for: 0 for those that occur
    """

    tokens: Tensor
    log_counts: Tensor

    def __post_init__(self) -> None:
        tokens = self.tokens
        if tokens.ndim != 1 or tokens.dtype != torch.int64 or not len(tokens):
            raise UserError(f"vocabulary: tokens must be a row of int64, not {describe(tokens)}")
        if self.log_counts.shape != tokens.shape or not self.log_counts.is_floating_point():
            raise UserError(f"vocabulary: log_counts must be [{len(tokens)}], not {describe(self.log_counts)}")
        if int(tokens[0]) < 0 or not bool((tokens[1:] > tokens[:-1]).all()):
            raise UserError("vocabulary: tokens must be ids in ascending order")

    def select(self, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the loss needs in place of the whole output head.

        Args:
            head: [V, hidden]
            targets: int64, each of them among the tokens, or negative where nothing is predicted

        Returns:
            The tokens' rows [K, hidden]; the targets as indices into the tokens; what is added to the logits, [K].

        Raises:
            UserError: on a CPU, a target is not among the tokens, or a token has no row.
        """
        tokens = self.tokens.to(head.device)
        indices = torch.searchsorted(tokens, targets.clamp(min=0)).clamp(max=len(tokens) - 1)
        if head.device.type == "cpu":
            if int(tokens[-1]) >= len(head):
                raise UserError(f"vocabulary: token {int(tokens[-1])} is outside the vocabulary of {len(head)}")
            missing = (tokens[indices] != targets) & (targets >= 0)
            if bool(missing.any()):
                raise UserError(f"vocabulary: label {int(targets[missing][0])} is not among the sampled tokens")
        labels = torch.where(targets < 0, targets, indices)
        return head.index_select(0, tokens), labels, self.log_counts.to(head.device)


def sample_vocabulary(labels: Tensor, vocab_size: int, size: int) -> SampledVocabulary | None:
    """Take the tokens that occur in labels, and a uniform sample of the others.

    Args:
        labels: int64 on the CPU, negative where nothing is predicted
        vocab_size: V
        size: K; a quarter of it is sampled even where the different tokens of the batch take more than three quarters

    Returns:
        The sample, or None if it would be the whole vocabulary.
    """
    is_included = torch.zeros(vocab_size, dtype=torch.bool)
    is_included[labels[labels >= 0]] = True
    others = (~is_included).nonzero()[:, 0]
    num_sampled = max(size - (vocab_size - len(others)), math.ceil(MIN_SAMPLED_FRACTION * size))
    if num_sampled >= len(others):
        return None
    log_counts = torch.zeros(vocab_size)
    sampled = others[torch.randperm(len(others))[:num_sampled]]
    log_counts[sampled] = math.log(len(others) / num_sampled)
    is_included[sampled] = True
    tokens = is_included.nonzero()[:, 0]
    return SampledVocabulary(tokens, log_counts[tokens])
