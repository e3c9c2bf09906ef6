"""Gated softmax attention: an output gate from the query projection, norms on q and k, partial rotary embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer import ops
from gossamer.model.config import ModelConfig
from gossamer.model.norm import RMSNorm
from gossamer.model.pool import KeyValuePages
from gossamer.model.rotary import rotate
from gossamer.model.state import KeyValueState


class GatedAttention(nn.Module):
    """A layer's `self_attn`. Shapes: H query heads, Hkv key and value heads, D the width of a head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim, hidden, bias = config.head_dim, config.hidden_size, config.attention_bias
        width, kv_width = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        # Per head the first D rows give the query and the next D its gate: not two global halves.
        self.q_proj = nn.Linear(hidden, 2 * width, bias=bias)
        self.k_proj = nn.Linear(hidden, kv_width, bias=bias)
        self.v_proj = nn.Linear(hidden, kv_width, bias=bias)
        self.o_proj = nn.Linear(width, hidden, bias=bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cu_seqlens: Tensor | None = None,
        state: KeyValueState | KeyValuePages | None = None,
    ) -> Tensor:
        """[B, T, hidden] → [B, T, hidden]; `state` is read and extended in place."""
        q, gate = self.q_proj(x).unflatten(-1, (-1, 2 * self.head_dim)).chunk(2, dim=-1)
        q = rotate(self.q_norm(q), rotary)
        k, v = self._keys_and_values(x, rotary)
        y = ops.attention(q, k, v, cu_seqlens) if state is None else state.attend(q, k, v)
        y = y * torch.sigmoid(gate)
        out: Tensor = self.o_proj(y.flatten(2))
        return out

    def remember(self, x: Tensor, rotary: tuple[Tensor, Tensor], state: KeyValuePages) -> None:
        """Extend `state` as `forward` does, where what the tokens themselves give is not needed."""
        state.write(*self._keys_and_values(x, rotary))

    def _keys_and_values(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """[B, T, Hkv, D] each."""
        heads = (-1, self.head_dim)
        k = rotate(self.k_norm(self.k_proj(x).unflatten(-1, heads)), rotary)
        return k, self.v_proj(x).unflatten(-1, heads)
