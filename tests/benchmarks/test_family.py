"""family.py: its subjects go on from a checkpoint that transformers wrote, and its tables have what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import family
import pytest
import torch

from gossamer.data.tokenizer import char_tokenizer

SHAPE = family.Shape(32, 48, 4, 2, 1, 2, 2, 96)
MACHINE = {"device": "cpu", "torch": "2", "date": "2026-01-01", "gemm_gflops": 100.0, "copy_gbytes": 10.0}


def row(scale: float) -> dict[str, float]:
    found = {"load_seconds": 1 / scale, "load_bytes": 2**30 / scale, "peak_bytes": 2**31 / scale}
    return found | {"prompt": 50 * scale, "decoding": 5 * scale}


@pytest.fixture
def record() -> dict[str, Any]:
    training = {
        family.OURS: {"training": 20.0, "peak_bytes": 2**33},
        family.THEIRS: {"training": 5.0, "peak_bytes": 2**34},
    }
    serving = {family.OURS: row(2.0), family.THEIRS: row(1.0)}
    return {"parameters": 750_000_000, "serving": serving, "training": training}


def test_ratios_are_over_transformers_in_float32(record: dict[str, Any]) -> None:
    found = family.ratios(record)
    assert found["decoding, speed over transformers"] == 2.0 and found["serving, memory of transformers'"] == 0.5
    assert found["training, speed over transformers"] == 4.0 and found["training, memory of transformers'"] == 0.5


def test_tables_have_what_was_measured(record: dict[str, Any]) -> None:
    bf16 = {"load_seconds": 3.0, "load_bytes": 2**30, "peak_bytes": 2**30, "prompt": 0.25}
    text = family.report("0.8b", record | {"serving": record["serving"] | {family.THEIRS_BF16: bf16}}, MACHINE)
    assert "0.75B parameters" in text and "100.0" in text and "25.6" in text and "0.2" in text


def test_both_subjects_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    assert family.write_checkpoint(SHAPE, str(tmp_path)) > 10_000
    tokenizer = char_tokenizer([chr(code) for code in range(65, 65 + SHAPE.vocab_size - 1)])
    for subject in (family.Gossamer(str(tmp_path), tokenizer), family.Transformers(str(tmp_path), torch.float32)):
        subject.answer([1, 2, 3], 2)
