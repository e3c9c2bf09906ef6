"""A certificate: what was found out about a device, as `certificate.json` for programs and as tables for people."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gossamer import __version__
from gossamer import device as devices
from gossamer.certify.checks import GROUPS, Check, Status, failed, verdict
from gossamer.certify.run import Findings
from gossamer.errors import UserError
from gossamer.files import write_atomically
from gossamer.plan.efficiency import CERTIFICATE_FORMAT
from gossamer.run.metrics import finite_or_none
from gossamer.units import byte_rate, duration, flops, percent, scientific

__all__ = [
    "CERTIFICATE_FILE",
    "PAGE_FILE",
    "certificate",
    "default_folder",
    "require_writable",
    "show",
    "summary",
    "worst_of",
    "write_certificate",
]

CERTIFICATE_FILE, PAGE_FILE = "certificate.json", "certificate.html"
_COLORS: dict[Status, str] = {"pass": "green", "fail": "bold red", "not run": "yellow"}
_WORDS: dict[Status, str] = {"pass": "passed", "fail": "failed", "not run": "not run"}


def certificate(findings: Findings) -> Any:
    """Make the certificate as JSON holds it.

    `verdict` is `pass` only if nothing failed and something of every required kind of check was run; `reasons` says
    what stands in the way. A number that is not finite is null.
    """
    passed, reasons = verdict(findings.checks)
    return finite_or_none(
        {
            "gossamer": __version__,
            "format": CERTIFICATE_FORMAT,
            "date": time.strftime("%Y-%m-%d"),
            "verdict": passed,
            "reasons": reasons,
            "quick": findings.quick,
            "seconds": round(findings.seconds, 1),
            "device": findings.identity["device"],
            "software": findings.identity["software"],
            "measured": asdict(findings.measured),
            "implementations": findings.identity["implementations"],
            "checks": [check.to_dict() for check in findings.checks],
            "operators": findings.census.operators,
            "losses": findings.curves.losses,
        }
    )


def default_folder(device: torch.device) -> Path:
    """Name a folder by the device's type and name, such as `certificates/cuda-nvidia-h200`."""
    words = re.findall(r"[a-z0-9]+", f"{device.type} {devices.product_name(device)}".lower())
    return Path("certificates") / "-".join(words)


def require_writable(folder: Path) -> None:
    """Refuse (UserError) a folder that a certificate cannot be written into, before the device is asked anything."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--out {folder}: {existing} is a file; name a folder")
    if not os.access(existing, os.W_OK):
        raise UserError(f"--out {folder}: {existing} cannot be written to; name another folder")


def write_certificate(found: dict[str, Any], folder: Path) -> Path:
    """Write `certificate.json` into a folder, made if it is missing, replacing an older one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CERTIFICATE_FILE
    write_atomically(path, json.dumps(found, indent=1, allow_nan=False).encode())
    return path


def show(findings: Findings, title: str, console: Console) -> None:
    """Print what was found: operations by type, each kind of check, speed, and what failed or could not be run."""
    passed, reasons = verdict(findings.checks)
    wrong = failed(findings.checks)
    console.print(Group(f"\n[bold]{escape(title)}[/]\n", _operations(findings.checks), _groups(findings.checks)))
    console.print(Group(*_speeds(findings)), "")
    for line in _not_run(findings.checks):
        console.print(f"[yellow]not run[/]  {escape(line)}", soft_wrap=True)
    if back := findings.census.fell_back():
        console.print(f"[yellow]on the CPU[/]  {len(back)} operators: {escape(', '.join(back))}", soft_wrap=True)
    for line in [check.describe() for check in wrong] + reasons[len(wrong) :]:
        console.print(f"[bold red]FAIL[/]  {escape(line)}", soft_wrap=True)
    console.print(f"\n[{_COLORS[passed]}]{passed.upper()}[/]")


def summary(group: str, checks: Sequence[Check], seconds: float) -> str:
    """Sum up a kind of check in a line, while the certification runs."""
    counts = Counter(check.status for check in checks)
    text = ", ".join(f"[{_COLORS[status]}]{counts[status]}[/] {_WORDS[status]}" for status in _COLORS if counts[status])
    return f"{group:<12} {text} [dim]in {duration(seconds)}[/]"


def worst_of(checks: Iterable[Check]) -> Check | None:
    """Find the check whose error is the largest share of its tolerance; None if none has an error."""
    measured = [check for check in checks if check.error is not None and check.tolerance]
    return max(measured, key=lambda check: (check.error or 0.0) / (check.tolerance or 1.0), default=None)


def _operations(checks: Sequence[Check]) -> Table:
    own = [check for check in checks if check.group == "operations" and check.dtype]
    dtypes = list(dict.fromkeys(check.dtype for check in own))
    table = Table("operation", *dtypes, title="Largest error of each implementation", title_justify="left", box=None)
    for name in dict.fromkeys(check.name for check in own):
        cells = []
        for dtype in dtypes:
            found = [check for check in own if (check.name, check.dtype) == (name, dtype)]
            wrong, worst = failed(found), worst_of(found)
            cells.append(
                Text("FAIL" if wrong else scientific(worst.error, 0) if worst else "", "bold red" if wrong else "")
            )
        table.add_row(name, *cells)
    return table


def _groups(checks: Sequence[Check]) -> Table:
    table = Table("", "passed", "failed", "not run", "nearest to its limit", title_justify="left", box=None)
    table.title = "\nAll checks"
    for group in GROUPS:
        own = [check for check in checks if check.group == group]
        counts = Counter(check.status for check in own)
        worst = worst_of(check for check in own if check.status == "pass")
        near = f"{scientific(worst.error, 0)} of {scientific(worst.tolerance, 0)}: {_name(worst)}" if worst else ""
        cells = [Text(str(counts[status] or "–"), _COLORS[status] if counts[status] else "dim") for status in _COLORS]
        table.add_row(group, *cells, near)
    return table


def _name(check: Check) -> str:
    """Return the check's name, and its type if the name does not say it."""
    return check.name if check.dtype in check.name else f"{check.name} {check.dtype}"


def _speeds(findings: Findings) -> list[Table]:
    measured = findings.measured
    table = Table(title="\nSpeed", title_justify="left", box=None, show_header=False)
    for dtype, rate in measured.gemm_flops.items():
        table.add_row(f"products in {dtype}", f"{flops(rate)}/s")
    if measured.copy_bytes_per_second:
        table.add_row("copies", byte_rate(measured.copy_bytes_per_second))
    if measured.collective_bytes_per_second:
        table.add_row("sums over all devices", byte_rate(measured.collective_bytes_per_second))
    for row in measured.training:
        what = f"training {row['preset']}, {row['batch_size']} × {row['sequence_length']} tokens a step"
        table.add_row(what, f"{row['tokens_per_second']:,.0f} tokens/s, MFU {percent(row['mfu'])}")
    return [table] if table.row_count else []


def _not_run(checks: Sequence[Check]) -> list[str]:
    """List what could not be run, by reason."""
    reasons: dict[str, list[str]] = {}
    for check in checks:
        if check.status == "not run":
            reasons.setdefault(check.message, []).append(f"{check.group}: {check.name}".replace("operations: ", ""))
    return [f"{', '.join(dict.fromkeys(names))} ({reason})" for reason, names in reasons.items()]
