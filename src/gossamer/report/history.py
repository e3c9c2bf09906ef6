"""The events of a run as a page reads them: without what a rollback undid, and each with its place on the axes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from gossamer.run.metrics import read_metrics
from gossamer.units import is_number, number

__all__ = [
    "AXES",
    "PLACES",
    "Axis",
    "Event",
    "History",
    "best",
    "best_before",
    "evenly",
    "measured_over",
    "nth",
    "numbers",
    "read_history",
    "where",
]

Event: TypeAlias = dict[str, Any]
Axis = Literal["tokens", "elapsed", "steps"]
AXES: tuple[Axis, ...] = ("tokens", "elapsed", "steps")
PLACES = ("tokens", "elapsed")
"""Keys of an event's place beside its step; either may be missing."""

# A rollback undoes these; the rest, such as the rollback itself, has happened all the same.
_MEASURED = frozenset({"train", "eval", "end", "experts", "sample"})
# These only tell what is meant to come.
_PLANNED = frozenset({"start", "plan"})
# These may come without tokens or time of training, and get them from their step.
_PLACED = frozenset({"experts", "sample", "checkpoint", "skip", "rollback", "resume"})
_UNNAMED = "held-out"


@dataclass(frozen=True)
class History:
    """The events of a run; those that a rollback undid are kept apart.

    Attributes:
        events: the events in the order of their writing, without those that were undone
        undone: what was measured and then undone by a rollback
    """

    events: list[Event]
    undone: list[Event]

    def of(self, *kinds: str) -> list[Event]:
        """Return the events of these kinds."""
        return [event for event in self.events if event["event"] in kinds]

    def last(self, *kinds: str) -> Event:
        """Return the newest event of these kinds, or an empty one."""
        return next((event for event in reversed(self.events) if event["event"] in kinds), {})

    def newest(self, key: str) -> Any:
        """Return the newest finite value of `key` in any event; None if there is none."""
        return next((event[key] for event in reversed(self._past) if is_number(event.get(key))), None)

    def ends(self) -> dict[Axis, float]:
        """Return where the axes end, the same for all charts: a page is read along a common axis."""
        return {
            axis: max((at for event in self._past if is_number(at := where(event, axis))), default=0.0) for axis in AXES
        }

    @property
    def _past(self) -> list[Event]:
        """The events of what has happened."""
        return [event for event in self.events if event["event"] not in _PLANNED]

    def measurements(self) -> dict[str, list[Event]]:
        """Return every measurement on validation text by the name of its set, primary set first, newest last."""
        found: dict[str, list[Event]] = {}
        for event in self.of("eval", "end"):
            if "loss" in event:
                found.setdefault(str(event.get("set", _UNNAMED)), []).append(event)
        return found

    def evaluations(self) -> dict[str, list[Event]]:
        """Return the measurements that make a curve, one per step, all over as much text as the newest `eval`.

        The `end` of a run usually reads more, so that its loss is of other text; where it does not, it is one of them.
        """
        found: dict[str, list[Event]] = {}
        for name, events in self.measurements().items():
            newest = next((event for event in reversed(events) if event["event"] == "eval"), events[-1])
            comparable = [event for event in events if event.get("eval_tokens") == newest.get("eval_tokens")]
            found[name] = list({event["step"]: event | {"event": "eval"} for event in comparable}.values())
        return found

    def date(self) -> str | None:
        """Return when the run began; None if that is not known."""
        return _date(next((event["time"] for event in self.events if is_number(event.get("time"))), None))

    def state(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return how far the run is; it is finished if nothing was trained after its newest `end`.

        Args:
            config: the configuration of the run
        """
        is_finished = self.last("end", "train", "resume", "rollback").get("event") == "end"
        # Other events may belong to a course that a rollback left.
        step = max((event["step"] for event in self.of(*_MEASURED, "resume")), default=0)
        steps: Any = self.last("start").get("steps")
        training = config.get("training")
        if isinstance(training, dict) and any(training.get(key) for key in ("budget", "seconds", "tokens")):
            steps = None  # these decide before the number of steps does
        elif isinstance(training, dict) and is_number(training.get("steps")):
            steps = training["steps"]  # the newer figure: a resume may have prolonged the run
        share = min(step / steps, 1.0) if is_number(steps) and steps > 0 else None
        return {
            "is_finished": is_finished,
            "step": step,
            "steps": steps,
            "share": share,
            "resumes": len(self.of("resume")),
        }

    def incidents(self) -> list[Event]:
        """Return skipped updates, rollbacks and resumes, each with `what` it was in words; the newest last."""
        found = self.of("skip", "rollback", "resume")
        return [event | {"what": _in_words(event)} for event in sorted(found, key=lambda event: event["step"])]


def read_history(run: Path) -> History:
    """Read the events of a run.

    Raises:
        UserError: the folder has no `metrics.jsonl`, or a damaged one.
    """
    live: list[Event] = []
    undone: list[Event] = []
    for event in read_metrics(run):
        if event["event"] == "rollback" and is_number(event.get("to")):
            left = [old for old in live if old["event"] in _MEASURED and old["step"] > event["to"]]
            undone += left
            live = [old for old in live if not (old["event"] in _MEASURED and old["step"] > event["to"])]
        live.append(event)
    return History(_placed(live), undone)


def where(event: Event, axis: Axis) -> Any:
    """Return the place of an event on an axis; None if it is not known."""
    return event.get("step" if axis == "steps" else axis)


def numbers(value: Any) -> list[float]:
    """Return a list of measured numbers, NaN where one was not finite; one number makes a list of one."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    return [float(item) if is_number(item) else float("nan") for item in items]


def nth(value: Any, index: int) -> float:
    """Return one number of a list as `numbers` gives it; NaN if the list is shorter."""
    found = numbers(value)
    return found[index] if index < len(found) else float("nan")


def _placed(events: list[Event]) -> list[Event]:
    """Give events that lack them their tokens and time of training, interpolated between the steps around."""
    import numpy as np

    known_places = [event for event in events if all(is_number(event.get(axis)) for axis in PLACES)]
    if not known_places:
        return events
    by_step = {0: dict.fromkeys(PLACES, 0)} | {event["step"]: event for event in known_places}
    steps = sorted(by_step)
    columns = {axis: [by_step[step][axis] for step in steps] for axis in PLACES}

    def place(event: Event) -> Event:
        between = {axis: float(np.interp(event["step"], steps, column)) for axis, column in columns.items()}
        return between | {name: value for name, value in event.items() if name not in PLACES or is_number(value)}

    return [place(event) if event["event"] in _PLACED else event for event in events]


def _in_words(event: Event) -> str:
    if event["event"] == "skip":
        return f"update skipped: {event['reason']}" if event.get("reason") else "update skipped"
    if event["event"] == "rollback":
        return f"rolled back to step {event['to']:,}" if is_number(event.get("to")) else "rolled back"
    moment = _date(event.get("time"))
    return f"resumed on {moment}" if moment else "resumed"


def _date(moment: Any) -> str | None:
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC") if is_number(moment) else None
    except (OverflowError, ValueError, OSError):  # no time that a calendar has
        return None


def evenly(items: Iterable[Any], max_items: int) -> list[Any]:
    """Return at most `max_items` of the items, evenly spaced, the first and the last among them."""
    whole = list(items)
    if len(whole) <= max_items:
        return whole
    return [whole[round(index * (len(whole) - 1) / (max_items - 1))] for index in range(max_items)]


# Measurements on validation text.


def measured_over(measured: Event) -> str:
    """Return how much text was measured, in words; an empty text if it is not known."""
    return f"over {measured['eval_tokens']:,} tokens" if is_number(measured.get("eval_tokens")) else ""


def best(evaluations: list[Event]) -> Event:
    """Return the measurement with the lowest loss; the newest if no loss is finite."""
    finite = [event for event in evaluations if is_number(event["loss"])]
    return min(finite, key=lambda event: event["loss"], default=evaluations[-1])


def best_before(evaluations: list[Event]) -> str:
    """Return which measurement was better than the last, in words; an empty text if none was.

    Both losses are given where the headline's loss is of other text.

    Args:
        evaluations: measurements over the same amount of text
    """
    if not evaluations or not is_number(last := evaluations[-1]["loss"]):
        return ""
    found = best(evaluations)
    if found["loss"] >= last:
        return ""
    place = f"best {number(found['loss'])} at step {found['step']:,}"
    size = measured_over(found)
    return f"{place} ({number(last)} at step {evaluations[-1]['step']:,}, both {size})" if size else place
