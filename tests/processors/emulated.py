"""A library for another processor, called like any other and run by an emulator (host.cpp is the other end)."""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

PAGE = 4096
APART = 1 << 30  # bytes between this process's memory and the emulator's: neither grows into the other
ATTEMPTS = 20  # with memory placed by chance they come too near about once in a hundred times


class EmulatedLibrary(ctypes.CDLL):
    """Its functions run in a process of their own, on the memory of this one.

    The kernel's process has every address that this one has given it at the same place, copied page by page when first
    touched. After a call the bytes that changed are copied back, and no others: pages may hold more than tensors.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        """Start the process.

        Args:
            command: runs host.cpp on the library
            environment: variables that the emulated program sees
        """
        self._memory = os.open("/proc/self/mem", os.O_RDWR)  # unlike a pointer it says where nothing is
        self._lock = Lock()  # the backward pass calls from a thread of its own
        for _ in range(ATTEMPTS):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | environment,
                preexec_fn=_from_below,
            )
            assert self._read(1) == b"D"
            if self._is_apart():
                return
            self._process.kill()
            self._process.wait()
        raise AssertionError("no place for the emulator beside this process")

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: self._call(name, arguments)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        os.close(self._memory)

    def _call(self, name: str, arguments: tuple[Any, ...]) -> None:
        floats = [x.value for x in arguments if isinstance(x, ctypes.c_float)]
        integers = [x.value or 0 for x in arguments if not isinstance(x, ctypes.c_float)]
        integers = [x - (1 << 64) if x >= 1 << 63 else x for x in integers]
        text = name.encode()
        with self._lock:
            self._write(struct.pack("=3i", len(text), len(integers), len(floats)) + text)
            self._write(struct.pack(f"={len(integers)}q{len(floats)}f", *integers, *floats))
            pages: dict[int, bytes] = {}
            while (event := self._read(1)) != b"D":
                (page,) = struct.unpack("=Q", self._read(8))
                if event == b"P":
                    self._send(page, pages)
                else:
                    self._take_back(page, pages[page], self._read(PAGE))

    def _send(self, page: int, pages: dict[int, bytes]) -> None:
        try:
            pages[page] = os.pread(self._memory, PAGE, page)
        except OSError:
            pages[page] = b""
        self._write(b"\1" + pages[page] if len(pages[page]) == PAGE else b"\0")

    def _take_back(self, page: int, before: bytes, after: bytes) -> None:
        if before == after:
            return
        old, new = (np.frombuffer(x, np.uint8) for x in (before, after))
        here = np.frombuffer((ctypes.c_uint8 * PAGE).from_address(page), np.uint8)
        changed = old != new
        here[changed] = new[changed]

    def _write(self, data: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def _read(self, count: int) -> bytes:
        assert self._process.stdout
        data = self._process.stdout.read(count)
        assert len(data) == count, f"the emulated program has ended with status {self._process.wait()}"
        return data

    def _is_apart(self) -> bool:
        """Whether all of the emulator's memory lies far from all of this process's."""
        ours, theirs = (_mapped(pid) for pid in ("self", str(self._process.pid)))
        return all(a[1] + APART < b[0] or b[1] + APART < a[0] for a in ours for b in theirs)


def _from_below() -> None:
    """Before the emulator starts: let the system place its memory from below.

    So it does for a process without a limit to its stack, while this process's lies at the upper end.
    """
    resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _mapped(process: str) -> list[tuple[int, int]]:
    """From where to where a process has memory, but for its stack and what the system itself puts beside it."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    own = [line for line in lines if not line.endswith(("[stack]", "[vvar]", "[vdso]", "[vsyscall]"))]
    spans = [line.split()[0].split("-") for line in own]
    return [(int(first, 16), int(last, 16)) for first, last in spans]
