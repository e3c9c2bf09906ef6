"""The native CPU kernels: built once with the C++ compiler of this machine, cached, and reached through ctypes.

The kernels know nothing of PyTorch, so a plain compiler builds them in some twenty seconds on two cores. The library
lies in gossamer's cache, in a folder whose name is made from sources, compiler and processor, with its digest beside
it. What keeps it from being built or loaded is told once, and PyTorch's own functions serve instead.
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
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from platform import machine

import torch
from torch import Tensor

from gossamer.cache import alone, cache_folder, cached_folder
from gossamer.cores import usable_cores
from gossamer.errors import UserError

log = logging.getLogger("gossamer")

_SOURCES = Path(__file__).parent
_FLAGS = "-std=c++17 -O3 -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast -fPIC".split()
_LIBRARY, _DIGEST = "kernels.so", "kernels.sha256"
# ARM's compilers choose instructions and their order by the second; x86 compilers take it for the order alone.
_PROCESSORS = ["-march=native", "-mcpu=native"]
if machine() in ("aarch64", "arm64"):
    _PROCESSORS.reverse()


def obstacle(device: torch.device) -> str:
    """Why the native kernels cannot run on `device`, or "" if they can."""
    if device.type != "cpu":
        return "for CPUs alone"
    library = load()
    return library if isinstance(library, str) else ""


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Call the kernel `gossamer_{name}`.

    Tensors are passed as pointers to their data, which must be laid out as the kernel says; integers as int64_t, floats
    as float.
    """
    library = load()
    assert isinstance(library, ctypes.CDLL), library
    getattr(library, f"gossamer_{name}")(*map(_argument, arguments))


def _argument(value: Tensor | int | float | None) -> object:
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p(address(value))
    assert isinstance(value, (int, float)), value
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_float(value)


def address(x: Tensor | None) -> int:
    """Where a tensor's numbers lie; 0 for None.

    Raises:
        UserError: they lie where a kernel cannot read them, or stand for others.
    """
    if x is None:
        return 0
    found = x.data_ptr()
    if not x.is_cpu or x.is_neg() or (not found and x.numel()):
        raise UserError(f"a native kernel cannot read a {type(x).__name__} on {x.device}, no plain tensor")
    return found


@cache
def load() -> ctypes.CDLL | str:
    """The library, built if it is not there yet; or the reason why there is none."""
    compiler = _compiler()
    if not compiler:
        return "no C++ compiler"
    try:
        folder = _folder(compiler)
        if not folder.exists():
            with alone(folder.with_name("building"), waiting=_say_who_builds):
                cached_folder(folder, _is_whole, lambda empty: _build(compiler, empty))
        elif not _is_whole(folder):
            log.warning("the native CPU kernels in %s are damaged; they are built again", folder)
            cached_folder(folder, _is_whole, lambda empty: _build(compiler, empty))
        library = ctypes.CDLL(str(folder / _LIBRARY))
        library.gossamer_wait_briefly()
        return library
    except (OSError, UserError, subprocess.CalledProcessError) as error:
        reason = _first_line(error)
        log.warning("native CPU kernels are not available, PyTorch's own functions serve instead: %s", reason)
        return reason


def _compiler() -> list[str]:
    """The command that compiles C++: what `CXX` says, else c++ or g++; empty if it is not there."""
    for name in [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++"]:
        command = shlex.split(name)
        if command and (program := shutil.which(command[0])):
            return [program, *command[1:]]
    return []


def _processor_flag(compiler: list[str]) -> tuple[str, bytes]:
    """The flag that makes code for this very processor, and what the compiler then knows of itself and the processor.

    The second is its predefined macros: its version, the processor's family and every extension in use. Two processors
    may have one name and differ in these.
    """
    for flag in _PROCESSORS:
        command = [*compiler, *_FLAGS, flag, "-dM", "-E", "-x", "c++", os.devnull]
        done = subprocess.run(command, capture_output=True)
        if done.returncode == 0:
            return flag, done.stdout
    raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)


def _folder(compiler: list[str]) -> Path:
    """Where the library for these sources, this compiler and this processor lies."""
    flag, macros = _processor_flag(compiler)
    key = hashlib.sha256(b"\0".join([macros, " ".join([*_FLAGS, flag]).encode()]))
    for source in sorted(_SOURCES.glob("*.[ch]*")):
        key.update(source.read_bytes())
    return cache_folder() / "native" / key.hexdigest()[:16]


def _is_whole(folder: Path) -> bool:
    """Whether the library is the one that was built there: a damaged one would kill the process that maps it."""
    try:
        return (folder / _DIGEST).read_text() == _digest(folder / _LIBRARY)
    except (OSError, UnicodeDecodeError):
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _build(compiler: list[str], folder: Path) -> None:
    """Compile every source by itself, as many at a time as there are cores, and link them into `folder`.

    The library is tried in another process, because on a full disk a linker can leave one with holes, and whoever maps
    that one dies.
    """
    flag, _ = _processor_flag(compiler)
    sources = sorted(_SOURCES.glob("*.cpp"), key=lambda source: -source.stat().st_size)
    workers = min(len(sources), usable_cores())
    log.warning("building the native CPU kernels with %s, once; this takes up to a minute", compiler[0])
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="tmp-") as objects:

        def compile(source: Path) -> tuple[str, float, str]:
            made, since = f"{objects}/{source.stem}.o", time.monotonic()
            _run([*compiler, *_FLAGS, flag, "-c", str(source), "-o", made])
            return made, time.monotonic() - since, source.name

        with ThreadPoolExecutor(workers) as pool:
            compiled = list(pool.map(compile, sources))
        library = folder / _LIBRARY
        _run([*compiler, *_FLAGS, flag, "-shared", *(made for made, _, _ in compiled), "-o", str(library)])
    try:
        _run([sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", str(library)])
    except subprocess.CalledProcessError as error:
        raise OSError(f"{compiler[0]} made a library that cannot be loaded") from error
    (folder / _DIGEST).write_text(_digest(library))
    _, longest, name = max(compiled, key=lambda one: one[1])
    took = time.monotonic() - began
    log.warning("built in %.0f s, %d files at a time; %s took longest, %.0f s", took, workers, name, longest)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def _say_who_builds() -> None:
    log.warning("another process builds the native CPU kernels; waiting for it")


def _first_line(error: Exception) -> str:
    text = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else type(error).__name__).strip()
