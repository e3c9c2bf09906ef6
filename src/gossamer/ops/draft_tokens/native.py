"""All drafts in one call of ops/native/draft.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.decode_layers.layers import Int8, Matrix
from gossamer.ops.decode_layers.native import MOST_TOKENS
from gossamer.ops.draft_tokens.head import Draws, Head
from gossamer.ops.draft_tokens.reference import reference
from gossamer.ops.paged_attention.native import MOST_PAGE
from gossamer.ops.sequences import Sequences


def native(following: Tensor, hidden: Tensor, head: Head, sequences: Sequences, draws: Draws) -> list[list[int]]:
    """See `draft_tokens`. Other types than float32 and int8, and more places than a few, go step by step."""
    if not head.fits_kernel or len(following) > MOST_TOKENS or sequences.page_size > MOST_PAGE:
        return reference(following, hidden, head, sequences, draws)
    counts, layers, table = torch.tensor(draws.counts), head.layers, sequences.page_table
    tokens = torch.empty(draws.keys.shape, dtype=torch.int64)
    kernels.call(
        "draft_tokens", tokens, following, hidden.contiguous(), head.embedding, head.embedding_norm, head.hidden_norm,
        *_parts(head.joint), layers.addresses, layers.size_list, sequences.steps, table, layers.frequencies,
        layers.final_norm, *_parts(head.logits), len(head.embedding), counts, draws.temperatures, draws.keys,
        draws.keys.shape[1], *table.shape, float(layers.eps),
    )  # fmt: skip
    rows: list[list[int]] = tokens.tolist()
    return [row[:count] for row, count in zip(rows, draws.counts, strict=True)]


def _parts(matrix: Matrix) -> tuple[Tensor, Tensor | None]:
    return (matrix.values, matrix.scales) if isinstance(matrix, Int8) else (matrix, None)
