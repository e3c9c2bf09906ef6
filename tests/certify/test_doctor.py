"""`gossamer doctor --speed`: what is measured, and that what is far below its due is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import shares
import torch

from gossamer import device as devices
from gossamer import ops
from gossamer.certify import doctor, timing
from gossamer.certify.inputs import CONFIG
from gossamer.certify.timing import FRESH
from gossamer.cli import main

CPU = torch.device("cpu")
NOT_RECORDED = {"frozen_grouped_mlp", "token_logprobs"}  # those that are newer than the newest record of a processor
QUIET = doctor.ThreadUse(2, "", 2, 2, float("inf"), 1, 0.0)


def row(
    operation: str, seconds: float = 0.01, share: float | None = 0.5, recorded: float | None = 0.5
) -> dict[str, Any]:
    return {
        "operation": operation, "implementation": "native", "chosen": True, "seconds": seconds, "share": share,
        "recorded": recorded,
    }  # fmt: skip


def found(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    measured = {
        "processor": "AMD family 25 model 1, AVX2, 2 threads", "threads": QUIET.to_dict(), "gemm_flops": 1e11,
        "gemm_gain": 1.9, "copy_bytes_per_second": 1e10, "subnormals": "off", "operations": list(rows),
        "recorded": {"processor": "AMD family 25 model 1, AVX2, 2 threads", "torch": "2", "date": "2026-01-01"},
    }  # fmt: skip
    return measured | changes


@pytest.fixture(autouse=True)
def native_kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    states = {"native": "able"}
    monkeypatch.setattr(ops, "describe", lambda device: {"delta_rule": {"runs": "native", "implementations": states}})
    return states


def told(*rows: dict[str, Any], **changes: Any) -> list[str]:
    return [one.what for one in doctor._speed_findings(found(*rows, **changes))]


def test_what_is_as_elsewhere_is_not_mentioned() -> None:
    assert not told(row("rms_norm"), row("delta_rule"), row("delta_rule" + FRESH), row("attention", recorded=None))


def test_subnormals_that_slow_a_fresh_network_are_seen_whatever_is_recorded() -> None:
    """Measured on an Intel Xeon: 1,464 ms with subnormals, 38 without."""
    rows = row("delta_rule", 0.038, 0.5, None), row("delta_rule" + FRESH, 1.464, 0.013, None)
    [finding] = told(*rows)
    assert finding.startswith("delta_rule (native) takes 38.5 times as long with a fresh network's gates")
    assert any("roofline" in one for one in told(rows[0], row("delta_rule" + FRESH, 1.464, 0.013, 0.5)))
    assert "subnormal floats are computed with" in told(subnormals="on")[0]


def test_a_share_far_below_the_recorded_one_is_said_and_half_of_it_is_noise() -> None:
    assert told(row("rms_norm", share=0.1, recorded=0.5)) == [
        "rms_norm: native reaches 10% of this machine's roofline, elsewhere 50%"
    ]
    assert not told(row("rms_norm", share=0.25, recorded=0.5))


def test_what_fails_a_missing_compiler_and_threads_that_do_not_help(native_kernels: dict[str, str]) -> None:
    native_kernels["native"] = "no C++ compiler"
    broken = row("rms_norm", share=None) | {"failure": "ZeroDivisionError: x"}
    words = told(broken, gemm_gain=0.9)
    assert len(words) == 3
    for part in ("only 0.9 times as fast as on one", "rms_norm: native could not be timed", "(no C++ compiler)"):
        assert any(part in one for one in words)
    text = doctor.report(found(broken, row("rms_norm")) | {"findings": []})
    assert "ZeroDivisionError" in text and "nothing is far below" in text and "2 on 2 cores" in text


def test_subnormals_are_seen_as_the_process_is_set() -> None:
    before = doctor.flushes_subnormals()
    try:
        for wanted in (True, False):
            if torch.set_flush_denormal(wanted):  # false: this processor cannot be told to
                with doctor.max_threads(1):  # others keep the mode that they were made with
                    assert doctor.flushes_subnormals() is wanted
    finally:
        torch.set_flush_denormal(before)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is measured, in a moment."""
    monkeypatch.setattr(doctor, "operation_config", lambda: CONFIG)
    monkeypatch.setattr(doctor, "LENGTH", 16)
    monkeypatch.setattr(doctor, "_GEMM_SIZE", 64)
    monkeypatch.setattr(doctor, "_COPY_MEGABYTES", 1)
    monkeypatch.setattr(devices, "peak_rate", lambda device, dtype: 1e9)
    monkeypatch.setattr(timing, "seconds_of", lambda call, device, **_: timing.seconds_of_one(call, device))


def test_every_operation_is_measured_by_what_runs_and_by_pytorch(small: None) -> None:
    rows = doctor.measure_operations(CPU, torch.float32)
    assert {one["operation"] for one in rows} == {*ops.training_operations(), "delta_rule" + FRESH}
    for name, operation in ops.training_operations().items():
        mine = {one["implementation"] for one in rows if one["operation"] == name}
        assert mine == {operation.choose(CPU).name, operation.pytorch_implementation().name}
    assert all(one["share"] > 0 for one in rows)


def test_the_command_answers_people_and_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "SHARES", tmp_path / "shares.json")
    monkeypatch.setattr(doctor, "measure_operations", lambda device, dtype: [row("rms_norm", recorded=None)])
    monkeypatch.setattr(doctor, "copy_rate", lambda device, megabytes: 1e10)
    monkeypatch.setattr(devices, "peak_rate", lambda device, dtype: 1e9)
    monkeypatch.setattr(devices, "prepare_process", lambda: None)
    doctor.SHARES.write_text("{}")
    assert main(["doctor", "--device", "cpu", "--speed"]) == 0
    assert "nothing is recorded for this kind of processor" in capsys.readouterr().out
    shares.keep({"rms_norm: native": 0.9}, doctor.SHARES)
    assert main(["doctor", "--device", "cpu", "--speed", "--json"]) == 0
    speed = json.loads(capsys.readouterr().out)["speed"]
    assert speed["operations"][0]["recorded"] == 0.9 and speed["recorded"]["torch"] == torch.__version__
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    assert "speed" not in json.loads(capsys.readouterr().out)


def test_shares_are_recorded_for_every_operation_that_can_be_timed() -> None:
    for unit, entry in json.loads(doctor.SHARES.read_text()).items():
        assert unit in entry["processor"]
        names = {name.partition(": ")[0] for name in entry["shares"]}
        missing = {*ops.training_operations(), "delta_rule" + FRESH} ^ names
        assert missing <= NOT_RECORDED, "benchmarks/shares.py records them"
        assert all(0 < share < 3 for share in entry["shares"].values())


def test_fewer_threads_are_an_episode() -> None:
    before = torch.get_num_threads()
    with doctor.max_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    assert timing.operation_of("delta_rule" + FRESH) == "delta_rule"
