"""Causal softmax attention of the new tokens of several sequences to keys and values that lie in pages."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.attention import sdpa_rows
from gossamer.ops.checks import check_floats, check_kind, check_same_dtype, shape
from gossamer.ops.registry import Operation
from gossamer.ops.sequences import Sequences

PAGED_ATTENTION = Operation("paged_attention", has_gradient=False)
MAX_PAGE_SIZE = 128  # tokens of a page that the native kernel can read


def paged_attention(q: Tensor, k_pages: Tensor, v_pages: Tensor, sequences: Sequences) -> Tensor:
    """Compute softmax(q kᵀ · D^-1/2) v, where a query sees the keys of its sequence up to its own position.

    It has no gradient.

    Args:
        q: [T, H, D], the queries of all sequences, packed
        k_pages: [pages, page size, Hkv, D], which already hold the keys of the new tokens; H is a multiple of Hkv
        v_pages: [pages, page size, Hkv, D]
        sequences: the sequences to which the tokens belong

    Returns:
        [T, H, D] in q's dtype.

    Raises:
        UserError: the shapes, dtypes, devices or positions do not fit.
    """
    check_floats("paged_attention", q=q, k_pages=k_pages, v_pages=v_pages)
    check_same_dtype("paged_attention", q=q, k_pages=k_pages, v_pages=v_pages)
    fit = q.ndim == 3 and k_pages.ndim == 4 and k_pages.shape == v_pages.shape and q.shape[2] == k_pages.shape[3]
    if not fit or not min(*k_pages.shape, q.shape[1]) or q.shape[1] % k_pages.shape[2]:
        raise UserError(f"paged_attention: q {shape(q)} and pages {shape(k_pages)} and {shape(v_pages)} do not fit")
    if not (k_pages.is_contiguous() and v_pages.is_contiguous()):
        raise UserError("paged_attention: pages must be contiguous")
    check_kind("paged_attention", "sequences", sequences, Sequences)
    sequences.check(
        "paged_attention", tokens=len(q), slots=0, pages=len(k_pages), page_size=k_pages.shape[1], max_accepted=0
    )
    y: Tensor = PAGED_ATTENTION(q.device, q, k_pages, v_pages, sequences)
    return y


def reference(q: Tensor, k_pages: Tensor, v_pages: Tensor, sequences: Sequences) -> Tensor:
    """Write out the score matrix of one sequence after the other."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    repeats, outputs = q.shape[1] // k_pages.shape[2], []
    for number, queries in enumerate(q.to(dtype).split(list(sequences.lengths))):
        indices = sequences.kv_indices(number).to(q.device)
        k, v = (
            pages.flatten(0, 1)[indices].to(dtype).repeat_interleave(repeats, dim=1) for pages in (k_pages, v_pages)
        )
        scores = torch.einsum("thd,shd->hts", queries, k) * q.shape[-1] ** -0.5
        future = torch.ones(len(queries), len(indices), dtype=torch.bool, device=q.device).triu(
            1 + len(indices) - len(queries)
        )
        outputs.append(torch.einsum("hts,shd->thd", scores.masked_fill(future, float("-inf")).softmax(-1), v))
    return torch.cat(outputs).to(q.dtype) if outputs else q


def sdpa(q: Tensor, k_pages: Tensor, v_pages: Tensor, sequences: Sequences) -> Tensor:
    """Gather the keys and values of each sequence and call PyTorch's fused attention on them."""
    outputs = []
    for number, queries in enumerate(q.split(list(sequences.lengths))):
        indices = sequences.kv_indices(number).to(q.device)
        k, v = (pages.flatten(0, 1).index_select(0, indices).unsqueeze(0) for pages in (k_pages, v_pages))
        outputs.append(sdpa_rows(queries.unsqueeze(0), k, v)[0] if len(queries) else queries)
    return torch.cat(outputs) if outputs else q


def native(q: Tensor, k_pages: Tensor, v_pages: Tensor, sequences: Sequences) -> Tensor:
    """Read keys and values from their pages in place (ops/native/attention.cpp).

    Dtypes other than float32, and pages larger than `MAX_PAGE_SIZE`, go to `sdpa`.
    """
    page_size, kv_heads, width = k_pages.shape[1:]
    if q.dtype != torch.float32 or k_pages.dtype != torch.float32 or page_size > MAX_PAGE_SIZE:
        return sdpa(q, k_pages, v_pages, sequences)
    q, o = q.contiguous(), q.new_empty(q.shape)
    table = sequences.padded_page_tables
    sizes = table.shape[0], table.shape[1], page_size, kv_heads, q.shape[1] // kv_heads, width
    kernels.call("paged_attention", q, k_pages, v_pages, sequences.step_metadata, table, o, *sizes)
    return o


PAGED_ATTENTION.register("native", native, kernels.obstacle)
PAGED_ATTENTION.register("sdpa", sdpa)
PAGED_ATTENTION.register("reference", reference)
