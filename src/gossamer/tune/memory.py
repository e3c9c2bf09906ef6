"""The memory that a tuning takes, and the rows that fit into a device's."""

from __future__ import annotations

import math
from dataclasses import replace

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.run.memory import MemoryEstimate, estimate_peak
from gossamer.train.recipe import Recipe
from gossamer.train.world import World
from gossamer.tune.base import Base
from gossamer.tune.recipe import tuning_of
from gossamer.units import size

__all__ = ["allowed_row_tokens", "estimate_tuning", "require_memory"]

# Longer rows are no faster: on a CPU what a row takes then leaves the caches, on an accelerator it is busy anyway.
_MAX_ROW_CPU, _MAX_ROW = 4096, 16384
_MIN_ROW = 512
_ERROR = 1.15  # how far above the truth the estimate may be
_SHARE = 0.8  # of the memory that a step may take


def estimate_tuning(recipe: Recipe, base: Base, world: World) -> MemoryEstimate:
    """Return what a process of a tuning will take of its device's memory, before the network is built."""
    tuning = tuning_of(recipe)
    is_partial = tuning.lora or tuning.drafts
    stored = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in base.checkpoint.stored.values())
    return estimate_peak(recipe, world.device, world.size, stored if is_partial else None)


def require_memory(estimate: MemoryEstimate, world: World) -> None:
    """Refuse a tuning that the device cannot hold however wrong the estimate is.

    Raises:
        UserError: the processes of the device need more memory than it has.
    """
    needed, available = estimate.needed * world.ranks_per_device, devices.memory_bytes(world.device)
    if needed > _ERROR * available:
        raise UserError(
            f"tuning would take about {size(needed)} of memory, and {world.device} has {size(available)}; --lora, a "
            "smaller --row_tokens or --context, and --training.recompute true need less"
        )


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
