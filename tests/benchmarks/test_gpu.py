"""`make bench-gpu` without a GPU: it says so, and its checks and tables work on a small network on a CPU."""

from __future__ import annotations

import gpu
import pytest
import torch

from gossamer.device import default_device, is_accelerator
from gossamer.model.config import ModelConfig

CPU = torch.device("cpu")


@pytest.mark.skipif(is_accelerator(default_device()), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    assert gpu.main() == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "no GPU" in err


def test_errors_cover_every_operation(config: ModelConfig) -> None:
    found = gpu.errors(config, CPU)
    assert not gpu.failed(found)
    assert {check.name.split()[0] for check in found if check.status == "pass"} == set(gpu.ops.training_operations())
    assert any(check.status == "not run" for check in found)  # fla, Triton
    assert "delta_rule chunked" in gpu.report_errors(found)


def test_the_table_of_steps_has_room_for_a_failure() -> None:
    row = {"seconds": 0.5, "tokens_per_second": 1e5, "mfu": 0.25, "peak": 2**31}
    report = gpu.report_steps({"gossamer": row, "transformers": {"failure": "OutOfMemoryError"}})
    assert "25.0%" in report and "2.0" in report and "OutOfMemoryError" in report
