"""The parent's side of the engine's process: starts it, watches it, starts it again, and hands deltas to requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import multiprocessing
import queue
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Literal

from gossamer.infer.request import Delta, Request
from gossamer.serve.errors import ApiError, invalid, overloaded, unavailable
from gossamer.serve.metrics import Metrics
from gossamer.serve.options import ServeOptions
from gossamer.serve.run import Run
from gossamer.serve.suspects import CRASHES, Suspects
from gossamer.serve.worker import (
    Abort,
    Build,
    Deltas,
    Failed,
    ModelInfo,
    Ready,
    Rejected,
    Reset,
    Submit,
    work,
)

__all__ = ["EngineProcess"]

LOADS = 3
"""Deaths in a row, without being ready in between, after which the service gives up."""
STOP_SECONDS = 5
"""That the process has to finish its step and end; then it is killed."""
log = logging.getLogger("gossamer.serve")


class EngineProcess:
    """The engine as the service sees it. All methods belong to the event loop's thread.

    Args:
        build: makes the engine in its process; it and what it holds can be pickled.
        options: limits.
        metrics: told about tokens, times and restarts.

    Attributes:
        state: loading (also after a death), ready, draining, stopped
        info: of the model, once it is loaded
        failure: why it cannot be loaded at all
    """

    def __init__(self, build: Build, options: ServeOptions, metrics: Metrics) -> None:
        self.state: Literal["loading", "ready", "draining", "stopped"] = "stopped"
        self.info: ModelInfo | None = None
        self.failure: str | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._build = build
        self._options = options
        self._metrics = metrics
        self._runs: dict[str, Run] = {}
        self._suspects = Suspects()
        self._outbox: queue.SimpleQueue[Submit | Abort | None] = queue.SimpleQueue()
        self._process: Any = None
        self._deaths = 0
        self._seconds = 1.0  # a request takes, averaged over the latest
        self._restart: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, for whoever watches its memory."""
        return None if self._process is None else self._process.pid

    @property
    def active(self) -> int:
        """Requests with the engine, running and waiting."""
        return len(self._runs)

    def start(self) -> None:
        """Start the process; it loads while the loop goes on."""
        self.state = "loading"
        self._loop = asyncio.get_running_loop()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, self._build), name="gossamer-engine", daemon=True)
        self._process.start()
        theirs.close()
        self._outbox = queue.SimpleQueue()
        threading.Thread(target=self._receive, args=(ours, self._process), name="from-engine", daemon=True).start()
        # A send can wait for as long as a step takes, and the loop must not.
        threading.Thread(target=_send, args=(ours, self._outbox), name="to-engine", daemon=True).start()

    def drain(self, seconds: float) -> None:
        """Take no more requests; those that are here go on for so many seconds. May be called by a signal handler."""
        if self.state == "stopped":
            return
        self.state = "draining"
        error = unavailable("the service shuts down", "shutting_down", 5)
        self._loop.call_soon_threadsafe(lambda: self._loop.call_later(seconds, self._fail_all, error))

    async def stop(self) -> None:
        """End the process; what is still running gets an honest error."""
        loading, self.state = self.state == "loading", "stopped"
        if self._restart is not None:
            self._restart.cancel()
        self._fail_all(unavailable("the service shuts down", "shutting_down"))
        self._outbox.put(None)
        if self._process is not None:
            await asyncio.to_thread(self._process.join, 0 if loading else STOP_SECONDS)  # it does not listen yet
            if self._process.is_alive():
                self._process.kill()
                await asyncio.to_thread(self._process.join, STOP_SECONDS)

    def admit(self, requests: Sequence[Request]) -> Run:
        """Hand requests to the engine, all or none.

        Raises:
            ApiError: as ``check`` does; 400 for a request that the engine died of.
        """
        self.check(len(requests))
        if any(map(self._suspects.is_guilty, requests)):
            raise invalid("the engine died when it worked on this request; it is not tried again", code="engine_died")
        run = Run(requests, self._options, self._metrics, self._release)
        for request in requests:
            self._runs[request.id] = run
            self._outbox.put(Submit(request))
        return run

    def check(self, count: int, field: str = "n") -> None:
        """Whether there is room for so many requests; asked before any work is put into them, too.

        Args:
            field: of the client's request that makes them so many.

        Raises:
            ApiError: 503 while it loads or drains, 429 when the queue is full, 400 for more than ever fit.
        """
        if self.state == "draining" or self.state == "stopped":
            raise unavailable("the service shuts down", "shutting_down", 5)
        if self.state == "loading" or self.info is None:
            raise unavailable("the model is being loaded", "loading", 5)
        capacity = self.info.max_batch + self._options.max_queue
        if count > min(capacity, self._options.max_choices):
            most = min(capacity, self._options.max_choices)
            raise invalid(f"{field}: {count} answers to one request; this service makes {most} at most", field)
        if len(self._runs) + count > capacity:
            waiting = max(0, len(self._runs) - self.info.max_batch)
            raise overloaded(max(1, min(120, math.ceil(self._seconds * (1 + waiting / self.info.max_batch)))))

    def _release(self, request_id: str, unfinished: bool, seconds: float) -> None:
        """A request is over: its end has come, or nobody waits for it any more."""
        if self._runs.pop(request_id, None) is None:
            return
        if unfinished:
            self._outbox.put(Abort(request_id))
        else:
            self._seconds += 0.1 * (seconds - self._seconds)

    # What comes from the process, first in its own thread.

    def _receive(self, connection: Connection, process: Any) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = connection.recv()
                self._loop.call_soon_threadsafe(self._handle, message, process)
        process.join()
        connection.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the service has ended
            self._loop.call_soon_threadsafe(self._died, process)

    def _handle(self, message: Any, process: Any) -> None:
        if process is not self._process:
            return  # the last words of one that has been replaced
        if isinstance(message, Deltas):
            for delta in message.deltas:
                if delta.finish_reason in ("stop", "length") and (run := self._runs.get(delta.id)) is not None:
                    self._suspects.answered(next(request for request in run.requests if request.id == delta.id))
                self._give(delta.id, delta)
            if message.stats:
                self._metrics.engine_stats(message.stats)
        elif isinstance(message, Rejected):
            client = message.fault == "client"
            error = invalid(message.message) if client else ApiError(500, message.message, "engine_error")
            self._give(message.id, error)
        elif isinstance(message, Reset):
            self._metrics.restarts.inc()
            self._suspects.died(self._requests(), crashed=True)
            self._fail_all(ApiError(500, "the engine failed while it worked on this request", "engine_error"))
        elif isinstance(message, Ready):
            self.info, self._deaths = message.info, 0
            if self.state == "loading":
                self.state = "ready"
            log.info("ready")
        elif isinstance(message, Failed):
            self._give_up(message.message)

    def _requests(self) -> list[Request]:
        """Those that are with the engine."""
        runs = {id(run): run for run in self._runs.values()}
        return [request for run in runs.values() for request in run.requests if request.id in self._runs]

    def _give(self, request_id: str, item: Delta | ApiError) -> None:
        run = self._runs.get(request_id)
        if run is not None:  # else it was aborted in the meantime
            run.put(request_id, item)

    def _fail_all(self, error: ApiError) -> None:
        for request_id, run in list(self._runs.items()):
            run.put(request_id, error)

    def _died(self, process: Any) -> None:
        if process is not self._process or self.failure is not None:
            return
        self._outbox.put(None)
        self._suspects.died(self._requests(), crashed=-(process.exitcode or 0) in CRASHES)
        self._fail_all(unavailable("the engine died while it worked on this request; try again", "engine_died", 5))
        if self.state == "stopped":
            return
        self._deaths += 1
        code = process.exitcode
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        if self._deaths >= LOADS:
            self._give_up(f"the engine died {LOADS} times while it loaded the model ({how}); is there enough memory?")
        elif self.state != "draining":
            log.error("the engine has died (%s); it is started again", how)
            self._metrics.restarts.inc()
            self.state = "loading"
            self._restart = asyncio.ensure_future(self._start_again())

    async def _start_again(self) -> None:
        await asyncio.sleep(0 if self._deaths <= 1 else 2.0 ** (self._deaths - 2))
        if self.state == "loading":
            self.start()

    def _give_up(self, message: str) -> None:
        self.failure = message
        self.state = "stopped"
        self._fail_all(unavailable("the service shuts down", "shutting_down"))
        self.on_failure()


def _send(connection: Connection, outbox: queue.SimpleQueue[Submit | Abort | None]) -> None:
    """Pass on what is put into the outbox, to the None that ends the process."""
    with contextlib.suppress(OSError):
        command: Submit | Abort | None
        while (command := outbox.get()) is not None:
            connection.send(command)
        connection.send(None)
