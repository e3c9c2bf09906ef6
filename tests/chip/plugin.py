"""The chip as a plug-in: importing this installs it, with the faults that the environment asks for.

- CHIP_LACK, CHIP_FALL_BACK: operators, separated by commas: `aten.topk,aten.cumsum`
- CHIP_BREAK: operators with what their results are multiplied by: `aten.mm=1.01,aten.exp=0.99`
- CHIP_CAPACITY: bytes of memory
"""

from __future__ import annotations

import os

from chip.backend import install
from chip.faults import break_operator, capacity, fall_back, lack


def _listed(variable: str) -> list[str]:
    return [word.strip() for word in os.environ.get(variable, "").split(",") if word.strip()]


install()
lack(*_listed("CHIP_LACK"))
fall_back(*_listed("CHIP_FALL_BACK"))
for _word in _listed("CHIP_BREAK"):
    _operator, _, _scale = _word.partition("=")
    break_operator(_operator, float(_scale))
if _size := os.environ.get("CHIP_CAPACITY"):
    capacity(int(_size))
