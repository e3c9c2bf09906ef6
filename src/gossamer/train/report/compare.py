"""Several runs side by side on one page: what they reached, their curves in one picture, how their settings differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gossamer import __version__
from gossamer.errors import UserError
from gossamer.train.report.figures import count, duration, flops, known, number, percent, size
from gossamer.train.report.history import AXES, Event, History, nth, numbers, read_history
from gossamer.train.report.page import configuration, render, sections, write_page

if TYPE_CHECKING:
    from gossamer.train.report.curves import Chart, Curve

__all__ = ["COMPARISON_FILE", "write_comparison"]

COMPARISON_FILE = "comparison.html"
_MOST = 12  # runs: as many lines as six colours give, whole and dashed
_START = 0.1  # of the runs: differences show late


@dataclass(frozen=True)
class Run:
    """One of the runs: its name among the others, the look of its curves, and what is known of it."""

    name: str
    color: str
    dashed: bool
    history: History
    evaluations: list[Event]  # on the held-out set that is compared
    settings: dict[str, str]  # by dotted name

    @property
    def last(self) -> Event:
        return self.evaluations[-1] if self.evaluations else {}


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


def write_comparison(runs: Sequence[Path], path: Path | None = None) -> Path:
    """Write a page that compares runs and return its path.

    Args:
        runs: the runs' folders, two or more.
        path: the file; None for ``comparison.html`` beside the first run.

    Raises:
        UserError: one folder twice, more runs than can be told apart, a folder without ``metrics.jsonl`` or with a
            damaged one.
    """
    _check(runs)
    histories = [read_history(folder) for folder in runs]
    # Imported here, as they bring NumPy: other verbs than `report` must not wait for them.
    from gossamer.train.report.charts import WIDE, drawn, pairs
    from gossamer.train.report.curves import SERIES

    chosen = _chosen_sets(histories)
    columns = []
    for index, (name, folder, history) in enumerate(zip(_names(runs), runs, histories, strict=True)):
        color, dashed = SERIES[index % len(SERIES)], index >= len(SERIES)
        evaluations = history.evaluations().get(chosen[index], [])
        columns.append(Run(name, color, dashed, history, evaluations, _settings(folder)))
    found = [history.ends() for history in histories]
    ends = {axis: max(end[axis] for end in found) for axis in AXES}
    compared = _charts(columns)
    page = render(
        "compare.html.jinja",
        title=f"{len(runs)} runs compared",
        remark=_remark(histories, chosen),
        warnings=_warnings(columns, chosen),
        runs=columns,
        rows=list(_rows(columns, same_text=len({name for name in chosen if name}) < 2)),
        charts=[drawn(chart, ends, WIDE) for chart in compared[:1]] + pairs(compared[1:], ends),
        settings=_differences(columns),
        version=__version__,
    )
    return write_page(_beside(runs[0]) if path is None else path, page)


def _check(runs: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for folder in runs:
        if folder.resolve() in seen:
            raise UserError(f"{folder} is given twice; a run is compared with others")
        seen.add(folder.resolve())
    if len(runs) > _MOST:
        raise UserError(f"{len(runs)} runs are too many to tell their curves apart; give {_MOST} at most")


def _beside(run: Path) -> Path:
    parent = run.parent if run.name not in ("", "..") else run.resolve().parent
    return parent / COMPARISON_FILE


def _names(runs: Sequence[Path]) -> list[str]:
    """The last part of each path, and as many before it as tell the runs apart."""
    parts = [folder.resolve().parts for folder in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _settings(run: Path) -> dict[str, str]:
    found = sections(configuration(run)[0])
    return {
        key if section == "general" else f"{section}.{key}": value
        for section, settings in found
        for key, value in settings
        if key != "description"
    }


def _chosen_sets(histories: list[History]) -> list[str]:
    """The held-out set to compare on, for each run: the first run's first that all have; else each one's own first."""
    names = [list(history.evaluations()) for history in histories]
    measured = [own for own in names if own]
    common = next((name for name in (measured or [[]])[0] if all(name in own for own in measured)), None)
    return [common if common is not None else next(iter(own), "") for own in names]


def _remark(histories: list[History], chosen: list[str]) -> str:
    """What is the same for all runs."""
    starts = [history.last("start") for history in histories]
    shared = [{start.get(key) for start in starts} for key in ("corpus", "device")]
    parts = [str(next(iter(values))) for values in shared if len(values) == 1 and None not in values]
    measured = {name for name in chosen if name}
    return " · ".join([*parts, f"validation on {next(iter(measured))}"] if len(measured) == 1 else parts)


def _warnings(runs: list[Run], chosen: list[str]) -> list[str]:
    """What makes figures of these runs not comparable."""
    found = []
    if len({name for name in chosen if name}) > 1:
        sets = ", ".join(f"{run.name} ({name})" for run, name in zip(runs, chosen, strict=True) if name)
        found.append(f"The runs have no held-out set in common, so their losses are of different texts: {sets}.")
    elif len({run.history.last("start").get("corpus") for run in runs if run.history.last("start")}) > 1:
        found.append("The runs were started on different corpora; their held-out texts may differ too.")
    if _vocabularies(runs) > 1:
        found.append("The runs have different tokenizers: compare bits per byte, not the loss of a token.")
    return found


def _vocabularies(runs: list[Run]) -> int:
    """How many tokenizers the configurations tell of, by kind and size."""
    keys = ("corpus.tokenizer", "model.vocab_size")
    return len({tuple(run.settings.get(key) for key in keys) for run in runs if run.settings})


def _rows(runs: list[Run], same_text: bool) -> Iterator[Row]:
    """What is compared, line by line; lines that no run has a figure for are left out.

    ``same_text``: they were measured on the same held-out set, so that one of them is the best.
    """
    same_tokens = same_text and _vocabularies(runs) < 2
    for label, find in _LINES.items():
        cells = [find(run) for run in runs]
        figures = {cell.figure for cell in cells}
        if figures == {"–"} or (len(figures) == 1 and label in ("device", "corpus")):
            continue
        comparable = {"validation loss": same_tokens, "bits per byte": same_text, "drafts accepted": same_text}.get(label, True)
        yield _with_best(Row(label, cells)) if comparable else Row(label, cells)
        if label == "bits per byte" and same_tokens:
            yield from map(_with_best, _to_loss(runs))


def _with_best(row: Row) -> Row:
    values = [cell.value for cell in row.cells if cell.value is not None and known(cell.value)]
    if len(set(values)) < 2:
        return row
    best = next(cell.figure for cell in row.cells if cell.value == min(values))
    return row._replace(cells=[cell._replace(best=cell.figure == best) for cell in row.cells])


def _loss(run: Run) -> Cell:
    loss: Any = run.last.get("loss")
    finite = [event for event in run.evaluations if known(event["loss"])]
    best = min(finite, key=lambda event: event["loss"], default=run.last)
    better = best.get("loss") != loss and known(loss)
    return Cell(number(loss), f"best {number(best['loss'])} at step {best['step']:,}" if better else "", loss)


def _accepted(run: Run) -> Cell:
    rates = numbers(run.last.get("mtp_acceptance"))
    return Cell(" · ".join(map(percent, rates)) or "–", value=-rates[0] if rates else None)


def _parameters(run: Run) -> Cell:
    start = run.history.last("start")
    active = start.get("active_parameters")
    return Cell(count(start.get("parameters")), f"{count(active)} active" if known(active) else "")


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
    cost, tokens = run.history.last("start").get("flops_per_token"), run.history.newest("tokens")
    return Cell(flops(cost * tokens) if known(cost) and known(tokens) else "–")


def _memory(run: Run) -> Cell:
    found = [event["memory"] for event in run.history.of("train") if known(event.get("memory"))]
    return Cell(size(max(found)), value=max(found)) if found else Cell("–")


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
    "device": _started_on("device"),
    "corpus": _started_on("corpus"),
}


def _to_loss(runs: list[Run]) -> Iterator[Row]:
    """How soon each run came to the loss that all of them reached: the fairest measure of how fast they learn."""
    lowest = [min((event["loss"] for event in run.evaluations if known(event["loss"])), default=None) for run in runs]
    reached = [loss for loss in lowest if loss is not None]
    if len(reached) < 2:
        return
    goal = max(reached)
    for axis, write in (("tokens", count), ("elapsed", duration)):
        places = [_reached(run.evaluations, goal, axis) for run in runs]
        name = "time" if axis == "elapsed" else axis
        yield Row(f"{name} to loss {number(goal)}", [Cell(write(place), value=place) for place in places])


def _reached(evaluations: list[Event], goal: float, axis: str) -> float | None:
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


def _charts(runs: list[Run]) -> list[Chart]:
    """One chart a value, one curve a run; the first is the one that counts."""
    from gossamer.train.report.curves import Chart, curve
    from gossamer.train.report.figures import size_unit

    def each(find: Any, key: Any, scale: float = 1.0, **style: bool) -> tuple[Curve, ...]:
        """A curve for each run, of the events that ``find`` gives."""
        return tuple(curve(find(run), key, run.name, run.color, scale, dashed=run.dashed, **style) for run in runs)

    def train(key: str, scale: float = 1.0, smoothed: bool = True) -> tuple[Curve, ...]:
        return each(lambda run: run.history.of("train"), key, scale, smoothed=smoothed, raw=False)

    def evaluated(key: Any) -> tuple[Curve, ...]:
        return each(lambda run: run.evaluations, key, dots=True)

    def experts(key: str, reduce: Callable[[list[float]], float]) -> tuple[Curve, ...]:
        def find(event: Event) -> Any:
            finite = [value for value in numbers(event.get(key)) if math.isfinite(value)]
            return reduce(finite) if finite else None

        return each(lambda run: run.history.of("experts"), find, dots=True)

    def first_step(event: Event) -> float:
        return nth(event.get("mtp_acceptance"), 0)

    memory = [event["memory"] for run in runs for event in run.history.of("train") if known(event.get("memory"))]
    unit, unit_name = size_unit(max(memory, default=0))
    charts = [
        Chart("Validation loss", "nats a token", evaluated("loss"), skip_start=_START),
        Chart("Training loss", "nats a token, averaged", train("loss"), skip_start=_START),
        Chart("Bits per byte", "validation", evaluated("bits_per_byte"), skip_start=_START),
        Chart("Gradient norm", "before clipping, averaged", train("grad_norm"), logarithmic=True),
        Chart("Learning rate", "", train("learning_rate", smoothed=False), from_zero=True),
        Chart("Accepted drafts", "share, of the head's first step", evaluated(first_step), from_zero=True),
        Chart("Multi-token prediction", "nats a token, averaged", train("mtp_loss"), skip_start=_START),
        Chart("Busiest expert", "its load / its layer's mean", experts("max_over_mean", max), logarithmic=True),
        Chart("Dead experts", "without a token, all layers", experts("dead", math.fsum), from_zero=True),
        Chart("Throughput", "tokens a second, averaged", train("tokens_per_second")),
        Chart("Peak memory", unit_name, train("memory", 1 / unit, smoothed=False), from_zero=True),
    ]
    if _vocabularies(runs) > 1:
        charts.insert(0, charts.pop(2))
    return [
        replace(chart, curves=tuple(item for item in chart.curves if item.measured))
        for chart in charts
        if chart.measured
    ]


def _differences(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same in all runs that have any, in the order of their configuration."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    table = [(key, [run.settings.get(key, "–") for run in runs]) for key in keys]
    compared = [index for index, run in enumerate(runs) if run.settings]
    return [(key, values) for key, values in table if len({values[index] for index in compared}) > 1]
