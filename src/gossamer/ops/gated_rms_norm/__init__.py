"""The norm behind linear attention: root mean square first, then a gate."""

from __future__ import annotations

from torch import Tensor

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_number, shape
from gossamer.ops.gated_rms_norm.native import native
from gossamer.ops.gated_rms_norm.plain import plain
from gossamer.ops.gated_rms_norm.reference import reference
from gossamer.ops.registry import Operation, deferred

GATED_RMS_NORM = Operation("gated_rms_norm")
GATED_RMS_NORM.register("native", kernels.obstacle)(native)
GATED_RMS_NORM.register("triton", devices.triton_obstacle, devices.is_accelerator)(
    deferred("gossamer.ops.gated_rms_norm.triton", "kernels")
)
GATED_RMS_NORM.register("plain")(plain)
GATED_RMS_NORM.register("reference")(reference)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x · rsqrt(mean x² + eps) · weight · SiLU(gate), computed in float32 (float64 if x is) and cast last.

    Args:
        x: […, width]
        gate: […, width]
        weight: [width]
        eps: added to the mean square

    Returns:
        […, width] in the gate's dtype.

    Raises:
        UserError: shapes, types or devices that do not fit.
    """
    check_floats("gated_rms_norm", x=x, gate=gate, weight=weight)
    eps = check_number("gated_rms_norm", "eps", eps)
    if x.shape != gate.shape or weight.ndim != 1 or weight.shape != x.shape[-1:] or not len(weight):
        raise UserError(f"gated_rms_norm: x {shape(x)}, gate {shape(gate)} and weight {shape(weight)} do not fit")
    y: Tensor = GATED_RMS_NORM(x.device, x, gate, weight, eps)
    return y
