"""FP8 weights with a scale for each block, as Qwen releases them: dequantized while they are read.

A matrix W [R, C] of float8_e4m3fn has a `weight_scale_inv` S [⌈R/b⌉, ⌈C/c⌉], where b × c is `weight_block_size`.
The weight is W[i, j] · S[i // b, j // c], a product in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gossamer.errors import UserError, shorten
from gossamer.hub.layout import GATE_UP
from gossamer.hub.quantization import LOAD_INSTEAD, Block
from gossamer.hub.shards import FP8, SAVE_AGAIN, StoredTensor, read_tensors

SCALE_SUFFIX = "_scale_inv"
_CHUNK = 1 << 20  # numbers that are widened to float32 at a time


def read_scales(stored: Mapping[str, StoredTensor], block: Block | None) -> dict[str, Tensor]:
    """Read the scales of a checkpoint's FP8 weights: float32, by the names of the weights.

    Raises:
        UserError: config.json does not say that there are FP8 weights; scales are missing, of another shape or type, or
            belong to a weight of another type. The message names the file and the tensor.
    """
    for name, tensor in stored.items():
        weight, shown = name.removesuffix(SCALE_SUFFIX), f"{tensor.file}: {shorten(name)}"
        if weight != name and weight in stored and stored[weight].dtype != FP8:
            raise UserError(f"{shown} scales {shorten(weight)}, which is not stored as F8_E4M3; {SAVE_AGAIN}")
        if tensor.dtype != FP8:
            continue
        if block is None:
            raise UserError(f"{shown} is stored as F8_E4M3, but config.json has no blocks; {LOAD_INSTEAD}")
        if name + SCALE_SUFFIX not in stored:
            raise UserError(f"{shown} is stored as F8_E4M3 without {shorten(name + SCALE_SUFFIX)}; {SAVE_AGAIN}")
        _check_scale(name, tensor, stored[name + SCALE_SUFFIX], block)
    names = [name for name, tensor in stored.items() if tensor.dtype == FP8]
    scales = read_tensors({name + SCALE_SUFFIX: stored[name + SCALE_SUFFIX] for name in names})
    return {name: scales[name + SCALE_SUFFIX].float() for name in names}


def _check_scale(name: str, tensor: StoredTensor, scale: StoredTensor, block: Block) -> None:
    """Refuse a weight whose scales are not one for each block."""
    weight = f"{shorten(name)} of shape {list(tensor.shape)}"
    if len(tensor.shape) not in (2, 3):
        raise UserError(f"{tensor.file}: {weight} is stored as F8_E4M3; only matrices are")
    *stack, rows, columns = tensor.shape
    if name.endswith(GATE_UP) and rows // 2 % block[0]:
        raise UserError(
            f"{tensor.file}: {weight} has blocks of {block[0]} rows that hold rows of both the gate and the up "
            "projection; save the experts one by one"
        )
    wanted = (*stack, math.ceil(rows / block[0]), math.ceil(columns / block[1]))
    if scale.shape != wanted or scale.dtype == FP8:
        raise UserError(
            f"{scale.file}: {shorten(name + SCALE_SUFFIX)} has shape {list(scale.shape)} and type "
            f"{str(scale.dtype).removeprefix('torch.')}, but {weight} has {list(wanted)} blocks of "
            f"{block[0]} × {block[1]}; {SAVE_AGAIN}"
        )


def dequantized(weight: Tensor, start: int, scale: Tensor, block: Block) -> Iterator[tuple[int, Tensor]]:
    """Yield some rows of a weight, dequantized, a few at a time: the first one's number, and the rows in float32.

    Args:
        weight: [n, columns] of float8, or [n, rows, columns] of a stack of matrices
        start: which row of the whole weight, or which matrix of the stack, is the first one here
        scale: the scales of the whole weight, in float32
        block: rows and columns of a block
    """
    # A table of all numbers is three times as fast as PyTorch's conversion.
    values = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    step = max(1, _CHUNK // max(1, weight[0].numel()))
    for first in range(0, len(weight), step):
        part = weight[first : first + step]
        numbers = torch.arange(start + first, start + first + len(part))
        if part.ndim == 2:
            rows = scale[numbers // block[0]]
        else:
            rows = scale[numbers].repeat_interleave(block[0], dim=1)[:, : part.shape[1]]
        wide = values.index_select(0, part.view(torch.uint8).int().flatten()).view(part.shape)
        whole = part.shape[-1] // block[1]  # blocks that are not cut off at the right
        wide[..., : whole * block[1]].unflatten(-1, (whole, block[1])).mul_(rows[..., :whole].unsqueeze(-1))
        wide[..., whole * block[1] :].mul_(rows[..., whole:])
        yield start + first, wide
