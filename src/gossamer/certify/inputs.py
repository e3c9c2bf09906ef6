"""The inputs of operations when they are checked and timed: random ones of a network's shapes, and those that go wrong.

What can go wrong is tried by cases: odd sizes, packed documents, given states, views, numerical extremes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.certify.exactness import Inputs
from gossamer.model.config import ModelConfig

Gates = Literal["trained", "fresh"]

# Widths of whole 16 bytes in bfloat16, which the faster implementations ask for.
CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    full_attention_interval=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=32,
    max_position_embeddings=128,
)


def inputs_of(operation: str, config: ModelConfig, lengths: list[int], gates: Gates = "trained") -> Inputs:
    """Make random float64 inputs of a network's heads and widths, with documents of these lengths packed in one row.

    They are on the CPU: a device may have no float64. Where an operation takes a state, one is given.

    Args:
        operation: the operation's name
        config: the network
        lengths: tokens of each document
        gates: the delta rule's decays: those of a trained network, which forgets a few percent a token, or of a fresh
            one (`model.initialize`), whose fastest head forgets all within a token or two, so that products of decays
            fall through float32's subnormal range
    """
    generator = torch.Generator().manual_seed(0)
    tokens, hidden = sum(lengths), config.hidden_size

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def scaled(*shape: int) -> Tensor:
        return normal(*shape) * shape[-1] ** -0.5

    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    key_dim, value_dim, channels = config.linear_key_head_dim, config.linear_value_head_dim, config.linear_conv_dim
    match operation:
        case "attention":
            q = normal(1, tokens, config.num_attention_heads, config.head_dim)
            k, v = (normal(1, tokens, config.num_key_value_heads, config.head_dim) for _ in range(2))
            return {"q": q, "k": k, "v": v, "cu_seqlens": cu_seqlens}
        case "delta_rule":
            return {
                "q": normal(1, tokens, keys, key_dim),
                "k": normal(1, tokens, keys, key_dim),
                "v": normal(1, tokens, values, value_dim),
                "g": _fresh_gates(normal(1, tokens, values))
                if gates == "fresh"
                else -0.05 * normal(1, tokens, values).exp(),
                "beta": normal(1, tokens, values).sigmoid(),
                "initial_state": normal(len(lengths), values, key_dim, value_dim),
                "cu_seqlens": cu_seqlens,
            }
        case "short_conv":
            kernel_size = config.linear_conv_kernel_dim
            state = normal(len(lengths), kernel_size - 1, channels)
            x, weight = normal(1, tokens, channels), normal(channels, kernel_size)
            return {"x": x, "weight": weight, "initial_state": state, "cu_seqlens": cu_seqlens}
        case "gated_rms_norm":
            shape = (1, tokens, values, value_dim)
            return {"x": normal(*shape), "gate": normal(*shape), "weight": normal(value_dim), "eps": 1e-6}
        case "rms_norm":
            return {"x": normal(1, tokens, hidden), "weight": normal(hidden), "eps": 1e-6}
        case "grouped_mlp" | "frozen_grouped_mlp":
            experts, width = config.num_experts, config.moe_intermediate_size
            scores = torch.rand(tokens, experts, generator=generator)
            scores[:, 0] = -1  # one expert idle
            weights, ids = scores.topk(config.num_experts_per_tok)
            inputs = {
                "x": normal(tokens, hidden),
                "expert_indices": ids,
                "expert_weights": weights.double(),
                "gate_up_proj": scaled(experts, 2 * width, hidden),
                "down_proj": scaled(experts, hidden, width),
            }
            if operation == "grouped_mlp":
                return inputs
            return inputs | {
                "gate_up_A": scaled(experts, 2, hidden),
                "gate_up_B": normal(experts, 2 * width, 2),
                "down_A": scaled(experts, 3, width),
                "down_B": normal(experts, hidden, 3),
            }
        case "linear_cross_entropy" | "token_logprobs":
            labels = torch.randint(config.vocab_size, (tokens,), generator=generator)
            labels[::7] = -100
            return {"hidden": normal(tokens, hidden), "weight": scaled(config.vocab_size, hidden), "labels": labels}
        case "orthogonalize":
            return {"matrices": normal(3, 2 * config.moe_intermediate_size, hidden)}
    raise ValueError(operation)


def _fresh_gates(noise: Tensor) -> Tensor:
    """Turn noise [1, T, heads] into g = −A·softplus(a + dt_bias) as initialized: A from 16 down to 0.01, dt_bias 1."""
    rates = torch.linspace(16, 0.01, noise.shape[2], dtype=noise.dtype)
    return -rates * F.softplus(0.3 * noise + 1)  # a: initializer_range · √hidden


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Cast floating-point inputs to `dtype`; gates, rates and states, which the model has in float32, no narrower."""
    wide = torch.promote_types(dtype, torch.float32)
    return {
        name: x.to(wide if name in ("g", "beta") or (name == "initial_state" and x.ndim == 4) else dtype)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for name, x in inputs.items()
    }


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """Move all tensors to a device, except `cu_seqlens`, which is read on the host."""
    return {name: x.to(device) if isinstance(x, Tensor) and name != "cu_seqlens" else x for name, x in inputs.items()}


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
    """Inputs that an operation is tried with.

    Attributes:
        name: what is special about them
        inputs: makes them, in float64 on the CPU
        views: whether each input is a part of a larger tensor, as a split projection gives it: rows with a stride
        wide_only: whether types narrower than float32 are left out, whose own rounding such inputs magnify
    """

    name: str
    inputs: Callable[[], Inputs]
    views: bool = False
    wide_only: bool = False


def cases(operation: str, quick: bool) -> Iterator[Case]:
    """Return the cases that an operation is checked with; `quick` ones have fewer and shorter documents."""
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
    """Make inputs of `rows` documents of `length` tokens, each a row of its own, without a state."""
    inputs = inputs_of(operation, config, [length] * rows)
    inputs.pop("cu_seqlens", None)
    inputs.pop("initial_state", None)
    return {
        name: x.view(rows, length, *x.shape[2:]) if isinstance(x, torch.Tensor) and x.shape[:1] == (1,) else x
        for name, x in inputs.items()
    }


def _one_key_written_in_full() -> Inputs:
    """Set beta = 1 and g = 0 on one key: powers of the triangular matrix explode, its inverse does not."""
    inputs = inputs_of("delta_rule", CONFIG, [130])
    inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"]).contiguous()
    return inputs | {"beta": torch.ones_like(inputs["beta"]), "g": torch.zeros_like(inputs["g"])}


def _one_expert_for_all(operation: str) -> Inputs:
    inputs = inputs_of(operation, CONFIG, [65])
    return inputs | {"expert_indices": torch.full_like(inputs["expert_indices"], 2)}


def _large_logits(operation: str) -> Inputs:
    inputs = inputs_of(operation, CONFIG, [33])
    return inputs | {"hidden": 2e2 * inputs["hidden"]}


def _rows_of_zeros(operation: str) -> Inputs:
    inputs = inputs_of(operation, CONFIG, [9])
    inputs["x"][:, ::3] = 0
    return inputs


def _more_keys_than_queries() -> Inputs:
    """Take queries from the last places of the keys alone, as decoding does."""
    inputs = in_rows("attention", CONFIG, 2, 40)
    return inputs | {"q": inputs["q"][:, -3:].contiguous()}


_EXTREMES: dict[str, tuple[str, Callable[[], Inputs]]] = {
    "delta_rule": ("one key written in full", _one_key_written_in_full),
    "grouped_mlp": ("one expert for all", partial(_one_expert_for_all, "grouped_mlp")),
    "frozen_grouped_mlp": ("one expert for all", partial(_one_expert_for_all, "frozen_grouped_mlp")),
    "linear_cross_entropy": ("logits beyond the range of exp", partial(_large_logits, "linear_cross_entropy")),
    "token_logprobs": ("logits beyond the range of exp", partial(_large_logits, "token_logprobs")),
    "rms_norm": ("rows of zeros", partial(_rows_of_zeros, "rms_norm")),
    "gated_rms_norm": ("rows of zeros", partial(_rows_of_zeros, "gated_rms_norm")),
    "attention": ("more keys than queries", _more_keys_than_queries),
}
