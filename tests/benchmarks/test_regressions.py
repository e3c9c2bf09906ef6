"""regressions.py: what counts as a fall, and the records of all benchmarks read as they are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import long_context
import measure
import pytest
import regressions
import torch
import transformers

from gossamer import device as devices

ZEN = "AMD family 25 model 1, AVX2, 2 threads"
MACHINE = {
    "device": "cpu", "processor": ZEN, "torch": "2", "peers": {"transformers": "5"}, "date": "2026-01-01",
    "gemm_gflops": 100.0, "copy_gbytes": 10.0,
}  # fmt: skip


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
        "operations": {"machine": MACHINE, "delta_rule_peer": [dict(rows=4, length=512, gates="trained", ratio=5.0)]},
        "long_context": {
            "machine": MACHINE, "delta_rule": {"512": 1.0, "1024": 1.25}, "flatness": 0.8, "network": network
        },
        "decode": {"size": "micro", "machine": MACHINE, "threads": 2, "results": decoding},
    }  # fmt: skip
    for name, record in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    return tmp_path


def test_ratios_of_all_records(records: Path) -> None:
    [(key, found)] = regressions.found_ratios(records).items()
    assert key == ZEN
    assert found.pop("ratios") == {
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
    assert found == {"device": "cpu", "torch": "2", "peers": {"transformers": "5"}, "date": "2026-01-01"}


def measured(ratios: dict[str, float], torch: str = "2", transformers: str = "5") -> dict[str, Any]:
    return {"torch": torch, "peers": {"transformers": transformers}, "ratios": ratios}


def verdicts(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    return {name: verdict for name, *_, verdict in regressions.compare(before, now, 0.25)}


def test_what_fell_is_marked_and_noise_is_not() -> None:
    before, now = measured({"a": 4.0, "b": 4.0, "gone": 1.0}), measured({"a": 3.0, "b": 2.99, "fresh": 1.0})
    assert verdicts(before, now) == {"a": "", "b": "FELL", "gone": "MISSING", "fresh": "new"}
    rows = regressions.compare(before, now, 0.25)
    assert "FELL" in regressions.report(rows) and "-25%" in regressions.report(rows)


def test_only_like_is_compared_with_like() -> None:
    before, now = ({"over transformers": speed, "of the GEMM rate": speed} for speed in (4.0, 1.0))
    assert set(verdicts(measured(before), measured(now)).values()) == {"FELL"}
    found = verdicts(measured(before), measured(now, transformers="6"))
    assert found == {"over transformers": "recorded with transformers 5", "of the GEMM rate": "FELL"}
    found = verdicts(measured(before), measured(now, torch="3"))
    assert set(found.values()) == {"recorded with torch 2"}


Run = Callable[..., int]


@pytest.fixture
def run(records: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*options: str) -> int:
        monkeypatch.setattr("sys.argv", ["x", "--records", str(records), "--recorded", str(records / "kept"), *options])
        return regressions.main()

    return call


def changed(file: Path, **values: object) -> None:
    """Another processor, or other values of the machine, in a record."""
    record = json.loads(file.read_text())
    for one in record if isinstance(record, list) else [record]:
        one["machine"] |= values
    file.write_text(json.dumps(record))


def test_recording_then_comparing(records: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--record") == 0
    assert json.loads((records / "kept").read_text())[ZEN]["peers"] == {"transformers": "5"}
    assert run() == 0 and "nothing" in capsys.readouterr().out
    operations = json.loads((records / "operations.json").read_text())
    operations["delta_rule_peer"][0]["ratio"] = 3.0
    (records / "operations.json").write_text(json.dumps(operations))
    assert run() == 1
    assert "operations, delta rule over transformers, 4 × 512" in capsys.readouterr().out.splitlines()[-1]
    assert run("--tolerance", "0.5") == 0


def test_a_new_processor_is_told_and_recorded_beside_the_others(
    records: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--record") == 0
    for file in records.glob("*.json"):
        changed(file, processor="Intel family 6 model 106, AVX-512, 2 threads")
    capsys.readouterr()
    assert run() == 0
    told = capsys.readouterr().out
    assert told.startswith("nothing is recorded for Intel family 6 model 106, AVX-512, 2 threads yet (for others: AMD ")
    assert "--record stores 9 ratios" in told and "FELL" not in told
    assert run("--record") == 0 and run() == 0
    assert len(json.loads((records / "kept").read_text())) == 2
    capsys.readouterr()
    assert run("--table") == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert ZEN in head and "Intel family 6 model 106, AVX-512, 2 threads" in head
    assert rows[0].split("|")[2].strip() == rows[0].split("|")[3].strip() == "3.00"
    assert rows[-1] == "Intel family 6 model 106, AVX-512, 2 threads: cpu, 2026-01-01, torch 2, transformers 5"


def test_a_record_that_does_not_name_its_processor_is_not_compared(
    records: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((records / "decode.json").read_text())
    del record["machine"]["processor"]
    (records / "decode.json").write_text(json.dumps(record))
    assert run("--record") == 2
    assert "decode.json does not say on which processor" in capsys.readouterr().err
    assert not (records / "kept").exists()


def test_what_is_measured_says_on_which_processor_and_beside_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "gemm_rate", lambda: 1.0)
    monkeypatch.setattr(measure, "copy_rate", lambda device: 1.0)
    found = measure.machine()
    assert found["processor"] == devices.device_key(torch.device("cpu"))
    assert found["peers"]["transformers"] == transformers.__version__
    assert measure.installed({"a": "no-such-package"}) == {}


def test_without_records_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["x", "--records", str(tmp_path)])
    assert regressions.main() == 2
    assert "make bench" in capsys.readouterr().err


def test_what_is_recorded_is_what_the_short_set_gives() -> None:
    recorded = json.loads(regressions.RECORDED.read_text())
    for one in recorded.values():
        assert {"device", "torch", "peers", "date", "ratios"} == set(one)
        assert all(value > 0 for value in one["ratios"].values())
        assert {name.split(",")[0] for name in one["ratios"]} == {
            "train_step", "operations", "long_context", "decode"
        }  # fmt: skip
    assert "AMD EPYC, AVX-512, 2 threads" in recorded, "figures of another processor stay when new ones are recorded"


def test_tables_of_long_context_say_what_was_not_tried(records: Path) -> None:
    record = json.loads((records / "long_context.json").read_text())
    record["network"][1] = {"length": 512, "kind": "forward", "program": "transformers", "failure": "MemoryError"}
    table = long_context.report_network(record)
    assert "MemoryError" in table and "not tried" in table
    assert "1.25" in long_context.report_delta_rule(record)
    assert long_context.flatness({512: 1.0, 1024: 1.25}) == 0.8
