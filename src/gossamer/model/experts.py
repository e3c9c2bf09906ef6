"""Feed-forward parts: a dense SwiGLU, and the mixture of experts with its router and shared expert."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import ops
from gossamer.model.config import ModelConfig


class SwiGLU(nn.Module):
    """down(SiLU(gate(x)) ⊙ up(x))."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[…, hidden] → […, hidden]."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Experts(nn.Module):
    """The routed experts' weights, stacked: one tensor for all gates and ups, one for all downs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """[N, hidden] with [N, k] choices → [N, hidden]."""
        return ops.grouped_mlp(x, expert_ids, weights, self.gate_up_proj, self.down_proj)


class Router(nn.Module):
    """Sends each token to its k most probable experts. Logits and softmax are in float32 at least."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.chosen, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, hidden] → expert_ids [N, k], weights [N, k], probabilities [N, E]."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            probabilities = F.linear(x.to(dtype), self.weight.to(dtype)).softmax(-1)
        weights, expert_ids = probabilities.topk(self.chosen, dim=-1)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return expert_ids, weights, probabilities


def load_balancing_loss(probabilities: Tensor, expert_ids: Tensor) -> Tensor:
    """E · Σ_e f_e p_e of one layer (arXiv 2101.03961, eq. 4), scaled as transformers does: k when balanced.

    f_e is the number of assignments to expert e per token, p_e its mean probability; only p carries a gradient.
    """
    tokens, experts = probabilities.shape
    load = torch.bincount(expert_ids.flatten(), minlength=experts).to(probabilities.dtype) / tokens
    return experts * torch.dot(load, probabilities.mean(0))


class SparseMLP(nn.Module):
    """Σ over the chosen experts plus σ(shared_expert_gate(x)) times the shared expert."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_expert = SwiGLU(config.hidden_size, config.shared_expert_intermediate_size)
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, hidden] → [B, T, hidden] and this layer's load-balancing loss, a scalar."""
        rows = x.flatten(0, 1)
        expert_ids, weights, probabilities = self.gate(rows)
        y = self.experts(rows, expert_ids, weights.to(rows.dtype))
        y = y + torch.sigmoid(self.shared_expert_gate(rows)) * self.shared_expert(rows)
        return y.view_as(x), load_balancing_loss(probabilities, expert_ids)
