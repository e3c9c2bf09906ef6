"""The engine's own process: requests come in through a pipe, deltas go out, one step after another.

What goes wrong stays small. A request that the engine refuses is answered alone. Grammars are compiled beside the
engine's steps, by threads that wait for processes of their own. A step that raises ends the requests that were
running, and a fresh engine on the same weights takes the next ones. A process that dies is started again by
``engine``, which sees the pipe close.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from gossamer.device import prepare_process
from gossamer.errors import UserError
from gossamer.infer.request import Delta, Grammar, Request

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

    def matcher(self, grammar: Grammar) -> Any: ...

    def submit(self, request: Request, matcher: Any = None) -> None: ...

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
        _Loop(connection, make, engine, info.max_batch).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has gone or has had enough


COMPILERS = 2
"""Grammars that are compiled at the same time."""


class _Loop:
    """Commands in, steps, deltas out.

    Args:
        connection: to the service.
        make: makes a fresh engine after a step that failed.
        engine: the first one.
        most: requests with a grammar that the engine may have at a time: each has a process of its own.
    """

    def __init__(self, connection: Connection, make: Make, engine: Engine, most: int) -> None:
        self._connection = connection
        self._make = make
        self._engine = engine
        self._most = most
        self._waiting: deque[Request] = deque()  # for their grammars' turn
        self._compiling: dict[str, tuple[Request, Future[Any]]] = {}
        self._held: set[str] = set()  # with the engine, and with a grammar
        self._compilers = ThreadPoolExecutor(COMPILERS, "grammar")
        self._wake, self._waker = os.pipe()  # a byte for every grammar that has been compiled

    def run(self) -> None:
        """Until the other side sends None."""
        told, resting = 0.0, False
        while True:
            working = self._engine.has_work
            if not working and not resting:
                self._connection.send(Deltas((), vars(self._engine.stats())))
            resting = not working
            came = wait([self._connection, self._wake], 0 if working else None)
            if self._wake in came:
                os.read(self._wake, 1)
                self._submit_compiled()
            if self._connection in came:
                command = self._connection.recv()
                if command is None:
                    return
                self._command(command)
            if came:
                continue
            try:
                deltas = self._engine.step()
            except Exception:
                log.exception("a step has failed; the requests that were running are lost, a fresh engine takes over")
                self._connection.send(Reset())
                self._forget()
                self._engine, _ = self._make()
                continue
            for delta in deltas:
                if delta.finish_reason is not None:
                    self._release(delta.id)
            now = time.monotonic()
            if now - told > STATS_EVERY:
                self._connection.send(Deltas(deltas, vars(self._engine.stats())))
                told = now
            elif deltas:
                self._connection.send(Deltas(deltas))

    def _command(self, command: Submit | Abort) -> None:
        if isinstance(command, Abort):
            self._engine.abort(command.id)
            self._waiting = deque(request for request in self._waiting if request.id != command.id)
            self._compiling.pop(command.id, None)
            self._release(command.id)
        elif command.request.sampling.grammar is None:
            self._submit(command.request)
        else:
            self._waiting.append(command.request)
            self._compile()

    def _compile(self) -> None:
        """Give grammars to the compilers, as many as there is room for requests with one."""
        while self._waiting and len(self._held) + len(self._compiling) < self._most:
            request = self._waiting.popleft()
            assert request.sampling.grammar is not None
            future = self._compilers.submit(self._engine.matcher, request.sampling.grammar)
            self._compiling[request.id] = request, future
            future.add_done_callback(lambda _: os.write(self._waker, b"."))

    def _submit_compiled(self) -> None:
        for name, (request, future) in list(self._compiling.items()):
            if future.done():
                del self._compiling[name]
                self._submit(request, future)
        self._compile()

    def _submit(self, request: Request, compiled: Future[Any] | None = None) -> None:
        try:
            if compiled is None:
                self._engine.submit(request)
            else:
                self._engine.submit(request, compiled.result())
                self._held.add(request.id)
        except UserError as error:
            self._connection.send(Rejected(request.id, str(error), "client"))
        except Exception:
            log.exception("request %s could not be taken", request.id)
            self._connection.send(Rejected(request.id, "the engine failed at this request", "engine"))

    def _release(self, name: str) -> None:
        if name in self._held:
            self._held.discard(name)
            self._compile()

    def _forget(self) -> None:
        """Whatever was under way is lost."""
        self._waiting.clear()
        self._compiling.clear()
        self._held.clear()
