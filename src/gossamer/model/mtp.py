"""The multi-token-prediction head: from a token's final hidden state and the next token, the token after that."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.model.block import Block
from gossamer.model.config import FULL, ModelConfig
from gossamer.model.norm import RMSNorm


class MultiTokenPrediction(nn.Module):
    """`mtp.*`: one full-attention block on [N_e(embedding of t_{i+1}) ; N_h(h_i)], with experts if the network has any.

    h_i is taken after the trunk's final norm, and what this returns is taken after `mtp.norm`, so that a further draft
    step can feed it back. Embedding and output head are the trunk's.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList([Block(config, FULL, sparse=config.num_experts > 0)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_fc_norm_embedding = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_fc_norm_hidden = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, embedding: Tensor, hidden: Tensor, rotary: tuple[Tensor, Tensor], cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Embedding of t_{i+1} and h_i, both [B, T, hidden] → hidden states for t_{i+2}, and a balancing loss."""
        joined = torch.cat([self.pre_fc_norm_embedding(embedding), self.pre_fc_norm_hidden(hidden)], dim=-1)
        x, balance = self.layers[0](self.fc(joined), rotary, cu_seqlens)
        return self.norm(x), balance
