"""The gated delta rule in chunks, in Triton: docs/delta-rule.md, three kernels forward and three backward.

Forward:  `prepare` (all chunks at once: A, U, W), `scan` (one program a document, head and block of value columns, the
state in registers: Ṽ and the state before each chunk), `output` (all chunks at once).
Backward: `local` (all chunks at once: Pᵀ dO, and W again), `scan_back`, `gradients` (all chunks at once; one program a
key head, so that the gradients of its value heads add up in registers).

Everything is computed in float32. On a GPU the inputs are narrower than that, and their products go to the matrix units
where those take float32's range with fewer digits (TF32, three bits more than bfloat16); the inverse keeps all digits.
Inputs in float32 and float64, for which the GPU's own library is the better choice, and heads too large run as
chunked.py does; a CPU's interpreter, which is there for tests, takes every type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from gossamer import device as devices
from gossamer.ops.checks import first_order
from gossamer.ops.delta_rule import backward_kernels, forward_kernels
from gossamer.ops.delta_rule.chunked import CHUNK, chunked
from gossamer.ops.packing import cached_layout
from gossamer.ops.tiles import accumulator, padded, token_rows

LARGEST_HEAD = 128
# `gradients` takes 147 to 164 KiB of fast memory with heads of 128 and 64 to 104 KiB with heads of 64, as compiled for
# NVIDIA's sm_80 and sm_90; chips for desktops have 99 KiB, and take the former.
AMPLE_MEMORY = 160 << 10
SIDE = 16  # of the smallest tile that a `dot` takes
COLUMNS = 32  # of a value head that a program of the scans has: more programs walk at once, and S fits the registers


def kernels(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """See `delta_rule`; `lengths` are the documents' lengths in tokens."""
    one_token = max(lengths, default=0) <= 1 and not torch.is_grad_enabled()  # decoding: no chunk to speak of
    wide = q.itemsize >= 4 and devices.is_accelerator(q.device)
    if wide or one_token or not v.numel() or not q.numel() or max(q.shape[3], v.shape[3]) > _largest_head(q.device):
        return chunked(q, k, v, g, beta, initial_state, lengths)
    if initial_state is None:
        dtype = torch.promote_types(q.dtype, torch.float32)
        initial_state = v.new_zeros(len(lengths), v.shape[2], q.shape[3], v.shape[3], dtype=dtype)
    o, state = _Kernels.apply(q, k, v, g, beta, initial_state, lengths)
    return o, state


def _largest_head(device: torch.device) -> int:
    """AMD's compiler needs far less memory: 32 KiB of the 64 there are."""
    ample = devices.triton_dot_precisions(device)[0] == "ieee" or devices.shared_memory(device) >= AMPLE_MEMORY
    return LARGEST_HEAD if ample else LARGEST_HEAD // 2


@dataclass(frozen=True)
class Chunks:
    """Documents cut into chunks of C tokens, one document after another.

    Attributes:
        size: C
        first: [n] int32, each chunk's first token in the flattened batch
        count: [n] int32, how many tokens it holds
        edges: [N + 1] int32, where each document's chunks begin
    """

    size: int
    first: Tensor
    count: Tensor
    edges: Tensor


@cached_layout
def _chunks(lengths: tuple[int, ...], device: torch.device) -> Chunks:
    size = min(CHUNK, padded(max(lengths), SIDE))
    first, count, edges, token = [], [], [0], 0
    for length in lengths:
        places = range(0, length, size)
        first += [token + place for place in places]
        count += [min(size, length - place) for place in places]
        edges.append(len(first))
        token += length
    return Chunks(size, *(torch.tensor(part, dtype=torch.int32, device=device) for part in (first, count, edges)))


class _Kernels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial: Tensor, lengths: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        chunks, shape = _chunks(lengths, q.device), _shape(q, v)
        q_rows, k_rows, v_rows = token_rows(q), token_rows(k), token_rows(v)
        g_rows, b_rows = g.flatten(0, 1).contiguous(), beta.flatten(0, 1).contiguous()
        n, heads, size, dtype = len(chunks.first), v.shape[2], chunks.size, torch.promote_types(q.dtype, torch.float32)
        key_dim, value_dim = q.shape[3], v.shape[3]

        def empty(*last: int) -> Tensor:
            return torch.empty(n, heads, *last, dtype=dtype, device=q.device)

        c, A = empty(size), empty(size, size)
        W, V_new, states = empty(size, key_dim), empty(size, value_dim), empty(key_dim, value_dim)
        final = torch.empty(initial.shape, dtype=dtype, device=q.device)
        o = torch.empty(v.shape, dtype=v.dtype, device=q.device)
        table, compiled = (chunks.first, chunks.count), {"C": size, **shape}
        strides = (q_rows.stride(0), k_rows.stride(0), v_rows.stride(0))
        with devices.current(q.device):
            forward_kernels.prepare[(n, heads)](
                k_rows, v_rows, g_rows, b_rows, c, A, W, V_new, *table, *strides[1:], **compiled, num_stages=1
            )
            grid = (len(lengths) * heads, triton.cdiv(value_dim, shape["COLUMNS"]))
            S = (initial.contiguous(), states, final)
            forward_kernels.scan[grid](
                k_rows, c, W, V_new, *S, *table, chunks.edges, strides[1], **compiled, num_stages=1
            )
            forward_kernels.output[(n, heads)](
                q_rows, k_rows, c, V_new, states, o, *table, *strides[:2], **compiled, num_stages=1
            )
        ctx.save_for_backward(q_rows, k_rows, v_rows, b_rows, c, A, V_new, states)
        ctx.chunks, ctx.shape, ctx.like = chunks, shape, [(x.shape, x.dtype) for x in (q, k, v, g, beta, initial)]
        return o, final

    @staticmethod
    @first_order("delta_rule")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_rows, k_rows, v_rows, b_rows, c, A, V_new, states = ctx.saved_tensors
        chunks, shape = ctx.chunks, ctx.shape
        n, heads, size = c.shape
        key_heads = q_rows.shape[1]
        dq, dk, dv, dg, dbeta = (torch.empty(kind, dtype=dtype, device=c.device) for kind, dtype in ctx.like[:5])
        W, dV_new, dstates = c.new_empty(n, heads, size, shape["DK"]), torch.empty_like(V_new), torch.empty_like(states)
        dinitial = torch.empty(ctx.like[5][0], dtype=c.dtype, device=c.device)
        do, dfinal = grads[0].contiguous(), grads[1].contiguous()
        table, compiled = (chunks.first, chunks.count), {"C": size, **shape}
        strides = (q_rows.stride(0), k_rows.stride(0), v_rows.stride(0))
        with devices.current(c.device):
            backward_kernels.local[(n, heads)](
                q_rows, k_rows, b_rows, c, A, do, W, dV_new, *table, *strides[:2], **compiled, num_stages=1
            )
            grid = (len(dinitial) * heads, triton.cdiv(shape["DV"], shape["COLUMNS"]))
            dS = (dstates, dfinal, dinitial)
            backward_kernels.scan_back[grid](
                q_rows, k_rows, c, W, do, dV_new, *dS, *table, chunks.edges, *strides[:2], **compiled, num_stages=1
            )
            kept, found = (A, V_new, states), (do, dV_new, dstates, dq, dk, dv, dg, dbeta)
            rows, options = (q_rows, k_rows, v_rows, b_rows), {"num_warps": 8, "num_stages": 1}
            backward_kernels.gradients[(n, key_heads)](*rows, c, *kept, *found, *table, *strides, **compiled, **options)
        return dq, dk, dv, dg, dbeta, dinitial.to(ctx.like[5][1]), None


def _shape(q: Tensor, v: Tensor) -> dict[str, Any]:
    """What the kernels are compiled for, beside the chunk."""
    fast, exact = devices.triton_dot_precisions(q.device)
    key_dim, value_dim = q.shape[3], v.shape[3]
    return {
        "HK": q.shape[2],
        "HV": v.shape[2],
        "DK": key_dim,
        "DV": value_dim,
        "BK": padded(key_dim, SIDE),
        "COLUMNS": min(COLUMNS, padded(value_dim, SIDE)),
        "ACC": accumulator(q.dtype),
        "FAST": fast,
        "EXACT": exact,
    }
