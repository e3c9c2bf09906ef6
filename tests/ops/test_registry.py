"""The registry: which implementation runs can be seen and forced."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gossamer import ops
from gossamer.errors import UserError
from gossamer.ops.registry import OPERATIONS, Operation

CPU = torch.device("cpu")


@pytest.fixture
def operation() -> Iterator[Operation]:
    """An operation with one implementation that only another device can run."""
    operation = Operation("for_this_test")
    operation.register("elsewhere", lambda: "elsewhere", lambda device: "needs a chip" if device.type == "cpu" else "")
    operation.register("fast", lambda: "fast")
    operation.register("plain", lambda: "plain")
    yield operation
    del OPERATIONS["for_this_test"]


def test_the_first_that_can_run_is_chosen(operation: Operation) -> None:
    assert operation(CPU) == "fast"
    assert operation.choose(torch.device("meta")).name == "elsewhere"


def test_an_implementation_that_is_no_default_runs_only_when_forced() -> None:
    operation = Operation("for_this_test")
    operation.register("elsewhere", lambda: "elsewhere", is_default=lambda device: device.type != "cpu")
    operation.register("plain", lambda: "plain")
    try:
        assert operation(CPU) == "plain"
        assert operation.choose(torch.device("meta")).name == "elsewhere"
        with ops.forced(for_this_test="elsewhere"):
            assert operation(CPU) == "elsewhere"
    finally:
        del OPERATIONS["for_this_test"]


def test_forced_by_context_and_restored_after_it(operation: Operation) -> None:
    with pytest.raises(ZeroDivisionError), ops.forced(for_this_test="plain"):
        assert operation(CPU) == "plain"
        with ops.forced(for_this_test="fast"):
            assert operation(CPU) == "fast"
        assert operation(CPU) == "plain"
        _ = 1 / 0
    assert operation(CPU) == "fast"


def test_forced_by_environment(operation: Operation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSAMER_OPS", "delta_rule=reference, for_this_test=plain")
    assert operation(CPU) == "plain"
    with ops.forced(for_this_test="fast"):  # the nearer wish wins
        assert operation(CPU) == "fast"


def test_what_cannot_run_is_refused_with_the_reason(operation: Operation) -> None:
    with ops.forced(for_this_test="elsewhere"), pytest.raises(UserError, match=r"needs a chip.*fast, plain"):
        operation(CPU)


def test_an_unknown_implementation_is_refused_with_those_there_are(operation: Operation) -> None:
    with ops.forced(for_this_test="fasst"), pytest.raises(UserError, match=r"for_this_test.*'fasst'.*fast, plain"):
        operation(CPU)


def test_an_unknown_operation_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean 'delta_rule'"), ops.forced(delta_rul="reference"):
        pass
    monkeypatch.setenv("GOSSAMER_OPS", "short_conf=reference")
    with pytest.raises(UserError, match="did you mean 'short_conv'"):
        OPERATIONS["attention"].choose(CPU)
    monkeypatch.setenv("GOSSAMER_OPS", "attention")
    with pytest.raises(UserError, match="operation=implementation"):
        OPERATIONS["attention"].choose(CPU)


@pytest.mark.parametrize(("former", "name"), [("draw", "sample_tokens"), ("few_rows", "small_linear")])
def test_a_former_name_is_refused_with_the_present_one(former: str, name: str) -> None:
    with pytest.raises(UserError, match=f"'{former}': it is now called '{name}'"), ops.forced(**{former: "reference"}):
        pass
    assert name in OPERATIONS


def test_every_operation_has_a_reference_that_runs_anywhere() -> None:
    for name, operation in OPERATIONS.items():
        [reference] = [one for one in operation.implementations if one.name == "reference"]
        assert not reference.obstacle(torch.device("meta")), name
