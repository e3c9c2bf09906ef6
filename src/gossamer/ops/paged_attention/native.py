"""Attention to pages by ops/native/attention.cpp: the keys are read where they lie."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.paged_attention.sdpa import sdpa
from gossamer.ops.sequences import Sequences

MOST_PAGE = 128  # tokens a page, of the kernel


def native(q: Tensor, k_pages: Tensor, v_pages: Tensor, sequences: Sequences) -> Tensor:
    """See `paged_attention`. Other types than float32, and larger pages, take the path of PyTorch's functions."""
    page_size, kv_heads, width = k_pages.shape[1:]
    if q.dtype != torch.float32 or k_pages.dtype != torch.float32 or page_size > MOST_PAGE:
        return sdpa(q, k_pages, v_pages, sequences)
    q, o = q.contiguous(), q.new_empty(q.shape)
    table = sequences.page_table
    sizes = table.shape[0], table.shape[1], page_size, kv_heads, q.shape[1] // kv_heads, width
    kernels.call("paged_attention", q, k_pages, v_pages, sequences.steps, table, o, *sizes)
    return o
