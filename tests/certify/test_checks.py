"""Checks and the verdict over them: what was not run is never a pass."""

from __future__ import annotations

import math

import pytest

from gossamer.certify.checks import GROUPS, REQUIRED, Check, judge, verdict


def everything(status: str = "pass") -> list[Check]:
    message = "" if status == "pass" else "because"
    return [Check(group, "a check", status, message) for group in GROUPS]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "status"), [(0.0, "pass"), (1e-4, "pass"), (1.1e-4, "fail"), (math.inf, "fail"), (math.nan, "fail")]
)
def test_an_error_is_held_against_its_tolerance(error: float, status: str) -> None:
    check = judge("operations", "rms_norm plain", error, 1e-4, where="there")
    assert check.status == status
    assert bool(check.message) == bool(check.where) == (status == "fail")


def test_the_verdict() -> None:
    assert verdict(everything()) == ("pass", [])
    assert verdict(everything("not run"))[0] == "fail"
    assert verdict([]) == ("fail", [f"{group}: nothing of it could be run" for group in REQUIRED])


@pytest.mark.parametrize("group", REQUIRED)
def test_a_required_kind_that_was_not_run_fails(group: str) -> None:
    checks = [check for check in everything() if check.group != group] + [Check(group, "x", "not run", "no memory")]
    assert verdict(checks) == ("fail", [f"{group}: nothing of it could be run"])


def test_one_failure_fails_and_is_described() -> None:
    wrong = Check("operations", "delta_rule chunked", "fail", "off", "float32", "odd sizes", "q [1, 2]", where="a file")
    found, reasons = verdict([*everything(), wrong])
    assert found == "fail"
    assert reasons == ["delta_rule chunked float32 odd sizes q [1, 2]: off (look at a file)"]


def test_no_failure_without_a_reason() -> None:
    with pytest.raises(AssertionError):
        Check("operations", "x", "fail")
