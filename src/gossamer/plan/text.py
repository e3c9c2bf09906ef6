"""A plan for people: in a terminal as tables, and several beside one another."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gossamer.plan import Plan, Serving
from gossamer.plan.search import Option
from gossamer.units import duration, human, network_words, number, percent, size

__all__ = ["describe_plan", "describe_plans", "describe_serving"]

_WIDTH = 118


def describe_plan(plan: Plan) -> str:
    """One plan: what the run takes, its five fastest layouts, and where the time and the memory of the first go."""
    low, high = plan.between(plan.days)
    work, job = plan.work, plan.job
    lines = [
        f"{work.name}: {network_words(*work.sizes)}{_adapters(plan)}",
        f"{human(plan.tokens)} tokens in rows of {job.length:,}, {human(job.batch)} a step",
        f"{plan.count:,} × {plan.chip.name} (figures: {plan.chip.worst_grade} at worst)",
        "",
        f"{_time(plan.days)} ({_time(low)} to {_time(high)}), {human(plan.device_hours)} device-hours, "
        f"{plan.availability:.0%} of them in steps",
        f"{human(plan.tokens_per_second())} tokens/s, {human(plan.tokens_per_second() / plan.count)} a chip; "
        f"MFU {percent(plan.mfu())} ({percent(plan.simple_mfu)} by {2 * plan.passes:.2g}·N·D)",
        f"{_dollars(plan)}; energy {_energy(plan)}",
    ]
    return "\n".join(lines) + "\n" + _printed(_layouts(plan)) + _printed(_parts(plan.best), _memory(plan))


def _adapters(plan: Plan) -> str:
    trained = plan.job.trained
    return f", adapters of {human(trained * plan.work.parameters)} trained" if trained < 1 else ""


def describe_plans(plans: Sequence[Plan]) -> str:
    """Several chips for the same run, in the order given."""
    first = plans[0]
    head = (
        f"{first.work.name}: {human(first.tokens)} tokens in rows of {first.job.length:,}, {human(first.job.batch)} a "
        f"step, on {first.count:,} chips"
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    columns = (
        ("chip", "left"), ("days", "right"), ("range", "right"), ("tokens/s a chip", "right"), ("MFU", "right"),
        ("energy", "right"), ("money", "right"), ("figures", "left"),
        ("layout", "left"),
    )  # fmt: skip
    for name, side in columns:
        table.add_column(name, justify="right" if side == "right" else "left")
    for plan in plans:
        low, high = plan.between(plan.days)
        money = "–" if plan.dollars is None else f"${human(plan.dollars)}"
        table.add_row(
            plan.chip.key, _days(plan.days), f"{_days(low)} to {_days(high)}",
            human(plan.tokens_per_second() / plan.count), percent(plan.mfu()),
            "–" if plan.kilowatt_hours is None else _megawatt_hours(plan.kilowatt_hours), money,
            plan.chip.worst_grade, plan.best.layout.describe(),
        )  # fmt: skip
    return f"{head}\n{_printed(table)}"


def describe_serving(services: Sequence[Serving]) -> str:
    """Decoding and prompts on each chip."""
    first = services[0]
    head = f"{first.work.name}: {first.batch:,} sequences of {first.context:,} tokens, weights in bfloat16"
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("chip")
    for name in ("chips", "weights", "caches", "tokens/s", "each", "$/million", "prompts: tokens/s", "$/million"):
        table.add_column(name, justify="right")
    table.add_column("mostly")
    for one in services:
        slowest = max(one.parts, key=one.parts.__getitem__)
        own, prompt = one.million(one.tokens_per_second), one.million(one.prompt_tokens_per_second)
        table.add_row(
            one.chip.key, f"{one.chips}", size(one.weights), size(one.caches), human(one.tokens_per_second),
            human(one.tokens_per_second / one.batch, 2), _cents(own),
            human(one.prompt_tokens_per_second), _cents(prompt),
            f"{slowest} {percent(one.parts[slowest] / sum(one.parts.values()))}",
        )  # fmt: skip
    return f"{head}\n{_printed(table)}"


def _layouts(plan: Plan) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("layout", "weights", "rows × micro-batches", "recompute"):
        table.add_column(name)
    for name in ("step", "tokens/s", "MFU", "memory"):
        table.add_column(name, justify="right")
    for option in plan.options:
        layout = option.layout
        share = option.memory.total / plan.chip.memory.value
        table.add_row(
            layout.describe(), "spread" if layout.spread_weights else "whole",
            f"{layout.rows} × {option.micro_batches}",
            "yes" if layout.recompute else "no", f"{number(option.seconds, 3)} s",
            human(plan.tokens_per_second(option)), percent(plan.mfu(option)),
            f"{size(option.memory.total)}, {percent(share)}",
        )  # fmt: skip
    return table


def _parts(option: Option) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("time of a step")
    table.add_column("", justify="right")
    for part, seconds in sorted(option.parts.items(), key=lambda item: -item[1]):
        table.add_row(part, _share(seconds / option.seconds))
    return table


def _memory(plan: Plan) -> Table:
    memory, whole = plan.best.memory, plan.chip.memory.value
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("memory of a chip")
    table.add_column("", justify="right")
    table.add_column("", justify="right")
    for name in ("weights", "gradients", "optimizer", "activations", "workspace"):
        table.add_row(name, size(getattr(memory, name)), _share(getattr(memory, name) / whole))
    table.add_row("all", size(memory.total), _share(memory.total / whole))
    return table


def _printed(*tables: Table) -> str:
    """Tables side by side, as plain text."""
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
    if len(tables) == 1:
        console.print(tables[0])
    else:
        beside = Table.grid(padding=(0, 6))
        beside.add_row(*tables)
        console.print(beside)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _time(days: float) -> str:
    return f"{_days(days)} days" if days >= 2 else duration(days * 86400)


def _days(days: float) -> str:
    return f"{days:,.0f}" if days >= 10 else number(days, 2)


def _share(share: float) -> str:
    return f"{100 * share:.1f}%"


def _cents(dollars: float | None) -> str:
    return "–" if dollars is None else f"${dollars:.2f}" if dollars >= 0.1 else f"${number(dollars, 2)}"


def _dollars(plan: Plan) -> str:
    if plan.dollars is None or plan.price is None:
        return "money unknown: no price is published (--price gives one)"
    low, high = plan.between(plan.dollars, plan.price_error)
    return f"${human(plan.dollars)} (${human(low)} to ${human(high)}) at ${plan.price:.2f} a chip and hour"


def _energy(plan: Plan) -> str:
    if plan.kilowatt_hours is None:
        return "unknown: the chip's power is not published"
    return f"{_megawatt_hours(plan.kilowatt_hours)} at the chips' full power"


def _megawatt_hours(kilowatt_hours: float) -> str:
    return f"{kilowatt_hours / 1000:,.0f} MWh" if kilowatt_hours >= 1e4 else f"{number(kilowatt_hours / 1000, 2)} MWh"
