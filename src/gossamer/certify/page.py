"""`certificate.html`: a certificate on one page that needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gossamer.certify import plots
from gossamer.certify.census import COMPOSED, FELL_BACK, NATIVE, PLUGIN
from gossamer.certify.certificate import PAGE_FILE
from gossamer.certify.checks import GROUPS, Check, failed
from gossamer.certify.run import Findings
from gossamer.certify.table import worst_of
from gossamer.report import page
from gossamer.units import amount, duration, flops, size

__all__ = ["write_page"]


def write_page(findings: Findings, record: dict[str, Any], folder: Path) -> Path:
    """Write a certificate's page beside it."""
    checks, losses = findings.checks, findings.curves.losses
    curves = [plots.loss_chart(losses), plots.difference_chart(losses)]
    text = page.render(
        "certificate.html.jinja",
        package="gossamer.certify",
        title=f"Certificate of {record['device']['name']}",
        record=record,
        facts=_facts(record),
        failures=[check.describe() for check in failed(checks)],
        other_reasons=record["reasons"][len(failed(checks)) :],
        errors=plots.error_picture([check for check in checks if check.group == "operations" and check.dtype]),
        colors=plots.colors([check.dtype for check in checks if check.group == "operations" and check.tolerance]),
        groups=[_group(group, checks) for group in GROUPS],
        curves=[plots.drawn_over_tokens(chart) for chart in curves if chart.measured],
        operators=record["operators"],
        ran=_ran(record["operators"]),
        training=record["measured"]["training"],
    )
    return page.write_page(folder / PAGE_FILE, text)


def _facts(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Figures at the head of the page: label, figure, remark."""
    device, measured = record["device"], record["measured"]
    counts = Counter(check["status"] for check in record["checks"])
    facts = [("checks passed", f"{counts['pass']:,}", f"{counts['fail']} failed, {counts['not run']} not run")]
    memory = size(device["memory_bytes"])
    facts.append(("memory", memory, amount(device["count"], "device")))
    for dtype, rate in measured["gemm_flops"].items():
        facts.append((f"products in {dtype}", f"{flops(rate)}/s", "large square matrices"))
    if rate := measured["copy_bytes_per_second"]:
        facts.append(("copies", f"{rate / 1e9:.3g} GB/s", "read and written"))
    if rate := measured["collective_bytes_per_second"]:
        facts.append(("sums over all devices", f"{rate / 1e9:.3g} GB/s", device["capabilities"]["collective"]))
    facts.append(("took", duration(record["seconds"]), "quick: fewer inputs" if record["quick"] else "all inputs"))
    return facts


def _group(group: str, checks: Sequence[Check]) -> dict[str, Any]:
    """One kind of check: what it asks, its counts, its failures first."""
    own = [check for check in checks if check.group == group]
    order = {"fail": 0, "not run": 1, "pass": 2}
    return {
        "name": group,
        "question": GROUPS[group],
        "counts": Counter(check.status for check in own),
        "worst": worst_of(check for check in own if check.status == "pass"),
        "checks": sorted(own, key=lambda check: order[check.status]),
    }


def _ran(operators: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Where operators ran: how many of them, and how many calls."""
    found = []
    for where in (NATIVE, PLUGIN, COMPOSED, FELL_BACK):
        own = [row for row in operators if row["ran"] == where]
        if own:
            found.append((where, len(own), sum(row["calls"] for row in own)))
    return found
