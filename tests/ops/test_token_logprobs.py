"""Output head and log-probabilities in one: every implementation against the float64 reference, and its memory."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from exactness import (
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
from output_heads import LargestTensor, inputs_of, problems

every_implementation = pytest.mark.parametrize("implementation", implementations("token_logprobs"))
MODULE = import_module("gossamer.ops.token_logprobs")  # `gossamer.ops` has a function of the same name
CHUNKS = import_module("gossamer.ops.linear_cross_entropy")


@every_implementation
@every_dtype
@pytest.mark.parametrize("kept_bytes", [32 << 20, 0], ids=["kept", "again"])
@settings(max_examples=12)
@given(problem=problems(), chunk_bytes=st.sampled_from([8 << 20, 600, 1]))
@example(problem=inputs_of(tokens=0), chunk_bytes=1)
@example(problem=inputs_of(ignored=1.0), chunk_bytes=1)
@example(problem=inputs_of(vocab=1), chunk_bytes=1)
def test_float64_reference(
    implementation: str, dtype: torch.dtype, kept_bytes: int, chunk_bytes: int, problem: Inputs
) -> None:
    """With logits that are kept and that are computed again, in chunks of all tokens, of a few, and of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "KEPT_BYTES", kept_bytes)
        patch.setattr(CHUNKS, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(CHUNKS, "MIN_ROWS", 1)
        check("token_logprobs", implementation, cast(problem, dtype), inner_tolerance(dtype))


@every_implementation
def test_they_are_those_of_log_softmax(implementation: str) -> None:
    inputs = cast(inputs_of(tokens=9, ignored=0.4), torch.float64)
    hidden, weight, labels = inputs.values()
    with ops.forced(token_logprobs=implementation):
        found = ops.token_logprobs(hidden, weight, labels)
    has_label = labels >= 0
    expected = (hidden @ weight.T).log_softmax(1)[has_label].gather(1, labels[has_label, None])[:, 0]
    assert 0 < len(found) < len(labels)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@every_implementation
@pytest.mark.parametrize("kept_bytes", [32 << 20, 0], ids=["kept", "again"])
def test_gradcheck(implementation: str, kept_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "KEPT_BYTES", kept_bytes)
    inputs = cast(inputs_of(tokens=5, vocab=5, hidden=3), torch.float64)
    labels = inputs.pop("labels")
    leaves = [value.requires_grad_() for value in inputs.values()]
    with ops.forced(token_logprobs=implementation):
        assert torch.autograd.gradcheck(lambda hidden, weight: ops.token_logprobs(hidden, weight, labels), leaves)


@every_implementation
def test_weights_wider_than_the_tokens(implementation: str) -> None:
    inputs = cast(inputs_of(), torch.bfloat16, "weight")
    check("token_logprobs", implementation, inputs, INNER_ROUNDING)


@every_implementation
def test_logits_far_beyond_the_range_of_exp(implementation: str) -> None:
    inputs = inputs_of(tokens=5)
    inputs["hidden"] *= 1e3
    check("token_logprobs", implementation, cast(inputs, torch.float32), TOLERANCE[torch.float32])


@every_implementation
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_one_input_may_be_frozen(implementation: str, frozen: str) -> None:
    inputs = cast(inputs_of(), torch.float64)
    learned = inputs["weight" if frozen == "hidden" else "hidden"].requires_grad_()
    scale = torch.linspace(-1, 2, int((inputs["labels"] >= 0).sum()), dtype=torch.float64)
    gradients = []
    for name in (implementation, "reference"):
        with ops.forced(token_logprobs=name):
            gradients += torch.autograd.grad((ops.token_logprobs(**inputs) * scale).sum(), learned)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("implementation", implementations("token_logprobs", but="reference"))
@pytest.mark.parametrize(
    ("learned", "kept_bytes", "products"),
    [((), 0, 1), (("hidden",), 0, 2), (("hidden", "weight"), 32 << 20, 3), (("hidden", "weight"), 0, 4)],
    ids=["nothing", "hidden alone", "both, kept", "both, again"],
)
def test_only_what_is_needed_is_multiplied(
    implementation: str, learned: tuple[str, ...], kept_bytes: int, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No product for a token without a label, and the logits a second time only where they were too large to keep."""
    monkeypatch.setattr(MODULE, "KEPT_BYTES", kept_bytes)
    inputs = cast(inputs_of(tokens=40, vocab=11, hidden=5), torch.float32)
    for name in learned:
        inputs[name].requires_grad_()
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}  # PyTorch's counter omits it
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    with ops.forced(token_logprobs=implementation), counter as found:
        logprobs = ops.token_logprobs(**inputs)
        if learned:
            logprobs.sum().backward()
    assert found.get_total_flops() == products * 2 * len(logprobs) * 11 * 5
    assert len(logprobs) < 40


@pytest.mark.parametrize("implementation", implementations("token_logprobs", but="reference"))
def test_the_full_logits_are_never_in_memory(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CHUNKS, "ACCELERATOR_CHUNKS", 1)
    inputs = cast(inputs_of(tokens=3072, vocab=4096, hidden=4, ignored=0), torch.float32)
    assert 3072 * 4096 * 4 > MODULE.KEPT_BYTES >= 2 * CHUNKS.CHUNK_BYTES
    with ops.forced(token_logprobs=implementation), LargestTensor() as largest:
        ops.token_logprobs(inputs["hidden"].requires_grad_(), inputs["weight"], inputs["labels"]).sum().backward()
    assert largest.bytes <= CHUNKS.CHUNK_BYTES


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": torch.zeros(7, 4)},
        {"weight": torch.zeros(11)},
        {"labels": torch.zeros(6, dtype=torch.int64)},
        {"labels": torch.full((7,), 11)},
    ],
    ids=["hidden", "weight", "too few labels", "a label beyond"],
)
def test_wrong_inputs_are_refused_by_name(wrong: Inputs) -> None:
    with pytest.raises(UserError, match="token_logprobs"):
        ops.token_logprobs(**inputs_of() | wrong)
