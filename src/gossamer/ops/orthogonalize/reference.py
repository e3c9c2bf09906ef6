"""Orthogonalisation as it is written, a matrix at a time."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the odd polynomial a x + b x³ + c x⁵ that drives singular values towards 1 (kellerjordan.github.io/posts/muon).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
EPS = 1e-7  # added to the norm


def reference(matrices: Tensor) -> Tensor:
    """See `orthogonalize`; in float32 at least."""
    a, b, c = COEFFICIENTS
    dtype = torch.promote_types(matrices.dtype, torch.float32)
    stack = matrices.reshape(-1, *matrices.shape[-2:])
    found = torch.empty_like(stack)
    for matrix, out in zip(stack, found, strict=True):
        x = matrix.to(dtype)
        x = x / (torch.linalg.matrix_norm(x) + EPS)
        for _ in range(ROUNDS):
            x = a * x + b * (x @ x.mT @ x) + c * (x @ x.mT @ x @ x.mT @ x)
        out.copy_(x)
    return found.view(matrices.shape)
