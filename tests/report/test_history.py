"""A run's events as they are to be read: what was undone left out, and what has no place given one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.report.history import History, evenly, nth, numbers, read_history
from pages import START, evaluation, record, train


def read(folder: Path, *events: dict[str, Any]) -> History:
    record(folder, list(events))
    return read_history(folder)


def back(step: int, to: int) -> dict[str, Any]:
    return {"event": "rollback", "step": step, "to": to}


def test_rollbacks_undo_what_was_measured_after_their_aim(tmp_path: Path) -> None:
    history = read(
        tmp_path, START, *(train(step) for step in range(1, 7)), evaluation(6, 3.0), back(6, 3),
        *(train(step, loss=1.0) for step in range(4, 6)), back(5, 2), train(3, loss=0.5), {"event": "skip", "step": 5},
    )  # fmt: skip
    assert [event["step"] for event in history.of("train")] == [1, 2, 3]
    assert history.of("train")[-1]["loss"] == 0.5
    assert history.evaluations() == {}
    assert [event["step"] for event in history.undone] == [4, 5, 6, 6, 3, 4, 5]
    assert [event["to"] for event in history.of("rollback")] == [3, 2]
    assert history.state({})["step"] == 3
    assert not history.state({})["is_finished"]


def test_a_strange_rollback_undoes_nothing(tmp_path: Path) -> None:
    history = read(tmp_path, train(1), {"event": "rollback", "step": 1}, {"event": "rollback", "step": 1, "to": None})
    assert len(history.of("train")) == 1
    assert [event["what"] for event in history.incidents()] == ["rolled back"] * 2


def test_an_event_without_a_place_lies_between_its_neighbors(tmp_path: Path) -> None:
    skip, saved = {"event": "skip", "step": 3}, {"event": "checkpoint", "step": 2, "seconds": 1.0, "elapsed": None}
    experts = {"event": "experts", "step": 3, "tokens": 5}
    history = read(tmp_path, train(2), train(4), skip, saved, experts, {"event": "sample", "step": 9})
    places = {event["event"]: (event["tokens"], event["elapsed"]) for event in history.events}
    assert places["skip"] == (3 * 4096.0, 7.5)
    assert places["checkpoint"] == (2 * 4096.0, 5.0)
    assert places["experts"] == (5, 7.5)
    assert places["sample"] == (4 * 4096.0, 10.0), "after all that is known: at its end"


def test_held_out_sets_keep_their_order_and_the_last_word_on_a_step(tmp_path: Path) -> None:
    def on(name: str, step: int, loss: float, kind: str = "eval") -> dict[str, Any]:
        return evaluation(step, loss) | {"set": name, "event": kind}

    history = read(tmp_path, on("web", 1, 3.0), on("code", 1, 2.0), on("web", 2, 2.5), on("web", 2, 2.4, "end"))
    found = {
        name: [(event["step"], event["loss"]) for event in events] for name, events in history.evaluations().items()
    }
    assert found == {"web": [(1, 3.0), (2, 2.4)], "code": [(1, 2.0)]}
    assert list(read(tmp_path, evaluation(1, 3.0)).evaluations()) == ["held-out"]


def test_a_curve_is_of_measurements_over_as_much_text(tmp_path: Path) -> None:
    def over(step: int, tokens: int, kind: str = "eval") -> dict[str, Any]:
        return evaluation(step, float(tokens)) | {"event": kind, "eval_tokens": tokens}

    def steps(history: History) -> list[tuple[int, float]]:
        return [(event["step"], event["loss"]) for event in history.evaluations()["held-out"]]

    unlike = read(tmp_path, over(1, 1), over(2, 1), over(2, 9, "end"))
    assert steps(unlike) == [(1, 1.0), (2, 1.0)]
    assert unlike.measurements()["held-out"][-1]["loss"] == 9.0
    assert steps(read(tmp_path, over(1, 1), over(2, 1, "end"))) == [(1, 1.0), (2, 1.0)]
    assert steps(read(tmp_path, over(1, 1, "end"))) == [(1, 1.0)]
    assert steps(read(tmp_path, over(1, 1), over(2, 2), over(3, 2))) == [
        (2, 2.0),
        (3, 2.0),
    ], "changed by a resume"


def test_numbers_are_read_from_lists_and_alone() -> None:
    assert numbers(0.5) == [0.5]
    assert numbers(None) == []
    assert str(numbers([1, None, "x", True])) == "[1.0, nan, nan, nan]"
    assert nth([1.0, 2.0], 1) == 2.0
    assert nth([1.0], 1) != nth([1.0], 1)


@given(st.lists(st.integers(), max_size=300), st.integers(2, 50))
def test_a_spread_keeps_both_ends_and_the_order(items: list[int], most: int) -> None:
    places = evenly(range(len(items)), most)
    assert len(places) == min(len(items), most)
    assert places == sorted(set(places))
    assert places[:1] + places[-1:] == [*range(len(items))][:1] + [*range(len(items))][-1:]


@pytest.mark.parametrize("moment", [None, 1e300, -1e300, "x"])
def test_a_strange_time_does_no_harm(tmp_path: Path, moment: object) -> None:
    history = read(tmp_path, {"event": "resume", "step": 1, "time": moment})
    assert history.date() is None
    assert history.incidents()[0]["what"] == "resumed"


def test_what_was_only_planned_is_no_place_on_an_axis(tmp_path: Path) -> None:
    plan = {"event": "plan", "step": 0, "tokens": 10_000_000.0}
    record(tmp_path, [START, plan])
    assert read_history(tmp_path).newest("tokens") is None
    record(tmp_path, [START, plan, train(1), train(2)])
    history = read_history(tmp_path)
    assert history.ends() == {"tokens": 8192, "elapsed": 5.0, "steps": 2}
    assert history.newest("tokens") == 8192
