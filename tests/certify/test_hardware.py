"""What is asked of a device's memory, with answers that it may give."""

from __future__ import annotations

import pytest
import torch

from gossamer.certify import hardware
from gossamer.units import size

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("peak", "estimate", "status"),
    [(1000, 1100, "pass"), (1000, 700, "fail"), (700, 1000, "fail"), (40, 100, "pass"), (0, 100, "fail")],
)
def test_the_peak_is_held_against_the_estimate(monkeypatch, peak: int, estimate: int, status: str) -> None:
    monkeypatch.setattr(
        hardware, "measured_separately", lambda preset: {"peak": peak << 20, "estimate": estimate << 20}
    )
    check = hardware._peak(CPU, "nano")
    assert check.status == status and f"{size(peak << 20)}, estimated {size(estimate << 20)}" in check.message


def test_a_process_that_ends_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(preset: str) -> None:
        raise RuntimeError("its process ended")

    monkeypatch.setattr(hardware, "measured_separately", ended)
    check = hardware._peak(CPU, "nano")
    assert check.status == "fail" and check.where and "its process ended" in check.message


def test_the_cpu_refuses_a_petabyte_and_works_again() -> None:
    assert hardware._full(CPU).status == "pass"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("unspecified launch failure"), "does not say that memory ran out"),
        (None, "gave a petabyte"),
        (torch.OutOfMemoryError("out of memory"), ""),
    ],
    ids=["another error", "no error", "out of memory"],
)
def test_how_memory_runs_out(monkeypatch: pytest.MonkeyPatch, error: Exception | None, told: str) -> None:
    def empty(*_, **__):
        if error is not None:
            raise error

    monkeypatch.setattr(torch, "empty", empty)
    problem = hardware._fill(CPU, 1 << 30)
    assert told in problem and bool(problem) == bool(told)
