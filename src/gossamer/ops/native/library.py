"""The library of native CPU kernels: it is built once by this machine's C++ compiler, cached, and called by ctypes.

The kernels do not depend on PyTorch, so a plain compiler builds them in about twenty seconds on two cores. The library
lies in gossamer's cache, in a folder whose name follows from the sources, the compiler and the processor, with its
digest beside it. If it cannot be built or loaded, one warning says why, and PyTorch's own functions are used instead.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from platform import machine

import torch
from torch import Tensor

from gossamer.cache import cached_folder
from gossamer.cores import usable_cores
from gossamer.errors import UserError
from gossamer.files import building, cache_folder, locked

log = logging.getLogger("gossamer")

_SOURCES = Path(__file__).parent
_FLAGS = "-std=c++17 -O3 -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast -fPIC".split()
_LIBRARY, _DIGEST = "kernels.so", "kernels.sha256"
# Compilers for ARM choose instructions and their order by -mcpu; compilers for x86 use it for the order only.
_PROCESSOR_FLAGS = ["-march=native", "-mcpu=native"]
if machine() in ("aarch64", "arm64"):
    _PROCESSOR_FLAGS.reverse()


def obstacle(device: torch.device) -> str:
    """Say why the native kernels cannot run on `device`; return "" if they can."""
    if device.type != "cpu":
        return "for CPUs only"
    library = load()
    return library if isinstance(library, str) else ""


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Call the kernel `gossamer_{name}`.

    Tensors are passed as pointers to their data, which must have the layout that the kernel expects. Integers are
    passed as int64_t and floats as float.
    """
    library = load()
    assert isinstance(library, ctypes.CDLL), library
    getattr(library, f"gossamer_{name}")(*map(_argument, arguments))


def _argument(value: Tensor | int | float | None) -> object:
    """Convert an argument of a kernel to a value of ctypes."""
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p(address(value))
    assert isinstance(value, (int, float)), value
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_float(value)


def address(x: Tensor | None) -> int:
    """Return the address of a tensor's data, or 0 for None.

    Raises:
        UserError: a kernel cannot read the data, or the tensor is a view that negates them.
    """
    if x is None:
        return 0
    pointer = x.data_ptr()
    if not x.is_cpu or x.is_neg() or (not pointer and x.numel()):
        raise UserError(f"a native kernel cannot read a {type(x).__name__} on {x.device}, which is not a plain tensor")
    return pointer


@cache
def load() -> ctypes.CDLL | str:
    """Return the library, which is built if it does not exist yet, or the reason why there is none."""
    compiler = _compiler()
    if not compiler:
        return "no C++ compiler"
    try:
        folder = _folder(compiler)
        if not folder.exists():
            with locked(folder.with_name("building"), on_wait=_warn_of_waiting):
                cached_folder(folder, _is_whole, lambda empty: _build(compiler, empty))
        elif not _is_whole(folder):
            log.warning("the native CPU kernels in %s are damaged and are built again", folder)
            cached_folder(folder, _is_whole, lambda empty: _build(compiler, empty))
        library = ctypes.CDLL(str(folder / _LIBRARY))
        library.gossamer_wait_briefly()
        return library
    except (OSError, UserError, subprocess.CalledProcessError) as error:
        reason = _first_line(error)
        log.warning("native CPU kernels are not available, PyTorch's own functions are used instead: %s", reason)
        return reason


def _compiler() -> list[str]:
    """Return the command that compiles C++, from `CXX` or else c++ or g++; it is empty if there is no compiler."""
    for name in [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++"]:
        command = shlex.split(name)
        if command and (program := shutil.which(command[0])):
            return [program, *command[1:]]
    return []


def _processor_flag(compiler: list[str]) -> tuple[str, bytes]:
    """Find the flag that compiles for this very processor, and the macros that the compiler then predefines.

    The macros tell its version, the processor's family and every extension in use. Two processors may have the same
    name and differ in these.
    """
    for flag in _PROCESSOR_FLAGS:
        command = [*compiler, *_FLAGS, flag, "-dM", "-E", "-x", "c++", os.devnull]
        done = subprocess.run(command, capture_output=True)
        if done.returncode == 0:
            return flag, done.stdout
    raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)


def _folder(compiler: list[str]) -> Path:
    """Return the folder of the library for these sources, this compiler and this processor."""
    flag, macros = _processor_flag(compiler)
    key = hashlib.sha256(b"\0".join([macros, " ".join([*_FLAGS, flag]).encode()]))
    for source in sorted(_SOURCES.glob("*.[ch]*")):
        key.update(source.read_bytes())
    return cache_folder() / "native" / key.hexdigest()[:16]


def _is_whole(folder: Path) -> bool:
    """Whether the library is intact; a damaged one would kill the process that maps it."""
    try:
        return (folder / _DIGEST).read_text() == _digest(folder / _LIBRARY)
    except (OSError, UnicodeDecodeError):
        return False


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _build(compiler: list[str], folder: Path) -> None:
    """Compile the sources in parallel, as many at a time as there are cores, and link them into `folder`.

    The library is loaded in another process first, because on a full disk a linker can leave a file with holes, which
    kills any process that maps it.
    """
    flag, _ = _processor_flag(compiler)
    sources = sorted(_SOURCES.glob("*.cpp"), key=lambda source: -source.stat().st_size)
    workers = min(len(sources), usable_cores())
    log.warning("building the native CPU kernels with %s, once; this takes up to a minute", compiler[0])
    began = time.monotonic()
    with building(folder.with_name("objects")) as objects:

        def compile(source: Path) -> tuple[str, float, str]:
            output, start = f"{objects}/{source.stem}.o", time.monotonic()
            _run([*compiler, *_FLAGS, flag, "-c", str(source), "-o", output])
            return output, time.monotonic() - start, source.name

        with ThreadPoolExecutor(workers) as pool:
            compiled = list(pool.map(compile, sources))
        library = folder / _LIBRARY
        _run([*compiler, *_FLAGS, flag, "-shared", *(output for output, _, _ in compiled), "-o", str(library)])
    try:
        _run([sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", str(library)])
    except subprocess.CalledProcessError as error:
        raise OSError(f"{compiler[0]} made a library that cannot be loaded") from error
    (folder / _DIGEST).write_text(_digest(library))
    _, longest, name = max(compiled, key=lambda result: result[1])
    seconds = time.monotonic() - began
    log.warning("built in %.0f s, %d files at a time; %s took longest, %.0f s", seconds, workers, name, longest)


def _run(command: list[str]) -> None:
    """Run a command without showing what it prints, and raise if it fails."""
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def _warn_of_waiting() -> None:
    """Say that another process is building the library."""
    log.warning("another process is building the native CPU kernels; waiting for it")


def _first_line(error: Exception) -> str:
    """Pick the line of an error's text that says what went wrong."""
    text = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else type(error).__name__).strip()
