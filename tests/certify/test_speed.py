"""What is measured of speed, and what is left out with a reason."""

from __future__ import annotations

import pytest
import torch

from gossamer import device as devices
from gossamer.certify import speed
from gossamer.certify.speed import Measured, collective_rate, preset_recipe, seconds_a_step, synthetic_batches

CPU = torch.device("cpu")


def training_row(monkeypatch: pytest.MonkeyPatch, preset: str, peak: float, seconds: float = 0.5, later: float = 0.0):
    monkeypatch.setattr(speed, "seconds_a_step", lambda *_: seconds)
    monkeypatch.setattr(devices, "peak_rate", lambda *_, **__: later)
    measured = Measured(gemm_flops={"float32": peak})
    return speed._training(preset, CPU, True, measured), measured.training


def test_tokens_a_second_and_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    check, (row,) = training_row(monkeypatch, "nano", 1e12)
    assert check.status == "pass"
    assert row["tokens_per_second"] == row["batch_size"] * row["sequence_length"] / 0.5 == 4096
    flops = speed._flops(preset_recipe("nano"))
    assert row["mfu"] == pytest.approx(4096 * flops / 1e12)


def test_a_peak_measured_on_a_busy_machine_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = preset_recipe("nano")
    rate = speed._flops(recipe) * recipe.training.batch_size * recipe.training.sequence_length / 0.05
    for later, share in ((0.0, 1.0), (4 * rate, 0.25)):  # by the steps themselves, by another moment
        _, (row,) = training_row(monkeypatch, "nano", rate / 1.5, 0.05, later)
        assert row["mfu"] == pytest.approx(share)


def test_a_slow_device_gets_fewer_rows_and_then_none(monkeypatch: pytest.MonkeyPatch) -> None:
    check, (row,) = training_row(monkeypatch, "nano", 2e10)
    assert check.status == "pass" and 1 <= row["batch_size"] < preset_recipe("nano").training.batch_size
    check, rows = training_row(monkeypatch, "nano", 1e6)
    assert check.status == "not run" and " a step, with one row a step" in check.message and not rows


def test_what_does_not_fit_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "memory_bytes", lambda device: 1 << 20)
    check, rows = training_row(monkeypatch, "nano", 1e15)
    assert check.status == "not run" and "needs" in check.message and not rows


def test_without_a_product_rate_there_is_no_mfu() -> None:
    measured = Measured()
    assert speed._training("nano", CPU, True, measured).status == "not run" and not measured.training


def test_one_device_has_no_collectives() -> None:
    measured = Measured()
    assert speed._collectives(CPU, measured).status == "not run"
    assert measured.collective_bytes_per_second is None


def test_a_step_of_a_preset_is_timed() -> None:
    recipe = speed.replace(preset_recipe("nano"), training=speed.replace(preset_recipe("nano").training, batch_size=1))
    assert 0 < seconds_a_step(recipe, CPU, 0.0) < 60
    ((batch,), _) = synthetic_batches(recipe, 2)
    assert batch.input_ids.shape == (1, 256) and batch.cu_seqlens.tolist() == [0, 256]


@pytest.mark.slow
def test_collectives_of_two_processes() -> None:
    assert collective_rate("cpu", 2, megabytes=1) > 0
