"""How many tokens the multi-token-prediction head should propose a step."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Literal

_MEASURES = 4  # times of a length before it is judged
_REMEMBERED = 15  # newest times that the median is taken of
_FORGETTING = 0.98  # of acceptance, for each step
_SOONEST, _LATEST = 32, 1024  # steps between trials of a neighbouring length


class _Times:
    """The newest times that something took, and their median (seconds)."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=_REMEMBERED)
        self.median = 0.0

    def __len__(self) -> int:
        return len(self._newest)

    def add(self, seconds: float) -> None:
        self._newest.append(seconds)
        self.median = sorted(self._newest)[len(self._newest) // 2]


class DraftLength:
    """Chooses the length that makes most tokens a second, from what steps took and how many drafts were accepted.

    A batch's size decides what a draft costs, so times are kept for each power of two of it. Lengths are tried upwards
    from 0 as long as that helps; later the neighbours of the best are tried once in a while, more and more rarely as
    long as they lose.

    Args:
        setting: a fixed length, or "auto"
        most: of "auto"
    """

    def __init__(self, setting: int | Literal["auto"], most: int) -> None:
        self._fixed = None if setting == "auto" else setting
        self.most = most if setting == "auto" else setting
        # By size of the batch and length.
        self._verify = defaultdict[tuple[int, int], _Times](_Times)
        self._draft = defaultdict[tuple[int, int], _Times](_Times)
        self._tries, self._hits = [0.0] * (self.most + 1), [0.0] * (self.most + 1)
        self._steps, self._next_trial, self._interval, self._side = 0, _SOONEST, _SOONEST, 1

    def length(self, batch: int) -> int:
        """For a batch of so many requests."""
        if self._fixed is not None:
            return self._fixed
        size = batch.bit_length()
        best = self._best(size)
        for length in (0, min(best + 1, self.most)):
            if not self._is_measured(size, length):
                return length
        self._steps += 1
        if self._steps < self._next_trial:
            return best
        self._interval = min(2 * self._interval, _LATEST)
        self._next_trial = self._steps + self._interval
        self._side = -self._side
        return min(max(best + self._side, 0), self.most)

    def took(self, batch: int, length: int, verify: float | None = None, draft: float | None = None) -> None:
        """Seconds that a step with so many drafts a request took, or that making them took."""
        if verify is not None:
            self._verify[batch.bit_length(), length].add(verify)
        if draft is not None:
            self._draft[batch.bit_length(), length].add(draft)

    def judged(self, drafted: int, accepted: int) -> None:
        """What became of one request's drafts."""
        for place in range(1, min(drafted, accepted + 1) + 1):
            self._tries[place] = self._tries[place] * _FORGETTING + 1
            self._hits[place] = self._hits[place] * _FORGETTING + (place <= accepted)

    def _best(self, size: int) -> int:
        measured = [length for length in range(self.most + 1) if self._is_measured(size, length)]
        return max(measured, key=lambda length: self._rate(size, length), default=0)

    def _is_measured(self, size: int, length: int) -> bool:
        drafts = len(self._draft[size, length]) if length else _MEASURES
        return min(len(self._verify[size, length]), drafts) >= _MEASURES

    def _rate(self, size: int, length: int) -> float:
        """Tokens a second."""
        tokens = reached = 1.0
        for place in range(1, length + 1):
            reached *= self._hits[place] / self._tries[place] if self._tries[place] else 0.0
            tokens += reached
        seconds = self._verify[size, length].median + (self._draft[size, length].median if length else 0.0)
        return tokens / seconds
