"""Drawing a token for each row of logits, with random numbers that belong to the row and the token.

By the Gumbel-max trick: with G_i of the standard Gumbel distribution, independent, the i that maximises l_i / T + G_i
is drawn from softmax(l / T). G_i is a function of the row's key and i alone. So two distributions drawn from with the
same key mostly give the same token if they are alike: with probability (1 − d) / (1 + d) at least, d their distance in
total variation (arXiv 2408.07978), which is why drafts are drawn, too, and with the key of their place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, describe, is_dense
from gossamer.ops.draw.native import native
from gossamer.ops.draw.reference import reference
from gossamer.ops.registry import Operation

__all__ = ["draw"]

DRAW = Operation("draw", trains=False)
DRAW.register("native", kernels.obstacle)(native)
DRAW.register("reference")(reference)


def draw(logits: Tensor, temperatures: Tensor, keys: Tensor) -> Tensor:
    """A token of each row, drawn from softmax(logits / temperature). No gradient.

    Args:
        logits: [R, V] float32; −∞ for what is never to be drawn
        temperatures: [R] float32 on the CPU; 0 takes the likeliest token, the first of equals
        keys: [R] int64 on the CPU

    Returns:
        [R] int64 on the CPU; −1 for a row whose largest logit is not finite.

    Raises:
        UserError: shapes, types or devices that do not fit.
    """
    check_floats("draw", logits=logits)
    if logits.ndim != 2 or not logits.shape[1] or logits.dtype != torch.float32:
        raise UserError(f"draw: logits must be [rows, vocabulary] of float32, not {describe(logits)}")
    check_draws("draw", temperatures, keys, logits.shape[:1])
    tokens: Tensor = DRAW(logits.device, logits, temperatures, keys)
    return tokens


def check_draws(operation: str, temperatures: Tensor, keys: Tensor, sizes: tuple[int, ...]) -> None:
    """Refuse temperatures or keys that do not belong to so many rows, and numbers of each; see `draw`.

    Raises:
        UserError: names the argument, and its shape, type and device.
    """
    for name, x, wanted, dtype in (
        ("temperatures", temperatures, sizes[:1], torch.float32),
        ("keys", keys, sizes, torch.int64),
    ):
        fits = is_dense(x) and x.shape == torch.Size(wanted) and x.dtype == dtype
        if not fits or x.device.type != "cpu" or not x.is_contiguous():
            told = f"{list(wanted)} of {str(dtype).removeprefix('torch.')} on the CPU, in one piece"
            raise UserError(f"{operation}: {name} must be {told}, not {describe(x)}")
