"""Drafts by the model's own multi-token-prediction head; how many are worth making is for `draft_length`.

For each position the head reads the trunk's final hidden state there and the token that follows; its output is for the
token after that. Applied to its own output it goes on, one token at a time. Its keys and values of drafted positions
are overwritten when the tokens there are known.
"""

from __future__ import annotations

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
        decoder: the decoder of a model with a multi-token-prediction head
        scheduler: the scheduler that gives pages
        max_pending: positions of a request that the head may be behind where nothing is to be drafted
    """

    def __init__(self, decoder: Decoder, scheduler: Scheduler, max_pending: int) -> None:
        self._decoder, self._scheduler, self._max_pending = decoder, scheduler, max_pending

    def propose(self, length: int) -> None:
        """Draft up to `length` tokens of every running request that decodes; keep the head from falling far behind."""
        behind, counts = [], {}
        for request in self._scheduler.running:
            pending = request.num_computed - request.num_mtp_computed
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
        """Add the MTP head's keys and values of all positions but the newest."""
        lengths = [request.num_computed - request.num_mtp_computed - 1 for request in group]
        hidden = [torch.cat(request.pending_hidden) for request in group]
        next_token_ids = [
            token for request in group for token in request.tokens[request.num_mtp_computed + 1 : request.num_computed]
        ]
        positions = self._positions(group, lengths)
        states = torch.cat([states[:-1] for states in hidden])
        self._decoder.fill_draft_cache(self._tensor(next_token_ids), states, positions)
        for request, states in zip(group, hidden, strict=True):
            request.num_mtp_computed, request.pending_hidden = request.num_computed - 1, [states[-1:].clone()]

    def _draft(self, group: list[RunningRequest], counts: list[int]) -> None:
        """Apply the head to all positions up to the newest, and draft so many tokens of each request."""
        lengths = [request.num_computed - request.num_mtp_computed for request in group]
        parts = [part for request in group for part in request.pending_hidden]
        next_token_ids = [
            token
            for request in group
            for token in request.tokens[request.num_mtp_computed + 1 : request.num_computed + 1]
        ]
        positions = range(max(counts))
        keys = [[request.sampler.key(len(request.tokens) + position) for position in positions] for request in group]
        temperatures = [request.sampler.params.temperature for request in group]
        sampling = DraftSampling(tuple(counts), torch.tensor(temperatures), torch.tensor(keys))
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        drafts = self._decoder.propose(self._tensor(next_token_ids), hidden, self._positions(group, lengths), sampling)
        for request, tokens in zip(group, drafts, strict=True):
            request.drafts = tokens
            request.num_mtp_computed, request.last_hidden = request.num_computed, request.pending_hidden[-1][-1:]
            request.pending_hidden = []

    def _positions(self, group: list[RunningRequest], lengths: list[int]) -> Sequences:
        """Return so many positions of each request, beginning behind those that the head has computed."""
        slots = tuple(request.slot for request in group if request.slot is not None)
        past = tuple(request.num_mtp_computed for request in group)
        tables = tuple(tuple(request.pages) for request in group)
        return Sequences(slots, (0,) * len(group), past, tuple(lengths), tables, self._decoder.pool.page_size)

    def _tensor(self, tokens: list[int]) -> Tensor:
        return torch.tensor(tokens, device=self._decoder.model.lm_head.weight.device)
