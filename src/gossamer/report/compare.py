"""Several runs side by side on one page: what they reached, their curves in one picture, how their settings differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer import __version__
from gossamer.cost.ledger import read_ledger
from gossamer.errors import UserError
from gossamer.reading import text_of_name
from gossamer.report.costs import costs_to_losses
from gossamer.report.history import AXES, Event, History, nth, read_history
from gossamer.report.page import configuration, render, sections, write_page
from gossamer.report.results import Run, result_rows, vocabularies
from gossamer.units import known

if TYPE_CHECKING:
    from gossamer.report.curves import Chart, Curve

__all__ = ["COMPARISON_FILE", "write_comparison"]

COMPARISON_FILE = "comparison.html"
_MOST = 12  # runs: as many lines as six colours give, whole and dashed
_START = 0.1  # of the runs: differences show late


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
    from gossamer.report.charts import WIDE, drawn, pairs
    from gossamer.report.curves import SERIES

    chosen = _chosen_sets(histories)
    columns = []
    for index, (name, folder, history) in enumerate(zip(_names(runs), runs, histories, strict=True)):
        color, dashed = SERIES[index % len(SERIES)], index >= len(SERIES)
        evaluations = history.evaluations().get(chosen[index], [])
        last = history.measurements().get(chosen[index], [{}])[-1]
        columns.append(Run(name, color, dashed, history, evaluations, _settings(folder), read_ledger(folder), last))
    found = [history.ends() for history in histories]
    ends = {axis: max(end[axis] for end in found) for axis in AXES}
    compared = _charts(columns)
    same_text = len({name for name in chosen if name}) < 2
    page = render(
        "compare.html.jinja",
        title=f"{len(runs)} runs compared",
        remark=_remark(histories, chosen),
        warnings=_warnings(columns, chosen),
        runs=columns,
        rows=list(result_rows(columns, same_text)),
        goals=costs_to_losses(columns) if same_text and vocabularies(columns) < 2 else [],
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
    elif any(len(sizes) > 1 for sizes in _amounts(runs)):
        found.append("The runs were measured over different amounts of held-out text: small differences mean nothing.")
    if vocabularies(runs) > 1:
        found.append("The runs have different tokenizers: compare bits per byte, not the loss of a token.")
    return found


def _amounts(runs: list[Run]) -> list[set[Any]]:
    """How much text was measured in what is put beside one another, as far as known: the curves, and the results."""
    curves, results = [event for run in runs for event in run.evaluations[-1:]], [run.last for run in runs]
    return [
        {event["eval_tokens"] for event in events if known(event.get("eval_tokens"))} for events in (curves, results)
    ]


def _charts(runs: list[Run]) -> list[Chart]:
    """One chart a value, one curve a run; the first is the one that counts."""
    from gossamer.report.charts import over_layers
    from gossamer.report.curves import Chart, curve
    from gossamer.units import size_unit

    def each(find: Any, key: Any, scale: float = 1.0, **style: bool) -> tuple[Curve, ...]:
        """A curve for each run, of the events that ``find`` gives."""
        return tuple(curve(find(run), key, run.name, run.color, scale, dashed=run.dashed, **style) for run in runs)

    def train(key: str, scale: float = 1.0, smoothed: bool = True) -> tuple[Curve, ...]:
        return each(lambda run: run.history.of("train"), key, scale, smoothed=smoothed, raw=False)

    def evaluated(key: Any) -> tuple[Curve, ...]:
        return each(lambda run: run.evaluations, key, dots=True)

    def experts(key: str, reduce: Any) -> tuple[Curve, ...]:
        return each(lambda run: run.history.of("experts"), over_layers(key, reduce), dots=True)

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
        Chart("Dead experts", "without a token, all layers", experts("dead", sum), from_zero=True),
        Chart("Throughput", "tokens a second, averaged", train("tokens_per_second")),
        Chart("Peak memory", unit_name, train("memory", 1 / unit, smoothed=False), from_zero=True),
    ]
    if vocabularies(runs) > 1:
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
