"""Packed batches: rows of T tokens from one or several sets of text, shared by one or several processes.

`rows` decides which tokens make a row. Here the rows of several sets are interleaved in proportion to the weights of
the sets: the next row comes from the set that lags most behind its share of the tokens so far. Each set has epochs of
its own.

The size of a batch counts the rows of all processes together, and each process gets a contiguous share of them. So a
run reads the same batches in the same order on any number of processes, and its position means the same on all of them.
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

from gossamer.data.rows import BestFitRows, RowsPosition, Span, SplitRows
from gossamer.data.token_files import Mixture, TokenFile
from gossamer.errors import UserError, did_you_mean
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.reading import checked
from gossamer.typed import Range

__all__ = ["PACKINGS", "Batch", "DataPosition", "TrainBatches", "validation_batches"]

PACKINGS = {"split": SplitRows, "best_fit": BestFitRows}
"""Ways to put documents into rows, by name."""

Row = tuple[TokenFile, list[Span]]


class SetPosition(TypedDict):
    """How far one set of text has been read.

    Attributes:
        fingerprint: the fingerprint of its token file
        weight: the weight of the set
        drawn: number of tokens that have been read, under the key that older checkpoints have
        position: the position in its rows
    """

    fingerprint: str
    weight: float
    drawn: Annotated[int, Range(0, (1 << 62) - 1)]
    position: RowsPosition


class DataPosition(TypedDict):
    """A position between two batches, the same on every process, as checkpoints store it."""

    packing: str
    sequence_length: int
    seed: int
    sets: dict[str, SetPosition]


@dataclass(frozen=True, eq=False)
class Batch:
    """Packed rows of tokens.

    Attributes:
        input_ids: int64 [B, T]
        labels: int64 [B, T], equal to `input_ids`, and -100 on padding. They are not shifted: the model predicts
            position t + 1 from position t, within a document
        cu_seqlens: int32 [N + 1] on the CPU, the places in the flattened B * T tokens where a document, or a part of
            one, begins. The first is 0, the last is B * T, and the beginning of every row is among them. Padding at the
            end of a row counts as a document
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor


class TrainBatches:
    """Endless training batches; each epoch of a set has an order of its own and follows the one before without a break.

    Args:
        data: the sets of text
        batch_size: B, rows of a batch, all processes together
        sequence_length: T, tokens of a row
        seed: seed of the order
        packing: "split" concatenates documents and cuts them where rows end; "best_fit" cuts no document that fits into
            a row, at the cost of a little padding
        rank: the rank of this process, from 0
        world_size: number of processes that share a batch; it divides B, and a batch has B / world_size rows here

    Raises:
        UserError: a set holds fewer than T tokens, or a size or the packing is impossible.
    """

    def __init__(
        self,
        data: Mixture,
        batch_size: int,
        sequence_length: int,
        seed: int,
        packing: str = "split",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_sizes(batch_size, sequence_length, rank, world_size)
        if packing not in PACKINGS:
            raise UserError(f"packing: {packing!r} is not {' or '.join(PACKINGS)}{did_you_mean(packing, PACKINGS)}")
        for name, file in data.token_files.items():
            if file.num_tokens < sequence_length:
                text = "the training text" if len(data.token_files) == 1 else f"the training text of {name!r}"
                raise UserError(
                    f"{text} holds {file.num_tokens:,} tokens, fewer than one row of {sequence_length:,}; "
                    "give more text with --data, or a smaller --training.sequence_length"
                )
        self.batch_size, self.sequence_length, self.seed = batch_size, sequence_length, seed
        self.packing, self.rank, self.world_size = packing, rank, world_size
        self._data = data
        self._rows = {name: PACKINGS[packing](file, sequence_length, seed) for name, file in data.token_files.items()}
        self._tokens_read = dict.fromkeys(data.token_files, 0)  # of each set
        self._num_positions = self._num_tokens = 0
        self._delimiter = _delimiter(next(iter(data.token_files.values())))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = [self._next_row() for _ in range(self.batch_size)]
        share = self.batch_size // self.world_size
        return _batch(rows[self.rank * share : (self.rank + 1) * share], share, self.sequence_length, self._delimiter)

    @property
    def utilization(self) -> float:
        """The share of positions that held a token, not padding, in the batches of this object so far (0 to 1)."""
        return self._num_tokens / self._num_positions if self._num_positions else 1.0

    def _next_row(self) -> Row:
        weights = self._data.weights
        name = min(self._rows, key=lambda name: self._tokens_read[name] / weights[name])
        row = next(self._rows[name])
        tokens = sum(count for _, count in row)
        self._tokens_read[name] += tokens
        self._num_tokens += tokens
        self._num_positions += self.sequence_length
        return self._data.token_files[name], row

    def state_dict(self) -> DataPosition:
        """Return the position between two batches, as a few JSON values."""
        data = self._data
        return {
            "packing": self.packing,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            "sets": {
                name: {
                    "fingerprint": data.token_files[name].fingerprint,
                    "weight": data.weights[name],
                    "drawn": self._tokens_read[name],
                    "position": rows.tell(),
                }
                for name, rows in self._rows.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` returned; the batch size and the number of processes may differ.

        Raises:
            UserError: the state belongs to other data, or to another packing, sequence length or seed.
        """
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise UserError("the checkpoint's position in the data is of another gossamer version; start a new run")
        state = checked(dict(state), DataPosition, "the checkpoint's position in the data", "start a new run")
        for name in ("packing", "sequence_length", "seed"):
            _check_same(name, state[name], mine[name])
        saved, own = state["sets"], mine["sets"]
        _check_same("sets", ", ".join(sorted(saved)), ", ".join(sorted(own)))
        for name in own:
            if saved[name]["fingerprint"] != own[name]["fingerprint"]:
                of_set = f" of {name!r}" if len(own) > 1 else ""
                raise UserError(
                    f"the training data{of_set} is not what the checkpoint was trained on (text, split or tokenizer "
                    "changed); resume with the same --data, or start a new run"
                )
            if len(own) > 1:  # a single set gives all tokens, whatever its weight
                _check_same(f"sets.{name}.weight", saved[name]["weight"], own[name]["weight"])
        for name, rows in self._rows.items():
            rows.seek(**saved[name]["position"])
            self._tokens_read[name] = saved[name]["drawn"]


def validation_batches(
    file: TokenFile,
    batch_size: int,
    sequence_length: int,
    max_tokens: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    after_tokens: int = 0,
) -> Iterator[Batch]:
    """Yield the batches of one pass over a token file, always in the same order, whose beginning stands for the whole.

    The last row is padded, and the last batch may have fewer rows. Every process gets the same number of batches with
    the same shapes; if there are not enough rows for all, some processes get rows that are only padding, without
    targets.

    Args:
        file: the documents
        batch_size: B, rows of a batch, all processes together
        sequence_length: T, tokens of a row
        max_tokens: the pass ends with the row that reaches this number of tokens; None reads everything
        rank: the rank of this process, from 0
        world_size: number of processes that share the pass
        after_tokens: leaves out the rows that a pass over this number of tokens reads

    Raises:
        UserError: there is nothing to predict in the file, or a size is impossible.
    """
    _check_sizes(batch_size, sequence_length, rank, world_size)
    if file.num_tokens < 2:
        raise UserError(
            f"the validation text holds {file.num_tokens} tokens, and nothing to predict; give more text with --data"
        )
    max_rows = None if max_tokens is None else max(1, math.ceil(max_tokens / sequence_length))
    rows = islice(SplitRows(file, sequence_length, None), math.ceil(after_tokens / sequence_length), max_rows)
    return _finite_batches(file, rows, batch_size, sequence_length, rank, world_size)


def _finite_batches(
    file: TokenFile, rows: Iterable[list[Span]], batch_size: int, length: int, rank: int, world_size: int
) -> Iterator[Batch]:
    delimiter = _delimiter(file)
    source = iter(rows)
    while batch := list(islice(source, batch_size)):
        share = -(-len(batch) // world_size)
        mine = [(file, row) for row in batch[rank * share : (rank + 1) * share]]
        yield _batch(mine, share, length, delimiter)


def _delimiter(file: TokenFile) -> int:
    """The token that begins every document, and so the file."""
    return int(file.read(0, 1)[0])


def _batch(rows: list[Row], num_rows: int, length: int, delimiter: int) -> Batch:
    """Read the tokens of the rows into a batch of `num_rows` rows of `length` tokens, the rest of which is padding."""
    ids = np.full((num_rows, length), delimiter, np.int64)
    labels = np.full((num_rows, length), IGNORED, np.int64)
    starts: list[int] = []
    for index in range(num_rows):
        column = 0
        file, spans = rows[index] if index < len(rows) else (None, [])
        for begin, count in spans:
            assert file is not None
            starts.append(index * length + column)
            ids[index, column : column + count] = file.read(begin, count)
            column += count
        labels[index, :column] = ids[index, :column]
        if column < length:
            starts.append(index * length + column)
    starts.append(num_rows * length)
    return Batch(torch.from_numpy(ids), torch.from_numpy(labels), torch.tensor(starts, dtype=torch.int32))


def _check_same(name: str, saved: object, own: object) -> None:
    if saved != own:
        raise UserError(
            f"{name}: the checkpoint's position in the data was taken with {saved}, not {own}; resume with that, or "
            "start a new run"
        )


def _check_sizes(batch_size: int, sequence_length: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} rows are no batch; give 1 or more")
    if sequence_length < 2:
        raise UserError(f"sequence_length: {sequence_length} leaves nothing to predict; give 2 or more")
    assert 0 <= rank < world_size
    if batch_size % world_size:
        shared = [number for number in range(1, batch_size + 1) if batch_size % number == 0]
        listed = ", ".join(map(str, shared[:-1])) + (" or " if shared[:-1] else "") + str(shared[-1])
        raise UserError(
            f"batch_size: {batch_size} rows cannot be shared equally by {world_size} processes; run {listed} of them, "
            f"or make it a multiple of {world_size}"
        )
