"""Curves: gathered from events, averaged, thinned and drawn without losing what matters."""

from __future__ import annotations

import math
import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.train.curves import PALETTE, Chart, Curve, curve, draw_png, draw_svg, human, smooth, table, thin

number = st.floats(-1e6, 1e6) | st.just(math.nan)


def make(values: list[float], **style: bool) -> Curve:
    steps = np.arange(len(values), dtype=np.float64)
    return Curve("training", "train", steps, 100 * steps, 2 * steps, np.array(values, dtype=np.float64), **style)


def test_a_curve_takes_its_kind_of_event_and_leaves_out_what_has_no_place() -> None:
    place = {"step": 1, "tokens": 8, "elapsed": 0.5}
    events = [
        {"event": "start", "step": 0, "loss": 7.0},
        {"event": "train", **place, "loss": 3.0},
        {"event": "train", **place, "other": 9.0},
        {"event": "train", **place, "tokens": None, "loss": 3.5},
        {"event": "train", "step": 2, "loss": 4.0},
        {"event": "train", **place, "loss": None},
        {"event": "train", **place, "loss": "text"},
        {"event": "train", **place, "loss": math.inf},
        {"event": "eval", **place, "loss": 5.0},
    ]
    found = curve(events, "train", "loss", "training", "train", smoothed=True)
    np.testing.assert_array_equal(found.values, [3.0, math.nan, math.nan, math.nan])
    np.testing.assert_array_equal(found.tokens, [8.0] * 4)
    assert found.smoothed
    assert not found.dots
    assert len(curve([], "train", "loss", "training", "train").values) == 0


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


def test_a_picture_fits_into_a_page() -> None:
    chart = Chart("Loss", "nats a token", (make([3.0, 2.0, math.nan, 1.0]), make([2.5] * 30, smoothed=True)))
    picture = draw_svg(chart, "tokens", 2900, 440, 270)
    root = ElementTree.fromstring(picture.svg)
    assert root.tag == "svg"
    assert root.get("viewBox") == "0 0 440 270"
    assert root.get("width") is None
    assert "<style" not in picture.svg
    assert "http" not in picture.svg
    assert "var(--train)" in picture.svg
    assert not any(day in picture.svg for day, _ in PALETTE.values())
    labels = [element.text for element in root.iter("text")]
    assert {"tokens", "0", "1K", "2K"} <= set(labels)
    assert picture.low < 0 < 2900 < picture.high
    assert 0 < picture.left < picture.right < 1
    assert 0 < picture.top < picture.bottom < 1


def test_the_time_axis_is_read_in_its_own_unit_and_given_in_seconds() -> None:
    picture = draw_svg(Chart("Loss", "", (make([3.0] * 9),)), "elapsed", 7200.0, 440, 270)
    assert "hours of training" in picture.svg
    assert picture.high == pytest.approx(1.015 * 7200)
    assert "seconds of training" in draw_svg(Chart("Loss", "", (make([3.0] * 9),)), "elapsed", 90.0, 440, 270).svg


def test_identifiers_do_not_clash_on_a_page_and_do_not_change_between_runs() -> None:
    chart, other = Chart("Loss", "", (make([3.0, 1.0], dots=True),)), Chart("Norm", "", (make([3.0, 1.0], dots=True),))
    first, second = (draw_svg(item, "tokens", 100, 440, 270).svg for item in (chart, other))
    identifiers = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (first, second)]
    assert identifiers[0]
    assert not identifiers[0] & identifiers[1]
    assert draw_svg(chart, "tokens", 100, 440, 270).svg == first


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [],
        [1.0],
        [0.0, 0.0],
        [math.nan],
        [-1.0, 0.0],
        [math.nan, 2.0, math.nan],
        [5.0] * 100,
        [1e-30, 1e30],
        [-0.5] * 40,
    ],
    ids=["none", "one", "zeros", "nan", "negative", "lonely", "constant", "huge", "constant below zero"],
)
def test_any_values_can_be_drawn(values: list[float], logarithmic: bool) -> None:
    curves = (make(values, smoothed=True),)
    chart = Chart("Loss", "", curves, logarithmic=logarithmic, from_zero=not logarithmic, skip_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ElementTree.fromstring(draw_svg(chart, "elapsed", 2.0 * max(len(values) - 1, 0), 440, 270).svg)


def test_the_start_of_a_run_does_not_squeeze_the_rest() -> None:
    values = [9.0, 8.0] + [2.0 + 1.0 / n for n in range(1, 99)]

    def labels(skip_start: bool) -> set[str | None]:
        svg = draw_svg(Chart("Loss", "", (make(values),), skip_start=skip_start), "tokens", 9900, 440, 270).svg
        return {element.text for element in ElementTree.fromstring(svg).iter("text")}

    assert "8" in labels(skip_start=False)
    assert "8" not in labels(skip_start=True)
    assert "2.5" in labels(skip_start=True)


def test_a_picture_does_not_grow_with_the_run() -> None:
    values = np.random.default_rng(0).normal(size=50_000).tolist()
    svg = draw_svg(Chart("Loss", "", (make(values, smoothed=True),)), "tokens", 5e6, 440, 270).svg
    assert len(svg) < 40_000


def test_png() -> None:
    png = draw_png(Chart("Loss", "nats a token", (make([3.0, 2.0]),)), 100.0, "costs $5 or $6", "")
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(png[16:20], "big") == 1600


def test_the_table_of_values_is_short_and_plain() -> None:
    (entry,) = table((make([math.nan, 1 / 3, 7.0] + [1.0] * 997),), points=100)
    assert len(entry["steps"]) == len(entry["values"]) == 100
    assert (entry["steps"][0], entry["steps"][-1], entry["tokens"][-1]) == (0, 999, 99900)
    assert entry["values"][0] is None
    assert table((make([1 / 3]),))[0]["values"] == [0.33333]
    assert table((make([]),))[0]["values"] == []
    assert table((make([1.0] * 20, smoothed=True),))[0]["label"] == "training, averaged"


@pytest.mark.parametrize(
    ("value", "plain", "zeros"),
    [(0, "0", "0"), (5, "5", "5"), (999, "999", "999"), (1234, "1.23K", "1.23K"), (57_012_345, "57M", "57.0M"),
     (999_999, "1M", "1.00M"), (100_000, "100K", "100K"), (2.5e12, "2.5T", "2.50T"), (-2000, "-2K", "-2.00K"),
     (0.00025, "0.00025", "0.00025")],
)  # fmt: skip
def test_human(value: float, plain: str, zeros: str) -> None:
    assert human(value) == plain
    assert human(value, keep_zeros=True) == zeros
