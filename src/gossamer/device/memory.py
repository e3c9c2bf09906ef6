"""How much memory there is, how much was taken at most, and how the host's is kept."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress

import torch

from gossamer.device.calls import call
from gossamer.device.names import is_accelerator


def keep_freed_memory() -> None:
    """Let the C library keep the host memory that tensors free, instead of handing each page back to the system.

    A training step frees and takes the same megabytes over and over; with glibc's defaults every round costs a page
    fault for each 4 KiB, which was measured to be most of the time of a small model's backward pass. Does nothing
    where the C library is another one.
    """
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # parameter numbers of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(arena_max, 1)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)  # the largest tensors, the experts' gradients, come from the heap as well


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the process on a CPU, of the allocator on an accelerator."""
    if is_accelerator(device):
        return int(call(device, "max_memory_allocated"))
    try:  # the kernel's own mark of this program: ru_maxrss begins with that of the program that started it
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak_memory(device: torch.device) -> None:
    """Let an accelerator give back what it keeps for later, and measure what is taken at most from here on."""
    if is_accelerator(device):
        with suppress(RuntimeError, AttributeError):  # a chip whose plug-in keeps no such figures
            torch.get_device_module(device).empty_cache()
            call(device, "reset_peak_memory_stats")


def memory_bytes(device: torch.device) -> int:
    """Memory in bytes that the device has in all."""
    if is_accelerator(device):
        return int(call(device, "mem_get_info", otherwise="get_memory_info")[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
