"""The axes of a chart: from where to where, and which values are written beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gossamer.report.curves import Chart, Floats, smooth
from gossamer.report.history import Axis
from gossamer.units import human

__all__ = ["Scale", "nice", "x_scale", "y_scale"]

_TIME_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class Scale:
    """One axis: the values at its two ends, its ticks with their labels, and what it is called."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    name: str = ""
    logarithmic: bool = False

    def place(self, values: Floats | float) -> Floats:
        """Where values lie, as fractions of the way from ``low`` to ``high``; NaN for those that have no place."""
        values = np.asarray(values, dtype=np.float64)
        if not self.logarithmic:
            return (values - self.low) / (self.high - self.low)
        logs = np.log(values, where=values > 0, out=np.full(values.shape, np.nan))
        return (logs - math.log(self.low)) / (math.log(self.high) - math.log(self.low))


def x_scale(axis: Axis, end: float) -> Scale:
    """The horizontal axis of all charts of a page, in tokens, steps or seconds, from 0 to the page's end."""
    end = end or 1.0
    unit, name = 1.0, str(axis)
    if axis == "elapsed":
        unit, name = next(((size, name) for size, name in _TIME_UNITS if end >= 2 * size), _TIME_UNITS[-1])
        name += " of training"
    ticks = nice(0.0, end / unit, 6, (1.0, 2.0, 5.0, 10.0))
    labels = [f"{tick:.6g}" for tick in ticks] if axis == "elapsed" else _labels(ticks)
    placed = tuple((tick * unit, label) for tick, label in zip(ticks, labels, strict=True))
    return Scale(-0.015 * end, 1.015 * end, placed, name)


def y_scale(chart: Chart) -> Scale:
    """The vertical axis of a chart, by its values."""
    values = _within(chart)
    if chart.logarithmic and (values > 0).any():
        return _logarithmic(values[values > 0])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    bottom = 0.0 if chart.from_zero and low >= 0 else low - margin
    ticks = nice(bottom, high + margin, 6)
    return Scale(bottom, high + margin, tuple(zip(ticks, _labels(ticks), strict=True)))


def nice(low: float, high: float, most: int, factors: tuple[float, ...] = (1.0, 2.0, 2.5, 5.0, 10.0)) -> list[float]:
    """At most ``most + 1`` round numbers from ``low`` to ``high``, evenly spaced."""
    width = (high - low) / most
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
        ticks = [tick for tick in nice(low, high, 5) if tick > 0]
    ticks = ticks[:: math.ceil(len(ticks) / 8)]
    return Scale(low, high, tuple(zip(ticks, _labels(ticks), strict=True)), logarithmic=True)


def _within(chart: Chart) -> Floats:
    """The values that the vertical axis must show: finite, and without the run's start if that may leave."""
    shown = [item for item in chart.curves if not item.faint]
    values = [smooth(item.values) if item.smoothed and not item.raw else item.values for item in shown]
    everything = [drawn[np.isfinite(drawn)] for drawn in values]
    if chart.skip_start:
        begin = chart.skip_start * max((item.steps[-1] for item in shown if len(item.steps)), default=0.0)
        later = [drawn[(item.steps > begin) & np.isfinite(drawn)] for item, drawn in zip(shown, values, strict=True)]
        if sum(map(len, later)) >= 10:  # else too little is left to look at
            everything = later
    return np.concatenate([np.empty(0), *everything])


def _labels(ticks: list[float]) -> list[str]:
    """Write ticks with as few digits as tell them apart."""
    for digits in range(3, 8):
        labels = [human(tick, digits) for tick in ticks]
        if len(set(labels)) == len(labels):
            break
    return labels if ticks else []
