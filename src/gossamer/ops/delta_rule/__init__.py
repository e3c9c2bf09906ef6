"""The gated delta rule (arXiv 2412.06464): linear attention whose state forgets by a gate and corrects itself.

Per value head a state S of shape [dk, dv] is kept; for each token, with q and k normalised and α = e^g:

    S ← α S;   δ = β (v − Sᵀ k);   S ← S + k δᵀ;   o = Sᵀ q
"""

from __future__ import annotations

from torch import Tensor

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_same_dtype, given, shape
from gossamer.ops.delta_rule.chunked import CHUNK, chunked
from gossamer.ops.delta_rule.native import native
from gossamer.ops.delta_rule.reference import reference
from gossamer.ops.packing import document_lengths
from gossamer.ops.registry import Operation, deferred

__all__ = ["CHUNK", "delta_rule"]

DELTA_RULE = Operation("delta_rule")
DELTA_RULE.register("native", kernels.obstacle)(native)
DELTA_RULE.register("fla", devices.fla_obstacle)(deferred("gossamer.ops.delta_rule.fla", "library"))
DELTA_RULE.register("triton", devices.triton_obstacle, devices.is_accelerator)(
    deferred("gossamer.ops.delta_rule.triton", "kernels")
)
DELTA_RULE.register("chunked")(chunked)
DELTA_RULE.register("reference")(reference)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the gated delta rule over every document of a batch.

    q and k are normalised here, x · rsqrt(Σ x² + 1e-6), and q is scaled by dk^-1/2. Value head h reads key head
    ⌊h · Hk / Hv⌋. Everything is computed in float32, or in float64 if q is.

    Args:
        q: [B, T, Hk, dk], as it leaves the convolution
        k: [B, T, Hk, dk]
        v: [B, T, Hv, dv], Hv a multiple of Hk
        g: [B, T, Hv] logarithm of the decay, ≤ 0, float32 or float64
        beta: [B, T, Hv] strength of the update, 0 to 1
        initial_state: [N, Hv, dk, dv] for each of the N documents, zero if None
        cu_seqlens: [N + 1] where documents begin in the flattened batch; None: each row is a document, N = B

    Returns:
        o [B, T, Hv, dv] in v's dtype and the final states [N, Hv, dk, dv] in the computing dtype.

    Raises:
        UserError: shapes, types or devices that do not fit.
    """
    check_floats("delta_rule", q=q, k=k, v=v, g=g, beta=beta, **given(initial_state=initial_state))
    check_same_dtype("delta_rule", q=q, k=k, v=v)
    fit = q.ndim == v.ndim == 4 and k.shape == q.shape and v.shape[:2] == q.shape[:2]
    if not fit or not min(*q.shape[2:], *v.shape[2:]) or v.shape[2] % q.shape[2]:
        raise UserError(f"delta_rule: q {shape(q)}, k {shape(k)} and v {shape(v)} do not fit")
    batch, length, _, key_dim = q.shape
    value_heads, value_dim = v.shape[2:]
    if g.shape != v.shape[:3] or beta.shape != v.shape[:3]:
        raise UserError(f"delta_rule: g {shape(g)} and beta {shape(beta)} must be {list(v.shape[:3])}")
    lengths = document_lengths(batch, length, cu_seqlens)
    state_shape = (len(lengths), value_heads, key_dim, value_dim)
    if initial_state is not None and initial_state.shape != state_shape:
        raise UserError(f"delta_rule: initial_state {shape(initial_state)} must be {list(state_shape)}")
    o, state = DELTA_RULE(q.device, q, k, v, g, beta, initial_state, lengths)
    return o, state
