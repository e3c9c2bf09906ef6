"""Drafts by the model's own multi-token-prediction head.

The head reads, for each place, the trunk's final hidden state there and the token that follows; its output is for the
token after that. Applied to its own output it goes on, a token a time. Its keys and values of drafted places are
overwritten when the tokens there are known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.infer.scheduler import Scheduler
from gossamer.infer.sequence import Sequence
from gossamer.model.decoder import Decoder
from gossamer.ops.draft_tokens import Draws
from gossamer.ops.sequences import Sequences

_FEW = 8  # places whose outputs are computed and not needed, rather than passing them by themselves


class Drafter:
    """Proposes tokens.

    Args:
        decoder: of a model with a multi-token-prediction head
        scheduler: that gives pages
        most_unseen: places of a sequence that the head may be behind where nothing is to be drafted
    """

    def __init__(self, decoder: Decoder, scheduler: Scheduler, most_unseen: int) -> None:
        self._decoder, self._scheduler, self._most_unseen = decoder, scheduler, most_unseen

    def propose(self, length: int) -> None:
        """Make up to `length` drafts of every running sequence that decodes; keep the head from falling far behind."""
        behind, wanted = [], {}
        for sequence in self._scheduler.running:
            unseen = sequence.computed - sequence.head
            room = min(length, sequence.limit - len(sequence.tokens) - 1) if length and unseen else 0
            if sequence.slow:
                room = 0
            if room > 0 and sequence.decoding and self._scheduler.try_grow(sequence, len(sequence.tokens) + room):
                wanted[sequence] = room
                if unseen > _FEW:
                    behind.append(sequence)
            elif unseen > self._most_unseen:
                behind.append(sequence)
        if behind:
            self._remember(behind)
        if wanted:
            self._draft(list(wanted), list(wanted.values()))

    def _remember(self, group: list[Sequence]) -> None:
        """Show the head all places but the newest, for their keys and values alone."""
        lengths = [sequence.computed - sequence.head - 1 for sequence in group]
        hidden = [torch.cat(sequence.unseen) for sequence in group]
        following = [token for sequence in group for token in sequence.tokens[sequence.head + 1 : sequence.computed]]
        places = self._places(group, lengths)
        self._decoder.remember(self._ids(following), torch.cat([states[:-1] for states in hidden]), places)
        for sequence, states in zip(group, hidden, strict=True):
            sequence.head, sequence.unseen = sequence.computed - 1, [states[-1:].clone()]

    def _draft(self, group: list[Sequence], counts: list[int]) -> None:
        """Show the head all places up to the newest, and draft so many tokens of each sequence."""
        lengths = [sequence.computed - sequence.head for sequence in group]
        pieces = [piece for sequence in group for piece in sequence.unseen]
        following = [
            token for sequence in group for token in sequence.tokens[sequence.head + 1 : sequence.computed + 1]
        ]
        most = max(counts)
        keys = [[sequence.sampler.key(len(sequence.tokens) + place) for place in range(most)] for sequence in group]
        temperatures = [sequence.sampler.params.temperature for sequence in group]
        draws = Draws(tuple(counts), torch.tensor(temperatures), torch.tensor(keys))
        hidden = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        drafts = self._decoder.propose(self._ids(following), hidden, self._places(group, lengths), draws)
        for sequence, tokens in zip(group, drafts, strict=True):
            sequence.drafts = tokens
            sequence.head, sequence.last, sequence.unseen = sequence.computed, sequence.unseen[-1][-1:], []

    def _places(self, group: list[Sequence], lengths: list[int]) -> Sequences:
        """So many places of each sequence, from those on that the head has seen."""
        slots = tuple(sequence.slot for sequence in group if sequence.slot is not None)
        past = tuple(sequence.head for sequence in group)
        tables = tuple(tuple(sequence.pages) for sequence in group)
        return Sequences(slots, (0,) * len(group), past, tuple(lengths), tables, self._decoder.pool.page_size)

    def _ids(self, tokens: list[int]) -> Tensor:
        return torch.tensor(tokens, device=self._decoder.model.lm_head.weight.device)
