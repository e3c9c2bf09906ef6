"""regressions.py: what counts as a fall, and the records of all benchmarks read as they are written."""

from __future__ import annotations

import json
from pathlib import Path

import long_context
import pytest
import regressions

MACHINE = {"device": "cpu", "torch": "2", "date": "2026-01-01", "gemm_gflops": 100.0, "copy_gbytes": 10.0}


def row(seconds: float, peak: int = 100) -> dict[str, float]:
    return {"seconds": seconds, "fastest": seconds, "slowest": seconds, "gemm_share": 0.5, "peak_bytes": peak}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    results = {"gossamer": row(1.0), "transformers eager": {"failure": "x"}, "transformers grouped_mm": row(3.0, 150)}
    network = [
        {"length": 512, "kind": "forward", "program": "gossamer", "seconds_per_token": 1.0, "peak_bytes": 10},
        {"length": 512, "kind": "forward", "program": "transformers", "seconds_per_token": 4.0, "peak_bytes": 15},
        {"length": 1024, "kind": "forward", "program": "gossamer", "seconds_per_token": 1.0, "peak_bytes": 10},
    ]
    speeds = {"one request": 200.0, "one request, transformers": 40.0, "16 requests": 500.0, "long prompt": 3000.0}
    decoding = {name: {"tokens_per_second": speed} for name, speed in speeds.items()}
    decoding["long prompt, transformers"] = {"failure": "MemoryError"}
    files = {
        "train_step": [{"size": "micro", "tokens": 10, "machine": MACHINE, "results": results}],
        "operations": {"machine": MACHINE, "delta_rule_peer": [{"rows": 4, "length": 512, "ratio": 5.0}]},
        "long_context": {
            "machine": MACHINE, "delta_rule": {"512": 1.0, "1024": 1.25}, "flatness": 0.8, "network": network
        },
        "decode": {"size": "micro", "machine": MACHINE, "threads": 2, "results": decoding},
    }  # fmt: skip
    for name, record in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    return tmp_path


def test_ratios_of_all_records(records: Path) -> None:
    found, where = regressions.found_ratios(records)
    assert found == {
        "train_step, micro: speed over transformers": 3.0,
        "train_step, micro: memory under transformers": 1.5,
        "train_step, micro: share of the GEMM rate": 0.5,
        "operations, delta rule over transformers, 4 × 512": 5.0,
        "long_context, delta rule, flatness from 512 to 1024": 0.8,
        "long_context, forward, 512 tokens: speed over transformers": 4.0,
        "long_context, forward, 512 tokens: memory under transformers": 1.5,
        "decode, one request, speed over transformers": 5.0,
        "decode, 16 requests over one": 2.5,
    }
    assert where == {"device": "cpu", "torch": "2", "date": "2026-01-01"}


def test_what_fell_is_marked_and_noise_is_not() -> None:
    rows = regressions.compare({"a": 4.0, "b": 4.0, "gone": 1.0}, {"a": 3.0, "b": 2.99, "fresh": 1.0}, 0.25)
    assert {name: verdict for name, *_, verdict in rows} == {"a": "", "b": "FELL", "gone": "MISSING", "fresh": "new"}
    assert "FELL" in regressions.report(rows) and "-25%" in regressions.report(rows)


def test_recording_then_comparing(records: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    recorded = records / "recorded.json"

    def run(*options: str) -> int:
        monkeypatch.setattr("sys.argv", ["x", "--records", str(records), "--recorded", str(recorded), *options])
        return regressions.main()

    assert run("--record") == 0
    assert json.loads(recorded.read_text())["transformers"]
    assert run() == 0 and "nothing" in capsys.readouterr().out
    operations = json.loads((records / "operations.json").read_text())
    operations["delta_rule_peer"][0]["ratio"] = 3.0
    (records / "operations.json").write_text(json.dumps(operations))
    assert run() == 1
    assert "operations, delta rule over transformers, 4 × 512" in capsys.readouterr().out.splitlines()[-1]
    assert run("--tolerance", "0.5") == 0


def test_without_records_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["x", "--records", str(tmp_path)])
    assert regressions.main() == 2
    assert "make bench" in capsys.readouterr().err


def test_what_is_recorded_is_what_the_short_set_gives() -> None:
    recorded = json.loads(Path(regressions.__file__).with_name("recorded.json").read_text())
    assert all(value > 0 for value in recorded["ratios"].values())
    assert {name.split(",")[0] for name in recorded["ratios"]} == {"train_step", "operations", "long_context", "decode"}


def test_tables_of_long_context_say_what_was_not_tried(records: Path) -> None:
    record = json.loads((records / "long_context.json").read_text())
    record["network"][1] = {"length": 512, "kind": "forward", "program": "transformers", "failure": "MemoryError"}
    table = long_context.report_network(record)
    assert "MemoryError" in table and "not tried" in table
    assert "1.25" in long_context.report_delta_rule(record)
    assert long_context.flatness({512: 1.0, 1024: 1.25}) == 0.8
