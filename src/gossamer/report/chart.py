"""Charts: curves from a run's events, their axes, and their pictures as SVG for a page and as PNG for a README.

Curves are thinned before they are drawn, so that the size of a picture does not grow with the run. The extremes stay:
a spike of one step remains visible. An SVG is drawn in the colors of the page, by day and by night.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from gossamer.report.history import Axis, Event
from gossamer.units import human, is_number

__all__ = [
    "MIN_AVERAGED",
    "PALETTE",
    "SERIES",
    "SLICES",
    "Chart",
    "Curve",
    "Floats",
    "Mark",
    "Picture",
    "Scale",
    "curve",
    "draw_png",
    "draw_svg",
    "lookup_table",
    "round_ticks",
    "short_number",
    "smooth",
    "thin",
    "x_scale",
    "y_scale",
]

Floats: TypeAlias = NDArray[np.float64]

# Each color by day and by night. The hues of curves stay apart for color-blind eyes, the first two also in gray.
PALETTE = {
    "train": ("#2563c9", "#78abff"),
    "validation": ("#d4550f", "#ff9d5c"),
    "green": ("#00805c", "#3ecfa3"),
    "pink": ("#b8478f", "#f08fc8"),
    "sky": ("#2a9fd6", "#7fd6ff"),
    "gold": ("#b08600", "#f0cf57"),
    "ink": ("#1b2027", "#e8eaed"),
    "muted": ("#68717d", "#98a2ae"),
    "line": ("#e2e5ea", "#2c333c"),
    "alarm": ("#b3261e", "#ff8f86"),
}
SERIES = ("train", "validation", "green", "pink", "gold", "sky")
"""Colors of curves of one kind; from the seventh curve on they come again, dashed."""
SLICES = 350
"""Slices that a raw curve is drawn in, of two points each, which is about a point per pixel."""
MIN_AVERAGED = 20
"""The fewest points that an average says more of than the values themselves."""


@dataclass(frozen=True)
class Curve:
    """One measured value over a run, in four float64 arrays of one length [n].

    Attributes:
        label: name of the curve
        color: its color, a key of `PALETTE`
        steps: optimizer steps
        tokens: tokens trained on
        elapsed: seconds of training
        values: the values, NaN where they are not finite
        smoothed: whether the moving average of the values is drawn
        raw: whether the values are drawn faintly below their average
        dots: whether each point is marked, since points are few and precious
        line: whether there is a line between the points
        dashed: whether the line is dashed
        faint: whether the line is thin, for what is only history
    """

    label: str
    color: str
    steps: Floats
    tokens: Floats
    elapsed: Floats
    values: Floats
    smoothed: bool = False
    raw: bool = True
    dots: bool = False
    line: bool = True
    dashed: bool = False
    faint: bool = False

    def x(self, axis: Axis) -> Floats:
        """Return the places of the points on an axis."""
        return {"tokens": self.tokens, "elapsed": self.elapsed, "steps": self.steps}[axis]

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to draw."""
        return bool(np.isfinite(self.values).any())


@dataclass(frozen=True)
class Mark:
    """Something that happened at one moment of a run.

    Attributes:
        kind: `skip`, `rollback` or `resume`
        tokens: tokens trained on by then
        elapsed: seconds of training by then
        steps: optimizer steps by then
        text: what happened, in words
    """

    kind: str
    tokens: float
    elapsed: float
    steps: float
    text: str

    def x(self, axis: Axis) -> float:
        """Return the place on an axis."""
        return {"tokens": self.tokens, "elapsed": self.elapsed, "steps": self.steps}[axis]


@dataclass(frozen=True)
class Chart:
    """Curves that share a picture.

    Attributes:
        title: title of the chart
        unit: unit of the values, or a remark
        curves: the curves
        marks: what happened on the way
        logarithmic: whether the vertical axis is logarithmic
        from_zero: whether the vertical axis begins at zero
        skip_start: share of the run that may leave the picture at its start, to show the rest larger
    """

    title: str
    unit: str
    curves: tuple[Curve, ...]
    marks: tuple[Mark, ...] = ()
    logarithmic: bool = False
    from_zero: bool = False
    skip_start: float = 0.0

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to draw."""
        return any(item.is_measured for item in self.curves)


def curve(
    events: Iterable[Event],
    key: str | Callable[[Event], Any],
    label: str,
    color: str,
    scale: float = 1.0,
    **style: bool,
) -> Curve:
    """Collect a value from the events that have it and a place on all axes.

    Args:
        events: the events
        key: the key of the value, or a function that finds it in an event
        label: name of the curve
        color: its color, a key of `PALETTE`
        scale: factor that the values are multiplied with
        **style: further fields of `Curve`
    """
    find = (lambda event: event.get(key, math.nan)) if isinstance(key, str) else key
    places = ("step", "tokens", "elapsed")
    found = [event for event in events if (key in event if isinstance(key, str) else True)]
    found = [event for event in found if all(is_number(event.get(name)) for name in places)]
    rows = [[event[name] for name in places] + [_number(find(event)) * scale] for event in found]
    steps, tokens, elapsed, values = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return Curve(label, color, steps, tokens, elapsed, values, **style)


def smooth(values: Floats) -> Floats:
    """Average over neighbors with Gaussian weights: float64 [n] -> [n], NaN where the value is NaN.

    The standard deviation is a hundredth of the curve, but at least 1.5 points. NaN neighbors do not count, and both
    ends average over what there is. Curves of fewer than `MIN_AVERAGED` points come back as they are.
    """
    if len(values) < MIN_AVERAGED:
        return values
    sigma = max(len(values) / 100, 1.5)
    reach = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    weights = np.exp(-0.5 * (reach / sigma) ** 2)
    finite = np.isfinite(values)
    middle = slice(len(reach) // 2, len(reach) // 2 + len(values))
    total = np.convolve(np.where(finite, values, 0.0), weights)[middle]
    count = np.convolve(finite.astype(np.float64), weights)[middle]
    result = np.full(len(values), np.nan)
    np.divide(total, count, out=result, where=finite)
    return result


def thin(values: Floats, slices: int = SLICES) -> NDArray[np.int64]:
    """Choose the points to draw: the lowest and the highest of each slice, the first and the last; all if they are few.

    Args:
        values: the values of a curve
        slices: slices of equal length that the curve is cut into

    Returns:
        Increasing indices into `values`, at most `2 * slices + 2` of them.
    """
    if len(values) <= 2 * slices:
        return np.arange(len(values))
    indices = {0, len(values) - 1}
    edges = np.linspace(0, len(values), slices + 1).astype(np.int64)
    for start, stop in itertools.pairwise(edges.tolist()):
        part = values[start:stop]
        if not np.isnan(part).all():
            indices |= {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}
        else:
            indices.add(start)  # a gap stays a gap
    return np.array(sorted(indices), dtype=np.int64)


def lookup_table(curves: Sequence[Curve], max_points: int = 240) -> list[dict[str, Any]]:
    """Return the values of curves as a page looks them up: smoothed, in lists, with None for NaN.

    Args:
        curves: the curves
        max_points: the largest number of points of a curve
    """
    result = []
    for item in curves:
        values = smooth(item.values) if item.smoothed else item.values
        indices = np.unique(np.linspace(0, len(values) - 1, min(max_points, len(values))).round().astype(np.int64))
        columns = {"steps": item.steps, "tokens": item.tokens, "elapsed": item.elapsed, "values": values}
        label = f"{item.label}, averaged" if item.smoothed and item.raw and len(values) >= MIN_AVERAGED else item.label
        lists = {
            name: [short_number(number) for number in column[indices].tolist()] for name, column in columns.items()
        }
        result.append({"label": label, "color": item.color} | lists)
    return result


def short_number(number: float) -> float | int | None:
    """Return a number that is written in few characters: of five digits, or None if it is not finite."""
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) and abs(number) < 1e15 else float(f"{number:.5g}")


def _number(value: Any) -> float:
    """A measured number; NaN for anything else, such as null, infinities or text."""
    return float(value) if is_number(value) else math.nan


# Axes.

_TIME_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class Scale:
    """One axis of a chart.

    Attributes:
        low: the value at its beginning
        high: the value at its end
        ticks: values with their labels
        name: what the axis is called
        logarithmic: whether it is logarithmic
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    name: str = ""
    logarithmic: bool = False

    def place(self, values: Floats | float) -> Floats:
        """Return where values lie, as fractions of the way from `low` to `high`; NaN where a value has no place."""
        values = np.asarray(values, dtype=np.float64)
        if not self.logarithmic:
            return (values - self.low) / (self.high - self.low)
        logs = np.log(values, where=values > 0, out=np.full(values.shape, np.nan))
        return (logs - math.log(self.low)) / (math.log(self.high) - math.log(self.low))


def x_scale(axis: Axis, end: float) -> Scale:
    """Return the horizontal axis of all charts of a page, in tokens, steps or seconds, from 0 to `end`."""
    end = end or 1.0
    unit, name = 1.0, str(axis)
    if axis == "elapsed":
        unit, name = next(((size, name) for size, name in _TIME_UNITS if end >= 2 * size), _TIME_UNITS[-1])
        name += " of training"
    ticks = round_ticks(0.0, end / unit, 6, (1.0, 2.0, 5.0, 10.0))
    labels = [f"{tick:.6g}" for tick in ticks] if axis == "elapsed" else _labels(ticks)
    placed = tuple((tick * unit, label) for tick, label in zip(ticks, labels, strict=True))
    return Scale(-0.015 * end, 1.015 * end, placed, name)


def y_scale(chart: Chart) -> Scale:
    """Return the vertical axis that fits the values of a chart."""
    values = _within(chart)
    if chart.logarithmic and (values > 0).any():
        return _logarithmic(values[values > 0])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    bottom = 0.0 if chart.from_zero and low >= 0 else low - margin
    ticks = round_ticks(bottom, high + margin, 6)
    return Scale(bottom, high + margin, tuple(zip(ticks, _labels(ticks), strict=True)))


def round_ticks(
    low: float, high: float, max_steps: int, factors: tuple[float, ...] = (1.0, 2.0, 2.5, 5.0, 10.0)
) -> list[float]:
    """Return round numbers from `low` to `high`, evenly spaced, at most `max_steps` + 1 of them."""
    width = (high - low) / max_steps
    power = 10.0 ** math.floor(math.log10(width))
    step = next(factor * power for factor in factors if factor * power >= width * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _logarithmic(values: Floats) -> Scale:
    values = np.clip(values, 1e-100, 1e100)  # what lies beyond cannot be divided
    low, high = float(values.min()), float(values.max())
    margin = (high / low) ** 0.05 if high > low * 1.001 else 1.05
    low, high = low / margin, high * margin
    factors = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
    if len(ticks) < 4 and high / low < 10:
        ticks = [tick for tick in round_ticks(low, high, 5) if tick > 0]
    ticks = ticks[:: math.ceil(len(ticks) / 8)]
    return Scale(low, high, tuple(zip(ticks, _labels(ticks), strict=True)), logarithmic=True)


def _within(chart: Chart) -> Floats:
    """The finite values that the vertical axis must show, without the run's start if that may leave the picture."""
    shown = [item for item in chart.curves if not item.faint]
    values = [smooth(item.values) if item.smoothed and not item.raw else item.values for item in shown]
    everything = [drawn[np.isfinite(drawn)] for drawn in values]
    if chart.skip_start:
        begin = chart.skip_start * max((item.steps[-1] for item in shown if len(item.steps)), default=0.0)
        later = [drawn[(item.steps > begin) & np.isfinite(drawn)] for item, drawn in zip(shown, values, strict=True)]
        if sum(map(len, later)) >= 10:  # otherwise too little is left
            everything = later
    return np.concatenate([np.empty(0), *everything])


def _labels(ticks: list[float]) -> list[str]:
    """Labels of ticks, with as few digits as tell them apart."""
    for digits in range(3, 8):
        labels = [human(tick, digits) for tick in ticks]
        if len(set(labels)) == len(labels):
            break
    return labels if ticks else []


# Pictures.

_MARK_COLORS = {"skip": "alarm", "rollback": "pink", "resume": "muted"}
# A triangle of the mark's own, its point on the line: down for a skipped update, back, on.
_MARK_SHAPES = {"skip": "l-4 -7h8z", "rollback": "l7 -4v8z", "resume": "l-7 -4v8z"}
_MARK_SPACE = 14  # pixels above the plot that marks stand in
_FAR = 2.0  # heights of the plot beyond which a point's exact place no longer shows


@dataclass(frozen=True)
class Picture:
    """An SVG picture of a chart, and where its plot lies.

    Attributes:
        svg: the element
        left: left side of the plot, as a fraction of the picture's width; so is `right`
        right: right side of the plot
        top: upper side of the plot, as a fraction of the picture's height; so is `bottom`
        bottom: lower side of the plot
        low: value of the horizontal axis at the left side
        high: value of the horizontal axis at the right side
    """

    svg: Markup
    left: float
    right: float
    top: float
    bottom: float
    low: float
    high: float


def draw_svg(chart: Chart, axis: Axis, end: float, width: int, height: int) -> Picture:
    """Draw a chart on a transparent background; its colors are CSS variables with the names of `PALETTE`.

    Args:
        chart: the chart
        axis: the horizontal axis
        end: the end of that axis, in tokens, steps or seconds; it begins at 0
        width: width of the picture in CSS pixels, at which its text is 12 pixels high
        height: height of the picture, likewise
    """
    across, up = x_scale(axis, end), y_scale(chart)
    left, right, top, bottom = 50, width - 14, 10 + (_MARK_SPACE if chart.marks else 0), height - 42
    wide, high = right - left, bottom - top
    parts = [f'<svg viewBox="0 0 {width} {height}" font-size="12" fill="none" aria-hidden="true">']
    for value, label in up.ticks:
        y = f"{top + high * (1 - float(up.place(value))):.1f}"
        parts.append(f'<path d="M{left} {y}H{right}" stroke="var(--line)"/>{_text(left - 7, y, label, "end", 4)}')
    parts.append(f'<path d="M{left} {bottom}H{right}" stroke="var(--muted)" stroke-opacity=".6"/>')
    for value, label in across.ticks:
        parts.append(_text(f"{left + wide * float(across.place(value)):.1f}", bottom + 19, label, "middle"))
    parts.append(_text((left + right) / 2, height - 5, across.name, "middle"))
    # An inner picture cuts off what leaves the plot.
    parts.append(f'<svg x="{left}" y="{top}" width="{wide}" height="{high}" stroke-linejoin="round">')
    for item in chart.curves:
        parts.append(_curve(item, wide * across.place(item.x(axis)), up, high))
    parts.append("</svg>")
    parts += _marks(chart.marks, axis, across, left, wide, top, bottom)
    parts.append("</svg>")
    place = left / width, right / width, top / height, bottom / height
    return Picture(Markup("".join(parts)), *place, across.low, across.high)


def _text(x: float | str, y: float | str, text: str, anchor: str, down: int = 0) -> str:
    shift = f' dy="{down}"' if down else ""
    return f'<text x="{x}" y="{y}"{shift} text-anchor="{anchor}" fill="var(--muted)">{escape(text)}</text>'


def _curve(item: Curve, x: Floats, up: Scale, high: int) -> str:
    def path(values: Floats, style: str) -> str:
        points = thin(values)
        return f'<path d="{_path(x[points], y(values[points]))}" {style}/>'

    def y(values: Floats) -> Floats:
        return high * np.clip(1 - up.place(values), -_FAR, 1 + _FAR)

    color = f'stroke="var(--{item.color})"'
    finite = np.isfinite(item.values)
    if finite.sum() == 1:
        return _dots(x[finite], y(item.values[finite]), item.color, 4)
    if item.faint:
        return path(item.values, f'{color} stroke-opacity=".55"')
    values, parts = item.values, []
    if item.smoothed and len(values) >= MIN_AVERAGED:
        crowded = len(thin(values)) > SLICES
        if item.raw:
            parts.append(path(values, f'{color} stroke-opacity="{0.28 if crowded else 0.5}"'))
        values = smooth(values)
    dash = ' stroke-dasharray="7 4"' if item.dashed else ""
    if item.line:
        parts.append(path(values, f'{color} stroke-width="2"{dash}'))
    if not item.line or (item.dots and len(values) <= 60):
        parts.append(_dots(x, y(values), item.color, 2.6))
    return "".join(parts)


def _path(x: Floats, y: Floats) -> str:
    """Lines from point to point, interrupted where y is NaN; a tenth of a pixel is finer than any screen."""
    words, pen = [], "M"
    for across, down in zip(x.tolist(), y.tolist(), strict=True):
        if down != down:
            pen = "M"
            continue
        words.append(f"{pen}{across:.1f} {down:.1f}")
        pen = "L"
    return "".join(words)


def _dots(x: Floats, y: Floats, color: str, radius: float) -> str:
    places = [(across, down) for across, down in zip(x.tolist(), y.tolist(), strict=True) if down == down]
    circles = "".join(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="{radius}"/>' for across, down in places)
    return f'<g fill="var(--{color})">{circles}</g>'


def _marks(
    marks: tuple[Mark, ...], axis: Axis, across: Scale, left: int, wide: int, top: int, bottom: int
) -> list[str]:
    parts, occupied = [], set()
    for mark in marks:
        x = left + wide * float(across.place(mark.x(axis)))
        if (mark.kind, round(x / 3)) in occupied:  # hundreds of skipped steps need not be hundreds of triangles
            continue
        occupied.add((mark.kind, round(x / 3)))
        color, middle = _MARK_COLORS[mark.kind], top - 3 if mark.kind == "skip" else top - 7
        parts.append(f'<path d="M{x:.1f} {middle}{_MARK_SHAPES[mark.kind]}" fill="var(--{color})"/>')
        if mark.kind != "skip":
            line = f'M{x:.1f} {top - 11}V{bottom}" stroke="var(--{color})" stroke-dasharray="2 3"'
            parts.append(f'<path d="{line}/>')
    return parts


def draw_png(chart: Chart, end: float, title: str, subtitle: str) -> bytes:
    """Draw a chart over tokens with a headline and a legend on white, 1600 pixels wide: a picture for a README.

    Args:
        chart: the chart
        end: the end of the horizontal axis, in tokens
        title: the headline
        subtitle: the line below it
    """
    import matplotlib
    from matplotlib.figure import Figure

    ink, muted, line = (PALETTE[name][0] for name in ("ink", "muted", "line"))
    across, up = x_scale("tokens", end), y_scale(chart)
    with matplotlib.rc_context({"font.size": 10.5}):
        figure = Figure(figsize=(8, 4.4), facecolor="white")
        axes = figure.add_axes((0.075, 0.13, 0.9, 0.69))
        if up.logarithmic:
            axes.set_yscale("log")
            axes.minorticks_off()
        for item in chart.curves:
            color, values = PALETTE[item.color][0], item.values
            if item.faint or (item.smoothed and len(values) >= MIN_AVERAGED):
                axes.plot(item.tokens, values, color=color, alpha=0.3, linewidth=0.7)
            if not item.faint:
                drawn = smooth(values) if item.smoothed else values
                single = np.isfinite(values).sum() == 1
                dots = "o" if single or (item.dots and len(values) <= 60) else None
                axes.plot(item.tokens, drawn, color=color, linewidth=1.9, marker=dots, markersize=3.6, label=item.label)
        axes.set_xlim(across.low, across.high)
        axes.set_ylim(up.low, up.high)
        axes.set_xticks([tick for tick, _ in across.ticks], [label for _, label in across.ticks])
        axes.set_yticks([tick for tick, _ in up.ticks], [label for _, label in up.ticks])
        axes.set_xlabel(across.name, color=muted)
        axes.set_ylabel(chart.unit, color=muted)
        axes.grid(axis="y", color=line, linewidth=1)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, colors=muted, pad=6)
        for name, spine in axes.spines.items():
            spine.set_visible(name == "bottom")
            spine.set_color(line)
        # A dollar sign in a name is no formula.
        figure.text(0.022, 0.925, title, fontsize=15, fontweight="bold", color=ink, parse_math=False)
        figure.text(0.022, 0.868, subtitle, color=muted, parse_math=False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="upper right", labelcolor=ink)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()
