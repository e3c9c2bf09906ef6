"""Gated DeltaNet: linear attention by the gated delta rule, behind a short convolution, with a gated norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import ops
from gossamer.model.config import ModelConfig
from gossamer.model.norm import GatedRMSNorm, working_dtype
from gossamer.model.pool import DeltaSlots
from gossamer.model.state import LinearState
from gossamer.ops.delta_step import DeltaWeights


class GatedDeltaNet(nn.Module):
    """A layer's `linear_attn`. Shapes: Hk key heads of dk, Hv = r · Hk value heads of dv.

    Gates are computed in float32 whatever the model's dtype, and `gossamer.load` keeps `A_log` and `dt_bias` in it:
    in a narrower type A_log becomes −inf.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.key_heads, self.value_heads = config.linear_num_key_heads, config.linear_num_value_heads
        self.key_dim, self.value_dim = config.linear_key_head_dim, config.linear_value_head_dim
        hidden, key_width, value_width = config.hidden_size, config.linear_key_dim, config.linear_value_dim
        self.in_proj_qkvz = nn.Linear(hidden, 2 * key_width + 2 * value_width, bias=False)
        self.in_proj_ba = nn.Linear(hidden, 2 * self.value_heads, bias=False)
        # A convolution's parameter in the checkpoint's shape, [channels, 1, K]; ops.short_conv computes it.
        channels, taps = config.linear_conv_dim, config.linear_conv_kernel_dim
        self.conv1d = nn.Conv1d(channels, channels, taps, groups=channels, padding=taps - 1, bias=False)
        self.dt_bias = nn.Parameter(torch.ones(self.value_heads))
        self.A_log = nn.Parameter(torch.zeros(self.value_heads))
        self.norm = GatedRMSNorm(self.value_dim, config.rms_norm_eps)
        self.out_proj = nn.Linear(value_width, hidden, bias=False)

    def forward(
        self, x: Tensor, cu_seqlens: Tensor | None = None, state: LinearState | DeltaSlots | None = None
    ) -> Tensor:
        """[B, T, hidden] → [B, T, hidden]; `state` is read and replaced in place."""
        if isinstance(state, DeltaSlots) and state.steps:
            return self._step(x, state)
        qkv, z, b, a = self._project(x)
        before = state or LinearState()
        mixed, conv_state = ops.short_conv(qkv, self.conv1d.weight.squeeze(1), before.conv, cu_seqlens)
        key_width, value_width = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        q, k, v = mixed.split([key_width, key_width, value_width], dim=-1)

        dtype = working_dtype(x)
        beta = b.to(dtype).sigmoid()
        g = -self.A_log.to(dtype).exp() * F.softplus(a.to(dtype) + self.dt_bias.to(dtype))
        o, recurrent = ops.delta_rule(
            q.unflatten(-1, (self.key_heads, self.key_dim)),
            k.unflatten(-1, (self.key_heads, self.key_dim)),
            v.unflatten(-1, (self.value_heads, self.value_dim)),
            g,
            beta,
            before.recurrent,
            cu_seqlens,
        )
        if state is not None:
            state.conv, state.recurrent = conv_state, recurrent
        out: Tensor = self.out_proj(self.norm(o, z.unflatten(-1, o.shape[-2:])).flatten(2))
        return out

    def _step(self, x: Tensor, state: DeltaSlots) -> Tensor:
        """A few tokens of each of several sequences, packed in one row."""
        qkvz, ba = self.in_proj_qkvz(x[0]), self.in_proj_ba(x[0])
        out: Tensor = self.out_proj(state.step(qkvz, ba, self.step_weights)).unsqueeze(0)
        return out

    @property
    def step_weights(self) -> DeltaWeights:
        """What `ops.delta_step` needs beside the projections."""
        return DeltaWeights(self.conv1d.weight.squeeze(1), self.A_log, self.dt_bias, self.norm.weight, self.norm.eps)

    def _project(self, x: Tensor) -> list[Tensor]:
        """[B, T, hidden] → [q | k | v], z, b and a, each with its heads one after the other.

        In the checkpoint both projections are interleaved, [q | k | r·v | r·z] and [r·b | r·a] for each key head. Of
        many tokens the weights are put in order, of few the results: whichever is less.
        """
        repeats = self.value_heads // self.key_heads
        values = repeats * self.value_dim
        qkvz, ba = self.in_proj_qkvz.weight, self.in_proj_ba.weight
        if x.shape[0] * x.shape[1] < x.shape[2]:
            q, k, v, z = self._in_order(F.linear(x, qkvz), [self.key_dim, self.key_dim, values, values], dim=2)
            return [torch.cat([q, k, v], dim=2), z, *self._in_order(F.linear(x, ba), [repeats, repeats], dim=2)]
        q, k, v, z = self._in_order(qkvz, [self.key_dim, self.key_dim, values, values], dim=0)
        gates = torch.cat(self._in_order(ba, [repeats, repeats], dim=0))
        qkv, z = (F.linear(x, weight) for weight in (torch.cat([q, k, v]), z))
        return [qkv, z, *F.linear(x, gates).chunk(2, dim=2)]

    def _in_order(self, x: Tensor, widths: list[int], dim: int) -> list[Tensor]:
        """Along `dim`, parts of these widths for each key head → the parts, each with all heads."""
        parts = x.unflatten(dim, (self.key_heads, -1)).split(widths, dim + 1)
        return [part.flatten(dim, dim + 1) for part in parts]
