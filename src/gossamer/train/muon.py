"""Muon: momentum whose direction is orthogonalized, for the matrices inside the network.

Keller Jordan's Muon (kellerjordan.github.io/posts/muon) with the update scale and weight decay of Moonlight
(arXiv 2502.16982): an orthogonal matrix of m × n has entries of root mean square 1/√max(m, n), so multiplying by
0.2 √max(m, n) gives every matrix the step size that AdamW's updates have, and both share one learning rate.

What departs from the usual:

- A fused projection is not one matrix. Its parts are orthogonalized separately: q, k, v, z and gate for each head,
  gate and up of an expert, the two halves of the multi-token-prediction head's input.
- All experts of a layer are one batched product.
- float32 on a CPU and where the device has no fast bfloat16: `torch.optim.Muon` takes bfloat16 everywhere.
- Of a matrix spread over processes, each gathers the whole direction and keeps its part of the result. Experts are
  spread as wholes, so each process orthogonalizes its own and nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from gossamer import ops
from gossamer.model.attention import GatedAttention
from gossamer.model.deltanet import GatedDeltaNet
from gossamer.model.experts import Experts, SwiGLU
from gossamer.model.mtp import MultiTokenPrediction
from gossamer.train.eager import EagerOptimizer
from gossamer.train.world import to_local

_SCALE = 0.2  # root mean square of an AdamW update (arXiv 2502.16982, section 2.2)

Split = Callable[[Tensor], list[Tensor]]


def matrix_splits(model: nn.Module) -> dict[Tensor, Split]:
    """Return the parameters that Muon updates, each with the function that cuts it into views of its matrices.

    AdamW updates the others: embeddings, head, router, convolution, norms, biases, and the small projections to gates.
    """
    splits: dict[Tensor, Split] = {}
    for module in model.modules():
        match module:
            case GatedDeltaNet():
                repeats, key, value = module.value_heads // module.key_heads, module.key_dim, module.value_dim
                rows = [key, key, *[value] * (2 * repeats)]
                splits[module.in_proj_qkvz.weight] = _heads(module.key_heads, rows)
                splits[module.out_proj.weight] = _unsplit
            case GatedAttention():
                width = module.head_dim
                splits[module.q_proj.weight] = _heads(module.q_proj.out_features // (2 * width), [width, width])
                for projection in (module.k_proj, module.v_proj):
                    splits[projection.weight] = _heads(projection.out_features // width, [width])
                splits[module.o_proj.weight] = _unsplit
            case Experts():
                splits[module.gate_up_proj] = lambda weight: list(weight.chunk(2, dim=1))
                splits[module.down_proj] = _unsplit
            case SwiGLU():
                for linear in (module.gate_proj, module.up_proj, module.down_proj):
                    splits[linear.weight] = _unsplit
            case MultiTokenPrediction():
                splits[module.fc.weight] = lambda weight: list(weight.chunk(2, dim=1))
    return splits


def _unsplit(weight: Tensor) -> list[Tensor]:
    """Return a weight as the one matrix that it is, or one for each expert."""
    return [weight]


def _heads(heads: int, rows: list[int]) -> Split:
    """Return a function that cuts [heads · Σ rows, n] into parts of [heads, rows_i, n]."""
    return lambda weight: list(weight.unflatten(0, (heads, sum(rows))).split(rows, dim=1))


class Muon(EagerOptimizer):
    """The Muon optimizer, as this module's docstring describes it.

    Args:
        splits: parameters with the functions that cut them into matrices, from `matrix_splits`
        lr: learning rate; it means the same as AdamW's
        momentum: decay of the running mean of gradients (with Nesterov's look-ahead)
        weight_decay: decoupled, a multiple of the learning rate
    """

    def __init__(self, splits: dict[Tensor, Split], lr: float, momentum: float, weight_decay: float) -> None:
        self.splits = splits
        super().__init__(list(splits), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with the gradients at hand; parameters without one stay as they are."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    numbers = {name: group[name] for name in ("lr", "momentum", "weight_decay")}
                    self._update(parameter, parameter.grad, **numbers)

    def _update(self, parameter: Tensor, gradient: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = _gathered_matrices(gradient.lerp(average, momentum))
        for matrices in self.splits[parameter](update):
            matrices.copy_(ops.orthogonalize(matrices)).mul_(_SCALE * max(matrices.shape[-2:]) ** 0.5)
        parameter.mul_(1 - lr * weight_decay)
        to_local(parameter).sub_(_own_part(update, parameter), alpha=lr)


def _gathered_matrices(tensor: Tensor) -> Tensor:
    """Return what this process needs of a tensor to orthogonalize its part: all of a matrix, its own of the experts."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) and tensor.ndim == 2 else to_local(tensor)


def _own_part(update: Tensor, parameter: Tensor) -> Tensor:
    """Return the part of an update of `_gathered_matrices` that belongs to what this process holds of the parameter."""
    if not isinstance(parameter, DTensor) or parameter.ndim > 2:
        return update
    return distribute_tensor(update, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
