"""family.py and what goes with it: subjects go on from a checkpoint, and tables have what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import family
import family_attempts
import family_serve
import pytest
import torch

from gossamer import hub
from gossamer.data.tokenizer import Tokenizer, char_tokenizer

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


# What else was tried.


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch without MKL")
def test_packed_weights_give_the_same_products() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 64, 24), torch.randn(40, 24)
    with torch.inference_mode():
        packed = family_attempts.packed_linear()
        for _ in range(2):  # packed, and as it was packed
            torch.testing.assert_close(packed(x, weight), x @ weight.mT, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(packed(x[:, :1], weight), x[:, :1] @ weight.mT)


def test_attempts_are_told_beside_transformers() -> None:
    found = {"as chosen": {"speed": 50.0, "ratio": 2.0, "peak_bytes": 2**31}, "another": {"failure": "no such thing"}}
    text = family_attempts.report("prompt", found, MACHINE)
    assert "50.0" in text and "2.00" in text and "no such thing" in text


def test_a_checkpoint_with_drafts_is_served(tmp_path: Path) -> None:
    family_serve.write_checkpoint(SHAPE, str(tmp_path))
    network = hub.load(tmp_path)
    assert network.mtp is not None and network.lm_head.weight.dtype == torch.bfloat16
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.chat_template and tokenizer.vocab_size == SHAPE.vocab_size
    assert len(tokenizer.encode(family_serve.text(2))) == 2
