"""One trainer for a run's folder: it holds a lock there as long as it lives.

The operating system releases the lock when its holder ends in whatever way. Where there are no such locks, on Windows
and on some file systems, nobody is kept out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gossamer.errors import UserError
from gossamer.files import sweep, try_lock
from gossamer.hub.find import RUN_CONFIG
from gossamer.reading import MissingFile, open_to_append, open_to_read

if TYPE_CHECKING:
    from gossamer.train.world import World

_LOCK = ".lock"


@contextmanager
def claimed(run: Path, world: World) -> Iterator[None]:
    """Hold a run's folder, which is made if need be; if nothing is begun there meanwhile, it is left as it was.

    Raises:
        UserError: another trainer holds it; on every process.
    """
    with ExitStack() as held:
        world.call_on_main(lambda: held.enter_context(_locked(run)))
        yield


def require_unclaimed(run: Path) -> None:
    """Refuse a run's folder that a trainer holds.

    Raises:
        UserError: another process trains there.
    """
    with suppress(MissingFile), open_to_read(run / _LOCK, "remove it") as file:
        _take(file, run, shared=True)


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Hold a run's lock on the main process, and remove what a killed trainer has left."""
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    with open_to_append(run / _LOCK) as file:
        _take(file, run)
        sweep(run, "model", age=0)  # nobody else writes a run's model
        sweep(run)
        try:
            yield
        finally:
            if not (run / RUN_CONFIG).exists():
                (run / _LOCK).unlink(missing_ok=True)
                with suppress(OSError):  # another process has put something there
                    for folder in made:
                        folder.rmdir()


def _take(file: BinaryIO, run: Path, shared: bool = False) -> None:
    """Lock the open lock file of a run.

    Raises:
        UserError: another process holds it.
    """
    if not try_lock(file, shared):
        raise UserError(
            f"{run} is being trained by another process; wait for its end, or begin another run with --out DIR"
        )
