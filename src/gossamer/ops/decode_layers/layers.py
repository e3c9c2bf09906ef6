"""What `decode_layers` needs to know of a network's layers, and how it is handed to the native kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.ops.sequences import Sequences


class Int8(NamedTuple):
    """A matrix, or several stacked, of int8 with a scale for each row.

    values: […, rows, width] int8
    scales: […, rows] float32
    """

    values: Tensor
    scales: Tensor


Matrix = Tensor | Int8


class LayerTensors(NamedTuple):
    """A layer's weights and its part of the states' memory, None what it does not have.

    The fields are those of `Layer` in ops/native/decode.cpp, in its order. Norms come as what is multiplied with, 1 + w
    but for the gated one; everything else as in the checkpoint, experts stacked. Of a dense layer, `gate`, `up` and
    `shared_down` are its network; otherwise they are the shared expert. `MATRICES` may be of int8.
    """

    input_norm: Tensor
    post_norm: Tensor
    qkvz: Matrix | None = None
    ba: Matrix | None = None
    linear_out: Matrix | None = None
    conv_weight: Tensor | None = None
    A_log: Tensor | None = None
    dt_bias: Tensor | None = None
    gated_norm: Tensor | None = None
    conv: Tensor | None = None
    recurrent: Tensor | None = None
    keys: Tensor | None = None
    updates: Tensor | None = None
    gates: Tensor | None = None
    q: Matrix | None = None
    k: Matrix | None = None
    v: Matrix | None = None
    o: Matrix | None = None
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    k_pages: Tensor | None = None
    v_pages: Tensor | None = None
    router: Matrix | None = None
    router_bias: Tensor | None = None
    gate_up: Matrix | None = None
    down: Matrix | None = None
    shared_gate: Matrix | None = None
    gate: Matrix | None = None
    up: Matrix | None = None
    shared_down: Matrix | None = None


MATRICES = frozenset("qkvz ba linear_out q k v o router gate_up down shared_gate gate up shared_down".split())


class LayerSizes(NamedTuple):
    """Of all layers, in the order of `Sizes` in ops/native/decode.cpp."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_half: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    most: int
    experts: int
    chosen: int
    width: int
    renormalise: int
    page_size: int


@dataclass(frozen=True)
class Layers:
    """Attributes:
    tensors: of each layer
    sizes: of all
    frequencies: [rotary_half] float32, what a place is multiplied with to give its angles
    eps: of the norms
    final_norm: [hidden], of the norm behind the last layer, as what is multiplied with
    plain: the same through PyTorch, with the arguments of `decode_layers`
    """

    tensors: tuple[LayerTensors, ...]
    sizes: LayerSizes
    frequencies: Tensor
    eps: float
    final_norm: Tensor
    plain: Callable[[Tensor, Sequences, bool], Tensor]

    @cached_property
    def fits_kernel(self) -> bool:
        """Whether all is of float32 or, with scales, of int8, and lies in one piece."""
        given = [x for layer in self.tensors for entry in layer for x in _parts(entry) if x is not None]
        given.append(self.final_norm)
        return all(x.dtype in (torch.float32, torch.int8) and x.is_contiguous() for x in given)

    @cached_property
    def addresses(self) -> Tensor:
        """[layers, …] int64: where each tensor lies and, of a matrix, its scales, 0 for None; last a width."""
        rows = []
        for layer in self.tensors:
            row = []
            for name, entry in zip(layer._fields, layer, strict=True):
                values, scales = _parts(entry)
                row += [_address(values), _address(scales)] if name in MATRICES else [_address(values)]
            width, _ = _parts(layer.gate)
            assert width is not None
            rows.append([*row, width.shape[0]])
        return torch.tensor(rows, dtype=torch.int64)

    @cached_property
    def size_list(self) -> Tensor:
        return torch.tensor(self.sizes, dtype=torch.int64)


def _parts(entry: Matrix | None) -> tuple[Tensor | None, Tensor | None]:
    """The numbers and, of an int8 matrix, the scales."""
    return (entry.values, entry.scales) if isinstance(entry, Int8) else (entry, None)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
