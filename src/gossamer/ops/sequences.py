"""Several sequences' next tokens, packed one after the other, and where each sequence's past is kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """The share of N sequences in a packed batch of T = Σ lengths tokens.

    Attributes:
        slots: where each sequence's recurrent states lie
        kept: how many of the tokens of its last step count (the others were drafts that failed); 0 after a prefill
        past: tokens before these, whose keys and values are held
        lengths: tokens of each sequence here
        tables: the pages with each sequence's keys and values, in order, room for past + length tokens
        page_size: tokens a page
    """

    slots: tuple[int, ...]
    kept: tuple[int, ...]
    past: tuple[int, ...]
    lengths: tuple[int, ...]
    tables: tuple[tuple[int, ...], ...]
    page_size: int

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """[N + 1] int64 on the CPU: where each sequence begins in the batch."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int64)

    @cached_property
    def steps(self) -> Tensor:
        """[4, N] int64 on the CPU: slots, kept, past and lengths."""
        return torch.tensor([self.slots, self.kept, self.past, self.lengths], dtype=torch.int64)

    @cached_property
    def page_table(self) -> Tensor:
        """[N, most pages] int64 on the CPU, rows filled up with page 0."""
        most = max((len(table) for table in self.tables), default=0)
        return torch.tensor([[*table, *[0] * (most - len(table))] for table in self.tables], dtype=torch.int64)

    @cached_property
    def positions(self) -> Tensor:
        """[T] int64 on the CPU: each token's place in its sequence."""
        spans = zip(self.past, self.lengths, strict=True)
        places = [place for past, length in spans for place in range(past, past + length)]
        return torch.tensor(places, dtype=torch.int64)

    @cached_property
    def places(self) -> Tensor:
        """[T] int64 on the CPU: where each token's key and value lie, counted in tokens over all pages."""
        rows = zip(self.tables, self.past, self.lengths, strict=True)
        size = self.page_size
        places = [
            table[place // size] * size + place % size
            for table, past, length in rows
            for place in range(past, past + length)
        ]
        return torch.tensor(places, dtype=torch.int64)

    def held(self, number: int) -> Tensor:
        """[past + length] int64 on the CPU: where all of a sequence's keys and values lie, these tokens' included."""
        end = self.past[number] + self.lengths[number]
        pages = torch.tensor(self.tables[number][: -(-end // self.page_size)], dtype=torch.int64)
        places = pages[:, None] * self.page_size + torch.arange(self.page_size)
        return places.flatten()[:end]
