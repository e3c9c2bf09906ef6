"""The memory that a tuning takes, and the rows that fit into a device's."""

from __future__ import annotations

import math
from dataclasses import replace

from gossamer import device as devices
from gossamer.run.memory import MemoryEstimate, estimate_peak, require_weights
from gossamer.train.recipe import Recipe
from gossamer.train.world import World
from gossamer.tune.base import Base
from gossamer.tune.recipe import tuning_of

__all__ = ["allowed_row_tokens", "estimate_tuning"]

# Longer rows are no faster: on a CPU what a row takes then leaves the caches, on an accelerator it is busy anyway.
_MAX_ROW_CPU, _MAX_ROW = 4096, 16384
_MIN_ROW = 512
_SHARE = 0.8  # of the memory that a step may take


def estimate_tuning(recipe: Recipe, base: Base, world: World) -> MemoryEstimate:
    """Return what a process of a tuning will take of its device's memory, before the network is built."""
    tuning = tuning_of(recipe)
    is_partial = tuning.lora or tuning.drafts
    stored = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in base.checkpoint.stored.values())
    if not is_partial:
        require_weights(recipe.model, world.size, world.device, world.ranks_per_device)
    return estimate_peak(recipe, world.device, world.size, stored if is_partial else None)


def allowed_row_tokens(recipe: Recipe, base: Base, world: World) -> int:
    """Return the tokens of the longest useful row that leaves some of the memory of a device free."""
    tokens = _MAX_ROW_CPU if world.device.type == "cpu" else _MAX_ROW
    room = _SHARE * devices.memory_bytes(world.device) / world.ranks_per_device
    while tokens > _MIN_ROW:
        shorter = replace(recipe, tuning=replace(tuning_of(recipe), row_tokens=tokens))
        if estimate_tuning(shorter, base, world).needed <= room:
            break
        tokens //= 2
    return tokens
