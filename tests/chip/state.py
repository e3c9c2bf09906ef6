"""What the chip keeps: how it was told to fail, what it has run, what lies in its memory, its random generator."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

ROOMY = 1 << 40  # bytes: no test on host memory comes near


@dataclass
class State:
    """Of the one chip of a process.

    Attributes:
        name: PyTorch's name of the device type; empty until it is installed
        present: whether the device answers
        lacking, on_host: operators that it does not have, and those that it leaves to the host
        wrong: operators that it computes wrongly, with what their results are multiplied by
        capacity: of its memory, in bytes
        ran, ran_on_host: how often each operator ran
        held: bytes of each storage in its memory, by the storage's address
        used: bytes of all of them
        peak: most of these since the last reset
        generator_state: of its random numbers
    """

    name: str = ""
    present: bool = False
    lacking: set[str] = field(default_factory=set)
    on_host: set[str] = field(default_factory=set)
    wrong: dict[str, float] = field(default_factory=dict)
    capacity: int = ROOMY
    ran: Counter[str] = field(default_factory=Counter)
    ran_on_host: Counter[str] = field(default_factory=Counter)
    held: dict[int, int] = field(default_factory=dict)
    used: int = 0
    peak: int = 0
    generator_state: torch.Tensor = field(default_factory=lambda: torch.Generator().manual_seed(0).get_state())

    def hold(self, storage: torch.UntypedStorage) -> None:
        """Count a storage as long as it lives.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        key, size = storage._cdata, storage.nbytes()
        if (grown := size - self.held.get(key, 0)) == 0:
            return
        if self.used + grown > self.capacity:
            raise torch.OutOfMemoryError(
                f"{self.name} out of memory: {self.used:,} of {self.capacity:,} bytes taken, {grown:,} more asked for"
            )
        if key not in self.held:
            weakref.finalize(storage, self._release, key)
        self.held[key] = size
        self.used += grown
        self.peak = max(self.peak, self.used)

    def _release(self, key: int) -> None:
        self.used -= self.held.pop(key)

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Inside, PyTorch's CPU kernels draw the chip's random numbers and leave the CPU's own as they are."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.generator_state)
        try:
            yield
        finally:
            self.generator_state = torch.get_rng_state()
            torch.set_rng_state(before)


CHIP = State()


def census() -> Counter[str]:
    """How often each operator ran on the chip itself, by full name such as `aten.mm.default`."""
    return CHIP.ran.copy()


def host_census() -> Counter[str]:
    """How often each operator that the chip leaves to the host ran there."""
    return CHIP.ran_on_host.copy()


def allocated() -> int:
    """Bytes that tensors take on the chip now."""
    return CHIP.used


def peak() -> int:
    """Most bytes that tensors took on the chip since `reset` or `torch.<name>.reset_peak_memory_stats`."""
    return CHIP.peak
