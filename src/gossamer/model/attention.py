"""Gated softmax attention: an output gate from the query projection, norms on q and k, partial rotary embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer import ops
from gossamer.model.decode.pool import KVCache
from gossamer.model.layer_spec import LayerSpec
from gossamer.model.linear import Linear
from gossamer.model.norm import RMSNorm
from gossamer.model.rotary import rotate


class GatedAttention(nn.Module):
    """Gated attention, a layer's `self_attn`, with H query heads and Hkv key and value heads of width D."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.head_dim, hidden, bias = spec.head_dim, spec.hidden_size, spec.attention_bias
        width, kv_width = spec.num_attention_heads * self.head_dim, spec.num_key_value_heads * self.head_dim
        # Per head the first D rows give the query and the next D its gate: not two global halves.
        self.q_proj = Linear(hidden, 2 * width, bias=bias)
        self.k_proj = Linear(hidden, kv_width, bias=bias)
        self.v_proj = Linear(hidden, kv_width, bias=bias)
        self.o_proj = Linear(width, hidden, bias=bias)
        self.q_norm = RMSNorm(self.head_dim, spec.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, spec.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cu_seqlens: Tensor | None = None,
        kv_cache: KVCache | None = None,
    ) -> Tensor:
        """Apply the layer: [B, T, hidden] → [B, T, hidden].

        With a `kv_cache` its keys and values come before these tokens', which are added to it.
        """
        q, gate = self.q_proj(x).unflatten(-1, (-1, 2 * self.head_dim)).chunk(2, dim=-1)
        q = rotate(self.q_norm(q), rotary)
        k, v = self._keys_and_values(x, rotary)
        y = ops.attention(q, k, v, cu_seqlens) if kv_cache is None else kv_cache.attend(q, k, v)
        y = y * torch.sigmoid(gate)
        out: Tensor = self.o_proj(y.flatten(2))
        return out

    def fill(self, x: Tensor, rotary: tuple[Tensor, Tensor], kv_cache: KVCache) -> None:
        """Add the tokens' keys and values to the cache, as `forward` does, and compute nothing else."""
        kv_cache.write(*self._keys_and_values(x, rotary))

    def _keys_and_values(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Project to keys and values, [B, T, Hkv, D] each."""
        heads = (-1, self.head_dim)
        k = rotate(self.k_norm(self.k_proj(x).unflatten(-1, heads)), rotary)
        return k, self.v_proj(x).unflatten(-1, heads)
