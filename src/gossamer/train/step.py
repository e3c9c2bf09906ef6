"""One optimizer step: the gradients of its micro-batches summed, clipped, and taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer import device as devices
from gossamer.data.packing import Batch
from gossamer.model.causal_lm import CausalLM, Output, padding_mask, targets_ahead
from gossamer.model.mtp import MTPTraining
from gossamer.model.sampled_vocabulary import SampledVocabulary, sample_vocabulary
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.ops.packing import document_lengths
from gossamer.train.balance import LoadBalance
from gossamer.train.optimizer import build_optimizers, set_learning_rate, step_clipped
from gossamer.train.parallel import grad_norm, parallelize
from gossamer.train.recipe import Recipe
from gossamer.train.world import ALONE, World


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

    def __init__(self, model: CausalLM, recipe: Recipe, world: World = ALONE) -> None:
        training = recipe.training
        self.model, self.recipe, self.world = model, recipe, world
        self.device = next(model.parameters()).device
        self.dtype = devices.compute_dtype(self.device, training.precision)
        self.mtp: MTPTraining | None = None
        if model.mtp is not None:
            if training.mtp_steps and training.mtp_loss_weight:
                self.mtp = MTPTraining(training.mtp_steps, training.mtp_decay, training.mtp_trunk_gradient)
            else:
                model.mtp.requires_grad_(False)  # nothing teaches it: no optimizer state either
        gathered_in = None if self.dtype == torch.float32 else self.dtype
        parallelize(model, world, training.expert_parallel, training.recompute, gathered_in)
        self.optimizers = build_optimizers(model, recipe.optimizer)
        self.learning_rate = 0.0  # of the newest step
        self.balance = LoadBalance(model, training, world)

    def step(self, batches: Sequence[Batch], learning_rate: float) -> Measured:
        """Learn from this process's share of the micro-batches of one step.

        Losses are divided by the targets of the whole step, so that it does not matter how its rows are spread over
        micro-batches and processes; what is returned is of the whole step, too. A gradient that is not finite is thrown
        away, and the weights stay as they are.
        """
        self.learning_rate = learning_rate
        set_learning_rate(self.optimizers, learning_rate)
        ahead = range(1, 2 + (self.mtp.steps if self.mtp else 0))
        targets = [sum(_num_targets(batch, places) for batch in batches) for places in ahead]
        counts = torch.tensor([*targets, sum(map(_num_tokens, batches))])
        *divisors, tokens = self.world.sum_(counts.to(self.device)).clamp(min=1).tolist()
        values: dict[str, Tensor] = {}
        for batch in batches:
            with devices.autocast(self.device, self.dtype):
                out = self.model(
                    batch.input_ids.to(self.device),
                    labels=batch.labels.to(self.device),
                    cu_seqlens=batch.cu_seqlens,
                    mtp=self.mtp,
                    divisors=divisors,
                    vocabulary=self._vocabulary(batch),
                )
            losses = self._losses(out, tokens)
            torch.stack([weight * loss for weight, loss in losses.values()]).sum().backward()
            for name, (_, loss) in losses.items():
                values[name] = loss.detach() + values.get(name, 0.0)
        summed = self.world.sum_(torch.stack(list(values.values())))
        values = dict(zip(values, summed.unbind(), strict=True))
        load = self.balance.finish_step() if out.routing is not None else None
        values["grad_norm"] = grad_norm(self.model.parameters(), self.world)
        taken = math.isfinite(float(values["grad_norm"]))
        for optimizer in self.optimizers:
            if taken:
                step_clipped(optimizer, values["grad_norm"], self.recipe.optimizer.grad_clip or math.inf)
            optimizer.zero_grad(set_to_none=True)
        return Measured(values, load, taken)

    def _vocabulary(self, batch: Batch) -> SampledVocabulary | None:
        """The tokens that the output head is multiplied with; None: all."""
        size = self.recipe.training.sampled_vocab_size
        return sample_vocabulary(batch.labels, self.recipe.model.vocab_size, size) if size else None

    def _losses(self, out: Output, tokens: int) -> dict[str, tuple[float, Tensor]]:
        """Every loss of a micro-batch with its weight in what is minimised.

        They add up over micro-batches and processes, as the gradients do: a router's loss by the micro-batch's share of
        the step's `tokens`, padding left out.
        """
        training = self.recipe.training
        assert out.loss is not None
        losses = {"loss": (1.0, out.loss)}
        if out.mtp_loss is not None:
            losses["mtp_loss"] = (training.mtp_loss_weight, out.mtp_loss)
        if out.routing is not None:
            coefficient = self.recipe.model.router_aux_loss_coef if training.balance == "loss" else 0.0
            share = out.routing.tokens[0] / tokens
            losses["aux_loss"] = (coefficient, self.balance.loss(out.routing) * share)
            if training.router_z_loss_weight:
                losses["z_loss"] = (training.router_z_loss_weight, out.routing.z.sum() * share)
        return losses


def _num_tokens(batch: Batch) -> int:
    """How many tokens of a batch are no padding."""
    rows, length = batch.labels.shape
    counted = padding_mask(batch.labels, document_lengths(rows, length, batch.cu_seqlens))
    return batch.labels.numel() if counted is None else int(counted.sum())


def _num_targets(batch: Batch, ahead: int) -> int:
    """How many tokens of a batch are predicted `ahead` places before."""
    rows, length = batch.labels.shape
    lengths = document_lengths(rows, length, batch.cu_seqlens)
    return int((targets_ahead(batch.labels, lengths, ahead) != IGNORED).sum())
