"""What all tests share: the helpers beside this file and the measurements in benchmarks/, and hypothesis' profile."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "benchmarks")]
pytest_plugins = ["tiny_runs"]

# The many processes that tests start would each compile the sources again where Python is told to keep no byte code.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# No deadline: the machine may be busy. On a CI machine the examples are the same in every run.
settings.register_profile("gossamer", deadline=None, derandomize="CI" in os.environ, max_examples=50)
settings.load_profile("gossamer")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each process takes a part of the files, and then what another has left: what a file sets up is made once."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True)
def floating_point_mode() -> Iterator[None]:
    """Subnormal numbers are what they are in every test, also behind one that ran a verb in this process."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session")
def on_chip() -> Iterator[Callable[..., Any]]:
    """Calls a function in a process that has the test chip: `on_chip(chip_runs.attempt, "torch.ones(2)")`."""
    import chip

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=chip.install) as process:
        yield lambda function, *given, **named: process.submit(function, *given, **named).result()
