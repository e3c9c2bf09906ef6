"""`make bench-gpu` without a GPU: it says so, and its checks and tables work on a small network on a CPU."""

from __future__ import annotations

import gpu
import pytest
import torch

from gossamer.device import default_device, is_accelerator
from gossamer.model.config import ModelConfig

CPU = torch.device("cpu")


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )


@pytest.mark.skipif(is_accelerator(default_device()), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    assert gpu.main() == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "no GPU" in err


def test_errors_and_timings_cover_every_operation(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "seconds_of", lambda call: call() and 0.001)
    found = gpu.errors(config, CPU)
    measured = [row for row in found if "error" in row]
    assert not [row for row in found if "failure" in row]
    assert all(row["right"] for row in measured), measured
    assert {row["operation"] for row in measured} == set(gpu.ops.OPERATIONS)
    assert any(row.get("obstacle") for row in found)  # fla, Triton
    times = gpu.timings(config, 2, 20, CPU, torch.float32)
    assert {row["operation"] for row in times if row["chosen"]} == set(gpu.ops.OPERATIONS)
    for report in (gpu.report_errors(found), gpu.report_timings(times)):
        assert "delta_rule chunked" in report


def test_an_implementation_that_is_wrong_or_fails_is_shown(config: ModelConfig) -> None:
    inputs = gpu.cast(gpu.inputs_of("rms_norm", config, [3], CPU), torch.float32)
    want = gpu.caller("rms_norm", inputs)()
    off = {name: value.double() + 1 for name, value in want.items()}
    row = gpu._compare("rms_norm", "plain", inputs, off, 1e-4, "")
    assert not row["right"]
    nan = {name: value * torch.nan for name, value in want.items()}
    assert not gpu._compare("rms_norm", "plain", inputs, nan, 1e-4, "")["right"]
    assert "failure" in gpu._compare("rms_norm", "plain", {"x": None}, want, 1e-4, "")


def test_the_table_of_steps_has_room_for_a_failure() -> None:
    row = {"seconds": 0.5, "tokens_per_second": 1e5, "mfu": 0.25, "peak": 2**31}
    report = gpu.report_steps({"gossamer": row, "transformers": {"failure": "OutOfMemoryError"}})
    assert "25.0%" in report and "2.0" in report and "OutOfMemoryError" in report
