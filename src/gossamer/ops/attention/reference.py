"""Attention document by document, with the score matrix written out."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """See `attention`; `lengths` are the documents' lengths in tokens."""
    batch, queries, heads, width = q.shape
    if k.shape[1] != queries:  # rows are documents, and the queries their last places
        documents = list(zip(q, k, v, strict=True))
    else:
        flat = [x.flatten(0, 1).split(lengths) for x in (q, k, v)]
        documents = list(zip(*flat, strict=True))
    outputs = []
    for one_q, one_k, one_v in documents:
        one_k, one_v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (one_k, one_v))
        scores = torch.einsum("thd,shd->hts", one_q, one_k) * width**-0.5
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1 + len(one_k) - len(one_q))
        weights = scores.to(torch.promote_types(q.dtype, torch.float32)).masked_fill(hidden, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hts,shd->thd", weights.to(q.dtype), one_v))
    return torch.cat(outputs).view(batch, queries, heads, width)
