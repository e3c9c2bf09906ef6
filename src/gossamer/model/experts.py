"""Feed-forward parts: a dense SwiGLU, and the mixture of experts with its router and shared expert."""

from __future__ import annotations

from typing import NamedTuple

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


class Routing(NamedTuple):
    """How a layer's router spread the tokens of a batch, padding left out; of several layers, stacked.

    load: [E] assignments to each expert per token, summing to k; without a gradient
    probability: [E] mean probability of each expert
    z: mean square of the logits' log-sum-exp, a scalar (router z-loss, arXiv 2202.08906, eq. 5)
    tokens: how many tokens these are the means of, a scalar without a gradient
    """

    load: Tensor
    probability: Tensor
    z: Tensor
    tokens: Tensor


def stack_routing(layers: list[Routing]) -> Routing | None:
    """Several layers' routing in one, [L, E], [L, E], [L] and [L]; None for a dense network."""
    return Routing(*(torch.stack(field) for field in zip(*layers, strict=True))) if layers else None


def load_balancing_loss(load: Tensor, probability: Tensor) -> Tensor:
    """E · Σ_e f_e p_e (arXiv 2101.03961, eq. 4), summed over layers: each is balanced for itself. Both [L, E].

    Scaled as transformers does: a layer's term is k when it is balanced.
    """
    return load.shape[-1] * (load * probability).sum()


class Router(nn.Module):
    """Sends each token to its k most probable experts. Logits and softmax are in float32 at least.

    `e_score_correction_bias`, if there is one, is added to the probabilities for the choice alone, not for the weights
    (balancing without a loss, arXiv 2408.15664). Qwen3-Next itself has none.
    """

    e_score_correction_bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", None)
        self.chosen, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob

    def forward(self, x: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor, Routing]:
        """[N, hidden] → expert_ids [N, k], weights [N, k], and what became of the batch.

        `counted`, [N] bool, says which tokens are no padding; None: all.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(dtype), self.weight.to(dtype))
            normaliser = logits.logsumexp(-1)
            probabilities = (logits - normaliser.unsqueeze(-1)).exp()
        if self.e_score_correction_bias is None:
            weights, expert_ids = probabilities.topk(self.chosen, dim=-1)
        else:
            expert_ids = (probabilities.detach() + self.e_score_correction_bias).topk(self.chosen, dim=-1).indices
            weights = probabilities.gather(-1, expert_ids)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return expert_ids, weights, self._routing(expert_ids, probabilities, normaliser.square(), counted)

    def _routing(self, expert_ids: Tensor, probabilities: Tensor, squares: Tensor, counted: Tensor | None) -> Routing:
        """The means over the counted tokens."""
        experts, dtype = len(self.weight), probabilities.dtype
        if counted is None:
            tokens = torch.full((), len(expert_ids), dtype=dtype, device=expert_ids.device)
            sums = probabilities.sum(0), squares.sum()
        else:
            tokens, counts = counted.sum().to(dtype), counted.to(dtype)
            expert_ids = expert_ids.masked_fill(~counted.unsqueeze(1), experts)  # one more, which is left out
            sums = (counts.unsqueeze(1) * probabilities).sum(0), (counts * squares).sum()
        divisor = tokens.clamp(min=1)
        load = torch.bincount(expert_ids.flatten(), minlength=experts + 1)[:experts].to(dtype) / divisor
        return Routing(load, sums[0] / divisor, sums[1] / divisor, tokens)


class SparseMLP(nn.Module):
    """Σ over the chosen experts plus σ(shared_expert_gate(x)) times the shared expert."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_expert = SwiGLU(config.hidden_size, config.shared_expert_intermediate_size)
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, x: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Routing]:
        """[B, T, hidden] → [B, T, hidden] and how the router spread the tokens, those of `counted` [B·T] if given."""
        rows = x.flatten(0, 1)
        expert_ids, weights, routing = self.gate(rows, counted)
        y = self.experts(rows, expert_ids, weights.to(rows.dtype))
        y = y + torch.sigmoid(self.shared_expert_gate(rows)) * self.shared_expert(rows)
        return y.view_as(x), routing
