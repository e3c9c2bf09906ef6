"""The energy that the machine reports: by the counter of the accelerator, or of the processor.

On Linux the processor's packages and memory have counters (RAPL, https://docs.kernel.org/power/powercap/powercap.html)
that wrap around at a known value; most systems let only the administrator read them. They count whatever the machine
does, the work of other programs included. Where nothing is reported, nothing is guessed.
"""

from __future__ import annotations

from pathlib import Path

import torch

from gossamer import device as devices

__all__ = ["EnergyMeter"]

_RAPL = Path("/sys/class/powercap")


class EnergyMeter:
    """A meter of the energy between two readings.

    Args:
        device: an accelerator, or the CPU with its memory
        counted: False for a process whose processor another process already counts
    """

    def __init__(self, device: torch.device, counted: bool = True) -> None:
        self._device, self._counted = device, counted
        self._zones = _rapl_zones() if device.type == "cpu" and counted else {}
        self._before = self._read()

    @property
    def is_known(self) -> bool:
        """Whether the last reading gave a value."""
        return self._before is not None

    def joules(self) -> float | None:
        """Read the energy since the last reading, in joules; None if either reading is missing."""
        before, self._before = self._before, self._read()
        if before is None or self._before is None:
            return None
        # A counter that is lower than before has wrapped around once.
        return sum(
            now - then if now >= then else now - then + self._zones.get(name, 0.0)
            for (name, now), then in zip(self._before.items(), before.values(), strict=True)
        )

    def _read(self) -> dict[str, float] | None:
        """Read the joules on each counter; None if there is no counter."""
        if not self._counted:
            return {}
        if self._device.type != "cpu":
            joules = devices.energy(self._device)
            return None if joules is None else {"accelerator": joules}
        try:
            return {name: _microjoules(_RAPL / name / "energy_uj") for name in self._zones} or None
        except (OSError, ValueError):
            return None


def _rapl_zones() -> dict[str, float]:
    """The zones that count packages and their memory, each with its range in joules.

    Others are left out: cores lie within a package, and a platform's zone (psys) contains them all.
    """
    zones = {}
    for path in sorted(_RAPL.glob("intel-rapl:*")):
        try:
            name = (path / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                zones[path.name] = _microjoules(path / "max_energy_range_uj")
        except (OSError, ValueError):
            continue
    return zones


def _microjoules(path: Path) -> float:
    return int(path.read_text()) * 1e-6
