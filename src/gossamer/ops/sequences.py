"""Several sequences' next tokens, packed one after the other, and where each sequence's past is kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops.checks import LIMIT, whole_numbers


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

    Raises:
        UserError: the sequences' parts are not as many as the sequences, a slot is there twice, or a number is below 0
            or none.
    """

    slots: tuple[int, ...]
    kept: tuple[int, ...]
    past: tuple[int, ...]
    lengths: tuple[int, ...]
    tables: tuple[tuple[int, ...], ...]
    page_size: int

    def __post_init__(self) -> None:
        parts = (self.slots, self.kept, self.past, self.lengths, (self.page_size,))
        if not isinstance(self.tables, (tuple, list)) or not all(map(whole_numbers, (*parts, *self.tables))):
            raise UserError("sequences: slots, kept, past, lengths, tables and page_size must be of whole numbers")
        number = len(self.slots)
        if not len(self.kept) == len(self.past) == len(self.lengths) == len(self.tables) == number:
            raise UserError(
                f"sequences: {number} slots, {len(self.kept)} kept, {len(self.past)} past, {len(self.lengths)} lengths "
                f"and {len(self.tables)} tables must be as many"
            )
        if len(set(self.slots)) != number:
            raise UserError(f"sequences: slots {self.slots} must differ")
        numbers = (self.page_size, *self.slots, *self.kept, *self.past, *self.lengths)
        if min(numbers) < 0 or max(numbers) >= LIMIT:
            raise UserError(f"sequences: slots, kept, past, lengths and page_size must be from 0 to {LIMIT - 1}")

    def check(self, operation: str, tokens: int, slots: int, pages: int, page_size: int, max_kept: int) -> None:
        """Refuse sequences that are not of so many tokens or whose pasts do not lie in the memory.

        Args:
            operation: whose argument this is
            tokens: of the batch
            slots: that there are; 0 where no layer has any
            pages: likewise
            page_size: tokens a page, if there are pages
            max_kept: tokens of a sequence's last step at most

        Raises:
            UserError: names the operation and what does not fit.
        """
        if sum(self.lengths) != tokens:
            raise UserError(f"{operation}: {tokens} tokens do not fit sequences of {list(self.lengths)}")
        if slots:
            if max(self.slots, default=0) >= slots:
                raise UserError(f"{operation}: slot {max(self.slots)} is outside the {slots} of the memory")
            if max(self.kept, default=0) > max_kept:
                raise UserError(f"{operation}: {max(self.kept)} kept tokens; a step has at most {max_kept}")
        if pages:
            if self.page_size != page_size:
                raise UserError(f"{operation}: pages are of {page_size} tokens, not {self.page_size}")
            for table, past, length in zip(self.tables, self.past, self.lengths, strict=True):
                if past + length > len(table) * page_size:
                    raise UserError(
                        f"{operation}: {past} + {length} tokens of a sequence need more than its {len(table)} pages of "
                        f"{page_size}"
                    )
            low, high = self._page_bounds
            if low < 0 or high >= pages:
                raise UserError(f"{operation}: page {low if low < 0 else high} is outside the {pages} of the memory")

    @cached_property
    def _page_bounds(self) -> tuple[int, int]:
        """The smallest and the largest page of all tables."""
        tables = [table for table in self.tables if table]
        if len(tables) < 4:  # a tensor would take longer
            return min(map(min, tables), default=0), max(map(max, tables), default=0)
        low, high = torch.aminmax(self.page_table)
        return int(low), int(high)

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
