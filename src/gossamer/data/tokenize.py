"""From text to files of tokens, once, in one process or in several.

An entry of the cache holds the token files of each part and, for all parts, `meta.json`. The entry is named after a
hash of everything that it depends on: the documents, the split, the tokenizer and the version of this format. So it is
never out of date, and is made again only if it is damaged.

Documents are tokenized chunk by chunk (`documents.MAX_CHUNK`). A word that straddles two chunks of a large document may
become other tokens than it would if the document was tokenized at once, but the text is the same to the byte, and the
result is the same in every run.

The tokenizer's own threads keep only a few cores busy, because what happens between two calls of it does not get faster
with more cores. So each core gets a process, which receives batches of text and returns ids. Each process has at most
one batch, so memory is bounded, and results are taken in the order of the batches, so they depend neither on the number
of processes nor on which of them is fast. The processes are programs of their own
(`python -m gossamer.data.tokenize`). They are not forked, which would copy the tokenizer's threads in whatever state
they are, and not spawned by `multiprocessing`, which would run the caller's main script again. They end when their
standard input does, so none of them outlives a caller that was killed.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gossamer.cache import cached_folder, json_digest
from gossamer.cores import usable_cores
from gossamer.data.config import CorpusConfig
from gossamer.data.corpus import Chunk
from gossamer.data.progress import ProgressDisplay
from gossamer.data.token_files import TokenFile, TokenFileMeta, TokenFileWriter, open_token_file, token_dtype
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.reading import read_json
from gossamer.units import decimal_size

__all__ = ["TokenizerProcesses", "open_or_tokenize"]

_FORMAT = 1
_BATCH = 1 << 22  # characters that all threads tokenize at once; the library's working memory is some 30 times that
_PROCESS_BATCH = 1 << 20  # characters that one process of several tokenizes at once
_MIN_PROCESS_BYTES = 4 << 20  # bytes of text that are worth a process of their own


def open_or_tokenize(
    config: CorpusConfig,
    *,
    digest: str,
    parts: Sequence[str],
    read: Callable[[], Iterator[Chunk]],
    num_bytes: int,
    tokenizer: Tokenizer,
    progress: ProgressDisplay,
) -> dict[str, TokenFile]:
    """Open the token files of a text, by part; tokenize the text first if the cache does not hold them.

    Args:
        config: gives the cache folder and the number of processes
        digest: hash of the text and its split
        parts: the parts that the text is split into
        read: yields the text
        num_bytes: UTF-8 bytes of the text
        tokenizer: the tokenizer of all parts
        progress: shows how far the tokenizing has come

    Raises:
        UserError: a part would hold no text, some text cannot be encoded, or a process or the disk fails.
    """
    fingerprint = json_digest(_FORMAT, digest, tokenizer.fingerprint)
    opened: dict[str, TokenFile] = {}

    def is_valid(folder: Path) -> bool:
        try:
            meta = read_json(folder / "meta.json", dict[str, TokenFileMeta])
            found = {part: open_token_file(folder, part, meta[part], fingerprint) for part in parts}
        except (OSError, ValueError, KeyError):  # not there, or not as this module writes it
            return False
        opened.update(found)
        return True

    def build(folder: Path) -> None:
        with progress.stage(f"tokenizing {decimal_size(num_bytes)}", num_bytes) as advance:
            meta = _tokenize(folder, parts, read(), num_bytes, tokenizer, config.workers, advance)
        (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

    folder = config.cache_folder() / "shards" / fingerprint  # the name that earlier versions gave the folder
    cached_folder(folder, is_valid, build)
    if not opened and not is_valid(folder):
        raise UserError(f"{folder}: vanished while it was being opened; start again")
    return opened


def _tokenize(
    folder: Path,
    parts: Sequence[str],
    chunks: Iterator[Chunk],
    num_bytes: int,
    tokenizer: Tokenizer,
    workers: int,
    advance: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    """Write the token files of each part into `folder`, and return what `meta.json` says about them."""
    writers = {part: TokenFileWriter(folder, part, tokenizer) for part in parts}
    workers = min(workers or usable_cores(), num_bytes // _MIN_PROCESS_BYTES)
    with ExitStack() as stack:
        for writer in writers.values():
            stack.enter_context(writer.file)
        encoded: Iterator[tuple[list[Chunk], Sequence[Sequence[int] | npt.NDArray[Any]]]]
        if workers > 1:
            encoded = stack.enter_context(TokenizerProcesses(tokenizer, workers)).encode(
                _batches(chunks, _PROCESS_BATCH)
            )
        else:
            encoded = (
                (batch, tokenizer.encode_batch([chunk.text for chunk in batch])) for batch in _batches(chunks, _BATCH)
            )
        for batch, ids_of_chunks in encoded:
            for chunk, ids in zip(batch, ids_of_chunks, strict=True):
                writers[chunk.part].add(chunk, ids)
            advance(sum(len(chunk.text.encode()) for chunk in batch))
        meta = {part: writer.finish() for part, writer in writers.items()}
    if sum(writer.num_bytes for writer in writers.values()) != num_bytes:
        raise UserError("the corpus changed while it was being read; start again when its files no longer change")
    for part, writer in writers.items():
        if len(writer.starts) == 1:
            raise UserError(
                f"the corpus is too small: its {num_bytes} bytes leave no text for {part}; give more with --data"
            )
    return meta


def _batches(chunks: Iterator[Chunk], size: int) -> Iterator[list[Chunk]]:
    """Yield lists of chunks with at least `size` characters together, of which only the last may have fewer."""
    batch: list[Chunk] = []
    length = 0
    for chunk in chunks:
        batch.append(chunk)
        length += len(chunk.text)
        if length >= size:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


EncodedBatch = tuple[list[Chunk], list[npt.NDArray[Any]]]


class TokenizerProcesses:
    """Processes that tokenize; as a context manager it ends them.

    Args:
        tokenizer: each process gets a copy of it
        count: the number of processes
    """

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        paths = [path or os.getcwd() for path in sys.path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-P", "-m", "gossamer.data.tokenize"]
        self._tokenizer: Tokenizer | None = tokenizer
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(count):
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
                self.processes.append(process)
        except OSError as error:
            self.__exit__()
            raise UserError(
                f"cannot start {count} processes to tokenize in ({error.strerror}); use fewer with --corpus.workers"
            ) from error

    def __enter__(self) -> TokenizerProcesses:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()  # closes the pipes

    def encode(self, batches: Iterable[list[Chunk]]) -> Iterator[EncodedBatch]:
        """Yield each batch with the ids of its chunks (uint16 or uint32), in the order of the batches.

        Raises:
            UserError: some text cannot be encoded, or a process died; the line names the file that it was working on.
        """
        if self._tokenizer is not None:
            for process in self.processes:
                _send(process, self._tokenizer, [])
            self._tokenizer = None
        idle = deque(self.processes)
        busy: deque[tuple[subprocess.Popen[bytes], list[Chunk]]] = deque()
        for batch in batches:
            done: EncodedBatch | None = None
            if not idle:
                process, before = busy.popleft()
                done = before, _receive(process, before)
                idle.append(process)
            process = idle.popleft()
            _send(process, [chunk.text for chunk in batch], batch)
            busy.append((process, batch))
            if done:  # the caller writes it while the process works on the next batch
                yield done
        while busy:
            process, before = busy.popleft()
            yield before, _receive(process, before)


def _send(process: subprocess.Popen[bytes], message: object, batch: Sequence[Chunk]) -> None:
    assert process.stdin is not None
    try:
        pickle.dump(message, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
    except OSError as error:
        raise _died(process, batch) from error


def _receive(process: subprocess.Popen[bytes], batch: Sequence[Chunk]) -> list[npt.NDArray[Any]]:
    assert process.stdout is not None
    try:
        answer = pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError) as error:
        raise _died(process, batch) from error
    if isinstance(answer, str):
        raise UserError(f"{_files_of(batch)}: {answer}")
    return answer


def _died(process: subprocess.Popen[bytes], batch: Sequence[Chunk]) -> UserError:
    status = process.wait()
    how = f"stopped with exit status {status}"
    if status < 0:
        how = f"was killed ({signal.Signals(-status).name}{', perhaps for lack of memory' if status == -9 else ''})"
    return UserError(
        f"{_files_of(batch)}: the process that tokenized it {how}; nothing is left half-written; start again, "
        "with --corpus.workers 1 if memory is short"
    )


def _files_of(batch: Sequence[Chunk]) -> str:
    files = list(dict.fromkeys(str(chunk.file) for chunk in batch if chunk.file is not None))
    return f"{files[0]} to {files[-1]}" if len(files) > 1 else files[0] if files else "the text"


def _run_process() -> None:
    """Tokenize what comes in on standard input until it ends; a mistake of the user goes back as its line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller gets it, too, and ends this process
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the answers
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
    _run_process()
