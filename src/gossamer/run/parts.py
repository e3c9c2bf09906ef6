"""What a run works on: the parts that pretraining and tuning fill in differently, while the loop is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gossamer.data.packing import Batch, TrainBatches
from gossamer.model.causal_lm import CausalLM
from gossamer.run.checkpoint import ModelCopier
from gossamer.run.validate import Evaluation, FinalEvaluation, InTime
from gossamer.train.step import Learner

__all__ = ["Description", "Parts", "Samples", "StepBatches", "TextBatches", "Validation"]


class StepBatches(Protocol):
    """The micro-batches of steps, from a position that a checkpoint holds."""

    @property
    def step_tokens(self) -> int:
        """How many tokens the newest step had, over all processes."""

    def next_step(self) -> list[Batch]:
        """Return this process's share of the micro-batches of the next step."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the position between two steps, as a few JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position that `state_dict` has returned."""


class TextBatches:
    """The micro-batches of steps, as many for each.

    Args:
        batches: the batches of a run
        accumulation: how many of them are a step
    """

    def __init__(self, batches: TrainBatches, accumulation: int) -> None:
        self._batches, self._accumulation = batches, accumulation

    @property
    def step_tokens(self) -> int:
        """How many tokens a step has, over all processes."""
        return self._batches.batch_size * self._batches.sequence_length * self._accumulation

    def next_step(self) -> list[Batch]:
        """Return this process's share of the micro-batches of the next step."""
        return [next(self._batches) for _ in range(self._accumulation)]

    def state_dict(self) -> Mapping[str, Any]:
        """Return the position between two steps."""
        return self._batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position that `state_dict` has returned."""
        self._batches.load_state_dict(state)


class Validation(Protocol):
    """Measures the network in training on held-out sets, each of which has a name."""

    @property
    def best_by(self) -> str:
        """The set whose loss decides which checkpoint is the best."""

    def measure(self) -> Iterator[tuple[str, Evaluation]]:
        """Measure set by set, as during the run; yields each set's name and evaluation."""

    def measure_last(self, in_time: InTime) -> Iterator[tuple[str, FinalEvaluation]]:
        """Measure set by set, as at the end of the run: over more text, as far as `in_time` allows."""

    def share_of_last(self, tokens: int) -> float:
        """Return what reading so many tokens, of all sets together, is of the reading at the run's end."""


class Samples(Protocol):
    """Lets the network in training write."""

    def write(self, model: CausalLM) -> str:
        """Return a sample, with the text that it continues."""


@dataclass(frozen=True)
class Description:
    """What is said of a run when it begins or continues.

    Attributes:
        corpus: what it learns from, in one line
        notes: further lines
        warnings: likely mistakes
    """

    corpus: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parts:
    """The parts of a run.

    Attributes:
        learner: what learns
        batches: what it learns from
        validator: what measures it
        samples: what lets it write
        description: what is said of all that at the beginning
        copy_model: copies what is to be written into the run's folder
        resume_command: the command that continues the run
        next_command: returns the line that names the command which shows what was learned
        keeps_trained_only: checkpoints hold the trained parameters alone, since the others are those of the base
    """

    learner: Learner
    batches: StepBatches
    validator: Validation
    samples: Samples
    description: Description
    copy_model: ModelCopier
    resume_command: str
    next_command: Callable[[], str]
    keeps_trained_only: bool = False
