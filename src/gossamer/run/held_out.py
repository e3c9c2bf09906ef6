"""A run's held-out sets, measured between its steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from gossamer.data.dataset import Dataset
from gossamer.data.packing import Batch, validation_batches
from gossamer.data.token_files import TokenFile
from gossamer.errors import UserError, did_you_mean
from gossamer.run.evaluate import Evaluation, Tally, bytes_of_tokens, tally
from gossamer.train.config import TrainingConfig
from gossamer.train.step import Learner
from gossamer.train.world import World

__all__ = ["HeldOut", "Last", "judge"]


class InTime(Protocol):
    """Leaves of batches as many as there is time for, `least` of them at least."""

    def __call__(self, batches: Iterator[Batch], least: int = 1) -> Iterator[Batch]: ...


class Last(NamedTuple):
    """What the last evaluation of a set gave.

    Attributes:
        alike: over as much text as the evaluations on the way read, which it can be compared with; None where that is
            the whole, or there were none
        whole: over all that was read
    """

    alike: Evaluation | None
    whole: Evaluation


def judge(training: TrainingConfig, dataset: Dataset) -> str:
    """The held-out set whose loss tells which weights are the best.

    Raises:
        UserError: `training.best_checkpoint_by` names none.
    """
    name = training.best_checkpoint_by or next(iter(dataset.validation))
    if name not in dataset.validation:
        hint = did_you_mean(name, dataset.validation) or f"; there is {', '.join(dataset.validation)}"
        raise UserError(f"training.best_checkpoint_by {name!r} is no held-out set{hint}")
    return name


class HeldOut:
    """Measures what a run learns on every held-out set.

    Args:
        training: how its rows are made and how much of a set is read
        dataset: the sets
        learner: what is measured
        world: the processes, which share the rows
    """

    def __init__(self, training: TrainingConfig, dataset: Dataset, learner: Learner, world: World) -> None:
        self.training, self.dataset, self.learner, self.world = training, dataset, learner, world
        self._token_bytes: dict[str, np.ndarray] = {}  # of each set

    def measure(self) -> Iterator[tuple[str, Evaluation]]:
        """Measure set by set, as on the way."""
        for name, shard in self.dataset.validation.items():
            yield name, self._tally(name, self._batches(shard, self.training.eval_tokens)).evaluation()

    def measure_last(self, in_time: InTime) -> Iterator[tuple[str, Last]]:
        """Measure set by set, as at the end: over more text, as far as `in_time` allows.

        What evaluations on the way read is the beginning of it, and is measured apart: a curve of losses that are not
        over the same text would bend where nothing was learnt or forgotten.
        """
        most, before = self.training.final_eval_tokens, self.training.eval_tokens if self.training.eval_every else 0
        for name, shard in self.dataset.validation.items():
            if not 0 < before < most:
                yield name, Last(None, self._tally(name, in_time(self._batches(shard, most))).evaluation())
            else:
                first = self._tally(name, self._batches(shard, before))
                rest = self._tally(name, in_time(self._batches(shard, most, before), least=0))
                alike = first.evaluation() if rest.tokens else None
                yield name, Last(alike, (first + rest).evaluation())

    def _batches(self, shard: TokenFile, most_tokens: int, after_tokens: int = 0) -> Iterator[Batch]:
        rows, length = self.training.batch_size, self.training.sequence_length
        return validation_batches(shard, rows, length, most_tokens, self.world.rank, self.world.size, after_tokens)

    def _tally(self, name: str, batches: Iterator[Batch]) -> Tally:
        if name not in self._token_bytes:
            self._token_bytes[name] = bytes_of_tokens(self.dataset.validation[name], self.dataset.tokenizer)
        return tally(self.learner.model, batches, self._token_bytes[name], self.learner.mtp, self.world)

    def share_of_last(self, tokens: int) -> float:
        """What a measurement of so many tokens, of all sets together, is of the one at the run's end."""
        most = self.training.final_eval_tokens
        return tokens / sum(min(most, shard.num_tokens) for shard in self.dataset.validation.values())
