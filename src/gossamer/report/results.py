"""What several runs reached, line by line: the table of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gossamer.cost.ledger import Ledger
from gossamer.model.config import SIZES
from gossamer.report.history import Event, History, numbers
from gossamer.units import (
    count,
    duration,
    energy,
    flops,
    hours,
    known,
    money,
    network_size,
    number,
    percent,
    size,
)

__all__ = ["Cell", "Row", "Run", "best", "best_before", "over", "reached", "result_rows", "vocabularies", "with_best"]


@dataclass(frozen=True)
class Run:
    """One of the runs: its name among the others, the look of its curves, and what is known of it."""

    name: str
    color: str
    dashed: bool
    history: History
    evaluations: list[Event]  # on the held-out set that is compared, all over as much text
    settings: dict[str, str]  # by dotted name
    ledger: Ledger | None = None
    last: Event = field(default_factory=dict)  # the newest measurement on that set, mostly over more


class Cell(NamedTuple):
    """A figure of the table and, for what can be better or worse, its value: the lowest is the best."""

    figure: str
    remark: str = ""
    value: float | None = None
    best: bool = False


class Row(NamedTuple):
    """A line of the table: a cell for each run."""

    label: str
    cells: list[Cell]


def vocabularies(runs: list[Run]) -> int:
    """How many tokenizers the configurations tell of, by kind and size."""
    keys = ("corpus.tokenizer", "model.vocab_size")
    return len({tuple(run.settings.get(key) for key in keys) for run in runs if run.settings})


def result_rows(runs: list[Run], same_text: bool) -> Iterator[Row]:
    """What is compared, line by line; lines that no run has a figure for are left out.

    ``same_text``: they were measured on the same held-out set, so that one of them is the best.
    """
    same_tokens = same_text and vocabularies(runs) < 2
    for label, find in _LINES.items():
        cells = [find(run) for run in runs]
        figures = {cell.figure for cell in cells}
        if figures == {"–"} or (len(figures) == 1 and label in ("device", "corpus")):
            continue
        comparable = {"validation loss": same_tokens, "bits per byte": same_text, "drafts accepted": same_text}.get(
            label, True
        )
        yield with_best(Row(label, cells)) if comparable else Row(label, cells)
        if label == "bits per byte" and same_tokens:
            yield from map(with_best, _to_loss(runs))


def with_best(row: Row) -> Row:
    """Mark the lowest of the values, if there are several."""
    values = [cell.value for cell in row.cells if cell.value is not None and known(cell.value)]
    if len(set(values)) < 2:
        return row
    best = next(cell.figure for cell in row.cells if cell.value == min(values))
    return row._replace(cells=[cell._replace(best=cell.figure == best) for cell in row.cells])


def over(measured: Event) -> str:
    """How much text was measured, in words; nothing where it is not known."""
    return f"over {measured['eval_tokens']:,} tokens" if known(measured.get("eval_tokens")) else ""


def best(evaluations: list[Event]) -> Event:
    """The measurement with the lowest loss; the newest if none is finite."""
    finite = [event for event in evaluations if known(event["loss"])]
    return min(finite, key=lambda event: event["loss"], default=evaluations[-1])


def best_before(evaluations: list[Event]) -> str:
    """Which of these, over as much text each, was better than the last, in words; nothing where none was.

    With both losses where the headline's is of other text.
    """
    if not evaluations or not known(last := evaluations[-1]["loss"]):
        return ""
    found = best(evaluations)
    if found["loss"] >= last:
        return ""
    place = f"best {number(found['loss'])} at step {found['step']:,}"
    size = over(found)
    return f"{place} ({number(last)} at step {evaluations[-1]['step']:,}, both {size})" if size else place


def _loss(run: Run) -> Cell:
    loss: Any = run.last.get("loss")
    remarks = [over(run.last), best_before(run.evaluations) if known(loss) else ""]
    return Cell(number(loss), ", ".join(remark for remark in remarks if remark), loss)


def _accepted(run: Run) -> Cell:
    rates = numbers(run.last.get("mtp_acceptance"))
    return Cell(" · ".join(map(percent, rates)) or "–", value=-rates[0] if rates else None)


def _parameters(run: Run) -> Cell:
    start = run.history.last("start")
    return Cell(*network_size(*map(start.get, SIZES)))


def _tokens(run: Run) -> Cell:
    state = run.history.state({})
    return Cell(
        count(run.history.newest("tokens")), f"{state['step']:,} steps" + ("" if state["done"] else ", not finished")
    )


def _speed(run: Run) -> Cell:
    tokens, elapsed = run.history.newest("tokens"), run.history.newest("elapsed")
    if not (known(tokens) and known(elapsed) and elapsed > 0):
        return Cell("–")
    return Cell(count(round(tokens / elapsed)), value=-tokens / elapsed)


def _compute(run: Run) -> Cell:
    if run.ledger is not None:
        return Cell(flops(run.ledger.work.all_flops))
    cost, tokens = run.history.last("start").get("flops_per_token"), run.history.newest("tokens")
    return Cell(flops(cost * tokens) if known(cost) and known(tokens) else "–")


def _memory(run: Run) -> Cell:
    found = [event["memory"] for event in run.history.of("train") if known(event.get("memory"))]
    return Cell(size(max(found)), value=max(found)) if found else Cell("–")


def _booked(write: Callable[[Ledger], str]) -> Callable[[Run], Cell]:
    return lambda run: Cell("–" if run.ledger is None else write(run.ledger))


def _started_on(key: str) -> Callable[[Run], Cell]:
    return lambda run: Cell(str(run.history.last("start").get(key, "–")))


_LINES: dict[str, Callable[[Run], Cell]] = {
    "parameters": _parameters,
    "tokens": _tokens,
    "training time": lambda run: Cell(duration(run.history.newest("elapsed"))),
    "validation loss": _loss,
    "bits per byte": lambda run: Cell(number(run.last.get("bits_per_byte")), value=run.last.get("bits_per_byte")),
    "drafts accepted": _accepted,
    "tokens/s": _speed,
    "peak memory": _memory,
    "compute": _compute,
    "MFU": _booked(lambda ledger: percent(ledger.mfu)),
    "device-hours": _booked(lambda ledger: hours(ledger.device_hours)),
    "energy": _booked(lambda ledger: energy(ledger.kilowatt_hours)),
    "money": _booked(lambda ledger: money(ledger.money, "" if ledger.money is None else ledger.currency)),
    "device": _started_on("device"),
    "corpus": _started_on("corpus"),
}


def _to_loss(runs: list[Run]) -> Iterator[Row]:
    """How soon each run came to the loss that all of them reached: the fairest measure of how fast they learn."""
    lowest = [min((event["loss"] for event in run.evaluations if known(event["loss"])), default=None) for run in runs]
    found = [loss for loss in lowest if loss is not None]
    if len(found) < 2:
        return
    goal = max(found)
    for axis, write in (("tokens", count), ("elapsed", duration)):
        places = [reached(run.evaluations, goal, axis) for run in runs]
        name = "time" if axis == "elapsed" else axis
        yield Row(f"{name} to loss {number(goal)}", [Cell(write(place), value=place) for place in places])


def reached(evaluations: list[Event], goal: float, axis: str) -> float | None:
    """Where the loss first came down to a goal, on the straight line between the evaluations around."""
    before: Event | None = None
    for event in evaluations:
        if not (known(event["loss"]) and known(event.get(axis))):
            continue
        if event["loss"] <= goal:
            if before is None:
                return float(event[axis])
            share = (before["loss"] - goal) / (before["loss"] - event["loss"])
            return float(before[axis] + share * (event[axis] - before[axis]))
        before = event
    return None
