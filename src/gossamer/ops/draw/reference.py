"""What `draw` computes, step by step."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = (1 << 32) - 1


def noise(keys: Tensor, count: int) -> Tensor:
    """G_i = −ln E_i, E_i = −ln(1 − w_i) with w_i evenly distributed in (0, 1): [R] → [R, count] float64."""
    ids = torch.arange(count, device=keys.device)
    low, high = keys[:, None] & _LOW, (keys[:, None] >> 32) & _LOW
    even = (_mix(_mix(ids ^ low) ^ high) >> 1).double().add(0.5) / 2**31
    return -(-torch.log1p(-even)).log()


def reference(logits: Tensor, temperatures: Tensor, keys: Tensor) -> Tensor:
    """See `draw`."""
    logits, temperatures, keys = logits.cpu().double(), temperatures.double(), keys.cpu()
    best = logits.amax(-1)
    tokens = logits.argmax(-1)
    if bool((temperatures > 0).any()):
        warm = temperatures > 0
        scores = (logits[warm] - best[warm, None]) / temperatures[warm, None] + noise(keys[warm], logits.shape[1])
        tokens[warm] = scores.argmax(-1)
    return tokens.where(best.isfinite(), -1)


def _mix(x: Tensor) -> Tensor:
    """A permutation of the numbers below 2³² that looks like chance (C. Wellons' hash prospector, "lowbias32")."""
    x = (x ^ x >> 16) * 0x7FEB352D & _LOW
    x = (x ^ x >> 15) * 0x846CA68B & _LOW
    return x ^ x >> 16
