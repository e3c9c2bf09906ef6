"""Settings of a process that computes: its threads, subnormal numbers, freed memory and huge pages."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from gossamer.cores import usable_cores

_HUGE_PAGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # from Linux's asm-generic/mman-common.h


def prepare_process() -> None:
    """Set up one of gossamer's own processes for computing, before it starts its first thread.

    Subnormal floats (below 1.2e-38) count as zero from here on, in this thread and in those that it starts, because on
    some processors each of them costs 150 cycles or more. PyTorch gets no more threads than the process may keep busy,
    unless the user has set `OMP_NUM_THREADS`.

    This is for the command line and the processes that it starts. A program that imports gossamer keeps its own mode;
    there the native kernels flush subnormals while they run, and `torch.set_flush_denormal(True)` does the same for
    PyTorch's own functions.
    """
    torch.set_flush_denormal(True)
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def keep_freed_memory() -> None:
    """Let the C library keep the host memory that tensors free, instead of returning each page to the system.

    A training step frees and allocates the same megabytes over and over. With glibc's defaults every round costs a page
    fault for each 4 KiB, which was measured to take most of the time of a small model's backward pass. With another C
    library this does nothing.
    """
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # parameter numbers in glibc's malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(arena_max, 1)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)  # the largest tensors, the experts' gradients, come from the heap as well


def use_huge_pages(tensors: Iterable[Tensor]) -> int:
    """Ask the system to hold the tensors' memory in huge pages (2 MiB on most machines) from now on.

    A core prefetches what lies behind the data that it reads, but not past the end of a page, and each page costs a
    look-up in the page tables: weights in pages of 4 KiB are read at about half of the memory's rate. The program sees
    no change. Whatever lies beside the tensors in the same huge page is moved with them. This is only a hint: without
    free huge pages, or without Linux 6.1 or later, memory stays as it is or is moved later.

    Returns:
        The number of bytes that are in huge pages now, including the tensors' neighbors.
    """
    try:
        size = int(_HUGE_PAGE_SIZE.read_text())
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, ValueError, AttributeError):
        return 0
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    pages: set[int] = set()
    for tensor in tensors:
        if tensor.device.type == "cpu" and tensor.nbytes:
            first = tensor.data_ptr()
            pages.update(range(first // size, (first + tensor.nbytes - 1) // size + 1))
    huge_bytes = 0
    for page in sorted(pages):
        madvise(page * size, size, _MADV_HUGEPAGE)
        huge_bytes += size * (madvise(page * size, size, _MADV_COLLAPSE) == 0)
    return huge_bytes
