"""A run's held-out sets, measured between its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gossamer.data.dataset import Dataset
from gossamer.data.packing import Batch, validation_batches
from gossamer.errors import UserError, nearest
from gossamer.train.config import TrainingConfig
from gossamer.train.evaluate import Evaluation, evaluate
from gossamer.train.step import Learner
from gossamer.train.world import World

__all__ = ["Batches", "HeldOut", "judge"]

Batches = Iterator[Batch]


def judge(training: TrainingConfig, dataset: Dataset) -> str:
    """The held-out set whose loss tells which weights are the best.

    Raises:
        UserError: `training.best_by` names none.
    """
    name = training.best_by or next(iter(dataset.validation))
    if name not in dataset.validation:
        hint = nearest(name, dataset.validation) or f"; there is {', '.join(dataset.validation)}"
        raise UserError(f"training.best_by {name!r} is no held-out set{hint}")
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

    def measure(self, most_tokens: int, pick: Callable[[Batches], Batches] = iter) -> Iterator[tuple[str, Evaluation]]:
        """Measure set by set, on the batches that `pick` leaves of so many tokens."""
        rows, length = self.training.batch_size, self.training.sequence_length
        token_bytes = self.dataset.tokenizer.token_bytes()
        for name, shard in self.dataset.validation.items():
            batches = pick(validation_batches(shard, rows, length, most_tokens, self.world.rank, self.world.size))
            yield name, evaluate(self.learner.model, batches, token_bytes, self.learner.mtp, self.world)

    def share_of_last(self, tokens: int) -> float:
        """What a measurement of so many tokens, of all sets together, is of the one at the run's end."""
        most = self.training.final_eval_tokens
        return tokens / sum(min(most, shard.num_tokens) for shard in self.dataset.validation.values())
