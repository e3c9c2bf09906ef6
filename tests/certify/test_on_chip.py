"""The test chip is certified, and each planted fault is found and named; the chip that is unplugged passes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gossamer
from gossamer.certify.checks import GROUPS

TESTS = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(TESTS), str(Path(gossamer.__file__).parents[1]), *filter(None, sys.path)]),
    "OMP_NUM_THREADS": "1",
}

Certificates = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    command = [sys.executable, str(TESTS / "certify_chip.py"), str(folder)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/certificate.json")}


def failures(certificate: dict[str, Any], group: str = "") -> list[dict[str, Any]]:
    return [check for check in certificate["checks"] if check["status"] == "fail" and group in ("", check["group"])]


def test_a_right_chip_passes(certificates: Certificates) -> None:
    found = certificates["whole"]
    assert found["verdict"] == "pass", found["reasons"]
    assert found["device"]["type"] == "testchip" and found["device"]["name"] == "gossamer test chip"
    assert {check["group"] for check in found["checks"] if check["status"] == "pass"} == set(GROUPS)
    assert {row["ran"] for row in found["operators"]} <= {"by the plug-in", "composed of others", "natively"}
    measured = found["measured"]
    assert measured["gemm_flops"]["float32"] > 0 and measured["copy_bytes_per_second"] > 0
    assert measured["collective_bytes_per_second"] is None
    assert [row["preset"] for row in measured["training"]] == ["nano"]


def test_what_it_cannot_do_is_not_run(certificates: Certificates) -> None:
    skipped = {
        check["name"]: check["message"] for check in certificates["whole"]["checks"] if check["status"] == "not run"
    }
    assert "float64" in skipped["products in float64"]
    assert skipped["delta_rule native"] == "for CPUs only"


def test_a_wrong_operator_is_named(certificates: Certificates) -> None:
    found = certificates["wrong operator"]
    assert found["verdict"] == "fail"
    (operator,) = failures(found, "operators")
    assert operator["name"] == "aten::rsqrt" and operator["dtype"] == "float32" and operator["shape"]
    assert operator["error"] == pytest.approx(0.01, rel=0.1)
    wrong = failures(found, "operations")
    assert "rms_norm reference" in {check["name"] for check in wrong}
    for check in [*wrong, *failures(found, "network")]:
        assert "aten::rsqrt in float32" in check["message"], check
        assert check["where"]


def test_a_lacking_operator_is_named(certificates: Certificates) -> None:
    found = certificates["lacking operator"]
    assert found["verdict"] == "fail"
    (operator,) = failures(found, "operators")
    assert operator["name"] == "aten::bmm" and "raises NotImplementedError" in operator["message"]
    assert any("the step ended before them" in check.get("message", "") for check in found["checks"])
    wrong = failures(found, "operations")
    assert "delta_rule chunked" in {check["name"] for check in wrong}
    assert all("aten::bmm" in check["message"] for check in wrong)


def test_too_little_memory_is_told(certificates: Certificates) -> None:
    found = certificates["too little memory"]
    assert found["verdict"] == "fail"
    wrong = failures(found)
    assert {check["group"] for check in wrong} == {"network", "training"}
    assert all("out of memory" in check["message"] for check in wrong)
    memory = {check["name"]: check for check in found["checks"] if check["group"] == "memory"}
    assert memory["a full device"]["status"] == "pass"
    assert memory["peak of nano"]["status"] == "not run" and "there are 1" in memory["peak of nano"]["message"]


def test_what_the_host_computes_is_told_and_is_right(certificates: Certificates) -> None:
    found = certificates["left to the host"]
    assert not failures(found)
    on_host = {row["operator"] for row in found["operators"] if row["ran"] == "on the CPU"}
    assert on_host == {"aten::cumsum", "aten::topk"}


def test_a_chip_that_is_unplugged_passes_nothing_more(certificates: Certificates) -> None:
    found = certificates["unplugged"]
    assert found["verdict"] == "fail"
    assert any("does not answer" in check["message"] for check in failures(found, "operations"))
    after = [check for check in found["checks"] if check["group"] not in ("numbers", "operations")]
    assert {check["status"] for check in after} == {"not run"}


@pytest.mark.slow
def test_the_command_on_the_chip(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "gossamer.cli",
        "certify",
        "--quick",
        "--device",
        "testchip",
        "--out",
        str(tmp_path),
    ]
    environment = ENVIRONMENT | {"GOSSAMER_PLUGIN": "chip.plugin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "certificate.json").read_text())["verdict"] == "pass"
