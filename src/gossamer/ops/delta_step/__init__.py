"""A linear-attention layer's next few tokens of each of several sequences, from projections to gated norm.

Between steps a slot holds the state *before* the tokens of its last step, and of each of those tokens what it would do
to the state: its key k, its update δ = β (v − Sᵀ k) and its gate. The next step first replays as many of them as count,
S ← e^g S + k δᵀ, in the same pass over the state that reads it for the new tokens. So a draft that failed costs nothing
to forget, and none is ever copied (SGLang calls this ReplaySSM).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_kind, check_number, check_same_dtype, shape
from gossamer.ops.delta_step.native import native
from gossamer.ops.delta_step.padded import padded
from gossamer.ops.delta_step.reference import reference
from gossamer.ops.registry import Operation
from gossamer.ops.sequences import Sequences

__all__ = ["DeltaMemory", "DeltaWeights", "delta_step"]

DELTA_STEP = Operation("delta_step", trains=False)
DELTA_STEP.register("native", kernels.obstacle)(native)
DELTA_STEP.register("padded")(padded)
DELTA_STEP.register("reference")(reference)


class DeltaWeights(NamedTuple):
    """Of a linear-attention layer, beside its projections: Hk key heads of dk, Hv value heads of dv, K taps.

    conv: [2·Hk·dk + Hv·dv, K]
    A_log: [Hv]
    dt_bias: [Hv]
    norm: [dv]
    eps: of the norm
    """

    conv: Tensor
    A_log: Tensor
    dt_bias: Tensor
    norm: Tensor
    eps: float


class DeltaMemory(NamedTuple):
    """Of a linear-attention layer, for every slot; W is the most tokens of a step. All is changed in place.

    conv: [slots, K − 1 + W, channels] the K − 1 inputs before the last step's, then those, oldest first
    recurrent: [slots, Hv, dk, dv] the state before the last step's tokens, in float32 at least
    keys: [slots, W, Hk, dk] the last step's keys, normalised, of the same dtype as all that follows
    updates: [slots, W, Hv, dv] their updates δ
    gates: [slots, W, Hv] logarithms of their decays
    """

    conv: Tensor
    recurrent: Tensor
    keys: Tensor
    updates: Tensor
    gates: Tensor


def delta_step(qkvz: Tensor, ba: Tensor, weights: DeltaWeights, memory: DeltaMemory, sequences: Sequences) -> Tensor:
    """Replay what counts of the last step, then run these tokens and remember what they would do. No gradient.

    A sequence may have no token here: then its last step is replayed, nothing else. Afterwards the slot's last step is
    this one.

    Args:
        qkvz: [T, 2·Hk·dk + 2·Hv·dv] projections, for each key head [q | k | r·v | r·z], r = Hv / Hk
        ba: [T, 2·Hv], for each key head [r·b | r·a]
        weights: of the layer
        memory: of the layer, changed in place
        sequences: whose tokens these are

    Returns:
        [T, Hv·dv], RMS(o) · w ⊙ SiLU(z), in qkvz's dtype.

    Raises:
        UserError: shapes, types, devices or places that do not fit.
    """
    check_kind("delta_step", "weights", weights, DeltaWeights)
    check_kind("delta_step", "memory", memory, DeltaMemory)
    check_kind("delta_step", "sequences", sequences, Sequences)
    _check(qkvz, ba, weights, memory)
    weights = weights._replace(eps=float(weights.eps))
    (slots, value_heads, key_dim, value_dim), (_, most, key_heads, _) = memory.recurrent.shape, memory.keys.shape
    tokens, width = sum(sequences.lengths), 2 * (key_heads * key_dim + value_heads * value_dim)
    if qkvz.shape != (tokens, width) or ba.shape != (tokens, 2 * value_heads):
        raise UserError(f"delta_step: qkvz {shape(qkvz)} and ba {shape(ba)} do not fit {tokens} tokens")
    if max(sequences.lengths, default=0) > most:
        raise UserError(f"delta_step: {max(sequences.lengths)} tokens of a sequence; there is room for {most}")
    sequences.check("delta_step", tokens, slots, 0, 0, most)
    y: Tensor = DELTA_STEP(qkvz.device, qkvz, ba, weights, memory, sequences)
    return y


def _check(qkvz: Tensor, ba: Tensor, weights: DeltaWeights, memory: DeltaMemory) -> None:
    """Refuse weights and memory that do not belong to one layer (UserError)."""
    parts = {f"memory.{name}": x for name, x in memory._asdict().items()}
    check_floats("delta_step", qkvz=qkvz, ba=ba, **dict(zip(weights._fields[:-1], weights[:-1], strict=True)), **parts)
    check_same_dtype("delta_step", qkvz=qkvz, ba=ba)
    _, *states = memory
    check_same_dtype("delta_step", **dict(zip(memory._fields[1:], states, strict=True)))
    check_number("delta_step", "eps", weights.eps)
    conv, recurrent, keys = memory.conv, memory.recurrent, memory.keys
    if conv.ndim != 3 or recurrent.ndim != 4 or keys.ndim != 4 or weights.conv.ndim != 2:
        raise UserError(
            f"delta_step: memory of conv {shape(conv)}, recurrent {shape(recurrent)} and keys {shape(keys)} with "
            f"weights of conv {shape(weights.conv)} do not fit"
        )
    (slots, value_heads, key_dim, value_dim), (_, most, key_heads, _) = recurrent.shape, keys.shape
    channels, taps = weights.conv.shape
    if not min(*recurrent.shape, *keys.shape, taps) or value_heads % key_heads:
        raise UserError(f"delta_step: recurrent {shape(recurrent)} and keys {shape(keys)} do not fit")
    wanted = {
        "memory.conv": (conv, (slots, taps - 1 + most, channels)),
        "memory.keys": (keys, (slots, most, key_heads, key_dim)),
        "memory.updates": (memory.updates, (slots, most, value_heads, value_dim)),
        "memory.gates": (memory.gates, (slots, most, value_heads)),
        "conv": (weights.conv, (2 * key_heads * key_dim + value_heads * value_dim, taps)),
        "A_log": (weights.A_log, (value_heads,)),
        "dt_bias": (weights.dt_bias, (value_heads,)),
        "norm": (weights.norm, (value_dim,)),
    }
    for name, (x, size) in wanted.items():
        if tuple(x.shape) != size:
            raise UserError(f"delta_step: {name} {shape(x)} must be {list(size)}")
    if not all(x.is_contiguous() for x in (*memory, *weights[:-1])):
        raise UserError("delta_step: weights and memory must lie in one piece")
