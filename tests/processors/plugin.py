"""pytest's plug-in `--native-processor NAME`: whatever runs the native kernels runs those built for that processor.

python -m pytest -p processors.plugin --native-processor aarch64 tests/ops -k native
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from platform import machine
from typing import Any

import pytest

from gossamer.ops.native import library
from processors.emulated import EmulatedLibrary

HOST = Path(__file__).with_name("host.cpp")


@dataclass(frozen=True)
class Processor:
    """How to compile the kernels for a processor, and how to run what was compiled.

    Attributes:
        flags: of the compiler
        compiler: command
        emulator: command, empty where this machine's processor runs it
        needs: flags of /proc/cpuinfo, without which this machine's processor does not run it
    """

    flags: tuple[str, ...]
    compiler: str = "g++"
    emulator: tuple[str, ...] = ()
    needs: str = ""

    def cannot_build(self) -> str:
        """Why it cannot be compiled for on this machine, or ""."""
        return "" if shutil.which(self.compiler) and (self.emulator or machine() == "x86_64") else f"no {self.compiler}"

    def cannot_run(self) -> str:
        """Why what was compiled does not run on this machine, or ""."""
        if self.emulator:
            return "" if shutil.which(self.emulator[0]) else f"no {self.emulator[0]}"
        missing = sorted(set(self.needs.split()) - set(Path("/proc/cpuinfo").read_text().split()))
        return f"this processor has no {', '.join(missing)}" if missing else ""


def _arm(target: str, model: str) -> Processor:
    emulator = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu", model)
    return Processor((f"-mcpu={target}",), "aarch64-linux-gnu-g++", emulator)


# On Debian: apt-get install g++-aarch64-linux-gnu qemu-user
PROCESSORS = {
    "x86-64": Processor(("-march=x86-64",), needs="sse2"),
    "x86-64-v3": Processor(("-march=x86-64-v3",), needs="avx2 fma"),
    "x86-64-v4": Processor(("-march=x86-64-v4",), needs="avx512f avx512vl avx512bw avx512dq"),
    "aarch64": _arm("generic", "cortex-a57"),  # what every one has
    "neoverse-n2": _arm("neoverse-n2", "max,sve128=on"),  # Yitian 710, Graviton 4 and others: SVE of 128 bits
    "neoverse-v1": _arm("neoverse-v1", "max,sve256=on,sve-default-vector-length=32"),  # Graviton 3
}


def build(processor: Processor, folder: Path) -> Path:
    """The library for a processor, by the flags that every library is built with; warnings are errors."""
    flags = [flag for flag in library._FLAGS if flag != "-shared"] + [*processor.flags, "-Wall", "-Wextra", "-Werror"]

    def compiled(source: Path) -> str:
        made = str(folder / f"{source.stem}.o")
        _run([processor.compiler, *flags, "-c", str(source), "-o", made])
        return made

    sources = sorted(library._SOURCES.glob("*.cpp"), key=lambda source: -source.stat().st_size)
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    made = folder / "kernels.so"
    _run([processor.compiler, *flags, "-shared", *objects, "-o", str(made)])
    return made


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def load(processor: Processor, folder: Path) -> ctypes.CDLL:
    """The kernels for a processor, to be called on this machine."""
    built = build(processor, folder)
    if not processor.emulator:
        return ctypes.CDLL(str(built))
    program = folder / "host"
    _run([processor.compiler, "-std=c++17", "-O1", "-rdynamic", str(HOST), "-o", str(program), "-ldl"])
    return EmulatedLibrary([*processor.emulator, str(program), str(built)], {})


class _Recorded(ctypes.CDLL):
    """A library that remembers which of its functions were asked for."""

    def __init__(self, inner: ctypes.CDLL) -> None:
        self.inner, self.names = inner, set[str]()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            self.names.add(name)
        return getattr(self.inner, name)


_recorded: list[_Recorded] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--native-processor", choices=list(PROCESSORS), required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Put the library in the place of this machine's, before a test module asks whether there is one."""
    folder = tempfile.TemporaryDirectory()
    config.add_cleanup(folder.cleanup)
    recorded = _Recorded(load(PROCESSORS[config.getoption("--native-processor")], Path(folder.name)))
    if isinstance(recorded.inner, EmulatedLibrary):
        config.add_cleanup(recorded.inner.close)
    _recorded.append(recorded)
    library.load = lambda: recorded


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line("native kernels called: " + " ".join(sorted(_recorded[0].names)))
