"""Whole layers for the next few tokens of several sequences: the step that decoding is made of.

With so few tokens a layer's time is that of reading its weights, and dozens of small calls from Python would double it.
The native implementation (ops/native/decode.cpp) does all layers in one call; the other one runs the network's own
modules.
"""

from __future__ import annotations

from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_kind
from gossamer.ops.decode_layers.layers import Int8, Layers, LayerSizes, LayerTensors, Matrix
from gossamer.ops.decode_layers.native import native
from gossamer.ops.registry import Operation
from gossamer.ops.sequences import Sequences

__all__ = ["Int8", "LayerSizes", "LayerTensors", "Layers", "Matrix", "decode_layers"]

DECODE_LAYERS = Operation("decode_layers", trains=False)
DECODE_LAYERS.register("native", kernels.obstacle)(native)


@DECODE_LAYERS.register("reference")
def reference(x: Tensor, layers: Layers, sequences: Sequences, stay: bool) -> Tensor:
    """See `decode_layers`."""
    return layers.plain(x, sequences, stay)


def decode_layers(x: Tensor, layers: Layers, sequences: Sequences, stay: bool = False) -> Tensor:
    """Pass the tokens through the layers and the norm behind them. No gradient.

    Their states, keys and values are taken in where `Layers` says that they lie.

    Args:
        x: [T, hidden], may be changed in place
        layers: weights, and where the sequences' states lie
        sequences: whose tokens these are
        stay: they are tokens that count, any number of them; otherwise at most `layers.sizes.most` of each sequence,
            which the next step may forget again (`Sequences.kept`)

    Returns:
        [T, hidden]

    Raises:
        UserError: shapes, types, devices or places that do not fit.
    """
    check_floats("decode_layers", x=x)
    check_kind("decode_layers", "layers", layers, Layers)
    check_kind("decode_layers", "sequences", sequences, Sequences)
    check_kind("decode_layers", "stay", stay, bool)
    layers.check("decode_layers", x, sequences)
    longest, most = max(sequences.lengths, default=0), layers.sizes.most
    if not stay and layers.slots and longest > most:
        raise UserError(f"decode_layers: {longest} tokens of a sequence; a step has at most {most}")
    y: Tensor = DECODE_LAYERS(x.device, x, layers, sequences, stay)
    return y
