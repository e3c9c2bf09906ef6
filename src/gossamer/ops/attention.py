"""Causal softmax attention with grouped key and value heads, within each document of a batch."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_same_dtype, once_differentiable, shape
from gossamer.ops.native.layout import rows_in_place
from gossamer.ops.packing import document_lengths, lengths_tensor
from gossamer.ops.registry import Operation

ATTENTION = Operation("attention")


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Compute softmax(q kᵀ · D^-1/2) v, where a query sees the keys of its document up to its own position.

    Args:
        q: [B, T, H, D]
        k: [B, S, Hkv, D], where H is a multiple of Hkv; S > T means that the queries are the last T of S positions
        v: [B, S, Hkv, D]
        cu_seqlens: [N + 1], where documents begin in the flattened batch (then S = T); None makes each row a document

    Returns:
        [B, T, H, D] in q's dtype.

    Raises:
        UserError: the shapes, dtypes or devices do not fit.
    """
    check_floats("attention", q=q, k=k, v=v)
    check_same_dtype("attention", q=q, k=k, v=v)
    fit = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[::3] == k.shape[::3]  # the same B and D
    if not fit or not min(k.shape[2:]) or q.shape[2] % k.shape[2] or not q.shape[2] > 0 or q.shape[1] > k.shape[1]:
        raise UserError(f"attention: q {shape(q)}, k {shape(k)} and v {shape(v)} do not fit")
    if cu_seqlens is not None and q.shape[1] != k.shape[1]:
        raise UserError("attention: packed documents need as many keys as queries")
    lengths = document_lengths(q.shape[0], q.shape[1], cu_seqlens)
    y: Tensor = ATTENTION(q.device, q, k, v, lengths)
    return y


def reference(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Write out the score matrix of one document after the other; `lengths` are the documents' lengths in tokens."""
    batch, queries, heads, width = q.shape
    if k.shape[1] != queries:  # each row is a document, and its queries are the last positions
        documents = list(zip(q, k, v, strict=True))
    else:
        flat = [x.flatten(0, 1).split(lengths) for x in (q, k, v)]
        documents = list(zip(*flat, strict=True))
    outputs = []
    for doc_q, doc_k, doc_v in documents:
        doc_k, doc_v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (doc_k, doc_v))
        scores = torch.einsum("thd,shd->hts", doc_q, doc_k) * width**-0.5
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1 + len(doc_k) - len(doc_q))
        weights = scores.to(torch.promote_types(q.dtype, torch.float32)).masked_fill(future, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hts,shd->thd", weights.to(q.dtype), doc_v))
    return torch.cat(outputs).view(batch, queries, heads, width)


def sdpa(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Use PyTorch's fused kernels, with one call for all documents of the same length.

    Packed documents are not masked within one long row: a block-diagonal mask costs the square of the row's length,
    while this costs the squares of the documents' lengths.
    """
    batch, queries, _, _ = q.shape
    if k.shape[1] != queries or lengths == (queries,) * batch:
        return sdpa_rows(q, k, v)
    starts_by_length: dict[int, list[int]] = defaultdict(list)
    start = 0
    for length in lengths:
        if length:
            starts_by_length[length].append(start)
        start += length
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    if not starts_by_length:
        return torch.zeros_like(q)
    if len(starts_by_length) == 1:
        length = next(iter(starts_by_length))
        return sdpa_rows(*(x.unflatten(0, (-1, length)) for x in flat)).view(q.shape)
    outputs: dict[int, Tensor] = {}
    for length, starts in starts_by_length.items():
        groups = [torch.stack([x[start : start + length] for start in starts]) for x in flat]
        outputs.update(zip(starts, sdpa_rows(*groups), strict=True))
    return torch.cat([outputs[start] for start in sorted(outputs)]).view(q.shape)


def sdpa_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend within rows that are one document each: [B, T, H, D] with [B, S, Hkv, D] → [B, T, H, D]."""
    queries, keys = q.shape[1], k.shape[1]
    mask = None
    if 1 < queries < keys:  # PyTorch aligns its own causal mask to the first key, not to the last one
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


def native(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Call the C++ kernel, which takes documents of any lengths in one call and never stores a score matrix.

    Dtypes other than float32, and keys from before the queries, go to `sdpa`.
    """
    if q.dtype != torch.float32 or k.shape[1] != q.shape[1]:
        return sdpa(q, k, v, lengths)
    y: Tensor = _NativeAttention.apply(q, k, v, lengths)
    return y


class _NativeAttention(torch.autograd.Function):
    """The kernels of ops/native/attention.cpp, forward and backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
        (q, q_stride), (k, k_stride), (v, v_stride) = rows_in_place(q), rows_in_place(k), rows_in_place(v)
        kv_heads, width = k.shape[2:]
        sizes = len(lengths), kv_heads, q.shape[2] // kv_heads, width, q_stride, k_stride, v_stride
        o, lse = q.new_empty(q.shape), q.new_empty(q.shape[:3])
        kernels.call("attention", q, k, v, lengths_tensor(lengths), o, lse, *sizes)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.lengths, ctx.sizes = lengths, sizes
        return o

    @staticmethod
    @once_differentiable("attention")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, lse = ctx.saved_tensors
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        inputs = q, k, v, o, lse, grads[0].contiguous(), lengths_tensor(ctx.lengths)
        kernels.call("attention_backward", *inputs, dq, dk, dv, *ctx.sizes)
        return dq, dk, dv, None


ATTENTION.register("native", native, kernels.obstacle)
ATTENTION.register("sdpa", sdpa)
ATTENTION.register("reference", reference)
