"""All layers in one call of ops/native/decode.cpp."""

from __future__ import annotations

from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.decode_layers.layers import Layers
from gossamer.ops.paged_attention.native import MOST_PAGE
from gossamer.ops.sequences import Sequences

MOST_TOKENS, MOST_STAYING = 128, 64  # of steps and of prompts; beyond, products of whole matrices are faster


def native(x: Tensor, layers: Layers, sequences: Sequences, stay: bool) -> Tensor:
    """See `decode_layers`. Other types than float32 and int8, and more tokens than a few, pass through the modules."""
    most = MOST_STAYING if stay else MOST_TOKENS
    if not layers.fits_kernel or len(x) > most or sequences.page_size > MOST_PAGE:
        return layers.plain(x, sequences, stay)
    x, table = x.contiguous(), sequences.page_table
    tensors = layers.addresses, layers.size_list, sequences.steps, table, layers.frequencies, layers.final_norm
    kernels.call("decode_layers", x, *tensors, *table.shape, int(stay), float(layers.eps))
    return x
