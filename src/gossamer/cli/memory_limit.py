"""The limit on a process's memory, and a trial in a child process of whether that is enough to start."""

from __future__ import annotations

import mmap
import os
import signal

from gossamer.errors import UserError
from gossamer.units import decimal_size

try:
    import resource
except ImportError:  # not Unix, and no such limits
    resource = None  # type: ignore[assignment]

__all__ = ["memory_limit", "require_memory"]

_HEADROOM = 256 << 20  # bytes, for what else is imported, the first threads and the first buffers
_TIMEOUT = 120  # seconds
_ENOUGH = 16 << 30  # bytes; no process with a higher limit fails at the start


def memory_limit() -> str:
    """The lowest limit on this process's memory, in words; empty if there is none that it may come upon."""
    if resource is None:
        return ""
    limits = {"ulimit -v": resource.getrlimit(resource.RLIMIT_AS)[0]}
    limits["ulimit -d"] = resource.getrlimit(resource.RLIMIT_DATA)[0]
    low = {name: size for name, size in limits.items() if size != resource.RLIM_INFINITY and size < _ENOUGH}
    if not low:
        return ""
    name = min(low, key=low.__getitem__)
    return f"memory is limited to {decimal_size(low[name])} ({name})"


def require_memory() -> None:
    """Make sure that PyTorch can be imported and used within the limits on memory, where there are any.

    A library that gets no memory while it is loaded ends the process by a signal, or exits with a message of its own,
    and no handler sees that; so a child process tries first.

    Raises:
        UserError: the limit is too low.
    """
    limited = memory_limit()
    if not limited:
        return
    child = os.fork()
    if child == 0:
        os._exit(_trial())
    _, status = os.waitpid(child, 0)
    if status:
        raise UserError(f"{limited}, which is too little to start; raise it")


def _trial() -> int:
    """Return the child's exit status: 0 if there was enough memory."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(_TIMEOUT)  # some libraries retry for ever
        import torch

        torch.empty(0)
        mmap.mmap(-1, _HEADROOM).close()
        return 0
    except BaseException:
        return 1
