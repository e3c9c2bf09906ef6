"""Orthogonalisation of all matrices at once, in batched products, bfloat16 where the device has it fast."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer import device as devices
from gossamer.ops.orthogonalize.reference import COEFFICIENTS, EPS, ROUNDS


def batched(matrices: Tensor) -> Tensor:
    """See `orthogonalize`. float64 stays: who takes it wants to compare."""
    exact = matrices.dtype == torch.float64
    dtype = torch.float64 if exact else devices.compute_dtype(matrices.device, "auto")
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPS)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(matrices.dtype)
