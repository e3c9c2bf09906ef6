"""What `decode_layers` needs to know of a network's layers, and how it is handed to the native kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.ops.sequences import Sequences


class LayerTensors(NamedTuple):
    """A layer's weights and its part of the states' memory, None what it does not have.

    The fields are those of `Layer` in ops/native/decode.cpp, in its order. Norms come as what is multiplied with, 1 + w
    but for the gated one; everything else as in the checkpoint, experts stacked. Of a dense layer, `gate`, `up` and
    `shared_down` are its network; otherwise they are the shared expert.
    """

    input_norm: Tensor
    post_norm: Tensor
    qkvz: Tensor | None = None
    ba: Tensor | None = None
    conv_weight: Tensor | None = None
    A_log: Tensor | None = None
    dt_bias: Tensor | None = None
    gated_norm: Tensor | None = None
    linear_out: Tensor | None = None
    conv: Tensor | None = None
    recurrent: Tensor | None = None
    keys: Tensor | None = None
    updates: Tensor | None = None
    gates: Tensor | None = None
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    o: Tensor | None = None
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    k_pages: Tensor | None = None
    v_pages: Tensor | None = None
    router: Tensor | None = None
    router_bias: Tensor | None = None
    gate_up: Tensor | None = None
    down: Tensor | None = None
    shared_gate: Tensor | None = None
    gate: Tensor | None = None
    up: Tensor | None = None
    shared_down: Tensor | None = None


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
    plain: the same layers through PyTorch
    """

    tensors: tuple[LayerTensors, ...]
    sizes: LayerSizes
    frequencies: Tensor
    eps: float
    plain: Callable[[Tensor, Sequences], Tensor]

    @cached_property
    def is_float32(self) -> bool:
        """Whether every weight and state is, and lies in one piece."""
        given = [x for layer in self.tensors for x in layer if x is not None]
        return all(x.dtype == torch.float32 and x.is_contiguous() for x in given)

    @cached_property
    def addresses(self) -> Tensor:
        """[layers, fields + 1] int64: where each tensor lies, 0 for None; last the shared expert's width."""
        rows = []
        for layer in self.tensors:
            assert layer.gate is not None
            rows.append([*(0 if x is None else x.data_ptr() for x in layer), layer.gate.shape[0]])
        return torch.tensor(rows, dtype=torch.int64)

    @cached_property
    def size_list(self) -> Tensor:
        return torch.tensor(self.sizes, dtype=torch.int64)
