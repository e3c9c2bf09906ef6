"""Operations on the CPU: all able ones pass, a wrong or failing one is told with operation, type, inputs and place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from certify_faults import Faulty
from gossamer import ops
from gossamer.certify.checks import failed
from gossamer.certify.inputs import cases
from gossamer.certify.operations import check_operation, check_operations, checked_operations, source_of

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def test_every_able_implementation_passes_in_every_type() -> None:
    found = list(check_operations(CPU, DTYPES, quick=True))
    assert not failed(found), [check.describe() for check in failed(found)]
    able = {
        (f"{name} {one.name}", str(dtype).removeprefix("torch."))
        for name in checked_operations()
        for one in ops.OPERATIONS[name].implementations
        if not one.obstacle(CPU)
        for dtype in DTYPES
    }
    assert {(check.name, check.dtype) for check in found if check.status == "pass"} == able
    unable = {
        f"{name} {one.name}"
        for name in checked_operations()
        for one in ops.OPERATIONS[name].implementations
        if one.obstacle(CPU)
    }
    engine = set(ops.OPERATIONS) - set(checked_operations())
    assert {check.name for check in found if check.status == "not run"} == unable | engine


@pytest.mark.parametrize("name", checked_operations())
def test_all_cases_pass_in_float32(name: str) -> None:
    found = list(check_operation(name, cases(name, quick=False), [torch.float32], CPU))
    assert not failed(found), [check.describe() for check in failed(found)]
    assert {"odd sizes", "no token"} <= {check.case for check in found}


def plant(monkeypatch: pytest.MonkeyPatch, operation: str, implementation: str, spoil) -> None:
    """Replace an implementation by one that `spoil` makes of it."""
    known = ops.OPERATIONS[operation]
    faulty = [
        replace(one, function=spoil(one.function)) if one.name == implementation else one
        for one in known.implementations
    ]
    monkeypatch.setattr(known, "implementations", faulty)


def test_a_wrong_gradient_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(function):
        def call(q, k, *rest):
            return function(q, k + 0.01 * (k - k.detach()), *rest)  # right forward, wrong backward

        return call

    plant(monkeypatch, "delta_rule", "chunked", spoil)
    found = list(check_operation("delta_rule", cases("delta_rule", True), [torch.float32], CPU))
    assert {check.name for check in failed(found)} == {"delta_rule chunked"}
    wrong = failed(found)[0]
    assert "gradient of k is off by" in wrong.message and wrong.dtype == "float32"
    assert wrong.case and "q [1, 69, 2, 16]" in wrong.shape and wrong.error > wrong.tolerance


def test_one_that_raises_does_not_keep_the_others_from_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(function):
        def call(*_):
            raise RuntimeError("no such kernel\nand more")

        return call

    plant(monkeypatch, "rms_norm", "plain", spoil)
    found = list(check_operation("rms_norm", cases("rms_norm", True), [torch.float32], CPU))
    assert {check.name for check in failed(found)} == {"rms_norm plain"}
    assert failed(found)[0].message == "RuntimeError: no such kernel"
    assert any(check.status == "pass" for check in found)


def test_a_wrong_operator_is_named_below_the_operation() -> None:
    with Faulty("aten::rsqrt", lambda x: 1.01 * x):
        found = list(check_operation("rms_norm", cases("rms_norm", True), [torch.float32], CPU))
    (reference, *_) = [check for check in failed(found) if check.name == "rms_norm reference"]
    assert "aten::rsqrt in float32" in reference.message


def test_where_to_look_is_the_implementations_own_file() -> None:
    known = {one.name: source_of(one) for one in ops.OPERATIONS["delta_rule"].implementations}
    assert known["chunked"] == "src/gossamer/ops/delta_rule/chunked.py"
    assert known["triton"] == "src/gossamer/ops/delta_rule/triton.py"
