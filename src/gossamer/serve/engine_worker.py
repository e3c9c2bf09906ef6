"""The engine's own process: requests come in through a pipe, deltas go out, one step after another.

What goes wrong stays small. A request that the engine refuses is answered alone. Grammars are compiled beside the
engine's steps, by threads that wait for processes of their own. A step that raises ends the requests that were running,
and a fresh engine on the same weights takes the next ones. A process that dies is started again by `engine_process`,
which sees the pipe close.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from gossamer.device import prepare_process
from gossamer.errors import UserError
from gossamer.infer.options import EngineOptions
from gossamer.infer.request import Delta, Grammar, Request

__all__ = [
    "Abort",
    "BuildEngine",
    "EngineConfig",
    "EngineLike",
    "ModelInfo",
    "Ready",
    "Rejected",
    "StartFailed",
    "StepFailed",
    "StepOutput",
    "Submit",
    "build_engine",
    "run_worker",
]

STATS_EVERY = 0.25
"""Seconds between two reports of the engine's figures."""
NUM_COMPILERS = 2
"""Grammars that are compiled at the same time."""
log = logging.getLogger("gossamer.serve")


class EngineLike(Protocol):
    """What this process needs of `infer.engine.Engine`."""

    @property
    def has_work(self) -> bool:
        """Whether a request is queued or running."""

    def matcher(self, grammar: Grammar) -> Any:
        """Compile a grammar."""

    def submit(self, request: Request, matcher: Any = None) -> None:
        """Queue a request."""

    def abort(self, id: str) -> Delta | None:
        """End a request now."""

    def step(self) -> Sequence[Delta]:
        """Take one step for all requests, and return what it adds to each."""

    def stats(self) -> Any:
        """Return counts and sizes at this moment."""


@dataclass(frozen=True)
class ModelInfo:
    """What the service has to know about the model.

    Attributes:
        max_model_len: tokens that prompt and answer may have together
        vocab_size: the number of token ids
        max_batch: the number of requests that run at once
    """

    max_model_len: int
    vocab_size: int
    max_batch: int


MakeEngine = Callable[[], tuple[EngineLike, ModelInfo]]
"""Makes a fresh engine on weights that are loaded."""
BuildEngine = Callable[[], MakeEngine]
"""Loads the weights once, and returns what makes engines on them."""


@dataclass(frozen=True)
class EngineConfig:
    """What the engine's process is started with.

    Attributes:
        device: auto, cpu, cuda, cuda:1, npu …
        options: sizes and switches of the engine
        adapters: folders of adapters, by the names that requests have
    """

    device: str = "auto"
    options: EngineOptions = field(default_factory=EngineOptions)
    adapters: Mapping[str, Path] = field(default_factory=dict)


def build_engine(folder: Path, config: EngineConfig) -> MakeEngine:
    """Load a Hugging Face directory and adapters, and return a function that makes a fresh engine on these weights.

    Raises:
        UserError: the directory or an adapter cannot be loaded.
    """
    from gossamer import device as devices
    from gossamer import hub
    from gossamer.data.tokenizer import Tokenizer
    from gossamer.hub.read import merged
    from gossamer.infer.adapters import AdapterEngines, with_adapters
    from gossamer.infer.engine import Engine

    devices.keep_freed_memory()
    model = hub.load(folder, device=devices.resolve(config.device)).eval()
    tokenizer = Tokenizer.load(folder)
    tokenizer.check_embedding(model.config.vocab_size, folder)

    networks = with_adapters(merged(model), config.adapters) if config.adapters else {}

    def make() -> tuple[EngineLike, ModelInfo]:
        engine: Engine | AdapterEngines
        if networks:
            engine = AdapterEngines(networks, tokenizer, config.options)
        else:
            engine = Engine(model, tokenizer, config.options)
        return engine, ModelInfo(engine.max_length, model.config.vocab_size, config.options.max_batch)

    return make


# Messages to the process.


@dataclass(frozen=True)
class Submit:
    """A request for the engine."""

    request: Request


@dataclass(frozen=True)
class Abort:
    """Ends a request that nobody waits for any more."""

    id: str


# Messages from the process.


@dataclass(frozen=True)
class Ready:
    """The engine is ready for requests."""

    info: ModelInfo


@dataclass(frozen=True)
class StartFailed:
    """The engine cannot start and would fail again: the user has to mend something."""

    message: str


@dataclass(frozen=True)
class Rejected:
    """The engine has refused a request.

    Attributes:
        id: the request
        message: why it was refused
        fault: whose fault it is, "client" or "engine"
    """

    id: str
    message: str
    fault: str


@dataclass(frozen=True)
class StepOutput:
    """What one step made, and now and then the engine's figures."""

    deltas: Sequence[Delta]
    stats: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepFailed:
    """A step has failed, and the requests that were running are lost."""


def run_worker(connection: Connection, build: BuildEngine) -> None:
    """Run the process: load the model, then serve until the other side sends None or is gone."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the parent says when to end
        signal.signal(signal_number, signal.SIG_IGN)
    prepare_process()
    logging.basicConfig(format="%(asctime)s engine %(levelname)s %(message)s", level=logging.INFO)
    try:
        try:
            make = build()
            engine, info = make()
        except UserError as error:
            connection.send(StartFailed(str(error)))
            return
        connection.send(Ready(info))
        _WorkerLoop(connection, make, engine, info.max_batch).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone or has closed the pipe


class _WorkerLoop:
    """Takes commands, runs the engine's steps and sends what they make.

    Args:
        connection: the pipe to the service
        make: makes a fresh engine after a step that failed
        engine: the first engine
        max_with_grammar: requests with a grammar that the engine may have at a time, each of which has a process
    """

    def __init__(self, connection: Connection, make: MakeEngine, engine: EngineLike, max_with_grammar: int) -> None:
        self._connection = connection
        self._make = make
        self._engine = engine
        self._max_with_grammar = max_with_grammar
        self._waiting: deque[Request] = deque()  # until their grammars can be compiled
        self._compiling: dict[str, tuple[Request, Future[Any]]] = {}
        self._with_grammar: set[str] = set()  # requests with a grammar that the engine has
        self._compilers = ThreadPoolExecutor(NUM_COMPILERS, "grammar")
        self._wake, self._waker = os.pipe()  # receives a byte for every grammar that has been compiled

    def run(self) -> None:
        """Run until the other side sends None."""
        last_stats, was_idle = 0.0, False
        while True:
            has_work = self._engine.has_work
            if not has_work and not was_idle:
                self._connection.send(StepOutput((), vars(self._engine.stats())))
            was_idle = not has_work
            ready = wait([self._connection, self._wake], 0 if has_work else None)
            if self._wake in ready:
                os.read(self._wake, 1)
                self._submit_compiled()
            if self._connection in ready:
                command = self._connection.recv()
                if command is None:
                    return
                self._execute(command)
            if ready:
                continue
            try:
                deltas = self._engine.step()
            except Exception:
                log.exception("a step has failed; the requests that were running are lost, a fresh engine takes over")
                self._connection.send(StepFailed())
                self._drop_all()
                self._engine, _ = self._make()
                continue
            for delta in deltas:
                if delta.finish_reason is not None:
                    self._release(delta.id)
            now = time.monotonic()
            if now - last_stats > STATS_EVERY:
                self._connection.send(StepOutput(deltas, vars(self._engine.stats())))
                last_stats = now
            elif deltas:
                self._connection.send(StepOutput(deltas))

    def _execute(self, command: Submit | Abort) -> None:
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
        """Give grammars to the compilers, as long as the engine has room for requests with one."""
        while self._waiting and len(self._with_grammar) + len(self._compiling) < self._max_with_grammar:
            request = self._waiting.popleft()
            assert request.sampling.grammar is not None
            future = self._compilers.submit(self._engine.matcher, request.sampling.grammar)
            self._compiling[request.id] = request, future
            future.add_done_callback(lambda _: os.write(self._waker, b"."))

    def _submit_compiled(self) -> None:
        for request_id, (request, future) in list(self._compiling.items()):
            if future.done():
                del self._compiling[request_id]
                self._submit(request, future)
        self._compile()

    def _submit(self, request: Request, compiled: Future[Any] | None = None) -> None:
        try:
            if compiled is None:
                self._engine.submit(request)
            else:
                self._engine.submit(request, compiled.result())
                self._with_grammar.add(request.id)
        except UserError as error:
            self._connection.send(Rejected(request.id, str(error), "client"))
        except Exception:
            log.exception("request %s could not be taken", request.id)
            self._connection.send(Rejected(request.id, "the engine failed at this request", "engine"))

    def _release(self, request_id: str) -> None:
        if request_id in self._with_grammar:
            self._with_grammar.discard(request_id)
            self._compile()

    def _drop_all(self) -> None:
        """Forget all requests, which a failed step has lost."""
        self._waiting.clear()
        self._compiling.clear()
        self._with_grammar.clear()
