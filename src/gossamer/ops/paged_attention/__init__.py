"""Causal softmax attention of several sequences' new tokens to all of their past, whose keys lie in pages."""

from __future__ import annotations

from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_kind, check_same_dtype, shape
from gossamer.ops.paged_attention.native import native
from gossamer.ops.paged_attention.reference import reference
from gossamer.ops.paged_attention.sdpa import sdpa
from gossamer.ops.registry import Operation
from gossamer.ops.sequences import Sequences

PAGED_ATTENTION = Operation("paged_attention", trains=False)
PAGED_ATTENTION.register("native", kernels.obstacle)(native)
PAGED_ATTENTION.register("sdpa")(sdpa)
PAGED_ATTENTION.register("reference")(reference)


def paged_attention(q: Tensor, k_pages: Tensor, v_pages: Tensor, sequences: Sequences) -> Tensor:
    """softmax(q kᵀ · D^-1/2) v, each query seeing the keys of its own sequence up to its own place. No gradient.

    Args:
        q: [T, H, D]
        k_pages: [pages, page size, Hkv, D], the new tokens' keys in it already; H a multiple of Hkv
        v_pages: likewise
        sequences: whose tokens these are

    Returns:
        [T, H, D] in q's dtype.

    Raises:
        UserError: shapes, types, devices or places that do not fit.
    """
    check_floats("paged_attention", q=q, k_pages=k_pages, v_pages=v_pages)
    check_same_dtype("paged_attention", q=q, k_pages=k_pages, v_pages=v_pages)
    fit = q.ndim == 3 and k_pages.ndim == 4 and k_pages.shape == v_pages.shape and q.shape[2] == k_pages.shape[3]
    if not fit or not min(*k_pages.shape, q.shape[1]) or q.shape[1] % k_pages.shape[2]:
        raise UserError(f"paged_attention: q {shape(q)} and pages {shape(k_pages)} and {shape(v_pages)} do not fit")
    if not (k_pages.is_contiguous() and v_pages.is_contiguous()):
        raise UserError("paged_attention: pages must lie in one piece")
    check_kind("paged_attention", "sequences", sequences, Sequences)
    sequences.check("paged_attention", len(q), 0, len(k_pages), k_pages.shape[1], 0)
    y: Tensor = PAGED_ATTENTION(q.device, q, k_pages, v_pages, sequences)
    return y
