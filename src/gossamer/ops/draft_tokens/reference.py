"""Drafts one step of the head at a time, through the operations that it is made of."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from gossamer.ops.draft_tokens.head import Draws, Head
from gossamer.ops.draw import draw
from gossamer.ops.few_rows import few_rows
from gossamer.ops.sequences import Sequences


def reference(following: Tensor, hidden: Tensor, head: Head, sequences: Sequences, draws: Draws) -> list[list[int]]:
    """See `draft_tokens`."""
    drafts: list[list[int]] = [[] for _ in draws.counts]
    rows = [end - 1 for end in accumulate(sequences.lengths)]
    hidden = head.plain(following, hidden, sequences)[rows]
    group = list(range(len(drafts)))  # whose hidden states these are
    while True:
        rows = [row for row, number in enumerate(group) if len(drafts[number]) < draws.counts[number]]
        if not rows:
            return drafts
        if len(rows) < len(group):
            group, hidden = [group[row] for row in rows], hidden[rows]
        if drafts[group[0]]:  # the step after the newest draft
            newest = torch.tensor([drafts[number][-1] for number in group], device=hidden.device)
            hidden = head.plain(newest, hidden, _next_places(sequences, group, len(drafts[group[0]])))
        keys = draws.keys[group, len(drafts[group[0]])]
        logits = few_rows(hidden, head.logits).float()
        for number, token in zip(group, draw(logits, draws.temperatures[group], keys).tolist(), strict=True):
            drafts[number].append(max(token, 0))  # one that was drawn from nothing is as good as any


def _next_places(sequences: Sequences, group: list[int], drafts: int) -> Sequences:
    """One place of each sequence of the group, so many drafts on."""
    past = tuple(sequences.past[number] + sequences.lengths[number] + drafts - 1 for number in group)
    slots, tables = (tuple(x[number] for number in group) for x in (sequences.slots, sequences.tables))
    return Sequences(slots, (0,) * len(group), past, (1,) * len(group), tables, sequences.page_size)  # type: ignore[arg-type]
