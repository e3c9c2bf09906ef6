"""Who holds which page of keys and values."""

from __future__ import annotations

from collections.abc import Iterable


class Pages:
    """Counts the holders of each of `total` pages; a page without one is free."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._holders = [0] * total
        self._free = list(range(total - 1, -1, -1))

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Hold `count` free pages; there must be so many."""
        assert count <= self.free, f"{count} pages wanted, {self.free} free"
        pages = [self._free.pop() for _ in range(count)]
        self.share(pages)
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Hold pages once more."""
        for page in pages:
            self._holders[page] += 1

    def drop(self, pages: Iterable[int]) -> None:
        """Hold pages once less; those that nobody holds any more become free."""
        for page in pages:
            assert self._holders[page] > 0, f"page {page} is free already"
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)
