"""Whether a process that was given little memory can start at all, found out where nothing is lost by it."""

from __future__ import annotations

import mmap
import os
import signal

from gossamer.errors import UserError

try:
    import resource
except ImportError:  # no Unix, and no such limits
    resource = None  # type: ignore[assignment]

__all__ = ["limit", "require_room"]

_SPARE = 256 << 20  # bytes: of what else is imported, of the first threads and the first buffers
_PATIENCE = 120  # seconds
_AMPLE = 16 << 30  # bytes, beyond which nobody fails at the start


def limit() -> str:
    """A bound on this process's memory that it may come upon, in words; empty if there is none."""
    if resource is None:
        return ""
    bounds = {"ulimit -v": resource.getrlimit(resource.RLIMIT_AS)[0]}
    bounds["ulimit -d"] = resource.getrlimit(resource.RLIMIT_DATA)[0]
    narrow = {name: size for name, size in bounds.items() if size != resource.RLIM_INFINITY and size < _AMPLE}
    if not narrow:
        return ""
    name = min(narrow, key=narrow.__getitem__)
    return f"memory is limited to {narrow[name] / 1e6:,.0f} MB ({name})"


def require_room() -> None:
    """See that PyTorch can be imported and used within the limits on memory, where there are any.

    Libraries that do not get memory while they are loaded end the process by a signal, or exit with words of their own,
    which no handler sees; so a child tries first.

    Raises:
        UserError: it cannot be.
    """
    limited = limit()
    if not limited:
        return
    child = os.fork()
    if child == 0:
        os._exit(_try())
    _, status = os.waitpid(child, 0)
    if status:
        raise UserError(f"{limited}, which is too little to start; raise it")


def _try() -> int:
    """The child's exit status: 0 where there was room."""
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nowhere, descriptor)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(_PATIENCE)  # some libraries try again and again
        import torch

        torch.empty(0)
        mmap.mmap(-1, _SPARE).close()
        return 0
    except BaseException:
        return 1
