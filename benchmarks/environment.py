"""Environment variables that `gossamer` sets for itself, and those that its peers' users have.

Import this before PyTorch: its libraries read them when they are loaded.
"""

import os

from gossamer.cli import ENVIRONMENT

AS_USERS_HAVE_THEM = {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "300000")}  # libgomp's own default
"""For a peer's process: with gossamer's value, llama.cpp was measured to decode at a fraction of its speed."""

for variable, value in ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
