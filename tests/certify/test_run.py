"""A certification from beginning to end: green on the CPU, red with a fault, and a device that stops answering."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from certify_faults import Faulty
from gossamer.certify import run
from gossamer.certify.certificate import certificate
from gossamer.certify.checks import GROUPS, Check, failed, verdict
from gossamer.certify.run import examine
from gossamer.cli import main

CPU = torch.device("cpu")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for all kinds of check, one check each."""
    questions = {group: [Check(group, "a check", "pass")] for group in GROUPS}
    monkeypatch.setattr(run, "_questions", lambda group, findings: iter(questions[group]))


@pytest.mark.usefixtures("hurried")
def test_the_cpu_passes() -> None:
    told = []
    findings = examine(CPU, True, lambda group, checks, seconds: told.append(group))
    assert verdict(findings.checks) == ("pass", []), verdict(findings.checks)
    assert told == list(GROUPS)
    assert {check.group for check in findings.checks if check.status == "pass"} == set(GROUPS)
    assert len(findings.curves.losses["float32"]) == 30
    assert findings.measured.gemm_flops["float32"] > 0 and findings.measured.training[0]["preset"] == "nano"
    assert {row["operator"] for row in findings.census.operators} >= {"aten::mm", "aten::_fused_adamw_"}


def test_a_wrong_operator_is_found_wherever_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "GROUPS", ("operators", "network"))
    with Faulty("aten::rsqrt", lambda x: 1.001 * x):
        findings = examine(CPU, True)
    wrong = failed(findings.checks)
    assert [check.name for check in wrong if check.group == "operators"] == ["aten::rsqrt"]
    assert all("aten::rsqrt" in check.message for check in wrong if check.group == "network")
    assert verdict(findings.checks)[0] == "fail"


def test_an_operator_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "GROUPS", ("operators", "network"))
    lacking = NotImplementedError("aten::bmm is not there")
    with Faulty("aten::bmm", lacking):
        findings = examine(CPU, True)
    wrong = failed(findings.checks)
    assert any(check.name == "aten::bmm" and "raises NotImplementedError" in check.message for check in wrong)
    assert any(check.group == "operators" and check.status == "not run" for check in findings.checks)
    assert not findings.lost


def lose(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """The device stops answering in the middle of a kind of check."""

    def questions(group, findings):
        yield Check(group, "a check", "pass")
        if group == at:
            raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(run, "_questions", questions)
    monkeypatch.setattr(run, "_silent", lambda device: "RuntimeError: no device")


@pytest.mark.parametrize("at", ["numbers", "training", "speed"])
def test_a_device_that_is_lost_ends_it(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    lose(monkeypatch, at)
    findings = examine(CPU, True)
    assert findings.lost == "RuntimeError: no device"
    after = list(GROUPS)[list(GROUPS).index(at) + 1 :]
    assert {check.status for check in findings.checks if check.group in after} <= {"not run"}
    assert certificate(findings)["verdict"] == "fail"


def test_a_lost_device_is_one_line_and_no_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "certificate.json").write_text('{"verdict": "pass"}')  # of an earlier day
    lose(monkeypatch, "memory")
    assert main(["certify", "--device", "cpu", "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert not out
    (line,) = [line for line in err.splitlines() if line.startswith("gossamer:")]
    assert "stopped answering: RuntimeError: no device" in line
    assert json.loads((tmp_path / "certificate.json").read_text())["verdict"] == "fail"


def test_a_check_that_breaks_down_fails_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def questions(group, findings):
        if group == "storage":
            raise ZeroDivisionError("division by zero")
        yield Check(group, "a check", "pass")

    monkeypatch.setattr(run, "_questions", questions)
    findings = examine(CPU, True)
    (wrong,) = failed(findings.checks)
    assert wrong.group == "storage" and "ZeroDivisionError" in wrong.message
    assert findings.checks[-1] == Check("speed", "a check", "pass")


@pytest.mark.usefixtures("few")
def test_exit_status_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    assert main(["certify", "--device", "cpu", "--quick", "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "certificate.json").read_text())
    failing = {group: [Check(group, "a check", "fail", "wrong")] for group in GROUPS}
    monkeypatch.setattr(run, "_questions", lambda group, findings: iter(failing[group]))
    assert main(["certify", "--device", "cpu", "--quick", "--out", str(tmp_path)]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--device", "cpuu"], "did you mean 'cpu'?"),
        (["--device", "cuda:7"], "not on this machine"),
        (["--out", "taken"], "is a file"),
        (["--out", "taken/below"], "is a file"),
        (["--quik"], "did you mean '--quick'?"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    assert main(["certify", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and told in err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
