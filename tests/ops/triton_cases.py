"""The Triton kernels in Triton's interpreter against the float64 references; test_triton.py runs this file by name.

Small on purpose: the interpreter takes about a millisecond for each tile that a kernel handles.
"""

from __future__ import annotations

import os

import pytest
import test_delta_rule
import test_short_conv
import torch
from torch import Tensor

from exactness import (
    INNER_ROUNDING,
    TOLERANCE,
    Inputs,
    assert_same,
    cast,
    check,
    cumulative,
    evaluate,
    inner_tolerance,
    normal,
)
from gossamer import ops
from gossamer.device import default_device
from output_heads import inputs_of

assert os.environ.get("TRITON_INTERPRET") == "1" and default_device().type == "cpu", "run by test_triton.py"

WIDE = test_delta_rule.WIDE
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
each = pytest.mark.parametrize

# Packed documents with empty ones among them, a state given; a document of exactly a chunk, and of one token more.
PACKED: dict[str, Inputs] = {
    "packed": test_delta_rule.inputs_of(
        1, 70, key_heads=1, documents=5, cu_seqlens=cumulative([1, 0, 66, 1, 2]), key_dim=5, value_dim=3
    ),
    "rows": test_delta_rule.inputs_of(2, 33, key_heads=2, ratio=1, key_dim=17, value_dim=40, seed=1),
    "one token": test_delta_rule.inputs_of(2, 1, key_heads=1, ratio=3, key_dim=1, value_dim=1, documents=2),
    "a chunk": test_delta_rule.inputs_of(1, 64, key_heads=1, ratio=1, key_dim=8, value_dim=8, documents=1),
    "a chunk and one": test_delta_rule.inputs_of(1, 65, key_heads=1, ratio=1, key_dim=8, value_dim=8, decay=3.0),
    "no document": test_delta_rule.inputs_of(1, 0, documents=3, cu_seqlens=cumulative([0, 0, 0])),
}


@each("case", PACKED)
def test_delta_rule_float64_reference(case: str) -> None:
    check("delta_rule", "triton", cast(PACKED[case], F64, WIDE), TOLERANCE[F64])


@each("dtype", [F32, BF16])
def test_delta_rule_in_narrower_types(dtype: torch.dtype) -> None:
    check("delta_rule", "triton", cast(PACKED["packed"], dtype, WIDE), TOLERANCE[dtype])


def test_delta_rule_of_parts_of_a_larger_tensor() -> None:
    """q, k and v as a split projection gives them: rows with a stride."""
    whole = normal(0)(1, 20, 2 * 8 + 8 + 16)
    inputs = test_delta_rule.inputs_of(1, 20, key_heads=1, ratio=2, key_dim=8, value_dim=8)
    del inputs["q"], inputs["k"], inputs["v"]

    def split(whole: Tensor, **rest: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _ = whole.split([8, 8, 16, 8], dim=-1)
        heads = q.unflatten(-1, (1, 8)), k.unflatten(-1, (1, 8)), v.unflatten(-1, (2, 8))
        return ops.delta_rule(*heads, **rest)

    with ops.forced(delta_rule="reference"):
        expected = evaluate(split, {"whole": whole, **inputs})
    with ops.forced(delta_rule="triton"):
        assert_same(evaluate(split, {"whole": whole, **inputs}), expected, TOLERANCE[F64])


def test_delta_rule_repeated_keys_written_in_full() -> None:
    inputs = test_delta_rule.inputs_of(1, 128, key_heads=1, ratio=1, key_dim=8, decay=0.0, documents=1)
    inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"]).contiguous()
    inputs["beta"] = torch.ones_like(inputs["beta"])
    check("delta_rule", "triton", cast(inputs, F32, WIDE), TOLERANCE[F32])


@each("decay", [-50.0, -1e4])
def test_delta_rule_strong_decay(decay: float) -> None:
    inputs = test_delta_rule.inputs_of(1, 70, key_heads=1, ratio=1, documents=1)
    inputs["g"] = torch.full_like(inputs["g"], decay)
    check("delta_rule", "triton", cast(inputs, F32, WIDE), TOLERANCE[F32])


def test_delta_rule_zero_keys_and_queries() -> None:
    inputs = test_delta_rule.inputs_of(1, 20, key_heads=1, documents=1)
    inputs["q"][:, ::3] = 0
    inputs["k"][:, ::2] = 0
    check("delta_rule", "triton", cast(inputs, F32, WIDE), TOLERANCE[F32])


def test_delta_rule_packed_documents_are_documents_apart() -> None:
    inputs = cast(test_delta_rule.inputs_of(2, 10, documents=5, cu_seqlens=cumulative([3, 0, 14, 1, 2])), F64)
    with ops.forced(delta_rule="triton"):
        packed, apart = (evaluate(how, inputs) for how in (ops.delta_rule, test_delta_rule.documents_apart))
    assert_same(packed, apart, TOLERANCE[F64])


@each(("channels", "kernel_size"), [(1, 4), (5, 1), (5, 2), (130, 4)])
@each("dtype", [F64, F32, BF16])
def test_short_conv_float64_reference(channels: int, kernel_size: int, dtype: torch.dtype) -> None:
    for documents, edges in ((None, None), (6, cumulative([1, 0, 2, 3, 66, 8]))):
        inputs = test_short_conv.inputs_of(2, 40, channels, kernel_size, documents, edges)
        check("short_conv", "triton", cast(inputs, dtype), inner_tolerance(dtype))


def test_short_conv_without_tokens() -> None:
    inputs = cast(test_short_conv.inputs_of(1, 0, documents=3, cu_seqlens=cumulative([0, 0, 0])), F32)
    check("short_conv", "triton", inputs, TOLERANCE[F32])


def test_short_conv_weights_wider_than_the_tokens() -> None:
    check("short_conv", "triton", cast(test_short_conv.inputs_of(2, 9), BF16, "weight"), INNER_ROUNDING)


def test_short_conv_packed_documents_are_documents_apart() -> None:
    inputs = cast(test_short_conv.inputs_of(2, 9, documents=7, cu_seqlens=cumulative([3, 0, 8, 1, 1, 2, 3])), F64)
    with ops.forced(short_conv="triton"):
        packed, apart = (evaluate(how, inputs) for how in (ops.short_conv, test_short_conv.documents_apart))
    assert_same(packed, apart, TOLERANCE[F64])


@each("shape", [(0, 1, 7), (3, 5, 1), (2, 3, 64), (70, 2, 33), (1, 1, 130)], ids=str)
@each("dtype", [F64, F32, BF16])
def test_gated_rms_norm_float64_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    random = normal(0)
    inputs = {"x": random(*shape), "gate": random(*shape), "weight": random(shape[-1])}
    check("gated_rms_norm", "triton", cast(inputs, dtype, "weight"), inner_tolerance(dtype), eps=1e-6)


def test_gated_rms_norm_of_a_row_of_zeros() -> None:
    inputs: Inputs = {"x": torch.zeros(2, 8), "gate": torch.ones(2, 8), "weight": torch.ones(8)}
    check("gated_rms_norm", "triton", inputs, TOLERANCE[F32], eps=1e-6)


@each(("vocab", "shares"), [(1, [0.3]), (11, [0.0, 0.3, 1.0]), (4100, [0.3])])
@each("dtype", [F64, F32, BF16])
def test_linear_cross_entropy_float64_reference(vocab: int, shares: list[float], dtype: torch.dtype) -> None:
    for ignored in shares:
        inputs = inputs_of(tokens=5, vocab=vocab, ignored=ignored)
        check("linear_cross_entropy", "triton", cast(inputs, dtype), inner_tolerance(dtype))
        check("token_logprobs", "triton", cast(inputs, dtype), inner_tolerance(dtype))


def test_linear_cross_entropy_far_beyond_the_range_of_exp() -> None:
    inputs = inputs_of(tokens=5)
    inputs["hidden"] *= 1e3
    check("linear_cross_entropy", "triton", cast(inputs, F32), TOLERANCE[F32])


def test_a_cpu_never_chooses_them_by_itself() -> None:
    for operation in ("delta_rule", "short_conv", "gated_rms_norm", "linear_cross_entropy", "token_logprobs"):
        assert ops.OPERATIONS[operation].choose(torch.device("cpu")).name != "triton"
