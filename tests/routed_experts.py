"""Inputs of the routed experts, for the tests of the operations that compute them."""

from __future__ import annotations

import torch
from torch import Tensor

from exactness import Inputs, normal


def routing(how: str, tokens: int, top_k: int, experts: int, seed: int) -> Tensor:
    """Expert indices [tokens, top_k]: `apart` distinct in a row, `one` for all, `skip` leaves the first expert idle."""
    scores = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed))
    if how == "one":
        return torch.full((tokens, top_k), seed % experts)
    if how == "skip" and experts > 1:
        scores[:, 0] = -1
        return scores.topk(min(top_k, experts - 1)).indices
    return scores.topk(top_k).indices


def inputs_of(
    tokens: int = 6,
    top_k: int = 2,
    experts: int = 4,
    hidden: int = 5,
    width: int = 3,
    how: str = "apart",
    seed: int = 0,
) -> Inputs:
    random = normal(seed)
    expert_indices = routing(how, tokens, top_k, experts, seed)
    return {
        "x": random(tokens, hidden),
        "expert_indices": expert_indices,
        "expert_weights": random(*expert_indices.shape).sigmoid(),
        "gate_up_proj": random(experts, 2 * width, hidden),
        "down_proj": random(experts, hidden, width),
    }
