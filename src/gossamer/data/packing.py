"""Packed batches: rows of T tokens, drawn from one or several sets of documents and shared by one or several processes.

``rows`` decides which tokens make a row. Here rows of several sets are interleaved in proportion to the sets' weights:
the next row comes from the set that lags most behind its share of the tokens so far. Each set has epochs of its own.

A batch's size counts the rows of all processes together, and each of them takes a contiguous share. So a run reads the
same batches in the same order on any number of processes, and its position means the same on each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import numpy as np
import torch
from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer.data.mixture import Mixture
from gossamer.data.rows import BestFitRows, RowsPlace, SplitRows, Stretch
from gossamer.data.shards import Shard
from gossamer.errors import UserError, nearest
from gossamer.reading import checked
from gossamer.typed import Range

__all__ = ["IGNORE", "PACKINGS", "Batch", "Place", "TrainBatches", "validation_batches"]

IGNORE = -100
"""The label of padding: Hugging Face's and PyTorch's mark of what has no loss."""

PACKINGS = {"split": SplitRows, "best_fit": BestFitRows}
"""Ways to put documents into rows, by name."""

Row = tuple[Shard, list[Stretch]]


class SetPlace(TypedDict):
    """How far one set was read: of which text, at which weight, how many tokens, and where its rows were."""

    fingerprint: str
    weight: float
    drawn: Annotated[int, Range(0, (1 << 62) - 1)]
    position: RowsPlace


class Place(TypedDict):
    """The position between two batches, the same on every process."""

    packing: str
    sequence_length: int
    seed: int
    sets: dict[str, SetPlace]


@dataclass(frozen=True, eq=False)
class Batch:
    """Packed rows.

    Args:
        input_ids: int64 [B, T].
        labels: int64 [B, T], equal to ``input_ids`` and -100 on padding. Not shifted: the model predicts position t +
            1 from t, within a document.
        cu_seqlens: int32 [N + 1] on the CPU, where in the flattened B * T tokens each document, or stretch of one,
            begins; begins with 0, has every row's beginning, ends with B * T. Padding at a row's end is a document of
            its own.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor


class TrainBatches:
    """Endless training batches; each epoch of a set in an order of its own, and over its end without a pause.

    Args:
        data: the sets of documents.
        batch_size: B, rows of a batch over all processes.
        sequence_length: T, tokens of a row.
        seed: of the order.
        packing: "split" concatenates documents and cuts them at rows' ends; "best_fit" cuts none that fits into a row,
            for a little padding.
        rank: which of the processes this is, from 0.
        world: how many processes share a batch; it divides B, and a batch has B / world rows here.

    Raises:
        UserError: a set holds fewer than T tokens, or a size, rank or packing is impossible.
    """

    def __init__(
        self,
        data: Mixture,
        batch_size: int,
        sequence_length: int,
        seed: int,
        packing: str = "split",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        _check_sizes(batch_size, sequence_length, rank, world)
        if packing not in PACKINGS:
            raise UserError(f"packing: {packing!r} is not {' or '.join(PACKINGS)}{nearest(packing, PACKINGS)}")
        for name, shard in data.shards.items():
            if shard.num_tokens < sequence_length:
                text = "the training text" if len(data.shards) == 1 else f"the training text of {name!r}"
                raise UserError(
                    f"{text} holds {shard.num_tokens:,} tokens, fewer than one row of {sequence_length:,}; "
                    "give more text with --data, or a smaller --training.sequence_length"
                )
        self.batch_size, self.sequence_length, self.seed = batch_size, sequence_length, seed
        self.packing, self.rank, self.world = packing, rank, world
        self._data = data
        self._rows = {name: PACKINGS[packing](shard, sequence_length, seed) for name, shard in data.shards.items()}
        self._drawn = dict.fromkeys(data.shards, 0)  # tokens of the rows so far
        self._places = self._tokens = 0
        self._delimiter = _delimiter(next(iter(data.shards.values())))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = [self._next_row() for _ in range(self.batch_size)]
        share = self.batch_size // self.world
        return _batch(rows[self.rank * share : (self.rank + 1) * share], share, self.sequence_length, self._delimiter)

    @property
    def utilisation(self) -> float:
        """The share of positions that carried a token, and no padding, in this object's batches so far (0 to 1)."""
        return self._tokens / self._places if self._places else 1.0

    def _next_row(self) -> Row:
        weights = self._data.weights
        name = min(self._rows, key=lambda name: self._drawn[name] / weights[name])
        row = next(self._rows[name])
        tokens = sum(count for _, count in row)
        self._drawn[name] += tokens
        self._tokens += tokens
        self._places += self.sequence_length
        return self._data.shards[name], row

    def state_dict(self) -> Place:
        """The position between two batches: a few JSON values."""
        data = self._data
        return {
            "packing": self.packing,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            "sets": {
                name: {
                    "fingerprint": data.shards[name].fingerprint,
                    "weight": data.weights[name],
                    "drawn": self._drawn[name],
                    "position": rows.tell(),
                }
                for name, rows in self._rows.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken; the batch size and the number of processes may be others.

        Raises:
            UserError: the state belongs to other data, or to another packing, sequence length or seed.
        """
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise UserError("the checkpoint's position in the data is of another gossamer version; start a new run")
        state = checked(dict(state), Place, "the checkpoint's position in the data", "start a new run")
        for name in ("packing", "sequence_length", "seed"):
            _refuse_other(name, state[name], mine[name])
        saved, own = state["sets"], mine["sets"]
        _refuse_other("sets", ", ".join(sorted(saved)), ", ".join(sorted(own)))
        for name in own:
            if saved[name]["fingerprint"] != own[name]["fingerprint"]:
                of = f" of {name!r}" if len(own) > 1 else ""
                raise UserError(
                    f"the training data{of} is not what the checkpoint was trained on (text, split or tokenizer "
                    "changed); resume with the same --data, or start a new run"
                )
            if len(own) > 1:  # one set alone has all of the tokens, whatever its weight
                _refuse_other(f"sets.{name}.weight", saved[name]["weight"], own[name]["weight"])
        for name, rows in self._rows.items():
            rows.seek(**saved[name]["position"])
            self._drawn[name] = saved[name]["drawn"]


def validation_batches(
    shard: Shard,
    batch_size: int,
    sequence_length: int,
    max_tokens: int | None = None,
    rank: int = 0,
    world: int = 1,
    after_tokens: int = 0,
) -> Iterator[Batch]:
    """One pass over a shard, always the same, in an order whose beginning stands for the whole.

    The last row is padded, and the last batch has fewer rows when theirs do not fill it. Every process gets as many
    batches of the same shapes as the others; where rows are not enough for all, a process gets rows of nothing but
    padding, with no target in them.

    Args:
        shard: the documents.
        batch_size: B, over all processes.
        sequence_length: T.
        max_tokens: stop with the row that reaches so many tokens; None: everything.
        rank: which of the processes this is, from 0.
        world: how many processes share the pass.
        after_tokens: leave out the rows that a pass of so many tokens reads.

    Raises:
        UserError: nothing to predict in the shard, or a size or rank is impossible.
    """
    _check_sizes(batch_size, sequence_length, rank, world)
    if shard.num_tokens < 2:
        raise UserError(
            f"the validation text holds {shard.num_tokens} tokens, and nothing to predict; give more text with --data"
        )
    most = None if max_tokens is None else max(1, math.ceil(max_tokens / sequence_length))
    rows = islice(SplitRows(shard, sequence_length, None), math.ceil(after_tokens / sequence_length), most)
    return _finite_batches(shard, rows, batch_size, sequence_length, rank, world)


def _finite_batches(
    shard: Shard, rows: Iterable[list[Stretch]], batch_size: int, length: int, rank: int, world: int
) -> Iterator[Batch]:
    delimiter = _delimiter(shard)
    source = iter(rows)
    while taken := list(islice(source, batch_size)):
        share = -(-len(taken) // world)
        mine = [(shard, row) for row in taken[rank * share : (rank + 1) * share]]
        yield _batch(mine, share, length, delimiter)


def _delimiter(shard: Shard) -> int:
    """The token that begins every document, and so the shard."""
    return int(shard.read(0, 1)[0])


def _batch(rows: list[Row], num_rows: int, length: int, delimiter: int) -> Batch:
    """Copy the rows' tokens out of their shards; what they leave of ``num_rows`` rows of ``length`` is padding."""
    ids = np.full((num_rows, length), delimiter, np.int64)
    labels = np.full((num_rows, length), IGNORE, np.int64)
    starts: list[int] = []
    for index in range(num_rows):
        column = 0
        shard, stretches = rows[index] if index < len(rows) else (None, [])
        for begin, count in stretches:
            assert shard is not None
            starts.append(index * length + column)
            ids[index, column : column + count] = shard.read(begin, count)
            column += count
        labels[index, :column] = ids[index, :column]
        if column < length:
            starts.append(index * length + column)
    starts.append(num_rows * length)
    return Batch(torch.from_numpy(ids), torch.from_numpy(labels), torch.tensor(starts, dtype=torch.int32))


def _refuse_other(name: str, saved: object, own: object) -> None:
    if saved != own:
        raise UserError(
            f"{name}: the checkpoint's position in the data was taken with {saved}, not {own}; resume with that, or "
            "start a new run"
        )


def _check_sizes(batch_size: int, sequence_length: int, rank: int, world: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} rows are no batch; give 1 or more")
    if sequence_length < 2:
        raise UserError(f"sequence_length: {sequence_length} leaves nothing to predict; give 2 or more")
    assert 0 <= rank < world
    if batch_size % world:
        shared = [number for number in range(1, batch_size + 1) if batch_size % number == 0]
        listed = ", ".join(map(str, shared[:-1])) + (" or " if shared[:-1] else "") + str(shared[-1])
        raise UserError(
            f"batch_size: {batch_size} rows cannot be shared equally by {world} processes; run {listed} of them, or "
            f"make it a multiple of {world}"
        )
