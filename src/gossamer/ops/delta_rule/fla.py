"""The gated delta rule through flash-linear-attention's kernels (github.com/fla-org/flash-linear-attention, ≥ 0.5).

Its `chunk_gated_delta_rule` takes packed documents as one row with `cu_seqlens` and value heads in groups that share a
key head, and it normalizes q and k itself with the same ε. It multiplies in the dtype of q. Only bfloat16 and float16
are passed to it, because in float32 it rounds products to TF32. Everything else goes to `chunked`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops.delta_rule.chunked import chunked
from gossamer.ops.packing import cached_layout

MAX_KEY_DIM = 256
SUPPORTED_DTYPES = (torch.bfloat16, torch.float16)


def fla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Call the library where it can run, and `chunked` elsewhere; `lengths` are the documents' lengths in tokens."""
    key_dim, value_dim = q.shape[3], v.shape[3]
    are_sizes_supported = key_dim <= MAX_KEY_DIM and key_dim % 2 == value_dim % 2 == 0
    is_decoding = max(lengths, default=0) <= 1 and not torch.is_grad_enabled()  # a token needs no chunk
    if q.dtype not in SUPPORTED_DTYPES or not are_sizes_supported or is_decoding or not v.numel():
        return chunked(q, k, v, g, beta, initial_state, lengths)
    return packed(q, k, v, g, beta, initial_state, lengths)


def packed(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Call the library's function on the documents that have tokens, because it cannot take empty ones."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    nonempty, edges, edges_on_host = _documents(lengths, q.device)
    dtype = torch.float32
    state = None if initial_state is None else initial_state.to(dtype)
    flat_q, flat_k, flat_v, flat_g, flat_beta = (x.flatten(0, 1).unsqueeze(0) for x in (q, k, v, g, beta))
    o, final = chunk_gated_delta_rule(
        flat_q,
        flat_k.to(q.dtype),
        flat_v.to(q.dtype),
        flat_g.to(dtype),
        flat_beta.to(dtype),
        initial_state=state if state is None or nonempty is None else state.index_select(0, nonempty),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=edges,
        cu_seqlens_cpu=edges_on_host,
    )
    if nonempty is not None:
        if state is None:
            state = final.new_zeros(len(lengths), *final.shape[1:])
        final = state.index_copy(0, nonempty, final)
    return o.view(v.shape).to(v.dtype), final


@cached_layout
def _documents(lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor | None, Tensor, Tensor]:
    """Find the documents that have tokens and where they begin.

    A layout always gets the same tensors, because the library caches by identity what it derives from them.

    Returns:
        The numbers of these documents, or None for all; where they begin, on the device; and the same on the host.
    """
    nonempty = [number for number, length in enumerate(lengths) if length]
    edges = torch.tensor([0, *(lengths[number] for number in nonempty)]).cumsum(0)
    numbers = None if len(nonempty) == len(lengths) else torch.tensor(nonempty, device=device)
    return numbers, edges.to(device), edges
