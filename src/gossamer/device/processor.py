"""The identity of this machine's processor, as far as its speed depends on it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Processor", "processor", "read_processor"]

_CPUINFO = Path("/proc/cpuinfo")
_MAKERS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel", "HygonGenuine": "Hygon", "CentaurHauls": "Centaur"}
_ARM_MAKERS = {0x41: "ARM", 0x46: "Fujitsu", 0x48: "HiSilicon", 0x4E: "NVIDIA", 0x51: "Qualcomm", 0x61: "Apple"}
# Widest first: Linux's flag and the usual name of the unit.
_VECTOR_UNITS = {
    "avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sse2": "SSE2",
    "sve": "SVE", "asimd": "NEON", "neon": "NEON", "vsx": "VSX", "v": "RVV",
}  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """A processor's identity.

    Attributes:
        name: the product name; makers give one name to processors that differ a lot
        maker: AMD, Intel, ARM …; empty if unknown
        family: the maker's number of the family (for ARM, of the architecture); None if unknown
        model: the maker's number of the model (for ARM, of the part); None if unknown
        vectors: the widest vector unit, "AVX-512", "AVX2", "SVE", "NEON" …; empty if unknown
        threads_per_core: hardware threads that share a core
    """

    name: str
    maker: str = ""
    family: int | None = None
    model: int | None = None
    vectors: str = ""
    threads_per_core: int = 1

    def __str__(self) -> str:
        """Return maker, family, model and vector unit, which decide the speed: `AMD family 25 model 1, AVX2`."""
        numbers = self._numbers()
        return ", ".join(filter(None, [f"{self.maker} {numbers}" if numbers else self.name, self.vectors]))

    def key(self, threads: int) -> str:
        """Return the key under which figures measured with so many threads are stored."""
        return f"{self}, {_threads(threads)}"

    def describe(self, threads: int) -> str:
        """Return the same for people, with the product name."""
        parts = [self.name or self.maker, self._numbers(), self.vectors, _threads(threads)]
        return ", ".join(filter(None, parts))

    def _numbers(self) -> str:
        return f"family {self.family} model {self.model}" if self.maker and self.family is not None else ""


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


@cache
def processor() -> Processor:
    """Return this machine's processor."""
    return read_processor(_CPUINFO)


def read_processor(cpuinfo: Path) -> Processor:
    """Read the first processor in a file such as Linux's /proc/cpuinfo; without one, use what Python knows."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = dict(_fields(text.partition("\n\n")[0]))
    features = (found.get("flags") or found.get("Features") or "").split()
    vectors = next((unit for flag, unit in _VECTOR_UNITS.items() if flag in features), "")
    if not features and platform.machine() in ("arm64", "aarch64"):
        vectors = "NEON"  # part of the architecture
    name = found.get("model name") or platform.processor() or platform.machine()
    implementer = _number(found.get("CPU implementer"))
    if implementer is not None:
        maker = _ARM_MAKERS.get(implementer, f"implementer {implementer:#x}")
        family, model = _number(found.get("CPU architecture")), _number(found.get("CPU part"))
    else:
        maker = _MAKERS.get(found.get("vendor_id", ""), found.get("vendor_id", ""))
        family, model = _number(found.get("cpu family")), _number(found.get("model"))
    siblings, cores = _number(found.get("siblings")) or 1, _number(found.get("cpu cores")) or 1
    return Processor(name, maker, family, model, vectors, max(1, siblings // cores))


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip(), value.strip()


def _number(text: str | None) -> int | None:
    """Parse a decimal or hexadecimal number; return None for anything else."""
    try:
        return int(text or "", 0)
    except ValueError:
        return None
