"""Several runs side by side on one page: what they reached, their curves in one picture, how their settings differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gossamer import __version__
from gossamer.cost.ledger import Ledger, read_ledger
from gossamer.errors import UserError
from gossamer.reading import text_of_name
from gossamer.report.history import AXES, Event, History, best_before, measured_over, nth, numbers, read_history
from gossamer.report.page import configuration, render, sections, write_page
from gossamer.units import (
    SIZES,
    count,
    duration,
    energy,
    flops,
    hours,
    is_number,
    money,
    network_size,
    number,
    percent,
    size,
    size_unit,
)

if TYPE_CHECKING:
    from gossamer.report.chart import Chart, Curve

__all__ = ["COMPARISON_FILE", "write_comparison"]

COMPARISON_FILE = "comparison.html"
_MAX_RUNS = 12  # six colors give as many lines, whole and dashed
_START = 0.1  # share of the runs that may leave a picture at its start, for differences show late


def write_comparison(runs: Sequence[Path], path: Path | None = None) -> Path:
    """Write a page that compares runs, and return its path.

    Args:
        runs: folders of two or more runs
        path: the file; None means `comparison.html` beside the first run

    Raises:
        UserError: a folder is given twice, there are more runs than can be told apart, or a folder has no
            `metrics.jsonl` or a damaged one.
    """
    _check(runs)
    histories = [read_history(folder) for folder in runs]
    # Imported here, as they bring NumPy: other verbs than `report` must not wait for them.
    from gossamer.report.chart import SERIES
    from gossamer.report.run_charts import WIDE, draw_chart, draw_pairs

    sets = _compared_sets(histories)
    columns = []
    for index, (name, folder, history) in enumerate(zip(_names(runs), runs, histories, strict=True)):
        color, dashed = SERIES[index % len(SERIES)], index >= len(SERIES)
        evaluations = history.evaluations().get(sets[index], [])
        last = history.measurements().get(sets[index], [{}])[-1]
        columns.append(
            ComparedRun(name, color, dashed, history, evaluations, _settings(folder), read_ledger(folder), last)
        )
    found = [history.ends() for history in histories]
    ends = {axis: max(end[axis] for end in found) for axis in AXES}
    compared = _charts(columns)
    same_text = len({name for name in sets if name}) < 2
    page = render(
        "compare.html.jinja",
        title=f"{len(runs)} runs compared",
        remark=_remark(histories, sets),
        warnings=_warnings(columns, sets),
        runs=columns,
        rows=list(result_rows(columns, same_text)),
        goals=costs_to_losses(columns) if same_text and vocabularies(columns) < 2 else [],
        charts=[draw_chart(chart, ends, WIDE) for chart in compared[:1]] + draw_pairs(compared[1:], ends),
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
    if len(runs) > _MAX_RUNS:
        raise UserError(f"{len(runs)} runs are too many to tell their curves apart; give {_MAX_RUNS} at most")


def _beside(run: Path) -> Path:
    parent = run.parent if run.name not in ("", "..") else run.resolve().parent
    return parent / COMPARISON_FILE


def _names(runs: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many parts before it as tell the runs apart."""
    parts = [folder.resolve().parts for folder in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = [text_of_name("/".join(part[-length:])) for part in parts]
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


def _compared_sets(histories: list[History]) -> list[str]:
    """The validation set to compare on, for each run: the first run's first set that all have, or each run's own."""
    names = [list(history.evaluations()) for history in histories]
    measured = [own for own in names if own]
    common = next((name for name in (measured or [[]])[0] if all(name in own for own in measured)), None)
    return [common if common is not None else next(iter(own), "") for own in names]


def _remark(histories: list[History], sets: list[str]) -> str:
    """A line of what is the same for all runs."""
    starts = [history.last("start") for history in histories]
    shared = [{start.get(key) for start in starts} for key in ("corpus", "device")]
    parts = [str(next(iter(values))) for values in shared if len(values) == 1 and None not in values]
    measured = {name for name in sets if name}
    return " · ".join([*parts, f"validation on {next(iter(measured))}"] if len(measured) == 1 else parts)


def _warnings(runs: list[ComparedRun], sets: list[str]) -> list[str]:
    """Sentences on what makes the figures of these runs not comparable."""
    found = []
    if len({name for name in sets if name}) > 1:
        names = ", ".join(f"{run.name} ({name})" for run, name in zip(runs, sets, strict=True) if name)
        found.append(f"The runs have no validation set in common, so their losses are of different texts: {names}.")
    elif len({run.history.last("start").get("corpus") for run in runs if run.history.last("start")}) > 1:
        found.append("The runs were started on different corpora; their validation texts may differ too.")
    elif any(len(sizes) > 1 for sizes in _amounts(runs)):
        found.append(
            "The runs were measured over different amounts of validation text: small differences mean nothing."
        )
    if vocabularies(runs) > 1:
        found.append("The runs have different tokenizers: compare bits per byte, not the loss of a token.")
    return found


def _amounts(runs: list[ComparedRun]) -> list[set[Any]]:
    """The amounts of text that were measured, as far as they are known: for the curves, and for the results."""
    curves, results = [event for run in runs for event in run.evaluations[-1:]], [run.last for run in runs]
    return [
        {event["eval_tokens"] for event in events if is_number(event.get("eval_tokens"))}
        for events in (curves, results)
    ]


def _charts(runs: list[ComparedRun]) -> list[Chart]:
    """One chart for each value with one curve for each run; the first is the one that counts."""
    from gossamer.report.chart import Chart, curve
    from gossamer.report.run_charts import over_layers

    def each(find: Any, key: Any, scale: float = 1.0, **style: bool) -> tuple[Curve, ...]:
        """A curve for each run, from the events that `find` gives."""
        return tuple(curve(find(run), key, run.name, run.color, scale, dashed=run.dashed, **style) for run in runs)

    def train(key: str, scale: float = 1.0, smoothed: bool = True) -> tuple[Curve, ...]:
        return each(lambda run: run.history.of("train"), key, scale, smoothed=smoothed, raw=False)

    def evaluated(key: Any) -> tuple[Curve, ...]:
        return each(lambda run: run.evaluations, key, dots=True)

    def experts(key: str, reduce: Any) -> tuple[Curve, ...]:
        return each(lambda run: run.history.of("experts"), over_layers(key, reduce), dots=True)

    def first_step(event: Event) -> float:
        return nth(event.get("mtp_acceptance"), 0)

    memory = [event["memory"] for run in runs for event in run.history.of("train") if is_number(event.get("memory"))]
    unit, unit_name = size_unit(max(memory, default=0))
    charts = [
        Chart("Validation loss", "nats per token", evaluated("loss"), skip_start=_START),
        Chart("Training loss", "nats per token, averaged", train("loss"), skip_start=_START),
        Chart("Bits per byte", "validation", evaluated("bits_per_byte"), skip_start=_START),
        Chart("Gradient norm", "before clipping, averaged", train("grad_norm"), logarithmic=True),
        Chart("Learning rate", "", train("learning_rate", smoothed=False), from_zero=True),
        Chart("Accepted drafts", "share, of the head's first step", evaluated(first_step), from_zero=True),
        Chart("Multi-token prediction", "nats per token, averaged", train("mtp_loss"), skip_start=_START),
        Chart("Busiest expert", "its load / its layer's mean", experts("max_over_mean", max), logarithmic=True),
        Chart("Dead experts", "without a token, all layers", experts("dead", sum), from_zero=True),
        Chart("Throughput", "tokens per second, averaged", train("tokens_per_second")),
        Chart("Peak memory", unit_name, train("memory", 1 / unit, smoothed=False), from_zero=True),
    ]
    if vocabularies(runs) > 1:
        charts.insert(0, charts.pop(2))
    return [
        replace(chart, curves=tuple(item for item in chart.curves if item.is_measured))
        for chart in charts
        if chart.is_measured
    ]


def _differences(runs: list[ComparedRun]) -> list[tuple[str, list[str]]]:
    """The settings that differ between runs that have a configuration, in the order of the configuration."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    table = [(key, [run.settings.get(key, "–") for run in runs]) for key in keys]
    compared = [index for index, run in enumerate(runs) if run.settings]
    return [(key, values) for key, values in table if len({values[index] for index in compared}) > 1]


# The table of results.


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs that are compared.

    Attributes:
        name: its name among the others
        color: color of its curves
        dashed: whether its curves are dashed
        history: its events
        evaluations: measurements on the validation set that is compared, all over the same amount of text
        settings: its configuration by dotted name
        ledger: its ledger; None if it has none
        last: the newest measurement on that set, usually over more text
    """

    name: str
    color: str
    dashed: bool
    history: History
    evaluations: list[Event]
    settings: dict[str, str]
    ledger: Ledger | None = None
    last: Event = field(default_factory=dict)


class Cell(NamedTuple):
    """A figure of the table.

    Attributes:
        figure: the figure as it is written
        remark: a remark on it
        value: its value if it can be better or worse; the lowest value is the best
        best: whether it is the best of its row
    """

    figure: str
    remark: str = ""
    value: float | None = None
    best: bool = False


class Row(NamedTuple):
    """A line of the table, with a cell for each run."""

    label: str
    cells: list[Cell]


def vocabularies(runs: list[ComparedRun]) -> int:
    """Return how many different tokenizers the configurations name, by kind and size."""
    keys = ("corpus.tokenizer", "model.vocab_size")
    return len({tuple(run.settings.get(key) for key in keys) for run in runs if run.settings})


def result_rows(runs: list[ComparedRun], same_text: bool) -> Iterator[Row]:
    """Yield the lines of the table; those that no run has a figure for are left out.

    Args:
        runs: the runs
        same_text: whether they were measured on the same validation set, so that one of them is the best
    """
    same_tokens = same_text and vocabularies(runs) < 2
    for label, find in _ROWS.items():
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
    """Return a row with the lowest of its values marked if there are several."""
    values = [cell.value for cell in row.cells if cell.value is not None and is_number(cell.value)]
    if len(set(values)) < 2:
        return row
    best = next(cell.figure for cell in row.cells if cell.value == min(values))
    return row._replace(cells=[cell._replace(best=cell.figure == best) for cell in row.cells])


def _loss(run: ComparedRun) -> Cell:
    loss: Any = run.last.get("loss")
    remarks = [measured_over(run.last), best_before(run.evaluations) if is_number(loss) else ""]
    return Cell(number(loss), ", ".join(remark for remark in remarks if remark), loss)


def _accepted(run: ComparedRun) -> Cell:
    rates = numbers(run.last.get("mtp_acceptance"))
    return Cell(" · ".join(map(percent, rates)) or "–", value=-rates[0] if rates else None)


def _parameters(run: ComparedRun) -> Cell:
    start = run.history.last("start")
    return Cell(*network_size(*map(start.get, SIZES)))


def _tokens(run: ComparedRun) -> Cell:
    state = run.history.state({})
    return Cell(
        count(run.history.newest("tokens")),
        f"{state['step']:,} steps" + ("" if state["is_finished"] else ", not finished"),
    )


def _speed(run: ComparedRun) -> Cell:
    tokens, elapsed = run.history.newest("tokens"), run.history.newest("elapsed")
    if not (is_number(tokens) and is_number(elapsed) and elapsed > 0):
        return Cell("–")
    return Cell(count(round(tokens / elapsed)), value=-tokens / elapsed)


def _compute(run: ComparedRun) -> Cell:
    if run.ledger is not None:
        return Cell(flops(run.ledger.work.all_flops))
    cost, tokens = run.history.last("start").get("flops_per_token"), run.history.newest("tokens")
    return Cell(flops(cost * tokens) if is_number(cost) and is_number(tokens) else "–")


def _memory(run: ComparedRun) -> Cell:
    found = [event["memory"] for event in run.history.of("train") if is_number(event.get("memory"))]
    return Cell(size(max(found)), value=max(found)) if found else Cell("–")


def _booked(write: Callable[[Ledger], str]) -> Callable[[ComparedRun], Cell]:
    return lambda run: Cell("–" if run.ledger is None else write(run.ledger))


def _started_on(key: str) -> Callable[[ComparedRun], Cell]:
    return lambda run: Cell(str(run.history.last("start").get(key, "–")))


_ROWS: dict[str, Callable[[ComparedRun], Cell]] = {
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


def _to_loss(runs: list[ComparedRun]) -> Iterator[Row]:
    """Rows that say when each run reached the loss that all reached: the fairest measure of how fast they learn."""
    lowest = [
        min((event["loss"] for event in run.evaluations if is_number(event["loss"])), default=None) for run in runs
    ]
    found = [loss for loss in lowest if loss is not None]
    if len(found) < 2:
        return
    goal = max(found)
    for axis, write in (("tokens", count), ("elapsed", duration)):
        places = [reached(run.evaluations, goal, axis) for run in runs]
        name = "time" if axis == "elapsed" else axis
        yield Row(f"{name} to loss {number(goal)}", [Cell(write(place), value=place) for place in places])


def reached(evaluations: list[Event], goal: float, axis: str) -> float | None:
    """Return where the loss first came down to a goal, on the straight line between two evaluations, or None."""
    before: Event | None = None
    for event in evaluations:
        if not (is_number(event["loss"]) and is_number(event.get(axis))):
            continue
        if event["loss"] <= goal:
            if before is None:
                return float(event[axis])
            share = (before["loss"] - goal) / (before["loss"] - event["loss"])
            return float(before[axis] + share * (event[axis] - before[axis]))
        before = event
    return None


# What each run had spent when it reached a loss.

_BETWEEN = 2  # losses beside the lowest one that all reached


class Goal(NamedTuple):
    """A loss with what each run had spent when it reached it."""

    loss: str
    rows: list[Row]


def costs_to_losses(runs: list[ComparedRun]) -> list[Goal]:
    """Return what each run had spent when its validation loss first reached each of a few losses, the lowest last."""
    prices = [run.ledger and run.ledger.price for run in runs]
    lines: list[tuple[str, str, Callable[[ComparedRun, float], str]]] = [
        ("tokens", "tokens", lambda run, spent: count(spent)),
        ("FLOPs", "flops", lambda run, spent: flops(spent)),
        ("device-hours", "device_seconds", lambda run, spent: hours(spent / 3600)),
    ]
    found = []
    for goal in _goals(runs):
        rows = []
        for label, key, write in lines:
            places = [reached(run.evaluations, goal, key) for run in runs]
            cells = [
                Cell("–") if place is None else Cell(write(run, place), value=place)
                for run, place in zip(runs, places, strict=True)
            ]
            rows.append(with_best(Row(label, cells)))
        if any(price is not None for price in prices):
            rows.append(_money(runs, [reached(run.evaluations, goal, "device_seconds") for run in runs]))
        measured = [row for row in rows if any(cell.value is not None for cell in row.cells)]
        found.append(Goal(number(goal), measured))
    return [goal for goal in found if goal.rows]


def _money(runs: list[ComparedRun], seconds: list[float | None]) -> Row:
    cells = []
    for run, spent in zip(runs, seconds, strict=True):
        cost = None if run.ledger is None or spent is None else run.ledger.cost_of(spent)
        cells.append(Cell("–") if run.ledger is None else Cell(money(cost, run.ledger.currency), value=cost))
    row = Row("money", [cell if cell.value is not None else Cell("–") for cell in cells])
    currencies = {run.ledger.currency for run in runs if run.ledger is not None and run.ledger.price is not None}
    return with_best(row) if len(currencies) == 1 else row


def _goals(runs: list[ComparedRun]) -> list[float]:
    """The lowest loss that all runs reached, two on the way there, and the lowest that more than half reached."""
    curves = [losses for run in runs if (losses := _losses(run.evaluations))]
    if len(curves) < 2:
        return []
    lowest = sorted((min(losses) for losses in curves), reverse=True)
    all_reached, half_reached = lowest[0], lowest[(len(lowest) - 1) // 2]
    begin = min(losses[0] for losses in curves)  # above that, a run's first evaluation already lies lower
    way = [begin + (all_reached - begin) * step / (_BETWEEN + 1) for step in range(1, _BETWEEN + 1)]
    rounded = [float(number(loss, 3)) for loss in way]
    return [*dict.fromkeys(loss for loss in rounded if begin > loss > all_reached), *{all_reached: 0, half_reached: 0}]


def _losses(evaluations: list[Event]) -> list[float]:
    return [event["loss"] for event in evaluations if is_number(event["loss"])]
