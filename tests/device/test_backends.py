"""The row of the table that a device belongs to, which the name `cuda` alone does not tell."""

from __future__ import annotations

import pytest
import torch

from gossamer.device import BACKENDS, backend_of


@pytest.mark.parametrize(
    ("device_type", "product", "name"),
    [
        ("cpu", "AMD EPYC", "cpu"),
        ("cuda", "NVIDIA H200", "nvidia"),
        ("cuda", "Tesla V100-SXM2-16GB", "nvidia"),
        ("cuda", "MetaX C500", "metax"),
        ("cuda", "Iluvatar BI-V150", "iluvatar"),
        ("cuda", "PPU-ZW810E", "t-head"),
        ("cuda", "P800 OAM", "kunlunxin"),
        ("cuda", "K100_AI", "hygon"),
        ("cuda", "Something new", "like cuda"),
        ("xpu", "Intel(R) Data Center GPU Max 1550", "intel"),
        ("npu", "Ascend910B2", "ascend"),
        ("gcu", "", "enflame"),
        ("newchip", "Whatever", "unknown"),
    ],
)
def test_a_device_is_known_by_its_type_and_its_makers_name(device_type: str, product: str, name: str) -> None:
    assert backend_of(device_type, product).name == name


@pytest.mark.parametrize(("mark", "name"), [("hip", "amd"), ("maca", "metax")])
def test_a_build_of_pytorch_tells_its_maker(monkeypatch: pytest.MonkeyPatch, mark: str, name: str) -> None:
    monkeypatch.setattr(torch.version, mark, "6.4", raising=False)
    assert backend_of("cuda", "a product without a maker's name").name == name


def test_what_nothing_is_known_of_claims_little() -> None:
    for row in (backend_of("newchip", ""), backend_of("cuda", "Something new")):
        assert not (row.fp64 or row.grouped_mm or row.has_tf32)
    assert not backend_of("newchip", "").triton


def test_chips_without_float64_are_known() -> None:
    without = {row.name for row in BACKENDS if not row.fp64}
    assert {"kunlunxin", "cambricon", "moore threads", "enflame"} <= without
    assert [row.name for row in BACKENDS if not row.int64 and row.device_type == "gcu"] == ["enflame"]


def test_names_are_unique_and_each_type_has_a_last_resort() -> None:
    names = [row.name for row in BACKENDS]
    assert len(names) == len(set(names))
    last = {row.device_type: row for row in BACKENDS}
    assert not [row for row in last.values() if row.words or row.marks]
