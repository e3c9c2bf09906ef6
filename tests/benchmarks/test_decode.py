"""decode.py: its subjects run, its ratios are of rates, and its tables say what failed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import decode
import decode_bounds
import pytest
import torch
from peers import Variant

from gossamer import ops
from gossamer.model.config import ModelConfig

MACHINE = {"device": "cpu", "torch": "2", "date": "2026-01-01", "gemm_gflops": 100.0, "copy_gbytes": 10.0}


def row(rate: float) -> dict[str, float]:
    return {"seconds": 1.0, "fastest": 0.5, "slowest": 2.0, "tokens_per_second": rate, "peak_bytes": 1 << 20}


@pytest.fixture
def record() -> dict[str, Any]:
    results = {"one request": row(100.0), "16 requests": row(400.0), "one request, int8": row(150.0)}
    failed = {"one request, transformers": {"failure": "MemoryError"}}
    bounds = {"one request": 400.0}
    return {"size": "micro", "machine": MACHINE, "threads": 2, "results": results | failed, "bounds": bounds}


def test_ratios_are_of_what_did_not_fail(record: dict[str, Any]) -> None:
    assert decode.ratios(record) == {"16 requests over one": 4.0, "int8 over stored, one request": 1.5}


def test_tables_say_what_failed_and_what_rounding_costs(record: dict[str, Any]) -> None:
    table = decode.report(record)
    assert "MemoryError" in table and "1000 (500–2000)" in table and "400, 25%" in table
    assert "validation loss" not in table
    table = decode.report(record | {"losses": {"stored": 2.5, "int8": 2.501}})
    assert "validation loss" in table and "2.5010" in table


def test_bounds_are_what_a_step_reads(config: ModelConfig) -> None:
    one, many, int8 = (decode_bounds.step_bytes(config, *how) for how in ((1,), (1000,), (1, 1)))
    experts = 4 * config.num_hidden_layers * config.num_experts * 3 * config.hidden_size * config.moe_intermediate_size
    states = 8 * 3 * config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim
    assert many - one == pytest.approx(experts / 2 + 999 * states)  # of 4 experts one token chooses 2, many choose all
    assert int8 - states == pytest.approx((one - states) / 4)
    assert decode_bounds.step_rate(config, 1000, MACHINE) == pytest.approx(1000 * 10e9 / many)
    short, long = (decode_bounds.prompt_rate(config, length, MACHINE) for length in (16, 4096))
    assert short > long > 0  # attention


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


def test_attempts_do_the_same_otherwise(config: ModelConfig) -> None:
    config = replace(config, max_position_embeddings=128)
    chosen = []

    def build(count: int) -> decode.Call:
        return lambda: chosen.append([count, ops.OPERATIONS["decode_layers"].choose(torch.device("cpu")).name])

    decode.attempt(Variant(operations={"decode_layers": "reference"}), build, 3)()
    assert chosen == [[3, "reference"]]
    names = [name for name, *_ in decode.attempts(config)]
    assert len(set(names)) == len(names) and not set(names) & {"one request", "16 requests", "long prompt"}
