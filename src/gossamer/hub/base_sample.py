"""Some numbers of a base, kept with what was trained beside it, so that it is not put beside another network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.model.low_rank import targets_of
from gossamer.reading import checked, parse_json

SAMPLE = "base_sample"
_WEIGHTS, _NUMBERS = 8, 32
_MAX_DIFFERENCE = 0.2
"""Largest mean difference, as a share of the mean magnitude: rounding to int8 or to four bits stays below it, and other
weights of the same shapes are far above."""


def sample_of(model: CausalLM) -> str:
    """Return some of a network's weights, beside which an adapter is trained, as the text of a JSON list."""
    return json.dumps([float(f"{number:.4g}") for number in _numbers(model).tolist()])


def require_same_base(model: CausalLM, metadata: Mapping[str, str], folder: Path) -> None:
    """Refuse a network whose weights are not those that were sampled; without a sample, all are taken to be.

    Args:
        model: the network, in any type of weights
        metadata: of the file of what was trained beside a base
        folder: where that lies, for the message

    Raises:
        UserError: the weights differ by more than rounding them would explain.
    """
    if SAMPLE not in metadata:
        return
    where = f"{folder}: {SAMPLE}"
    stored = torch.tensor(checked(parse_json(metadata[SAMPLE], where), list[float], where))
    numbers = _numbers(model)
    if stored.shape != numbers.shape or (stored - numbers).abs().mean() > _MAX_DIFFERENCE * stored.abs().mean():
        raise UserError(f"{folder}: was trained beside the weights of another base; name the one that it is for")


@torch.no_grad()
def _numbers(model: CausalLM) -> Tensor:
    """Return numbers evenly spaced over some weights, evenly spaced over the network."""
    weights = [target.weight for target in targets_of(model)]
    chosen = [weights[round(place)] for place in torch.linspace(0, len(weights) - 1, _WEIGHTS).tolist()]
    found = []
    for weight in chosen:
        places = torch.linspace(0, weight.numel() - 1, _NUMBERS, dtype=torch.float64).round().long()
        found.append(weight.flatten()[places.to(weight.device)].float().cpu())
    return torch.cat(found)
