"""What belongs to a whole process that computes: its threads, and what they do with subnormal numbers."""

from __future__ import annotations

import os

import torch

from gossamer.cores import usable_cores


def prepare_process() -> None:
    """Set up a process of gossamer's own for computing, before it makes its first thread.

    Subnormal floats (below 1.2e-38) count as zero from here on, in this thread and in those that it makes: on some
    processors each costs 150 cycles or more. PyTorch gets no more threads than the process may keep busy, unless the
    user has named a number in `OMP_NUM_THREADS`.

    It is for the command line and the processes that it starts. A program that imports gossamer keeps its own mode;
    there the native kernels flush subnormals while they run, and `torch.set_flush_denormal(True)` does so for PyTorch's
    own functions.
    """
    torch.set_flush_denormal(True)
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
