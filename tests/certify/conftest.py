"""A certification of the CPU in a moment: fewer steps, one type of numbers, and no process of its own."""

from __future__ import annotations

import pytest
import torch

from gossamer.certify import hardware, run, speed, training


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "checked_dtypes", lambda device: [torch.float32])
    monkeypatch.setattr(training, "STEPS", 30)
    monkeypatch.setattr(speed, "PRESETS", ("nano",))
    monkeypatch.setattr(speed, "seconds_a_step", lambda *_: 0.5)
    monkeypatch.setattr(hardware, "measured_separately", lambda preset: {"estimate": 300 << 20, "peak": 310 << 20})
    training.reference_curve.cache_clear()
