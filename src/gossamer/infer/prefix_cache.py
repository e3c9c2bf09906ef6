"""The memory that requests share: who holds which page, and beginnings of texts whose states are kept.

A request that begins like an earlier one goes on from the states that the earlier one left. Keys and values can be cut
off anywhere, a recurrent state cannot: it is of use only where it was copied. An entry of the cache is such a place:
the tokens before it, a snapshot of the recurrent states, and a hold on the pages with the keys and values. The
multi-token-prediction head looks one token ahead, so its keys and values at an entry's last token belong to one
continuation alone; the entry has the hidden states from which they are computed again for another.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from gossamer.model.decode.pool import StateSnapshot


class PageAllocator:
    """The holders of each of `total` pages of keys and values, counted; a page without a holder is free."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._holders = [0] * total
        self._free = list(range(total - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """How many pages nobody holds."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Hold `count` free pages; there must be that many."""
        assert count <= self.num_free, f"{count} pages wanted, {self.num_free} free"
        pages = [self._free.pop() for _ in range(count)]
        self.share(pages)
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add a holder to each of these pages."""
        for page in pages:
            self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Remove a holder from each of these pages; those without any become free."""
        for page in pages:
            assert self._holders[page] > 0, f"page {page} is free already"
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)


@dataclass(frozen=True)
class Entry:
    """The state behind some tokens, from which a text that begins with them can go on.

    Attributes:
        length: number of tokens
        pages: their keys and values; the last page may be filled in part
        snapshot: the recurrent states behind them
        num_mtp_computed: tokens whose keys and values in the multi-token-prediction head hold whatever comes next
        hidden: [length − num_mtp_computed, hidden] final hidden states of the others; None without that head
    """

    length: int
    pages: tuple[int, ...]
    snapshot: StateSnapshot
    num_mtp_computed: int
    hidden: Tensor | None

    @property
    def nbytes(self) -> int:
        """Memory that the entry takes beside its pages, in bytes."""
        return self.snapshot.nbytes + (self.hidden.nbytes if self.hidden is not None else 0)


class PrefixCache:
    """Entries by their tokens; the least recently used is given up first.

    Args:
        pages: the allocator of the entries' pages
        capacity: the largest number of bytes that snapshots may take; 0 keeps nothing

    Attributes:
        capacity: the largest number of bytes that snapshots may take
        nbytes: bytes that snapshots take
    """

    def __init__(self, pages: PageAllocator, capacity: int) -> None:
        self._pages, self.capacity = pages, capacity
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._lengths: Counter[int] = Counter()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, tokens: Sequence[int]) -> bool:
        return _key(tokens) in self._entries

    def find(self, tokens: Sequence[int]) -> Entry | None:
        """Find the longest entry that `tokens` begin with and do not end with; it becomes the most recently used."""
        key = _key(tokens)
        size = len(key) // max(1, len(tokens))
        for length in sorted(self._lengths, reverse=True):
            if length < len(tokens) and (found := self._entries.get(key[: length * size])):
                self._entries.move_to_end(key[: length * size])
                return found
        return None

    def add(self, tokens: Sequence[int], entry: Entry) -> None:
        """Keep an entry and hold its pages; others give way to it. One that is larger than the cache is not kept."""
        key = _key(tokens)
        if key in self._entries:
            self._entries.move_to_end(key)
            return
        if entry.nbytes > self.capacity:
            return
        while self.nbytes + entry.nbytes > self.capacity:
            self.evict()
        self._pages.share(entry.pages)
        self._entries[key] = entry
        self._lengths[entry.length] += 1
        self.nbytes += entry.nbytes

    def evict(self) -> bool:
        """Give up the least recently used entry and its hold on pages; False if there is none."""
        if not self._entries:
            return False
        _, entry = self._entries.popitem(last=False)
        self._lengths -= Counter([entry.length])
        self.nbytes -= entry.nbytes
        self._pages.release(entry.pages)
        return True


def _key(tokens: Sequence[int]) -> bytes:
    return array("q", tokens).tobytes()
