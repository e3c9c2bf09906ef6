"""Inputs with which an operation can go wrong: odd sizes, packed documents, given states, views, numerical extremes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from gossamer.certify.exactness import Inputs
from gossamer.certify.inputs import inputs_of
from gossamer.certify.network import CONFIG
from gossamer.model.config import ModelConfig

# Sizes that fill no vector, no tile and no power of two.
ODD = ModelConfig(
    vocab_size=37,
    hidden_size=19,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    linear_num_key_heads=1,
    linear_num_value_heads=3,
    linear_key_head_dim=5,
    linear_value_head_dim=7,
    linear_conv_kernel_dim=3,
    num_experts=5,
    num_experts_per_tok=3,
    moe_intermediate_size=7,
    shared_expert_intermediate_size=7,
)
# Chunks hold 64 tokens: an empty document, one token, a whole chunk, a chunk and a little, two chunks less one.
DOCUMENTS = [1, 0, 66, 127, 64, 2]
FEW_DOCUMENTS = [1, 0, 66, 2]


@dataclass(frozen=True)
class Case:
    """Inputs of an operation.

    Attributes:
        name: what is special about them
        inputs: makes them, float64 on the CPU
        views: each input is a part of a larger tensor, as a split projection gives it: rows with a stride
        wide_only: not for types narrower than float32, whose own rounding such inputs magnify
    """

    name: str
    inputs: Callable[[], Inputs]
    views: bool = False
    wide_only: bool = False


def cases(operation: str, quick: bool) -> Iterator[Case]:
    """What an operation is checked with; `quick`: in fewer and shorter documents."""
    documents = FEW_DOCUMENTS if quick else DOCUMENTS
    yield Case("packed documents, given states", partial(inputs_of, operation, CONFIG, documents))
    yield Case("odd sizes", partial(inputs_of, operation, ODD, documents))
    yield Case("rows, no state, views", partial(in_rows, operation, CONFIG, 3, 21), views=True)
    if operation in _EXTREMES:
        name, make = _EXTREMES[operation]
        yield Case(name, make, wide_only=True)
    if not quick:
        yield Case("rows of one token", partial(in_rows, operation, ODD, 2, 1))
        yield Case("no token", partial(in_rows, operation, CONFIG, 1, 0))


def in_rows(operation: str, config: ModelConfig, rows: int, length: int) -> Inputs:
    """`rows` documents of `length` tokens, each a row of its own, from no state."""
    inputs = inputs_of(operation, config, [length] * rows)
    inputs.pop("cu_seqlens", None)
    inputs.pop("initial_state", None)
    return {
        name: x.view(rows, length, *x.shape[2:]) if isinstance(x, torch.Tensor) and x.shape[:1] == (1,) else x
        for name, x in inputs.items()
    }


def _one_key_written_in_full() -> Inputs:
    """beta = 1 and g = 0 on one key: powers of the triangular matrix explode, its inverse does not."""
    inputs = inputs_of("delta_rule", CONFIG, [130])
    inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"]).contiguous()
    return inputs | {"beta": torch.ones_like(inputs["beta"]), "g": torch.zeros_like(inputs["g"])}


def _one_expert_for_all() -> Inputs:
    inputs = inputs_of("grouped_mlp", CONFIG, [65])
    return inputs | {"expert_ids": torch.full_like(inputs["expert_ids"], 2)}


def _large_logits() -> Inputs:
    inputs = inputs_of("linear_cross_entropy", CONFIG, [33])
    return inputs | {"hidden": 2e2 * inputs["hidden"]}


def _rows_of_zeros(operation: str) -> Inputs:
    inputs = inputs_of(operation, CONFIG, [9])
    inputs["x"][:, ::3] = 0
    return inputs


def _more_keys_than_queries() -> Inputs:
    """What decoding asks: the queries are the last places of the keys'."""
    inputs = in_rows("attention", CONFIG, 2, 40)
    return inputs | {"q": inputs["q"][:, -3:].contiguous()}


_EXTREMES: dict[str, tuple[str, Callable[[], Inputs]]] = {
    "delta_rule": ("one key written in full", _one_key_written_in_full),
    "grouped_mlp": ("one expert for all", _one_expert_for_all),
    "linear_cross_entropy": ("logits beyond the range of exp", _large_logits),
    "rms_norm": ("rows of zeros", partial(_rows_of_zeros, "rms_norm")),
    "gated_rms_norm": ("rows of zeros", partial(_rows_of_zeros, "gated_rms_norm")),
    "attention": ("more keys than queries", _more_keys_than_queries),
}
