"""The engine's own process: requests come in through a pipe, deltas go out, one step after another.

What goes wrong stays small. A request that the engine refuses is answered alone. A step that raises ends the requests
that were running, and a fresh engine on the same weights takes the next ones. A process that dies is started again by
``engine``, which sees the pipe close.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

from gossamer.device import prepare_process
from gossamer.errors import UserError
from gossamer.infer.request import Delta, Request

__all__ = [
    "Abort",
    "Build",
    "Deltas",
    "Engine",
    "Failed",
    "ModelInfo",
    "Ready",
    "Rejected",
    "Reset",
    "Submit",
    "work",
]

STATS_EVERY = 0.25
log = logging.getLogger("gossamer.serve")


class Engine(Protocol):
    """What this process needs of ``infer.engine.Engine``."""

    @property
    def has_work(self) -> bool: ...

    def submit(self, request: Request) -> None: ...

    def abort(self, id: str) -> Delta | None: ...

    def step(self) -> Sequence[Delta]: ...

    def stats(self) -> Any: ...


@dataclass(frozen=True)
class ModelInfo:
    """Attributes:
    max_model_len: prompt and answer at most (tokens)
    vocab_size: ids are below it
    max_batch: requests that run at once
    """

    max_model_len: int
    vocab_size: int
    max_batch: int


Make = Callable[[], tuple[Engine, ModelInfo]]
Build = Callable[[], Make]
"""Loads the weights, once; what it gives makes engines on them."""


# To the process.


@dataclass(frozen=True)
class Submit:
    request: Request


@dataclass(frozen=True)
class Abort:
    id: str


# From the process.


@dataclass(frozen=True)
class Ready:
    info: ModelInfo


@dataclass(frozen=True)
class Failed:
    """It cannot start, and would not another time: the user has to mend something."""

    message: str


@dataclass(frozen=True)
class Rejected:
    """Attributes:
    message: why
    fault: whose it is, the "client"'s or the "engine"'s
    """

    id: str
    message: str
    fault: str


@dataclass(frozen=True)
class Deltas:
    deltas: Sequence[Delta]
    stats: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reset:
    """A step has failed: what was running is lost."""


def work(connection: Connection, build: Build) -> None:
    """The process: load, then serve until the other side sends None, or is gone."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the parent says when to end
        signal.signal(signal_number, signal.SIG_IGN)
    prepare_process()
    logging.basicConfig(format="%(asctime)s engine %(levelname)s %(message)s", level=logging.INFO)
    try:
        try:
            make = build()
            engine, info = make()
        except UserError as error:
            connection.send(Failed(str(error)))
            return
        connection.send(Ready(info))
        _serve(connection, make, engine)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has gone or has had enough


def _serve(connection: Connection, make: Make, engine: Engine) -> None:
    told, resting = 0.0, False
    while True:
        working = engine.has_work
        if not working and not resting:
            connection.send(Deltas((), vars(engine.stats())))
        resting = not working
        if connection.poll(0 if working else None):
            command = connection.recv()
            if command is None:
                return
            _command(connection, engine, command)
            continue
        try:
            deltas = engine.step()
        except Exception:
            log.exception("a step has failed; the requests that were running are lost, a fresh engine takes over")
            connection.send(Reset())
            engine, _ = make()
            continue
        now = time.monotonic()
        if now - told > STATS_EVERY:
            connection.send(Deltas(deltas, vars(engine.stats())))
            told = now
        elif deltas:
            connection.send(Deltas(deltas))


def _command(connection: Connection, engine: Engine, command: Submit | Abort) -> None:
    if isinstance(command, Abort):
        engine.abort(command.id)
        return
    request = command.request
    try:
        engine.submit(request)
    except UserError as error:
        connection.send(Rejected(request.id, str(error), "client"))
    except Exception:
        log.exception("request %s could not be taken", request.id)
        connection.send(Rejected(request.id, "the engine failed at this request", "engine"))
