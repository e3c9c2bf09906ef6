"""Does this process use the machine's processors well? What it uses, and in plain words what is wrong with that."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gossamer import device as devices
from gossamer.cores import cpu_quota

__all__ = ["Finding", "ThreadUse", "thread_findings", "thread_use"]

_BUSY = 0.75  # of the processors, taken by other programs


@dataclass(frozen=True)
class Finding:
    """Something that costs speed.

    Attributes:
        what: in a sentence
        remedy: what to do about it
    """

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


@dataclass(frozen=True)
class ThreadUse:
    """A process' threads and what there is for them.

    Attributes:
        threads: of PyTorch and the native kernels
        wanted: what OMP_NUM_THREADS says; empty: nothing
        machine: logical processors of the machine
        bound: those of them that the process may run on
        quota: processors' worth of time that its control groups give it; infinite: no limit
        threads_per_core: logical processors that share a core
        load: programs that wanted a processor during the last minute, on average
    """

    threads: int
    wanted: str
    machine: int
    bound: int
    quota: float
    threads_per_core: int
    load: float

    @property
    def usable(self) -> int:
        """Threads that can run at the same time."""
        return max(1, min(self.bound, math.ceil(self.quota) if math.isfinite(self.quota) else self.bound))

    @property
    def cores(self) -> int:
        """Cores behind these."""
        return max(1, self.usable // self.threads_per_core)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        own = asdict(self) | {"usable": self.usable, "cores": self.cores}
        return own | {"quota": self.quota if math.isfinite(self.quota) else None}


def thread_use() -> ThreadUse:
    """Of this process, now."""
    machine = os.cpu_count() or 1
    return ThreadUse(
        threads=torch.get_num_threads(),
        wanted=os.environ.get("OMP_NUM_THREADS", ""),
        machine=machine,
        bound=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine,
        quota=cpu_quota(),
        threads_per_core=devices.processor().threads_per_core,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    )


def thread_findings(use: ThreadUse) -> Iterator[Finding]:
    """What is wrong with the number of threads, or with the machine at this moment."""
    if use.threads > use.usable:
        set_by = f"OMP_NUM_THREADS={use.wanted} asks for" if use.wanted else "PyTorch takes"
        yield Finding(
            f"{set_by} {use.threads} threads, but this process may use {use.usable} of the machine's {use.machine} "
            f"processors ({_withheld(use)}); threads that wait for one another wait for those that do not run",
            f"set OMP_NUM_THREADS={use.cores}, or unset it",
        )
    elif use.threads > use.cores:
        yield Finding(
            f"{use.threads} threads share {use.cores} cores: two hardware threads of a core share its arithmetic units",
            f"try OMP_NUM_THREADS={use.cores}",
        )
    elif 2 * use.threads <= use.cores:
        why = f"OMP_NUM_THREADS={use.wanted}" if use.wanted else "PyTorch chose so"
        yield Finding(
            f"{use.threads} of {use.cores} cores are used ({why})", f"OMP_NUM_THREADS={use.cores} uses all of them"
        )
    if use.load > _BUSY * use.usable:
        yield Finding(
            f"other programs kept {use.load:.1f} of {use.usable} processors busy during the last minute",
            "the rates below are of what they left; measure again when the machine is quiet",
        )


def _withheld(use: ThreadUse) -> str:
    if use.quota < use.bound:
        return f"its control group's quota is {use.quota:g} processors"
    if use.bound < use.machine:
        return f"it is bound to {use.bound} of them"
    return "that is all there are"
