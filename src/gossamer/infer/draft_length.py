"""How many tokens the multi-token-prediction head should propose a step."""

from __future__ import annotations

from collections import deque
from statistics import median_low
from typing import Literal

_MEASURES = 4  # times of a length before it is judged
_REMEMBERED = 9  # newest times that the median is taken of
_FORGETTING = 0.98  # of acceptance, for each step
_TRIAL, _TURN = 16, 4  # steps of a trial, in turns of the length that is tried and the best one
_MARGIN = 1.03  # by which another length must be better than the best one to take its place
_LOOK = 16  # steps between looks at whether the best length still is
_SOONEST, _LATEST = 64, 4096  # steps between trials
_LATEST_PAYING = 256  # where drafts pay, and others beside the best cost little
_SIDES = (1, 2, -1)  # what is tried, beside the best length


class _Batch:
    """Of batches of one size: what steps and drafts took, by length (seconds), and what is being done.

    Attributes:
        best: the length that makes most tokens a second, as far as is known
        tried: the one that takes turns with it; the same between trials
        left: steps until that is thought over
        until_trial: steps until another one is tried
        interval: the next such wait
        side: how many trials there were
    """

    def __init__(self, most: int) -> None:
        self.verify = [deque[float](maxlen=_REMEMBERED) for _ in range(most + 1)]
        self.draft = [deque[float](maxlen=_REMEMBERED) for _ in range(most + 1)]
        self.best = self.tried = self.left = 0
        self.until_trial, self.interval, self.side = _SOONEST, 2 * _SOONEST, -1

    def is_measured(self, length: int) -> bool:
        drafts = len(self.draft[length]) if length else _MEASURES
        return min(len(self.verify[length]), drafts) >= _MEASURES

    def seconds(self, length: int) -> float:
        """That a step takes, its drafts included."""
        return median_low(self.verify[length]) + (median_low(self.draft[length]) if length else 0.0)


class DraftLength:
    """Chooses the length that makes most tokens a second, from what steps took and how many drafts were accepted.

    A batch's size decides what a draft costs, so times are kept for each power of two of it. Lengths are tried upwards
    from 0 as long as that helps; later those beside the best are tried once in a while, and half as often after each
    trial that changed nothing. In a trial both lengths take turns, so that a machine that slows down slows both.
    Between trials a step costs a comparison.

    Args:
        setting: a fixed length, or "auto"
        most: of "auto"
    """

    def __init__(self, setting: int | Literal["auto"], most: int) -> None:
        self._fixed = None if setting == "auto" else setting
        self.most = most if setting == "auto" else setting
        self._batches: dict[int, _Batch] = {}  # by size, in powers of two
        self._tries, self._hits = [0.0] * (self.most + 1), [0.0] * (self.most + 1)

    def length(self, batch: int) -> int:
        """For the next step of a batch of so many requests."""
        if self._fixed is not None:
            return self._fixed
        kept = self._batch(batch)
        if not kept.left:
            self._think(kept)
        kept.left -= 1
        return kept.tried if kept.left // _TURN % 2 else kept.best

    def took(self, batch: int, length: int, verify: float | None = None, draft: float | None = None) -> None:
        """Seconds that a step with so many drafts a request took, or that making them took."""
        kept = self._batch(batch)
        if verify is not None:
            kept.verify[length].append(verify)
        if draft is not None:
            kept.draft[length].append(draft)

    def judged(self, drafted: int, accepted: int) -> None:
        """What became of one request's drafts."""
        for place in range(1, min(drafted, accepted + 1) + 1):
            self._tries[place] = self._tries[place] * _FORGETTING + 1
            self._hits[place] = self._hits[place] * _FORGETTING + (place <= accepted)

    def _batch(self, batch: int) -> _Batch:
        size = batch.bit_length()
        if (kept := self._batches.get(size)) is None:
            kept = self._batches[size] = _Batch(self.most)
        return kept

    def _think(self, kept: _Batch) -> None:
        """What the next steps are to be: of the best length, or a trial."""
        measured = [length for length in range(self.most + 1) if kept.is_measured(length)]
        best = max(measured, key=lambda length: self._rate(kept, length), default=kept.best)
        if kept.best in measured and self._rate(kept, best) < _MARGIN * self._rate(kept, kept.best):
            best = kept.best
        if best != kept.best:
            kept.best, kept.until_trial, kept.interval = best, _SOONEST, 2 * _SOONEST
        beside = [best + side for side in _SIDES if 0 <= best + side <= self.most]
        unknown = [length for length in (0, *beside) if not kept.is_measured(length)]
        if unknown:
            kept.tried, kept.left = unknown[0], _TRIAL
        elif kept.until_trial:
            kept.tried, kept.left = best, min(_LOOK, kept.until_trial) if best else kept.until_trial
            kept.until_trial -= kept.left
        else:
            kept.side += 1
            kept.tried, kept.left = beside[kept.side % len(beside)], _TRIAL
            kept.until_trial = kept.interval
            kept.interval = min(2 * kept.interval, _LATEST_PAYING if best else _LATEST)

    def _rate(self, kept: _Batch, length: int) -> float:
        """Tokens a second."""
        tokens = reached = 1.0
        for place in range(1, length + 1):
            reached *= self._hits[place] / self._tries[place] if self._tries[place] else 0.0
            tokens += reached
        return tokens / kept.seconds(length)
