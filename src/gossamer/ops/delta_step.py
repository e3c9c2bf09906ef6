"""The next few tokens of several sequences in a linear-attention layer, from the projections to the gated norm.

Between two steps, a slot holds the state *before* the tokens of its last step. For each of those tokens it also holds
what the token does to the state: its key k, its update δ = β (v − Sᵀ k) and its gate g. The next step first replays the
tokens that were accepted, S ← e^g S + k δᵀ, in the same pass over the state that reads it for the new tokens. A
rejected draft is therefore forgotten at no cost, and no state is ever copied (SGLang calls this ReplaySSM).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_kind, check_number, check_same_dtype, shape
from gossamer.ops.delta_rule.reference import l2norm
from gossamer.ops.gated_rms_norm import plain as plain_gated_rms_norm
from gossamer.ops.gated_rms_norm import reference as reference_gated_rms_norm
from gossamer.ops.registry import Operation
from gossamer.ops.sequences import Sequences

DELTA_STEP = Operation("delta_step", has_gradient=False)


class DeltaWeights(NamedTuple):
    """Weights of a linear-attention layer without its projections.

    The layer has Hk key heads of width dk, Hv value heads of width dv, and a convolution of kernel size K.

    Attributes:
        conv: [2·Hk·dk + Hv·dv, K]
        A_log: [Hv]
        dt_bias: [Hv]
        norm: [dv]
        eps: added to the norm's mean square
    """

    conv: Tensor
    A_log: Tensor
    dt_bias: Tensor
    norm: Tensor
    eps: float


class DeltaState(NamedTuple):
    """State of a linear-attention layer for every slot, changed in place; a step has at most W tokens of a sequence.

    Attributes:
        conv: [slots, K − 1 + W, channels], the K − 1 inputs before the last step's and then those, oldest first
        recurrent: [slots, Hv, dk, dv], the state before the last step's tokens, in float32 at least
        keys: [slots, W, Hk, dk], the normalized keys of the last step; this and the following have recurrent's dtype
        updates: [slots, W, Hv, dv], the updates δ of the last step
        gates: [slots, W, Hv], the logarithms of the decays of the last step
    """

    conv: Tensor
    recurrent: Tensor
    keys: Tensor
    updates: Tensor
    gates: Tensor


def delta_step(qkvz: Tensor, ba: Tensor, weights: DeltaWeights, state: DeltaState, sequences: Sequences) -> Tensor:
    """Replay the accepted tokens of the last step, then compute these tokens and store them as the last step.

    It has no gradient. A sequence may have no token here; then only its last step is replayed.

    Args:
        qkvz: [T, 2·Hk·dk + 2·Hv·dv], the projections, for each key head [q | k | r·v | r·z] with r = Hv / Hk
        ba: [T, 2·Hv], for each key head [r·b | r·a]
        weights: the layer's weights
        state: the layer's state, which is changed in place
        sequences: the sequences to which the tokens belong

    Returns:
        [T, Hv·dv], RMS(o) · w ⊙ SiLU(z), in qkvz's dtype.

    Raises:
        UserError: the shapes, dtypes, devices or positions do not fit.
    """
    check_kind("delta_step", "weights", weights, DeltaWeights)
    check_kind("delta_step", "state", state, DeltaState)
    check_kind("delta_step", "sequences", sequences, Sequences)
    _check(qkvz, ba, weights, state)
    weights = weights._replace(eps=float(weights.eps))
    (slots, value_heads, key_dim, value_dim), (_, max_tokens, key_heads, _) = state.recurrent.shape, state.keys.shape
    tokens, width = sum(sequences.lengths), 2 * (key_heads * key_dim + value_heads * value_dim)
    if qkvz.shape != (tokens, width) or ba.shape != (tokens, 2 * value_heads):
        raise UserError(f"delta_step: qkvz {shape(qkvz)} and ba {shape(ba)} do not fit {tokens} tokens")
    if max(sequences.lengths, default=0) > max_tokens:
        raise UserError(
            f"delta_step: a sequence has {max(sequences.lengths)} tokens, but the state has room for {max_tokens}"
        )
    sequences.check("delta_step", tokens, slots, pages=0, page_size=0, max_accepted=max_tokens)
    y: Tensor = DELTA_STEP(qkvz.device, qkvz, ba, weights, state, sequences)
    return y


def _check(qkvz: Tensor, ba: Tensor, weights: DeltaWeights, state: DeltaState) -> None:
    """Refuse weights and state that do not belong to the same layer (UserError)."""
    parts = {f"state.{name}": x for name, x in state._asdict().items()}
    check_floats("delta_step", qkvz=qkvz, ba=ba, **dict(zip(weights._fields[:-1], weights[:-1], strict=True)), **parts)
    check_same_dtype("delta_step", qkvz=qkvz, ba=ba)
    _, *states = state
    check_same_dtype("delta_step", **dict(zip(state._fields[1:], states, strict=True)))
    check_number("delta_step", "eps", weights.eps)
    conv, recurrent, keys = state.conv, state.recurrent, state.keys
    if conv.ndim != 3 or recurrent.ndim != 4 or keys.ndim != 4 or weights.conv.ndim != 2:
        raise UserError(
            f"delta_step: state with conv {shape(conv)}, recurrent {shape(recurrent)} and keys {shape(keys)} and "
            f"weights with conv {shape(weights.conv)} do not fit"
        )
    (slots, value_heads, key_dim, value_dim), (_, max_tokens, key_heads, _) = recurrent.shape, keys.shape
    channels, conv_kernel_size = weights.conv.shape
    if not min(*recurrent.shape, *keys.shape, conv_kernel_size) or value_heads % key_heads:
        raise UserError(f"delta_step: recurrent {shape(recurrent)} and keys {shape(keys)} do not fit")
    expected = {
        "state.conv": (conv, (slots, conv_kernel_size - 1 + max_tokens, channels)),
        "state.keys": (keys, (slots, max_tokens, key_heads, key_dim)),
        "state.updates": (state.updates, (slots, max_tokens, value_heads, value_dim)),
        "state.gates": (state.gates, (slots, max_tokens, value_heads)),
        "conv": (weights.conv, (2 * key_heads * key_dim + value_heads * value_dim, conv_kernel_size)),
        "A_log": (weights.A_log, (value_heads,)),
        "dt_bias": (weights.dt_bias, (value_heads,)),
        "norm": (weights.norm, (value_dim,)),
    }
    for name, (x, size) in expected.items():
        if tuple(x.shape) != size:
            raise UserError(f"delta_step: {name} {shape(x)} must be {list(size)}")
    if not all(x.is_contiguous() for x in (*state, *weights[:-1])):
        raise UserError("delta_step: weights and state must be contiguous")


def reference(qkvz: Tensor, ba: Tensor, weights: DeltaWeights, state: DeltaState, sequences: Sequences) -> Tensor:
    """Compute one sequence after the other, token by token."""
    _, value_heads, key_dim, value_dim = state.recurrent.shape
    key_heads, repeats, before = state.keys.shape[2], value_heads // state.keys.shape[2], weights.conv.shape[1] - 1
    qkv, z = _split_projection(qkvz, key_heads, [key_dim, key_dim, repeats * value_dim])
    b, a = _split_projection(ba, key_heads, [repeats])
    dtype = state.recurrent.dtype
    beta = b.to(dtype).sigmoid()
    g = -weights.A_log.to(dtype).exp() * F.softplus(a.to(dtype) + weights.dt_bias.to(dtype))

    outputs, first_token = [], 0
    for slot, accepted, length in zip(sequences.slots, sequences.accepted, sequences.lengths, strict=True):
        conv, replayed = state.conv[slot], state.recurrent[slot]
        for i in range(accepted):
            k, update = state.keys[slot, i].repeat_interleave(repeats, 0), state.updates[slot, i]
            replayed.mul_(state.gates[slot, i].exp()[:, None, None]).add_(k[:, :, None] * update[:, None, :])
        conv[:before] = conv[accepted : accepted + before].clone()
        recurrent = replayed.clone()
        for i, t in enumerate(range(first_token, first_token + length)):
            conv[before + i] = qkv[t]
            mixed = F.silu((conv[i : i + before + 1].to(dtype) * weights.conv.mT.to(dtype)).sum(0))
            q, k, v = mixed.split([key_heads * key_dim, key_heads * key_dim, value_heads * value_dim])
            q, k = (l2norm(x.view(key_heads, key_dim)) for x in (q, k))
            state.keys[slot, i], state.gates[slot, i] = k, g[t]
            q, k = (x.repeat_interleave(repeats, 0) for x in (q * key_dim**-0.5, k))
            recurrent = g[t].exp()[:, None, None] * recurrent
            update = beta[t, :, None] * (v.view(value_heads, value_dim) - torch.einsum("hkv,hk->hv", recurrent, k))
            state.updates[slot, i] = update
            recurrent = recurrent + k[:, :, None] * update[:, None, :]
            outputs.append(torch.einsum("hkv,hk->hv", recurrent, q))
        first_token += length
    if not outputs:
        return qkvz.new_empty(0, value_heads * value_dim)
    o = torch.stack(outputs).to(qkvz.dtype)
    return reference_gated_rms_norm(o, z.view(o.shape), weights.norm, weights.eps).flatten(1)


def _split_projection(x: Tensor, key_heads: int, widths: list[int]) -> tuple[Tensor, Tensor]:
    """Regroup a projection by part: [T, Hk · (widths | rest)] → the parts of these widths, concatenated; and the rest.

    Within each part all heads follow one another.
    """
    heads = x.unflatten(1, (key_heads, -1))
    *parts, rest = heads.split([*widths, heads.shape[2] - sum(widths)], dim=2)
    return torch.cat([part.flatten(1) for part in parts], dim=1), rest.flatten(1)


def padded(qkvz: Tensor, ba: Tensor, weights: DeltaWeights, state: DeltaState, sequences: Sequences) -> Tensor:
    """Compute all sequences at once with PyTorch's functions, the shorter ones padded to the length of the longest."""
    device = qkvz.device
    slots, accepted, _, lengths = sequences.step_metadata.to(device)
    recurrent = _replay(state, slots, accepted, max(sequences.accepted, default=0))
    window = _shift(state.conv, slots, accepted, weights.conv.shape[1] - 1)
    longest = max(sequences.lengths, default=0)
    if not longest:
        return qkvz.new_empty(0, state.recurrent.shape[1] * state.recurrent.shape[3])

    _, value_heads, key_dim, value_dim = state.recurrent.shape
    key_heads, repeats = state.keys.shape[2], value_heads // state.keys.shape[2]
    qkv, z = _split_projection(qkvz, key_heads, [key_dim, key_dim, repeats * value_dim])
    b, a = _split_projection(ba, key_heads, [repeats])
    dtype, offsets = recurrent.dtype, torch.arange(longest, device=device)
    is_token = offsets < lengths[:, None]
    tokens = (sequences.cu_seqlens[:-1].to(device)[:, None] + offsets).clamp(max=len(qkvz) - 1)  # [N, longest]
    inputs = qkv[tokens]
    state.conv[slots[:, None], window.shape[1] + offsets] = inputs.to(state.conv.dtype)
    window = torch.cat([window.to(inputs.dtype), inputs], dim=1).to(dtype)
    kernel = weights.conv.to(dtype).mT
    mixed = F.silu(sum(window[:, i : i + longest] * weight for i, weight in enumerate(kernel)))
    width = key_heads * key_dim
    q, k, v = mixed.split([width, width, value_heads * value_dim], dim=2)
    q, k = (l2norm(x.unflatten(2, (key_heads, key_dim))) for x in (q, k))
    v, q = v.unflatten(2, (value_heads, value_dim)), q * key_dim**-0.5
    beta = b[tokens].to(dtype).sigmoid()
    g = -weights.A_log.to(dtype).exp() * F.softplus(a[tokens].to(dtype) + weights.dt_bias.to(dtype))
    state.keys[slots, :longest], state.gates[slots, :longest] = k, g
    q, k = (x.repeat_interleave(repeats, dim=2) for x in (q, k))
    outputs = []
    for i in range(longest):
        recurrent = g[:, i].exp()[:, :, None, None] * recurrent
        update = beta[:, i, :, None] * (v[:, i] - torch.einsum("nhkv,nhk->nhv", recurrent, k[:, i]))
        state.updates[slots, i] = update
        recurrent = recurrent + k[:, i, :, :, None] * update[:, :, None, :]
        outputs.append(torch.einsum("nhkv,nhk->nhv", recurrent, q[:, i]))
    o = torch.stack(outputs, dim=1)[is_token].to(qkvz.dtype)
    return plain_gated_rms_norm(o, z.view(o.shape), weights.norm, weights.eps).flatten(1)


def _replay(state: DeltaState, slots: Tensor, accepted: Tensor, max_accepted: int) -> Tensor:
    """Bring the slots' states up to the accepted tokens of their last steps, in `state` as well; return them."""
    recurrent = state.recurrent[slots]
    repeats = state.updates.shape[2] // state.keys.shape[2]
    for i in range(max_accepted):
        k, update = state.keys[slots, i].repeat_interleave(repeats, dim=1), state.updates[slots, i]
        after = state.gates[slots, i].exp()[:, :, None, None] * recurrent + k[..., None] * update[:, :, None, :]
        recurrent = torch.where((i < accepted)[:, None, None, None], after, recurrent)
    if max_accepted:
        state.recurrent[slots] = recurrent
    return recurrent


def _shift(conv: Tensor, slots: Tensor, accepted: Tensor, before: int) -> Tensor:
    """Move the `before` inputs that precede the new tokens to the front of their slots; return them.

    Returns:
        [N, before, channels]
    """
    rows = torch.arange(before, device=conv.device)
    window = conv[slots[:, None], accepted[:, None] + rows]
    conv[slots[:, None], rows] = window
    return window


def native(qkvz: Tensor, ba: Tensor, weights: DeltaWeights, state: DeltaState, sequences: Sequences) -> Tensor:
    """Sweep once over each state (ops/native/delta_step.cpp); dtypes other than float32 go to `padded`."""
    if any(x.dtype != torch.float32 for x in (qkvz, ba, *weights[:-1], *state)):
        return padded(qkvz, ba, weights, state, sequences)
    _, value_heads, key_dim, value_dim = state.recurrent.shape
    _, max_tokens, key_heads, _ = state.keys.shape
    y = qkvz.new_empty(len(qkvz), value_heads * value_dim)
    qkvz, ba = qkvz.contiguous(), ba.contiguous()
    heads = len(sequences.slots), key_heads, value_heads // key_heads, key_dim, value_dim
    sizes = *heads, weights.conv.shape[1], max_tokens
    kernels.call("delta_step", qkvz, ba, *weights[:-1], *state, sequences.step_metadata, y, *sizes, weights.eps)
    return y


DELTA_STEP.register("native", native, kernels.obstacle)
DELTA_STEP.register("padded", padded)
DELTA_STEP.register("reference", reference)
