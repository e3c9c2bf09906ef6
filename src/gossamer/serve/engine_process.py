"""The service's side of the engine's process: it starts, watches and restarts it, and hands its output to requests."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import multiprocessing
import queue
import signal
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any, Literal

from gossamer.infer.request import Delta, Request
from gossamer.serve.engine_worker import (
    Abort,
    BuildEngine,
    ModelInfo,
    Ready,
    Rejected,
    StartFailed,
    StepFailed,
    StepOutput,
    Submit,
    run_worker,
)
from gossamer.serve.errors import ApiError, invalid, overloaded, unavailable
from gossamer.serve.generation import Generation
from gossamer.serve.metrics import Metrics
from gossamer.serve.options import ServeOptions

__all__ = ["CrashRecord", "EngineProcess"]

MAX_STARTS = 3
"""Deaths in a row, without being ready in between, after which the service gives up."""
STOP_SECONDS = 5
"""Time for the process to finish its step and end, before it is killed."""
log = logging.getLogger("gossamer.serve")


class EngineProcess:
    """The engine as the service sees it. All methods are called in the event loop's thread.

    Args:
        build: makes the engine in its process; it can be pickled
        options: the limits
        metrics: counts tokens, times and restarts

    Attributes:
        state: loading (also after a death), ready, draining or stopped
        info: what is known about the model once it is loaded
        failure: why the engine cannot be started at all
        on_failure: is called when the engine cannot be started at all
    """

    def __init__(self, build: BuildEngine, options: ServeOptions, metrics: Metrics) -> None:
        self.state: Literal["loading", "ready", "draining", "stopped"] = "stopped"
        self.info: ModelInfo | None = None
        self.failure: str | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._build = build
        self._options = options
        self._metrics = metrics
        self._generations: dict[str, Generation] = {}  # by the ids of their requests
        self._crashes = CrashRecord()
        self._outbox: queue.SimpleQueue[Submit | Abort | None] = queue.SimpleQueue()
        self._process: Any = None
        self._deaths = 0
        self._mean_seconds = 1.0  # that a request takes, over the latest ones
        self._restart: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The id of the process, with which its memory can be watched; None if there is no process."""
        return None if self._process is None else self._process.pid

    @property
    def active(self) -> int:
        """The number of requests that the engine has, running and waiting."""
        return len(self._generations)

    def start(self) -> None:
        """Start the process; it loads the model while the event loop runs on."""
        self.state = "loading"
        self._loop = asyncio.get_running_loop()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=run_worker, args=(theirs, self._build), name="gossamer-engine", daemon=True
        )
        self._process.start()
        theirs.close()
        self._outbox = queue.SimpleQueue()
        threading.Thread(target=self._receive, args=(ours, self._process), name="from-engine", daemon=True).start()
        # In a thread, because to send can take as long as a step, for which the event loop must not wait.
        threading.Thread(target=_send, args=(ours, self._outbox), name="to-engine", daemon=True).start()

    def drain(self, seconds: float) -> None:
        """Accept no more requests, and end those that still run after `seconds`. May be called by a signal handler."""
        if self.state == "stopped":
            return
        self.state = "draining"
        error = unavailable("the service shuts down", "shutting_down", 5)
        self._loop.call_soon_threadsafe(lambda: self._loop.call_later(seconds, self._fail_all, error))

    async def stop(self) -> None:
        """End the process; requests that still run get an error."""
        is_loading, self.state = self.state == "loading", "stopped"
        if self._restart is not None:
            self._restart.cancel()
        self._fail_all(unavailable("the service shuts down", "shutting_down"))
        self._outbox.put(None)
        if self._process is not None:
            # While it loads it does not listen.
            await asyncio.to_thread(self._process.join, 0 if is_loading else STOP_SECONDS)
            if self._process.is_alive():
                self._process.kill()
                await asyncio.to_thread(self._process.join, STOP_SECONDS)

    def admit(self, requests: Sequence[Request]) -> Generation:
        """Hand requests to the engine, all of them or none.

        Raises:
            ApiError: as `check` does, and 400 for a request that the engine has died of.
        """
        self.check(len(requests))
        if any(map(self._crashes.is_blamed, requests)):
            raise invalid("the engine died when it worked on this request; it is not tried again", code="engine_died")
        generation = Generation(requests, self._options, self._metrics, self._release)
        for request in requests:
            self._generations[request.id] = generation
            self._outbox.put(Submit(request))
        return generation

    def check(self, count: int, field: str = "n") -> None:
        """Check that there is room for more requests; also called before any work is put into them.

        Args:
            count: the number of requests
            field: the field of the client's request that asks for so many

        Raises:
            ApiError: 503 while the engine loads or drains, 429 if the queue is full, 400 for more than ever fit.
        """
        if self.state == "draining" or self.state == "stopped":
            raise unavailable("the service shuts down", "shutting_down", 5)
        if self.state == "loading" or self.info is None:
            raise unavailable("the model is being loaded", "loading", 5)
        capacity = self.info.max_batch + self._options.max_queue
        max_count = min(capacity, self._options.max_choices)
        if count > max_count:
            raise invalid(f"{field}: {count} answers to one request; this service makes {max_count} at most", field)
        if len(self._generations) + count > capacity:
            waiting = max(0, len(self._generations) - self.info.max_batch)
            seconds = math.ceil(self._mean_seconds * (1 + waiting / self.info.max_batch))
            raise overloaded(max(1, min(120, seconds)))

    def _release(self, request_id: str, unfinished: bool, seconds: float) -> None:
        """Forget a request that has ended, or that nobody waits for any more."""
        if self._generations.pop(request_id, None) is None:
            return
        if unfinished:
            self._outbox.put(Abort(request_id))
        else:
            self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    # Messages from the process, which arrive in a thread of their own.

    def _receive(self, connection: Connection, process: Any) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = connection.recv()
                self._loop.call_soon_threadsafe(self._handle, message, process)
        process.join()
        connection.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the service has ended
            self._loop.call_soon_threadsafe(self._handle_death, process)

    def _handle(self, message: Any, process: Any) -> None:
        if process is not self._process:
            return  # the last message of a process that has been replaced
        if isinstance(message, StepOutput):
            for delta in message.deltas:
                generation = self._generations.get(delta.id)
                if delta.finish_reason in ("stop", "length") and generation is not None:
                    self._crashes.clear(next(request for request in generation.requests if request.id == delta.id))
                self._put(delta.id, delta)
            if message.stats:
                self._metrics.engine_stats(message.stats)
        elif isinstance(message, Rejected):
            is_clients = message.fault == "client"
            error = invalid(message.message) if is_clients else ApiError(500, message.message, "engine_error")
            self._put(message.id, error)
        elif isinstance(message, StepFailed):
            self._metrics.restarts.inc()
            self._crashes.add(self._current_requests(), by_itself=True)
            self._fail_all(ApiError(500, "the engine failed while it worked on this request", "engine_error"))
        elif isinstance(message, Ready):
            self.info, self._deaths = message.info, 0
            if self.state == "loading":
                self.state = "ready"
            log.info("ready")
        elif isinstance(message, StartFailed):
            self._give_up(message.message)

    def _current_requests(self) -> list[Request]:
        """The requests that the engine has."""
        generations = {id(generation): generation for generation in self._generations.values()}
        return [
            request
            for generation in generations.values()
            for request in generation.requests
            if request.id in self._generations
        ]

    def _put(self, request_id: str, item: Delta | ApiError) -> None:
        generation = self._generations.get(request_id)
        if generation is not None:  # else it was aborted in the meantime
            generation.put(request_id, item)

    def _fail_all(self, error: ApiError) -> None:
        for request_id, generation in list(self._generations.items()):
            generation.put(request_id, error)

    def _handle_death(self, process: Any) -> None:
        if process is not self._process or self.failure is not None:
            return
        self._outbox.put(None)
        self._crashes.add(self._current_requests(), by_itself=-(process.exitcode or 0) in CRASH_SIGNALS)
        self._fail_all(unavailable("the engine died while it worked on this request; try again", "engine_died", 5))
        if self.state == "stopped":
            return
        self._deaths += 1
        code = process.exitcode
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        if self._deaths >= MAX_STARTS:
            self._give_up(
                f"the engine died {MAX_STARTS} times while it loaded the model ({how}); is there enough memory?"
            )
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
    """Pass on what is put into the outbox, up to the None that ends the process."""
    with contextlib.suppress(OSError):
        command: Submit | Abort | None
        while (command := outbox.get()) is not None:
            connection.send(command)
        connection.send(None)


BLAME_SECONDS = 3600.0
"""Time after which a request that the engine has died of may be tried again."""
MAX_RECORDED = 1024
"""Number of requests that are remembered."""
CRASH_SIGNALS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
"""The signals that a process brings upon itself."""


class CrashRecord:
    """The requests that the engine had when it died, so that the same request does not take others with it again.

    A request that was the only one when the engine crashed by itself is to blame. If there were several, nobody knows
    which one it was, and a process may be killed for something else: such a request is blamed when it is there a second
    time.
    """

    def __init__(self) -> None:
        self._found: OrderedDict[bytes, tuple[float, int]] = OrderedDict()  # by digest: last time, points of blame

    def add(self, requests: Sequence[Request], by_itself: bool) -> None:
        """Record the requests that the engine had when it died or failed.

        Args:
            requests: the requests
            by_itself: whether the engine crashed by itself, rather than being killed
        """
        digests = set(map(_digest, requests))
        points = 2 if by_itself and len(digests) == 1 else 1
        for digest in digests:
            _, before = self._found.pop(digest, (0.0, 0))
            self._found[digest] = time.monotonic(), before + points
        while len(self._found) > MAX_RECORDED:
            self._found.popitem(last=False)

    def clear(self, request: Request) -> None:
        """Forget a request that the engine has answered, and so does not die of."""
        if self._found:
            self._found.pop(_digest(request), None)

    def is_blamed(self, request: Request) -> bool:
        """Return whether the engine should not be given this request."""
        if not self._found:
            return False
        when, points = self._found.get(_digest(request), (0.0, 0))
        return points >= 2 and time.monotonic() - when < BLAME_SECONDS


def _digest(request: Request) -> bytes:
    """A hash that is equal for equal prompts and parameters, except for the seed, which differs between choices."""
    parameters = asdict(request.sampling) | {"seed": None}
    return hashlib.blake2b(array("q", request.prompt).tobytes() + repr(parameters).encode()).digest()
