"""Choosing the next token from its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Attributes:
    temperature: the logits are divided by it; 0 takes the likeliest token
    top_p: choose among the smallest set of likeliest tokens with at least this much probability (arXiv 1904.09751)
    """

    temperature: float = 0.8
    top_p: float = 0.95


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token id from logits [V]; the generator is on the CPU, so that a seed means the same on every device."""
    logits = logits.float().cpu()
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities, ids = (logits / sampling.temperature).softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities  # the likeliest token has nothing before it and always stays
    probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])
