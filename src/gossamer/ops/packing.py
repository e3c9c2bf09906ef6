"""Layouts of packed batches: where each document begins and ends, in the forms that the operations need.

`cu_seqlens` holds the cumulative lengths of the documents over the flattened tokens of a batch, [0, …, B·T], in an
integer tensor on the CPU. It decides shapes, so it is read on the host. Without it, every row of the batch is one
document. The layouts derived from it are cached, so that all layers of a network share one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops.checks import INTEGERS, describe

P = ParamSpec("P")
R = TypeVar("R")


def cached_layout(make: Callable[P, R]) -> Callable[P, R]:
    """Cache a function that makes index tensors from hashable arguments.

    The tensors are made outside inference mode even if the caller is inside it, because autograd refuses to save a
    tensor that was made there.
    """

    @lru_cache(maxsize=64)
    def cached(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False):
            return make(*args, **kwargs)

    return cast(Callable[P, R], cached)


def document_lengths(batch: int, length: int, cu_seqlens: Tensor | None) -> tuple[int, ...]:
    """Return the lengths of the documents in a batch of `batch` rows of `length` tokens.

    Raises:
        UserError: the batch has no row, or `cu_seqlens` is not a row of integers that rises from 0 to batch · length.
    """
    if not batch:
        raise UserError("a batch must have at least one row")
    if cu_seqlens is None:
        return (length,) * batch
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.ndim != 1 or cu_seqlens.dtype not in INTEGERS:
        raise UserError(f"cu_seqlens must be [documents + 1] of integers, not {describe(cu_seqlens)}")
    if cu_seqlens.is_meta or cu_seqlens.layout is not torch.strided:
        raise UserError(f"cu_seqlens must be a dense tensor on the CPU; it is {describe(cu_seqlens)}")
    return _lengths_of(tuple(cu_seqlens.tolist()), batch * length)


@lru_cache(maxsize=64)
def _lengths_of(cumulative: tuple[int, ...], total: int) -> tuple[int, ...]:
    """Take differences of cumulative lengths, and refuse lengths that are negative or do not add up to `total`."""
    if len(cumulative) < 2 or cumulative[0] != 0 or cumulative[-1] != total:
        raise UserError(
            f"cu_seqlens must run from 0 to {total} (the tokens of the batch), not {cumulative[:1]} to "
            f"{cumulative[-1:]}"
        )
    lengths = tuple(end - start for start, end in pairwise(cumulative))
    if min(lengths) < 0:
        raise UserError("cu_seqlens must not decrease")
    return lengths


@cached_layout
def lengths_tensor(lengths: tuple[int, ...]) -> Tensor:
    """Return the documents' lengths as a tensor, [N] int64 on the CPU."""
    return torch.tensor(lengths, dtype=torch.int64)


@cached_layout
def positions(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return each token's position in its document, [sum(lengths)] int64."""
    return torch.cat([torch.arange(0), *(torch.arange(length) for length in lengths)]).to(device)


@dataclass(frozen=True)
class ChunkLayout:
    """Documents cut into chunks of C tokens, for a scan that walks all documents in step.

    Documents are ordered longest first, and chunks are ordered by step: the chunks of step n belong to the first
    `active[n]` documents of that order. The rest of a document's last chunk consists of empty slots.

    Attributes:
        chunk: C, in tokens
        order: document indices, longest first
        active: for each step, the number of documents that still have a chunk
        slots: [tokens] int64, for each token of the flattened batch its slot, chunk · C + position in the chunk; None
            if every slot is its token's index
    """

    chunk: int
    order: tuple[int, ...]
    active: tuple[int, ...]
    slots: Tensor | None

    @property
    def num_chunks(self) -> int:
        """The number of chunks of all documents together."""
        return sum(self.active)


@cached_layout
def chunk_layout(lengths: tuple[int, ...], chunk: int, device: torch.device) -> ChunkLayout:
    """Lay out documents of these lengths in chunks of `chunk` tokens."""
    order = tuple(sorted(range(len(lengths)), key=lambda d: -lengths[d]))
    chunks_of = [-(-lengths[d] // chunk) for d in order]
    steps = chunks_of[0] if chunks_of else 0
    active = tuple(sum(count > step for count in chunks_of) for step in range(steps))
    first_chunk = [0]
    for count in active:
        first_chunk.append(first_chunk[-1] + count)

    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    slots = torch.empty(starts[-1], dtype=torch.int64)
    first = torch.tensor(first_chunk, dtype=torch.int64)
    for place, document in enumerate(order):
        position = torch.arange(lengths[document])
        step = position // chunk
        slots[starts[document] : starts[document + 1]] = (first[step] + place) * chunk + position % chunk
    is_identity = len(slots) == sum(active) * chunk and bool((slots == torch.arange(len(slots))).all())
    return ChunkLayout(chunk, order, active, None if is_identity else slots.to(device))
