"""Heat maps: a pixel a cell, of the color that stands for its load."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from gossamer.report.heatmap import HEAT, latest_load, layer_names, load_over_time
from gossamer.report.history import History


def event(step: int, **values: Any) -> dict[str, Any]:
    return {"event": "experts", "step": step, "tokens": 100 * step, "elapsed": 2.0 * step} | values


def pixels(url: str) -> NDArray[np.uint8]:
    head, _, content = url.partition(",")
    assert head == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA"))


def color(name: str, shade: int = 0) -> list[int]:
    return [*bytes.fromhex(HEAT[name][shade][1:]), 255]


def test_every_load_has_its_color_by_day_and_by_night() -> None:
    load = [[1.0, 4.0, 0.25, 0.0], [1000.0, 1e-9, 2.0, None]]
    found = latest_load(History([event(1, load=[[1.0]]), event(2, load=load)], []), ["0", "MTP"])
    assert found is not None
    (image,) = found.images
    for shade, url in enumerate((image.day, image.night)):
        seen = pixels(url)
        assert seen.shape == (2, 4, 4)
        mean, above, below, nothing = seen[0].tolist()
        assert nothing == color("heat-none", shade)
        for got, name in ((mean, "heat-2"), (above, "heat-3"), (below, "heat-1")):
            # Up to 64 times the mean there are six doublings: 4 is a third of the way, between the mean and heat-3.
            assert np.abs(np.array(got) - color(name, shade)).max() <= (3 if name == "heat-2" else 80)
        assert np.abs(seen[1, :2].astype(int) - [color("heat-4", shade), color("heat-0", shade)]).max() <= 3
        assert seen[1, 3, 3] == 0, "what was not measured is transparent"
    assert found.table["values"] == [[1, 4, 0.25, 0], [1000, 1e-09, 2, None]]
    assert found.table["rows"] == found.rows == ["0", "MTP"]
    assert "step 2" in found.unit
    assert [label for _, label in found.legend] == [
        "1/64",
        "1/32",
        "1/16",
        "1/8",
        "1/4",
        "1/2",
        *(f"{2**n}×" for n in range(7)),
    ]
    assert [place for place, _ in found.legend] == pytest.approx(np.linspace(0, 1, 13).tolist())


def test_over_time_every_moment_lies_at_its_place_of_the_axis() -> None:
    events = [event(step, max_over_mean=[1.0 if step < 8 else 4.0]) for step in (4, 6, 8, 10)]
    found = load_over_time(History(events, []), ["0"])
    assert found is not None
    assert [image.axis for image in found.images] == ["tokens", "elapsed", "steps"]
    assert found.table["steps"] == [4, 6, 8, 10]
    assert found.table["tokens"] == [400, 600, 800, 1000]
    for image in found.images:
        (row,) = pixels(image.day)
        low, high = found.table["ends"][image.axis]
        end = found.table[image.axis][-1]
        at = low + (high - low) * (np.arange(len(row)) + 0.5) / len(row)
        drawn = row[:, 3] > 0
        assert not drawn[at < 0.29 * end].any() and not drawn[at > 1.01 * end].any()
        assert drawn[(at > 0.31 * end) & (at < 0.99 * end)].all()
        assert (row[(at > 0.31 * end) & (at < 0.69 * end)] == color("heat-2")).all()
        assert np.abs(row[(at > 0.71 * end) & (at < 0.99 * end)].astype(int) - color("heat-4")).max() <= 3


@given(
    st.lists(st.lists(st.none() | st.floats(0, 1e6) | st.just(math.inf), max_size=6), max_size=6),
    st.lists(st.none() | st.floats(0, 1e6), max_size=5),
)
def test_whatever_was_measured_can_be_drawn(load: list[list[float | None]], peaks: list[float | None]) -> None:
    history = History([event(1, max_over_mean=peaks, load=load), event(3, max_over_mean=peaks[:2])], [])
    names = layer_names(None, 6)
    for found in (latest_load(history, names), load_over_time(history, names)):
        for image in found.images if found else ():
            assert pixels(image.day).shape == pixels(image.night).shape


def test_a_run_without_measured_loads_has_no_picture() -> None:
    for events in (
        [],
        [event(1)],
        [event(1, max_over_mean=[None], load=[[None]])],
        [event(1, max_over_mean=[], load=[])],
    ):
        history = History(events, [])
        assert latest_load(history, []) is None
        assert load_over_time(history, []) is None


def test_many_layers_are_labelled_as_far_as_there_is_room() -> None:
    load = [[1.0, 1.0]] * 49
    found = latest_load(History([event(1, load=load)], []), layer_names({"num_hidden_layers": 48}, 49))
    assert found is not None
    assert found.row_labels[-1][1] == "MTP"
    places = [place * found.height for place, _ in found.row_labels]
    assert min(np.diff(places)) >= 13.9


@pytest.mark.parametrize(
    ("model", "layers", "names"),
    [
        ({"num_hidden_layers": 3}, 4, ["0", "1", "2", "MTP"]),
        ({"num_hidden_layers": 3}, 3, ["0", "1", "2"]),
        ({"num_hidden_layers": 5, "mlp_only_layers": [1], "decoder_sparse_step": 2}, 2, ["3", "MTP"]),
        ({"num_hidden_layers": 3}, 2, ["0", "1"]),
        ({"num_hidden_layers": "x", "decoder_sparse_step": 0}, 2, ["0", "1"]),
        (["strange"], 1, ["0"]),
    ],
)
def test_layers_are_named_as_in_a_checkpoint(model: object, layers: int, names: list[str]) -> None:
    assert layer_names(model, layers) == names
