"""Timing an operation: what it loads."""

import subprocess
import sys


def test_timing_an_operation_needs_nothing_of_training() -> None:
    code = "import sys, gossamer.certify.timing; sys.exit('gossamer.train' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
