"""Which data type products are computed in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from gossamer.device.flags import has_fast_bfloat16
from gossamer.errors import UserError


def compute_dtype(device: torch.device, precision: str) -> torch.dtype:
    """What products are computed in, for a recipe's word: bf16, fp32, or auto.

    auto is bfloat16 on an accelerator that has it and float32 on a CPU: even with bfloat16 units, a CPU gains nothing
    on small matrices.

    Raises:
        UserError: bf16 was asked for where it would be emulated.
    """
    if precision == "bf16" and not has_fast_bfloat16(device):
        raise UserError(f"precision bf16: {device} has no bfloat16 units and would be slower by far; use fp32 or auto")
    if precision == "bf16" or (precision == "auto" and device.type != "cpu" and has_fast_bfloat16(device)):
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Compute products in `dtype` inside this context; float32 computes everything as it is."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
