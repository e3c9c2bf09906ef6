"""Chips for the same run as a picture: days with their error bars, money, and where a token's time goes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from gossamer.plan import Plan
from gossamer.report.curves import PALETTE
from gossamer.units import human

__all__ = ["FORMATS", "draw_plans"]

FORMATS = ("png", "svg", "pdf")
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


def draw_plans(plans: Sequence[Plan], kind: str) -> bytes:
    """Draw plans of one run beside one another, in the order given, on white.

    Args:
        kind: one of FORMATS
    """
    import matplotlib
    from matplotlib.figure import Figure

    first, muted = plans[0], PALETTE["muted"][0]
    with matplotlib.rc_context({"font.size": 10, "svg.hashsalt": "gossamer"}):
        figure = Figure(figsize=(11, 1.75 + 0.47 * len(plans)), facecolor="white")
        top = 1 - 0.85 / figure.get_figheight()
        days, money, time = figure.subplots(
            1, 3, sharey=True,
            gridspec_kw={"width_ratios": (1, 1, 1.45), "left": 0.215, "right": 0.985, "top": top,
                         "bottom": 0.82 / figure.get_figheight(), "wspace": 0.1},
        )  # fmt: skip
        _bars(days, plans, [plan.days for plan in plans], [0.0] * len(plans), "days")
        _bars(money, plans, [plan.dollars for plan in plans], [plan.price_error for plan in plans], "US dollars")
        _stacks(time, plans)
        names = [f"{plan.chip.name}{_GRADE_MARKS[plan.chip.worst_grade]}" for plan in plans]
        days.set_yticks(range(len(plans)), names)
        days.invert_yaxis()
        for axes in (days, money, time):
            axes.tick_params(length=0, colors=muted, pad=4)
            for name, spine in axes.spines.items():
                spine.set_visible(name == "left")
                spine.set_color(PALETTE["line"][0])
        days.tick_params(axis="y", colors=PALETTE["ink"][0])
        title = f"{first.work.name}: {human(first.tokens)} tokens on {first.count:,} chips"
        figure.text(0.012, 1 - 0.32 / figure.get_figheight(), title, fontsize=14, fontweight="bold", parse_math=False)
        figure.text(0.012, 0.1 / figure.get_figheight(), _note(plans), fontsize=8, color=muted, parse_math=False)
        buffer = io.BytesIO()
        metadata = {"Software": None} if kind == "png" else {"Date": None} if kind == "svg" else {"CreationDate": None}
        figure.savefig(buffer, format=kind, dpi=170, metadata=metadata)
    return buffer.getvalue()


def _bars(axes: Any, plans: Sequence[Plan], values: list[float | None], more: list[float], unit: str) -> None:
    """A bar for each plan with the range it may lie in; a dash where nothing is known."""
    axes.set_title(unit, loc="left", fontsize=10, color=PALETTE["muted"][0])
    known = [
        (row, value, plan.between(value, error))
        for row, (plan, value, error) in enumerate(zip(plans, values, more, strict=True))
        if value is not None
    ]
    longest = max((high for _, _, (_, high) in known), default=1.0)
    for row, value, (low, high) in known:
        axes.barh(row, value, height=0.56, color=PALETTE["train" if unit == "days" else "green"][0])
        bars = [[value - low], [high - value]]
        axes.errorbar(value, row, xerr=bars, color=PALETTE["ink"][0], linewidth=1.1, capsize=2.5)
        text = f"{value:,.0f}" if unit == "days" and value >= 10 else human(value, 2)
        axes.annotate(text, (high, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5)
    for row, missing in enumerate(values):
        if missing is None:
            axes.annotate("no price published", (0, row), xytext=(5, 0), textcoords="offset points", va="center",
                          fontsize=8.5, color=PALETTE["muted"][0])  # fmt: skip
    axes.set_xlim(0, longest * 1.28)
    axes.set_xticks([])


def _stacks(axes: Any, plans: Sequence[Plan]) -> None:
    """What shares of a step each group of parts takes."""
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


def _note(plans: Sequence[Plan]) -> str:
    marks = {
        "*": "* a figure that decides the time is assumed",
        "†": "† derived",
    }
    used = [text for mark, text in marks.items() if any(mark in _GRADE_MARKS[plan.chip.worst_grade] for plan in plans)]
    return "; ".join(["Error bars: the planner's own error and the grades of the chips' figures", *used])
