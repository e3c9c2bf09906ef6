"""A service in a process of its own, around the engine's double or a real model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DOUBLE = """
import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    import engine_double
    from gossamer.serve import server
    from gossamer.serve.engine_worker import EngineConfig
    from gossamer.serve.options import ServeOptions

    folder, order, drain = sys.argv[1:]
    server.build_engine = partial(engine_double.build_by, order=order)
    try:
        server.serve(Path(folder), ServeOptions(port=0, drain_timeout=float(drain)), EngineConfig())
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


class Process:
    """What `gossamer serve` starts; `arguments` are those of a Python."""

    def __init__(self, *arguments: object) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        # A pipe that nobody empties would hold the service up.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen([sys.executable, *map(str, arguments)], stderr=self._log, env=environment)

    @classmethod
    def double(cls, folder: Path, order: str = "", drain: float = 10) -> Process:
        """Around the double, with the tokenizer of a folder."""
        (folder / "config.json").write_text("{}")
        script = folder / "service.py"
        script.write_text(DOUBLE)
        return cls(script, folder, order, drain)

    @classmethod
    def real(cls, folder: Path) -> Process:
        """Around the real engine, as the command line starts it."""
        return cls("-m", "gossamer.cli", "serve", folder, "--port", 0, "--max-batch", 8)

    def url(self) -> str:
        """Its address, once it is ready."""
        deadline = time.monotonic() + 120
        while not re.search(r"ready$", self.log(), re.MULTILINE):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.02)
        return re.search(r" is served at (\S+)", self.log())[1]  # type: ignore[index]

    def log(self) -> str:
        """What it has written so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode()

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """Its exit status and its log, once it has ended."""
        return self.process.wait(seconds), self.log()

    def engine(self) -> int:
        """The engine's process: the child that is no helper of multiprocessing."""
        return next(pid for pid in children(self.process.pid) if "resource_tracker" not in _command(pid))


def children(pid: int) -> list[int]:
    """Processes that one has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def resident(pid: int) -> float:
    """A process' memory (MiB)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
