"""budget_band.py: who is judged inside the band, and texts by name."""

from __future__ import annotations

import math
import random
from pathlib import Path

import budget_band
import pytest
import scaling_fit

from gossamer.cost.scaling import Law

LAW = Law(
    E=0.7, A=0.2, alpha=0.3, B=0.8, beta=0.25, gamma=0.1, R=15.4, c0=2.0,
    trunk_parameters=(1e5, 1e7), bytes=(1e5, 1e7), error=0.02, other_text=0.2, speed_error=0.0,
)  # fmt: skip


def line(bits: float, compressed: float = 2.0) -> dict[str, object]:
    return {
        "text": "t", "budget": "40s", "trunk_parameters": 1e6, "predicted_tokens": 1e5, "tokens": 8e4,
        "predicted_bytes": 4e5, "bytes": 3.2e5, "unique_bytes": 1e8, "compressed_bits": compressed,
        "predicted": 2.0, "bits_per_byte": bits, "processor": "p",
    }  # fmt: skip


def test_report_counts_who_ended_inside() -> None:
    text = budget_band.report([line(2.03), line(2.06), line(2.06, 2.5), line(1.5, 2.5)], LAW)
    assert "2 of 4 runs ended inside their band" in text
    assert [row.split("|")[-2].strip() for row in text.splitlines()[2:6]] == ["inside", "outside", "inside", "outside"]
    assert "-20%" in text and "2.0000 ± 2.0%" in text and "+3.0%" in text


def test_texts_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert budget_band.texts(["a=x", "b=y=z"]) == {"a": "x", "b": "y=z"}
    with pytest.raises(SystemExit, match="NAME=PATH"):
        budget_band.texts(["a"])
    monkeypatch.setattr(budget_band, "_HEADERS", tmp_path)
    assert budget_band.texts(None) == {"python": ""}
    (tmp_path / "a.h").touch()
    assert budget_band.texts(None) == {"python": "", "c-headers": str(tmp_path)}


def test_nine_of_ten_further_errors_are_within() -> None:
    """Also of so few errors that their spread is badly known."""
    draw, inside = random.Random(0), 0
    for _ in range(4000):
        *known, further = (draw.gauss(0, 0.1) for _ in range(4))
        inside += abs(further) <= scaling_fit.within(known)
    # Errors about zero, whose mean need not be estimated: the band is a little wider than it must be.
    assert 0.88 < inside / 4000 < 0.95
    assert math.isnan(scaling_fit.within([]))
