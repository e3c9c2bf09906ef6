"""How many tokens to draft for each request: the length that yields the most tokens per second.

The times are those of this machine, and the acceptance is that of the texts at hand: both are measured while requests
run.
"""

from __future__ import annotations

from statistics import median_low
from typing import Literal

_MIN_MEASUREMENTS = 3  # of each length in a trial, which otherwise says nothing
_DECAY = 0.98  # of the acceptance counts, for each step
_TRIAL_STEPS, _TURN_STEPS = 16, 4  # of a trial, and of a turn of the tried or the best length in it
_MARGIN = 1.03  # by which another length must be better than the best one to take its place
_REVIEW_STEPS = 16  # between looks at whether drafts are still accepted often enough
_MIN_WAIT, _MAX_WAIT = 128, 4096  # steps between trials
_MAX_WAIT_WITH_DRAFTS = 256  # where drafts pay, and trying others costs little
_SIDES = (1, -1, 2)  # lengths that are tried, relative to the best one


class DraftLength:
    """The choice of the draft length that yields the most tokens per second, from measured times and acceptance.

    A draft length is the number of drafts that a step verifies for each request. What a draft costs depends on the size
    of the batch, so there is a best length for each power of two of it.

    Lengths are compared in trials. In a trial the best length so far and another one take turns for a few steps. Only
    times of the same trial are compared, because a machine that other programs use can become half as fast within a
    second. A trial measures how many times as long a step of one length takes as a step of the other. This ratio and
    the newest acceptance rates say which length makes more tokens per second.

    A length becomes the best one when it has been better in two trials in a row. At first the lengths are tried upwards
    from 0 as long as that helps. After that the neighbors of the best length are tried from time to time, and half as
    often after each trial that changed nothing.

    Args:
        setting: a fixed length, or "auto"
        max_length: the largest length for "auto"

    Attributes:
        max_length: the largest length that is chosen
    """

    def __init__(self, setting: int | Literal["auto"], max_length: int) -> None:
        self._fixed = None if setting == "auto" else setting
        self.max_length = max_length if setting == "auto" else setting
        self._batches: dict[int, _BatchTrials] = {}  # by size, in powers of two
        self._tries, self._hits = [0.0] * (self.max_length + 1), [0.0] * (self.max_length + 1)

    def length(self, batch_size: int) -> int:
        """Choose the length for the next step of a batch of so many requests."""
        if self._fixed is not None:
            return self._fixed
        batch = self._batch(batch_size)
        if not batch.steps_left:
            self._review(batch)
        batch.steps_left -= 1
        return batch.tried if batch.steps_left // _TURN_STEPS % 2 else batch.best

    def record_seconds(
        self, batch_size: int, length: int, verify: float | None = None, draft: float | None = None
    ) -> None:
        """Record the seconds that a step with so many drafts a request took, or that making them took."""
        batch = self._batch(batch_size)
        if not batch.is_trial or length not in (batch.best, batch.tried):
            return
        if verify is not None:
            batch.verify.setdefault(length, []).append(verify)
        if draft is not None:
            batch.draft.setdefault(length, []).append(draft)

    def record_acceptance(self, drafted: int, accepted: int) -> None:
        """Record how many drafts of one request were accepted."""
        for position in range(1, min(drafted, accepted + 1) + 1):
            self._tries[position] = self._tries[position] * _DECAY + 1
            self._hits[position] = self._hits[position] * _DECAY + (position <= accepted)

    def _batch(self, batch_size: int) -> _BatchTrials:
        size = batch_size.bit_length()
        if (batch := self._batches.get(size)) is None:
            batch = self._batches[size] = _BatchTrials()
        return batch

    def _review(self, batch: _BatchTrials) -> None:
        """Decide what the next steps are: of the best length, or a trial."""
        if batch.is_trial:
            self._end_trial(batch)
            if batch.is_trial:
                return  # it is repeated
        elif batch.best and self._tokens(batch.best) < batch.cost[batch.best]:
            batch.set_best(0)  # what is accepted has become too little
        if batch.until_trial:
            batch.tried = batch.best
            batch.steps_left = min(_REVIEW_STEPS, batch.until_trial) if batch.best else batch.until_trial
            batch.until_trial -= batch.steps_left
        else:
            beside = [batch.best + side for side in _SIDES if 0 <= batch.best + side <= self.max_length]
            batch.begin_trial(beside[batch.num_trials % len(beside)] if beside else batch.best)

    def _end_trial(self, batch: _BatchTrials) -> None:
        """Compare the two lengths of a trial, and decide when the next one is."""
        best, tried, ratio = batch.best, batch.tried, batch.cost_ratio()
        was_better, batch.was_better, batch.tried = batch.was_better, False, best
        batch.until_trial = batch.wait
        if ratio is not None:
            if tried:
                batch.cost[tried] = batch.cost[best] * ratio
            else:
                batch.cost[best] = 1 / ratio
            if self._tokens(tried) / batch.cost[tried] > _MARGIN * self._tokens(best) / batch.cost[best]:
                if was_better:
                    batch.set_best(tried)
                    batch.until_trial = 0  # the next one may be better still
                else:
                    batch.begin_trial(tried)  # one trial may be wrong, on a machine with other programs
                    batch.was_better = True
                return
        batch.num_trials += 1
        batch.wait = min(2 * batch.wait, _MAX_WAIT_WITH_DRAFTS if best else _MAX_WAIT)

    def _tokens(self, length: int) -> float:
        """Estimate the tokens that a step with so many drafts makes."""
        tokens = probability = 1.0
        for position in range(1, length + 1):
            probability *= self._hits[position] / self._tries[position] if self._tries[position] else 0.0
            tokens += probability
        return tokens


class _BatchTrials:
    """The results of the trials with batches of one size, and the state of the trial that is under way.

    Attributes:
        cost: by length, how many times as long a step takes as one without drafts
        best: the length that makes most tokens per second, as far as is known
        tried: the length that takes turns with it in a trial; the same one between trials
        verify: by length, the seconds of steps in this trial
        draft: by length, the seconds that drafts took in this trial
        steps_left: steps until the next review
        until_trial: steps until the next trial
        wait: how many steps lie between this trial and the next one if it changes nothing
        num_trials: trials since the best length was found, of which a repeated one counts once
        was_better: the trial repeats one in which the tried length was better
    """

    def __init__(self) -> None:
        self.cost, self.best, self.tried = {0: 1.0}, 0, 0
        self.verify: dict[int, list[float]] = {}
        self.draft: dict[int, list[float]] = {}
        self.steps_left, self.num_trials, self.was_better = 0, 0, False
        self.until_trial, self.wait = _TRIAL_STEPS, _MIN_WAIT

    @property
    def is_trial(self) -> bool:
        """Whether two lengths take turns."""
        return self.tried != self.best

    def begin_trial(self, length: int) -> None:
        """Let a length take turns with the best one."""
        self.tried, self.steps_left = length, _TRIAL_STEPS
        self.verify, self.draft = {}, {}

    def set_best(self, length: int) -> None:
        """Make a length the best one; its neighbors are tried soon."""
        self.best = self.tried = length
        self.until_trial = self.wait = _MIN_WAIT
        self.num_trials = 0

    def cost_ratio(self) -> float | None:
        """Return how many times as long the tried length took as the best one; None if too few steps were measured."""
        seconds = {}
        for length in (self.best, self.tried):
            verify, draft = self.verify.get(length, []), self.draft.get(length, []) if length else [0.0]
            if len(verify) < _MIN_MEASUREMENTS or (length and len(draft) < _MIN_MEASUREMENTS):
                return None
            seconds[length] = median_low(verify) + median_low(draft)
        return seconds[self.tried] / seconds[self.best]
