"""Made-up answers, pairs and ratings, and what one step of a learner finds in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from gossamer.data.chat.rows import ExampleBatch
from gossamer.data.chat.samples import Example, Sample
from gossamer.model.causal_lm import CausalLM
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.train import step as steps
from gossamer.train.config import TrainingConfig
from gossamer.train.objective import NEXT_TOKEN, Objective
from gossamer.train.recipe import Recipe
from gossamer.train.step import Learner
from gossamer.train.world import SINGLE_PROCESS, World
from gossamer.tune.objectives import KtoObjective, PairObjective, trained_examples

VOCABULARY = 48


def sample(prompt: int, answer: int, seed: int = 0) -> Sample:
    """A prompt of so many random tokens, and an answer to be learned."""
    ids = np.random.default_rng([seed, prompt, answer]).integers(0, VOCABULARY, prompt + answer).astype(np.int32)
    labels = ids.copy()
    labels[:prompt] = IGNORED
    return Sample(ids, labels)


def answers(count: int = 5) -> list[Example]:
    return [Example((sample(2 + at % 3, 1 + at * 2, at),), f"file:{at}", "") for at in range(count)]


def pairs(count: int = 4) -> list[Example]:
    sides = [(sample(3, 2 + at, at), sample(3, 5 - at % 3, 100 + at)) for at in range(count)]
    return [Example(both, f"file:{at}", "") for at, both in enumerate(sides)]


def ratings(count: int = 5) -> list[Example]:
    """Each with the same completion behind another prompt; the last one, like an only prompt, without."""
    made = [
        Example((sample(3, 2 + at, at), sample(4, 2 + at, 50 + at)), f"file:{at}", "", label=at % 3 > 0)
        for at in range(count)
    ]
    return [*made[:-1], replace(made[-1], samples=made[-1].samples[:1])]


def reference(examples: Sequence[Example], seed: int = 0) -> np.ndarray:
    """Log-probabilities that some other network might give, [examples, 2]."""
    sums = -np.random.default_rng(seed).uniform(5, 30, (len(examples), 2))
    for index, example in enumerate(examples):
        sums[index, len(example.samples) :] = np.nan
    return sums


def learner_of(
    model: CausalLM, objective: Objective = NEXT_TOKEN, world: World = SINGLE_PROCESS, **training: Any
) -> Learner:
    training = {"precision": "fp32", "device": "cpu", "mtp_steps": 2, "balance": "none"} | training
    return Learner(model, Recipe(model=model.config, training=TrainingConfig(**training)), world, objective)


def tunings(model: Callable[[], CausalLM], world: World) -> Iterator[tuple[str, Learner, list[Example]]]:
    """A learner of each kind of tuning, with its examples."""
    preferred, rated = pairs(), ratings()
    objectives: dict[str, tuple[list[Example], Objective]] = {
        "sft": (answers(), NEXT_TOKEN),
        "dpo": (preferred, PairObjective("sigmoid", reference=reference(preferred), sft_weight=0.3)),
        "kto": (trained_examples(rated), KtoObjective.of_examples(rated, reference(rated), 0.1, 10)),
    }
    for name, (examples, objective) in objectives.items():
        yield name, learner_of(model(), objective, world), examples


def step_of(learner: Learner, batches: Sequence[ExampleBatch]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take a step of rate 0; returns what was measured, and the gradients by name."""
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        for name, parameter in learner.model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "step_clipped", keep)
        return learner.step(batches, 0.0).values, gradients


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Differences below `tolerance` of the largest magnitude of each tensor, or of one."""
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        scale = max(1.0, float(want.abs().max()))
        assert float((found[name] - want).abs().max()) <= tolerance * scale, name
