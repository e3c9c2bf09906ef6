"""How long a call takes on a device, and how fast the device copies."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from gossamer import device as devices

Call = Callable[[], object]


def seconds_of_one(call: Call, device: torch.device) -> float:
    """Seconds of one call, what it started on the device included."""
    devices.synchronize(device)
    began = time.perf_counter()
    call()
    devices.synchronize(device)
    return time.perf_counter() - began


def seconds_of(call: Call, device: torch.device, least_seconds: float = 0.2, least_calls: int = 3) -> float:
    """Median seconds of a call in this process, after one that is not counted."""
    call()
    times: list[float] = []
    while len(times) < least_calls or sum(times) < least_seconds:
        times.append(seconds_of_one(call, device))
    return statistics.median(times)


def copy_rate(device: torch.device, megabytes: int = 256) -> float:
    """Bytes a second that a copy moves, reading and writing counted, far outside the caches."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / seconds_of(lambda: target.copy_(source), device)


def in_turns(
    calls: Mapping[str, Call], device: torch.device, least_seconds: float = 1.0, least_turns: int = 3
) -> dict[str, float]:
    """Median seconds of each call, A B C A B C … in this process, all of them warm already.

    Args:
        calls: by name
        least_seconds: time that all of them together are given at least
        least_turns: times that each is called at least
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    began, turns = time.perf_counter(), 0
    while calls and (turns < least_turns or time.perf_counter() - began < least_seconds):
        turns += 1
        for name, call in calls.items():
            times[name].append(seconds_of_one(call, device))
    return {name: statistics.median(found) for name, found in times.items()}
