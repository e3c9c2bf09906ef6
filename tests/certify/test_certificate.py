"""The certificate for programs, its page and its table."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gossamer import __version__
from gossamer.certify.aten_operators import where_it_ran
from gossamer.certify.certificate import certificate, default_folder, show, summary, write_certificate
from gossamer.certify.checks import GROUPS, Check
from gossamer.certify.page import write_page
from gossamer.certify.run import Findings, identity
from pages import Page

CPU = torch.device("cpu")
WRONG = Check(
    "operations", "delta_rule chunked", "fail", "gradient of <k> is off", "float32", "odd sizes", "q [1, 69, 1, 5]",
    math.inf, 1e-4, "src/gossamer/ops/delta_rule/chunked.py",
)  # fmt: skip


def findings(*more: Check) -> Findings:
    passed = [Check(group, "a check", "pass", dtype="float32", error=1e-6, tolerance=1e-4) for group in GROUPS]
    skipped = Check("operations", "delta_rule fla", "not run", "a CPU")
    found = Findings(CPU, True, identity(CPU), [*passed, skipped, *more], seconds=12.34)
    found.census.operators = [
        {"operator": "aten::mm", "calls": 7, "ran": "natively", "error": 1e-7},
        {"operator": "aten::cumsum", "calls": 2, "ran": "on the CPU"},
    ]
    found.curves.losses = {"reference": [4.0, 3.0, 2.0], "float32": [4.0, 3.0, 2.0001], "bfloat16": [4.01, math.nan, 2]}
    found.measured.gemm_flops = {"float32": 1e11}
    found.measured.copy_bytes_per_second = 1e10
    found.measured.training = [
        {"preset": "nano", "tokens_per_second": 4920.0, "mfu": 0.58, "dtype": "float32", "batch_size": 8,
         "sequence_length": 256, "seconds_per_step": 0.4}
    ]  # fmt: skip
    return found


def test_its_form(tmp_path: Path) -> None:
    path = write_certificate(certificate(findings()), tmp_path / "new")
    found = json.loads(path.read_text())
    assert found["gossamer"] == __version__ and found["format"] == 1 and found["verdict"] == "pass"
    assert found["device"]["type"] == "cpu" and found["device"]["name"]
    assert found["measured"]["gemm_flops"] == {"float32": 1e11}
    assert found["measured"]["copy_bytes_per_second"] == 1e10
    assert found["measured"]["collective_bytes_per_second"] is None
    assert found["measured"]["training"][0]["preset"] == "nano"
    assert {"group": "operations", "name": "delta_rule fla", "status": "not run", "message": "a CPU"} in found["checks"]


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    text = write_certificate(certificate(findings(WRONG)), tmp_path).read_text()
    found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert found["verdict"] == "fail" and found["checks"][-1]["error"] is None
    assert found["losses"]["bfloat16"][1] is None
    assert found["reasons"][0].startswith("delta_rule chunked float32 odd sizes q [1, 69, 1, 5]: ")


def test_the_page(tmp_path: Path) -> None:
    found = findings(WRONG)
    html = write_page(found, certificate(found), tmp_path).read_text()
    page = Page(html)
    assert "<k>" not in html and "gradient of &lt;k&gt; is off" in html
    assert "svg" in page.tags and "aten::cumsum" in html and "on the CPU" in html
    for group, question in GROUPS.items():
        assert group in html and question.replace("'", "&#39;") in html


def test_a_page_of_nothing(tmp_path: Path) -> None:
    found = Findings(CPU, True, identity(CPU), [Check("numbers", "x", "fail", "lost")])
    assert Page(write_page(found, certificate(found), tmp_path).read_text())


def test_the_table() -> None:
    file = io.StringIO()
    show(findings(WRONG), "a device", Console(file=file, width=100, highlight=False))
    text = file.getvalue()
    assert "FAIL  delta_rule chunked float32 odd sizes q [1, 69, 1, 5]: gradient of <k> is off" in text
    assert "not run  delta_rule fla (a CPU)" in text
    assert "on the CPU  1 operators: aten::cumsum" in text
    assert "4,920 tokens/s, MFU 58%" in text
    assert text.rstrip().endswith("FAIL")


def test_progress_in_a_line() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, highlight=False)
    console.print(summary("operations", [WRONG, Check("operations", "x", "pass")], 1.23))
    assert file.getvalue().split() == "operations 1 passed, 1 failed in 1.23 s".split()


def test_the_folder_is_named_by_the_device() -> None:
    assert default_folder(CPU).parts[0] == "certificates" and default_folder(CPU).name.startswith("cpu-")


@pytest.mark.parametrize(
    ("operator", "said", "ran"),
    [
        ("aten::mm", set(), "natively"),
        ("aten::linear", set(), "composed of others"),
        ("aten::mm", {"aten::mm"}, "on the CPU"),
        ("aten::add.Tensor", {"aten::add"}, "on the CPU"),
    ],
)
def test_where_an_operator_ran(operator: str, said: set[str], ran: str) -> None:
    assert where_it_ran(operator, CPU, said) == ran
