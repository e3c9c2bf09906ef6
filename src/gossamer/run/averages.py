"""Means of what steps returned."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Averages"]


class Averages:
    """Means over the steps since a line was last logged, read from the device once.

    Args:
        began: the run's seconds of training before the first of them
    """

    def __init__(self, began: float) -> None:
        self.began, self.count, self._sums = began, 0, dict[str, Tensor]()

    def add(self, values: dict[str, Tensor]) -> None:
        self.count += 1
        for name, value in values.items():
            self._sums[name] = value + self._sums.get(name, 0.0)

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.count for name, total in self._sums.items()}
