"""The direction of matrices, without their size: what Muon steps along."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, shape
from gossamer.ops.orthogonalize.batched import batched
from gossamer.ops.orthogonalize.native import native
from gossamer.ops.orthogonalize.reference import reference
from gossamer.ops.registry import Operation

ORTHOGONALIZE = Operation("orthogonalize", trains=False)
ORTHOGONALIZE.register("native", kernels.obstacle)(native)
ORTHOGONALIZE.register("batched")(batched)
ORTHOGONALIZE.register("reference")(reference)


@torch.no_grad()
def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: singular values of 0.7 to 1.2. No gradient.

    Five rounds of an odd polynomial, X ← a X + (b X Xᵀ + c (X Xᵀ)²) X, from X of Frobenius norm 1 (Keller Jordan,
    kellerjordan.github.io/posts/muon).

    Args:
        matrices: […, m, n]

    Returns:
        […, m, n] in the dtype of `matrices`; zero where they are.

    Raises:
        UserError: fewer than two dimensions, a dimension of 0, or no floating-point numbers.
    """
    check_floats("orthogonalize", matrices=matrices)
    if matrices.ndim < 2 or not min(matrices.shape[-2:]):
        raise UserError(f"orthogonalize: {shape(matrices)} is no matrix")
    found: Tensor = ORTHOGONALIZE(matrices.device, matrices)
    return found
