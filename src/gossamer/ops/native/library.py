"""The native CPU kernels: built once with the C++ compiler of this machine, cached, and reached through ctypes.

The kernels know nothing of PyTorch, so one plain compiler call of a few seconds builds them. The library lies in
`GOSSAMER_CACHE` under a name made from sources, compiler and processor. What keeps it from being built or loaded is
told once, and PyTorch's own functions serve instead.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from gossamer.device import cpu_name

log = logging.getLogger("gossamer")

_SOURCES = Path(__file__).parent
_FLAGS = "-std=c++17 -O3 -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast -shared -fPIC".split()
_PROCESSORS = ("-march=native", "-mcpu=native")  # x86 compilers know the first, some of ARM's the second alone


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
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_float(value)


@cache
def load() -> ctypes.CDLL | str:
    """The library, built if it is not there yet; or the reason why there is none."""
    compiler = shutil.which(os.environ.get("CXX") or "c++") or ("" if os.environ.get("CXX") else shutil.which("g++"))
    if not compiler:
        return "no C++ compiler"
    try:
        path = _path(compiler)
        if not path.exists():
            _build(compiler, path)
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = _first_line(error)
        log.warning("native CPU kernels are not available, PyTorch's own functions serve instead: %s", reason)
        return reason
    return library


def _path(compiler: str) -> Path:
    """Where the library for these sources, this compiler and this processor lies."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True).stdout
    key = hashlib.sha256(b"\0".join([version, cpu_name().encode(), " ".join(_FLAGS).encode()]))
    for source in sorted(_SOURCES.glob("*.[ch]*")):
        key.update(source.read_bytes())
    folder = Path(os.environ.get("GOSSAMER_CACHE") or Path.home() / ".cache" / "gossamer") / "native"
    return folder / f"kernels-{key.hexdigest()[:16]}.so"


def _build(compiler: str, path: Path) -> None:
    """Compile beside the target, then rename: processes that build at the same time do not disturb each other."""
    log.warning("building the native CPU kernels with %s, once; this takes some seconds", compiler)
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = [str(source) for source in sorted(_SOURCES.glob("*.cpp"))]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        made = Path(folder) / path.name
        for processor in _PROCESSORS:
            done = subprocess.run([compiler, *_FLAGS, processor, *sources, "-o", str(made)], capture_output=True)
            if done.returncode == 0:
                break
        done.check_returncode()
        ctypes.CDLL(str(made))  # one that cannot be loaded is not kept
        made.replace(path)


def _first_line(error: Exception) -> str:
    text = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else type(error).__name__).strip()
