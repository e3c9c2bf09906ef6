"""Plans for people: tables in a terminal, and a picture of several chips beside one another."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gossamer.plan.cluster_plan import ClusterPlan
from gossamer.plan.search import FittingLayout
from gossamer.plan.serving import Serving
from gossamer.report.chart import PALETTE
from gossamer.units import amount, days, dollars, duration, energy, human, money, network_words, number, percent, size

__all__ = ["PICTURE_FORMATS", "describe_plan", "describe_plans", "describe_serving", "draw_plans"]

_WIDTH = 118  # characters of a line

# Tables.


def describe_plan(plan: ClusterPlan) -> str:
    """Return one plan: what the run takes, its five fastest layouts, and where time and memory of the first go."""
    low, high = plan.uncertainty_range(plan.days)
    network, job = plan.network, plan.job
    lines = [
        f"{network.name}: {network_words(*network.sizes)}{_adapters(plan)}",
        f"{human(plan.tokens)} tokens in rows of {job.length:,}, {human(job.batch)} per step",
        f"{plan.count:,} × {plan.chip.name} (figures: {plan.chip.worst_grade} at worst)",
        "",
        f"{_time(plan.days)} ({_time(low)} to {_time(high)}), {human(plan.device_hours)} device-hours, "
        f"{percent(plan.availability)} of them in steps",
        f"{human(plan.tokens_per_second())} tokens/s, {human(plan.tokens_per_second() / plan.count)} per chip; "
        f"MFU {percent(plan.mfu())} ({percent(plan.mfu_by_parameters)} by {human(2 * plan.passes, 1)}·N·D)",
        f"{_cost(plan)}; energy {_energy(plan)}",
    ]
    return (
        "\n".join(lines) + "\n" + _printed(_layout_table(plan)) + _printed(_time_table(plan.best), _memory_table(plan))
    )


def _adapters(plan: ClusterPlan) -> str:
    trained = plan.job.trained
    return f", adapters of {human(trained * plan.network.parameters)} trained" if trained < 1 else ""


def describe_plans(plans: Sequence[ClusterPlan]) -> str:
    """Return a table of several chips for the same run, in the order given."""
    first = plans[0]
    head = (
        f"{first.network.name}: {human(first.tokens)} tokens in rows of {first.job.length:,}, "
        f"{human(first.job.batch)} per step, on {amount(first.count, 'chip')}"
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("chip")
    for name in ("days", "range", "tokens/s per chip", "MFU", "energy", "money"):
        table.add_column(name, justify="right")
    for name in ("figures", "layout"):
        table.add_column(name)
    for plan in plans:
        low, high = plan.uncertainty_range(plan.days)
        table.add_row(
            plan.chip.key, days(plan.days), f"{days(low)} to {days(high)}",
            human(plan.tokens_per_second() / plan.count), percent(plan.mfu()),
            energy(plan.kilowatt_hours), dollars(plan.dollars), plan.chip.worst_grade, plan.best.layout.describe(),
        )  # fmt: skip
    return f"{head}\n{_printed(table)}"


def describe_serving(services: Sequence[Serving]) -> str:
    """Return a table of decoding and prompt processing on each chip."""
    first = services[0]
    head = f"{first.network.name}: {first.batch:,} sequences of {first.context:,} tokens, weights in bfloat16"
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("chip")
    for name in ("chips", "weights", "caches", "tokens/s", "each", "$/million", "prompts: tokens/s", "$/million"):
        table.add_column(name, justify="right")
    table.add_column("mostly")
    for one in services:
        slowest = max(one.parts, key=one.parts.__getitem__)
        table.add_row(
            one.chip.key, f"{one.chips}", size(one.weights), size(one.caches), human(one.tokens_per_second),
            human(one.tokens_per_second / one.batch, 2), dollars(one.dollars_per_million_tokens(one.tokens_per_second)),
            human(one.prompt_tokens_per_second), dollars(one.dollars_per_million_tokens(one.prompt_tokens_per_second)),
            f"{slowest} {percent(one.parts[slowest] / sum(one.parts.values()))}",
        )  # fmt: skip
    return f"{head}\n{_printed(table)}"


def _layout_table(plan: ClusterPlan) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("layout", "weights", "rows × micro-batches", "recompute"):
        table.add_column(name)
    for name in ("step", "tokens/s", "MFU", "memory"):
        table.add_column(name, justify="right")
    for fitting in plan.layouts:
        layout, memory = fitting.layout, fitting.memory.total
        table.add_row(
            layout.describe(), "spread" if layout.spread_weights else "whole",
            f"{layout.rows} × {fitting.micro_batches}",
            "yes" if layout.recompute else "no", f"{number(fitting.seconds, 3)} s",
            human(plan.tokens_per_second(fitting)), percent(plan.mfu(fitting)),
            f"{size(memory)}, {percent(memory / plan.chip.memory.value)}",
        )  # fmt: skip
    return table


def _time_table(fitting: FittingLayout) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("time of a step")
    table.add_column("", justify="right")
    for part, seconds in sorted(fitting.parts.items(), key=lambda item: -item[1]):
        table.add_row(part, percent(seconds / fitting.seconds, 1))
    return table


def _memory_table(plan: ClusterPlan) -> Table:
    memory, whole = plan.best.memory, plan.chip.memory.value
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("memory of a chip")
    table.add_column("", justify="right")
    table.add_column("", justify="right")
    for name in ("weights", "gradients", "optimizer", "activations", "workspace"):
        table.add_row(name, size(getattr(memory, name)), percent(getattr(memory, name) / whole, 1))
    table.add_row("all", size(memory.total), percent(memory.total / whole, 1))
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


def _time(value: float) -> str:
    return f"{days(value)} days" if value >= 2 else duration(value * 86400)


def _cost(plan: ClusterPlan) -> str:
    if plan.dollars is None or plan.price is None:
        return "money unknown: no price is published (--price gives one)"
    low, high = plan.uncertainty_range(plan.dollars, plan.price_error)
    return f"{dollars(plan.dollars)} ({dollars(low)} to {dollars(high)}) at ${money(plan.price)} per chip-hour"


def _energy(plan: ClusterPlan) -> str:
    if plan.kilowatt_hours is None:
        return "unknown: the chip's power is not published"
    return f"{energy(plan.kilowatt_hours)} at the chips' full power"


# The picture: days with their error bars, money, and where the time of a token goes.

PICTURE_FORMATS = ("png", "svg", "pdf")
_GROUPS = {
    "products": ("products", "vocabulary"),
    "experts": ("experts",),
    "attention, linear attention": ("attention", "linear attention"),
    "memory-bound, router": ("memory-bound", "router and dispatch", "optimizer"),
    "exchange": ("expert exchange", "tensor exchange", "context exchange", "weights and gradients"),
    "pipeline bubble": ("pipeline bubble",),
}
_COLORS = ("train", "sky", "green", "gold", "validation", "pink")
_GRADE_MARKS = {"vendor": "", "third party": "", "derived": " †", "assumed": " *"}


def draw_plans(plans: Sequence[ClusterPlan], kind: str) -> bytes:
    """Draw plans of one run beside one another, in the order given, on white.

    Args:
        plans: the plans
        kind: one of `PICTURE_FORMATS`
    """
    import matplotlib
    from matplotlib.figure import Figure

    first, muted = plans[0], PALETTE["muted"][0]
    with matplotlib.rc_context({"font.size": 10, "svg.hashsalt": "gossamer"}):
        figure = Figure(figsize=(11, 1.75 + 0.47 * len(plans)), facecolor="white")
        top = 1 - 0.85 / figure.get_figheight()
        day_axes, money_axes, share_axes = figure.subplots(
            1, 3, sharey=True,
            gridspec_kw={"width_ratios": (1, 1, 1.45), "left": 0.215, "right": 0.985, "top": top,
                         "bottom": 0.82 / figure.get_figheight(), "wspace": 0.1},
        )  # fmt: skip
        _bars(day_axes, plans, [plan.days for plan in plans], [0.0] * len(plans), "days")
        _bars(money_axes, plans, [plan.dollars for plan in plans], [plan.price_error for plan in plans], "US dollars")
        _stacks(share_axes, plans)
        names = [f"{plan.chip.name}{_GRADE_MARKS[plan.chip.worst_grade]}" for plan in plans]
        day_axes.set_yticks(range(len(plans)), names)
        day_axes.invert_yaxis()
        for axes in (day_axes, money_axes, share_axes):
            axes.tick_params(length=0, colors=muted, pad=4)
            for name, spine in axes.spines.items():
                spine.set_visible(name == "left")
                spine.set_color(PALETTE["line"][0])
        day_axes.tick_params(axis="y", colors=PALETTE["ink"][0])
        title = f"{first.network.name}: {human(first.tokens)} tokens on {first.count:,} chips"
        figure.text(0.012, 1 - 0.32 / figure.get_figheight(), title, fontsize=14, fontweight="bold", parse_math=False)
        figure.text(0.012, 0.1 / figure.get_figheight(), _note(plans), fontsize=8, color=muted, parse_math=False)
        buffer = io.BytesIO()
        metadata = {"Software": None} if kind == "png" else {"Date": None} if kind == "svg" else {"CreationDate": None}
        figure.savefig(buffer, format=kind, dpi=170, metadata=metadata)
    return buffer.getvalue()


def _bars(axes: Any, plans: Sequence[ClusterPlan], values: list[float | None], more: list[float], unit: str) -> None:
    """Draw a bar for each plan with the range that it may lie in, and a note where nothing is known."""
    axes.set_title(unit, loc="left", fontsize=10, color=PALETTE["muted"][0])
    measured = [
        (row, value, plan.uncertainty_range(value, error))
        for row, (plan, value, error) in enumerate(zip(plans, values, more, strict=True))
        if value is not None
    ]
    longest = max((high for _, _, (_, high) in measured), default=1.0)
    for row, value, (low, high) in measured:
        axes.barh(row, value, height=0.56, color=PALETTE["train" if unit == "days" else "green"][0])
        bars = [[value - low], [high - value]]
        axes.errorbar(value, row, xerr=bars, color=PALETTE["ink"][0], linewidth=1.1, capsize=2.5)
        text = days(value) if unit == "days" else human(value, 2)
        axes.annotate(text, (high, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5)
    for row, missing in enumerate(values):
        if missing is None:
            axes.annotate("no price published", (0, row), xytext=(5, 0), textcoords="offset points", va="center",
                          fontsize=8.5, color=PALETTE["muted"][0])  # fmt: skip
    axes.set_xlim(0, longest * 1.28)
    axes.set_xticks([])


def _stacks(axes: Any, plans: Sequence[ClusterPlan]) -> None:
    """Draw the share of a step that each group of parts takes."""
    axes.set_title("share of a step's time", loc="left", fontsize=10, color=PALETTE["muted"][0])
    left = [0.0] * len(plans)
    for (group, parts), color in zip(_GROUPS.items(), _COLORS, strict=True):
        widths = [
            100 * sum(plan.best.parts.get(part, 0.0) for part in parts) / plan.best.seconds for plan in plans
        ]  # fmt: skip
        axes.barh(range(len(plans)), widths, left=left, height=0.56, color=PALETTE[color][0], label=group)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlim(0, 100)
    axes.set_xticks([])
    axes.legend(
        frameon=False, fontsize=8, ncols=3, loc="upper right", bbox_to_anchor=(1.01, -0.01), handlelength=0.9,
        columnspacing=1.0, borderaxespad=0.2,
    )  # fmt: skip


def _note(plans: Sequence[ClusterPlan]) -> str:
    marks = {"*": "* a figure that decides the time is assumed", "†": "† derived"}
    used = [text for mark, text in marks.items() if any(mark in _GRADE_MARKS[plan.chip.worst_grade] for plan in plans)]
    return "; ".join(["Error bars: the planner's own error and the grades of the chips' figures", *used])
