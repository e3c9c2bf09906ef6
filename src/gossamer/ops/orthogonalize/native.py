"""Orthogonalisation with a matrix a thread, all rounds in its cache (ops/native/orthogonalize.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.orthogonalize.batched import batched
from gossamer.ops.orthogonalize.reference import COEFFICIENTS, EPS, ROUNDS

LARGEST = 256  # rows or columns, whichever are fewer; beyond, all threads are better put to one matrix


def native(matrices: Tensor) -> Tensor:
    """See `orthogonalize`. Other types than float32, and large matrices, take the batched path."""
    rows, columns = matrices.shape[-2:]
    if matrices.dtype != torch.float32 or min(rows, columns) > LARGEST:
        return batched(matrices)
    stack = matrices.reshape(-1, rows, columns)
    if stack.stride(2) != 1:
        stack = stack.contiguous()
    found = torch.empty(matrices.shape)
    kernels.call(
        "orthogonalize", stack, found, len(stack), rows, columns, stack.stride(0), stack.stride(1), *COEFFICIENTS, EPS,
        ROUNDS,
    )  # fmt: skip
    return found
