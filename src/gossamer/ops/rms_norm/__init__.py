"""The root-mean-square norm over the last dimension."""

from __future__ import annotations

from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_number, shape
from gossamer.ops.registry import Operation
from gossamer.ops.rms_norm.native import native
from gossamer.ops.rms_norm.plain import plain
from gossamer.ops.rms_norm.reference import reference

RMS_NORM = Operation("rms_norm")
RMS_NORM.register("native", kernels.obstacle)(native)
RMS_NORM.register("plain")(plain)
RMS_NORM.register("reference")(reference)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x · rsqrt(mean x² + eps) · weight, computed in float32 (float64 if x is) and cast last.

    Args:
        x: […, width]
        weight: [width], for the trunk's norms 1 + w
        eps: added to the mean square

    Returns:
        […, width] in x's dtype.

    Raises:
        UserError: shapes, types or devices that do not fit.
    """
    check_floats("rms_norm", x=x, weight=weight)
    eps = check_number("rms_norm", "eps", eps)
    if weight.ndim != 1 or weight.shape != x.shape[-1:] or not len(weight):
        raise UserError(f"rms_norm: x {shape(x)} and weight {shape(weight)} do not fit")
    y: Tensor = RMS_NORM(x.device, x, weight, eps)
    return y
