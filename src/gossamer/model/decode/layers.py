"""Layers of a network that decodes: all of them in one native call, or one module after the other.

With few tokens a layer's time is that of reading its weights, and dozens of small calls from Python would double it.
So the native implementation (ops/native/decode.cpp) passes tokens through all layers in one call. It reads each layer
as a row of sizes and addresses, whose names stand in ops/native/layer.h as well; both lists are compared before the
first row is handed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.model.layer_spec import LayerSpec
from gossamer.model.rotary import rotary_frequencies, rotary_tables
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_kind, describe, shape
from gossamer.ops.matrix import (
    Int8Matrix,
    Matrix,
    check_matrix,
    is_matrix_for_kernels,
    is_weight_for_kernels,
    kernel_arguments,
    values_and_scales,
)
from gossamer.ops.paged_attention import MAX_PAGE_SIZE
from gossamer.ops.registry import Operation
from gossamer.ops.sequences import Sequences

if TYPE_CHECKING:
    from gossamer.model.decode.pool import StatePool
    from gossamer.model.norm import RMSNorm
    from gossamer.model.trunk import Block

DECODE_LAYERS = Operation("decode_layers", has_gradient=False)
MAX_TOKENS, MAX_PROMPT_TOKENS = 128, 64  # of a native call; for more, products of whole matrices are faster


class LayerTensors(NamedTuple):
    """The weights of a layer and its part of the states' memory, None for what the layer does not have.

    Names are those of the checkpoint. Norms come as what is multiplied with, 1 + w but for linear attention's `norm`.
    `gate_proj`, `up_proj` and `down_proj` are a dense layer's network, in a layer with experts the shared expert. Those
    of `MATRICES` may be of bfloat16 or int8, and those of `STATES` are memory of the pool.
    """

    input_layernorm: Tensor
    post_attention_layernorm: Tensor
    in_proj_qkvz: Matrix | None = None
    in_proj_ba: Matrix | None = None
    out_proj: Matrix | None = None
    conv1d: Tensor | None = None
    A_log: Tensor | None = None
    dt_bias: Tensor | None = None
    norm: Tensor | None = None
    conv: Tensor | None = None
    recurrent: Tensor | None = None
    keys: Tensor | None = None
    updates: Tensor | None = None
    gates: Tensor | None = None
    q_proj: Matrix | None = None
    k_proj: Matrix | None = None
    v_proj: Matrix | None = None
    o_proj: Matrix | None = None
    q_proj_bias: Tensor | None = None
    k_proj_bias: Tensor | None = None
    v_proj_bias: Tensor | None = None
    o_proj_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    k_pages: Tensor | None = None
    v_pages: Tensor | None = None
    gate: Matrix | None = None
    e_score_correction_bias: Tensor | None = None
    experts_gate_up_proj: Matrix | None = None
    experts_down_proj: Matrix | None = None
    shared_expert_gate: Matrix | None = None
    gate_proj: Matrix | None = None
    up_proj: Matrix | None = None
    down_proj: Matrix | None = None


LowRankFactors = tuple[Tensor, Tensor]
"""A [rank, width] and B [rows, rank], or stacked ones of experts, whose product is added to a matrix."""
STATES = frozenset("conv recurrent keys updates gates k_pages v_pages".split())
MATRICES = frozenset(
    "in_proj_qkvz in_proj_ba out_proj q_proj k_proj v_proj o_proj gate experts_gate_up_proj experts_down_proj "
    "shared_expert_gate gate_proj up_proj down_proj".split()
)
OPTIONAL = frozenset("q_proj_bias k_proj_bias v_proj_bias o_proj_bias e_score_correction_bias".split())
_SIZES = tuple(field.name for field in fields(LayerSpec) if field.type in ("int", "bool"))


@dataclass(frozen=True, eq=False)
class DecoderLayers:
    """Some layers of a network with the norm behind them: the trunk, or the multi-token-prediction head.

    Shapes are checked when this is made, and not again at every step.

    Attributes:
        blocks: the layers as modules
        norm: the norm behind the last of them
        indices: the layers' indices in the pool
        pool: the memory of the sequences' states
        tensors: the weights and states of each layer
        final_norm: [hidden], what is multiplied with in the norm behind the layers
        rope_theta: base of the rotary frequencies
        low_rank: for each layer what an adapter adds to its matrices, the factors A and B by the names of `tensors`

    Raises:
        UserError: the tensors of a layer do not have the shapes that its description says, or lie on several devices.
    """

    blocks: Sequence[Block]
    norm: RMSNorm
    indices: Sequence[int]
    pool: StatePool
    tensors: tuple[LayerTensors, ...]
    final_norm: Tensor
    rope_theta: float
    low_rank: tuple[Mapping[str, LowRankFactors], ...]

    def __post_init__(self) -> None:
        check_floats("decode_layers", final_norm=self.final_norm)
        check_kind("decode_layers", "tensors", self.tensors, tuple)
        _check_shape("final_norm", self.final_norm, self.norm.weight.shape)
        for number, (block, index, tensors) in enumerate(zip(self.blocks, self.indices, self.tensors, strict=True)):
            _check_layer(f"layer {number}", block.spec, tensors, self.pool.tensors(index), self.final_norm)

    def forward(self, x: Tensor, sequences: Sequences, speculative: bool) -> Tensor:
        """Pass tokens through the modules, one after the other; see `decode_layers`."""
        positions, x = sequences.positions.to(x.device).unsqueeze(0), x.unsqueeze(0)
        rotary = rotary_tables(positions, self.rotary_dim, self.rope_theta)
        for block, index in zip(self.blocks, self.indices, strict=True):
            x, _ = block(x, rotary, sequences.cu_seqlens, self.pool.state(index, sequences, speculative))
        y: Tensor = self.norm(x)[0]
        return y

    def check(self, operation: str, x: Tensor, sequences: Sequences) -> None:
        """Refuse tokens that these layers cannot take, and sequences that do not lie in their memory (UserError)."""
        hidden, dtype, device = len(self.final_norm), self.pool.dtype, self.final_norm.device
        if x.ndim != 2 or x.shape[1] != hidden or x.dtype != dtype or x.device != device:
            expected = f"[tokens, {hidden}] of {dtype} on {device}".replace("torch.", "")
            raise UserError(f"{operation}: hidden states must be {expected}, not {describe(x)}")
        pool = self.pool
        sequences.check(operation, len(x), self.num_slots, self.num_pages, pool.page_size, pool.max_step_tokens)

    @cached_property
    def rotary_dim(self) -> int:
        """Dimensions of a full-attention head that rotate; 0 if there is no full attention."""
        return max(block.spec.rotary_dim for block in self.blocks)

    @cached_property
    def num_slots(self) -> int:
        """Number of slots in the memory; 0 if no layer has any."""
        return next((len(layer.recurrent) for layer in self.tensors if layer.recurrent is not None), 0)

    @cached_property
    def num_pages(self) -> int:
        """Number of pages in the memory; 0 if no layer has any."""
        return next((len(layer.k_pages) for layer in self.tensors if layer.k_pages is not None), 0)

    @cached_property
    def is_readable_by_kernels(self) -> bool:
        """Whether the native kernels can read all weights and states, and pages of this size."""
        entries = [(name, x) for layer in self.tensors for name, x in layer._asdict().items() if x is not None]
        matrices = [x for name, x in entries if name in MATRICES]
        weights = [self.final_norm, *(x for name, x in entries if name not in MATRICES)]
        weights += [factor for layer in self.low_rank for factors in layer.values() for factor in factors]
        are_readable = all(map(is_matrix_for_kernels, matrices)) and all(map(is_weight_for_kernels, weights))
        return self.pool.page_size <= MAX_PAGE_SIZE and are_readable

    @cached_property
    def frequencies(self) -> Tensor:
        """Rotary frequencies, [rotary_dim / 2] float32 on the CPU."""
        return rotary_frequencies(self.rotary_dim, self.rope_theta)

    @cached_property
    def rows(self) -> Tensor:
        """[layers, …] int64: each layer as `Layer` in ops/native/layer.h."""
        _check_fields()
        rows = []
        for block, layer, added in zip(self.blocks, self.tensors, self.low_rank, strict=True):
            row = [int(getattr(block.spec, name)) for name in _SIZES]
            row += [self.pool.page_size, self.pool.max_step_tokens]
            for name, entry in zip(layer._fields, layer, strict=True):
                values, scales, number_type = kernel_arguments(entry)
                row.append(kernels.address(values))
                if name in MATRICES:
                    row += [kernels.address(scales), number_type, *_added(added.get(name))]
            rows.append(row)
        return torch.tensor(rows, dtype=torch.int64)


def decode_layers(x: Tensor, layers: DecoderLayers, sequences: Sequences, speculative: bool) -> Tensor:
    """Pass tokens through layers and the norm behind them; the sequences' states go on. There is no gradient.

    Args:
        x: [T, hidden], which may be changed in place
        layers: the layers with their weights and memory
        sequences: the sequences to which the tokens belong
        speculative: whether the next step may forget the tokens again; there are then at most
            `pool.max_step_tokens` of each sequence. Otherwise there may be any number.

    Returns:
        [T, hidden]

    Raises:
        UserError: shapes, types, devices or positions do not fit.
    """
    check_floats("decode_layers", x=x)
    check_kind("decode_layers", "layers", layers, DecoderLayers)
    check_kind("decode_layers", "sequences", sequences, Sequences)
    check_kind("decode_layers", "speculative", speculative, bool)
    layers.check("decode_layers", x, sequences)
    longest, longest_step = max(sequences.lengths, default=0), layers.pool.max_step_tokens
    if speculative and layers.num_slots and longest > longest_step:
        raise UserError(f"decode_layers: {longest} tokens of a sequence; a step has at most {longest_step}")
    y: Tensor = DECODE_LAYERS(x.device, x, layers, sequences, speculative)
    return y


def native(x: Tensor, layers: DecoderLayers, sequences: Sequences, speculative: bool) -> Tensor:
    """Pass tokens through all layers in one call; what the kernels cannot read, and many tokens, take modules."""
    if not layers.is_readable_by_kernels or len(x) > (MAX_TOKENS if speculative else MAX_PROMPT_TOKENS):
        return layers.forward(x, sequences, speculative)
    x, table = x.contiguous(), sequences.padded_page_tables
    kernels.call(
        "decode_layers", x, layers.rows, len(layers.rows), sequences.step_metadata, table, layers.frequencies,
        layers.final_norm, *table.shape, int(speculative), layers.norm.eps,
    )  # fmt: skip
    return x


def reference(x: Tensor, layers: DecoderLayers, sequences: Sequences, speculative: bool) -> Tensor:
    """Pass tokens through the network's own modules."""
    return layers.forward(x, sequences, speculative)


def _added(factors: LowRankFactors | None) -> list[int]:
    """Return what is added to a matrix as the last entries of `Matrix` in ops/native/small_linear.h."""
    if factors is None:
        return [0, 0, 0, 0, 0]
    A, B = factors
    return [kernels.address(A), kernels.address(B), B.shape[-1], B.shape[-2], 0]


@cache
def _check_fields() -> None:
    """Compare the names and kinds of a row's entries with those of the native kernels."""
    tensors = LayerTensors._fields
    kinds = {name: "matrix" if name in MATRICES else "state" if name in STATES else "weight" for name in tensors}
    ours = [f"size {name}" for name in (*_SIZES, "page_size", "max_step_tokens")]
    ours += [f"{kind} {name}" for name, kind in kinds.items()]
    buffer = torch.zeros(1 << 12, dtype=torch.uint8)
    kernels.call("layer_fields", buffer, len(buffer))
    theirs = bytes(buffer.tolist()).rstrip(b"\0").decode().split("\n")[:-1]
    assert ours == theirs, f"model/decode/layers.py lists {ours}, ops/native/layer.h {theirs}"


def _check_layer(where: str, spec: LayerSpec, layer: LayerTensors, states: Mapping[str, Tensor], norm: Tensor) -> None:
    """Refuse tensors that are not of the shapes that the description and the pool say (UserError)."""
    check_kind("decode_layers", where, layer, LayerTensors)
    for name, entry in layer._asdict().items():
        if entry is not None:
            _check_entry(f"{where}: {name}", entry, name in MATRICES, norm)
    shapes = _shapes(spec) | {name: tuple(x.shape) for name, x in states.items()}
    for name, entry in layer._asdict().items():
        values, _ = values_and_scales(entry)
        if values is not None and name in shapes:
            _check_shape(f"{where}: {name}", values, shapes[name])
        elif values is not None or name in shapes.keys() - OPTIONAL:
            problem = "is missing" if values is None else "belongs to no layer of this kind"
            raise UserError(f"decode_layers: {where}: {name} {problem}")


def _check_entry(where: str, entry: Matrix, is_matrix: bool, norm: Tensor) -> None:
    """Refuse what are no numbers on the norm's device, and int8 that is no matrix (UserError)."""
    values = floats = cast(Tensor, entry)
    if is_matrix and isinstance(entry, Int8Matrix):
        check_matrix("decode_layers", where, entry)
        values, floats = entry
    check_floats("decode_layers", **{"final_norm": norm, where: floats})
    if not values.ndim:
        raise UserError(f"decode_layers: {where} must have a dimension")


def _shapes(spec: LayerSpec) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a layer's weights must have."""
    hidden, inner = spec.hidden_size, spec.shared_expert_intermediate_size if spec.is_sparse else spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    if spec.is_linear:
        keys, values, channels = spec.linear_key_dim, spec.linear_value_dim, spec.linear_conv_dim
        heads, kernel_size = spec.linear_num_value_heads, spec.linear_conv_kernel_dim
        shapes |= {"in_proj_qkvz": (2 * (keys + values), hidden), "in_proj_ba": (2 * heads, hidden)}
        shapes |= {
            "out_proj": (hidden, values),
            "conv1d": (channels, kernel_size),
            "norm": (spec.linear_value_head_dim,),
        }
        shapes |= {"A_log": (heads,), "dt_bias": (heads,)}
    else:
        width, kv_width = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
        shapes |= {"q_proj": (2 * width, hidden), "k_proj": (kv_width, hidden), "v_proj": (kv_width, hidden)}
        shapes |= {"q_proj_bias": (2 * width,), "k_proj_bias": (kv_width,), "v_proj_bias": (kv_width,)}
        shapes |= {"o_proj": (hidden, width), "o_proj_bias": (hidden,)}
        shapes |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
    shapes |= {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    if spec.is_sparse:
        experts, width = spec.num_experts, spec.moe_intermediate_size
        shapes |= {"gate": (experts, hidden), "e_score_correction_bias": (experts,), "shared_expert_gate": (1, hidden)}
        shapes |= {"experts_gate_up_proj": (experts, 2 * width, hidden), "experts_down_proj": (experts, hidden, width)}
    return shapes


def _check_shape(name: str, x: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(x.shape) != tuple(expected):
        raise UserError(f"decode_layers: {name} {shape(x)} must be {list(expected)}")


DECODE_LAYERS.register("native", native, kernels.obstacle)
DECODE_LAYERS.register("reference", reference)
