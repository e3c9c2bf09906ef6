"""The multi-token-prediction head: from a token's final hidden state and the next token, the token after that."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer.errors import UserError
from gossamer.model.config import ModelConfig
from gossamer.model.experts import Routing
from gossamer.model.layer_spec import layer_specs
from gossamer.model.linear import Linear
from gossamer.model.norm import RMSNorm
from gossamer.model.trunk import Block


@dataclass(frozen=True)
class MTPTraining:
    """The way in which the multi-token-prediction head is trained.

    Attributes:
        steps: tokens beyond the next one that are predicted, the one head applied to its own output each time
        decay: each further step weighs this much of the one before it (FastMTP, arXiv 2509.18362: 0.6)
        trunk_gradient: whether the head's loss teaches the trunk, too
    """

    steps: int = 1
    decay: float = 0.6
    trunk_gradient: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"mtp: steps must be 1 or more, not {self.steps}; leave the head out with mtp=None")

    def weights(self) -> list[float]:
        """Return the weights of the steps' losses, which sum to 1."""
        powers = [self.decay**step for step in range(self.steps)]
        return [power / sum(powers) for power in powers]


ONE_STEP = MTPTraining()


class MultiTokenPrediction(nn.Module):
    """The multi-token-prediction head, `mtp.*`: a full-attention block on [N_e(embedding of t_{i+1}) ; N_h(h_i)].

    The block has experts if the network has any.

    h_i is taken after the trunk's final norm, and what this returns is taken after `mtp.norm`, so that a further draft
    step can feed it back. Embedding and output head are the trunk's.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList([Block(spec) for spec in layer_specs(config)[config.num_hidden_layers :]])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_fc_norm_embedding = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_fc_norm_hidden = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        embedding: Tensor,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        cu_seqlens: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """Compute the hidden states for t_{i+2}.

        Args:
            embedding: [B, T, hidden], of t_{i+1}
            hidden: [B, T, hidden], h_i
            rotary: cos and sin of the tokens' positions
            cu_seqlens: where documents begin in the flattened batch; None: each row is one
            token_mask: [B·T] bool, false for padding; None: no token is padding

        Returns:
            Hidden states [B, T, hidden], and the block's routing.
        """
        x, routing = self.layers[0](self.join(embedding, hidden), rotary, cu_seqlens, None, token_mask)
        return self.norm(x), routing

    def join(self, embedding: Tensor, hidden: Tensor) -> Tensor:
        """Join an embedding and a hidden state, both […, hidden], to what the block reads, […, hidden]."""
        joined = torch.cat([self.pre_fc_norm_embedding(embedding), self.pre_fc_norm_hidden(hidden)], dim=-1)
        x: Tensor = self.fc(joined)
        return x
