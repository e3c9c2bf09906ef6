"""The short convolution in Triton: one kernel forward, two backward, each over blocks of tokens and channels.

A token reads the K − 1 tokens before it where they are of its document, and the document's earlier inputs where they
are not; no padded copy of the batch is made. The backward pass first turns the gradient of y into that of the sum
before the activation, dz, and then convolves dz the other way round.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer import device as devices
from gossamer.ops.checks import first_order
from gossamer.ops.packing import cached_layout
from gossamer.ops.tiles import accumulator, token_rows

TOKENS, CHANNELS = 64, 64  # of a tile


def kernels(x: Tensor, weight: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """See `short_conv`; `lengths` are the documents' lengths in tokens."""
    taps = weight.shape[1]
    if initial_state is not None:
        initial_state = initial_state.to(x.dtype)
    if not x.numel():
        return x, x.new_zeros(len(lengths), taps - 1, x.shape[-1]) if initial_state is None else initial_state.clone()
    rows = token_rows(x)
    y = _ShortConv.apply(rows, weight, initial_state, lengths)
    return y.view(x.shape), _last_inputs(rows, initial_state, lengths, taps)


@cached_layout
def _places(lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """For each token its place in its document and the document's number, [tokens] int32."""
    place = torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths])
    document = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(torch.tensor(lengths))
    return place.to(device), document.to(device)


class _Edges(NamedTuple):
    """Of each document and each place 0 … K − 2, [N, K − 1]; indices of what does not exist are 0."""

    first: Tensor  # the token at that place
    first_exists: Tensor
    last: Tensor  # the token at that place of the document's last K − 1 inputs
    last_exists: Tensor
    past: Tensor  # where the last inputs of a document shorter than K − 1 reach into its given state: row


@cached_layout
def _edges(lengths: tuple[int, ...], taps: int, device: torch.device) -> _Edges:
    length = torch.tensor(lengths).unsqueeze(1)
    start, place = length.cumsum(0) - length, torch.arange(taps - 1).unsqueeze(0)
    last = length - (taps - 1) + place
    exists, reaches = place < length, last >= 0
    past = (place + length).clamp(max=max(0, taps - 2))
    parts = ((start + place) * exists, exists, (start + last) * reaches, reaches, past)
    return _Edges(*(part.to(device) for part in parts))


def _last_inputs(rows: Tensor, initial: Tensor | None, lengths: tuple[int, ...], taps: int) -> Tensor:
    """The last K − 1 inputs of each document, [N, K − 1, channels]; short documents reach into the given state."""
    edges = _edges(lengths, taps, rows.device)
    inputs, exists = rows[edges.last], edges.last_exists.unsqueeze(-1)
    if initial is None:
        return inputs * exists
    return torch.where(exists, inputs, initial.gather(1, edges.past.unsqueeze(-1).expand_as(inputs)))


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, initial: Tensor | None, lengths: tuple[int, ...]) -> Tensor:
        initial = None if initial is None else initial.contiguous()
        ctx.save_for_backward(x, weight, initial)
        ctx.lengths = lengths
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        grid, shape = _launch(x, weight)
        places = _places(lengths, x.device)
        with devices.current(x.device):
            _forward[grid](x, weight.contiguous(), initial, y, *places, len(x), x.stride(0), **shape)
        return y

    @staticmethod
    @first_order("short_conv")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, initial = ctx.saved_tensors
        grid, shape = _launch(x, weight)
        places = _places(ctx.lengths, x.device)
        dz, dx = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
        dtype = torch.promote_types(x.dtype, torch.float32)
        parts = torch.empty(grid[0], *weight.shape, dtype=dtype, device=x.device)
        w, dy = weight.contiguous(), grads[0].contiguous()
        with devices.current(x.device):
            _backward_activation[grid](x, w, initial, dy, dz, parts, *places, len(x), x.stride(0), **shape)
            _backward_input[grid](dz, w, dx, places[1], len(x), **shape)
        dinitial = None if initial is None else _initial_gradient(dz, w.to(dtype), initial, ctx.lengths)
        return dx, parts.sum(0).to(weight.dtype), dinitial, None


def _initial_gradient(dz: Tensor, weight: Tensor, initial: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Row i of the state was read with tap j by the token at place i − j of its document."""
    taps = weight.shape[1]
    edges = _edges(lengths, taps, dz.device)
    start = dz[edges.first].to(weight.dtype) * edges.first_exists.unsqueeze(-1)  # [N, K − 1, channels]
    gradient = torch.zeros_like(start)
    for row in range(taps - 1):
        for tap in range(row + 1):
            gradient[:, row] += weight[:, tap] * start[:, row - tap]
    return gradient.to(initial.dtype)


def _launch(x: Tensor, weight: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid over blocks of tokens and channels, and what the kernels are compiled for."""
    channels, taps = weight.shape
    shape = {"WIDTH": channels, "TAPS": taps, "ROWS": TOKENS, "BLOCK": CHANNELS, "ACC": accumulator(x.dtype)}
    return (triton.cdiv(len(x), TOKENS), triton.cdiv(channels, CHANNELS)), shape


@triton.jit
def _tile(num_tokens, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    tokens = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return tokens, channels, tokens < num_tokens, channels < WIDTH


@triton.jit
def _places_of(place_at, document_at, tokens, token_mask):
    place = tl.load(place_at + tokens, mask=token_mask, other=0)
    return place, tl.load(document_at + tokens, mask=token_mask, other=0)


@triton.jit
def _earlier_inputs(
    x_at,
    initial_at,
    tokens,
    channels,
    place,
    document,
    stride,
    SHIFT: tl.constexpr,
    token_mask,
    channel_mask,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    ACC: tl.constexpr,
):
    """What came `SHIFT` places before each token in its document, [ROWS, BLOCK]; zero before its start."""
    inside = (token_mask & (place >= SHIFT))[:, None] & channel_mask[None, :]
    x = tl.load(x_at + (tokens - SHIFT)[:, None] * stride + channels[None, :], mask=inside, other=0.0).to(ACC)
    if initial_at is not None and SHIFT > 0:
        before = (token_mask & (place < SHIFT))[:, None] & channel_mask[None, :]
        row = document.to(tl.int64) * (TAPS - 1) + place + (TAPS - 1 - SHIFT)
        x += tl.load(initial_at + row[:, None] * WIDTH + channels[None, :], mask=before, other=0.0).to(ACC)
    return x


@triton.jit
def _forward(
    x_at,
    weight_at,
    initial_at,
    y_at,
    place_at,
    document_at,
    num_tokens,
    stride,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    tokens, channels, token_mask, channel_mask = _tile(num_tokens, WIDTH, ROWS, BLOCK)
    place, document = _places_of(place_at, document_at, tokens, token_mask)
    z = tl.zeros([ROWS, BLOCK], dtype=ACC)
    for tap in tl.static_range(TAPS):
        w = tl.load(weight_at + channels * TAPS + tap, mask=channel_mask, other=0.0).to(ACC)
        x = _earlier_inputs(
            x_at,
            initial_at,
            tokens,
            channels,
            place,
            document,
            stride,
            TAPS - 1 - tap,
            token_mask,
            channel_mask,
            WIDTH,
            TAPS,
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
    place_at,
    document_at,
    num_tokens,
    stride,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """dz = dy · SiLU'(z), with z computed again, and a block's part of the weight's gradient [blocks, channels, K]."""
    tokens, channels, token_mask, channel_mask = _tile(num_tokens, WIDTH, ROWS, BLOCK)
    place, document = _places_of(place_at, document_at, tokens, token_mask)
    z = tl.zeros([ROWS, BLOCK], dtype=ACC)
    for tap in tl.static_range(TAPS):
        w = tl.load(weight_at + channels * TAPS + tap, mask=channel_mask, other=0.0).to(ACC)
        x = _earlier_inputs(
            x_at,
            initial_at,
            tokens,
            channels,
            place,
            document,
            stride,
            TAPS - 1 - tap,
            token_mask,
            channel_mask,
            WIDTH,
            TAPS,
            ACC,
        )
        z += x * w[None, :]
    mask = token_mask[:, None] & channel_mask[None, :]
    places = tokens[:, None] * WIDTH + channels[None, :]
    opened = 1.0 / (1.0 + tl.exp(-z))
    dz = tl.load(dy_at + places, mask=mask, other=0.0).to(ACC) * opened * (1.0 + z * (1.0 - opened))
    tl.store(dz_at + places, dz.to(dz_at.dtype.element_ty), mask=mask)
    for tap in tl.static_range(TAPS):
        x = _earlier_inputs(
            x_at,
            initial_at,
            tokens,
            channels,
            place,
            document,
            stride,
            TAPS - 1 - tap,
            token_mask,
            channel_mask,
            WIDTH,
            TAPS,
            ACC,
        )
        part = (tl.program_id(0).to(tl.int64) * WIDTH + channels) * TAPS + tap
        tl.store(dweight_at + part, tl.sum(x * dz, 0), mask=channel_mask)


@triton.jit
def _backward_input(
    dz_at,
    weight_at,
    dx_at,
    document_at,
    num_tokens,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """dx_t = Σ_j w_j dz_(t + K − 1 − j) inside the document."""
    tokens, channels, token_mask, channel_mask = _tile(num_tokens, WIDTH, ROWS, BLOCK)
    document = tl.load(document_at + tokens, mask=token_mask, other=-1)
    dx = tl.zeros([ROWS, BLOCK], dtype=ACC)
    for tap in tl.static_range(TAPS):
        later = tokens + (TAPS - 1 - tap)
        same = tl.load(document_at + later, mask=later < num_tokens, other=-2) == document
        mask = (token_mask & same)[:, None] & channel_mask[None, :]
        w = tl.load(weight_at + channels * TAPS + tap, mask=channel_mask, other=0.0).to(ACC)
        dz = tl.load(dz_at + later[:, None] * WIDTH + channels[None, :], mask=mask, other=0.0).to(ACC)
        dx += dz * w[None, :]
    mask = token_mask[:, None] & channel_mask[None, :]
    tl.store(dx_at + tokens[:, None] * WIDTH + channels[None, :], dx.to(dx_at.dtype.element_ty), mask=mask)
