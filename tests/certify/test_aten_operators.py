"""The shadow on the CPU: it finds a wrong operator by name, forward and backward, and lets right ones pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from certify_faults import Faulty
from gossamer.certify.aten_operators import Shadow, culprit

CPU = torch.device("cpu")


def program(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A few operators forward and backward: views, writes in place, sums, an optimizer."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, generator=generator).to(dtype).requires_grad_()
    y = (x.mT.contiguous() @ x).softmax(-1)
    z = F.silu(y[1:, ::2]) * torch.rsqrt(y.square().mean() + 1e-6)
    values, _ = z.topk(2, dim=1)
    values.sum().backward()
    optimizer = torch.optim.AdamW([x], lr=0.1, foreach=True)
    optimizer.step()
    return x.detach().cumsum(0).masked_fill_(torch.eye(5, 7, dtype=torch.bool), float("-inf"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_right_operators_pass(dtype: torch.dtype) -> None:
    shadow = Shadow(CPU, max_kinds=100)
    with shadow:
        program(dtype)
    assert not shadow.wrong
    names = {one.operator for one in shadow.compared}
    assert {"aten::mm", "aten::topk", "aten::masked_fill_.Scalar", "aten::silu_backward", "aten::cumsum"} <= names
    assert any(name.startswith("aten::_foreach") for name in names)
    assert names <= set(shadow.calls)


@given(operator=st.sampled_from(["aten::mm", "aten::rsqrt", "aten::silu_backward", "aten::_softmax", "aten::cumsum"]))
def test_a_wrong_operator_is_named(operator: str) -> None:
    shadow = Shadow(CPU)
    with Faulty(operator, lambda x: x * 1.001), shadow:
        program()
    assert {one.operator for one in shadow.wrong} == {operator}
    wrong = shadow.wrong[0]
    assert wrong.dtype == "float32" and "[" in wrong.shapes and 1e-5 < wrong.error < 1e-2


def test_an_operator_that_raises_is_named() -> None:
    with Faulty("aten::cumsum", NotImplementedError("no cumsum on this chip")):
        said = culprit(program, CPU)
    assert "aten::cumsum" in said and "no cumsum on this chip" in said and "[5, 7]" in said


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda x: x.to(torch.bfloat16), "gives bfloat16 instead of float32"),
        (lambda x: x[..., :-1], "gives shape"),
        (lambda x: torch.full_like(x, float("nan")), "is not finite"),
    ],
    ids=["type", "shape", "not finite"],
)
def test_a_result_of_another_form_is_wrong(spoil, told: str) -> None:
    with Faulty("aten::cumsum", spoil):
        assert told in culprit(lambda: torch.ones(3, 4).cumsum(0), CPU)


def test_random_numbers_are_not_compared_and_attention_is() -> None:
    shadow = Shadow(CPU)
    with shadow:
        torch.rand(3)
        q = torch.ones(1, 2, 5, 8)
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert shadow.not_compared == {"aten::rand": "uses random numbers"}
    assert any("attention" in one.operator for one in shadow.compared)


def test_so_many_kinds_of_input_and_no_more() -> None:
    shadow = Shadow(CPU, max_kinds=2)
    with shadow:
        for size in (1, 2, 2, 3, 4):
            torch.ones(size).add(1)
    assert shadow.calls["aten::add.Tensor"] == 5
    assert sum(one.operator == "aten::add.Tensor" for one in shadow.compared) == 2


def test_operators_of_other_devices_are_passed_over() -> None:
    shadow = Shadow(torch.device("meta"))
    with shadow:
        torch.ones(3).add(1)
    assert not shadow.calls


def test_an_operator_that_consists_of_others_is_seen_by_its_parts_without_gradients_too() -> None:
    shadow = Shadow(CPU, max_kinds=100)
    with Faulty("aten::rsqrt", lambda x: x * 1.001), shadow, torch.inference_mode():
        F.rms_norm(torch.randn(3, 8), (8,))
    assert {one.operator for one in shadow.wrong} == {"aten::rsqrt"}
