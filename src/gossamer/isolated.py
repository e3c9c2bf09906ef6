"""Work that may hang, eat memory or crash, done in processes that may be given up.

A grammar comes from a client and a chat template from whoever made the checkpoint. Both are programs, and the libraries
that run them can loop for ever, fill the memory or overflow the stack. So they run in workers: processes that are
forked from one that has prepared what is costly, such as a vocabulary. The kernel limits their memory, and the
processor's time for each answer. A worker that exceeds a limit dies alone. This module imports nothing heavy: a worker
begins with little memory and in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from gossamer.errors import UserError

__all__ = ["Handler", "IsolatedWorkers", "RefusedError", "Worker", "WorkerFailedError"]

Handler = Callable[[bytes], bytes]
"""The work of a worker: bytes to bytes. It may raise `RefusedError`."""
PREPARATION_SECONDS = 120.0
"""The longest time that the preparation may take, in seconds."""
_SLACK = 8.0  # an answer is waited for this many times its processor time: other processes take their share
_DONE, _REFUSED, _MEMORY = b"\0", b"\1", b"\2"
_MAIN = "from gossamer.isolated import _main; _main()"


class RefusedError(Exception):
    """The error of a question that a worker refuses, in its own words; the worker goes on."""


class WorkerFailedError(Exception):
    """The error of a worker that has reached a limit or crashed, and has ended."""


class IsolatedWorkers:
    """A source of workers, which are forked from one process that is prepared.

    Args:
        prepare: called once, in a process of its own; what it returns is called in every worker and makes its handler.
            It must be a function of a module, not of a class.
        arguments: for `prepare`; they must be picklable
        memory: bytes that a worker may take beyond what the preparation took
        max_answer: the largest number of bytes of an answer
    """

    def __init__(
        self, prepare: Callable[..., Callable[[], Handler]], *arguments: Any, memory: int, max_answer: int = 1 << 28
    ) -> None:
        if not hasattr(os, "fork"):
            raise UserError("chat templates and grammars run in forked processes; this system cannot fork")
        self._task = pickle.dumps((prepare.__module__, prepare.__qualname__, arguments, memory))
        self._max_answer = max_answer
        self._lock = threading.Lock()
        self._control: socket.socket | None = None

    def worker(self) -> Worker:
        """Start a worker.

        Raises:
            RefusedError: the preparation failed, in its own words.
            WorkerFailedError: the preparation took too long or crashed.
        """
        with self._lock:
            for attempt in range(2):
                if self._control is None:
                    self._control = self._prepare()
                ours, theirs = socket.socketpair()
                try:
                    with theirs:
                        socket.send_fds(self._control, [b"w"], [theirs.fileno()])
                    return Worker(Connection(ours.detach()), self._max_answer)
                except OSError:  # the process has been killed; it is started once more
                    ours.close()
                    self._control.close()
                    self._control = None
                    if attempt:
                        raise
        raise AssertionError

    def _prepare(self) -> socket.socket:
        """Start the process that prepares, and wait until it is done."""
        ours, theirs = socket.socketpair()
        with theirs:
            paths = os.pathsep.join(path for path in sys.path if path)
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"},  # no threads before a fork
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a library that panics at a client's text writes there
            )
        weakref.finalize(self, _end, process, ours.dup())
        connection = Connection(ours.dup().detach())
        try:
            connection.send_bytes(self._task)
            if not connection.poll(PREPARATION_SECONDS):
                raise WorkerFailedError(f"not prepared within {PREPARATION_SECONDS:g} seconds")
            _unwrap(connection.recv_bytes())
        except (EOFError, OSError):
            raise WorkerFailedError("the process that prepares it has died") from None
        finally:
            connection.close()
        return ours


def _end(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    """End the process, which sees that its socket is closed."""
    with contextlib.suppress(OSError):
        control.shutdown(socket.SHUT_RDWR)
    control.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
        return
    process.kill()
    process.wait()


class Worker:
    """A process that answers one question after another.

    Attributes:
        num_questions: how many questions it has been asked
    """

    def __init__(self, connection: Connection, max_answer: int) -> None:
        self._connection = connection
        self._max_answer = max_answer
        self._sent = 0.0
        self._seconds = 0.0
        self.num_questions = 0

    def ask(self, message: bytes, seconds: float) -> bytes:
        """Send a question and wait for its answer.

        Args:
            message: for the handler
            seconds: processor time that the answer may take

        Raises:
            RefusedError: the handler refuses the question.
            WorkerFailedError: the worker has died of it.
        """
        self.send(message, seconds)
        return self.receive()

    def send(self, message: bytes, seconds: float) -> None:
        """Send a question; `receive` gives the answer."""
        self.num_questions += 1
        self._sent, self._seconds = time.monotonic(), seconds
        try:
            self._connection.send_bytes(float(seconds).hex().encode() + b"\n" + message)
        except OSError:
            raise WorkerFailedError("the process that worked on it has died") from None

    def has_answered(self) -> bool:
        """Return whether `receive` has something to give at once, be it the worker's death."""
        try:
            return self._connection.poll(0)
        except OSError:
            return True

    def fileno(self) -> int:
        """Return a file descriptor to wait on, with others."""
        return self._connection.fileno()

    def receive(self) -> bytes:
        """Return the answer to the last question; raises as `ask` does."""
        try:
            remaining = self._sent + self._seconds * _SLACK + 1 - time.monotonic()
            if not self._connection.poll(max(0.0, remaining)):
                self.close()
                raise WorkerFailedError(f"not done in {self._seconds:g} seconds")
            answer = self._connection.recv_bytes(self._max_answer)
        except (EOFError, OSError):
            seconds = time.monotonic() - self._sent
            self.close()
            if seconds >= self._seconds:
                raise WorkerFailedError(f"not done in {self._seconds:g} seconds") from None
            raise WorkerFailedError(
                "too much memory, or nested too deeply, for the process that worked on it"
            ) from None
        return _unwrap(answer)

    def close(self) -> None:
        """End the worker: at once if it is waiting, otherwise when its time is up."""
        self._connection.close()


def _unwrap(answer: bytes) -> bytes:
    if answer[:1] == _DONE:
        return answer[1:]
    if answer[:1] == _MEMORY:
        raise WorkerFailedError("too much memory")
    raise RefusedError(answer[1:].decode())


# What follows runs in the process that prepares, and in workers.


def _main() -> None:
    """Prepare, then fork workers until the socket is closed."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # sent to the whole group; the parent says when to end
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that workers that have ended are forgotten
    control = socket.socket(fileno=int(sys.argv[1]))
    connection = Connection(os.dup(control.fileno()))
    module, name, arguments, memory = pickle.loads(connection.recv_bytes())
    try:
        with _time_limit(PREPARATION_SECONDS):
            make = getattr(import_module(module), name)(*arguments)
    except Exception as error:
        connection.send_bytes(_wrap_error(error))
        return
    connection.send_bytes(_DONE)
    connection.close()
    while True:
        _, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not fds:
            return
        if os.fork() == 0:
            control.close()
            _work(Connection(fds[0]), make, memory)
            os._exit(0)
        os.close(fds[0])


def _work(connection: Connection, make: Callable[[], Handler], memory: int) -> None:
    """Answer as a worker until nobody asks any more."""
    _limit_memory(memory)
    handler = make()
    with contextlib.suppress(EOFError, OSError):
        while True:
            seconds, _, message = connection.recv_bytes().partition(b"\n")
            try:
                with _time_limit(float.fromhex(seconds.decode())):
                    answer = _DONE + handler(message)
            except Exception as error:
                answer = _wrap_error(error)
            del message
            connection.send_bytes(answer)


def _wrap_error(error: Exception) -> bytes:
    if isinstance(error, MemoryError):
        return _MEMORY
    text = str(error) if isinstance(error, RefusedError) else f"{type(error).__name__}: {error}"
    return _REFUSED + text[:2000].encode(errors="replace")


@contextlib.contextmanager
def _time_limit(seconds: float) -> Any:
    """Let the kernel end this process when it has taken so many seconds of the processor's time, whatever it does."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(extra: int) -> None:
    """Limit the memory to so many bytes beyond what is mapped now, on systems that keep such a limit."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (mapped + extra, mapped + extra))
