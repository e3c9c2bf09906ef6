"""Environment variables that `gossamer` sets for itself (cli.py), given to everything that is measured.

Import this before PyTorch: its libraries read them when they are loaded.
"""

import os

SETTINGS = {"GOMP_SPINCOUNT": "1000"}

for variable, value in SETTINGS.items():
    os.environ.setdefault(variable, value)
