"""A certificate's measured rates in place of assumed ones, and certificates that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gossamer import __version__
from gossamer.errors import UserError
from gossamer.plan import Catalogue, FittedEfficiency, apply_certificate


def certificate(**changes: Any) -> dict[str, Any]:
    return {
        "gossamer": __version__,
        "format": 1,
        "device": {"type": "cuda", "name": "NVIDIA H200"},
        "measured": {
            "gemm_flops": {"bfloat16": 7.7e14, "float32": 5e13},
            "copy_bytes_per_second": 4.32e12,
            "collective_bytes_per_second": None,
            "training": [{"preset": "nano", "tokens_per_second": 1e5, "mfu": 0.1}],
        },
        "verdict": "pass",
    } | changes


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "certificate.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_measured_rates_replace_assumed_ones(tmp_path: Path, catalogue: Catalogue, shares: FittedEfficiency) -> None:
    chip = catalogue.chip("h200")
    found = apply_certificate(write(tmp_path, certificate()), chip, shares.rates)
    assert found.products == pytest.approx(770 / 989)
    assert found.memory == pytest.approx(shares.rates.memory)  # its copy is as fast as the one beside the fit
    assert (found.links, found.availability) == (shares.rates.links, shares.rates.availability)
    measured = {"copy_bytes_per_second": 2.16e12, "collective_bytes_per_second": 360e9}
    slow = apply_certificate(write(tmp_path, certificate(measured=measured)), chip, shares.rates)
    assert slow.products == shares.rates.products
    assert slow.memory == pytest.approx(shares.rates.memory / 2)
    assert slow.links == pytest.approx(0.8)


@pytest.mark.parametrize(
    "content, message",
    [
        (certificate(format=2), "format 2; this gossamer reads 1"),
        (certificate(gossamer="0.0.1"), "written by gossamer 0.0.1, this is"),
        (certificate(device={"name": "NVIDIA H100 80GB HBM3"}), "is of NVIDIA H100.*not of NVIDIA H200"),
        (certificate(device=None), "is of no device, not of NVIDIA H200"),
        (certificate(verdict="fail"), "NVIDIA H200 did not pass"),
        (certificate(measured=None), "holds no section 'measured'"),
        (certificate(measured={"gemm_flops": {"bfloat16": -1}}), "gemm_flops.bfloat16 = -1: must be above 0"),
        (certificate(measured={"copy_bytes_per_second": 1e15}), "copy_bytes_per_second = .* at most 5.76e"),
        ([], "holds no JSON object"),
        ("{", "not JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(
    tmp_path: Path, catalogue: Catalogue, shares: FittedEfficiency, content: Any, message: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=message) as error:
        apply_certificate(path, catalogue.chip("h200"), shares.rates)
    assert str(error.value).startswith(str(path))


def test_no_file(tmp_path: Path, catalogue: Catalogue, shares: FittedEfficiency) -> None:
    with pytest.raises(UserError, match="no such file"):
        apply_certificate(tmp_path / "none.json", catalogue.chip("h200"), shares.rates)
