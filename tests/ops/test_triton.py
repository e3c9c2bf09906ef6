"""The Triton kernels: in the interpreter on a CPU, and compiled for chips that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")


def run(*command: str, **environment: str) -> str:
    """Run Python in a process of its own: whether Triton interprets is settled when it is first imported."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("GOSSAMER_", "PYTEST_"))}
    variables |= {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *command], env=variables, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("operation", ["delta_rule", "not delta_rule"])
def test_in_the_interpreter(operation: str) -> None:
    cases = str(HERE / "triton_cases.py")
    out = run(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", cases, "-k", operation),
        TRITON_INTERPRET="1",
        GOSSAMER_DEVICE="cpu",
    )
    assert " passed" in out and "skipped" not in out and "failed" not in out


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "90", "gfx942"])
def test_compiles_for_a_chip_that_is_not_here(arch: str) -> None:
    out = run(str(HERE / "triton_compile.py"), arch, TRITON_INTERPRET="0")
    assert out.count("delta_rule_backward.gradients") == 2
    assert "TOO MUCH" not in out, out
