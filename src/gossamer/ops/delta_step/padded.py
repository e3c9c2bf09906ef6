"""The step of a linear-attention layer through PyTorch's functions, all sequences at once, the shorter filled up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.ops.delta_rule.reference import l2norm
from gossamer.ops.delta_step.reference import split_projection
from gossamer.ops.gated_rms_norm.plain import plain as gated_rms_norm
from gossamer.ops.sequences import Sequences

if TYPE_CHECKING:
    from gossamer.ops.delta_step import DeltaMemory, DeltaWeights


def padded(qkvz: Tensor, ba: Tensor, weights: DeltaWeights, memory: DeltaMemory, sequences: Sequences) -> Tensor:
    """See `delta_step`."""
    device = qkvz.device
    slots, kept, _, lengths = sequences.steps.to(device)
    state = _replay(memory, slots, kept, max(sequences.kept, default=0))
    window = _shift(memory.conv, slots, kept, weights.conv.shape[1] - 1)
    most = max(sequences.lengths, default=0)
    if not most:
        return qkvz.new_empty(0, memory.recurrent.shape[1] * memory.recurrent.shape[3])

    _, value_heads, key_dim, value_dim = memory.recurrent.shape
    key_heads, repeats = memory.keys.shape[2], value_heads // memory.keys.shape[2]
    qkv, z = split_projection(qkvz, key_heads, [key_dim, key_dim, repeats * value_dim])
    b, a = split_projection(ba, key_heads, [repeats])
    state_type, places = state.dtype, torch.arange(most, device=device)
    here = places < lengths[:, None]
    tokens = (sequences.cu_seqlens[:-1].to(device)[:, None] + places).clamp(max=len(qkvz) - 1)  # [N, most]
    inputs = qkv[tokens]
    memory.conv[slots[:, None], window.shape[1] + places] = inputs.to(memory.conv.dtype)
    window = torch.cat([window.to(inputs.dtype), inputs], dim=1).to(state_type)
    taps = weights.conv.to(state_type).mT
    mixed = F.silu(sum(window[:, tap : tap + most] * weight for tap, weight in enumerate(taps)))
    width = key_heads * key_dim
    q, k, v = mixed.split([width, width, value_heads * value_dim], dim=2)
    q, k = (l2norm(x.unflatten(2, (key_heads, key_dim))) for x in (q, k))
    v, q = v.unflatten(2, (value_heads, value_dim)), q * key_dim**-0.5
    beta = b[tokens].to(state_type).sigmoid()
    g = -weights.A_log.to(state_type).exp() * F.softplus(a[tokens].to(state_type) + weights.dt_bias.to(state_type))
    memory.keys[slots, :most], memory.gates[slots, :most] = k, g
    q, k = (x.repeat_interleave(repeats, dim=2) for x in (q, k))
    outputs = []
    for i in range(most):
        state = g[:, i].exp()[:, :, None, None] * state
        update = beta[:, i, :, None] * (v[:, i] - torch.einsum("nhkv,nhk->nhv", state, k[:, i]))
        memory.updates[slots, i] = update
        state = state + k[:, i, :, :, None] * update[:, :, None, :]
        outputs.append(torch.einsum("nhkv,nhk->nhv", state, q[:, i]))
    o = torch.stack(outputs, dim=1)[here].to(qkvz.dtype)
    return gated_rms_norm(o, z.view(o.shape), weights.norm, weights.eps).flatten(1)


def _replay(memory: DeltaMemory, slots: Tensor, kept: Tensor, most: int) -> Tensor:
    """The slots' states after the tokens of their last steps that count; written back, and returned."""
    state = memory.recurrent[slots]
    repeats = memory.updates.shape[2] // memory.keys.shape[2]
    for i in range(most):
        k, update = memory.keys[slots, i].repeat_interleave(repeats, dim=1), memory.updates[slots, i]
        after = memory.gates[slots, i].exp()[:, :, None, None] * state + k[..., None] * update[:, :, None, :]
        state = torch.where((i < kept)[:, None, None, None], after, state)
    if most:
        memory.recurrent[slots] = state
    return state


def _shift(conv: Tensor, slots: Tensor, kept: Tensor, before: int) -> Tensor:
    """The inputs before the new tokens, [N, K − 1, channels], moved to the front of their slots."""
    rows = torch.arange(before, device=conv.device)
    window = conv[slots[:, None], kept[:, None] + rows]
    conv[slots[:, None], rows] = window
    return window
