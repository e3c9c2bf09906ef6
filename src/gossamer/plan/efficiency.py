"""How much of a data sheet's figures a program reaches: fitted to published runs, or measured by a certificate.

Four shares are fitted; they are in efficiency.yaml, which `benchmarks/planner_fit.py` writes from the runs in
published_runs.yaml. A certificate that `gossamer certify` wrote on a device replaces some of them by what it measured
there. The other shares are assumptions, for the runs say too little about each.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from gossamer import __version__
from gossamer.cost.network import Network
from gossamer.errors import UserError, shorten
from gossamer.plan.catalogue import Chip
from gossamer.reading import read_object
from gossamer.typed import shown
from gossamer.yaml_files import read_yaml_values

__all__ = [
    "CERTIFICATE_FORMAT",
    "EFFICIENCY_FILE",
    "Efficiency",
    "FittedEfficiency",
    "apply_certificate",
    "load_fitted_efficiency",
]

EFFICIENCY_FILE = Path(__file__).parent / "efficiency.yaml"
CERTIFICATE_FORMAT = 1
"""Format of a certificate's file; it changes where older readers would misread a new file."""

ATTENTION = 0.7
"""Share of the rate of large products that fused attention reaches."""
DELTA_RULE = 0.3
"""The same of the delta rule: products of chunks of 64, in part in types wider than bfloat16, along the sequence."""
TILE = 128
"""Rows of a tile: the rows of an expert are filled up to whole tiles, half a tile on average."""
KERNEL_SECONDS = 4e-6
"""What it costs to start and drain a kernel, beside the time of its work."""
NEVER_HIDDEN = 0.1
"""Share of a collective that computation cannot hide, however long it is."""

# Share of its memory's bandwidth that a plain copy reached on an H200 (4.3 of 4.8 TB/s). The fitted share of memory, in
# which small kernels are most of the loss, was reached beside that.
_COPY = 0.9


@dataclass(frozen=True)
class Efficiency:
    """Shares of a chip's figures, 0 to 1.

    Attributes:
        products: share of the peak that large products reach
        memory: share of the memory's bandwidth that everything else reaches
        links: share of the links' bandwidth that collectives reach
        availability: share of a run's device-hours that goes into its steps; the rest are restarts, evaluations and
            waiting
    """

    products: float
    memory: float
    links: float
    availability: float


@dataclass(frozen=True)
class FittedEfficiency:
    """The shares that were fitted to published runs, with their error, as efficiency.yaml has them.

    Attributes:
        rates: the shares
        error: root mean square of the logarithmic errors of the runs that were held out and have no linear attention
        linear_attention_error: the same of those that have it
    """

    rates: Efficiency
    error: float
    linear_attention_error: float

    def error_for(self, network: Network) -> float:
        """Return the error of the runs that were held out and have the network's kind of attention."""
        return self.linear_attention_error if network.has_linear_attention else self.error


def load_fitted_efficiency() -> FittedEfficiency:
    """Return the shares that were fitted to published runs."""
    names, errors = [item.name for item in fields(Efficiency)], ("error", "linear_attention_error")
    items = read_yaml_values(EFFICIENCY_FILE).items(frozenset([*names, *errors]))
    values = {name: item.number(0.01, 1) for name, item in items}
    return FittedEfficiency(Efficiency(**{name: values.pop(name) for name in names}), **values)


def apply_certificate(path: Path, chip: Chip, rates: Efficiency) -> Efficiency:
    """Return shares with what a certificate measured: products and links as they are, memory in proportion to copies.

    Args:
        path: the certificate
        chip: the chip that it must be of
        rates: the shares to start from

    Raises:
        UserError: there is no certificate, it is of another format, version or device, the device failed, or a figure
            is beyond what the chip can have.
    """
    content = read_object(path, remedy="gossamer certify writes a certificate")
    _check_certificate(path, content, chip)
    measured = content.get("measured")
    if not isinstance(measured, dict):
        raise UserError(f"{path}: holds no section 'measured'")
    gemm = measured.get("gemm_flops")
    products = gemm.get("bfloat16") if isinstance(gemm, dict) else None
    product_share = _share(path, "gemm_flops.bfloat16", products, chip.flops.value)
    copies, links = (
        _share(path, key, measured.get(key), whole)
        for key, whole in (
            ("copy_bytes_per_second", chip.bandwidth.value),
            ("collective_bytes_per_second", chip.link.value / 2),
        )
    )
    return replace(
        rates,
        products=rates.products if product_share is None else product_share,
        memory=rates.memory if copies is None else min(1.0, rates.memory * copies / _COPY),
        links=rates.links if links is None else links,
    )


def _check_certificate(path: Path, content: dict[str, Any], chip: Chip) -> None:
    """Refuse a certificate of another format, version or device, and one of a device that failed."""
    if content.get("format") != CERTIFICATE_FORMAT:
        raise UserError(
            f"{path}: format {shown(content.get('format'))}; this gossamer reads {CERTIFICATE_FORMAT}: run gossamer "
            "certify"
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


def _share(path: Path, key: str, value: Any, whole: float) -> float | None:
    """A measured rate as a share of the catalogue's; None if it was not measured."""
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value <= 1.2 * whole:
        raise UserError(f"{path}: measured.{key} = {shown(value)}: must be above 0 and at most {1.2 * whole:.3g}")
    return min(float(value) / whole, 1.0)
