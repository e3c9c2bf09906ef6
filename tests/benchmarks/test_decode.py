"""decode.py: its subjects run, its ratios are of rates, and its tables say what failed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import decode
import pytest

from gossamer.model.config import ModelConfig

MACHINE = {"device": "cpu", "torch": "2", "date": "2026-01-01", "gemm_gflops": 100.0, "copy_gbytes": 10.0}


def row(rate: float) -> dict[str, float]:
    return {"seconds": 1.0, "fastest": 0.5, "slowest": 2.0, "tokens_per_second": rate, "peak_bytes": 1 << 20}


@pytest.fixture
def record() -> dict[str, Any]:
    results = {"one request": row(100.0), "16 requests": row(400.0), "one request, int8": row(150.0)}
    failed = {"one request, transformers": {"failure": "MemoryError"}}
    return {"size": "micro", "machine": MACHINE, "threads": 2, "results": results | failed}


def test_ratios_are_of_what_did_not_fail(record: dict[str, Any]) -> None:
    assert decode.ratios(record) == {"16 requests over one": 4.0, "int8 over stored, one request": 1.5}


def test_tables_say_what_failed_and_what_rounding_costs(record: dict[str, Any]) -> None:
    table = decode.report(record)
    assert "MemoryError" in table and "1000 (500–2000)" in table and "4.00" in table and "held-out" not in table
    table = decode.report(record | {"losses": {"stored": 2.5, "int8": 2.501}})
    assert "held-out" in table and "2.5010" in table


def test_its_requests_are_answered_to_their_last_token(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, max_position_embeddings=128)
    engines = []
    made = decode.gossamer_engine
    monkeypatch.setattr(decode, "gossamer_engine", lambda *a, **k: engines.append(made(*a, **k)) or engines[-1])
    for weights in ("stored", "int8"):
        decode.gossamer_requests(config, 3, weights)()
    assert [engine.stats().completion_tokens for engine in engines] == [3 * decode.ANSWER] * 2
    monkeypatch.setattr(decode, "LONG", 64)
    decode.gossamer_prompt(config, seen=True)()
    stats = engines[-1].stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (2, 1)
