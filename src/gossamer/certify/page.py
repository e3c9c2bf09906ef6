"""`certificate.html`: a certificate on one page that needs nothing else, with its pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup, escape

from gossamer.certify import network
from gossamer.certify.aten_operators import COMPOSED, FELL_BACK, NATIVE, PLUGIN
from gossamer.certify.certificate import PAGE_FILE, worst_of
from gossamer.certify.checks import GROUPS, Check, failed
from gossamer.certify.run import Findings
from gossamer.certify.training import TOLERANCE
from gossamer.report import page
from gossamer.report.chart import SERIES, Chart, Curve, draw_svg, lookup_table
from gossamer.report.run_charts import NARROW, WIDE, ChartFigure
from gossamer.units import amount, byte_rate, duration, flops, size

__all__ = ["write_page"]

_LOW, _HIGH = 1e-5, 1e1  # errors over tolerances, at the picture's ends
_LEFT, _RIGHT, _ROW, _WIDTH = 235, 20, 21, 1040


def write_page(findings: Findings, record: dict[str, Any], folder: Path) -> Path:
    """Write a certificate's page beside it."""
    checks, losses = findings.checks, findings.curves.losses
    curves = [loss_chart(losses), difference_chart(losses)]
    text = page.render(
        "certificate.html.jinja",
        package="gossamer.certify",
        title=f"Certificate of {record['device']['name']}",
        record=record,
        facts=_facts(record),
        failures=[check.describe() for check in failed(checks)],
        other_reasons=record["reasons"][len(failed(checks)) :],
        errors=error_picture([check for check in checks if check.group == "operations" and check.dtype]),
        colors=colors([check.dtype for check in checks if check.group == "operations" and check.tolerance]),
        groups=[_group(group, checks) for group in GROUPS],
        curves=[drawn_over_tokens(chart) for chart in curves if chart.is_measured],
        operators=record["operators"],
        ran=_places(record["operators"]),
        training=record["measured"]["training"],
    )
    return page.write_page(folder / PAGE_FILE, text)


def _facts(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the figures at the head of the page: label, figure, remark."""
    device, measured = record["device"], record["measured"]
    counts = Counter(check["status"] for check in record["checks"])
    facts = [("checks passed", f"{counts['pass']:,}", f"{counts['fail']} failed, {counts['not run']} not run")]
    memory = size(device["memory_bytes"])
    facts.append(("memory", memory, amount(device["count"], "device")))
    for dtype, rate in measured["gemm_flops"].items():
        facts.append((f"products in {dtype}", f"{flops(rate)}/s", "large square matrices"))
    if rate := measured["copy_bytes_per_second"]:
        facts.append(("copies", byte_rate(rate), "read and written"))
    if rate := measured["collective_bytes_per_second"]:
        facts.append(("sums over all devices", byte_rate(rate), device["capabilities"]["collective"]))
    facts.append(("took", duration(record["seconds"]), "quick: fewer inputs" if record["quick"] else "all inputs"))
    return facts


def _group(group: str, checks: Sequence[Check]) -> dict[str, Any]:
    """Describe one kind of check: what it asks, its counts, and its checks with failures first."""
    own = [check for check in checks if check.group == group]
    order = {"fail": 0, "not run": 1, "pass": 2}
    return {
        "name": group,
        "question": GROUPS[group],
        "counts": Counter(check.status for check in own),
        "worst": worst_of(check for check in own if check.status == "pass"),
        "checks": sorted(own, key=lambda check: order[check.status]),
    }


def _places(operators: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Count where operators ran: how many of them, and how many calls."""
    found = []
    for where in (NATIVE, PLUGIN, COMPOSED, FELL_BACK):
        own = [row for row in operators if row["ran"] == where]
        if own:
            found.append((where, len(own), sum(row["calls"] for row in own)))
    return found


def colors(dtypes: Sequence[str]) -> dict[str, str]:
    """Assign each type a color of the palette."""
    return {dtype: SERIES[index % len(SERIES)] for index, dtype in enumerate(dict.fromkeys(dtypes))}


def error_picture(checks: Sequence[Check]) -> Markup:
    """Draw a row for each name and a dot for each check: its error over its tolerance, on a logarithmic axis.

    Errors of zero stand at the left end, failures that have no number at the right end.
    """
    measured = [check for check in checks if check.tolerance]
    rows = list(dict.fromkeys(check.name for check in measured))
    color = colors([check.dtype for check in measured])
    bottom = 12 + _ROW * len(rows)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {bottom + 42}" font-size="12" fill="none" aria-hidden="true">']
    for power in range(-5, 2):
        x, label = _place(10.0**power), {0: "allowed", 1: "10×"}.get(power, f"1e{power}")
        stroke = "alarm" if power == 0 else "line"
        parts.append(f'<path d="M{x:.1f} 6V{bottom}" stroke="var(--{stroke})"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="var(--muted)">{label}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH) / 2}" y="{bottom + 36}" text-anchor="middle" fill="var(--muted)">'
        "error as a share of what is allowed</text>"
    )
    for index, name in enumerate(rows):
        y = 6 + _ROW * (index + 0.5)
        parts.append(f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="var(--line)"/>')
        parts.append(f'<text x="{_LEFT - 10}" y="{y}" dy="4" text-anchor="end" fill="var(--ink)">{escape(name)}</text>')
        parts += [_dot(check, y, color[check.dtype]) for check in measured if check.name == name]
    return Markup("".join([*parts, "</svg>"]))


def _dot(check: Check, y: float, color: str) -> str:
    assert check.error is not None and check.tolerance
    share = check.error / check.tolerance
    x = _place(share if share == share else math.inf)
    if check.status == "fail":
        return f'<path d="M{x - 5:.1f} {y - 5}l10 10m0 -10l-10 10" stroke="var(--alarm)" stroke-width="2.5"/>'
    return f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="var(--{color})" fill-opacity=".65"/>'


def _place(share: float) -> float:
    """Return the place of an error over its tolerance, in pixels from the left."""
    clipped = min(max(share, _LOW), _HIGH)
    fraction = (math.log(clipped) - math.log(_LOW)) / (math.log(_HIGH) - math.log(_LOW))
    return _LEFT + 8 + fraction * (_WIDTH - _LEFT - _RIGHT - 16)


def loss_chart(losses: dict[str, list[float]]) -> Chart:
    """Chart the losses of all runs, with the CPU's in float64 as a dashed line over them."""
    curves = [_curve(values, dtype, color) for dtype, values, color in _runs(losses)]
    if "reference" in losses:
        curves.append(_curve(losses["reference"], "the CPU in float64", "ink", dashed=True))
    return Chart("Loss", "nats per token", tuple(curves))


def difference_chart(losses: dict[str, list[float]]) -> Chart:
    """Chart how far each loss is from the CPU's, as a share of it."""
    reference = np.array(losses.get("reference", []))
    curves = []
    for dtype, values, color in _runs(losses):
        share = np.abs(np.array(values) - reference) / reference
        curves.append(_curve(np.where(share > 0, share, math.nan).tolist(), dtype, color, dots=True))
        allowed = [TOLERANCE[getattr(torch, dtype)]] * len(values)
        curves.append(_curve(allowed, f"allowed in {dtype}", color, dashed=True))
    return Chart("Difference", "share of the CPU's loss", tuple(curves), logarithmic=True)


def _runs(losses: dict[str, list[float]]) -> list[tuple[str, list[float], str]]:
    color = colors([dtype for dtype in losses if dtype != "reference"])
    return [(dtype, values, color[dtype]) for dtype, values in losses.items() if dtype != "reference"]


def _curve(values: list[float], label: str, color: str, **style: Any) -> Curve:
    steps = np.arange(1, len(values) + 1, dtype=np.float64)
    tokens = steps * network.ROWS * network.LENGTH
    return Curve(label, color, steps, tokens, steps, np.array(values, dtype=np.float64), **style)


def drawn_over_tokens(chart: Chart) -> ChartFigure:
    """Draw a chart over tokens: every run here takes the same ones, and their time does not matter."""
    end = max((float(item.tokens[-1]) for item in chart.curves if len(item.tokens)), default=1.0)
    sizes = (("wide", (WIDE[0], 280)), ("narrow", NARROW))
    pictures = [
        {"axis": "tokens", "shape": shape, "picture": draw_svg(chart, "tokens", end, *size)} for shape, size in sizes
    ]
    return ChartFigure(chart, chart.curves, pictures, True, {"curves": lookup_table(chart.curves), "marks": []})
