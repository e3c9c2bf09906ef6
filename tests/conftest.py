"""What all tests share: the helpers beside this file and the measurements in benchmarks/, and hypothesis' profile."""

import os
import sys
from pathlib import Path

from hypothesis import settings

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "benchmarks")]

# No deadline: the machine may be busy. On a CI machine the examples are the same in every run.
settings.register_profile("gossamer", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("gossamer")
