"""Tokenising in several processes.

The tokenizer's own threads keep a few cores busy, but what lies between two calls of it does not get faster with more
of them. So each core gets a process, which is handed batches of text and hands back ids. At most one batch is with
each, so memory is bounded, and answers are taken in the order of the batches, so the result does not depend on how many
processes there are or which of them is fast.

The processes are programs of their own (``python -m gossamer.data.workers``), neither forked, which would copy the
tokenizer's threads in whatever state they are, nor spawned by ``multiprocessing``, which would run the caller's main
script again. They end with their standard input, so none outlives a caller that was killed.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gossamer.data.corpus import Piece
from gossamer.data.shards import token_dtype
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError

__all__ = ["Encoders"]

Encoded = tuple[list[Piece], list[npt.NDArray[Any]]]


class Encoders:
    """Processes that tokenise; a context manager that ends them.

    Args:
        tokenizer: what each of them gets a copy of.
        count: how many.
    """

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        paths = [path or os.getcwd() for path in sys.path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-P", "-m", "gossamer.data.workers"]
        self._tokenizer: Tokenizer | None = tokenizer
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(count):
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
                self.processes.append(process)
        except OSError as error:
            self.__exit__()
            raise UserError(
                f"cannot start {count} processes to tokenise in ({error.strerror}); take fewer with --corpus.workers"
            ) from error

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()  # closes the pipes

    def encode(self, batches: Iterable[list[Piece]]) -> Iterator[Encoded]:
        """Yield each batch with the ids of its pieces (uint16 or uint32), in the order of the batches.

        Raises:
            UserError: text that cannot be encoded, or a process that died; the line names the file it was at.
        """
        if self._tokenizer is not None:
            for process in self.processes:
                _send(process, self._tokenizer, [])
            self._tokenizer = None
        idle = deque(self.processes)
        busy: deque[tuple[subprocess.Popen[bytes], list[Piece]]] = deque()
        for batch in batches:
            done: Encoded | None = None
            if not idle:
                process, before = busy.popleft()
                done = before, _receive(process, before)
                idle.append(process)
            process = idle.popleft()
            _send(process, [piece.text for piece in batch], batch)
            busy.append((process, batch))
            if done:  # written while the process is at the next batch
                yield done
        while busy:
            process, before = busy.popleft()
            yield before, _receive(process, before)


def _send(process: subprocess.Popen[bytes], message: object, batch: Sequence[Piece]) -> None:
    assert process.stdin is not None
    try:
        pickle.dump(message, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
    except OSError as error:
        raise _died(process, batch) from error


def _receive(process: subprocess.Popen[bytes], batch: Sequence[Piece]) -> list[npt.NDArray[Any]]:
    assert process.stdout is not None
    try:
        answer = pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError) as error:
        raise _died(process, batch) from error
    if isinstance(answer, str):
        raise UserError(f"{_where(batch)}: {answer}")
    return answer


def _died(process: subprocess.Popen[bytes], batch: Sequence[Piece]) -> UserError:
    status = process.wait()
    how = f"stopped with exit status {status}"
    if status < 0:
        how = f"was killed ({signal.Signals(-status).name}{', maybe for want of memory' if status == -9 else ''})"
    return UserError(
        f"{_where(batch)}: the process that was to tokenise it {how}; nothing is left half-written: start again, where "
        "memory is short with --corpus.workers 1"
    )


def _where(batch: Sequence[Piece]) -> str:
    files = list(dict.fromkeys(str(piece.file) for piece in batch if piece.file is not None))
    return f"{files[0]} to {files[-1]}" if len(files) > 1 else files[0] if files else "the text"


def _serve() -> None:
    """Tokenise what comes in until nothing more does; a mistake of the user's goes back as its line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller gets it too, and ends this process
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get among the answers
    try:
        tokenizer = pickle.load(source)
        while True:
            texts = pickle.load(source)
            answer: list[npt.NDArray[Any]] | str
            try:
                answer = [np.asarray(ids, token_dtype(tokenizer)) for ids in tokenizer.encode_batch(texts)]
            except UserError as error:
                answer = str(error)
            pickle.dump(answer, sink, protocol=pickle.HIGHEST_PROTOCOL)
            sink.flush()
    except (EOFError, BrokenPipeError):  # the caller has ended
        os._exit(0)


if __name__ == "__main__":
    _serve()
