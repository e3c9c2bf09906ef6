"""The short causal convolution before the delta rule: depthwise, with a small kernel, followed by SiLU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, not_none, once_differentiable, shape
from gossamer.ops.native.layout import rows_in_place
from gossamer.ops.packing import cached_layout, document_lengths, lengths_tensor
from gossamer.ops.registry import Operation, deferred

SHORT_CONV = Operation("short_conv")
MAX_NATIVE_KERNEL_SIZE = 8


def short_conv(
    x: Tensor, weight: Tensor, initial_state: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute y_t = SiLU(Σ_j w_j x_(t − K + 1 + j)) within each document.

    Args:
        x: [B, T, channels]
        weight: [channels, K], the last column for the current token
        initial_state: [N, K − 1, channels], the inputs before each document's first token, oldest first; None is zero
        cu_seqlens: [N + 1], where documents begin in the flattened batch; None makes each row a document, N = B

    Returns:
        y [B, T, channels] in x's dtype, and the last K − 1 inputs of each document [N, K − 1, channels].

    Raises:
        UserError: the shapes, dtypes or devices do not fit.
    """
    check_floats("short_conv", x=x, weight=weight, **not_none(initial_state=initial_state))
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[0] != x.shape[-1] or not min(weight.shape):
        raise UserError(f"short_conv: x {shape(x)} and weight {shape(weight)} do not fit")
    lengths = document_lengths(x.shape[0], x.shape[1], cu_seqlens)
    state_shape = (len(lengths), weight.shape[1] - 1, x.shape[-1])
    if initial_state is not None and initial_state.shape != state_shape:
        raise UserError(f"short_conv: initial_state {shape(initial_state)} must be {list(state_shape)}")
    y, state = SHORT_CONV(x.device, x, weight, initial_state, lengths)
    return y, state


def reference(
    x: Tensor, weight: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Call PyTorch's own convolution for each document; `lengths` are the documents' lengths in tokens."""
    channels, kernel_size = weight.shape
    outputs, states = [], []
    for document, rows in enumerate(x.flatten(0, 1).split(lengths)):
        if initial_state is None:
            before = x.new_zeros(kernel_size - 1, channels)
        else:
            before = initial_state[document].to(x.dtype)
        padded = torch.cat([before, rows])
        states.append(padded[len(rows) :])
        if len(rows):
            y = F.conv1d(padded.T, weight.to(x.dtype).unsqueeze(1), groups=channels).T
            outputs.append(F.silu(y))
    y = torch.cat(outputs).view(x.shape) if outputs else x
    return y, torch.stack(states)


def shifted(x: Tensor, weight: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Add up shifted copies of the inputs, with channels last and a hand-written backward pass.

    Every document is laid out behind its K − 1 earlier inputs, so that one shifted sum over the whole buffer serves all
    documents and none reads the tokens of another. Autograd would keep K products; this keeps only x.
    """
    if initial_state is None:
        initial_state = x.new_zeros(len(lengths), weight.shape[1] - 1, x.shape[-1])
    y, state = _ShiftedConv.apply(x, weight, initial_state.to(x.dtype), lengths)
    return y, state


@cached_layout
def _buffer_rows(lengths: tuple[int, ...], kernel_size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """List the rows of the padded buffer that hold tokens, earlier inputs, and each document's last K − 1 inputs."""
    tokens, before, last, start = [], [], [], 0
    for length in lengths:
        end = start + kernel_size - 1 + length
        before.append(torch.arange(start, start + kernel_size - 1))
        tokens.append(torch.arange(start + kernel_size - 1, end))
        last.append(torch.arange(end - (kernel_size - 1), end))
        start = end
    return torch.cat(tokens).to(device), torch.cat(before).to(device), torch.cat(last).to(device)


def _shifted_sum(padded: Tensor, weight: Tensor) -> Tensor:
    """Convolve without the activation: [rows, channels] → [rows − K + 1, channels]."""
    rows, kernel_size = len(padded) - weight.shape[1] + 1, weight.shape[1]
    total = padded[kernel_size - 1 :] * weight[:, kernel_size - 1]
    for j in range(kernel_size - 1):
        total.addcmul_(padded[j : j + rows], weight[:, j])
    return total


class _ShiftedConv(torch.autograd.Function):
    """`shifted` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, initial: Tensor, lengths: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        channels, kernel_size = weight.shape
        tokens, before, last = _buffer_rows(lengths, kernel_size, x.device)
        padded = x.new_empty(len(tokens) + len(before), channels)
        padded.index_copy_(0, tokens, x.flatten(0, 1)).index_copy_(0, before, initial.flatten(0, 1))
        ctx.save_for_backward(padded, weight, tokens, before, last)
        ctx.shapes = x.shape, initial.shape
        y = F.silu(_shifted_sum(padded, weight.to(x.dtype)), inplace=True).index_select(0, tokens - (kernel_size - 1))
        return y.view(x.shape), padded.index_select(0, last).view(initial.shape)

    @staticmethod
    @once_differentiable("short_conv")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_y, grad_state = grads
        padded, weight, tokens, before, last = ctx.saved_tensors
        x_shape, initial_shape = ctx.shapes
        kernel_size, w = weight.shape[1], weight.to(padded.dtype)
        rows = len(padded) - kernel_size + 1
        z = _shifted_sum(padded, w)
        dz = torch.zeros_like(z).index_copy_(0, tokens - (kernel_size - 1), grad_y.flatten(0, 1))
        dz = torch.ops.aten.silu_backward(dz, z)
        dpadded = torch.zeros_like(padded)
        dw = torch.empty_like(w)
        for j in range(kernel_size):
            dpadded[j : j + rows].addcmul_(dz, w[:, j])
            dw[:, j] = torch.linalg.vecdot(padded[j : j + rows], dz, dim=0)
        dpadded.index_add_(0, last, grad_state.flatten(0, 1))
        return (
            dpadded.index_select(0, tokens).view(x_shape),
            dw.to(weight.dtype),
            dpadded.index_select(0, before).view(initial_shape),
            None,
        )


def native(x: Tensor, weight: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Call the C++ kernel, which passes over memory once in each direction.

    float64, and kernels wider than `MAX_NATIVE_KERNEL_SIZE`, go to `shifted`.
    """
    if x.dtype == torch.float64 or weight.shape[1] > MAX_NATIVE_KERNEL_SIZE:
        return shifted(x, weight, initial_state, lengths)
    if initial_state is None:
        initial_state = x.new_zeros(len(lengths), weight.shape[1] - 1, x.shape[-1])
    y, state = _NativeShortConv.apply(x.float(), weight.float(), initial_state.float(), lengths)
    return y.to(x.dtype), state.to(x.dtype)


class _NativeShortConv(torch.autograd.Function):
    """The kernels of ops/native/short_conv.cpp, forward and backward; their weight is [K, channels]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, initial: Tensor, lengths: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        x, stride = rows_in_place(x)
        transposed, initial = weight.mT.contiguous(), initial.contiguous()
        y, last_inputs = x.new_empty(x.shape), torch.empty_like(initial)
        kernel_size, channels = transposed.shape
        sizes = len(lengths), channels, kernel_size, stride
        kernels.call("short_conv", x, transposed, initial, lengths_tensor(lengths), y, last_inputs, *sizes)
        ctx.save_for_backward(x, transposed, initial)
        ctx.lengths, ctx.sizes = lengths, sizes
        return y, last_inputs

    @staticmethod
    @once_differentiable("short_conv")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, transposed, initial = ctx.saved_tensors
        dy, dlast_inputs = (grad.contiguous() for grad in grads)
        dx, dweight, dinitial = x.new_empty(x.shape), torch.empty_like(transposed), torch.empty_like(initial)
        inputs = dy, dlast_inputs, x, transposed, initial, lengths_tensor(ctx.lengths)
        kernels.call("short_conv_backward", *inputs, dx, dweight, dinitial, *ctx.sizes)
        return dx, dweight.mT, dinitial, None


SHORT_CONV.register("native", native, kernels.obstacle)
SHORT_CONV.register(
    "triton", deferred("gossamer.ops.triton.short_conv", "short_conv"), devices.triton_obstacle, devices.is_accelerator
)
SHORT_CONV.register("shifted", shifted)
SHORT_CONV.register("reference", reference)
