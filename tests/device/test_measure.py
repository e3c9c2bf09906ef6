"""The rate of products is the best of several measurements."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gossamer import device as devices
from gossamer.device import measure

CPU = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The rates that the next measurements return, on a machine that is busy now and then."""
    rates: list[float] = []
    monkeypatch.setattr(measure, "_measured_rate", lambda device, dtype: rates.pop(0))
    monkeypatch.setattr(measure, "_PAUSE", 0.0)
    monkeypatch.setattr(measure, "_BEST", {})
    yield rates


def test_the_best_of_several_moments_counts(measured: list[float]) -> None:
    measured += [2.0, 7.0, 3.0]
    assert devices.peak_rate(CPU, torch.float32) == 7.0
    assert devices.peak_rate(CPU, torch.float32) == 7.0, "it is known"


def test_a_later_moment_raises_it_and_never_lowers_it(measured: list[float]) -> None:
    measured += [2.0, 1.0, 1.0, 5.0, 4.0]
    assert devices.peak_rate(CPU, torch.float32) == 2.0
    assert devices.peak_rate(CPU, torch.float32, again=True) == 5.0
    assert devices.peak_rate(CPU, torch.float32, again=True) == 5.0


def test_types_have_rates_of_their_own(measured: list[float]) -> None:
    measured += [2.0] * 3 + [9.0] * 3
    rates = [devices.peak_rate(CPU, dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert rates == [2.0, 9.0] and devices.peak_rate(CPU, torch.float32) == 2.0


def test_a_product_is_measured() -> None:
    assert devices.peak_rate(CPU, torch.float32) > 1e8
