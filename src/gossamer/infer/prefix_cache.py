"""Beginnings of texts whose states are kept, for requests that begin in the same way.

Keys and values can be cut off anywhere, a recurrent state cannot: it is of use only where it was copied. An entry is
such a place: the tokens before it, a snapshot of the recurrent states, and a hold on the pages with their keys and
values. The multi-token-prediction head looks one token ahead, so what it keeps of an entry's last token belongs to one
continuation alone; the entry has the hidden states from which it is made again for another.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gossamer.infer.pages import Pages
from gossamer.model.pool import Snapshot


@dataclass(frozen=True)
class Entry:
    """Attributes:
    length: tokens
    pages: with their keys and values, the last one filled in part perhaps
    snapshot: of the recurrent states behind them
    head: tokens whose keys and values the multi-token-prediction head has, whatever comes next
    hidden: [length − head, hidden] final hidden states of the others; None without that head
    """

    length: int
    pages: tuple[int, ...]
    snapshot: Snapshot
    head: int
    hidden: Tensor | None

    @property
    def nbytes(self) -> int:
        return self.snapshot.nbytes + (self.hidden.nbytes if self.hidden is not None else 0)


class PrefixCache:
    """Entries by their tokens, the least recently used given up first.

    Args:
        pages: the entries' pages are held there
        capacity: bytes of snapshots at most; 0 keeps nothing
    """

    def __init__(self, pages: Pages, capacity: int) -> None:
        self._pages, self.capacity = pages, capacity
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._lengths: Counter[int] = Counter()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, tokens: Sequence[int]) -> bool:
        return _key(tokens) in self._entries

    def find(self, tokens: Sequence[int]) -> Entry | None:
        """The longest entry that `tokens` begin with and do not end with, now the most recently used."""
        key = _key(tokens)
        size = len(key) // max(1, len(tokens))
        for length in sorted(self._lengths, reverse=True):
            if length < len(tokens) and (found := self._entries.get(key[: length * size])):
                self._entries.move_to_end(key[: length * size])
                return found
        return None

    def add(self, tokens: Sequence[int], entry: Entry) -> None:
        """Keep an entry, and hold its pages; others give way to it. One that is larger than the cache is not kept."""
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
        self._pages.drop(entry.pages)
        return True


def _key(tokens: Sequence[int]) -> bytes:
    return array("q", tokens).tobytes()
