"""Certification of a device: is everything that gossamer computes there right, does it stay right, how fast is it?

`certify` asks every question in turn, and writes `certificate.json` with a page beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gossamer.errors import UserError
from gossamer.reading import user_path

__all__ = ["certify"]


def certify(device: str, quick: bool, out: str | None, json: bool) -> tuple[dict[str, Any], Path]:
    """Certify a device; progress goes to standard error, the table to standard output unless `json`.

    Args:
        device: auto, cpu, cuda, cuda:1, npu …
        quick: whether to try fewer inputs, which takes under a minute on two CPU cores
        out: folder of the certificate and its page; None: certificates/ and the device's name
        json: whether to print nothing on standard output

    Returns:
        The certificate, and where it was written.

    Raises:
        UserError: there is no such device, the folder cannot be written to, or the device stopped answering. The
            certificate then holds what was found before, with the verdict `fail`.
    """
    from rich.console import Console

    from gossamer import device as devices
    from gossamer.certify.certificate import (
        certificate,
        default_folder,
        require_writable,
        show,
        summary,
        write_certificate,
    )
    from gossamer.certify.page import write_page
    from gossamer.certify.run import examine

    target = devices.resolve(device)
    folder = default_folder(target) if out is None else user_path(out)
    require_writable(folder)
    devices.keep_freed_memory()
    progress = Console(file=sys.stderr, highlight=False)
    progress.print(f"certifying {devices.device_name(target)}{', quickly' if quick else ''}")
    findings = examine(target, quick, lambda *found: progress.print(summary(*found)))
    record = certificate(findings)
    path = write_certificate(record, folder)
    page = write_page(findings, record, folder)
    if findings.lost:
        raise UserError(f"{target} stopped answering: {findings.lost}; {path} says fail, and what was found before")
    if not json:
        show(findings, f"{record['device']['name']} ({target.type})", Console(highlight=False))
        print(f"{path}\n{page}")
    return record, path
