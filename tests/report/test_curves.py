"""Curves: gathered from events, averaged and thinned without losing what matters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.report.curves import PALETTE, SERIES, Curve, curve, smooth, table, thin

number = st.floats(-1e6, 1e6) | st.just(math.nan)


def make(values: list[float], **style: bool) -> Curve:
    steps = np.arange(len(values), dtype=np.float64)
    return Curve("training", "train", steps, 100 * steps, 2 * steps, np.array(values, dtype=np.float64), **style)


def test_a_curve_takes_the_events_that_have_a_value_and_leaves_out_what_has_no_place() -> None:
    place = {"event": "train", "step": 1, "tokens": 8, "elapsed": 0.5}
    events = [
        {**place, "loss": 3.0},
        {**place, "other": 9.0},
        {**place, "tokens": None, "loss": 3.5},
        {"event": "train", "step": 2, "loss": 4.0},
        {**place, "loss": None},
        {**place, "loss": "text"},
        {**place, "loss": math.inf},
    ]
    found = curve(events, "loss", "training", "train", smoothed=True)
    np.testing.assert_array_equal(found.values, [3.0, math.nan, math.nan, math.nan])
    np.testing.assert_array_equal(found.tokens, [8.0] * 4)
    assert found.smoothed
    assert not found.dots
    assert len(curve([], "loss", "training", "train").values) == 0
    assert not curve(events[4:], "loss", "training", "train").measured


def test_a_curve_of_what_a_function_finds_in_its_unit() -> None:
    events = [{"event": "experts", "step": 1, "tokens": 8, "elapsed": 0.5, "dead": [1, 2]}]
    found = curve(events, lambda event: sum(event["dead"]), "dead", "train", scale=0.5)
    np.testing.assert_array_equal(found.values, [1.5])


def test_colours_of_curves_are_told_apart_by_day_and_by_night() -> None:
    for shade in (0, 1):
        assert len({colors[shade] for colors in PALETTE.values()}) == len(PALETTE)
        for name in SERIES:
            assert contrast(PALETTE[name][shade], ("#ffffff", "#171b21")[shade]) > 2.9, name


def contrast(color: str, background: str) -> float:
    """The contrast ratio of WCAG 2: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""

    def luminance(text: str) -> float:
        parts = [int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(color), luminance(background)))
    return (light + 0.05) / (dark + 0.05)


@given(st.lists(number, max_size=400))
def test_an_average_stays_within_its_values_and_keeps_gaps(values: list[float]) -> None:
    given_values = np.array(values, dtype=np.float64)
    averaged = smooth(given_values)
    known = np.isfinite(given_values)
    np.testing.assert_array_equal(np.isfinite(averaged), known)
    if known.any():
        slack = 1e-9 * (1 + np.abs(given_values[known]).max())
        assert given_values[known].min() - slack <= averaged[known].min()
        assert averaged[known].max() <= given_values[known].max() + slack


def test_an_average_is_that_of_the_formula() -> None:
    values = np.random.default_rng(0).normal(size=300)
    values[50] = math.nan
    positions = np.arange(300)
    for at in (0, 49, 150, 299):
        weights = np.exp(-0.5 * ((positions - at) / 3.0) ** 2) * (np.abs(positions - at) <= 9) * np.isfinite(values)
        assert smooth(values)[at] == pytest.approx(np.nansum(weights * values) / weights.sum())


@given(st.lists(number, min_size=1, max_size=500), st.integers(1, 40))
def test_thinning_keeps_ends_and_extremes(values: list[float], slices: int) -> None:
    given_values = np.array(values)
    chosen = thin(given_values, slices)
    assert len(chosen) <= 2 * slices + 2
    assert (np.diff(chosen) > 0).all()
    assert (chosen[0], chosen[-1]) == (0, len(values) - 1)
    if np.isfinite(given_values).any():
        assert np.nanmin(given_values[chosen]) == np.nanmin(given_values)
        assert np.nanmax(given_values[chosen]) == np.nanmax(given_values)


def test_thinning_keeps_a_long_gap() -> None:
    values = np.ones(1000)
    values[400:600] = math.nan
    assert np.isnan(values[thin(values, 10)]).any()


def test_the_table_of_values_is_short_and_plain() -> None:
    (entry,) = table((make([math.nan, 1 / 3, 7.0] + [1.0] * 997),), points=100)
    assert len(entry["steps"]) == len(entry["values"]) == 100
    assert (entry["steps"][0], entry["steps"][-1], entry["tokens"][-1]) == (0, 999, 99900)
    assert entry["values"][0] is None
    assert table((make([1 / 3]),))[0]["values"] == [0.33333]
    assert table((make([]),))[0]["values"] == []
    assert table((make([1.0] * 20, smoothed=True),))[0]["label"] == "training, averaged"
    assert table((make([1.0] * 20, smoothed=True, raw=False),))[0]["label"] == "training"
