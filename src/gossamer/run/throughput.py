"""How fast this machine trains by a recipe, found out by a few steps that are then forgotten."""

from __future__ import annotations

import statistics
import time

import torch

from gossamer import device as devices
from gossamer.data.dataset import Dataset
from gossamer.data.packing import TrainBatches
from gossamer.model.causal_lm import CausalLM
from gossamer.train.recipe import Recipe
from gossamer.train.step import Learner
from gossamer.train.world import World

__all__ = ["tokens_per_second"]

_STEPS = 12


def tokens_per_second(recipe: Recipe, dataset: Dataset, world: World, seconds: float) -> float:
    """Measure training by `recipe` for about so many seconds; every process calls this and gets the same.

    The median step counts: what else the machine does now, it will do then, too. The first one, in which kernels are
    loaded and memory is found, does not count where there is time for another. At least one is taken.
    """
    began, training = time.perf_counter(), recipe.training
    devices.seed_everything(training.seed)
    learner = Learner(CausalLM(recipe.model).to(world.device), recipe, world)
    batches = TrainBatches(
        dataset.train, training.batch_size, training.sequence_length, training.seed, training.packing, world.rank,
        world.size,
    )  # fmt: skip
    times: list[float] = []
    late = 0
    while len(times) < _STEPS and not late:
        at = time.perf_counter()
        learner.step([next(batches) for _ in range(training.gradient_accumulation)], recipe.optimizer.learning_rate)
        now = time.perf_counter()
        times.append(float(world.sum_(torch.tensor(now - at, dtype=torch.float64))) / world.size)
        late = world.max(int(now - began + times[-1] > seconds))
    tokens = training.batch_size * training.sequence_length * training.gradient_accumulation
    return tokens / statistics.median(times[1:] or times)
