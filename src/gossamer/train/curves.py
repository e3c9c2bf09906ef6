"""A run's curves: from the events of ``metrics.jsonl`` to pictures, as SVG for the report and as PNG for a README.

Curves are thinned before they are drawn, so that a picture's size does not grow with the run. The extremes stay: a
spike of one step remains visible. Colours are drawn as those of PALETTE and, in an SVG, replaced by CSS variables of
the same names: the page decides what they look like by day and by night.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PALETTE",
    "Axis",
    "Chart",
    "Curve",
    "Picture",
    "curve",
    "draw_png",
    "draw_svg",
    "human",
    "smooth",
    "table",
    "thin",
]

Floats: TypeAlias = NDArray[np.float64]
Axis = Literal["tokens", "elapsed"]

# name -> (by day, by night). Blue and orange stay apart for colour-blind eyes, and in grey on paper.
PALETTE = {
    "train": ("#2563c9", "#78abff"),
    "validation": ("#d4550f", "#ff9d5c"),
    "ink": ("#1b2027", "#e8eaed"),
    "muted": ("#68717d", "#98a2ae"),
    "line": ("#e2e5ea", "#2c333c"),
}
_SLICES = 350  # of a raw curve: two points each, which is about a point a pixel
_FEW = 20  # points, below which an average says less than the values
_TIME_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class Curve:
    """One measured value over a run: four float64 arrays of one length [n]; ``values`` is NaN where not finite."""

    label: str
    color: str
    steps: Floats
    tokens: Floats
    elapsed: Floats  # seconds of training
    values: Floats
    smoothed: bool = False  # draw the values faintly, and their moving average
    dots: bool = False  # few and precious points: mark each

    def x(self, axis: Axis) -> Floats:
        return self.tokens if axis == "tokens" else self.elapsed


@dataclass(frozen=True)
class Chart:
    """Curves that share a picture."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    logarithmic: bool = False
    from_zero: bool = False
    skip_start: bool = False  # let the run's first few per cent leave the picture, to show the rest larger


@dataclass(frozen=True)
class Picture:
    """An SVG element; where its plot lies, as fractions of the picture; the x values at the plot's left and right."""

    svg: str
    left: float
    right: float
    top: float
    bottom: float
    low: float
    high: float


def curve(events: Iterable[dict[str, Any]], kind: str, key: str, label: str, color: str, **style: bool) -> Curve:
    """Collect ``key`` from the events of one kind, leaving out those without it or without a place on both axes."""
    names = ("step", "tokens", "elapsed", key)
    found = [event for event in events if event["event"] == kind and all(name in event for name in names)]
    rows = np.array([[_number(event[name]) for name in names] for event in found], dtype=np.float64).reshape(-1, 4)
    steps, tokens, elapsed, values = rows[np.isfinite(rows[:, :3]).all(axis=1)].T
    return Curve(label, color, steps, tokens, elapsed, values, **style)


def smooth(values: Floats) -> Floats:
    """Average over neighbours with Gaussian weights: float64 [n] -> [n], NaN where the value is NaN.

    The standard deviation is a hundredth of the curve, and 1.5 points at least. NaN neighbours do not count, and both
    ends average over what there is. Curves of fewer than 20 points come back as they are.
    """
    if len(values) < _FEW:
        return values
    sigma = max(len(values) / 100, 1.5)
    reach = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    weights = np.exp(-0.5 * (reach / sigma) ** 2)
    known = np.isfinite(values)
    middle = slice(len(reach) // 2, len(reach) // 2 + len(values))
    total = np.convolve(np.where(known, values, 0.0), weights)[middle]
    count = np.convolve(known.astype(np.float64), weights)[middle]
    result = np.full(len(values), np.nan)
    np.divide(total, count, out=result, where=known)
    return result


def thin(values: Floats, slices: int = _SLICES) -> NDArray[np.int64]:
    """Choose the points to draw: the lowest and the highest of each slice, the first and the last; all if they are few.

    Returns:
        Increasing indices into ``values``, at most ``2 * slices + 2`` of them.
    """
    if len(values) <= 2 * slices:
        return np.arange(len(values))
    chosen = {0, len(values) - 1}
    edges = np.linspace(0, len(values), slices + 1).astype(np.int64)
    for start, stop in itertools.pairwise(edges.tolist()):
        part = values[start:stop]
        if not np.isnan(part).all():
            chosen |= {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}
        else:
            chosen.add(start)  # keeps the gap a gap
    return np.array(sorted(chosen), dtype=np.int64)


def draw_svg(chart: Chart, axis: Axis, end: float, width: int, height: int) -> Picture:
    """Draw a chart with a transparent background, its text as text, its colours as CSS variables.

    Args:
        axis: what to draw the curves over.
        end: where that axis ends, in tokens or seconds; it begins at 0.
        width, height: of the picture, in CSS pixels at which its text is 12 pixels high.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # The salt makes identifiers differ between pictures of one page, and agree between two runs of this function.
    salt = f"{chart.title} {axis} {width}"
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 12}):
        figure = Figure(figsize=(width / 72, height / 72))  # matplotlib's SVG unit is 1/72 inch
        left, right, top, bottom = 50 / width, 1 - 14 / width, 10 / height, 1 - 42 / height
        axes = figure.add_axes((left, 1 - bottom, right - left, bottom - top))
        scale = _draw(axes, chart, axis, end)
        low, high = axes.get_xlim()
        return Picture(_svg(figure), left, right, top, bottom, low * scale, high * scale)


def draw_png(chart: Chart, end: float, title: str, subtitle: str) -> bytes:
    """Draw a chart over tokens with a headline and a legend on white, 1600 pixels wide: a picture for a README."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 10.5}):
        figure = Figure(figsize=(8, 4.4), facecolor="white")
        axes = figure.add_axes((0.075, 0.13, 0.9, 0.69))
        _draw(axes, chart, "tokens", end)
        axes.set_ylabel(chart.unit, color=PALETTE["muted"][0])
        # A dollar sign in a name is no formula.
        figure.text(0.022, 0.925, title, fontsize=15, fontweight="bold", color=PALETTE["ink"][0], parse_math=False)
        figure.text(0.022, 0.868, subtitle, color=PALETTE["muted"][0], parse_math=False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="upper right", labelcolor=PALETTE["ink"][0])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def table(curves: Sequence[Curve], points: int = 240) -> list[dict[str, Any]]:
    """Give the curves' values as a page looks them up: smoothed, at most ``points`` of each, in lists, None for NaN."""
    result = []
    for item in curves:
        values = smooth(item.values) if item.smoothed else item.values
        chosen = np.unique(np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(np.int64))
        columns = {"steps": item.steps, "tokens": item.tokens, "elapsed": item.elapsed, "values": values}
        label = f"{item.label}, averaged" if item.smoothed and len(values) >= _FEW else item.label
        lists = {name: [_brief(number) for number in column[chosen]] for name, column in columns.items()}
        result.append({"label": label, "color": item.color} | lists)
    return result


def human(value: float, keep_zeros: bool = False) -> str:
    """Write a count with three digits and a letter: 57012345 -> "57M" or, keeping zeros, "57.0M"; 1234 -> "1.23K"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= 0.9995 * size:  # 999,999 rounds to 1M, not to 1000K
            return (f"{value / size:#.3g}".rstrip(".") if keep_zeros else f"{value / size:.3g}") + letter
    return f"{value:.4g}"


def _draw(axes: Axes, chart: Chart, axis: Axis, end: float) -> float:
    """Fill a pair of axes and return how many tokens or seconds its x unit has."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    scale, unit = (1.0, "tokens") if axis == "tokens" else _time_scale(end)
    for item in chart.curves:
        _draw_curve(axes, item, item.x(axis) / scale)
    axes.set_xlabel(unit if axis == "tokens" else f"{unit} of training", color=PALETTE["muted"][0])
    axes.set_xlim(-0.015 * (end or 1.0) / scale, 1.015 * (end or 1.0) / scale)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value) if axis == "tokens" else f"{value:.4g}"))
    values = np.concatenate([item.values for item in chart.curves])
    positive = values[values > 0]
    if chart.logarithmic and len(positive):
        axes.set_yscale("log")
        spread = positive.max() / positive.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if spread < 200 else (1.0,), numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    if chart.skip_start:
        _skip_start(axes, chart)
    axes.grid(axis="y", color=PALETTE["line"][0], linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=PALETTE["muted"][0], pad=6)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(PALETTE["line"][0])
    return scale


def _draw_curve(axes: Axes, item: Curve, x: Floats) -> None:
    color = PALETTE[item.color][0]
    if np.isfinite(item.values).sum() == 1:
        axes.plot(x, item.values, "o", color=color, markersize=5, label=item.label)
        return
    values = item.values
    if item.smoothed and len(values) >= _FEW:
        chosen = thin(values)
        crowded = len(chosen) > _SLICES
        axes.plot(x[chosen], values[chosen], color=color, alpha=0.28 if crowded else 0.5, linewidth=0.9)
        values = smooth(values)
    chosen = thin(values)
    dots = "o" if item.dots and len(chosen) <= 60 else None
    axes.plot(x[chosen], values[chosen], color=color, linewidth=1.9, marker=dots, markersize=3.6, label=item.label)


def _skip_start(axes: Axes, chart: Chart) -> None:
    """Set the y limits by the run without its first three per cent, if what is left is enough to look at."""
    end = max((item.steps[-1] for item in chart.curves if len(item.steps)), default=0.0)
    later = [item.values[(item.steps > 0.03 * end) & np.isfinite(item.values)] for item in chart.curves]
    everything = np.concatenate(later)
    if len(everything) >= 10:
        low, high = everything.min(), everything.max()
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)


def _time_scale(seconds: float) -> tuple[float, str]:
    return next(((size, unit) for size, unit in _TIME_UNITS if seconds >= 2 * size), _TIME_UNITS[-1])


def _svg(figure: Figure) -> str:
    """Render a figure as an element for a page: no prolog, no fixed size, no style rules that reach other elements."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text, count=1)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    # A tenth of a pixel is finer than any screen: shorter coordinates halve the file.
    text = re.sub(r' d="([^"]*)"', lambda path: f' d="{_shorten(path[1])}"', text)
    text = text.replace("xlink:href", "href")
    for name, (day, _) in PALETTE.items():
        text = text.replace(day, f"var(--{name})")
    return re.sub(r">\s+<", "><", text).strip()


def _shorten(path: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", path).replace("\n", "").strip()


def _number(value: Any) -> float:
    """A measured number, NaN for anything else: null, infinities, text."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _brief(number: float) -> float | int | None:
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) and abs(number) < 1e15 else float(f"{number:.5g}")
