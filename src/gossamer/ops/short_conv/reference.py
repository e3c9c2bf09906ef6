"""The short convolution document by document, with PyTorch's own convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(
    x: Tensor, weight: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """See `short_conv`; `lengths` are the documents' lengths in tokens."""
    channels, taps = weight.shape
    outputs, states = [], []
    for document, rows in enumerate(x.flatten(0, 1).split(lengths)):
        before = x.new_zeros(taps - 1, channels) if initial_state is None else initial_state[document].to(x.dtype)
        padded = torch.cat([before, rows])
        states.append(padded[len(rows) :])
        if len(rows):
            y = F.conv1d(padded.T, weight.to(x.dtype).unsqueeze(1), groups=channels).T
            outputs.append(F.silu(y))
    y = torch.cat(outputs).view(x.shape) if outputs else x
    return y, torch.stack(states)
