"""Which tokens make a row: endless sequences of rows from the documents of one token file.

Every document `[eot] t1 ... tn [eot]` has n + 1 targets: all its tokens but the first. If a document is cut, the part
behind the cut begins, in another row, with the last token before the cut, so no target is lost to the cut.

A document with at least T - 1 targets gives as many *full* rows as fit, each of T tokens of that document alone: the
longest context there is. What remains, short documents and one or both ends of long ones, is the *rest*. There are two
ways to put it into rows:

- `SplitRows` concatenates and splits: one fragment comes after the other, cut where a row ends. Every position is used.
  Where the first full row of a long document begins is chosen at random in each epoch, so that cuts move.
- `BestFitRows` cuts nothing that fits into a row. Fragments go into rows by best-fit-decreasing (Ding et al., *Fewer
  Truncations Improve Language Modeling*, arXiv 2404.10830): the largest first, each into the row that it leaves the
  least room in. The rest of a long document stands before or after its full rows, which of the two is chosen at random
  in each epoch. Rows end in padding, about one position in a thousand if there are many fragments, some of them short.

Full rows and the rest are shuffled by (seed, epoch), apart from each other, and alternate in proportion to their
number. So a batch is a mixture of the whole file even if that is one long document, and does not consist of consecutive
parts of one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import numpy.typing as npt
from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer.data.token_files import TokenFile
from gossamer.errors import UserError
from gossamer.typed import Range

__all__ = ["BestFitRows", "RowsPosition", "Span", "SplitRows", "best_fit"]

Span = tuple[int, int]
"""Tokens of one document in a token file: the index of the first one, and their number."""

_GOLDEN = (math.sqrt(5) - 1) / 2
_WINDOW = 1 << 16  # fragments that best-fit chooses among: more give less padding; these take a tenth of a second

_Count = Annotated[int, Range(0, (1 << 62) - 1)]


class RowsPosition(TypedDict):
    """A position in the rows of a token file, as checkpoints store it.

    Attributes:
        full_done: number of full rows that have been read
        rest_epoch: the epoch of the rest
        rest_index: index of a fragment in the order of that epoch
        rest_offset: what has been read from that fragment on: its targets (`SplitRows`), or rows of the window that
            begins with it (`BestFitRows`)
    """

    full_done: _Count
    rest_epoch: _Count
    rest_index: _Count
    rest_offset: _Count


class SplitRows:
    """An endless sequence of rows, or a single epoch of it, made by concatenating and splitting documents.

    A row is a list of spans. The position is four integers. In memory it takes some 30 bytes for each document.

    Args:
        file: the documents
        length: T, tokens of a row
        seed: seed of the order of each epoch. With None there is a single epoch, whose last row may not be full; its
            order is fixed, and any beginning of it is spread evenly over the file
    """

    def __init__(self, file: TokenFile, length: int, seed: int | None) -> None:
        self.length, self.row_targets, self.is_single_epoch = length, length - 1, seed is None
        self.seed = 0 if seed is None else seed % (1 << 63)
        self.begins = np.asarray(file.offsets[:-1])
        targets = np.diff(file.offsets) - 1
        self.full_rows = targets // self.row_targets  # [D] full rows of each document
        self.rest_targets = targets - self.full_rows * self.row_targets  # [D] targets outside of them
        self.full_row_ends = np.cumsum(self.full_rows)  # [D] full rows up to and including each document
        self.num_full_rows, self.num_rest_targets = int(self.full_rows.sum()), int(self.rest_targets.sum())
        self.seek(full_done=0, rest_epoch=0, rest_index=0, rest_offset=0)

    def seek(self, full_done: int, rest_epoch: int, rest_index: int, rest_offset: int) -> None:
        """Continue at a position that `tell` returned.

        Raises:
            UserError: the position lies beyond these rows.
        """
        self.full_rows_read, self.rest_epoch = full_done, rest_epoch
        self.rest_index, self.rest_offset = rest_index, rest_offset
        self._order_full_rows()
        self._order_fragments()
        if rest_index > len(self.fragment_targets) or (rest_offset and rest_offset >= self._max_rest_offset()):
            raise UserError("the checkpoint's position lies beyond the end of the data; start a new run")
        before = int(self.fragment_targets[:rest_index].sum())
        self.rest_targets_read = rest_epoch * self.num_rest_targets + before + self._targets_of_offset()

    def _max_rest_offset(self) -> int:
        """The number of steps that `rest_offset` counts at `rest_index`."""
        return int(self.fragment_targets[self.rest_index]) if self.rest_index < len(self.fragment_targets) else 0

    def tell(self) -> RowsPosition:
        """Return the current position."""
        return RowsPosition(
            full_done=self.full_rows_read,
            rest_epoch=self.rest_epoch,
            rest_index=self.rest_index,
            rest_offset=self.rest_offset,
        )

    def __iter__(self) -> Iterator[list[Span]]:
        return self

    def __next__(self) -> list[Span]:
        full_rows, rest = self.num_full_rows, self.num_rest_targets
        has_full_rows = full_rows > 0 and not (self.is_single_epoch and self.full_rows_read == full_rows)
        has_rest = rest > 0 and not (self.is_single_epoch and self.rest_targets_read == rest)
        if not has_full_rows and not has_rest:
            raise StopIteration
        # in proportion: from the kind of which the smaller share has been read
        if has_full_rows and (not has_rest or self.full_rows_read * rest <= self.rest_targets_read * full_rows):
            return [self._full_row()]
        return self._rest_row()

    def _full_row(self) -> Span:
        epoch, index = divmod(self.full_rows_read, self.num_full_rows)
        if index == 0 and epoch > 0:
            self._order_full_rows()
        row = int(self.full_row_order[index])
        document = int(np.searchsorted(self.full_row_ends, row, side="right"))
        within = row - int(self.full_row_ends[document] - self.full_rows[document])
        self.full_rows_read += 1
        return int(self.begins[document] + self.targets_before[document]) + within * self.row_targets, self.length

    def _rest_row(self) -> list[Span]:
        row: list[Span] = []
        room = self.length
        while room >= 2:  # a single token has nothing to predict
            if self.rest_index == len(self.fragment_targets):
                if self.is_single_epoch:
                    break
                self._next_epoch()
            size = int(self.fragment_targets[self.rest_index])
            count = min(size - self.rest_offset, room - 1)
            row.append((int(self.fragment_begins[self.rest_index]) + self.rest_offset, count + 1))
            room -= count + 1
            self.rest_targets_read += count
            self.rest_offset += count
            if self.rest_offset == size:
                self.rest_index, self.rest_offset = self.rest_index + 1, 0
        return row

    def _targets_of_offset(self) -> int:
        """The number of targets of the rest that have been read from `rest_index` on."""
        return self.rest_offset

    def _next_epoch(self) -> None:
        self.rest_epoch, self.rest_index = self.rest_epoch + 1, 0
        self._order_fragments()

    def _order_full_rows(self) -> None:
        epoch = self.full_rows_read // self.num_full_rows if self.num_full_rows else 0
        self.targets_before = self._targets_before_full_rows(epoch)
        self.full_row_order = self._permutation(self.num_full_rows, epoch, 1)

    def _order_fragments(self) -> None:
        before = self._targets_before_full_rows(self.rest_epoch)
        after = self.rest_targets - before
        begins = np.concatenate([self.begins, self.begins + before + self.full_rows * self.row_targets])
        sizes = np.concatenate([before, after])
        nonempty = np.flatnonzero(sizes)
        order = nonempty[self._permutation(len(nonempty), self.rest_epoch, 2)]
        self.fragment_begins, self.fragment_targets = begins[order], sizes[order]

    def _permutation(self, count: int, epoch: int, stream: int) -> npt.NDArray[np.int64]:
        """The order in which an epoch reads full rows (stream 1) or the rest (stream 2), int64 [count]."""
        if self.is_single_epoch:
            # Multiples of the golden ratio modulo 1 are spread evenly from the first few on.
            return np.argsort(np.argsort(np.arange(count) * _GOLDEN % 1.0))
        return np.random.default_rng([self.seed, epoch, stream]).permutation(count)

    def _targets_before_full_rows(self, epoch: int) -> npt.NDArray[np.int64]:
        """The number of targets of each document before its first full row in this epoch, int64 [D]."""
        if self.is_single_epoch:
            return np.zeros_like(self.rest_targets)
        sampled = np.random.default_rng([self.seed, epoch, 0]).integers(0, self.rest_targets, endpoint=True)
        return np.where(self.full_rows > 0, sampled, 0)


class BestFitRows(SplitRows):
    """An endless sequence of rows that cut no document which fits into one.

    The fragments of an epoch are put into rows window by window; the rows of a window are shuffled.

    Args:
        file: the documents
        length: T, tokens of a row
        seed: seed of the order of each epoch
    """

    def __init__(self, file: TokenFile, length: int, seed: int) -> None:
        self.window: list[list[Span]] = []  # the rows of the fragments from rest_index on; empty until they are packed
        super().__init__(file, length, seed)

    def _rest_row(self) -> list[Span]:
        if self.rest_index == len(self.fragment_targets):
            self._next_epoch()
        if not self.window:
            self.window = self._pack_window()
        row = self.window[self.rest_offset]
        self.rest_targets_read += sum(count - 1 for _, count in row)
        self.rest_offset += 1
        if self.rest_offset == len(self.window):
            self.rest_index, self.rest_offset = min(self.rest_index + _WINDOW, len(self.fragment_targets)), 0
            self.window = []
        return row

    def _max_rest_offset(self) -> int:
        return len(self._pack_window())

    def _targets_of_offset(self) -> int:
        self.window = self._pack_window() if self.rest_offset else []
        return sum(count - 1 for row in self.window[: self.rest_offset] for _, count in row)

    def _pack_window(self) -> list[list[Span]]:
        window = slice(self.rest_index, self.rest_index + _WINDOW)
        begins, counts = self.fragment_begins[window].tolist(), (self.fragment_targets[window] + 1).tolist()
        bins = best_fit(counts, self.length)
        order = np.random.default_rng([self.seed, self.rest_epoch, 3, self.rest_index]).permutation(len(bins))
        return [[(begins[fragment], counts[fragment]) for fragment in bins[row]] for row in order.tolist()]

    def _targets_before_full_rows(self, epoch: int) -> npt.NDArray[np.int64]:
        """The same for best-fit: either all of the rest of a long document, or nothing."""
        sampled = np.random.default_rng([self.seed, epoch, 0]).integers(0, 2, len(self.rest_targets))
        return np.where(self.full_rows > 0, sampled * self.rest_targets, 0)


def best_fit(sizes: list[int], room: int) -> list[list[int]]:
    """Pack items into bins by best-fit-decreasing, equal sizes in their order.

    Takes O(n log(room)) time: bins are grouped by the room that is left in them, and there are at most `room` groups.

    Args:
        sizes: the size of each item, at most `room`
        room: the size of a bin

    Returns:
        For each bin the indices of its items.
    """
    bins: list[list[int]] = []
    bins_by_room: list[list[int]] = [[] for _ in range(room + 1)]  # the bins with so much room left
    rooms: list[int] = []  # the groups that are not empty, in rising order
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        size = sizes[index]
        place = bisect_left(rooms, size)
        if place == len(rooms):
            number, left = len(bins), room
            bins.append([])
        else:
            left = rooms[place]
            number = bins_by_room[left].pop()
            if not bins_by_room[left]:
                del rooms[place]
        bins[number].append(index)
        left -= size
        if left and not bins_by_room[left]:
            insort(rooms, left)
        bins_by_room[left].append(number)
    return bins
