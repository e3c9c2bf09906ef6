"""Environment variables that `gossamer` sets for itself, given to everything that is measured.

Import this before PyTorch: its libraries read them when they are loaded.
"""

import os

from gossamer.cli import ENVIRONMENT

for variable, value in ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
