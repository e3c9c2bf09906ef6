"""Memory in huge pages holds what it held, wherever it begins and ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gossamer.device import huge_pages, use_huge_pages


def test_what_lies_there_stays() -> None:
    whole = torch.arange(3 << 20)
    parts = [whole[5:700], whole[1 << 20 :], torch.empty(0), torch.empty(9, device="meta")]
    before = whole.clone()
    held = use_huge_pages(parts)
    assert torch.equal(whole, before)
    whole += 1
    assert torch.equal(whole, before + 1)
    assert use_huge_pages(parts) >= held  # they are not given back


def test_a_system_without_them_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages, "_SIZE", tmp_path / "missing")
    assert use_huge_pages([torch.ones(1 << 20)]) == 0
