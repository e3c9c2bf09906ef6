"""Heat maps of the experts' load: one pixel per cell, as PNGs for day and night that the page stretches.

Colors stand for the load relative to the mean on a logarithmic scale: orange above it, blue below it, ink for none.
"""

from __future__ import annotations

import base64
import itertools
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.report.chart import Floats, Scale, round_ticks, short_number, x_scale
from gossamer.report.history import AXES, PLACES, Axis, Event, History, evenly, numbers, where
from gossamer.units import is_number

__all__ = ["HEAT", "HeatMap", "Image", "latest_load", "layer_names", "load_over_time"]

# Colors by day and by night, from far below the mean to far above it, and for no load at all.
HEAT = {
    "heat-0": ("#1d4a9c", "#a9c9ff"),
    "heat-1": ("#8db2ee", "#3c62a3"),
    "heat-2": ("#f0f1f3", "#242b34"),
    "heat-3": ("#f5a36b", "#a4582a"),
    "heat-4": ("#a83a04", "#ffc59c"),
    "heat-none": ("#1b2027", "#f7f8fa"),
}
_COLUMNS = 400  # pixels of a picture over time
_MAX_MOMENTS = 120  # evaluations in a picture over time
_NOTHING, _EMPTY = 254, 255  # palette entries: a load of zero; no measurement, transparent


@dataclass(frozen=True)
class Image:
    """A picture of a heat map.

    Attributes:
        axis: its horizontal axis; None if that is neither tokens, time nor steps
        day: the picture by day, as a data URL
        night: the picture by night, likewise
        ticks: ticks below it, each with its place as a fraction of the width and its label
        name: name of the horizontal axis
    """

    axis: Axis | None
    day: str
    night: str
    ticks: list[tuple[float, str]]
    name: str


@dataclass(frozen=True)
class HeatMap:
    """A heat map whose rows are layers.

    Attributes:
        title: title of the map
        unit: what a color stands for
        images: one picture for each horizontal axis
        rows: names of the layers
        row_labels: names that there is room for, each with its place as a fraction of the height
        height: height in CSS pixels
        legend: labels of the colors, each with its place as a fraction of their range
        above_only: whether the colors begin at the mean
        table: what the page looks up under the pointer
    """

    title: str
    unit: str
    images: list[Image]
    rows: list[str]
    row_labels: list[tuple[float, str]]
    height: int
    legend: list[tuple[float, str]]
    above_only: bool
    table: dict[str, Any]


def load_over_time(history: History, names: list[str]) -> HeatMap | None:
    """Return the map of each layer's most loaded expert relative to the mean, over the run; None if not measured."""
    moments = _moments(history.of("experts"), "max_over_mean")
    if not moments:
        return None
    values = _matrix([numbers(event["max_over_mean"]) for event in moments]).T  # [layers, moments]
    if not np.isfinite(values).any():
        return None
    top = _top(values)
    images = []
    for axis in AXES:
        scale = x_scale(axis, history.ends()[axis])
        at = _nearest(np.array([where(event, axis) for event in moments], dtype=np.float64), scale)
        pixels = np.where(at >= 0, _levels(values, top)[:, at], _EMPTY)
        images.append(
            _image(axis, pixels, [(float(scale.place(tick)), label) for tick, label in scale.ticks], scale.name)
        )
    table = {name: [short_number(float(event[key])) for event in moments] for name, key in
             (("steps", "step"), ("tokens", "tokens"), ("elapsed", "elapsed"))}  # fmt: skip
    ends = {axis: (scale.low, scale.high) for axis in AXES for scale in [x_scale(axis, history.ends()[axis])]}
    title = "Busiest expert over time"
    return _heat_map(title, "its load / the layer's mean", images, values, names, top, True, table | {"ends": ends})


def latest_load(history: History, names: list[str]) -> HeatMap | None:
    """Return the map of every expert's load at the newest measurement; None if it was not measured."""
    event = next((event for event in reversed(history.of("experts")) if _rows(event.get("load"))), None)
    if event is None:
        return None
    values = _matrix([numbers(row) for row in _rows(event["load"])])  # [layers, experts]
    if not np.isfinite(values).any():
        return None
    top, experts = _top(values), values.shape[1]
    ticks = [
        ((tick + 0.5) / experts, f"{tick:.0f}") for tick in round_ticks(0, experts, 8) if tick == int(tick) < experts
    ]
    images = [_image(None, _levels(values, top), ticks, "expert")]
    unit = f"load / the layer's mean, at step {event['step']:,}"
    return _heat_map("Load of every expert", unit, images, values, names, top, False, {})


def layer_names(model: Any, layers: int) -> list[str]:
    """Return the names of the layers with experts as in a checkpoint; their order if the configuration does not fit.

    Args:
        model: the section of that name in the configuration, or anything else
        layers: how many layers there are, that of the multi-token-prediction head included
    """
    settings = model if isinstance(model, dict) else {}
    total, step = settings.get("num_hidden_layers"), settings.get("decoder_sparse_step", 1)
    dense = settings.get("mlp_only_layers") or []
    if isinstance(total, int) and isinstance(step, int) and step > 0 and isinstance(dense, list):
        sparse = [str(layer) for layer in range(total) if layer not in dense and (layer + 1) % step == 0]
        if layers == len(sparse) + 1:
            return [*sparse, "MTP"]
        if layers == len(sparse):
            return sparse
    return [str(layer) for layer in range(layers)]


def _heat_map(
    title: str,
    unit: str,
    images: list[Image],
    values: Floats,
    names: list[str],
    top: float,
    above_only: bool,
    table: dict[str, Any],
) -> HeatMap:
    layers = len(values)
    names = names if len(names) == layers else [str(layer) for layer in range(layers)]
    row = min(max(200 / layers, 7), 22)
    every = math.ceil(14 / row)  # a label needs 14 pixels
    labeled = [layer for layer in range(0, layers, every) if layers - 1 - layer >= every] + [layers - 1]
    labels = [((layer + 0.5) / layers, names[layer]) for layer in labeled]
    powers = range(int(math.log2(top)) + 1)
    above = [(power / math.log2(top), f"{2**power}×") for power in powers]
    legend = above if above_only else [
        *((0.5 - 0.5 * place, f"1/{label[:-1]}") for place, label in above[:0:-1]),
        *((0.5 + 0.5 * place, label) for place, label in above),
    ]  # fmt: skip
    shown = [[short_number(float(f"{value:.3g}")) for value in row] for row in values.tolist()]
    return HeatMap(
        title,
        unit,
        images,
        names,
        labels,
        round(row * layers),
        legend,
        above_only,
        table | {"rows": names, "values": shown},
    )


def _moments(events: list[Event], key: str) -> list[Event]:
    """The newest measurement of each step that has a place on the axes, thinned evenly."""
    placed = {event["step"]: event for event in events if key in event and all(map(is_number, map(event.get, PLACES)))}
    return evenly(placed.values(), _MAX_MOMENTS)


def _rows(load: Any) -> list[Any]:
    return [row for row in load if isinstance(row, list) and row] if isinstance(load, list) else []


def _matrix(rows: Sequence[list[float]]) -> Floats:
    """A matrix of the rows, filled up with NaN to one length: float64 [rows, longest]."""
    return np.array(list(itertools.zip_longest(*rows, fillvalue=math.nan)), dtype=np.float64).T.reshape(len(rows), -1)


def _top(values: Floats) -> float:
    """The value where the colors end: a power of two, at least 4, which all but the outermost values stay within."""
    high = float(np.nanpercentile(values, 99.5))
    return 2.0 ** min(max(math.ceil(math.log2(max(high, 1.0)) - 1e-9), 2), 6)


def _levels(values: Floats, top: float) -> NDArray[np.int64]:
    """The palette entries of values: 127 is the mean, 0 and 253 are where the colors end."""
    logs = np.log2(values, where=values > 0, out=np.zeros(values.shape)) / math.log2(top)
    levels = np.round(127 + 127 * np.clip(logs, -1, 126 / 127)).astype(np.int64)
    levels[values <= 0] = _NOTHING
    levels[np.isnan(values)] = _EMPTY
    return levels


def _nearest(places: Floats, scale: Scale) -> NDArray[np.int64]:
    """The nearest moment to each column of pixels, -1 where the run has not been: int64 [columns]."""
    columns = scale.low + (scale.high - scale.low) * (np.arange(_COLUMNS) + 0.5) / _COLUMNS
    at = np.abs(columns[:, None] - places).argmin(axis=1)
    half = np.diff(places).max() / 2 if len(places) > 1 else 0.02 * (scale.high - scale.low)
    end = scale.high - 0.015 / 1.03 * (scale.high - scale.low)
    within = (columns >= max(0.0, places[0] - half)) & (columns <= min(end, places[-1] + half))
    return np.where(within, at, -1)


def _image(axis: Axis | None, pixels: NDArray[np.int64], ticks: list[tuple[float, str]], name: str) -> Image:
    day, night = ("data:image/png;base64," + base64.b64encode(_png(pixels, by)).decode() for by in (0, 1))
    return Image(axis, day, night, ticks, name)


def _png(pixels: NDArray[np.int64], shade: int) -> bytes:
    """A PNG of palette entries [height, width], by day (0) or by night (1)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = pixels.shape
    rows = np.pad(pixels.astype(np.uint8), ((0, 0), (1, 0)))  # each row begins with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    transparent = bytes([255] * _EMPTY + [0])
    content = (
        (b"IHDR", header),
        (b"PLTE", _colors(shade)),
        (b"tRNS", transparent),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in content) + chunk(b"IEND", b"")


def _colors(shade: int) -> bytes:
    """The 256 colors of a picture: red, green and blue, a byte each."""
    anchors = [bytes.fromhex(HEAT[f"heat-{index}"][shade][1:]) for index in range(5)]
    places = np.linspace(0, 254, 5)
    channels = [np.interp(np.arange(254), places, [anchor[channel] for anchor in anchors]) for channel in range(3)]
    nothing = bytes.fromhex(HEAT["heat-none"][shade][1:])
    return np.stack(channels, axis=1).round().astype(np.uint8).tobytes() + nothing + bytes(3)
