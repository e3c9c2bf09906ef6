"""What a device can do, and how a user overrides it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import chip_runs
from gossamer import device as devices
from gossamer.cli import main
from gossamer.device.capabilities import _capabilities
from gossamer.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stand-in for the module of a CUDA-like device: `plugged(is_bf16_supported=…)`."""

    def plug(name: str, **module: Any) -> torch.device:
        module["get_device_properties"] = lambda device: SimpleNamespace(name=name)
        monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(**module))
        _capabilities.cache_clear()  # answers are cached
        return torch.device("cuda", 0)

    yield plug
    _capabilities.cache_clear()


def test_a_cpu_has_float64_and_talks_through_gloo() -> None:
    found = devices.capabilities(CPU)
    assert found.fp64 and found.int64 and found.fused_adamw and found.collective == "gloo"


def test_a_plug_in_is_asked_for_bfloat16(plugged: Any) -> None:
    assert devices.capabilities(plugged("MetaX C500", is_bf16_supported=lambda: True)).bf16
    assert not devices.capabilities(plugged("MetaX C280", is_bf16_supported=lambda: False)).bf16
    listed = plugged("Iluvatar BI", get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16])
    assert devices.capabilities(listed).bf16
    assert not devices.capabilities(plugged("Iluvatar MR", get_amp_supported_dtype=lambda: [torch.float16])).bf16


def test_the_table_says_what_a_disguised_chip_lacks(plugged: Any) -> None:
    found = devices.capabilities(plugged("P800 OAM", is_bf16_supported=lambda: True))
    assert not found.fp64 and found.collective == "nccl"
    assert not devices.can_hold(plugged("P800 OAM"), torch.float64)


def test_flags_are_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    before = devices.capabilities(CPU)
    monkeypatch.setenv("GOSSAMER_DEVICE_FLAGS", " fp64=no, triton=no,collective=mpi")
    found = devices.capabilities(CPU)
    assert (found.fp64, found.triton, found.collective) == (False, False, "mpi")
    assert found.grouped_mm == before.grouped_mm
    monkeypatch.delenv("GOSSAMER_DEVICE_FLAGS")
    assert devices.capabilities(CPU) == before


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("fp46=no", "no flag 'fp46'; did you mean 'fp64'?"),
        ("fp64", "fp64 is ''; it must be yes or no"),
        ("bf16=true", "bf16 is 'true'; it must be yes or no"),
        ("collective=", "collective is ''; it must be the name of a back end"),
    ],
)
def test_a_flag_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, line: str
) -> None:
    monkeypatch.setenv("GOSSAMER_DEVICE_FLAGS", text)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith(f"gossamer: GOSSAMER_DEVICE_FLAGS: {line}")


def test_flags_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.grouped_mm_obstacle(CPU) == ""
    monkeypatch.setenv("GOSSAMER_DEVICE_FLAGS", "grouped_mm=no,bf16=no,fp64=no")
    assert devices.grouped_mm_obstacle(CPU) == "PyTorch's grouped product is not known to work there"
    assert not devices.can_hold(CPU, torch.float64) and devices.can_hold(CPU, torch.float32)
    with pytest.raises(UserError, match="no bfloat16 units"):
        devices.compute_dtype(CPU, "bf16")


def test_an_unknown_plug_in_claims_nothing_that_it_does_not_say(on_chip: Any) -> None:
    found = on_chip(chip_runs.described)
    assert found["backend"] == "unknown" and found["collective_backend"] == "gloo"
    assert set(found["capabilities"].values()) == {False}
    assert found["device"] == "testchip (gossamer test chip)" and found["memory_gib"] > 0
