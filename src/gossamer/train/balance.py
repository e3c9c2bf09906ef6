"""Load balance: what keeps the experts of a layer equally busy over a step, and how busy they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.model.causal_lm import CausalLM
from gossamer.model.experts import Router, Routing, load_balancing_loss
from gossamer.train.config import TrainingConfig
from gossamer.train.world import SINGLE_PROCESS, World


class LoadBalance:
    """Balances the experts over all micro-batches of a step (arXiv 2501.11873), by a loss or by a bias of the routers.

    By loss, the probabilities of each micro-batch meet the loads of all micro-batches so far, on all processes; within
    one small micro-batch experts could not specialise on its few documents. By bias (arXiv 2408.15664), the bias of an
    expert falls by `balance_rate` after a step in which its load was above the mean, and rises otherwise.

    Args:
        model: its routers get their bias here, if the method is `bias` and they have none from a checkpoint
        training: says which method, and how far a bias moves
        world: the processes that the batch is spread over
    """

    def __init__(self, model: CausalLM, training: TrainingConfig, world: World = SINGLE_PROCESS) -> None:
        self.method, self.rate = training.balance, training.balance_rate
        self.routers = [module for module in model.modules() if isinstance(module, Router)]
        self.world = world
        self._sum: Tensor | None = None  # [L, E + 1] assignments to each expert, and tokens
        if self.method == "bias":
            for router in self.routers:
                if router.e_score_correction_bias is None:
                    router.e_score_correction_bias = torch.zeros(len(router.weight), device=router.weight.device)

    def loss(self, routing: Routing) -> Tensor:
        """Count a micro-batch in, and return its balancing loss against the loads of the step so far.

        A load counts by its tokens: padding, and rows that fill up a batch, count nothing.
        """
        tokens = routing.tokens.unsqueeze(1)
        counts = self.world.all_reduce(torch.cat([routing.load.detach() * tokens, tokens], dim=1))
        self._sum = counts if self._sum is None else self._sum + counts
        return load_balancing_loss(self._sum[:, :-1] / self._sum[:, -1:].clamp(min=1), routing.probability)

    @torch.no_grad()
    def finish_step(self) -> Tensor:
        """Move the biases and return the step's load [L, E], 1 on average; the next step counts from zero."""
        assert self._sum is not None, "no micro-batch was counted"
        load = self._sum[:, :-1]
        load = load / load.mean(-1, keepdim=True).clamp(min=torch.finfo(load.dtype).tiny)
        tokens, self._sum = self._sum[0, -1], None
        if self.method == "bias":
            for router, busy in zip(
                self.routers, load, strict=False
            ):  # the head's router comes last, and may not learn
                assert router.e_score_correction_bias is not None
                router.e_score_correction_bias -= self.rate * torch.sign(busy - 1) * (tokens > 0)
        return load


def describe_load(load: Tensor) -> dict[str, Any]:
    """Return what metrics.jsonl holds of loads [L, E]: per layer, maximum over mean, dead experts, entropy (0 to 1)."""
    share = load / load.sum(-1, keepdim=True)
    entropy = torch.special.entr(share).sum(-1) / torch.log(torch.tensor(max(2.0, load.shape[-1])))
    return {
        "max_over_mean": load.amax(-1).tolist(),
        "dead": (load == 0).sum(-1).tolist(),
        "entropy": entropy.tolist(),
        "load": load.tolist(),
    }
