"""Feed-forward parts: a dense SwiGLU, and the mixture of experts with its router and shared expert."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import ops
from gossamer.model.layer_spec import LayerSpec
from gossamer.model.linear import Linear, LowRank


class SwiGLU(nn.Module):
    """A dense feed-forward network, down(SiLU(gate(x)) ⊙ up(x))."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, width, bias=False)
        self.up_proj = Linear(hidden, width, bias=False)
        self.down_proj = Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network: […, hidden] → […, hidden]."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Experts(nn.Module):
    """The weights of the routed experts, stacked: one tensor for all gates and ups, one for all downs.

    Attributes:
        gate_up_low_rank: what is added to `gate_up_proj`, or None
        down_low_rank: what is added to `down_proj`, or None
    """

    gate_up_low_rank: LowRank | None
    down_low_rank: LowRank | None

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.gate_up_low_rank = self.down_low_rank = None
        experts, hidden, width = spec.num_experts, spec.hidden_size, spec.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x: Tensor, expert_indices: Tensor, expert_weights: Tensor) -> Tensor:
        """Send each token to its k experts: x [N, hidden], indices and weights [N, k] → [N, hidden]."""
        gate_up, down = self.gate_up_proj, self.down_proj
        is_trained = torch.is_grad_enabled() and (gate_up.requires_grad or down.requires_grad)
        has_low_rank = self.gate_up_low_rank is not None or self.down_low_rank is not None
        if not has_low_rank and (is_trained or not torch.is_grad_enabled()):
            return ops.grouped_mlp(x, expert_indices, expert_weights, gate_up, down)
        factors = (*_factors(gate_up, self.gate_up_low_rank), *_factors(down, self.down_low_rank))
        return ops.frozen_grouped_mlp(x, expert_indices, expert_weights, gate_up.detach(), down.detach(), *factors)


def _factors(weight: Tensor, low_rank: LowRank | None) -> tuple[Tensor, Tensor]:
    """Return the two factors of what is added to the experts' weights; of rank 0 if that is nothing."""
    if low_rank is not None:
        return low_rank.factors()
    experts, rows, width = weight.shape
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.new_empty(experts, 0, width, dtype=dtype), weight.new_empty(experts, rows, 0, dtype=dtype)


class Routing(NamedTuple):
    """The spread of a batch's tokens over experts by a layer's router, padding left out; of several layers, stacked.

    Attributes:
        load: [E] assignments to each expert per token, summing to k; without a gradient
        probability: [E] mean probability of each expert
        z: mean square of the logits' log-sum-exp, a scalar (router z-loss, arXiv 2202.08906, eq. 5)
        tokens: how many tokens these are means over, a scalar without a gradient
    """

    load: Tensor
    probability: Tensor
    z: Tensor
    tokens: Tensor


def stack_routing(layers: list[Routing]) -> Routing | None:
    """Join the routing of several layers in one, [L, E], [L, E], [L] and [L]; None for a dense network."""
    return Routing(*(torch.stack(field) for field in zip(*layers, strict=True))) if layers else None


def load_balancing_loss(load: Tensor, probability: Tensor) -> Tensor:
    """Compute E · Σ_e f_e p_e (arXiv 2101.03961, eq. 4), summed over layers: each is balanced for itself.

    Both arguments are [L, E]. The loss is scaled as in transformers: a layer's term is k when it is balanced.
    """
    return load.shape[-1] * (load * probability).sum()


class Router(nn.Module):
    """The router, which sends each token to its k most probable experts. It computes in float32 at least.

    `e_score_correction_bias`, if there is one, is added to the probabilities when experts are chosen, but not to the
    experts' weights (balancing without a loss, arXiv 2408.15664). Qwen3-Next itself has none.
    """

    e_score_correction_bias: Tensor | None

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(spec.num_experts, spec.hidden_size))
        self.register_buffer("e_score_correction_bias", None)
        self.top_k, self.norm_topk_prob = spec.num_experts_per_tok, spec.norm_topk_prob

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Routing]:
        """Choose experts.

        Args:
            x: [N, hidden]
            token_mask: [N] bool, false for padding; None: no token is padding

        Returns:
            The experts' indices [N, k], their weights [N, k], and how the tokens were spread.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(dtype), self.weight.to(dtype))
            normalizer = logits.logsumexp(-1)
            probabilities = (logits - normalizer.unsqueeze(-1)).exp()
        if self.e_score_correction_bias is None:
            weights, expert_indices = probabilities.topk(self.top_k, dim=-1)
        else:
            expert_indices = (probabilities.detach() + self.e_score_correction_bias).topk(self.top_k, dim=-1).indices
            weights = probabilities.gather(-1, expert_indices)
        if self.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return expert_indices, weights, self._routing(expert_indices, probabilities, normalizer.square(), token_mask)

    def _routing(
        self, expert_indices: Tensor, probabilities: Tensor, squares: Tensor, token_mask: Tensor | None
    ) -> Routing:
        """Take the means over the tokens that are no padding."""
        experts, dtype = len(self.weight), probabilities.dtype
        if token_mask is None:
            tokens = torch.full((), len(expert_indices), dtype=dtype, device=expert_indices.device)
            sums = probabilities.sum(0), squares.sum()
        else:
            tokens, counts = token_mask.sum().to(dtype), token_mask.to(dtype)
            # Padding goes to one more expert, which is left out.
            expert_indices = expert_indices.masked_fill(~token_mask.unsqueeze(1), experts)
            sums = (counts.unsqueeze(1) * probabilities).sum(0), (counts * squares).sum()
        divisor = tokens.clamp(min=1)
        load = torch.bincount(expert_indices.flatten(), minlength=experts + 1)[:experts].to(dtype) / divisor
        return Routing(load, sums[0] / divisor, sums[1] / divisor, tokens)


class SparseMLP(nn.Module):
    """The mixture of experts: a weighted sum of a token's experts, and σ(shared_expert_gate(x)) · the shared one."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.gate = Router(spec)
        self.experts = Experts(spec)
        self.shared_expert = SwiGLU(spec.hidden_size, spec.shared_expert_intermediate_size)
        self.shared_expert_gate = Linear(spec.hidden_size, 1, bias=False)

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Apply the experts: [B, T, hidden] → [B, T, hidden], and how the router spread the tokens.

        `token_mask`, [B·T] bool, is false for padding, which is left out of the routing; None: no token is padding.
        """
        rows = x.flatten(0, 1)
        expert_indices, weights, routing = self.gate(rows, token_mask)
        y = self.experts(rows, expert_indices, weights.to(rows.dtype))
        y = y + torch.sigmoid(self.shared_expert_gate(rows)) * self.shared_expert(rows)
        return y.view_as(x), routing
