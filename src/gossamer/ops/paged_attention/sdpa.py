"""Attention to pages through PyTorch's fused kernels, one call a sequence on its keys, gathered."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops.attention.sdpa import sdpa as rows
from gossamer.ops.sequences import Sequences


def sdpa(q: Tensor, k_pages: Tensor, v_pages: Tensor, sequences: Sequences) -> Tensor:
    """See `paged_attention`."""
    outputs = []
    for number, queries in enumerate(q.split(list(sequences.lengths))):
        held = sequences.held(number).to(q.device)
        k, v = (pages.flatten(0, 1).index_select(0, held).unsqueeze(0) for pages in (k_pages, v_pages))
        outputs.append(rows(queries.unsqueeze(0), k, v, (len(queries),))[0] if len(queries) else queries)
    return torch.cat(outputs) if outputs else q
