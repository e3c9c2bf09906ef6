"""The charts of a run's page: what was learned, how experts were used, and what it took."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from gossamer.report.chart import SERIES, Chart, Curve, Mark, Picture, curve, draw_svg, lookup_table
from gossamer.report.history import AXES, PLACES, Axis, Event, History, nth, numbers
from gossamer.units import is_number, size_unit

__all__ = [
    "NARROW",
    "WIDE",
    "ChartFigure",
    "draw_chart",
    "draw_pairs",
    "expert_charts",
    "learning_charts",
    "loss_chart",
    "machine_charts",
    "over_layers",
]

WIDE, LOW, NARROW = (1040, 330), (1040, 230), (440, 270)
"""Sizes of pictures in CSS pixels."""
MAX_LINEAR_RANGE = 30
"""Ratio of the largest to the smallest value beyond which a linear axis shows the largest alone."""
START = 0.03
"""Share of a run at its start in which losses fall so steeply that they hide the rest."""

# The primary validation set is orange wherever it appears.
_SET_COLORS = ("validation", "green", "pink", "gold", "sky", "train")


@dataclass(frozen=True)
class ChartFigure:
    """A chart with its pictures.

    Attributes:
        chart: the chart
        curves: those of its curves that were measured
        pictures: one picture for each axis, and others for a narrow page if the chart is wide
        wide: whether the chart spans the page
        table: what the page looks up under the pointer
    """

    chart: Chart
    curves: tuple[Curve, ...]
    pictures: list[dict[str, Any]]
    wide: bool
    table: dict[str, Any] = field(repr=False)


def draw_chart(chart: Chart, ends: dict[Axis, float], wide: tuple[int, int] | None = None) -> ChartFigure:
    """Draw a chart over every axis.

    Args:
        chart: the chart
        ends: where the axes end
        wide: size of the picture if it is to span the page
    """
    pictures: list[dict[str, Any]] = []
    for axis in AXES:
        for size, shape in ((wide, "wide"), (NARROW, "narrow")) if wide else ((NARROW, ""),):
            picture: Picture = draw_svg(chart, axis, ends[axis], *size)
            pictures.append({"axis": axis, "shape": shape, "picture": picture})
    curves = tuple(item for item in chart.curves if item.is_measured)
    marks = [{"text": mark.text} | {axis: mark.x(axis) for axis in AXES} for mark in chart.marks]
    shown = tuple(item for item in curves if not item.faint)
    return ChartFigure(chart, curves, pictures, wide is not None, {"curves": lookup_table(shown), "marks": marks})


def draw_pairs(charts: list[Chart], ends: dict[Axis, float]) -> list[ChartFigure]:
    """Draw charts two abreast; the last of an odd number spans the page."""
    last = len(charts) - 1 if len(charts) % 2 else None
    return [draw_chart(chart, ends, LOW if index == last else None) for index, chart in enumerate(charts)]


def loss_chart(history: History) -> Chart:
    """Return the chart of training loss and of validation loss on the primary set, with what interrupted the run."""
    evaluations = history.evaluations()
    primary = next(iter(evaluations), "")
    label = f"validation ({primary})" if len(evaluations) > 1 else "validation"
    curves = [
        curve(_train(history), "loss", "training", "train", smoothed=True),
        curve(evaluations.get(primary, []), "loss", label, "validation", dots=True),
    ]
    undone = _undone(history)
    if undone.is_measured:
        curves.insert(0, undone)
    return Chart("Loss", "nats per token", tuple(curves), marks=_marks(history), skip_start=START)


def learning_charts(history: History) -> list[Chart]:
    """Return the charts of what was learned beside the loss; only what was measured."""
    evaluations, train = history.evaluations(), _train(history)
    by_set = tuple(_by_set(evaluations, "loss")) if len(evaluations) > 1 else ()
    charts = [
        Chart("Validation loss", "nats per token", by_set, skip_start=START),
        Chart("Bits per byte", "validation", tuple(_by_set(evaluations, "bits_per_byte")), skip_start=START),
        Chart("Learning rate", "", (curve(train, "learning_rate", "learning rate", "train"),), from_zero=True),
        _gradient_norm(history),
        _single(history, "mtp_loss", "Multi-token prediction", "nats per token", "MTP loss", skip_start=START),
        Chart("Accepted drafts", "share, by the head's step", tuple(_acceptance(evaluations)), from_zero=True),
        _single(history, "z_loss", "z-loss", "", "z-loss", skip_start=START),
    ]
    return [chart for chart in charts if chart.is_measured]


def expert_charts(history: History) -> list[Chart]:
    """Return the charts of how the routers spread the tokens; only what was measured."""
    events = history.of("experts")

    dead = curve(events, over_layers("dead", sum), "dead experts", "train", dots=True)
    entropy = (
        curve(events, over_layers("entropy", fmean), "mean of the layers", "train", dots=True),
        curve(events, over_layers("entropy", min), "lowest layer", "validation", dots=True),
    )
    charts = [
        Chart("Dead experts", "without a token, all layers", (dead,),
              from_zero=True),
        Chart("Routing entropy", "1 is even", entropy),
        _single(history, "aux_loss", "Load balance", "auxiliary loss", "auxiliary loss", skip_start=START),
    ]  # fmt: skip
    return [chart for chart in charts if chart.is_measured]


def over_layers(key: str, reduce: Callable[[list[float]], float]) -> Callable[[Event], float | None]:
    """Return a function that reduces an event's list, one number per layer, to one number; only finite ones count."""

    def find(event: Event) -> float | None:
        finite = [value for value in numbers(event.get(key)) if math.isfinite(value)]
        return float(reduce(finite)) if finite else None

    return find


def machine_charts(history: History) -> list[Chart]:
    """Return the charts of speed, memory and checkpoints; only what was measured."""
    memory = [event["memory"] for event in _train(history) if is_number(event.get("memory"))]
    unit, name = size_unit(max(memory, default=0))
    peak = curve(_train(history), "memory", "peak memory", "train", scale=1 / unit)
    stalls = curve(history.of("checkpoint"), "seconds", "seconds", "train", dots=True, line=False)
    charts = [
        _single(history, "tokens_per_second", "Throughput", "tokens per second", "tokens/s"),
        _single(history, "mfu", "MFU", "share of the measured peak", "MFU", from_zero=True),
        Chart("Peak memory", name, (peak,), from_zero=True),
        Chart("Checkpoints", "seconds that training stood still", (stalls,), from_zero=True),
    ]
    return [chart for chart in charts if chart.is_measured]


def _train(history: History) -> list[Event]:
    return history.of("train")


def _single(history: History, key: str, title: str, unit: str, label: str, **style: Any) -> Chart:
    return Chart(title, unit, (curve(_train(history), key, label, "train", smoothed=True),), **style)


def _gradient_norm(history: History) -> Chart:
    """The chart of the gradient norm; over a wide range its axis is logarithmic, and says so."""
    norms = [
        event["grad_norm"] for event in _train(history) if is_number(event.get("grad_norm")) and event["grad_norm"] > 0
    ]
    wide = bool(norms) and max(norms) > MAX_LINEAR_RANGE * min(norms)
    unit = "before clipping, logarithmic axis" if wide else "before clipping"
    return _single(history, "grad_norm", "Gradient norm", unit, "gradient norm", logarithmic=wide, from_zero=not wide)


def _by_set(evaluations: dict[str, list[Event]], key: str) -> Iterator[Curve]:
    for index, (name, events) in enumerate(evaluations.items()):
        color, dashed = _SET_COLORS[index % len(_SET_COLORS)], index >= len(_SET_COLORS)
        yield curve(events, key, name if len(evaluations) > 1 else "validation", color, dots=True, dashed=dashed)


def _acceptance(evaluations: dict[str, list[Event]]) -> Iterator[Curve]:
    """The curves of the share of drafts that are accepted on the primary set, one for each step of the head."""
    events = [event for event in next(iter(evaluations.values()), []) if "mtp_acceptance" in event]
    for step in range(max((len(numbers(event["mtp_acceptance"])) for event in events), default=0)):
        color, dashed = SERIES[step % len(SERIES)], step >= len(SERIES)
        find = partial(_rate, step=step)
        yield curve(events, find, f"step {step + 1}", color, dots=True, dashed=dashed)


def _rate(event: Event, step: int) -> float:
    return nth(event["mtp_acceptance"], step)


def _undone(history: History) -> Curve:
    """The curve of training losses that rollbacks undid, with a gap wherever the steps go back."""
    events: list[Event] = []
    for event in history.undone:
        if event["event"] == "train":
            if events and event["step"] <= events[-1]["step"]:
                events.append(events[-1] | {"loss": None})
            events.append(event)
    return curve(events, "loss", "undone by a rollback", "muted", faint=True)


def _marks(history: History) -> tuple[Mark, ...]:
    return tuple(
        Mark(
            kind=event["event"],
            tokens=event["tokens"],
            elapsed=event["elapsed"],
            steps=event["step"],
            text=f"step {event['step']:,}: {event['what']}",
        )
        for event in history.incidents()
        if all(map(is_number, map(event.get, PLACES)))
    )
