"""Certifications of the test chip, for `certify/test_on_chip.py`: a process of its own, since a chip cannot be removed.

    python certify_chip.py FOLDER

writes a certificate for each scenario below into a folder of its name. A few steps of training instead of fifty, and
where a fault is planted only the kinds of check that have to find it, in a few operations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import chip
from gossamer.certify import operations, run, speed, training
from gossamer.certify.certificate import certificate, write_certificate
from gossamer.certify.checks import GROUPS

EXACT = ("numbers", "operations", "operators", "network")
ALL = operations.checked_operations()
SCENARIOS: dict[str, tuple[tuple[str, ...], list[str], Callable[[], None]]] = {
    "whole": (tuple(GROUPS), ALL, lambda: None),
    "wrong operator": (EXACT, ["rms_norm", "gated_rms_norm"], lambda: chip.break_operator("aten.rsqrt", 1.01)),
    "lacking operator": (EXACT, ["delta_rule"], lambda: chip.lack("aten.bmm")),
    "too little memory": (("network", "training", "memory"), [], lambda: chip.capacity(1 << 20)),
    "left to the host": (("operators",), [], lambda: chip.fall_back("aten.cumsum", "aten.topk")),
    "unplugged": (tuple(GROUPS), ["rms_norm"], lambda: None),
}


def main(folder: Path) -> None:
    device = chip.install()
    training.STEPS, training.MAX_LOSS_RATIO = 4, 1.0
    speed.PRESETS = ("nano",)
    speed.seconds_a_step = lambda *_: 0.5
    for name, (groups, checked, plant) in SCENARIOS.items():
        chip.reset()
        plant()
        run.GROUPS = {group: GROUPS[group] for group in groups}
        operations.checked_operations = lambda checked=checked: checked

        def unplug(group: str, *_: object, name: str = name) -> None:
            if name == "unplugged" and group == "numbers":
                chip.unplug()

        findings = run.examine(device, True, unplug)
        print(f"{name}: {findings.seconds:.1f} s")
        write_certificate(certificate(findings), folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
