"""From samples to the rows of a step: which examples it learns from, and how they lie in rows without padding.

The examples of a step are drawn first, in an order of each epoch's own, and then laid into rows. So the size of a row
changes speed and memory, and never the gradient. The samples of an example lie in one row.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer.data.chat.samples import Example
from gossamer.data.packing import Batch
from gossamer.data.rows import best_fit
from gossamer.errors import UserError
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.reading import checked
from gossamer.typed import Range

__all__ = ["ExampleBatch", "ExampleBatches", "padding_row", "rows_of", "split_held_out"]


@dataclass(frozen=True, eq=False)
class ExampleBatch(Batch):
    """One row of whole samples, [1, sum of T]; see `Batch`.

    Attributes:
        examples: for each document of the row the index of its example; empty in a row that is only padding, which a
            process gets that has fewer rows than others
        sides: for each document the index of its sample within the example
    """

    examples: tuple[int, ...]
    sides: tuple[int, ...]


def rows_of(examples: Sequence[Example], indices: Sequence[int], row_tokens: int) -> list[ExampleBatch]:
    """Lay examples into rows by best-fit.

    Args:
        examples: all examples
        indices: those that are laid into rows
        row_tokens: tokens that a row may have; a larger example has a row of its own
    """
    sizes = [min(len(examples[index]), row_tokens) for index in indices]
    return [_row(examples, [indices[place] for place in sorted(row)]) for row in best_fit(sizes, row_tokens)]


def _row(examples: Sequence[Example], indices: Sequence[int]) -> ExampleBatch:
    documents = [(index, side, sample) for index in indices for side, sample in enumerate(examples[index].samples)]
    ids = np.concatenate([sample.input_ids for _, _, sample in documents]).astype(np.int64)
    labels = np.concatenate([sample.labels for _, _, sample in documents]).astype(np.int64)
    ends = np.cumsum([0, *(len(sample) for _, _, sample in documents)], dtype=np.int32)
    return ExampleBatch(
        torch.from_numpy(ids)[None],
        torch.from_numpy(labels)[None],
        torch.from_numpy(ends),
        tuple(index for index, _, _ in documents),
        tuple(side for _, side, _ in documents),
    )


def padding_row() -> ExampleBatch:
    """A row without an example."""
    ids, labels = torch.zeros(1, 2, dtype=torch.int64), torch.full((1, 2), IGNORED)
    return ExampleBatch(ids, labels, torch.tensor([0, 2], dtype=torch.int32), (), ())


class ExamplesPosition(TypedDict):
    """A position between two steps, as checkpoints store it.

    Attributes:
        fingerprint: of the examples that are learned from
        seed: of the order
        drawn: examples of all steps so far
    """

    fingerprint: str
    seed: int
    drawn: Annotated[int, Range(0, (1 << 62) - 1)]


class ExampleBatches:
    """The rows of one step after another, this process's share of them.

    Args:
        examples: all examples
        batch_size: examples of a step, all processes together
        row_tokens: tokens that a row may have
        seed: seed of the order
        indices: the examples that are learned from; None: all
        epochs: how often each is learned from, after which there are no more steps; None: without end
        rank: the rank of this process, from 0
        world_size: number of processes that share a step, balanced by tokens
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        row_tokens: int,
        seed: int,
        indices: Sequence[int] | None = None,
        epochs: float | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert batch_size > 0 and row_tokens > 1 and 0 <= rank < world_size
        self.examples, self.batch_size, self.row_tokens, self.seed = examples, batch_size, row_tokens, seed
        self.indices = tuple(range(len(examples)) if indices is None else indices)
        assert self.indices, "nothing to learn from"
        self.rank, self.world_size = rank, world_size
        self._max_drawn = None if epochs is None else max(1, round(epochs * len(self.indices)))
        self._drawn = 0
        self._order = (-1, np.empty(0, np.int64))

    @property
    def epoch(self) -> float:
        """How often the examples have been learned from so far, on average."""
        return self._drawn / len(self.indices)

    @property
    def num_steps(self) -> int | None:
        """The number of steps of all epochs; None if they have no end."""
        return None if self._max_drawn is None else math.ceil(self._max_drawn / self.batch_size)

    def __iter__(self) -> Iterator[list[ExampleBatch]]:
        return self

    def __next__(self) -> list[ExampleBatch]:
        end = self._drawn + self.batch_size
        if self._max_drawn is not None:
            end = min(end, self._max_drawn)
        if end <= self._drawn:
            raise StopIteration
        drawn = [self._example(place) for place in range(self._drawn, end)]
        self._drawn = end
        shares = _shares(drawn, [len(self.examples[index]) for index in drawn], self.world_size)
        rows = [rows_of(self.examples, share, self.row_tokens) for share in shares]
        mine = rows[self.rank]
        # Every process takes part in every forward pass of a step, for which weights are gathered.
        return mine + [padding_row() for _ in range(max(map(len, rows)) - len(mine))]

    def _example(self, place: int) -> int:
        """The index of the example at a place in the order of all epochs."""
        epoch, within = divmod(place, len(self.indices))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.indices)
        return int(self._order[1][within])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the examples that are learned from (32 hex digits)."""
        digest = hashlib.blake2b(digest_size=16)
        for index in self.indices:
            example = self.examples[index]
            digest.update(f"{example.label} {[len(sample) for sample in example.samples]}".encode())
            for sample in example.samples:
                digest.update(sample.input_ids.tobytes() + sample.labels.tobytes())
        return digest.hexdigest()

    def state_dict(self) -> ExamplesPosition:
        """Return the position between two steps, the same on every process."""
        return {"fingerprint": self.fingerprint, "seed": self.seed, "drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` returned; the size of steps and the number of processes may differ.

        Raises:
            UserError: the position is one in other examples, or of another seed.
        """
        saved = checked(dict(state), ExamplesPosition, "the checkpoint's position in the data", "start a new run")
        if saved["fingerprint"] != self.fingerprint:
            raise UserError(
                "the examples are not those that the checkpoint was trained on (data, template or context changed); "
                "resume with the same --data, or start a new run"
            )
        if saved["seed"] != self.seed:
            raise UserError(f"seed: the checkpoint was trained with {saved['seed']}, not {self.seed}; resume with that")
        self._drawn = saved["drawn"]


def _shares(indices: Sequence[int], sizes: Sequence[int], count: int) -> list[list[int]]:
    """Share items among `count` processes: the largest first, each to the process with the least so far."""
    shares: list[list[int]] = [[] for _ in range(count)]
    totals = [0] * count
    for place in sorted(range(len(indices)), key=lambda place: -sizes[place]):
        least = totals.index(min(totals))
        shares[least].append(indices[place])
        totals[least] += sizes[place]
    return shares


def split_held_out(
    examples: Sequence[Example], fraction: float, max_examples: int = 200
) -> tuple[list[int], list[int]]:
    """Hold out examples by the hash of what the user says first, so that near copies stay on one side.

    Args:
        examples: all examples
        fraction: share of them that is held out
        max_examples: maximum number that is held out

    Returns:
        The indices to learn from and those held out. The latter are empty if the fraction is 0 or all examples have one
        beginning; otherwise there is at least one.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[example.key].append(index)
    if fraction <= 0 or len(groups) < 2:
        return list(range(len(examples))), []
    wanted = min(max_examples, max(1, round(fraction * len(examples))))
    held_out: set[int] = set()
    for key in sorted(groups):
        if len(held_out) + len(groups[key]) <= wanted:
            held_out.update(groups[key])
    if not held_out:  # every group is larger than what is wanted
        held_out.update(groups[min(groups, key=lambda key: len(groups[key]))])
    return [index for index in range(len(examples)) if index not in held_out], sorted(held_out)
