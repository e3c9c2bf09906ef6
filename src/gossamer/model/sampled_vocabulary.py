"""A sample of the vocabulary for the output head in training: its products are with K tokens and not with all V.

Of a small network with a vocabulary of thousands, the head is half of a step. Of a batch, the tokens that occur in it
matter most, since each of them is to be predicted somewhere; the others are only pushed down, and a few of them can
stand for all: log Σ exp is taken over the tokens that occur and over a sample of the others, each of which counts as
often as there are others for one drawn (sampled softmax, arXiv 1412.2007, whose correction this is for a sample drawn
evenly). The sum under the logarithm is right in the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops.checks import describe

LEAST_DRAWN = 0.25  # share of the sample that is drawn, however many different tokens a batch has


@dataclass(frozen=True, eq=False)
class SampledVocabulary:
    """The tokens that get a logit.

    Attributes:
        tokens: [K] int64, ascending
        log_counts: [K] float32, the log of how many tokens each stands for: 0 for those that occur
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

    def narrowed(self, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the loss needs instead of the whole head.

        Args:
            head: [V, hidden]
            targets: int64, each among the tokens, or negative where nothing is predicted

        Returns:
            The tokens' rows [K, hidden]; the targets as places among them; what is added to the logits, [K].

        Raises:
            UserError: on a CPU, a target that is not among the tokens, or a token that has no row.
        """
        tokens = self.tokens.to(head.device)
        places = torch.searchsorted(tokens, targets.clamp(min=0)).clamp(max=len(tokens) - 1)
        if head.device.type == "cpu":
            if int(tokens[-1]) >= len(head):
                raise UserError(f"vocabulary: token {int(tokens[-1])} is outside the vocabulary of {len(head)}")
            missing = (tokens[places] != targets) & (targets >= 0)
            if bool(missing.any()):
                raise UserError(f"vocabulary: label {int(targets[missing][0])} is not among the sampled tokens")
        return head.index_select(0, tokens), torch.where(targets < 0, targets, places), self.log_counts.to(head.device)


def sample_vocabulary(labels: Tensor, vocab_size: int, size: int) -> SampledVocabulary | None:
    """The tokens that occur in labels, and others drawn evenly; None where that would be the whole vocabulary.

    Args:
        labels: int64 on the CPU, negative where nothing is predicted
        vocab_size: V
        size: K; a quarter of it is drawn even where the batch has more than three quarters of it in different tokens
    """
    occurs = torch.zeros(vocab_size, dtype=torch.bool)
    occurs[labels[labels >= 0]] = True
    others = (~occurs).nonzero()[:, 0]
    drawn = max(size - (vocab_size - len(others)), math.ceil(LEAST_DRAWN * size))
    if drawn >= len(others):
        return None
    log_counts = torch.zeros(vocab_size)
    picked = others[torch.randperm(len(others))[:drawn]]
    log_counts[picked] = math.log(len(others) / drawn)
    occurs[picked] = True
    tokens = occurs.nonzero()[:, 0]
    return SampledVocabulary(tokens, log_counts[tokens])
