"""`certificate.json`: what was found out about a device, for programs."""

from __future__ import annotations

import json
import math
import os
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gossamer import __version__
from gossamer import device as devices
from gossamer.certify.checks import verdict
from gossamer.certify.run import Findings
from gossamer.errors import UserError
from gossamer.run.metrics import write_atomically

__all__ = [
    "CERTIFICATE_FILE",
    "FORMAT",
    "PAGE_FILE",
    "certificate",
    "default_folder",
    "require_writable",
    "write_certificate",
]

CERTIFICATE_FILE, PAGE_FILE = "certificate.json", "certificate.html"
FORMAT = 1  # of the file; another number for a form that older readers would misread


def certificate(findings: Findings) -> Any:
    """The certificate as JSON holds it.

    `verdict` is `pass` only where nothing failed and something of every required kind of check was run; `reasons` says
    what stands in the way. A number that is not finite is null.
    """
    passed, reasons = verdict(findings.checks)
    return _finite(
        {
            "gossamer": __version__,
            "format": FORMAT,
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
    """`certificates/cuda-nvidia-h200`: of the device's type and name."""
    words = re.findall(r"[a-z0-9]+", f"{device.type} {devices.product_name(device)}".lower())
    return Path("certificates") / "-".join(words)


def require_writable(folder: Path) -> None:
    """Refuse (UserError) a folder that a certificate cannot be written into, before the device is asked anything."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"--out {folder}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise UserError(f"--out {folder}: {there} cannot be written to; name another folder")


def write_certificate(found: dict[str, Any], folder: Path) -> Path:
    """Write `certificate.json` into a folder, made if it is missing, replacing an older one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CERTIFICATE_FILE
    write_atomically(path, json.dumps(found, indent=1, allow_nan=False).encode())
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
