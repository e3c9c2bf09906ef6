"""Attention through PyTorch's fused kernels, one call for all documents of equal length.

Packed documents are not masked inside one long row: a block-diagonal mask costs the square of the row, this costs the
squares of the documents.
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor


def sdpa(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """See `attention`; `lengths` are the documents' lengths in tokens."""
    batch, queries, _, _ = q.shape
    if k.shape[1] != queries or lengths == (queries,) * batch:
        return _rows(q, k, v)
    documents: dict[int, list[int]] = defaultdict(list)  # length → where such documents begin
    start = 0
    for length in lengths:
        if length:
            documents[length].append(start)
        start += length
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    if not documents:
        return torch.zeros_like(q)
    if len(documents) == 1:
        length = next(iter(documents))
        return _rows(*(x.unflatten(0, (-1, length)) for x in flat)).view(q.shape)
    pieces: dict[int, Tensor] = {}
    for length, starts in documents.items():
        groups = [torch.stack([x[begin : begin + length] for begin in starts]) for x in flat]
        pieces.update(zip(starts, _rows(*groups), strict=True))
    return torch.cat([pieces[begin] for begin in sorted(pieces)]).view(q.shape)


def _rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every row is one document: [B, T, H, D] with [B, S, Hkv, D] → [B, T, H, D]."""
    queries, keys = q.shape[1], k.shape[1]
    mask = None
    if 1 < queries < keys:  # PyTorch's own causal mask is aligned to the first key, not to the last
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None and queries > 1,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return y.transpose(1, 2)
