"""The trunk of the network: the embedding, the blocks, and the norm behind them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gossamer import device as devices
from gossamer.model.attention import GatedAttention
from gossamer.model.config import ModelConfig
from gossamer.model.decode.pool import KVCache, RecurrentState
from gossamer.model.deltanet import GatedDeltaNet
from gossamer.model.experts import Routing, SparseMLP, SwiGLU
from gossamer.model.layer_spec import LayerSpec, layer_specs
from gossamer.model.norm import RMSNorm


class Trunk(nn.Module):
    """The trunk, `model.*`: from token ids to the hidden states after the final norm.

    With `recompute` set, each block keeps only its input for the backward pass and is computed again there.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.recompute = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Block(spec) for spec in layer_specs(config)[: config.num_hidden_layers]])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: Tensor,
        rotary: tuple[Tensor, Tensor],
        cu_seqlens: Tensor | None,
        token_mask: Tensor | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """Compute hidden states.

        Args:
            input_ids: [B, T]
            rotary: cos and sin of the tokens' positions
            cu_seqlens: where documents begin in the flattened batch; None: each row is one
            token_mask: [B·T] bool, false for padding; None: no token is padding

        Returns:
            Hidden states [B, T, hidden], and the routing of each layer with experts.
        """
        x, routings = self.embed(input_ids), []
        for block in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x, routing = checkpoint(block, x, rotary, cu_seqlens, None, token_mask, use_reentrant=False)
            else:
                x, routing = block(x, rotary, cu_seqlens, None, token_mask)
            if routing is not None:
                routings.append(routing)
        return self.norm(x), routings

    def embed(self, input_ids: Tensor) -> Tensor:
        """Look up embeddings, […] → […, hidden], in the type of hidden states."""
        x: Tensor = self.embed_tokens(input_ids)
        return x.to(devices.hidden_dtype(x.device, x.dtype))


class Block(nn.Module):
    """A block, `model.layers.{i}`: x += Mixer(N1 x); x += FFN(N2 x).

    The mixer's attribute is named as in the checkpoint, `linear_attn` or `self_attn`.
    """

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.is_linear:
            self.linear_attn = GatedDeltaNet(spec)
        else:
            self.self_attn = GatedAttention(spec)
        self.mlp = SparseMLP(spec) if spec.is_sparse else SwiGLU(spec.hidden_size, spec.intermediate_size)
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cu_seqlens: Tensor | None = None,
        state: RecurrentState | KVCache | None = None,
        token_mask: Tensor | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """Apply the mixer and the feed-forward part.

        Args:
            x: [B, T, hidden]
            rotary: cos and sin of the tokens' positions
            cu_seqlens: where documents begin in the flattened batch; None: each row is one
            state: when decoding, what the layer holds of the sequences' pasts; it is extended in place
            token_mask: [B·T] bool, false for padding; None: no token is padding

        Returns:
            [B, T, hidden], and how the router spread the tokens, None in a dense block.
        """
        normed = self.input_layernorm(x)
        if self.spec.is_linear:
            x = x + self.linear_attn(normed, cu_seqlens, state)
        else:
            x = x + self.self_attn(normed, rotary, cu_seqlens, state)
        normed = self.post_attention_layernorm(x)
        if self.spec.is_sparse:
            y, routing = self.mlp(normed, token_mask)
            return x + y, routing
        return x + self.mlp(normed), None
