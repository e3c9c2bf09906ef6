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
from gossamer.ops.sequences import Sequences


class Drafter:
    """Proposes tokens.

    Args:
        decoder: of a model with a multi-token-prediction head
        scheduler: that gives pages
        most_unseen: places of a sequence that the head may be behind where nothing is to be drafted
    """

    def __init__(self, decoder: Decoder, scheduler: Scheduler, most_unseen: int) -> None:
        self._decoder, self._scheduler, self._most_unseen = decoder, scheduler, most_unseen

    def show(self, sequence: Sequence, hidden: Tensor) -> None:
        """Give the trunk's final hidden states of the places that come next, [n, hidden]."""
        sequence.unseen = hidden if sequence.unseen is None else torch.cat([sequence.unseen, hidden])

    def propose(self, length: int) -> None:
        """Set up to `length` drafts of every running sequence that decodes; keep the head from falling far behind."""
        wanted = {}
        for sequence in self._scheduler.running:
            sequence.drafts = []
            room = min(length, sequence.limit - len(sequence.tokens) - 1)
            if sequence.decoding and room > 0 and self._scheduler.try_grow(sequence, len(sequence.tokens) + room):
                wanted[sequence] = room
            elif sequence.unseen is None or len(sequence.unseen) <= self._most_unseen:
                continue
            else:
                wanted[sequence] = 0
        group = [sequence for sequence in wanted if sequence.unseen is not None]
        hidden = self._catch_up(group) if group else None
        rows = [row for row, sequence in enumerate(group) if wanted[sequence]]
        drafting = [group[row] for row in rows]
        while drafting and hidden is not None:
            hidden = hidden[rows]
            for sequence, token in zip(drafting, self._decoder.logits(hidden).argmax(-1).tolist(), strict=True):
                sequence.drafts.append(token)
            rows = [row for row, sequence in enumerate(drafting) if len(sequence.drafts) < wanted[sequence]]
            drafting = [drafting[row] for row in rows]
            if drafting:
                hidden, rows = self._go_on(drafting, hidden[rows]), list(range(len(rows)))

    def _catch_up(self, group: list[Sequence]) -> Tensor:
        """Show the head all places up to the newest; its output there, [N, hidden]."""
        unseen = [sequence.unseen for sequence in group if sequence.unseen is not None]
        lengths = [len(hidden) for hidden in unseen]
        following = [
            token for sequence in group for token in sequence.tokens[sequence.head + 1 : sequence.computed + 1]
        ]
        places = self._places(group, [sequence.head for sequence in group], lengths)
        out = self._decoder.draft(self._ids(following), torch.cat(unseen), places)
        for sequence, hidden in zip(group, unseen, strict=True):
            sequence.head, sequence.unseen, sequence.last = sequence.computed, None, hidden[-1:]
        return out[torch.tensor(lengths, device=out.device).cumsum(0) - 1]

    def _go_on(self, group: list[Sequence], hidden: Tensor) -> Tensor:
        """One more step of the head, on its own output for each sequence's newest draft."""
        past = [sequence.computed + len(sequence.drafts) - 1 for sequence in group]
        newest = self._ids([sequence.drafts[-1] for sequence in group])
        return self._decoder.draft(newest, hidden, self._places(group, past, [1] * len(group)))

    def _places(self, group: list[Sequence], past: list[int], lengths: list[int]) -> Sequences:
        slots = tuple(sequence.slot for sequence in group if sequence.slot is not None)
        tables = tuple(tuple(sequence.pages) for sequence in group)
        page_size = self._decoder.pool.page_size
        return Sequences(slots, (0,) * len(group), tuple(past), tuple(lengths), tables, page_size)

    def _ids(self, tokens: list[int]) -> Tensor:
        return torch.tensor(tokens, device=self._decoder.model.lm_head.weight.device)
