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
    is_number,
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
    assert [size(value) for value in (1000 * 2**20, 1.5 * 2**40, 2**50)] == ["1,000 MiB", "1.50 TiB", "1.00 PiB"]
    assert size_unit(0) == (1024, "KiB")
    assert [percent(value, 1) for value in (0.8149, 0.0)] == ["81.5%", "0.0%"]
    assert [units.scientific(value, digits) for value, digits in ((0.000123, 1), (0.02, 0), (None, 1))] == [
        "1.2e-04", "2e-02", "–"
    ]  # fmt: skip


def test_sizes_of_files_and_bandwidths() -> None:
    sizes = (0, 1, 400, 999, 1_000, 9_940, 400_000, 1_000_000, 12_345_678, 3_140_000_000, 55_000_000_000, 2.5e12)
    assert [units.decimal_size(value) for value in sizes] == [
        "0 bytes", "1 byte", "400 bytes", "999 bytes", "1.0 kB", "9.9 kB",
        "400 kB", "1.0 MB", "12 MB", "3.1 GB", "55 GB", "2.5 TB"
    ]  # fmt: skip
    assert [units.byte_rate(value) for value in (4.32e12, 1.5e10, 5e5, None)] == [
        "4.32 TB/s", "15.0 GB/s", "500 kB/s", "–"
    ]  # fmt: skip


@pytest.mark.parametrize("value", [None, "3", True, math.nan, math.inf, [1.0]])
def test_what_is_no_number_is_not_known(value: object) -> None:
    assert not is_number(value)
    assert {write(value) for write in (count, number, duration, flops, percent, size)} == {"–"}


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0, 3, "0"), (5, 3, "5"), (999, 3, "999"), (1234, 3, "1.23K"), (57_012_345, 3, "57M"), (999_999, 3, "1M"),
     (100_000, 3, "100K"), (2.5e12, 3, "2.5T"), (-2000, 3, "-2K"), (0.00025, 3, "2.5e-4"), (1234, 4, "1.234K"),
     (0.25, 3, "0.25"), (1e-30, 3, "1e-30")],
)  # fmt: skip
def test_a_number_is_shortened_to_its_digits(value: float, digits: int, text: str) -> None:
    assert human(value, digits) == text


def test_costs_are_written_in_fitting_units() -> None:
    assert [units.hours(value) for value in (0.01234, 1.5, 1234.5, None)] == ["0.0123", "1.5", "1,234", "–"]
    assert [units.energy(value) for value in (0.0123, 12.34, 12_345, 680_400, None)] == [
        "12.3 Wh", "12.3 kWh", "12.3 MWh", "680 MWh", "–"
    ]  # fmt: skip
    assert [units.money(value, "EUR") for value in (1234.5, 0.5, 0.0123)] == ["1,234.50 EUR", "0.50 EUR", "0.012 EUR"]
    assert (units.money(2.0), units.money(None)) == ("2.00", "–")
    assert [units.dollars(value) for value in (1_340_000, 2.5, 0.0123, None)] == ["$1.34M", "$2.50", "$0.012", "–"]
    assert [units.days(value) for value in (1234.5, 2.345, None)] == ["1,234", "2.3", "–"]


def test_a_networks_size_is_told_without_and_with_its_head() -> None:
    assert network_words(63_873_632, 9_741_152, 6_801_024, 902_784) == (
        "57.1M parameters, 8.84M active per token; 63.9M and 9.74M with the multi-token-prediction head"
    )
    assert network_words(3e6, 1e6, 0, 0) == "3.00M parameters, 1.00M active per token; no multi-token-prediction head"
    assert network_words(57_012_736, 9_134_080) == "57.0M parameters, 9.13M active per token"
    assert network_words(None, None) == "– parameters"
