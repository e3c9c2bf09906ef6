"""Orthogonalization of matrices, which keeps their direction and drops their size: the step that Muon takes."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, shape
from gossamer.ops.registry import Operation

ORTHOGONALIZE = Operation("orthogonalize", has_gradient=False)
# Coefficients of the odd polynomial a x + b x³ + c x⁵, which drives singular values towards 1
# (kellerjordan.github.io/posts/muon).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
EPS = 1e-7  # added to the norm
MAX_NATIVE_SIDE = 256  # shorter side of a matrix; for a larger one it is better to put all threads on one matrix


@torch.no_grad()
def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximate the nearest (semi-)orthogonal matrices, with singular values of 0.7 to 1.2. It has no gradient.

    Five rounds of an odd polynomial, X ← a X + (b X Xᵀ + c (X Xᵀ)²) X, start from X scaled to a Frobenius norm of 1
    (Keller Jordan, kellerjordan.github.io/posts/muon).

    Args:
        matrices: […, m, n]

    Returns:
        […, m, n] in the dtype of `matrices`; zero where they are zero.

    Raises:
        UserError: there are fewer than two dimensions, one of the last two is 0, or the dtype is no floating-point one.
    """
    check_floats("orthogonalize", matrices=matrices)
    if matrices.ndim < 2 or not min(matrices.shape[-2:]):
        raise UserError(f"orthogonalize: {shape(matrices)} is not a matrix")
    result: Tensor = ORTHOGONALIZE(matrices.device, matrices)
    return result


def reference(matrices: Tensor) -> Tensor:
    """Apply the polynomial as it is written to one matrix at a time, in float32 at least."""
    a, b, c = COEFFICIENTS
    dtype = torch.promote_types(matrices.dtype, torch.float32)
    stack = matrices.reshape(-1, *matrices.shape[-2:])
    result = torch.empty_like(stack)
    for matrix, out in zip(stack, result, strict=True):
        x = matrix.to(dtype)
        x = x / (torch.linalg.matrix_norm(x) + EPS)
        for _ in range(ROUNDS):
            x = a * x + b * (x @ x.mT @ x) + c * (x @ x.mT @ x @ x.mT @ x)
        out.copy_(x)
    return result.view(matrices.shape)


def batched(matrices: Tensor) -> Tensor:
    """Multiply all matrices in one batch, in bfloat16 where the device is fast at it.

    Matrices in float64 stay in float64: whoever uses it wants to compare results.
    """
    dtype = torch.float64 if matrices.dtype == torch.float64 else devices.compute_dtype(matrices.device, "auto")
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPS)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


def native(matrices: Tensor) -> Tensor:
    """Give each thread a matrix, which stays in its cache for all rounds (ops/native/orthogonalize.cpp).

    Dtypes other than float32, and large matrices, go to `batched`.
    """
    rows, columns = matrices.shape[-2:]
    if matrices.dtype != torch.float32 or min(rows, columns) > MAX_NATIVE_SIDE:
        return batched(matrices)
    stack = matrices.reshape(-1, rows, columns)
    if stack.stride(2) != 1:
        stack = stack.contiguous()
    result = torch.empty(matrices.shape)
    sizes = len(stack), rows, columns, stack.stride(0), stack.stride(1)
    kernels.call("orthogonalize", stack, result, *sizes, *COEFFICIENTS, EPS, ROUNDS)
    return result


ORTHOGONALIZE.register("native", native, kernels.obstacle)
ORTHOGONALIZE.register("batched", batched)
ORTHOGONALIZE.register("reference", reference)
