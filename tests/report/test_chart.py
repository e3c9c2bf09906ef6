"""Charts: curves are gathered, averaged and thinned without losing what matters; pictures can be drawn of anything."""

from __future__ import annotations

import math
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.report.chart import (
    PALETTE,
    SERIES,
    Chart,
    Curve,
    Mark,
    curve,
    draw_png,
    draw_svg,
    lookup_table,
    round_ticks,
    smooth,
    thin,
    x_scale,
    y_scale,
)
from gossamer.report.history import History
from gossamer.report.run_charts import learning_charts
from pages import train

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
    assert not curve(events[4:], "loss", "training", "train").is_measured


def test_a_curve_of_what_a_function_finds_in_its_unit() -> None:
    events = [{"event": "experts", "step": 1, "tokens": 8, "elapsed": 0.5, "dead": [1, 2]}]
    found = curve(events, lambda event: sum(event["dead"]), "dead", "train", scale=0.5)
    np.testing.assert_array_equal(found.values, [1.5])


def test_colors_of_curves_are_told_apart_by_day_and_by_night() -> None:
    for shade in (0, 1):
        assert len({colors[shade] for colors in PALETTE.values()}) == len(PALETTE)
        for name in SERIES:
            assert contrast(PALETTE[name][shade], ("#ffffff", "#171b21")[shade]) > 2.9, name


def contrast(color: str, background: str) -> float:
    """Return the contrast ratio of WCAG 2 (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio)."""

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
    (entry,) = lookup_table((make([math.nan, 1 / 3, 7.0] + [1.0] * 997),), max_points=100)
    assert len(entry["steps"]) == len(entry["values"]) == 100
    assert (entry["steps"][0], entry["steps"][-1], entry["tokens"][-1]) == (0, 999, 99900)
    assert entry["values"][0] is None
    assert lookup_table((make([1 / 3]),))[0]["values"] == [0.33333]
    assert lookup_table((make([]),))[0]["values"] == []
    assert lookup_table((make([1.0] * 20, smoothed=True),))[0]["label"] == "training, averaged"
    assert lookup_table((make([1.0] * 20, smoothed=True, raw=False),))[0]["label"] == "training"


def labels(chart: Chart, axis: str = "tokens", end: float = 9900.0) -> set[str | None]:
    svg = draw_svg(chart, axis, end, 440, 270).svg  # type: ignore[arg-type]
    return {element.text for element in ElementTree.fromstring(svg).iter("text")}


def test_a_picture_fits_into_a_page() -> None:
    chart = Chart("Loss", "nats per token", (make([3.0, 2.0, math.nan, 1.0]), make([2.5] * 30, smoothed=True)))
    picture = draw_svg(chart, "tokens", 2900, 440, 270)
    root = ElementTree.fromstring(picture.svg)
    assert root.tag == "svg"
    assert root.get("viewBox") == "0 0 440 270"
    assert root.get("width") is None
    assert "var(--train)" in picture.svg
    assert not any(day in picture.svg for day, _ in PALETTE.values())
    assert {"tokens", "0", "1K", "2K"} <= {element.text for element in root.iter("text")}
    assert picture.low < 0 < 2900 < picture.high
    assert 0 < picture.left < picture.right < 1
    assert 0 < picture.top < picture.bottom < 1


def test_points_lie_where_the_page_looks_for_them() -> None:
    picture = draw_svg(Chart("Loss", "", (make([3.0, 1.0], dots=True),)), "tokens", 100.0, 440, 270)
    plot = ElementTree.fromstring(picture.svg).find("svg")
    assert plot is not None
    first, last = plot.iter("circle")
    x = [(float(plot.get("x", 0)) + float(dot.get("cx", 0))) / 440 for dot in (first, last)]
    places = [
        picture.low + (at - picture.left) / (picture.right - picture.left) * (picture.high - picture.low) for at in x
    ]
    assert places == pytest.approx([0.0, 100.0], abs=0.05)
    assert float(first.get("cy", 0)) < float(last.get("cy", 0)), "the higher value is above"


def test_a_gap_interrupts_the_line() -> None:
    svg = draw_svg(Chart("Loss", "", (make([3.0, 2.0, math.nan, 1.0, 2.0]),)), "tokens", 400, 440, 270).svg
    line = next(path for path in ElementTree.fromstring(svg).iter("path") if path.get("stroke-width") == "2")
    assert line.get("d", "").count("M") == line.get("d", "").count("L") == 2
    assert "nan" not in svg


def test_the_time_axis_is_read_in_its_own_unit_and_given_in_seconds() -> None:
    chart = Chart("Loss", "", (make([3.0] * 9),))
    assert {"hours of training", "0.5", "2"} <= labels(chart, "elapsed", 7200.0)
    assert draw_svg(chart, "elapsed", 7200.0, 440, 270).high == pytest.approx(1.015 * 7200)
    assert {"seconds of training", "20"} <= labels(chart, "elapsed", 90.0)


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(
    "values",
    [[], [1.0], [0.0, 0.0], [math.nan], [-1.0, 0.0], [math.nan, 2.0, math.nan], [5.0] * 100, [1e-30, 1e30],
     [-0.5] * 40, [1e300, -1e300], [5e-324, 1e-310]],
    ids=["none", "one", "zeros", "nan", "negative", "lonely", "constant", "huge", "constant below zero", "wide",
         "tiny"],
)  # fmt: skip
def test_any_values_can_be_drawn(values: list[float], logarithmic: bool) -> None:
    curves = (make(values, smoothed=True),)
    chart = Chart("Loss", "", curves, logarithmic=logarithmic, from_zero=not logarithmic, skip_start=0.03)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = draw_svg(chart, "elapsed", 2.0 * max(len(values) - 1, 0), 440, 270).svg
    ElementTree.fromstring(svg)
    assert "nan" not in svg and "inf" not in svg


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9), st.integers(2, 10))
def test_ticks_are_round_and_few(low: float, width: float, most: int) -> None:
    high = low + width
    if not low < high:
        return
    ticks = round_ticks(low, high, most)
    slack = 1e-6 * (high - low) + 4 * math.ulp(max(abs(low), abs(high)))  # a tick is a rounded product
    assert len(ticks) <= most + 1
    assert all(low - slack <= tick <= high + slack for tick in ticks)


def test_labels_have_the_digits_that_tell_them_apart() -> None:
    scale = y_scale(Chart("Throughput", "", (make([123_400.0, 123_900.0]),)))
    names = [label for _, label in scale.ticks]
    assert len(names) >= 4
    assert len(set(names)) == len(names)
    assert all(len(name) <= 7 for name in names)
    assert [label for _, label in x_scale("tokens", 4e8).ticks] == ["0", "100M", "200M", "300M", "400M"]


@pytest.mark.parametrize(("low", "high"), [(0.33, 1.1), (1.0, 1.0), (0.5, 40.0), (1e-5, 1e5), (99.0, 101.0)])
def test_a_logarithmic_axis_has_ticks_wherever_it_lies(low: float, high: float) -> None:
    scale = y_scale(Chart("Norm", "", (make([low, high]),), logarithmic=True))
    places = scale.place(np.array([tick for tick, _ in scale.ticks]))
    assert 3 <= len(places) <= 8
    assert places.min() >= 0 and places.max() <= 1
    assert scale.place(0.0) != scale.place(0.0), "zero has no place"


def test_the_start_of_a_run_does_not_squeeze_the_rest() -> None:
    curves = (make([9.0, 8.0] + [2.0 + 1.0 / n for n in range(1, 99)]),)
    assert "8" in labels(Chart("Loss", "", curves))
    late = labels(Chart("Loss", "", curves, skip_start=0.03))
    assert "8" not in late
    assert "2.2" in late


def test_an_average_alone_sets_the_axis_by_itself() -> None:
    curves = (make([1.0] * 50 + [9.0] + [1.0] * 50, smoothed=True, raw=False),)
    assert y_scale(Chart("Throughput", "", curves)).high < 4


def test_history_does_not_set_the_axis() -> None:
    chart = Chart("Loss", "", (make([3.0, 2.0]), make([99.0, 98.0], faint=True)))
    assert y_scale(chart).high < 4


def test_marks_stand_above_the_plot_and_hundreds_do_not_pile_up() -> None:
    curves = (make([3.0, 2.0]),)
    plain = draw_svg(Chart("Loss", "", curves), "tokens", 100, 440, 270)
    marks = tuple(Mark("skip", 50 + index / 1000, 1.0, 5.0, "skipped") for index in range(200))
    marked = draw_svg(Chart("Loss", "", curves, marks), "tokens", 100, 440, 270)
    assert marked.top > plain.top
    assert 1 <= marked.svg.count("var(--alarm)") <= 2
    both = (Mark("rollback", 50.0, 1.0, 5.0, ""), Mark("resume", 50.0, 1.0, 5.0, ""))
    assert draw_svg(Chart("Loss", "", curves, both), "tokens", 100, 440, 270).svg.count("stroke-dasharray") == 2


def test_a_picture_does_not_grow_with_the_run() -> None:
    values = np.random.default_rng(0).normal(size=50_000).tolist()
    svg = draw_svg(Chart("Loss", "", (make(values, smoothed=True),)), "tokens", 5e6, 440, 270).svg
    assert len(svg) < 20_000


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_picture_is_a_png_of_the_wanted_width(logarithmic: bool) -> None:
    curves = (make([3.0, 2.0], dots=True), make([1.0]), make([4.0], faint=True), make([]))
    png = draw_png(Chart("Loss", "nats per token", curves, logarithmic=logarithmic), 100.0, "costs $5 or $6", "")
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(png[16:20], "big") == 1600


@pytest.mark.parametrize(("most", "logarithmic"), [(3.0, False), (300.0, True)])
def test_the_gradient_norm_has_a_straight_axis_or_says_that_it_has_none(most: float, logarithmic: bool) -> None:
    history = History([train(step, grad_norm=most if step == 1 else 0.5) for step in range(1, 9)], [])
    chart = next(chart for chart in learning_charts(history) if chart.title == "Gradient norm")
    assert (chart.logarithmic, "logarithmic" in chart.unit) == (logarithmic, logarithmic)
    assert y_scale(chart).logarithmic == logarithmic


def test_an_axis_of_steps() -> None:
    found = labels(Chart("Loss", "", (make([3.0, 1.0]),)), "steps", 800.0)
    assert {"steps", "0", "200", "800"} <= found
