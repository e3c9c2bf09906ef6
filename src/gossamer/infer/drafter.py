"""Drafts by the model's own multi-token-prediction head: which tokens, and how many.

For each position the head reads the trunk's final hidden state there and the token that follows; its output is for the
token after that. Applied to its own output it goes on, one token at a time. Its keys and values of drafted positions
are overwritten when the tokens there are known.
"""

from __future__ import annotations

from statistics import median_low
from typing import Literal

import torch
from torch import Tensor

from gossamer.infer.running_request import RunningRequest
from gossamer.infer.scheduler import Scheduler
from gossamer.model.decode.decoder import Decoder
from gossamer.model.decode.drafts import DraftSampling
from gossamer.ops.sequences import Sequences

# Positions whose outputs are computed though not needed. Of more positions, only keys and values are computed.
_MAX_EXTRA_POSITIONS = 8


class Drafter:
    """The maker of drafts: tokens that the head expects after those of each running request.

    Args:
        decoder: of a model with a multi-token-prediction head
        scheduler: it gives pages
        max_pending: positions of a request that the head may be behind where nothing is to be drafted
    """

    def __init__(self, decoder: Decoder, scheduler: Scheduler, max_pending: int) -> None:
        self._decoder, self._scheduler, self._max_pending = decoder, scheduler, max_pending

    def propose(self, length: int) -> None:
        """Draft up to `length` tokens of every running request that decodes; keep the head from falling far behind."""
        behind, counts = [], {}
        for request in self._scheduler.running:
            pending = request.num_computed - request.num_head_computed
            count = min(length, request.max_length - len(request.tokens) - 1) if length and pending else 0
            if request.has_slow_grammar:
                count = 0
            if count > 0 and request.is_decoding and self._scheduler.try_grow(request, len(request.tokens) + count):
                counts[request] = count
                if pending > _MAX_EXTRA_POSITIONS:
                    behind.append(request)
            elif pending > self._max_pending:
                behind.append(request)
        if behind:
            self._catch_up(behind)
        if counts:
            self._draft(list(counts), list(counts.values()))

    def _catch_up(self, group: list[RunningRequest]) -> None:
        """Add the head's keys and values of all positions but the newest."""
        lengths = [request.num_computed - request.num_head_computed - 1 for request in group]
        hidden = [torch.cat(request.pending_hidden) for request in group]
        following = [
            token for request in group for token in request.tokens[request.num_head_computed + 1 : request.num_computed]
        ]
        positions = self._positions(group, lengths)
        states = torch.cat([states[:-1] for states in hidden])
        self._decoder.fill_draft_cache(self._tensor(following), states, positions)
        for request, states in zip(group, hidden, strict=True):
            request.num_head_computed, request.pending_hidden = request.num_computed - 1, [states[-1:].clone()]

    def _draft(self, group: list[RunningRequest], counts: list[int]) -> None:
        """Apply the head to all positions up to the newest, and draft so many tokens of each request."""
        lengths = [request.num_computed - request.num_head_computed for request in group]
        parts = [part for request in group for part in request.pending_hidden]
        following = [
            token
            for request in group
            for token in request.tokens[request.num_head_computed + 1 : request.num_computed + 1]
        ]
        positions = range(max(counts))
        keys = [[request.sampler.key(len(request.tokens) + position) for position in positions] for request in group]
        temperatures = [request.sampler.params.temperature for request in group]
        sampling = DraftSampling(tuple(counts), torch.tensor(temperatures), torch.tensor(keys))
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        drafts = self._decoder.propose(self._tensor(following), hidden, self._positions(group, lengths), sampling)
        for request, tokens in zip(group, drafts, strict=True):
            request.drafts = tokens
            request.num_head_computed, request.last_hidden = request.num_computed, request.pending_hidden[-1][-1:]
            request.pending_hidden = []

    def _positions(self, group: list[RunningRequest], lengths: list[int]) -> Sequences:
        """Return so many positions of each request, beginning behind those that the head has computed."""
        slots = tuple(request.slot for request in group if request.slot is not None)
        past = tuple(request.num_head_computed for request in group)
        tables = tuple(tuple(request.pages) for request in group)
        return Sequences(slots, (0,) * len(group), past, tuple(lengths), tables, self._decoder.pool.page_size)

    def _tensor(self, tokens: list[int]) -> Tensor:
        return torch.tensor(tokens, device=self._decoder.model.lm_head.weight.device)


_MIN_MEASUREMENTS = 3  # of each length in a trial, which otherwise says nothing
_DECAY = 0.98  # of the acceptance counts, for each step
_TRIAL_STEPS, _TURN_STEPS = 16, 4  # of a trial, and of a turn of the tried or the best length in it
_MARGIN = 1.03  # by which another length must be better than the best one to take its place
_REVIEW_STEPS = 16  # between looks at whether drafts are still accepted often enough
_MIN_WAIT, _MAX_WAIT = 128, 4096  # steps between trials
_MAX_WAIT_WITH_DRAFTS = 256  # where drafts pay, and trying others costs little
_SIDES = (1, -1, 2)  # lengths that are tried, relative to the best one


class DraftLength:
    """The choice of the draft length that makes most tokens per second, by the times of steps and what is accepted.

    Two lengths are only compared by times of the same few steps, a trial, in which they take turns: a machine that
    other programs use can become half as fast within a second, and a time of then says nothing beside a time of now. A
    trial yields how many times as long a step of one length takes as a step of the other. Together with the newest
    acceptance, that says which length makes more tokens. What a draft costs depends on the size of the batch, so there
    are trials for each power of two of it.

    A length takes the best one's place when it has been better in two trials in a row. Lengths are tried upwards from 0
    as long as that helps. Later those beside the best are tried once in a while, and
    half as often after each trial that changed nothing.

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
            batch.take(0)  # what is accepted has become too little
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
                    batch.take(tried)
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
    """What trials have said about batches of one size, and the one that is under way.

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

    def take(self, length: int) -> None:
        """Make a length the best one, beside which others are tried soon."""
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
