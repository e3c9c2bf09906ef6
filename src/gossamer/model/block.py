"""One block of the trunk: x += Mixer(N1 x); x += FFN(N2 x)."""

from __future__ import annotations

from torch import Tensor, nn

from gossamer.model.attention import GatedAttention
from gossamer.model.config import LINEAR, ModelConfig
from gossamer.model.deltanet import GatedDeltaNet
from gossamer.model.experts import Routing, SparseMLP, SwiGLU
from gossamer.model.norm import RMSNorm
from gossamer.model.pool import DeltaSlots, KeyValuePages
from gossamer.model.state import KeyValueState, LinearState

LayerState = LinearState | KeyValueState | DeltaSlots | KeyValuePages


class Block(nn.Module):
    """`model.layers.{i}`; the mixer's attribute is named as in the checkpoint, `linear_attn` or `self_attn`."""

    def __init__(self, config: ModelConfig, mixer: str, sparse: bool) -> None:
        super().__init__()
        if mixer == LINEAR:
            self.linear_attn = GatedDeltaNet(config)
        else:
            self.self_attn = GatedAttention(config)
        self.is_linear, self.is_sparse = mixer == LINEAR, sparse
        self.mlp = SparseMLP(config) if sparse else SwiGLU(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cu_seqlens: Tensor | None = None,
        state: LayerState | None = None,
        counted: Tensor | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """[B, T, hidden] → [B, T, hidden] and how the router spread the tokens, None in a dense block.

        `counted`, [B·T] bool, says which tokens are no padding; None: all.
        """
        normed = self.input_layernorm(x)
        if self.is_linear:
            x = x + self.linear_attn(normed, cu_seqlens, state)
        else:
            x = x + self.self_attn(normed, rotary, cu_seqlens, state)
        normed = self.post_attention_layernorm(x)
        if self.is_sparse:
            y, routing = self.mlp(normed, counted)
            return x + y, routing
        return x + self.mlp(normed), None
