"""Large pages for memory that is read again and again, in an order that nobody foresees."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_HUGEPAGE, _COLLAPSE = 14, 25  # of madvise, in Linux' asm-generic/mman-common.h


def use_huge_pages(tensors: Iterable[Tensor]) -> int:
    """Ask the system to hold the tensors' memory in its huge pages (2 MiB on most machines), from now on.

    A core fetches ahead what lies behind what it reads, but not past the end of a page, and each page costs a look into
    the page tables: weights in pages of 4 KiB are read at about half of the memory's rate. Nothing moves that the
    program can see. What lies beside the tensors in the same huge page goes along. It is a wish: a system that has no
    such pages, none left, or another kernel than Linux 6.1 or later stays as it is or gets to it when it has time.

    Returns:
        Bytes that lie in huge pages now, neighbours included.
    """
    try:
        size = int(_SIZE.read_text())
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, ValueError, AttributeError):
        return 0
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    pages: set[int] = set()
    for tensor in tensors:
        if tensor.device.type == "cpu" and tensor.nbytes:
            first = tensor.data_ptr()
            pages.update(range(first // size, (first + tensor.nbytes - 1) // size + 1))
    held = 0
    for page in sorted(pages):
        madvise(page * size, size, _HUGEPAGE)
        held += size * (madvise(page * size, size, _COLLAPSE) == 0)
    return held
