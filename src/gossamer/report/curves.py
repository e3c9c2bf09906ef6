"""Curves: from a run's events to arrays that can be drawn.

Curves are thinned before they are drawn, so that a picture's size does not grow with the run. The extremes stay: a
spike of one step remains visible.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gossamer.report.history import Axis, Event
from gossamer.units import known

__all__ = ["FEW", "PALETTE", "SERIES", "SLICES", "Chart", "Curve", "Mark", "brief", "curve", "smooth", "table", "thin"]

Floats: TypeAlias = NDArray[np.float64]

# name -> (by day, by night). The hues of curves stay apart for colour-blind eyes, the first two also in grey on paper.
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
# Colours of curves of one kind; from the seventh on the same again, dashed.
SERIES = ("train", "validation", "green", "pink", "gold", "sky")
SLICES = 350  # of a raw curve: two points each, which is about a point a pixel
FEW = 20  # points, below which an average says less than the values


@dataclass(frozen=True)
class Curve:
    """One measured value over a run: four float64 arrays of one length [n]; ``values`` is NaN where not finite."""

    label: str
    color: str
    steps: Floats
    tokens: Floats
    elapsed: Floats  # seconds of training
    values: Floats
    smoothed: bool = False  # draw the moving average of the values
    raw: bool = True  # below the average, draw the values faintly
    dots: bool = False  # few and precious points: mark each
    line: bool = True  # between the points
    dashed: bool = False
    faint: bool = False  # a thin line, of what is only history

    def x(self, axis: Axis) -> Floats:
        return {"tokens": self.tokens, "elapsed": self.elapsed, "steps": self.steps}[axis]

    @property
    def measured(self) -> bool:
        """Whether there is anything to draw."""
        return bool(np.isfinite(self.values).any())


@dataclass(frozen=True)
class Mark:
    """Something that happened at one moment: ``kind`` is skip, rollback or resume."""

    kind: str
    tokens: float
    elapsed: float
    steps: float
    text: str

    def x(self, axis: Axis) -> float:
        return {"tokens": self.tokens, "elapsed": self.elapsed, "steps": self.steps}[axis]


@dataclass(frozen=True)
class Chart:
    """Curves that share a picture."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    marks: tuple[Mark, ...] = ()
    logarithmic: bool = False
    from_zero: bool = False
    skip_start: float = 0.0  # share of the run that may leave the picture at its start, to show the rest larger

    @property
    def measured(self) -> bool:
        return any(item.measured for item in self.curves)


def curve(
    events: Iterable[Event],
    key: str | Callable[[Event], Any],
    label: str,
    color: str,
    scale: float = 1.0,
    **style: bool,
) -> Curve:
    """Collect a value, by its key or what a function finds, from the events that have it and a place on both axes."""
    find = (lambda event: event.get(key, math.nan)) if isinstance(key, str) else key
    places = ("step", "tokens", "elapsed")
    found = [event for event in events if (key in event if isinstance(key, str) else True)]
    found = [event for event in found if all(known(event.get(name)) for name in places)]
    rows = [[event[name] for name in places] + [_number(find(event)) * scale] for event in found]
    steps, tokens, elapsed, values = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return Curve(label, color, steps, tokens, elapsed, values, **style)


def smooth(values: Floats) -> Floats:
    """Average over neighbours with Gaussian weights: float64 [n] -> [n], NaN where the value is NaN.

    The standard deviation is a hundredth of the curve, and 1.5 points at least. NaN neighbours do not count, and both
    ends average over what there is. Curves of fewer than 20 points come back as they are.
    """
    if len(values) < FEW:
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


def table(curves: Sequence[Curve], points: int = 240) -> list[dict[str, Any]]:
    """Give the curves' values as a page looks them up: smoothed, at most ``points`` of each, in lists, None for NaN."""
    result = []
    for item in curves:
        values = smooth(item.values) if item.smoothed else item.values
        chosen = np.unique(np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(np.int64))
        columns = {"steps": item.steps, "tokens": item.tokens, "elapsed": item.elapsed, "values": values}
        label = f"{item.label}, averaged" if item.smoothed and item.raw and len(values) >= FEW else item.label
        lists = {name: [brief(number) for number in column[chosen].tolist()] for name, column in columns.items()}
        result.append({"label": label, "color": item.color} | lists)
    return result


def brief(number: float) -> float | int | None:
    """A number in few characters: five digits, None for what is not finite."""
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) and abs(number) < 1e15 else float(f"{number:.5g}")


def _number(value: Any) -> float:
    """A measured number, NaN for anything else: null, infinities, text."""
    return float(value) if known(value) else math.nan
