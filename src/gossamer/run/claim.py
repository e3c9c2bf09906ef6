"""One trainer for a run: a lock in its folder, which the operating system releases when its holder ends in any way.

Where there are no such locks, on Windows and on some file systems, nobody is kept out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gossamer.errors import UserError
from gossamer.reading import MissingFile, open_to_append, open_to_read

if TYPE_CHECKING:
    from gossamer.train.world import World

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"


@contextmanager
def claimed(run: Path, world: World) -> Iterator[None]:
    """Hold a run's folder, made if need be; if nothing is begun there meanwhile, it is left as it was.

    Raises:
        UserError: another trainer holds it; on every process.
    """
    with ExitStack() as held:
        world.on_main(lambda: held.enter_context(_locked(run)))
        yield


def require_unclaimed(run: Path) -> None:
    """Refuse a run's folder that a trainer holds (UserError)."""
    with suppress(MissingFile), open_to_read(run / _LOCK, "remove it") as file:
        _lock(file, run, shared=True)


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    made = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    with open_to_append(run / _LOCK) as file:
        _lock(file, run)
        try:
            yield
        finally:
            if not (run / "config.yaml").exists():
                (run / _LOCK).unlink(missing_ok=True)
                if made:
                    with suppress(OSError):  # somebody else has put something there
                        run.rmdir()


def _lock(file: BinaryIO, run: Path, shared: bool = False) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{run} is being trained by another process; wait for its end, or begin another run with --out DIR"
        ) from None
    except OSError:  # a file system without locks
        pass
