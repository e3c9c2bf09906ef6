"""One optimizer step: the gradients of its micro-batches summed, clipped, and taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer import device as devices
from gossamer.data.packing import Batch
from gossamer.model.causal_lm import CausalLM, Output, targets_ahead
from gossamer.model.mtp import MTPTraining
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.ops.packing import document_lengths
from gossamer.train.balance import LoadBalance
from gossamer.train.optimizer import build_optimizers
from gossamer.train.recipe import Recipe


@dataclass
class Measured:
    """What a step gave.

    Attributes:
        values: loss, mtp_loss, aux_loss, z_loss, grad_norm, as far as there are any; scalars on the device
        load: [L, E] how busy the experts were, 1 in the mean; None in a dense network
        taken: whether the step was taken: not if its gradient was not finite
    """

    values: dict[str, Tensor]
    load: Tensor | None
    taken: bool


class Learner:
    """A network with what changes it: optimizers, load balance, and how the losses are weighed."""

    def __init__(self, model: CausalLM, recipe: Recipe) -> None:
        training = recipe.training
        self.model, self.recipe = model, recipe
        self.device = next(model.parameters()).device
        self.dtype = devices.compute_dtype(self.device, training.precision)
        self.mtp: MTPTraining | None = None
        if model.mtp is not None:
            if training.mtp_steps and training.mtp_loss_weight:
                self.mtp = MTPTraining(training.mtp_steps, training.mtp_decay, training.mtp_trunk_gradient)
            else:
                model.mtp.requires_grad_(False)  # nothing teaches it: no optimizer state either
        model.model.recompute = training.recompute
        self.optimizers = build_optimizers(model, recipe.optimizer)
        self.balance = LoadBalance(model, training, lambda tensor: tensor, processes=1)

    def step(self, batches: Sequence[Batch], learning_rate: float) -> Measured:
        """Learn from the micro-batches of one step.

        Losses are divided by the targets of the whole step, so that it does not matter how its rows are spread over
        micro-batches. A gradient that is not finite is thrown away, and the weights stay as they are.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        ahead = range(1, 2 + (self.mtp.steps if self.mtp else 0))
        divisors = [float(sum(_num_targets(batch, places) for batch in batches)) for places in ahead]
        values: dict[str, Tensor] = {}
        for batch in batches:
            with devices.autocast(self.device, self.dtype):
                out = self.model(
                    batch.input_ids.to(self.device),
                    labels=batch.labels.to(self.device),
                    cu_seqlens=batch.cu_seqlens,
                    mtp=self.mtp,
                    divisors=divisors,
                )
            losses = self._losses(out, len(batches))
            torch.stack([weight * loss for weight, loss in losses.values()]).sum().backward()
            for name, (_, loss) in losses.items():
                values[name] = loss.detach() + values.get(name, 0.0)
        load = self.balance.finish_step() if out.routing is not None else None
        limit = self.recipe.optimizer.grad_clip or math.inf
        values["grad_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        taken = math.isfinite(float(values["grad_norm"]))
        for optimizer in self.optimizers:
            if taken:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return Measured(values, load, taken)

    def _losses(self, out: Output, micro_batches: int) -> dict[str, tuple[float, Tensor]]:
        """Every loss of a micro-batch with its weight in what is minimised; they add up over micro-batches."""
        training = self.recipe.training
        assert out.loss is not None
        losses = {"loss": (1.0, out.loss)}
        if out.mtp_loss is not None:
            losses["mtp_loss"] = (training.mtp_loss_weight, out.mtp_loss)
        if out.routing is not None:
            coefficient = self.recipe.model.router_aux_loss_coef if training.balance == "loss" else 0.0
            losses["aux_loss"] = (coefficient, self.balance.loss(out.routing) / micro_batches)
            if training.router_z_loss_weight:
                losses["z_loss"] = (training.router_z_loss_weight, out.routing.z.sum() / micro_batches)
        return losses


def _num_targets(batch: Batch, ahead: int) -> int:
    """How many tokens of a batch are predicted `ahead` places before."""
    rows, length = batch.labels.shape
    lengths = document_lengths(rows, length, batch.cu_seqlens)
    return max(1, int((targets_ahead(batch.labels, lengths, ahead) != IGNORED).sum()))
