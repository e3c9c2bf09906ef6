"""The report of a run: one HTML file that needs nothing else, made from `metrics.jsonl` and `config.yaml`.

It can be made at any moment of a run's life: before the first step, on the way, after a divergence, and at the end.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer.cost.ledger import OVERHEADS, STEPS, Ledger, read_ledger
from gossamer.files import write_atomically
from gossamer.reading import checked, read_object, text_of_name
from gossamer.report.history import Event, History, best, best_before, evenly, measured_over, numbers, read_history
from gossamer.report.page import configuration, render, sections, visible, write_page
from gossamer.units import (
    SIZES,
    amount,
    count,
    duration,
    energy,
    flops,
    hours,
    is_number,
    money,
    network_size,
    network_words,
    number,
    percent,
    size,
)

__all__ = ["REPORT_FILE", "loss_curve_png", "write_report"]

REPORT_FILE = "report.html"

# So many are shown at most, evenly over the run; all are in metrics.jsonl.
_MAX_SAMPLES = 24
_MAX_EVALUATIONS = 60
_MAX_INCIDENTS = 60
_MAX_SAMPLE_CHARACTERS = 6000
_GUARD_FILE = "guard.json"  # of a tuning


class _Verdict(TypedDict):
    """What a page shows of a model before and after tuning."""

    rows: list[tuple[str, str, str]]
    answers: list[dict[str, str]]
    regressions: dict[str, float | None]


class _Guarded(TypedDict, total=False):
    """The part of guard.json that a page shows."""

    verdict: _Verdict


class Fact(NamedTuple):
    """A figure at the head of the page, with its label and a remark."""

    label: str
    figure: str
    remark: str = ""


def write_report(run: Path, path: Path | None = None) -> Path:
    """Write the report of a run, replacing an older one whole, and return its path.

    Args:
        run: folder of the run
        path: the file; None means `report.html` in that folder

    Raises:
        UserError: the folder has no `metrics.jsonl`, or a damaged one.
    """
    history, ledger = read_history(run), read_ledger(run)
    # Imported here, as they bring NumPy: other verbs than `report` must not wait for them.
    from gossamer.report import heatmap, run_charts

    config, config_text = configuration(run)
    ends, loss = history.ends(), run_charts.loss_chart(history)
    learning = [run_charts.draw_chart(loss, ends, run_charts.WIDE)] if loss.is_measured else []
    learning += run_charts.draw_pairs(run_charts.learning_charts(history), ends)
    names = heatmap.layer_names(config.get("model"), _num_layers(history))
    heat_maps = heatmap.load_over_time(history, names), heatmap.latest_load(history, names)
    incidents = history.incidents()
    page = render(
        "run.html.jinja",
        title=text_of_name(run.resolve().name),
        description=config.pop("description", None),
        start=history.last("start"),
        date=history.date(),
        state=history.state(config),
        facts=_facts(history, ledger),
        warning=_warning(history),
        tuned=_tuned(run),
        sets=_sets(history),
        learning=learning,
        experts=run_charts.draw_pairs(run_charts.expert_charts(history), ends),
        heat_maps=[found for found in heat_maps if found],
        balance=_balance(history, names),
        machine=run_charts.draw_pairs(run_charts.machine_charts(history), ends),
        costs=_costs(ledger),
        evaluations=_evaluations(history),
        incidents=evenly(incidents, _MAX_INCIDENTS)[::-1],
        incident_count=len(incidents),
        samples=_samples(history),
        sample_count=len(history.of("sample")),
        config=sections(config),
        config_text=config_text,
    )
    return write_page(run / REPORT_FILE if path is None else path, page)


def loss_curve_png(run: Path, path: Path) -> None:
    """Write a picture of training and validation loss over tokens, titled with the run's name and size, for a README.

    Args:
        run: folder of the run
        path: the file

    Raises:
        UserError: the folder has no `metrics.jsonl`, or a damaged one.
    """
    history = read_history(run)
    from gossamer.report.chart import draw_png
    from gossamer.report.run_charts import loss_chart

    start, measured = history.last("start"), _measured(history)
    parts = []
    if is_number(start.get("parameters")):
        parts.append(network_words(*map(start.get, SIZES)).partition(";")[0])
    if is_number(measured.get("loss")):
        parts.append(f"validation loss {number(measured['loss'])}")
    if is_number(measured.get("bits_per_byte")):
        parts.append(f"{number(measured['bits_per_byte'])} bits per byte")
    name = text_of_name(run.resolve().name)[:60]
    write_atomically(path, draw_png(loss_chart(history), history.ends()["tokens"], name, " · ".join(parts)))


def _measured(history: History) -> Event:
    """The newest measurement on the primary validation set, or an empty one."""
    return next(iter(history.measurements().values()), [{}])[-1]


def _facts(history: History, ledger: Ledger | None) -> list[Fact]:
    """The figures at the head of the page; what was not measured is left out."""
    return [*_quality(history), *_effort(history), *([] if ledger is None else _cost(ledger))]


def _cost(ledger: Ledger) -> list[Fact]:
    facts = []
    if ledger.mfu is not None:
        facts.append(Fact("MFU", percent(ledger.mfu), f"of {flops(ledger.peak)}/s, measured"))
    if ledger.device_hours:
        lost = sum(ledger.accounts[name].device_seconds for name in ("repeated", "failed")) / 3600
        facts.append(
            Fact("device-hours", hours(ledger.device_hours), f"{hours(lost)} repeated or failed" if lost else "")
        )
    if ledger.kilowatt_hours is not None:
        share = ledger.energy_share
        remark = f"known of {percent(share)} of the time" if share < 0.99 else "as the machine reports"
        facts.append(Fact("energy", energy(ledger.kilowatt_hours), remark))
    if ledger.money is not None:
        facts.append(Fact("money", money(ledger.money, ledger.currency), f"{money(ledger.price)} for a device-hour"))
    return facts


def _quality(history: History) -> list[Fact]:
    evaluations, measured = history.evaluations(), _measured(history)
    facts = []
    if is_number(measured.get("loss")):
        remarks = [f"on {next(iter(evaluations))}"] if len(evaluations) > 1 else []
        remarks += [
            remark for remark in (measured_over(measured), best_before(next(iter(evaluations.values())))) if remark
        ]
        facts.append(Fact("validation loss", number(measured["loss"]), ", ".join(remarks) or "nats per token"))
    elif (average := _training_loss(history)) is not None:
        facts.append(Fact("training loss", number(average), "nats per token, smoothed"))
    if is_number(measured.get("bits_per_byte")):
        loss: Any = measured.get("loss")
        remarks = [f"perplexity {number(math.exp(loss))}"] if is_number(loss) and loss < 100 else []
        if is_number(predicted := history.last("plan").get("bits_per_byte")):
            remarks.append(f"{number(predicted)} predicted for the end")
        facts.append(Fact("bits per byte", number(measured["bits_per_byte"]), ", ".join(remarks)))
    first, *later = [percent(rate) for rate in numbers(measured.get("mtp_acceptance"))] or [""]
    if first:
        remark = f"then {', '.join(later)}" if later else "by multi-token prediction"
        facts.append(Fact("drafts accepted", first, remark))
    return facts


def _effort(history: History) -> list[Fact]:
    start, tokens, elapsed = history.last("start"), history.newest("tokens"), history.newest("elapsed")
    facts = []
    if is_number(tokens):
        step = start.get("tokens_per_step")
        facts.append(Fact("tokens", count(tokens), f"{count(step)} per step" if is_number(step) else ""))
    if is_number(elapsed):
        speed = f"{count(round(tokens / elapsed))} tokens/s" if is_number(tokens) and elapsed > 0 else ""
        facts.append(Fact("training time", duration(elapsed), speed))
    if is_number(start.get("parameters")):
        facts.append(Fact("parameters", *network_size(*map(start.get, SIZES))))
    if is_number(start.get("flops_per_token")) and is_number(tokens):
        total = start["flops_per_token"] * tokens
        rate = f"{flops(total / elapsed)}/s" if is_number(elapsed) and elapsed > 0 else ""
        facts.append(Fact("compute", flops(total), rate))
    memory = [event["memory"] for event in history.of("train") if is_number(event.get("memory"))]
    stalls = [event["seconds"] for event in history.of("checkpoint") if is_number(event.get("seconds"))]
    if memory:
        facts.append(Fact("peak memory", size(max(memory))))
    if stalls:
        facts.append(
            Fact(
                "checkpoint stalls",
                duration(math.fsum(stalls)),
                f"{amount(len(stalls), 'checkpoint')}, longest {duration(max(stalls))}",
            )
        )
    return facts


def _training_loss(history: History) -> float | None:
    """The mean of the newest fiftieth of the finite training losses, for a single step says little."""
    losses = [event["loss"] for event in history.of("train") if is_number(event.get("loss"))]
    newest = losses[-max(1, len(losses) // 50) :]
    return math.fsum(newest) / len(newest) if newest else None


def _warning(history: History) -> str | None:
    losses = [event for event in history.of("train") if "loss" in event]
    for measured in history.measurements().values():
        losses += measured
    lost = sorted(event["step"] for event in losses if not is_number(event["loss"]))
    if not lost:
        return None
    what = "1 measured loss is" if len(lost) == 1 else f"{len(lost):,} measured losses are"
    return f"{what} not finite, the first at step {lost[0]:,}."


def _sets(history: History) -> list[dict[str, Any]]:
    """The newest measurement on each validation set and the best one before it, if there are several sets."""
    measurements, evaluations = history.measurements(), history.evaluations()
    if len(measurements) < 2:
        return []
    return [
        events[-1] | {"set": name, "best": best(evaluations[name])} | {
            "accepted": [percent(rate) for rate in numbers(events[-1].get("mtp_acceptance"))]
        }
        for name, events in measurements.items()
    ]  # fmt: skip


def _evaluations(history: History) -> list[Event]:
    """The measurements to list, in the order of their steps."""
    found = []
    for name, events in history.measurements().items():
        different = {(event["step"], event.get("eval_tokens")): event | {"set": name} for event in events}
        found += evenly(different.values(), _MAX_EVALUATIONS)
    return sorted(found, key=lambda event: event["step"])


def _num_layers(history: History) -> int:
    newest = history.last("experts")
    return max((len(newest[key]) for key in ("max_over_mean", "load") if isinstance(newest.get(key), list)), default=0)


def _balance(history: History, names: list[str]) -> str | None:
    """A sentence on the newest measurement of the experts."""
    event = history.last("experts")
    peaks, entropies = numbers(event.get("max_over_mean")), numbers(event.get("entropy"))
    dead = [value for value in numbers(event.get("dead")) if is_number(value)]
    parts = []
    if any(map(is_number, peaks)):
        layer = max((index for index, value in enumerate(peaks) if is_number(value)), key=lambda index: peaks[index])
        parts.append(
            f"the busiest expert has {number(peaks[layer], 3)}× the mean load of its layer ({_layer(names, layer)})"
        )
    if dead:
        parts.append(
            f"{amount(round(sum(dead)), 'expert')} without a token" if sum(dead) else "no expert without a token"
        )
    if any(map(is_number, entropies)):
        layer = min(
            (index for index, value in enumerate(entropies) if is_number(value)), key=lambda index: entropies[index]
        )
        parts.append(f"lowest routing entropy {number(entropies[layer], 3)} of 1 ({_layer(names, layer)})")
    return f"At step {event['step']:,}: {'; '.join(parts)}." if parts else None


def _layer(names: list[str], index: int) -> str:
    name = names[index] if index < len(names) else str(index)
    return "the MTP head" if name == "MTP" else f"layer {name}"


def _tuned(run: Path) -> dict[str, Any] | None:
    """What a tuned model could do before and can do after, with its answers; None before the end of a tuning."""
    path = run / _GUARD_FILE
    found = checked(read_object(path), _Guarded, str(path), "delete it").get("verdict") if path.is_file() else None
    if found is None:
        return None
    shown = [{name: visible(text)[:_MAX_SAMPLE_CHARACTERS] for name, text in one.items()} for one in found["answers"]]
    worse = [f"{name}: {by:+.4f} bits per byte" for name, by in found["regressions"].items() if by is not None]
    return {"rows": found["rows"], "answers": shown, "worse": worse}


def _samples(history: History) -> list[Event]:
    """The samples to show, newest first, with the tokens trained on by then."""
    found = []
    for event in history.of("sample"):
        text = visible(str(event.get("text", "")).rstrip())
        shown = text[:_MAX_SAMPLE_CHARACTERS]
        found.append(event | {"tokens": event.get("tokens"), "text": shown, "more": len(text) - len(shown)})
    return evenly(found, _MAX_SAMPLES)[::-1]


# What it cost.

_PARTS = {"linear_attention": "linear attention", "mtp": "MTP"}


def _costs(ledger: Ledger | None) -> dict[str, Any] | None:
    """The tables of a run's ledger; None if nothing is booked in it."""
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
            "per_token": flops(spent / work.tokens) if work.tokens else "–",
            "flops": flops(spent),
            "share": percent(spent / work.all_flops),
        }
        for part, spent in sorted(work.flops.items(), key=lambda item: -item[1])
        if spent
    ]
    return {"ledger": ledger, "accounts": accounts, "parts": parts, "estimate": ledger.estimate()}
