"""The service's benchmark: what its clients and its engine count, and what it says of a server that does not start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from decode import random_network
from streams import Stream, Streams

import serve
from engine_double import write_tokenizer
from gossamer.model.config import ModelConfig
from live_service import live


def test_clients_count_what_reaches_them(tmp_path: Path) -> None:
    with live(write_tokenizer(tmp_path)) as service:
        turn = serve.http_turn(int(service.url.rsplit(":", 1)[1]), {"max_tokens": 9})
        found = turn([f"SAY {'x' * count}" for count in range(1, 8)], 3)
        assert sorted(len(answer.arrivals) for answer in found.answers) == [1, 2, 3, 4, 5, 6, 7]
        figures = found.figures()
        assert figures["answers"] == 7 and figures["tokens_per_second"] == found.rates[0] > 0
        assert 0 < figures["first_token"]["p50"] <= figures["answer"]["p95"]
        with pytest.raises(ConnectionError, match="status 400"):
            turn(["REFUSE"], 1)
        with pytest.raises(ConnectionError, match="engine"):
            turn(["SLOW SAY aaaa", "SLOW SAY bbbb", "FAIL"], 3)


def test_the_engine_alone_is_counted_alike(config: ModelConfig) -> None:
    torch.manual_seed(0)
    found = serve.engine_turn(*random_network(config))(["\u4e00\u4e01", "\u4e02", "\u4e03"], 2)
    assert len(found.answers) == 3
    for answer in found.answers:
        assert 1 <= len(answer.arrivals) <= serve.ANSWER and answer.began < answer.arrivals[0] <= answer.ended


def test_percentiles_are_values_that_were_measured() -> None:
    found = Streams.turn([Stream(0.0, [float(number), number + 1.0], number + 1.0) for number in range(1, 100)])
    assert found.rates == [1.98]
    for seconds in (10.0, 0.5):
        found.add(Streams.turn([Stream(1.0, [1.5, 1.75], 1.0 + seconds)]))
    figures = found.figures()
    assert figures["first_token"] == {"p50": 49.0, "p95": 94.0} and figures["tokens_per_second"] == 1.98


def test_a_server_that_does_not_start_says_why() -> None:
    server = serve.serving(["-c", "print('no such thing'); raise SystemExit(3)"], serve.free_port())
    with pytest.raises(RuntimeError, match="exit status 3: no such thing"), server:
        pass


def test_the_report_tells_all_of_it() -> None:
    figures = Streams.turn([Stream(0.0, [0.1, 0.2, 0.3], 0.3)]).figures()
    results = {"gossamer serve": {"1": figures, "64": figures}, "its engine alone": {"1": figures}}
    machine = {"device": "cpu", "torch": "2", "date": "today", "gemm_gflops": 1.0, "copy_gbytes": 1.0}
    record = {"size": "micro", "threads": 2, "machine": machine, "results": results, "failures": {"peer": "no such"}}
    text = serve.report(json.loads(json.dumps(record)))
    assert "1, gossamer serve" in text and "peer: no such" in text
    assert serve.ratios(record) == {"gossamer serve over its engine alone, 1 at once": pytest.approx(1.0)}
