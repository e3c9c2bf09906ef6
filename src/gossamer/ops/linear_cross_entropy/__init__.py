"""The output head and its loss in one: cross-entropy of hidden · weightᵀ without holding all the logits."""

from __future__ import annotations

from torch import Tensor

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_indices, given, shape
from gossamer.ops.linear_cross_entropy.chunked import chunked
from gossamer.ops.linear_cross_entropy.native import native
from gossamer.ops.linear_cross_entropy.reference import reference
from gossamer.ops.registry import Operation, autocast_input, deferred

__all__ = ["IGNORED", "linear_cross_entropy"]

IGNORED = -100  # the label of a token that is not predicted, as in Hugging Face's and PyTorch's losses

LINEAR_CROSS_ENTROPY = Operation("linear_cross_entropy")
LINEAR_CROSS_ENTROPY.register("native", kernels.obstacle)(native)
LINEAR_CROSS_ENTROPY.register("triton", devices.triton_obstacle, devices.is_accelerator)(
    deferred("gossamer.ops.linear_cross_entropy.triton", "kernels")
)
LINEAR_CROSS_ENTROPY.register("chunked")(chunked)
LINEAR_CROSS_ENTROPY.register("reference")(reference)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """The sum over tokens of −log softmax(hidden · weightᵀ + bias)[label], in nats.

    Args:
        hidden: [N, hidden]
        weight: [V, hidden]
        labels: [N] integers, each in 0 … V − 1 or −100 where nothing is predicted (already shifted)
        bias: [V] floating point, taken for a constant: it gets no gradient; None: zero

    Returns:
        The sum, a scalar in float32, or in float64 if hidden is.

    Raises:
        UserError: shapes, types or devices that do not fit, or a label that is no row of the weight.
    """
    check_floats("linear_cross_entropy", hidden=hidden, weight=weight, **given(bias=bias))
    fit = hidden.ndim == 2 and weight.ndim == 2 and hidden.shape[1] == weight.shape[1]
    if not fit or not min(weight.shape) or (bias is not None and bias.shape != weight.shape[:1]):
        biased = "" if bias is None else f", bias {shape(bias)}"
        raise UserError(f"linear_cross_entropy: hidden {shape(hidden)}, weight {shape(weight)}{biased} do not fit")
    labels = check_indices(
        "linear_cross_entropy", "labels", labels, len(weight), hidden.device, ignored=IGNORED, of="vocabulary"
    )
    if labels.shape != hidden.shape[:1]:
        raise UserError(f"linear_cross_entropy: labels {shape(labels)} must be {[len(hidden)]}, one for each token")
    bias = None if bias is None else bias.detach()
    loss: Tensor = LINEAR_CROSS_ENTROPY(hidden.device, autocast_input(hidden), weight, labels, bias)
    return loss
