"""The next tokens of several sequences, packed one after the other, and where each sequence's past is stored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops.checks import MAX_SIZE, are_integers


@dataclass(frozen=True)
class Sequences:
    """N sequences in a packed batch of T = Σ lengths tokens.

    Attributes:
        slots: the slot of each sequence's recurrent states
        accepted: how many tokens of its last step were accepted (the others were rejected drafts); 0 after a prefill
        past: the number of tokens before these, whose keys and values are stored
        lengths: the number of each sequence's tokens in the batch
        page_tables: the pages of each sequence's keys and values, in order, with room for past + length tokens
        page_size: tokens per page

    Raises:
        UserError: the tuples differ in length, a slot occurs twice, or a value is not an integer of at least 0.
    """

    slots: tuple[int, ...]
    accepted: tuple[int, ...]
    past: tuple[int, ...]
    lengths: tuple[int, ...]
    page_tables: tuple[tuple[int, ...], ...]
    page_size: int

    def __post_init__(self) -> None:
        parts = (self.slots, self.accepted, self.past, self.lengths, (self.page_size,))
        if not isinstance(self.page_tables, (tuple, list)) or not all(map(are_integers, (*parts, *self.page_tables))):
            raise UserError(
                "sequences: slots, accepted, past, lengths, page_tables and page_size must be whole numbers"
            )
        count = len(self.slots)
        if not len(self.accepted) == len(self.past) == len(self.lengths) == len(self.page_tables) == count:
            raise UserError(
                f"sequences: there must be as many slots ({count}) as values of accepted ({len(self.accepted)}), past "
                f"({len(self.past)}) and lengths ({len(self.lengths)}), and as page_tables ({len(self.page_tables)})"
            )
        if len(set(self.slots)) != count:
            raise UserError(f"sequences: slots {self.slots} must differ")
        numbers = (self.page_size, *self.slots, *self.accepted, *self.past, *self.lengths)
        if min(numbers) < 0 or max(numbers) > MAX_SIZE:
            raise UserError(f"sequences: slots, accepted, past, lengths and page_size must be from 0 to {MAX_SIZE}")

    def check(self, operation: str, tokens: int, slots: int, pages: int, page_size: int, max_accepted: int) -> None:
        """Refuse sequences that have another number of tokens, or slots and pages outside the memory.

        Args:
            operation: the operation whose argument this is
            tokens: the number of tokens in the batch
            slots: the number of slots in the memory; 0 where no layer has any
            pages: the number of pages in the memory; 0 where no layer has any
            page_size: tokens per page, if there are pages
            max_accepted: the largest number of tokens in a sequence's last step

        Raises:
            UserError: the message names the operation and what does not fit.
        """
        if sum(self.lengths) != tokens:
            raise UserError(f"{operation}: {tokens} tokens do not fit sequences of {list(self.lengths)}")
        if slots:
            if max(self.slots, default=0) >= slots:
                raise UserError(f"{operation}: slot {max(self.slots)} is outside the {slots} of the memory")
            if max(self.accepted, default=0) > max_accepted:
                raise UserError(f"{operation}: {max(self.accepted)} accepted tokens; a step has at most {max_accepted}")
        if pages:
            if self.page_size != page_size:
                raise UserError(f"{operation}: a page has {page_size} tokens, not {self.page_size}")
            for table, past, length in zip(self.page_tables, self.past, self.lengths, strict=True):
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
        """The smallest and the largest page in all tables."""
        tables = [table for table in self.page_tables if table]
        if len(tables) < 4:  # making a tensor would take longer
            return min(map(min, tables), default=0), max(map(max, tables), default=0)
        low, high = torch.aminmax(self.padded_page_tables)
        return int(low), int(high)

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """Where each sequence begins in the batch, [N + 1] int64 on the CPU."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int64)

    @cached_property
    def step_metadata(self) -> Tensor:
        """Slots, accepted, past and lengths, [4, N] int64 on the CPU."""
        return torch.tensor([self.slots, self.accepted, self.past, self.lengths], dtype=torch.int64)

    @cached_property
    def padded_page_tables(self) -> Tensor:
        """The tables of all sequences, [N, max pages] int64 on the CPU, with rows padded by page 0."""
        max_pages = max((len(table) for table in self.page_tables), default=0)
        return torch.tensor(
            [[*table, *[0] * (max_pages - len(table))] for table in self.page_tables], dtype=torch.int64
        )

    @cached_property
    def positions(self) -> Tensor:
        """Each token's position in its sequence, [T] int64 on the CPU."""
        spans = zip(self.past, self.lengths, strict=True)
        positions = [position for past, length in spans for position in range(past, past + length)]
        return torch.tensor(positions, dtype=torch.int64)

    @cached_property
    def new_kv_indices(self) -> Tensor:
        """Where the key and value of each token lie, counted in tokens over all pages, [T] int64 on the CPU."""
        rows = zip(self.page_tables, self.past, self.lengths, strict=True)
        size = self.page_size
        indices = [
            table[position // size] * size + position % size
            for table, past, length in rows
            for position in range(past, past + length)
        ]
        return torch.tensor(indices, dtype=torch.int64)

    def kv_indices(self, number: int) -> Tensor:
        """Find where all keys and values of a sequence lie, including those of these tokens.

        Returns:
            [past + length] int64 on the CPU, counted in tokens over all pages.
        """
        end = self.past[number] + self.lengths[number]
        pages = torch.tensor(self.page_tables[number][: -(-end // self.page_size)], dtype=torch.int64)
        indices = pages[:, None] * self.page_size + torch.arange(self.page_size)
        return indices.flatten()[:end]
