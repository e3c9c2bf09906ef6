"""A network small enough to be trained in a moment, with every kind of layer, and text of which it learns something."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch

from gossamer import device as devices
from gossamer.certify.inputs import CONFIG
from gossamer.data.packing import Batch
from gossamer.model.causal_lm import CausalLM
from gossamer.train.config import OptimizerConfig, TrainingConfig
from gossamer.train.recipe import Recipe
from gossamer.train.step import Learner

ROWS, LENGTH = 4, 96
LEARNING_RATE = 3e-3


def recipe(precision: str = "fp32") -> Recipe:
    """Return the recipe: Muon and AdamW together, packed documents, multi-token prediction, a balancing loss."""
    training = TrainingConfig(sequence_length=LENGTH, batch_size=ROWS, precision=precision)  # type: ignore[arg-type]
    return Recipe(model=CONFIG, optimizer=OptimizerConfig(learning_rate=LEARNING_RATE), training=training)


@lru_cache
def batches(count: int) -> Sequence[Batch]:
    """Make batches of packed documents, where the next token follows from the one before in three cases of four."""
    generator = torch.Generator().manual_seed(1)
    return [_batch(generator) for _ in range(count)]


def _batch(generator: torch.Generator) -> Batch:
    tokens = ROWS * LENGTH
    ids = torch.randint(CONFIG.vocab_size, (tokens,), generator=generator)
    follows = torch.rand(tokens, generator=generator) < 0.75
    for place in range(1, tokens):
        if follows[place]:
            ids[place] = (5 * ids[place - 1] + 7) % CONFIG.vocab_size
    lengths: list[int] = []
    for _ in range(ROWS):  # each row's documents are of odd lengths, one of them of a single token
        first = int(torch.randint(1, LENGTH - 2, (), generator=generator))
        lengths += [first, 1, LENGTH - 1 - first]
    ids = ids.view(ROWS, LENGTH)
    return Batch(ids, ids, torch.tensor([0, *accumulate(lengths)], dtype=torch.int32))


def network(device: torch.device, dtype: torch.dtype = torch.float32) -> CausalLM:
    """Make the network, with the same random weights on every device."""
    devices.seed_everything(0)
    return CausalLM(CONFIG).to(dtype).to(device)


def learner(device: torch.device, precision: str = "fp32", dtype: torch.dtype = torch.float32) -> Learner:
    """Make the network with its optimizers, before the first step; weights and optimizer state are in `dtype`."""
    return Learner(network(device, dtype), recipe(precision))


def train(learner: Learner, steps: Sequence[Batch]) -> list[float]:
    """Take a step on each batch, and return the losses in nats per token."""
    return [float(learner.step([batch], LEARNING_RATE).values["loss"]) for batch in steps]
