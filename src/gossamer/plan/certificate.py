"""What `gossamer certify` measured on a device, in place of the shares that are otherwise assumed of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gossamer import __version__
from gossamer.errors import UserError, shorten
from gossamer.plan.catalogue import Chip
from gossamer.plan.efficiency import Efficiency
from gossamer.reading import read_object
from gossamer.typed import shown

FORMAT = 1
# Share of its memory's bandwidth that a plain copy reached on an H200 (4.3 of 4.8 TB/s): what the fitted share of
# memory, in which small kernels are most of the loss, was reached beside.
_COPY = 0.9


def certified(path: Path, chip: Chip, rates: Efficiency) -> Efficiency:
    """The shares as a certificate has them: products and links as measured, memory in proportion to its copies.

    Raises:
        UserError: no certificate, another format, version or device, one that failed, or a figure no chip can have.
    """
    content = read_object(path, remedy="gossamer certify writes a certificate")
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {shown(content.get('format'))}; this gossamer reads {FORMAT}: run gossamer certify"
        )
    if content.get("gossamer") != __version__:
        raise UserError(
            f"{path}: written by gossamer {shorten(content.get('gossamer'))}, this is {__version__}: "
            "run gossamer certify again"
        )
    device = content.get("device")
    name = str(device.get("name", "")) if isinstance(device, dict) else ""
    if not chip.is_device(name):
        raise UserError(f"{path}: is of {shorten(name) or 'no device'}, not of {chip.name} (--chip {chip.key})")
    if content.get("verdict") != "pass":
        raise UserError(
            f"{path}: {shorten(name)} did not pass ({shown(content.get('verdict'))}): its speed says nothing yet"
        )
    measured = content.get("measured")
    if not isinstance(measured, dict):
        raise UserError(f"{path}: holds no section 'measured'")
    products = _share(path, "gemm_flops.bfloat16", _of(measured, "gemm_flops", "bfloat16"), chip.flops.value)
    copies = _share(path, "copy_bytes_per_second", measured.get("copy_bytes_per_second"), chip.bandwidth.value)
    links = _share(
        path, "collective_bytes_per_second", measured.get("collective_bytes_per_second"), chip.link.value / 2
    )
    return replace(
        rates,
        products=rates.products if products is None else products,
        memory=rates.memory if copies is None else min(1.0, rates.memory * copies / _COPY),
        links=rates.links if links is None else links,
    )


def _of(measured: dict[str, Any], section: str, key: str) -> Any:
    found = measured.get(section)
    return found.get(key) if isinstance(found, dict) else None


def _share(path: Path, key: str, value: Any, whole: float) -> float | None:
    """A measured rate as a share of the catalogue's; None: it was not measured."""
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value <= 1.2 * whole:
        raise UserError(f"{path}: measured.{key} = {shown(value)}: must be above 0 and at most {1.2 * whole:.3g}")
    return min(float(value) / whole, 1.0)
