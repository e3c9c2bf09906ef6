"""Causal softmax attention with grouped key and value heads, inside each document of a batch."""

from __future__ import annotations

from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.attention.native import native
from gossamer.ops.attention.reference import reference
from gossamer.ops.attention.sdpa import sdpa
from gossamer.ops.checks import check_floats, check_same_dtype, shape
from gossamer.ops.packing import document_lengths
from gossamer.ops.registry import Operation

ATTENTION = Operation("attention")
ATTENTION.register("native", kernels.obstacle)(native)
ATTENTION.register("sdpa")(sdpa)
ATTENTION.register("reference")(reference)


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ · D^-1/2) v, each query seeing the keys of its document up to its own place.

    Args:
        q: [B, T, H, D]
        k: [B, S, Hkv, D], H a multiple of Hkv; S > T means that the queries are the last T of S places
        v: [B, S, Hkv, D]
        cu_seqlens: [N + 1] where documents begin in the flattened batch (S = T then); None: each row is a document

    Returns:
        [B, T, H, D] in q's dtype.

    Raises:
        UserError: shapes, types or devices that do not fit.
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
