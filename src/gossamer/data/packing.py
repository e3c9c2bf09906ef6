"""Rows of T tokens from documents of any length, each token predicted once an epoch and never across documents.

Every document ``[eot] t1 ... tn [eot]`` has n + 1 targets: all its tokens but the first. A stretch that is cut goes
on, in another row, with the last token before the cut, so no target is lost to the cut.

- A document with at least T - 1 targets gives as many *full* rows as fit, each T tokens of the document and nothing
  else: the longest context there is. Where the first of them begins is drawn anew each epoch, so that cuts move.
- What remains, short documents and the ends of long ones, is *concatenated and split*: put one after the other into
  rows, cut where a row ends.

Both kinds are shuffled by (seed, epoch), apart from each other, and taken in turn in proportion to their number. So a
batch is a mixture of the whole corpus even when the corpus is one long document, rather than consecutive stretches of
one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gossamer.data.shards import Shard
from gossamer.errors import UserError

__all__ = ["IGNORE", "Batch", "TrainBatches", "validation_batches"]

IGNORE = -100
"""The label of padding: Hugging Face's and PyTorch's mark of what has no loss."""

_GOLDEN = (math.sqrt(5) - 1) / 2

Stretch = tuple[int, int]
"""(first token, number of tokens) in a shard; all of one document."""


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


class _Rows:
    """An endless sequence of rows, each a list of stretches, or a single epoch of it.

    Its position is four integers. In memory it needs some 30 bytes for each document.

    Args:
        shard: the documents.
        length: T, tokens of a row.
        seed: of the order of each epoch. None: a single epoch, whose last row may not be full; its order is fixed, and
            any beginning of it is spread evenly over the shard.
    """

    def __init__(self, shard: Shard, length: int, seed: int | None) -> None:
        self.length, self.span, self.once = length, length - 1, seed is None
        self.seed = 0 if seed is None else seed % (1 << 63)
        self.begins = np.asarray(shard.offsets[:-1])
        targets = np.diff(shard.offsets) - 1
        self.full = targets // self.span  # [D] full rows of each document
        self.rest = targets - self.full * self.span  # [D] targets outside of them
        self.full_ends = np.cumsum(self.full)
        self.num_full, self.num_rest = int(self.full.sum()), int(self.rest.sum())
        self.seek(full_done=0, rest_epoch=0, rest_index=0, rest_offset=0)

    def seek(self, full_done: int, rest_epoch: int, rest_index: int, rest_offset: int) -> None:
        """Continue at a position that ``tell`` gave."""
        self.full_done, self.rest_epoch = full_done, rest_epoch
        self.rest_index, self.rest_offset = rest_index, rest_offset
        self._order_full()
        self._order_rest()
        self.rest_done = rest_epoch * self.num_rest + int(self.rest_sizes[:rest_index].sum()) + rest_offset

    def tell(self) -> dict[str, int]:
        """The position: full rows taken; of the rest the epoch, the stretch in its order, the targets taken of it."""
        names = ("full_done", "rest_epoch", "rest_index", "rest_offset")
        return {name: getattr(self, name) for name in names}

    def __iter__(self) -> Iterator[list[Stretch]]:
        return self

    def __next__(self) -> list[Stretch]:
        full_left = self.num_full > 0 and not (self.once and self.full_done == self.num_full)
        rest_left = self.num_rest > 0 and not (self.once and self.rest_done == self.num_rest)
        if not full_left and not rest_left:
            raise StopIteration
        # in proportion: the kind of which the smaller share is done
        if full_left and (not rest_left or self.full_done * self.num_rest <= self.rest_done * self.num_full):
            return [self._full_row()]
        return self._rest_row()

    def _full_row(self) -> Stretch:
        epoch, index = divmod(self.full_done, self.num_full)
        if index == 0 and epoch > 0:
            self._order_full()
        row = int(self.full_order[index])
        document = int(np.searchsorted(self.full_ends, row, side="right"))
        within = row - int(self.full_ends[document] - self.full[document])
        self.full_done += 1
        return int(self.begins[document] + self.full_heads[document]) + within * self.span, self.length

    def _rest_row(self) -> list[Stretch]:
        row: list[Stretch] = []
        room = self.length
        while room >= 2:  # a single token has nothing to predict
            if self.rest_index == len(self.rest_sizes):
                if self.once:
                    break
                self.rest_epoch, self.rest_index = self.rest_epoch + 1, 0
                self._order_rest()
            size = int(self.rest_sizes[self.rest_index])
            taken = min(size - self.rest_offset, room - 1)
            row.append((int(self.rest_begins[self.rest_index]) + self.rest_offset, taken + 1))
            room -= taken + 1
            self.rest_done += taken
            self.rest_offset += taken
            if self.rest_offset == size:
                self.rest_index, self.rest_offset = self.rest_index + 1, 0
        return row

    def _order_full(self) -> None:
        epoch = self.full_done // self.num_full if self.num_full else 0
        self.full_heads = self._heads(epoch)
        self.full_order = self._permutation(self.num_full, epoch, 1)

    def _order_rest(self) -> None:
        heads = self._heads(self.rest_epoch)
        tails = self.rest - heads
        begins = np.concatenate([self.begins, self.begins + heads + self.full * self.span])
        sizes = np.concatenate([heads, tails])
        kept = np.flatnonzero(sizes)
        order = kept[self._permutation(len(kept), self.rest_epoch, 2)]
        self.rest_begins, self.rest_sizes = begins[order], sizes[order]

    def _permutation(self, count: int, epoch: int, stream: int) -> npt.NDArray[np.int64]:
        """[count] the order in which an epoch takes full rows (stream 1) or the rest (stream 2)."""
        if self.once:  # multiples of the golden ratio, modulo 1, lie evenly from the first few on: visit by their ranks
            return np.argsort(np.argsort(np.arange(count) * _GOLDEN % 1.0))
        return np.random.default_rng([self.seed, epoch, stream]).permutation(count)

    def _heads(self, epoch: int) -> npt.NDArray[np.int64]:
        """[D] targets of each document before its first full row in this epoch."""
        if self.once:
            return np.zeros_like(self.rest)
        drawn = np.random.default_rng([self.seed, epoch, 0]).integers(0, self.rest, endpoint=True)
        return np.where(self.full > 0, drawn, 0)


class TrainBatches:
    """Endless training batches; each epoch in an order of its own, rows going on over the epoch's end.

    Args:
        shard: the documents.
        batch_size: B, rows of a batch.
        sequence_length: T, tokens of a row.
        seed: of the order.

    Raises:
        UserError: the shard holds fewer than T tokens, or a size is impossible.
    """

    def __init__(self, shard: Shard, batch_size: int, sequence_length: int, seed: int) -> None:
        _check_sizes(batch_size, sequence_length)
        if shard.num_tokens < sequence_length:
            raise UserError(
                f"the training text holds {shard.num_tokens:,} tokens, fewer than one row of {sequence_length:,}; "
                "give more text with --data, or a smaller sequence_length"
            )
        self.batch_size, self.sequence_length, self.seed = batch_size, sequence_length, seed
        self._shard = shard
        self._rows = _Rows(shard, sequence_length, seed)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return _batch(self._shard, [next(self._rows) for _ in range(self.batch_size)], self.sequence_length)

    def state_dict(self) -> dict[str, Any]:
        """The position between two batches: a few JSON values."""
        return {
            "fingerprint": self._shard.fingerprint,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            **self._rows.tell(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; the batch size may be another one.

        Raises:
            UserError: the state belongs to other data, another sequence length or another seed.
        """
        if state["fingerprint"] != self._shard.fingerprint:
            raise UserError(
                "the training data is not what the checkpoint was trained on (text, split or tokenizer changed); "
                "resume with the same --data, or start a new run"
            )
        for name in ("sequence_length", "seed"):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"{name}: the checkpoint's position in the data was taken with {state[name]}, not "
                    f"{getattr(self, name)}; resume with that, or start a new run"
                )
        self._rows.seek(**{name: state[name] for name in self._rows.tell()})


def validation_batches(
    shard: Shard, batch_size: int, sequence_length: int, max_tokens: int | None = None
) -> Iterator[Batch]:
    """One pass over a shard, always the same, in an order whose beginning stands for the whole.

    The last row is padded, and the last batch has fewer rows when theirs do not fill it.

    Args:
        shard: the documents.
        batch_size: B.
        sequence_length: T.
        max_tokens: stop with the row that reaches so many tokens; None: everything.

    Raises:
        UserError: nothing to predict in the shard, or a size is impossible.
    """
    _check_sizes(batch_size, sequence_length)
    if shard.num_tokens < 2:
        raise UserError(
            f"the validation text holds {shard.num_tokens} tokens, and nothing to predict; give more text with --data"
        )
    rows = _Rows(shard, sequence_length, None)
    left = math.inf if max_tokens is None else max(1, math.ceil(max_tokens / sequence_length))
    return _finite_batches(shard, rows, batch_size, sequence_length, left)


def _finite_batches(shard: Shard, rows: _Rows, batch_size: int, length: int, left: float) -> Iterator[Batch]:
    taken: list[list[Stretch]] = []
    for row in rows:
        taken.append(row)
        left -= 1
        if len(taken) == batch_size or left <= 0:
            yield _batch(shard, taken, length)
            taken = []
        if left <= 0:
            return
    if taken:
        yield _batch(shard, taken, length)


def _batch(shard: Shard, rows: list[list[Stretch]], length: int) -> Batch:
    """Copy the rows' tokens out of the shard."""
    tokens = shard.tokens.view(np.ndarray)  # slices of a memmap are slow
    ids = np.full((len(rows), length), tokens[0], np.int64)  # padded with the delimiter, which begins the shard
    labels = np.full((len(rows), length), IGNORE, np.int64)
    starts: list[int] = []
    for index, row in enumerate(rows):
        column = 0
        for begin, count in row:
            starts.append(index * length + column)
            ids[index, column : column + count] = tokens[begin : begin + count]
            column += count
        labels[index, :column] = ids[index, :column]
        if column < length:
            starts.append(index * length + column)
    starts.append(len(rows) * length)
    return Batch(torch.from_numpy(ids), torch.from_numpy(labels), torch.tensor(starts, dtype=torch.int32))


def _check_sizes(batch_size: int, sequence_length: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} rows are no batch; give 1 or more")
    if sequence_length < 2:
        raise UserError(f"sequence_length: {sequence_length} leaves nothing to predict; give 2 or more")
