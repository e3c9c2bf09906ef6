"""The step of a linear-attention layer, sequence by sequence and token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.ops.delta_rule.reference import l2norm
from gossamer.ops.gated_rms_norm.reference import reference as gated_rms_norm
from gossamer.ops.sequences import Sequences

if TYPE_CHECKING:
    from gossamer.ops.delta_step import DeltaMemory, DeltaWeights


def reference(qkvz: Tensor, ba: Tensor, weights: DeltaWeights, memory: DeltaMemory, sequences: Sequences) -> Tensor:
    """See `delta_step`."""
    _, value_heads, key_dim, value_dim = memory.recurrent.shape
    key_heads, repeats, before = memory.keys.shape[2], value_heads // memory.keys.shape[2], weights.conv.shape[1] - 1
    qkv, z = split_projection(qkvz, key_heads, [key_dim, key_dim, repeats * value_dim])
    b, a = split_projection(ba, key_heads, [repeats])
    state_type = memory.recurrent.dtype
    beta = b.to(state_type).sigmoid()
    g = -weights.A_log.to(state_type).exp() * F.softplus(a.to(state_type) + weights.dt_bias.to(state_type))

    outputs, token = [], 0
    for slot, kept, length in zip(sequences.slots, sequences.kept, sequences.lengths, strict=True):
        conv, state = memory.conv[slot], memory.recurrent[slot]
        for i in range(kept):
            k, update = memory.keys[slot, i].repeat_interleave(repeats, 0), memory.updates[slot, i]
            state.mul_(memory.gates[slot, i].exp()[:, None, None]).add_(k[:, :, None] * update[:, None, :])
        conv[:before] = conv[kept : kept + before].clone()
        now = state.clone()
        for i, t in enumerate(range(token, token + length)):
            conv[before + i] = qkv[t]
            mixed = F.silu((conv[i : i + before + 1].to(state_type) * weights.conv.mT.to(state_type)).sum(0))
            q, k, v = mixed.split([key_heads * key_dim, key_heads * key_dim, value_heads * value_dim])
            q, k = (l2norm(x.view(key_heads, key_dim)) for x in (q, k))
            memory.keys[slot, i], memory.gates[slot, i] = k, g[t]
            q, k = (x.repeat_interleave(repeats, 0) for x in (q * key_dim**-0.5, k))
            now = g[t].exp()[:, None, None] * now
            update = beta[t, :, None] * (v.view(value_heads, value_dim) - torch.einsum("hkv,hk->hv", now, k))
            memory.updates[slot, i] = update
            now = now + k[:, :, None] * update[:, None, :]
            outputs.append(torch.einsum("hkv,hk->hv", now, q))
        token += length
    if not outputs:
        return qkvz.new_empty(0, value_heads * value_dim)
    o = torch.stack(outputs).to(qkvz.dtype)
    return gated_rms_norm(o, z.view(o.shape), weights.norm, weights.eps).flatten(1)


def split_projection(x: Tensor, key_heads: int, widths: list[int]) -> tuple[Tensor, Tensor]:
    """[T, Hk · (widths | rest)] → the parts of these widths, each with all heads, side by side; and the rest."""
    heads = x.unflatten(1, (key_heads, -1))
    *parts, rest = heads.split([*widths, heads.shape[2] - sum(widths)], dim=2)
    return torch.cat([part.flatten(1) for part in parts], dim=1), rest.flatten(1)
