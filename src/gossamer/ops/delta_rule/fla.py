"""The gated delta rule through flash-linear-attention's kernels (github.com/fla-org/flash-linear-attention, ≥ 0.5).

Its `chunk_gated_delta_rule` takes packed documents as one row with `cu_seqlens`, value heads in groups that share a key
head, and normalises q and k itself with the same ε. It multiplies in the type of q, so that only bfloat16 and float16
go there: in float32 its products are rounded to TF32. What it does not take runs as chunked.py does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops.delta_rule.chunked import chunked
from gossamer.ops.packing import cached_layout

LARGEST_KEY = 256  # of a head
NARROW = (torch.bfloat16, torch.float16)


def library(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """See `delta_rule`; `lengths` are the documents' lengths in tokens."""
    key_dim, value_dim = q.shape[3], v.shape[3]
    sizes = key_dim <= LARGEST_KEY and key_dim % 2 == value_dim % 2 == 0
    one_token = max(lengths, default=0) <= 1 and not torch.is_grad_enabled()  # decoding: no chunk to speak of
    if q.dtype not in NARROW or not sizes or one_token or not v.numel():
        return chunked(q, k, v, g, beta, initial_state, lengths)
    return packed(q, k, v, g, beta, initial_state, lengths)


def packed(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The library's own function on all documents that have a token: it knows none without."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    there, edges, edges_on_host = _documents(lengths, q.device)
    dtype = torch.float32
    state = None if initial_state is None else initial_state.to(dtype)
    flat_q, flat_k, flat_v, flat_g, flat_beta = (x.flatten(0, 1).unsqueeze(0) for x in (q, k, v, g, beta))
    o, final = chunk_gated_delta_rule(
        flat_q,
        flat_k.to(q.dtype),
        flat_v.to(q.dtype),
        flat_g.to(dtype),
        flat_beta.to(dtype),
        initial_state=state if state is None or there is None else state.index_select(0, there),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=edges,
        cu_seqlens_cpu=edges_on_host,
    )
    if there is not None:
        if state is None:
            state = final.new_zeros(len(lengths), *final.shape[1:])
        final = state.index_copy(0, there, final)
    return o.view(v.shape).to(v.dtype), final


@cached_layout
def _documents(lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor | None, Tensor, Tensor]:
    """The numbers of the documents that have a token (None: all), and where they begin, there and on the host.

    One tensor for one layout, however often it is asked for: the library caches by identity what it derives from it.
    """
    there = [number for number, length in enumerate(lengths) if length]
    kept = torch.tensor([0, *(lengths[number] for number in there)])
    edges = kept.cumsum(0)
    return None if len(there) == len(lengths) else torch.tensor(there, device=device), edges.to(device), edges
