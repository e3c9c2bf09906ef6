"""Figures as people read them."""

from __future__ import annotations

import math

import pytest

from gossamer import units
from gossamer.units import (
    amount,
    count,
    duration,
    flops,
    human,
    known,
    network_words,
    number,
    percent,
    size,
    size_unit,
)


def test_figures_are_written_for_people() -> None:
    assert [count(value) for value in (None, 0, 9999, 12_345, 57_012_736)] == ["–", "0", "9,999", "12.3K", "57.0M"]
    assert [number(value) for value in (None, float("nan"), 2.24, 0.97, 4105.2, 0.0)] == [
        "–",
        "–",
        "2.240",
        "0.9700",
        "4105",
        "0.000",
    ]
    times = {
        0.0: "0 s",
        12.34: "12.3 s",
        59.99: "1 min",
        61: "1 min 1 s",
        3725: "1 h 2 min",
        7200: "2 h",
        90_061: "1 d 1 h",
    }
    assert {seconds: duration(seconds) for seconds in times} == times
    assert [percent(value) for value in (0.814, None)] == ["81%", "–"]
    assert [size(value) for value in (1.5 * 2**30, 700 * 2**20, 2048, None)] == ["1.50 GiB", "700 MiB", "2.00 KiB", "–"]
    assert [flops(value) for value in (0.0, 9.83e12, 1e30, None)] == ["0.00 FLOP", "9.83 TFLOP", "1.00e+06 YFLOP", "–"]
    assert [amount(things, "step") for things in (0, 1, 1200)] == ["0 steps", "1 step", "1,200 steps"]
    assert size_unit(0) == (1024, "KiB")


@pytest.mark.parametrize("value", [None, "3", True, math.nan, math.inf, [1.0]])
def test_what_is_no_number_is_not_known(value: object) -> None:
    assert not known(value)
    assert {write(value) for write in (count, number, duration, flops, percent, size)} == {"–"}


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0, 3, "0"), (5, 3, "5"), (999, 3, "999"), (1234, 3, "1.23K"), (57_012_345, 3, "57M"), (999_999, 3, "1M"),
     (100_000, 3, "100K"), (2.5e12, 3, "2.5T"), (-2000, 3, "-2K"), (0.00025, 3, "2.5e-4"), (1234, 4, "1.234K"),
     (0.25, 3, "0.25"), (1e-30, 3, "1e-30")],
)  # fmt: skip
def test_human(value: float, digits: int, text: str) -> None:
    assert human(value, digits) == text


def test_costs() -> None:
    assert [units.hours(value) for value in (0.01234, 1.5, 1234.5, None)] == ["0.0123", "1.5", "1,234", "–"]
    assert [units.energy(value) for value in (0.0123, 12.34, None)] == ["12.3 Wh", "12.3 kWh", "–"]
    assert [units.money(value, "EUR") for value in (1234.5, 0.5, 0.0123)] == ["1,234.50 EUR", "0.50 EUR", "0.012 EUR"]
    assert (units.money(2.0), units.money(None)) == ("2.00", "–")


def test_a_networks_size_is_told_without_and_with_its_head() -> None:
    assert network_words(63_873_632, 9_741_152, 6_801_024, 902_784) == (
        "57.1M parameters, 8.84M active a token; 63.9M and 9.74M with the multi-token-prediction head"
    )
    assert network_words(3e6, 1e6, 0, 0) == "3.00M parameters, 1.00M active a token; no multi-token-prediction head"
    assert network_words(57_012_736, 9_134_080) == "57.0M parameters, 9.13M active a token"
    assert network_words(None, None) == "– parameters"
