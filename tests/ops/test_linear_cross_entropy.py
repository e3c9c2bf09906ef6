"""Output head and loss in one: every implementation against the float64 reference, and its memory."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from exactness import (
    DEVICE,
    INNER_ROUNDING,
    TOLERANCE,
    Inputs,
    cast,
    check,
    every_dtype,
    implementations,
    inner_tolerance,
)
from gossamer import ops
from gossamer.errors import UserError
from gossamer.ops.linear_cross_entropy import IGNORED
from output_heads import LargestTensor, inputs_of, problems

every_implementation = pytest.mark.parametrize("implementation", implementations("linear_cross_entropy"))
MODULE = import_module("gossamer.ops.linear_cross_entropy")  # `gossamer.ops` has a function of the same name


@every_implementation
@every_dtype
@pytest.mark.parametrize("chunk_bytes", [8 << 20, 600, 1])
@settings(max_examples=12)
@given(problem=problems())
@example(problem=inputs_of(tokens=0))
@example(problem=inputs_of(ignored=1.0))
@example(problem=inputs_of(vocab=1))
def test_float64_reference(implementation: str, dtype: torch.dtype, chunk_bytes: int, problem: Inputs) -> None:
    """With the usual chunk, with one of a few tokens, and with one smaller than a single token's logits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(MODULE, "MIN_ROWS", 1)
        check("linear_cross_entropy", implementation, cast(problem, dtype), inner_tolerance(dtype))


@every_implementation
def test_weights_wider_than_the_tokens(implementation: str) -> None:
    """Under autocast the master weights stay in float32, and so must their gradient."""
    inputs = cast(inputs_of(), torch.bfloat16, "weight")
    check("linear_cross_entropy", implementation, inputs, INNER_ROUNDING)


@every_implementation
def test_logits_far_beyond_the_range_of_exp(implementation: str) -> None:
    inputs = inputs_of(tokens=5)
    inputs["hidden"] *= 1e3
    check("linear_cross_entropy", implementation, cast(inputs, torch.float32), TOLERANCE[torch.float32])


@every_implementation
def test_gradcheck(implementation: str) -> None:
    inputs = cast(inputs_of(tokens=4, vocab=5, hidden=3), torch.float64)
    labels = inputs.pop("labels")
    leaves = [value.requires_grad_() for value in inputs.values()]
    with ops.forced(linear_cross_entropy=implementation):
        assert torch.autograd.gradcheck(lambda hidden, weight: ops.linear_cross_entropy(hidden, weight, labels), leaves)


@every_implementation
@settings(max_examples=12)
@given(problem=problems(), chunk_bytes=st.sampled_from([8 << 20, 300]))
def test_a_bias_is_added_to_the_logits(implementation: str, problem: Inputs, chunk_bytes: int) -> None:
    """A bias acts like one more column of the weight and a one in every hidden state, and has no gradient."""
    inputs = cast(problem, torch.float64)
    hidden, weight = (inputs[name].requires_grad_() for name in ("hidden", "weight"))
    bias = torch.linspace(-3, 2, len(weight), dtype=torch.float64).requires_grad_()
    with pytest.MonkeyPatch.context() as patch, ops.forced(linear_cross_entropy=implementation):
        patch.setattr(MODULE, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(MODULE, "MIN_ROWS", 1)
        loss = ops.linear_cross_entropy(hidden, weight, inputs["labels"], bias)
        found = torch.autograd.grad(loss, (hidden, weight, bias), allow_unused=True)
    assert found[2] is None
    wider = torch.cat([hidden, torch.ones(len(hidden), 1).double()], 1), torch.cat([weight, bias[:, None]], 1)
    with ops.forced(linear_cross_entropy="reference"):
        expected = ops.linear_cross_entropy(*wider, inputs["labels"])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found[:2], torch.autograd.grad(expected, (hidden, weight)))


@every_implementation
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_one_input_may_be_frozen(implementation: str, frozen: str) -> None:
    inputs = cast(inputs_of(), torch.float64)
    learned = inputs["weight" if frozen == "hidden" else "hidden"].requires_grad_()
    gradients = []
    for name in (implementation, "reference"):
        with ops.forced(linear_cross_entropy=name):
            gradients += torch.autograd.grad(ops.linear_cross_entropy(**inputs), learned)
    torch.testing.assert_close(*gradients)


@every_implementation
def test_without_gradients_only_the_logits_are_computed(implementation: str) -> None:
    """The weights of an evaluation require gradients that are never computed."""
    inputs = cast(inputs_of(tokens=7, vocab=11, hidden=5, ignored=0), torch.float32)
    inputs["weight"].requires_grad_()
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}  # PyTorch's counter omits it
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    with ops.forced(linear_cross_entropy=implementation), counter as found:
        ops.linear_cross_entropy(**inputs)
        with_gradient = found.get_total_flops()
        with torch.no_grad():
            ops.linear_cross_entropy(**inputs)
    assert found.get_total_flops() - with_gradient == 2 * 7 * 11 * 5


@every_implementation
@pytest.mark.parametrize(("unlabeled", "multiplied"), [(0, 40), (5, 40), (6, 34), (40, 0)])
def test_tokens_without_a_label_are_left_out_where_they_are_many(
    implementation: str, unlabeled: int, multiplied: int
) -> None:
    inputs = cast(inputs_of(tokens=40, vocab=11, hidden=5, ignored=0), torch.float32)
    inputs["labels"][:unlabeled] = IGNORED
    with ops.forced(linear_cross_entropy=implementation), torch.no_grad(), FlopCounterMode(display=False) as found:
        ops.linear_cross_entropy(**inputs)
    assert found.get_total_flops() == 2 * 11 * 5 * (40 if inputs["hidden"].device.type != "cpu" else multiplied)


def largest_tensor(implementation: str, tokens: int, vocab: int, dtype: torch.dtype) -> int:
    inputs = cast(inputs_of(tokens=tokens, vocab=vocab, hidden=4, ignored=0), dtype)
    inputs["hidden"].requires_grad_()
    inputs["weight"].requires_grad_()
    with ops.forced(linear_cross_entropy=implementation), LargestTensor() as largest:
        ops.linear_cross_entropy(**inputs).backward()
    return largest.bytes


@pytest.mark.parametrize("implementation", implementations("linear_cross_entropy", but="reference"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_full_logits_are_never_in_memory(
    implementation: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "ACCELERATOR_CHUNKS", 1)
    tokens, vocab = 2048, 4096
    logits = tokens * vocab * 4
    assert logits >= 4 * MODULE.CHUNK_BYTES
    assert largest_tensor("reference", tokens, vocab, dtype) >= logits  # otherwise the measurement sees nothing
    assert largest_tensor(implementation, tokens, vocab, dtype) <= MODULE.CHUNK_BYTES


def test_a_large_vocabulary_is_read_for_many_tokens_at_a_time() -> None:
    """Qwen3.5's head has a gigabyte in float32, and `CHUNK_BYTES` is eight rows of its logits."""
    assert MODULE.rows_of_chunk(4 * 248_320) == MODULE.ROWS_OF_LARGE_VOCABULARY
    assert MODULE.rows_of_chunk(4 * 32_768) == MODULE.CHUNK_BYTES // (4 * 32_768)


@every_implementation
def test_a_narrower_weight_without_gradients_is_read_as_it_is(implementation: str) -> None:
    inputs = inputs_of(tokens=80, vocab=90, hidden=6)
    hidden, weight = inputs["hidden"].float().to(DEVICE), inputs["weight"].bfloat16().to(DEVICE)
    labels = inputs["labels"].to(DEVICE)
    with ops.forced(linear_cross_entropy="reference"):
        expected = ops.linear_cross_entropy(hidden.double(), weight.double(), labels)
    with torch.no_grad(), ops.forced(linear_cross_entropy=implementation):
        found = ops.linear_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": torch.zeros(7, 4)},
        {"hidden": torch.zeros(1, 7, 5)},
        {"weight": torch.zeros(11, 4)},
        {"weight": torch.zeros(11)},
        {"labels": torch.zeros(6, dtype=torch.int64)},
        {"labels": torch.zeros(7, 1, dtype=torch.int64)},
    ],
    ids=lambda wrong: " ".join(f"{name} {list(value.shape)}" for name, value in wrong.items()),
)
def test_wrong_shapes_are_refused_by_name(wrong: Inputs) -> None:
    with pytest.raises(UserError, match="linear_cross_entropy"):
        ops.linear_cross_entropy(**inputs_of() | wrong)
