"""Gated DeltaNet: linear attention by the gated delta rule, behind a short convolution, with a gated norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import ops
from gossamer.model.decode.pool import RecurrentState
from gossamer.model.layer_spec import LayerSpec
from gossamer.model.linear import Linear
from gossamer.model.norm import GatedRMSNorm, working_dtype
from gossamer.ops.delta_step import DeltaWeights


class GatedDeltaNet(nn.Module):
    """Gated DeltaNet, a layer's `linear_attn`, with Hk key heads of width dk and Hv = r · Hk value heads of width dv.

    Gates are computed in float32 whatever the model's dtype, and `gossamer.load` keeps `A_log` and `dt_bias` in it:
    in a narrower type A_log becomes −inf.
    """

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.key_heads, self.value_heads = spec.linear_num_key_heads, spec.linear_num_value_heads
        self.key_dim, self.value_dim = spec.linear_key_head_dim, spec.linear_value_head_dim
        hidden, key_width, value_width = spec.hidden_size, spec.linear_key_dim, spec.linear_value_dim
        self.in_proj_qkvz = Linear(hidden, 2 * key_width + 2 * value_width, bias=False)
        self.in_proj_ba = Linear(hidden, 2 * self.value_heads, bias=False)
        # A convolution's parameter in the checkpoint's shape, [channels, 1, K]; ops.short_conv computes it.
        channels, kernel_size = spec.linear_conv_dim, spec.linear_conv_kernel_dim
        self.conv1d = nn.Conv1d(channels, channels, kernel_size, groups=channels, padding=kernel_size - 1, bias=False)
        self.dt_bias = nn.Parameter(torch.ones(self.value_heads))
        self.A_log = nn.Parameter(torch.zeros(self.value_heads))
        self.norm = GatedRMSNorm(self.value_dim, spec.rms_norm_eps)
        self.out_proj = Linear(value_width, hidden, bias=False)

    def forward(self, x: Tensor, cu_seqlens: Tensor | None = None, state: RecurrentState | None = None) -> Tensor:
        """Apply the layer: [B, T, hidden] → [B, T, hidden].

        With a `state` the layer goes on from it and leaves there the state after these tokens.
        """
        if state is not None and state.speculative:
            return self._step(x, state)
        qkv, z, b, a = self._project(x)
        conv, recurrent = (None, None) if state is None else (state.conv, state.recurrent)
        mixed, conv = ops.short_conv(qkv, self.conv1d.weight.squeeze(1), conv, cu_seqlens)
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
            recurrent,
            cu_seqlens,
        )
        if state is not None:
            state.conv, state.recurrent = conv, recurrent
        out: Tensor = self.out_proj(self.norm(o, z.unflatten(-1, o.shape[-2:])).flatten(2))
        return out

    def _step(self, x: Tensor, state: RecurrentState) -> Tensor:
        """Apply the layer to a few tokens of each of several sequences, packed in one row."""
        qkvz, ba = self.in_proj_qkvz(x[0]), self.in_proj_ba(x[0])
        out: Tensor = self.out_proj(state.step(qkvz, ba, self.step_weights(x.dtype))).unsqueeze(0)
        return out

    def step_weights(self, dtype: torch.dtype) -> DeltaWeights:
        """Return the weights that `ops.delta_step` needs beside the projections, in no narrower type than `dtype`."""

        def wide(weight: Tensor) -> Tensor:
            return weight.detach().to(torch.promote_types(weight.dtype, dtype))

        conv = wide(self.conv1d.weight.squeeze(1))
        return DeltaWeights(conv, wide(self.A_log), wide(self.dt_bias), wide(self.norm.weight), self.norm.eps)

    def _project(self, x: Tensor) -> list[Tensor]:
        """Project [B, T, hidden] to [q | k | v], z, b and a, each with its heads one after the other.

        In the checkpoint both projections are interleaved, [q | k | r·v | r·z] and [r·b | r·a] for each key head. For
        many tokens the weights are put in order, for few tokens the results: whichever is less work.
        """
        repeats = self.value_heads // self.key_heads
        values = repeats * self.value_dim
        qkvz_widths, ba_widths = [self.key_dim, self.key_dim, values, values], [repeats, repeats]
        if x.shape[0] * x.shape[1] < x.shape[2]:
            q, k, v, z = self._in_order(self.in_proj_qkvz(x), qkvz_widths, dim=2)
            return [torch.cat([q, k, v], dim=2), z, *self._in_order(self.in_proj_ba(x), ba_widths, dim=2)]

        qkv, z = self._products(x, self.in_proj_qkvz, qkvz_widths, [slice(3), slice(3, 4)])
        [gates] = self._products(x, self.in_proj_ba, ba_widths, [slice(2)])
        return [qkv, z, *gates.chunk(2, dim=2)]

    def _products(self, x: Tensor, projection: Linear, widths: list[int], groups: list[slice]) -> list[Tensor]:
        """Multiply by groups of a projection's parts in order, and by the same rows of what is added to its weight."""

        def in_groups(matrix: Tensor) -> list[Tensor]:
            parts = self._in_order(matrix, widths, dim=0)
            return [parts[group][0] if len(parts[group]) == 1 else torch.cat(parts[group]) for group in groups]

        weights = in_groups(projection.weight)
        if projection.low_rank is None:
            return [ops.linear(x, weight) for weight in weights]
        A, B = projection.low_rank.factors()
        return [ops.linear(x, weight, None, (A, rows)) for weight, rows in zip(weights, in_groups(B), strict=True)]

    def _in_order(self, x: Tensor, widths: list[int], dim: int) -> list[Tensor]:
        """Split what has parts of these widths for each key head along `dim` into the parts, each with all heads."""
        parts = x.unflatten(dim, (self.key_heads, -1)).split(widths, dim + 1)
        return [part.flatten(dim, dim + 1) for part in parts]
