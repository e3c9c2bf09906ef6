"""A run's events as a page reads them: without the courses that a rollback undid, and each with its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from gossamer.run.metrics import read_metrics
from gossamer.units import known

__all__ = ["AXES", "PLACES", "Axis", "Event", "History", "nth", "numbers", "read_history", "spread", "where"]

Event: TypeAlias = dict[str, Any]
Axis = Literal["tokens", "elapsed", "steps"]
AXES: tuple[Axis, ...] = ("tokens", "elapsed", "steps")
PLACES = ("tokens", "elapsed")  # an event's, beside its step; either may be missing

# What a rollback undoes; the rest, such as the rollback itself, has happened all the same.
_MEASURED = frozenset({"train", "eval", "end", "experts", "sample"})
# What only tells what is meant to come.
_PLANNED = frozenset({"start", "plan"})
# What may come without tokens or time of training, and gets them from its step.
_PLACED = frozenset({"experts", "sample", "checkpoint", "skip", "rollback", "resume"})
_UNNAMED = "held-out"


@dataclass(frozen=True)
class History:
    """What happened in a run.

    Attributes:
        events: in the order of their writing, without what was undone
        undone: what was measured on courses that a rollback left
    """

    events: list[Event]
    undone: list[Event]

    def of(self, *kinds: str) -> list[Event]:
        """The events of these kinds."""
        return [event for event in self.events if event["event"] in kinds]

    def last(self, *kinds: str) -> Event:
        """The newest event of these kinds, or an empty one."""
        return next((event for event in reversed(self.events) if event["event"] in kinds), {})

    def newest(self, key: str) -> Any:
        """The newest finite value of ``key`` in any event."""
        return next((event[key] for event in reversed(self._past) if known(event.get(key))), None)

    def ends(self) -> dict[Axis, float]:
        """Where the curves end, the same for all charts: a page is read along a common axis."""
        return {
            axis: max((at for event in self._past if known(at := where(event, axis))), default=0.0) for axis in AXES
        }

    @property
    def _past(self) -> list[Event]:
        """What has happened."""
        return [event for event in self.events if event["event"] not in _PLANNED]

    def measurements(self) -> dict[str, list[Event]]:
        """Every measurement on held-out text by the name of the set, the primary one first; the newest last."""
        found: dict[str, list[Event]] = {}
        for event in self.of("eval", "end"):
            if "loss" in event:
                found.setdefault(str(event.get("set", _UNNAMED)), []).append(event)
        return found

    def evaluations(self) -> dict[str, list[Event]]:
        """Those of the measurements that make a curve, one a step: all over as much text as the newest ``eval``.

        A run's ``end`` mostly reads more, so that its loss is of other text; where it does not, it is one of them.
        """
        found: dict[str, list[Event]] = {}
        for name, events in self.measurements().items():
            newest = next((event for event in reversed(events) if event["event"] == "eval"), events[-1])
            alike = [event for event in events if event.get("eval_tokens") == newest.get("eval_tokens")]
            found[name] = list({event["step"]: event | {"event": "eval"} for event in alike}.values())
        return found

    def date(self) -> str | None:
        """When the run began."""
        return _date(next((event["time"] for event in self.events if known(event.get("time"))), None))

    def state(self, config: dict[str, Any]) -> dict[str, Any]:
        """How far the run is: done when nothing was trained after its newest ``end``."""
        done = self.last("end", "train", "resume", "rollback").get("event") == "end"
        # What else has happened may have happened on a course that was left.
        step = max((event["step"] for event in self.of(*_MEASURED, "resume")), default=0)
        steps: Any = self.last("start").get("steps")
        training = config.get("training")
        if isinstance(training, dict) and any(training.get(key) for key in ("budget", "seconds", "tokens")):
            steps = None  # these come before it
        elif isinstance(training, dict) and known(training.get("steps")):
            steps = training["steps"]  # the newer figure: a resume may have prolonged the run
        share = min(step / steps, 1.0) if known(steps) and steps > 0 else None
        return {"done": done, "step": step, "steps": steps, "share": share, "resumes": len(self.of("resume"))}

    def incidents(self) -> list[Event]:
        """What did not go straight on, each with ``what`` it was in words; the newest last."""
        found = self.of("skip", "rollback", "resume")
        return [event | {"what": _in_words(event)} for event in sorted(found, key=lambda event: event["step"])]


def read_history(run: Path) -> History:
    """Read a run's events.

    Raises:
        UserError: the folder has no ``metrics.jsonl``, or a damaged one.
    """
    live: list[Event] = []
    undone: list[Event] = []
    for event in read_metrics(run):
        if event["event"] == "rollback" and known(event.get("to")):
            left = [old for old in live if old["event"] in _MEASURED and old["step"] > event["to"]]
            undone += left
            live = [old for old in live if not (old["event"] in _MEASURED and old["step"] > event["to"])]
        live.append(event)
    return History(_placed(live), undone)


def where(event: Event, axis: Axis) -> Any:
    """An event's place on an axis, None where it is not known."""
    return event.get("step" if axis == "steps" else axis)


def numbers(value: Any) -> list[float]:
    """A list of numbers as it was measured, NaN for what was not finite; one number is a list of one."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    return [float(item) if known(item) else float("nan") for item in items]


def nth(value: Any, index: int) -> float:
    """One number of a list as ``numbers`` gives it, NaN where it has none."""
    found = numbers(value)
    return found[index] if index < len(found) else float("nan")


def _placed(events: list[Event]) -> list[Event]:
    """Give the events that lack them their tokens and time of training, between those of the steps around."""
    import numpy as np

    known_places = [event for event in events if all(known(event.get(axis)) for axis in PLACES)]
    if not known_places:
        return events
    by_step = {0: dict.fromkeys(PLACES, 0)} | {event["step"]: event for event in known_places}
    steps = sorted(by_step)
    columns = {axis: [by_step[step][axis] for step in steps] for axis in PLACES}

    def place(event: Event) -> Event:
        between = {axis: float(np.interp(event["step"], steps, column)) for axis, column in columns.items()}
        return between | {name: value for name, value in event.items() if name not in PLACES or known(value)}

    return [place(event) if event["event"] in _PLACED else event for event in events]


def _in_words(event: Event) -> str:
    if event["event"] == "skip":
        return f"update skipped: {event['reason']}" if event.get("reason") else "update skipped"
    if event["event"] == "rollback":
        return f"rolled back to step {event['to']:,}" if known(event.get("to")) else "rolled back"
    moment = _date(event.get("time"))
    return f"resumed on {moment}" if moment else "resumed"


def _date(moment: Any) -> str | None:
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC") if known(moment) else None
    except (OverflowError, ValueError, OSError):  # no time that a calendar has
        return None


def spread(items: Iterable[Any], most: int) -> list[Any]:
    """At most ``most`` of the items, evenly spaced, the first and the last among them."""
    whole = list(items)
    if len(whole) <= most:
        return whole
    return [whole[round(index * (len(whole) - 1) / (most - 1))] for index in range(most)]
