"""Attention to pages, sequence by sequence and score by score."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops.sequences import Sequences


def reference(q: Tensor, k_pages: Tensor, v_pages: Tensor, sequences: Sequences) -> Tensor:
    """See `paged_attention`."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    repeats, outputs = q.shape[1] // k_pages.shape[2], []
    for number, queries in enumerate(q.to(dtype).split(list(sequences.lengths))):
        held = sequences.held(number).to(q.device)
        k, v = (pages.flatten(0, 1)[held].to(dtype).repeat_interleave(repeats, dim=1) for pages in (k_pages, v_pages))
        scores = torch.einsum("thd,shd->hts", queries, k) * q.shape[-1] ** -0.5
        unseen = torch.ones(len(queries), len(held), dtype=torch.bool, device=q.device).triu(
            1 + len(held) - len(queries)
        )
        outputs.append(torch.einsum("hts,shd->thd", scores.masked_fill(unseen, float("-inf")).softmax(-1), v))
    return torch.cat(outputs).to(q.dtype) if outputs else q
