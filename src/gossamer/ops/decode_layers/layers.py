"""What `decode_layers` needs to know of a network's layers, and how it is handed to the native kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops.checks import LIMIT, check_floats, check_kind, check_number, describe, is_dense, shape, whole_numbers
from gossamer.ops.native import address
from gossamer.ops.sequences import Sequences


class Int8(NamedTuple):
    """A matrix, or several stacked, of int8 with a scale for each row.

    values: […, rows, width] int8
    scales: […, rows] float32
    """

    values: Tensor
    scales: Tensor


Matrix = Tensor | Int8


def check_matrix(operation: str, name: str, matrix: Matrix) -> None:
    """Refuse an int8 matrix whose numbers and scales do not belong together (UserError)."""
    if not isinstance(matrix, Int8):
        return
    values, scales = matrix
    if not is_dense(values) or values.dtype != torch.int8:
        raise UserError(f"{operation}: {name} must be of int8, not {describe(values)}")
    if not is_dense(scales) or scales.dtype != torch.float32 or scales.shape != values.shape[:-1]:
        raise UserError(
            f"{operation}: {name} of {shape(values)} must have scales {list(values.shape[:-1])} of float32, not "
            f"{describe(scales)}"
        )
    if scales.device != values.device or not scales.is_contiguous():
        raise UserError(f"{operation}: {name} must have its scales beside its numbers, in one piece")


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
OPTIONAL = frozenset("q_bias k_bias v_bias o_bias router_bias".split())  # of layers that have what they are added to


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
    """Layers of a network that decodes. Shapes are checked when this is made, and at no step again.

    Attributes:
        tensors: of each layer
        sizes: of all
        frequencies: [rotary_half] float32, what a place is multiplied with to give its angles
        eps: of the norms
        final_norm: [hidden], of the norm behind the last layer, as what is multiplied with
        plain: the same through PyTorch, with the arguments of `decode_layers`

    Raises:
        UserError: a layer's tensors are not of the shapes that the sizes say, or lie on several devices.
    """

    tensors: tuple[LayerTensors, ...]
    sizes: LayerSizes
    frequencies: Tensor
    eps: float
    final_norm: Tensor
    plain: Callable[[Tensor, Sequences, bool], Tensor]

    def __post_init__(self) -> None:
        _check(self)

    @cached_property
    def fits_kernel(self) -> bool:
        """Whether all is of float32 or, with scales, of int8, and lies in one piece."""
        entries = [entry for layer in self.tensors for entry in layer if entry is not None]
        return all(in_one_piece(entry) for entry in (*entries, self.final_norm, self.frequencies))

    @cached_property
    def slots(self) -> int:
        """Of the memory; 0 if no layer has any."""
        return next((len(layer.recurrent) for layer in self.tensors if layer.recurrent is not None), 0)

    @cached_property
    def pages(self) -> int:
        """Of the memory; 0 if no layer has any."""
        return next((len(layer.k_pages) for layer in self.tensors if layer.k_pages is not None), 0)

    @cached_property
    def _wanted(self) -> tuple[int, torch.dtype, torch.device]:
        """Width, type and device of the hidden states."""
        return len(self.final_norm), self.final_norm.dtype, self.final_norm.device

    def check(self, operation: str, x: Tensor, sequences: Sequences) -> None:
        """Refuse tokens that these layers cannot take, and sequences that do not lie in their memory (UserError)."""
        hidden, dtype, device = self._wanted
        shape = x.shape
        if len(shape) != 2 or shape[1] != hidden or x.dtype != dtype or x.device != device:
            wanted = f"[tokens, {hidden}] of {dtype} on {device}".replace("torch.", "")
            raise UserError(f"{operation}: hidden states must be {wanted}, not {describe(x)}")
        sequences.check(operation, shape[0], self.slots, self.pages, self.sizes.page_size, self.sizes.most)

    @cached_property
    def addresses(self) -> Tensor:
        """[layers, …] int64: where each tensor lies and, of a matrix, its scales, 0 for None; last a width."""
        rows = []
        for layer in self.tensors:
            row = []
            for name, entry in zip(layer._fields, layer, strict=True):
                values, scales = _parts(entry)
                row += [address(values), address(scales)] if name in MATRICES else [address(values)]
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


def in_one_piece(matrix: Matrix) -> bool:
    """Whether the native kernels can read it: float32 or, with scales, int8, without gaps."""
    wanted = torch.int8 if isinstance(matrix, Int8) else torch.float32
    values, _ = _parts(matrix)
    return values is not None and values.dtype == wanted and values.is_contiguous()


def _check(layers: Layers) -> None:
    """Refuse tensors that are not of the shapes that `sizes` says (UserError)."""
    s, norm = layers.sizes, layers.final_norm
    check_kind("decode_layers", "sizes", s, LayerSizes)
    check_kind("decode_layers", "tensors", layers.tensors, tuple)
    if not whole_numbers(s) or not all(0 <= size < LIMIT for size in s):
        raise UserError(f"decode_layers: sizes must be whole numbers from 0 to {LIMIT - 1}, not {s}")
    check_number("decode_layers", "eps", layers.eps)
    if len(layers.tensors) != s.layers or not min(s.hidden, s.page_size, s.most):
        raise UserError(f"decode_layers: {len(layers.tensors)} layers do not fit {s}")
    check_floats("decode_layers", final_norm=norm)
    check_floats("decode_layers", frequencies=layers.frequencies)  # on the CPU, whatever the device
    _fit("final_norm", norm, s.hidden)
    _fit("frequencies", layers.frequencies, s.rotary_half)
    for number, layer in enumerate(layers.tensors):
        check_kind("decode_layers", f"layer {number}", layer, LayerTensors)
        for name, entry in layer._asdict().items():
            if entry is not None:
                _check_entry(f"layer {number}: {name}", entry, name in MATRICES, norm)
    for number, layer in enumerate(layers.tensors):
        shapes = _shapes(layer, s, layers.slots, layers.pages)
        for name, entry in layer._asdict().items():
            values, _ = _parts(entry)
            if values is not None and name in shapes:
                _fit(f"layer {number}: {name}", values, *shapes[name])
            elif values is not None or name in shapes.keys() - OPTIONAL:
                told = "is missing" if values is None else "belongs to no layer of this kind"
                raise UserError(f"decode_layers: layer {number}: {name} {told}")


def _check_entry(where: str, entry: Matrix, matrix: bool, norm: Tensor) -> None:
    """Refuse what are no numbers where the norm's are, and int8 that is no matrix's (UserError)."""
    values = numbers = cast(Tensor, entry)
    if matrix and isinstance(entry, Int8):
        check_matrix("decode_layers", where, entry)
        values, numbers = entry
    check_floats("decode_layers", **{"final_norm": norm, where: numbers})
    if not values.ndim:
        raise UserError(f"decode_layers: {where} must have a dimension")


def _shapes(layer: LayerTensors, s: LayerSizes, slots: int, pages: int) -> dict[str, tuple[int, ...]]:
    """What a layer's tensors must be."""
    wanted: dict[str, tuple[int, ...]] = {"input_norm": (s.hidden,), "post_norm": (s.hidden,)}
    if layer.qkvz is not None:
        keys, values = s.key_heads * s.key_dim, s.value_heads * s.value_dim
        if not min(keys, values, s.taps) or s.value_heads % s.key_heads:
            raise UserError(f"decode_layers: a layer of linear attention does not fit {s}")
        wanted |= {"qkvz": (2 * (keys + values), s.hidden), "ba": (2 * s.value_heads, s.hidden)}
        wanted |= {"linear_out": (s.hidden, values), "conv_weight": (2 * keys + values, s.taps)}
        wanted |= {"A_log": (s.value_heads,), "dt_bias": (s.value_heads,), "gated_norm": (s.value_dim,)}
        wanted |= {"conv": (slots, s.taps - 1 + s.most, 2 * keys + values)}
        wanted |= {"recurrent": (slots, s.value_heads, s.key_dim, s.value_dim)}
        wanted |= {"keys": (slots, s.most, s.key_heads, s.key_dim), "gates": (slots, s.most, s.value_heads)}
        wanted |= {"updates": (slots, s.most, s.value_heads, s.value_dim)}
    else:
        width, kv_width = s.heads * s.head_dim, s.kv_heads * s.head_dim
        if not min(width, kv_width) or s.heads % s.kv_heads or 2 * s.rotary_half > s.head_dim:
            raise UserError(f"decode_layers: a layer of full attention does not fit {s}")
        wanted |= {"q": (2 * width, s.hidden), "k": (kv_width, s.hidden), "v": (kv_width, s.hidden)}
        wanted |= {"o": (s.hidden, width), "q_norm": (s.head_dim,), "k_norm": (s.head_dim,)}
        wanted |= {"q_bias": (2 * width,), "k_bias": (kv_width,), "v_bias": (kv_width,), "o_bias": (s.hidden,)}
        wanted |= dict.fromkeys(("k_pages", "v_pages"), (pages, s.page_size, s.kv_heads, s.head_dim))
    gate, _ = _parts(layer.gate)
    inner = 0 if gate is None else len(gate)
    wanted |= {"gate": (inner, s.hidden), "up": (inner, s.hidden), "shared_down": (s.hidden, inner)}
    if layer.router is not None:
        if not 0 < s.chosen <= s.experts or not s.width:
            raise UserError(f"decode_layers: a layer of experts does not fit {s}")
        wanted |= {"router": (s.experts, s.hidden), "router_bias": (s.experts,), "shared_gate": (1, s.hidden)}
        wanted |= {"gate_up": (s.experts, 2 * s.width, s.hidden), "down": (s.experts, s.hidden, s.width)}
    return wanted


def _fit(name: str, x: Tensor, *wanted: int) -> None:
    if tuple(x.shape) != wanted:
        raise UserError(f"decode_layers: {name} {shape(x)} must be {list(wanted)}")
