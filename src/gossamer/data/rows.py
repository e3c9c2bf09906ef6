"""Which tokens make a row: endless sequences of rows from the documents of one shard.

Every document ``[eot] t1 ... tn [eot]`` has n + 1 targets: all its tokens but the first. A stretch that is cut goes
on, in another row, with the last token before the cut, so no target is lost to the cut.

A document with at least T - 1 targets gives as many *full* rows as fit, each T tokens of the document and nothing
else: the longest context there is. What remains, short documents and one or both ends of long ones, is the *rest*, and
there are two ways to put it into rows:

- ``SplitRows`` concatenates and splits: one piece after the other, cut where a row ends. Every position is used.
  Where the first full row of a long document begins is drawn anew each epoch, so that cuts move.
- ``BestFitRows`` cuts nothing that fits into a row: pieces go into rows by best-fit-decreasing (Ding et al., *Fewer
  Truncations Improve Language Modeling*, arXiv 2404.10830), the largest first, each into the row that it leaves the
  least room in. The rest of a long document stands before or after its full rows, which of the two is drawn anew each
  epoch. Rows end in padding, about one position in a thousand where pieces are many and some of them short.

Full rows and rest are shuffled by (seed, epoch), apart from each other, and taken in turn in proportion to their
number. So a batch is a mixture of the whole shard even when that is one long document, rather than consecutive
stretches of one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import numpy.typing as npt
from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer.data.shards import Shard
from gossamer.errors import UserError
from gossamer.typed import Range

__all__ = ["BestFitRows", "RowsPlace", "SplitRows", "Stretch", "best_fit"]

Stretch = tuple[int, int]
"""(first token, number of tokens) in a shard; all of one document."""

_GOLDEN = (math.sqrt(5) - 1) / 2
_WINDOW = 1 << 16  # pieces that best-fit chooses among: the more, the less padding; a tenth of a second to sort out


_Count = Annotated[int, Range(0, (1 << 62) - 1)]


class RowsPlace(TypedDict):
    """A position that ``tell`` gives."""

    full_done: _Count
    rest_epoch: _Count
    rest_index: _Count
    rest_offset: _Count


class SplitRows:
    """An endless sequence of rows, each a list of stretches, or a single epoch of it; concatenated and split.

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
        """Continue at a position that ``tell`` gave.

        Raises:
            UserError: it lies beyond these rows.
        """
        self.full_done, self.rest_epoch = full_done, rest_epoch
        self.rest_index, self.rest_offset = rest_index, rest_offset
        self._order_full()
        self._order_rest()
        if rest_index > len(self.rest_sizes) or (rest_offset and rest_offset >= self._steps_here()):
            raise UserError("the checkpoint's position lies beyond the end of the data; start a new run")
        self.rest_done = rest_epoch * self.num_rest + int(self.rest_sizes[:rest_index].sum()) + self._within()

    def _steps_here(self) -> int:
        """How far ``rest_offset`` may go at ``rest_index``."""
        return int(self.rest_sizes[self.rest_index]) if self.rest_index < len(self.rest_sizes) else 0

    def tell(self) -> RowsPlace:
        """The position: full rows taken; of the rest the epoch, the piece in its order, and what is done from there:
        targets of that piece (split), rows of the window that begins with it (best fit).
        """
        return RowsPlace(
            full_done=self.full_done,
            rest_epoch=self.rest_epoch,
            rest_index=self.rest_index,
            rest_offset=self.rest_offset,
        )

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
                self._next_epoch()
            size = int(self.rest_sizes[self.rest_index])
            taken = min(size - self.rest_offset, room - 1)
            row.append((int(self.rest_begins[self.rest_index]) + self.rest_offset, taken + 1))
            room -= taken + 1
            self.rest_done += taken
            self.rest_offset += taken
            if self.rest_offset == size:
                self.rest_index, self.rest_offset = self.rest_index + 1, 0
        return row

    def _within(self) -> int:
        """Targets taken of the rest from ``rest_index`` on."""
        return self.rest_offset

    def _next_epoch(self) -> None:
        self.rest_epoch, self.rest_index = self.rest_epoch + 1, 0
        self._order_rest()

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


class BestFitRows(SplitRows):
    """An endless sequence of rows that cut no document which fits into one; see ``SplitRows`` for the arguments.

    The pieces of an epoch are sorted out window by window; a window's rows are shuffled.
    """

    def __init__(self, shard: Shard, length: int, seed: int) -> None:
        self.window: list[list[Stretch]] = []  # rows of the pieces from rest_index on; empty: not sorted out yet
        super().__init__(shard, length, seed)

    def _rest_row(self) -> list[Stretch]:
        if self.rest_index == len(self.rest_sizes):
            self._next_epoch()
        if not self.window:
            self.window = self._sort_out()
        row = self.window[self.rest_offset]
        self.rest_done += sum(count - 1 for _, count in row)
        self.rest_offset += 1
        if self.rest_offset == len(self.window):
            self.rest_index, self.rest_offset = min(self.rest_index + _WINDOW, len(self.rest_sizes)), 0
            self.window = []
        return row

    def _steps_here(self) -> int:
        return len(self._sort_out())

    def _within(self) -> int:
        self.window = self._sort_out() if self.rest_offset else []
        return sum(count - 1 for row in self.window[: self.rest_offset] for _, count in row)

    def _sort_out(self) -> list[list[Stretch]]:
        window = slice(self.rest_index, self.rest_index + _WINDOW)
        begins, counts = self.rest_begins[window].tolist(), (self.rest_sizes[window] + 1).tolist()
        bins = best_fit(counts, self.length)
        order = np.random.default_rng([self.seed, self.rest_epoch, 3, self.rest_index]).permutation(len(bins))
        return [[(begins[piece], counts[piece]) for piece in bins[row]] for row in order.tolist()]

    def _heads(self, epoch: int) -> npt.NDArray[np.int64]:
        """All of a long document's rest before its first full row, or nothing."""
        drawn = np.random.default_rng([self.seed, epoch, 0]).integers(0, 2, len(self.rest))
        return np.where(self.full > 0, drawn * self.rest, 0)


def best_fit(sizes: list[int], room: int) -> list[list[int]]:
    """Indices of ``sizes`` (each at most ``room``) by bin of ``room``: best-fit-decreasing, ties in their order.

    Time O(n log(room)): bins are kept by the room that is left in them, and not more than ``room`` kinds are.
    """
    bins: list[list[int]] = []
    by_left: list[list[int]] = [[] for _ in range(room + 1)]  # bins with so much room left
    lefts: list[int] = []  # the kinds that there are, ascending
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        size = sizes[index]
        place = bisect_left(lefts, size)
        if place == len(lefts):
            number, left = len(bins), room
            bins.append([])
        else:
            left = lefts[place]
            number = by_left[left].pop()
            if not by_left[left]:
                del lefts[place]
        bins[number].append(index)
        left -= size
        if left and not by_left[left]:
            insort(lefts, left)
        by_left[left].append(number)
    return bins
