"""The short causal convolution in front of the delta rule: depthwise, a few taps, then SiLU."""

from __future__ import annotations

from torch import Tensor

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, given, shape
from gossamer.ops.packing import document_lengths
from gossamer.ops.registry import Operation, deferred
from gossamer.ops.short_conv.native import native
from gossamer.ops.short_conv.reference import reference
from gossamer.ops.short_conv.shifted import shifted

SHORT_CONV = Operation("short_conv")
SHORT_CONV.register("native", kernels.obstacle)(native)
SHORT_CONV.register("triton", devices.triton_obstacle, devices.is_accelerator)(
    deferred("gossamer.ops.short_conv.triton", "kernels")
)
SHORT_CONV.register("shifted")(shifted)
SHORT_CONV.register("reference")(reference)


def short_conv(
    x: Tensor, weight: Tensor, initial_state: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y_t = SiLU(Σ_j w_j x_(t − K + 1 + j)) inside each document.

    Args:
        x: [B, T, channels]
        weight: [channels, K], the last tap for the current token
        initial_state: [N, K − 1, channels], the inputs before each document's first token, oldest first; zero if None
        cu_seqlens: [N + 1] where documents begin in the flattened batch; None: each row is a document, N = B

    Returns:
        y [B, T, channels] in x's dtype, and the last K − 1 inputs of each document [N, K − 1, channels].

    Raises:
        UserError: shapes, types or devices that do not fit.
    """
    check_floats("short_conv", x=x, weight=weight, **given(initial_state=initial_state))
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[0] != x.shape[-1] or not min(weight.shape):
        raise UserError(f"short_conv: x {shape(x)} and weight {shape(weight)} do not fit")
    lengths = document_lengths(x.shape[0], x.shape[1], cu_seqlens)
    state_shape = (len(lengths), weight.shape[1] - 1, x.shape[-1])
    if initial_state is not None and initial_state.shape != state_shape:
        raise UserError(f"short_conv: initial_state {shape(initial_state)} must be {list(state_shape)}")
    y, state = SHORT_CONV(x.device, x, weight, initial_state, lengths)
    return y, state
