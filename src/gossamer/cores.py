"""How many of the machine's CPU cores this process may use, found without importing PyTorch."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that the process may keep busy, at least 1.

    It is the minimum of the cores that exist, those that the process is bound to, and what the quotas of its control
    groups allow, as in a container with a part of a machine; half a core counts as one.

    Args:
        root: where the system's /proc and /sys lie
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return max(1, min(affinity, math.ceil(quota)) if math.isfinite(quota) else affinity)


def cpu_quota(root: Path = Path("/")) -> float:
    """Return how many cores' worth of time the process's control groups give it; infinite without a quota.

    Args:
        root: where the system's /proc and /sys lie
    """
    quota = math.inf
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return quota
    for line in lines:  # hierarchy:controllers:path; version 2 has no controllers
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        base = root / "sys/fs/cgroup"
        if controllers and "cpu" not in controllers.split(","):
            continue
        read = _version_1 if controllers else _version_2
        # Inside a container the path may be the host's, and only its top may exist.
        parts = PurePosixPath(path.lstrip("/") or ".")
        for group in (parts, *parts.parents):
            folder = base / controllers / group if controllers else base / group
            quota = min(quota, read(folder))
    return quota


def _version_2(folder: Path) -> float:
    """Return the quota of a control group of version 2, in cores."""
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return math.inf if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _version_1(folder: Path) -> float:
    """Return the quota of a control group of version 1, in cores."""
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        return math.inf if limit <= 0 else limit / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
