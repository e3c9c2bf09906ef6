"""The short convolution in Triton: one kernel forward and two backward, each over blocks of tokens and channels.

A token reads the K − 1 tokens before it if they belong to its document, and otherwise the document's earlier inputs; no
padded copy of the batch is made. The backward pass first turns the gradient of y into the gradient dz of the sum before
the activation, and then convolves dz in the opposite direction.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer import device as devices
from gossamer.ops.checks import once_differentiable
from gossamer.ops.packing import cached_layout
from gossamer.ops.triton.tiles import accumulator, token_rows

TOKENS, CHANNELS = 64, 64  # sides of a tile


def short_conv(
    x: Tensor, weight: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Convolve; the arguments are those of `gossamer.ops.short_conv`, with the documents' lengths in tokens."""
    kernel_size = weight.shape[1]
    if initial_state is not None:
        initial_state = initial_state.to(x.dtype)
    if not x.numel():
        return x, x.new_zeros(
            len(lengths), kernel_size - 1, x.shape[-1]
        ) if initial_state is None else initial_state.clone()
    rows = token_rows(x)
    y = _ShortConv.apply(rows, weight, initial_state, lengths)
    return y.view(x.shape), _last_inputs(rows, initial_state, lengths, kernel_size)


@cached_layout
def _positions(lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """List each token's position in its document and the document's number, [tokens] int32."""
    position = torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths])
    document = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(torch.tensor(lengths))
    return position.to(device), document.to(device)


class _Edges(NamedTuple):
    """The first and last K − 1 inputs of each document, all [N, K − 1]; indices of tokens that do not exist are 0.

    Attributes:
        first: the document's first tokens
        first_exists: whether the document has that many tokens
        last: the tokens among the document's last K − 1 inputs
        last_exists: whether that input is a token, not part of the initial state
        past: the row of the initial state that holds the input where it is not a token
    """

    first: Tensor
    first_exists: Tensor
    last: Tensor
    last_exists: Tensor
    past: Tensor


@cached_layout
def _edges(lengths: tuple[int, ...], kernel_size: int, device: torch.device) -> _Edges:
    """Find the first and last inputs of documents of these lengths."""
    length = torch.tensor(lengths).unsqueeze(1)
    start, offset = length.cumsum(0) - length, torch.arange(kernel_size - 1).unsqueeze(0)
    last = length - (kernel_size - 1) + offset
    first_exists, last_exists = offset < length, last >= 0
    past = (offset + length).clamp(max=max(0, kernel_size - 2))
    parts = ((start + offset) * first_exists, first_exists, (start + last) * last_exists, last_exists, past)
    return _Edges(*(part.to(device) for part in parts))


def _last_inputs(rows: Tensor, initial: Tensor | None, lengths: tuple[int, ...], kernel_size: int) -> Tensor:
    """Collect each document's last K − 1 inputs, [N, K − 1, channels], from the initial state if it is short."""
    edges = _edges(lengths, kernel_size, rows.device)
    inputs, exists = rows[edges.last], edges.last_exists.unsqueeze(-1)
    if initial is None:
        return inputs * exists
    return torch.where(exists, inputs, initial.gather(1, edges.past.unsqueeze(-1).expand_as(inputs)))


class _ShortConv(torch.autograd.Function):
    """The three kernels below, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, initial: Tensor | None, lengths: tuple[int, ...]) -> Tensor:
        initial = None if initial is None else initial.contiguous()
        ctx.save_for_backward(x, weight, initial)
        ctx.lengths = lengths
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        grid, shape = _launch(x, weight)
        positions = _positions(lengths, x.device)
        with devices.device_context(x.device):
            _forward[grid](x, weight.contiguous(), initial, y, *positions, len(x), x.stride(0), **shape)
        return y

    @staticmethod
    @once_differentiable("short_conv")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, initial = ctx.saved_tensors
        grid, shape = _launch(x, weight)
        positions = _positions(ctx.lengths, x.device)
        dz, dx = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
        dtype = torch.promote_types(x.dtype, torch.float32)
        parts = torch.empty(grid[0], *weight.shape, dtype=dtype, device=x.device)
        w, dy = weight.contiguous(), grads[0].contiguous()
        with devices.device_context(x.device):
            _backward_activation[grid](x, w, initial, dy, dz, parts, *positions, len(x), x.stride(0), **shape)
            _backward_input[grid](dz, w, dx, positions[1], len(x), **shape)
        dinitial = None if initial is None else _initial_gradient(dz, w.to(dtype), initial, ctx.lengths)
        return dx, parts.sum(0).to(weight.dtype), dinitial, None


def _initial_gradient(dz: Tensor, weight: Tensor, initial: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Compute the initial state's gradient: the token at position i − j of its document read row i with weight j."""
    kernel_size = weight.shape[1]
    edges = _edges(lengths, kernel_size, dz.device)
    start = dz[edges.first].to(weight.dtype) * edges.first_exists.unsqueeze(-1)  # [N, K − 1, channels]
    gradient = torch.zeros_like(start)
    for row in range(kernel_size - 1):
        for j in range(row + 1):
            gradient[:, row] += weight[:, j] * start[:, row - j]
    return gradient.to(initial.dtype)


def _launch(x: Tensor, weight: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """Choose the grid over blocks of tokens and channels and the constants for which the kernels are compiled."""
    channels, kernel_size = weight.shape
    shape = {"WIDTH": channels, "KERNEL": kernel_size, "ROWS": TOKENS, "BLOCK": CHANNELS, "ACC": accumulator(x.dtype)}
    return (triton.cdiv(len(x), TOKENS), triton.cdiv(channels, CHANNELS)), shape


@triton.jit
def _tile(num_tokens, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    tokens = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return tokens, channels, tokens < num_tokens, channels < WIDTH


@triton.jit
def _positions_of(position_at, document_at, tokens, token_mask):
    position = tl.load(position_at + tokens, mask=token_mask, other=0)
    return position, tl.load(document_at + tokens, mask=token_mask, other=0)


@triton.jit
def _earlier_inputs(
    x_at,
    initial_at,
    tokens,
    channels,
    position,
    document,
    stride,
    SHIFT: tl.constexpr,
    token_mask,
    channel_mask,
    WIDTH: tl.constexpr,
    KERNEL: tl.constexpr,
    ACC: tl.constexpr,
):
    """Load the input `SHIFT` positions before each token in its document, [ROWS, BLOCK]; zero before its start."""
    inside = (token_mask & (position >= SHIFT))[:, None] & channel_mask[None, :]
    x = tl.load(x_at + (tokens - SHIFT)[:, None] * stride + channels[None, :], mask=inside, other=0.0).to(ACC)
    if initial_at is not None and SHIFT > 0:
        before = (token_mask & (position < SHIFT))[:, None] & channel_mask[None, :]
        row = document.to(tl.int64) * (KERNEL - 1) + position + (KERNEL - 1 - SHIFT)
        x += tl.load(initial_at + row[:, None] * WIDTH + channels[None, :], mask=before, other=0.0).to(ACC)
    return x


@triton.jit
def _forward(
    x_at,
    weight_at,
    initial_at,
    y_at,
    position_at,
    document_at,
    num_tokens,
    stride,
    WIDTH: tl.constexpr,
    KERNEL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    tokens, channels, token_mask, channel_mask = _tile(num_tokens, WIDTH, ROWS, BLOCK)
    position, document = _positions_of(position_at, document_at, tokens, token_mask)
    z = tl.zeros([ROWS, BLOCK], dtype=ACC)
    for j in tl.static_range(KERNEL):
        w = tl.load(weight_at + channels * KERNEL + j, mask=channel_mask, other=0.0).to(ACC)
        x = _earlier_inputs(
            x_at,
            initial_at,
            tokens,
            channels,
            position,
            document,
            stride,
            KERNEL - 1 - j,
            token_mask,
            channel_mask,
            WIDTH,
            KERNEL,
            ACC,
        )
        z += x * w[None, :]
    y = z / (1.0 + tl.exp(-z))
    mask = token_mask[:, None] & channel_mask[None, :]
    tl.store(y_at + tokens[:, None] * WIDTH + channels[None, :], y.to(y_at.dtype.element_ty), mask=mask)


@triton.jit
def _backward_activation(
    x_at,
    weight_at,
    initial_at,
    dy_at,
    dz_at,
    dweight_at,
    position_at,
    document_at,
    num_tokens,
    stride,
    WIDTH: tl.constexpr,
    KERNEL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Compute dz = dy · SiLU'(z), with z recomputed, and the block's part of dweight [blocks, channels, K]."""
    tokens, channels, token_mask, channel_mask = _tile(num_tokens, WIDTH, ROWS, BLOCK)
    position, document = _positions_of(position_at, document_at, tokens, token_mask)
    z = tl.zeros([ROWS, BLOCK], dtype=ACC)
    for j in tl.static_range(KERNEL):
        w = tl.load(weight_at + channels * KERNEL + j, mask=channel_mask, other=0.0).to(ACC)
        x = _earlier_inputs(
            x_at,
            initial_at,
            tokens,
            channels,
            position,
            document,
            stride,
            KERNEL - 1 - j,
            token_mask,
            channel_mask,
            WIDTH,
            KERNEL,
            ACC,
        )
        z += x * w[None, :]
    mask = token_mask[:, None] & channel_mask[None, :]
    offsets = tokens[:, None] * WIDTH + channels[None, :]
    sigmoid = 1.0 / (1.0 + tl.exp(-z))
    dz = tl.load(dy_at + offsets, mask=mask, other=0.0).to(ACC) * sigmoid * (1.0 + z * (1.0 - sigmoid))
    tl.store(dz_at + offsets, dz.to(dz_at.dtype.element_ty), mask=mask)
    for j in tl.static_range(KERNEL):
        x = _earlier_inputs(
            x_at,
            initial_at,
            tokens,
            channels,
            position,
            document,
            stride,
            KERNEL - 1 - j,
            token_mask,
            channel_mask,
            WIDTH,
            KERNEL,
            ACC,
        )
        part = (tl.program_id(0).to(tl.int64) * WIDTH + channels) * KERNEL + j
        tl.store(dweight_at + part, tl.sum(x * dz, 0), mask=channel_mask)


@triton.jit
def _backward_input(
    dz_at,
    weight_at,
    dx_at,
    document_at,
    num_tokens,
    WIDTH: tl.constexpr,
    KERNEL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Compute dx_t = Σ_j w_j dz_(t + K − 1 − j) within the document."""
    tokens, channels, token_mask, channel_mask = _tile(num_tokens, WIDTH, ROWS, BLOCK)
    document = tl.load(document_at + tokens, mask=token_mask, other=-1)
    dx = tl.zeros([ROWS, BLOCK], dtype=ACC)
    for j in tl.static_range(KERNEL):
        later = tokens + (KERNEL - 1 - j)
        same = tl.load(document_at + later, mask=later < num_tokens, other=-2) == document
        mask = (token_mask & same)[:, None] & channel_mask[None, :]
        w = tl.load(weight_at + channels * KERNEL + j, mask=channel_mask, other=0.0).to(ACC)
        dz = tl.load(dz_at + later[:, None] * WIDTH + channels[None, :], mask=mask, other=0.0).to(ACC)
        dx += dz * w[None, :]
    mask = token_mask[:, None] & channel_mask[None, :]
    tl.store(dx_at + tokens[:, None] * WIDTH + channels[None, :], dx.to(dx_at.dtype.element_ty), mask=mask)
