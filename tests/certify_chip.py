"""Certifications of the test chip, for `certify/test_on_chip.py`: a process of its own, since a chip cannot be removed.

    python certify_chip.py FOLDER

writes a certificate for each scenario below into a folder of its name. A few steps of training instead of fifty, and
where a fault is planted only the kinds of check that have to find it, in a few operations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import chip
from gossamer.certify import decoding, hardware, operations, run, speed, training
from gossamer.certify.certificate import certificate, write_certificate
from gossamer.certify.checks import GROUPS
from gossamer.certify.speed import preset_recipe
from gossamer.train.recipe import Recipe

EXACT = ("numbers", "operations", "operators", "network")
TRAINED, SERVED = operations.checked_operations(), decoding.served_operations()
SCENARIOS: dict[str, tuple[tuple[str, ...], list[str], Callable[[], None]]] = {
    "whole": (tuple(GROUPS), TRAINED + SERVED, lambda: None),
    "wrong operator": (
        EXACT, ["rms_norm", "gated_rms_norm", "delta_step"], lambda: chip.break_operator("aten.rsqrt", 1.01),
    ),
    "lacking operator": (EXACT, ["delta_rule", "delta_step"], lambda: chip.lack("aten.bmm")),
    "too little memory": (("network", "training", "memory"), [], lambda: chip.capacity(1 << 20)),
    "left to the host": (("operators",), [], lambda: chip.fall_back("aten.cumsum", "aten.topk")),
    "unplugged": (tuple(GROUPS), ["rms_norm"], lambda: None),
}  # fmt: skip


def small_recipe(preset: str) -> Recipe:
    """A preset with two layers: on the chip each operator of a layer is a call in Python."""
    recipe = preset_recipe(preset)
    return replace(recipe, model=replace(recipe.model, num_hidden_layers=2, full_attention_interval=2))


def main(folder: Path) -> None:
    device = chip.install()
    training.STEPS, training.MAX_LOSS_RATIO, training.REPEATED_STEPS = 3, 1.0, 2
    training.SAVED_STEPS, training.ALL_STEPS = 1, 2
    decoding.ANSWER_TOKENS = 6
    speed.PRESETS = ("nano",)
    speed.seconds_a_step = lambda *_: 0.5
    hardware.preset_recipe = small_recipe
    for name, (groups, checked, plant) in SCENARIOS.items():
        chip.reset()
        plant()
        run.GROUPS = {group: GROUPS[group] for group in groups}
        operations.checked_operations = lambda checked=checked: [one for one in TRAINED if one in checked]
        decoding.served_operations = lambda checked=checked: [one for one in SERVED if one in checked]

        def unplug(group: str, *_: object, name: str = name) -> None:
            if name == "unplugged" and group == "numbers":
                chip.unplug()

        findings = run.examine(device, True, unplug)
        print(f"{name}: {findings.seconds:.1f} s")
        write_certificate(certificate(findings), folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
