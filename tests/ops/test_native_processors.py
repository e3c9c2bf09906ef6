"""The native kernels compiled for other processors: the exactness tests of all operations run on them as well."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gossamer.ops.native import library
from processors.plugin import PROCESSORS, build

TESTS = Path(__file__).parent.parent
EXPORTED = re.compile(r"^void (gossamer_\w+)\(", re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSORS)
def test_the_kernels_of_a_processor_are_exact(name: str, tmp_path: Path) -> None:
    """Another processor is emulated; without an emulator the kernels are only compiled, without a warning."""
    processor = PROCESSORS[name]
    if reason := processor.cannot_build():
        pytest.skip(reason)
    if reason := processor.cannot_run():
        build(processor, tmp_path)
        pytest.skip(f"compiled, but not run: {reason}")
    options = "-q -p processors.plugin -p no:cacheprovider -k native".split()
    left_out = ["--ignore", str(TESTS / "ops/test_native.py"), "--ignore", __file__]  # about this machine's library
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--native-processor", name, *left_out, str(TESTS / "ops")],
        cwd=TESTS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    [called] = re.findall(r"native kernels called: (.*)", done.stdout)
    exported = {kernel for source in library._SOURCES.glob("*.cpp") for kernel in EXPORTED.findall(source.read_text())}
    assert set(called.split()) == exported, "a kernel that no test calls"
