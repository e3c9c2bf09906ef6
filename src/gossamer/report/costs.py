"""What runs have cost, for their pages: the accounts of one, and what several had spent when they reached a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gossamer.cost.ledger import OVERHEADS, STEPS, Ledger
from gossamer.report.history import Event
from gossamer.report.results import Cell, Row, Run, reached, with_best
from gossamer.units import count, flops, hours, known, money, number, percent

__all__ = ["Goal", "costs", "costs_to_losses"]

_PARTS = {"linear_attention": "linear attention", "mtp": "MTP"}
_BETWEEN = 2  # losses beside the lowest that all reached


class Goal(NamedTuple):
    """A loss, and what each run had spent when it came down to it."""

    loss: str
    rows: list[Row]


def costs(ledger: Ledger | None) -> dict[str, Any] | None:
    """The tables of a run's ledger; None if there is nothing in it."""
    if ledger is None or not ledger.total.device_seconds:
        return None
    whole, work = ledger.total, ledger.work
    accounts = [
        {
            "name": name,
            "steps": f"{own.steps:,}" if name in STEPS else "",
            "tokens": count(own.tokens) if name in STEPS else "",
            "flops": flops(own.all_flops) if name in STEPS else "",
            "hours": hours(own.device_seconds / 3600),
            "share": percent(own.device_seconds / whole.device_seconds),
            "money": money(ledger.cost_of(own.device_seconds)),
        }
        for name in (*STEPS, *OVERHEADS)
        if (own := ledger.accounts[name]).device_seconds or own.steps or name == "useful"
    ]
    parts = [
        {
            "name": _PARTS.get(part, part),
            "each": flops(spent / work.tokens) if work.tokens else "–",
            "flops": flops(spent),
            "share": percent(spent / work.all_flops),
        }
        for part, spent in sorted(work.flops.items(), key=lambda item: -item[1])
        if spent
    ]
    return {"ledger": ledger, "accounts": accounts, "parts": parts, "estimate": ledger.estimate()}


def costs_to_losses(runs: list[Run]) -> list[Goal]:
    """What each run had spent when its held-out loss first came down to each of a few losses, the lowest last."""
    prices = [run.ledger and run.ledger.price for run in runs]
    lines: list[tuple[str, str, Callable[[Run, float], str]]] = [
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


def _money(runs: list[Run], seconds: list[float | None]) -> Row:
    cells = []
    for run, spent in zip(runs, seconds, strict=True):
        cost = None if run.ledger is None or spent is None else run.ledger.cost_of(spent)
        cells.append(Cell("–") if run.ledger is None else Cell(money(cost, run.ledger.currency), value=cost))
    row = Row("money", [cell if cell.value is not None else Cell("–") for cell in cells])
    currencies = {run.ledger.currency for run in runs if run.ledger is not None and run.ledger.price is not None}
    return with_best(row) if len(currencies) == 1 else row


def _goals(runs: list[Run]) -> list[float]:
    """The lowest loss that all runs reached, two on the way there, and the lowest that more than half reached."""
    curves = [losses for run in runs if (losses := _losses(run.evaluations))]
    if len(curves) < 2:
        return []
    lowest = sorted((min(losses) for losses in curves), reverse=True)
    all_reached, most_reached = lowest[0], lowest[(len(lowest) - 1) // 2]
    begin = min(losses[0] for losses in curves)  # above that, a run's first evaluation already lies lower
    way = [begin + (all_reached - begin) * step / (_BETWEEN + 1) for step in range(1, _BETWEEN + 1)]
    rounded = [float(number(loss, 3)) for loss in way]
    return [*dict.fromkeys(loss for loss in rounded if begin > loss > all_reached), *{all_reached: 0, most_reached: 0}]


def _losses(evaluations: list[Event]) -> list[float]:
    return [event["loss"] for event in evaluations if known(event["loss"])]
