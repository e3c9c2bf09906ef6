"""How a plug-in is found and imported, and the message when it cannot be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossamer import device as devices
from gossamer.errors import UserError


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which modules are imported; neither they nor cached answers remain after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    devices.load_plugins.cache_clear()
    yield tmp_path
    devices.load_plugins.cache_clear()
    for name in ("torch_npu", "newchip_plugin"):
        sys.modules.pop(name, None)


def test_a_plug_in_of_the_table_is_imported_where_it_is_installed(plugins: Path) -> None:
    (plugins / "torch_npu.py").write_text("loaded = True\n")
    devices.available_devices()
    assert sys.modules["torch_npu"].loaded


def test_a_plug_in_that_cannot_be_imported_is_skipped_with_a_warning(
    plugins: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (plugins / "torch_npu.py").write_text("raise ImportError('libhccl.so: cannot open shared object file\\nmore')\n")
    assert devices.available_devices()[-1] == "cpu"
    told = "torch_npu is installed, but cannot be imported: libhccl.so: cannot open shared object file"
    assert told in caplog.messages


def test_the_plug_in_that_the_user_names_is_the_one(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plugins / "torch_npu.py").write_text("raise RuntimeError('two plug-ins')\n")
    (plugins / "newchip_plugin.py").write_text("loaded = True\n")
    monkeypatch.setenv("GOSSAMER_PLUGIN", "newchip_plugin")
    devices.available_devices()
    assert sys.modules["newchip_plugin"].loaded and "torch_npu" not in sys.modules


def test_a_named_plug_in_that_is_not_there_is_a_mistake(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSAMER_PLUGIN", "newchip_plugin")
    with pytest.raises(UserError, match="GOSSAMER_PLUGIN 'newchip_plugin' cannot be imported: No module named"):
        devices.resolve("auto")
