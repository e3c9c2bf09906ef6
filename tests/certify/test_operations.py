"""Operations on the CPU: all able ones pass, a wrong or failing one is told with operation, type, inputs and place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from certify_faults import Faulty
from gossamer import ops
from gossamer.certify import decoding
from gossamer.certify.checks import failed
from gossamer.certify.decoding import check_decoding, check_served_operations, served_operations
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
    assert {check.name for check in found if check.status == "not run"} == unable


def test_every_operation_is_called_by_itself_or_decodes() -> None:
    assert sorted([*checked_operations(), *served_operations()]) == sorted(ops.OPERATIONS)


def test_every_able_implementation_that_decodes_passes() -> None:
    found = list(check_served_operations(CPU, DTYPES))
    assert not failed(found), [check.describe() for check in failed(found)]
    passed = {check.name for check in found if check.status == "pass"}
    implementations = {name: ops.OPERATIONS[name].implementations for name in served_operations()}
    assert passed == {
        f"{name} {one.name}" for name, those in implementations.items() for one in those if not one.obstacle(CPU)
    }
    assert {check.dtype for check in found if check.name == "delta_step padded"} == {"float64", "float32", "bfloat16"}


def test_the_network_decodes_and_the_engine_answers_as_the_reference() -> None:
    found = list(check_decoding(CPU, [torch.float32, torch.bfloat16]))
    assert not failed(found), [check.describe() for check in failed(found)]
    assert len(found) == 4


@pytest.mark.parametrize(("operation", "implementation"), [("delta_step", "padded"), ("paged_attention", "sdpa")])
def test_a_wrong_implementation_that_decodes_is_told(
    monkeypatch: pytest.MonkeyPatch, operation: str, implementation: str
) -> None:
    monkeypatch.setattr(decoding, "served_operations", lambda: [operation])
    plant(monkeypatch, operation, implementation, lambda function: lambda *rest: 1.01 * function(*rest))
    wrong = failed(check_served_operations(CPU, [torch.float32]))
    assert f"{operation} {implementation}" in {check.name for check in wrong}
    assert all(check.error > check.tolerance and check.where for check in wrong)


def test_wrong_drafts_and_samples_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "served_operations", lambda: ["draft_tokens"])
    plant(monkeypatch, "sample_tokens", "reference", lambda function: lambda *rest: function(*rest).roll(1))
    assert "draft_tokens reference" in {check.name for check in failed(check_served_operations(CPU, [torch.float32]))}


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
    assert failed(found)[0].message == "RuntimeError: no such kernel and more"
    assert any(check.status == "pass" for check in found)


def test_a_wrong_operator_is_named_below_the_operation() -> None:
    with Faulty("aten::rsqrt", lambda x: 1.01 * x):
        found = list(check_operation("rms_norm", cases("rms_norm", True), [torch.float32], CPU))
    (reference, *_) = [check for check in failed(found) if check.name == "rms_norm reference"]
    assert "aten::rsqrt in float32" in reference.message


def test_where_to_look_is_the_implementations_own_file() -> None:
    known = {one.name: source_of(one) for one in ops.OPERATIONS["delta_rule"].implementations}
    assert known["native"] == "src/gossamer/ops/delta_rule/__init__.py"
    assert known["chunked"] == "src/gossamer/ops/delta_rule/chunked.py"
    assert known["triton"] == "src/gossamer/ops/triton/delta_rule.py"
