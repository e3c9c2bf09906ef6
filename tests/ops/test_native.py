"""How the native kernels are built, cached, and done without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.ops.native.layout import rows_in_place

needs_compiler = pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler")
DESCRIBE = "import torch, gossamer.ops as ops; print(ops.describe(torch.device('cpu'))['delta_rule'])"


def describe(cache: Path, **environment: str) -> tuple[str, str]:
    """What a fresh process says of the delta rule, on standard output and on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE],
        env=os.environ | {"GOSSAMER_CACHE": str(cache)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, done.stderr


@needs_compiler
def test_built_once_and_announced(tmp_path: Path) -> None:
    out, said = describe(tmp_path)
    assert "'runs': 'native'" in out
    assert len(said.splitlines()) == 1 and "building the native CPU kernels" in said
    [library] = (tmp_path / "native").iterdir()
    out, said = describe(tmp_path)
    assert "'runs': 'native'" in out and said == ""
    assert [library] == list((tmp_path / "native").iterdir())


def test_without_a_compiler_pytorch_serves(tmp_path: Path) -> None:
    out, said = describe(tmp_path, CXX="no-such-compiler")
    assert "'runs': 'chunked'" in out and "no C++ compiler" in out
    assert said == ""


def compiler_that(tmp_path: Path, does: str) -> str:
    script = tmp_path / "compiler"
    script.write_text(f'#!/bin/sh\ncase "$1" in --version) echo 1; exit 0;; esac\n{does}\n')
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    "does", ["echo 'x.cpp:1: error: no such thing' >&2; exit 1", "exit 1", 'for last; do :; done; echo junk >"$last"']
)
def test_a_failed_build_is_told_in_one_line(tmp_path: Path, does: str) -> None:
    """The compiler fails with a message, without one, or makes no library."""
    out, said = describe(tmp_path, CXX=compiler_that(tmp_path, does))
    assert "'runs': 'chunked'" in out
    building, told = said.splitlines()
    assert "building" in building and "PyTorch's own functions serve instead" in told
    assert not list(tmp_path.glob("native/*"))


def test_a_cache_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "native").write_text("a file where the folder should be")
    out, said = describe(tmp_path)
    assert "'runs': 'chunked'" in out
    assert "native CPU kernels are not available" in said.splitlines()[-1]


@settings(max_examples=60)
@given(
    batch=st.integers(1, 3), length=st.integers(0, 4), heads=st.integers(1, 3), width=st.integers(1, 4), data=st.data()
)
def test_rows_in_place(batch: int, length: int, heads: int, width: int, data: st.DataObject) -> None:
    """Reading by the stride that is given finds every token's numbers, whatever part of whatever tensor it was."""
    before, after = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    wide = torch.arange(batch * length * (before + heads * width + after), dtype=torch.float32)
    wide = wide.view(batch, length, before + heads * width + after)
    x = wide[..., before : before + heads * width].unflatten(-1, (heads, width))
    if data.draw(st.booleans(), "other order"):
        x = x.transpose(2, 3)
    rows, stride = rows_in_place(x)
    found = torch.as_strided(rows, (batch * length, heads * width), (stride, 1))
    assert torch.equal(found, x.reshape(batch * length, heads * width))
