"""One optimizer step: the gradients of its micro-batches are summed and clipped, and the optimizers take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gossamer import device as devices
from gossamer.data.packing import Batch, TrainBatches
from gossamer.data.token_files import Mixture
from gossamer.model.causal_lm import CausalLM, Output, padding_mask
from gossamer.model.mtp import MTPTraining
from gossamer.model.sampled_vocabulary import SampledVocabulary, sample_vocabulary
from gossamer.ops.packing import document_lengths
from gossamer.train.balance import LoadBalance
from gossamer.train.bigrams import BigramStart, start_from_bigrams
from gossamer.train.config import TrainingConfig
from gossamer.train.objective import NEXT_TOKEN, Losses, Objective, num_targets, token_logprobs
from gossamer.train.optimizer import build_optimizers, set_learning_rate, step_clipped
from gossamer.train.parallel import grad_norm, parallelize
from gossamer.train.recipe import Recipe
from gossamer.train.schedule import learning_rate_factor
from gossamer.train.world import SINGLE_PROCESS, World


@dataclass
class StepResult:
    """What a step has measured.

    Attributes:
        values: what the objective gives, mtp_loss, aux_loss, z_loss, grad_norm, as far as there are any; scalars on the
            device
        load: [L, E] how busy each expert was, 1 on average; None for a dense network
        is_taken: whether the weights were changed, which they are not if the gradient is not finite
    """

    values: dict[str, Tensor]
    load: Tensor | None
    is_taken: bool


def training_batches(train: Mixture, training: TrainingConfig, world: World) -> TrainBatches:
    """Return the batches of a run from its beginning, this process's share of each."""
    return TrainBatches(
        train,
        training.batch_size,
        training.sequence_length,
        training.seed,
        training.packing,
        rank=world.rank,
        world_size=world.size,
    )


class Learner:
    """A network with all that changes it: optimizers, load balance, and the weights of the losses.

    Args:
        model: on the device of this process; of several processes it is spread over them here
        recipe: how it learns
        world: the processes that train it together
        objective: what it learns from its batches

    Attributes:
        learning_rate: of the newest step
    """

    def __init__(
        self,
        model: CausalLM,
        recipe: Recipe,
        world: World = SINGLE_PROCESS,
        objective: Objective = NEXT_TOKEN,
    ) -> None:
        training = recipe.training
        self.model, self.recipe, self.world, self.objective = model, recipe, world, objective
        self.device = next(model.parameters()).device
        self.dtype = devices.compute_dtype(self.device, training.precision)
        self.mtp: MTPTraining | None = None
        if model.mtp is not None:
            if training.mtp_steps and training.mtp_loss_weight:
                self.mtp = MTPTraining(training.mtp_steps, training.mtp_decay, training.mtp_trunk_gradient)
            else:
                model.mtp.requires_grad_(False)  # it does not learn, and needs no optimizer state
        gathered_in = None if self.dtype == torch.float32 else self.dtype
        parallelize(model, world, training.expert_parallel, training.recompute, gathered_in)
        self.optimizers = build_optimizers(model, recipe.optimizer)
        self.learning_rate = 0.0
        self.balance = LoadBalance(model, training, world)

    @classmethod
    def from_seed(cls, recipe: Recipe, world: World = SINGLE_PROCESS) -> Learner:
        """Return a learner whose network has the initial weights of the recipe's seed."""
        devices.seed_everything(recipe.training.seed)
        return cls(CausalLM(recipe.model).to(world.device), recipe, world)

    def scheduled_rate(self, step: int, fraction: float) -> float:
        """Return the learning rate of step `step` (1, 2, …), when `fraction` of the run is behind it."""
        return self.recipe.optimizer.learning_rate * learning_rate_factor(step, fraction, self.recipe.schedule)

    def start_from_bigrams(self, train: Mixture) -> BigramStart:
        """Teach the embedding and the head which token follows which, before the first step; see `train.bigrams`."""
        steps, rate = self.recipe.training.bigram_steps, self.recipe.optimizer.learning_rate
        return start_from_bigrams(self.model, self.optimizers, train, steps, rate)

    def step(self, batches: Sequence[Batch], learning_rate: float) -> StepResult:
        """Learn from this process's share of the micro-batches of one step; every process has as many of them.

        Losses are divided by the counts of the whole step, so that it does not matter how its rows are spread over
        micro-batches and processes; the result is that of the whole step, too. A gradient that is not finite is thrown
        away, and the weights stay as they are.
        """
        self.learning_rate = learning_rate
        set_learning_rate(self.optimizers, learning_rate)
        objective = self.objective.of_step(batches, self._token_logprobs, self.world)
        divisors = self._divisors(batches)
        values: dict[str, Tensor] = {}
        for batch in batches:
            out = self._forward(batch, divisors)
            losses = objective.losses(out, batch, divisors.objective) | self._other_losses(out, divisors.tokens)
            torch.stack([weight * loss for weight, loss in losses.values()]).sum().backward()
            for name, (_, loss) in losses.items():
                values[name] = loss.detach() + values.get(name, 0.0)
        summed = self.world.all_reduce(torch.stack(list(values.values())))
        values = dict(zip(values, summed.unbind(), strict=True))
        load = self.balance.finish_step() if out.routing is not None else None
        values["grad_norm"] = grad_norm(self.model.parameters(), self.world)
        is_finite = math.isfinite(float(values["grad_norm"]))
        for optimizer in self.optimizers:
            if is_finite:
                step_clipped(optimizer, values["grad_norm"], self.recipe.optimizer.grad_clip or math.inf)
            optimizer.zero_grad(set_to_none=True)
        return StepResult(values, load, is_finite)

    def _divisors(self, batches: Sequence[Batch]) -> _Divisors:
        """Count what the losses of the step are divided by, over all micro-batches and processes."""
        steps = self.mtp.steps if self.mtp else 0
        ahead = range(2, 2 + steps)
        counts = [
            [*(num_targets(batch, places) for places in ahead), _num_tokens(batch), *self.objective.counts(batch)]
            for batch in batches
        ]
        totals = self.world.all_reduce(torch.tensor(counts).sum(0).to(self.device)).clamp(min=1).tolist()
        return _Divisors(mtp=totals[:steps], tokens=totals[steps], objective=totals[steps + 1 :])

    def _forward(self, batch: Batch, divisors: _Divisors) -> Output:
        """Compute a micro-batch, with what its losses need."""
        with devices.autocast(self.device, self.dtype):
            out: Output = self.model(
                batch.input_ids.to(self.device),
                labels=batch.labels.to(self.device),
                cu_seqlens=batch.cu_seqlens,
                mtp=self.mtp,
                divisors=[divisors.objective[0], *divisors.mtp],
                vocabulary=self._vocabulary(batch),
                token_logprobs=self.objective.needs_logprobs,
            )
        return out

    @torch.no_grad()
    def _token_logprobs(self, batch: Batch) -> Tensor:
        """Compute the log-probability of every target of a batch, [targets], without gradients."""
        with devices.autocast(self.device, self.dtype):
            return token_logprobs(self.model, batch)

    def _vocabulary(self, batch: Batch) -> SampledVocabulary | None:
        """Return the tokens that the output head is multiplied with; None: all of them."""
        size = self.recipe.training.sampled_vocab_size
        return sample_vocabulary(batch.labels, self.recipe.model.vocab_size, size) if size else None

    def _other_losses(self, out: Output, tokens: int) -> Losses:
        """Return the losses of a micro-batch that do not depend on the objective.

        They add up over micro-batches and processes, as the gradients do: a router's loss counts by the micro-batch's
        share of the step's `tokens`, without padding.
        """
        training, losses = self.recipe.training, Losses()
        if out.mtp_loss is not None:
            losses["mtp_loss"] = (training.mtp_loss_weight, out.mtp_loss)
        if out.routing is not None:
            coefficient = self.recipe.model.router_aux_loss_coef if training.balance == "loss" else 0.0
            share = out.routing.tokens[0] / tokens
            losses["aux_loss"] = (coefficient, self.balance.loss(out.routing) * share)
            if training.router_z_loss_weight:
                losses["z_loss"] = (training.router_z_loss_weight, out.routing.z.sum() * share)
        return losses


class _Divisors(NamedTuple):
    """What the losses of a step are divided by: those of the head's steps, of the routers and of the objective."""

    mtp: list[int]
    tokens: int
    objective: list[int]


def _num_tokens(batch: Batch) -> int:
    """Return how many tokens of a batch are not padding."""
    rows, length = batch.labels.shape
    counted = padding_mask(batch.labels, document_lengths(rows, length, batch.cu_seqlens))
    return batch.labels.numel() if counted is None else int(counted.sum())
