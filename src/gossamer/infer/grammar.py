"""Constrained decoding: which tokens may come next in text that must match a JSON schema, a regex or a grammar.

A grammar is compiled and followed in a process of its own, where it can do no harm (`isolated`, `grammar_worker`). If
one takes too long in an engine, its own text does not go on, and others notice nothing. While the model computes a
step, the process works out the tokens that may follow it.
"""

from __future__ import annotations

from collections import deque
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.grammar_worker import ENDED, MASK, SECONDS, prepare_matching
from gossamer.infer.request import Grammar
from gossamer.isolated import IsolatedWorkers, RefusedError, Worker, WorkerFailedError

__all__ = ["GrammarError", "Grammars", "Matcher"]

MAX_CHARACTERS = 256 << 10
"""The longest text of a grammar, in characters."""
COMPILE_SECONDS = 2.0
"""Processor time until the first token may be chosen, in seconds."""
TOKEN_SECONDS = 0.25
"""Processor time for every further token, in seconds."""
MEMORY = 256 << 20
"""Memory of a worker beyond the vocabulary, in bytes."""
QUICK_SECONDS = 0.02
"""A grammar that takes longer for a token is not waited for: its text goes on when the answer is there."""


class GrammarError(UserError):
    """The error of a grammar that cannot be used, or not any further; whoever wrote it has to mend it."""


class Grammars:
    """The maker of matchers for a tokenizer; several threads may use it.

    Args:
        tokenizer: its tokens are allowed or forbidden
        vocab_size: the model's number of tokens, not less than the tokenizer's
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size

    @cached_property
    def _processes(self) -> IsolatedWorkers:
        return IsolatedWorkers(prepare_matching, self._tokenizer, self._vocab_size, memory=MEMORY)

    def matcher(self, grammar: Grammar) -> Matcher:
        """Make a matcher at the beginning of a text.

        Raises:
            GrammarError: the grammar cannot be read, or takes more time or memory than it may.
        """
        if len(grammar.text) > MAX_CHARACTERS:
            raise GrammarError(
                f"grammar: {grammar.kind} of {len(grammar.text):,} characters is too long; "
                f"at most {MAX_CHARACTERS:,} are accepted"
            )
        try:
            text = f"{grammar.kind}\n{grammar.text}".encode()
        except UnicodeEncodeError as error:
            raise GrammarError(
                f"grammar: {grammar.kind} holds half of a surrogate pair, which is no character; leave it out"
            ) from error
        try:
            worker = self._processes.worker()
            worker.send(text, COMPILE_SECONDS)
            worker.send(MASK, COMPILE_SECONDS)
            return Matcher(worker, self._vocab_size)
        except (RefusedError, WorkerFailedError) as error:
            raise GrammarError(f"grammar: {grammar.kind} cannot be used: {error}") from error


class Matcher:
    """The position of a text in its grammar.

    Args:
        worker: it has been asked to read the grammar, and for the tokens that may come first
        vocab_size: the model's number of tokens

    Raises:
        RefusedError: the worker cannot read the grammar.
        WorkerFailedError: the worker has reached a limit or crashed.
    """

    def __init__(self, worker: Worker, vocab_size: int) -> None:
        self._worker, self._vocab_size = worker, vocab_size
        self._unread = deque([self._read_end, self._read_mask])  # answers of the worker that have not been read
        self._has_ended = False
        self._mask = np.zeros(vocab_size, bool)
        self._is_quick = True
        self._failure: GrammarError | None = None
        while self._unread:
            self._unread.popleft()()

    @property
    def is_ready(self) -> bool:
        """Whether it is known what may come next, or will be known at once."""
        while self._unread and not self._is_quick and self._worker.has_answered():
            self._read()
        return self._is_quick or not self._unread

    @property
    def is_quick(self) -> bool:
        """Whether the last answer came at once."""
        return self._is_quick

    def allowed(self) -> Tensor:
        """Return which tokens may come next, [V] bool.

        Raises:
            GrammarError: that cannot be found out within the limits.
        """
        self._read_all()
        return torch.from_numpy(self._mask)

    def consume(self, token: int) -> None:
        """Append a token to the text.

        Raises:
            ValueError: the grammar does not allow the token.
            GrammarError: that cannot be found out within the limits.
        """
        self._read_all()
        if not self._mask[token]:
            raise ValueError(f"token {token} breaks the grammar")
        if self._has_ended:
            return  # the end of text, the only token that may come now
        try:
            self._worker.send(b"%d" % token, TOKEN_SECONDS)
            self._worker.send(MASK, TOKEN_SECONDS)
        except WorkerFailedError as error:
            raise GrammarError(f"grammar: {error}") from error
        self._unread += self._read_end, self._read_mask

    @property
    def has_ended(self) -> bool:
        """Whether nothing more may come; of a grammar that is not quick this may be known only at the next token."""
        if len(self._unread) == 2 and self._is_quick:
            self._read()
        return self._has_ended

    def fileno(self) -> int:
        """Return a file descriptor to wait on, with others, for the worker's next answer."""
        return self._worker.fileno()

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def _read_all(self) -> None:
        while self._unread:
            self._read()
        if self._failure is not None:
            raise self._failure

    def _read(self) -> None:
        """Read the worker's next answer; a failure is raised when the tokens are asked for."""
        try:
            self._unread.popleft()()
        except (RefusedError, WorkerFailedError) as error:
            self._unread.clear()
            self._failure = GrammarError(f"grammar: {error}")
            self._failure.__cause__ = error

    def _read_end(self) -> None:
        self._has_ended = self._worker.receive() == ENDED

    def _read_mask(self) -> None:
        answer = self._worker.receive()
        (seconds,) = SECONDS.unpack_from(answer)
        self._is_quick = seconds <= QUICK_SECONDS
        bits = np.unpackbits(np.frombuffer(answer, np.uint8, offset=SECONDS.size), bitorder="little")
        self._mask = np.zeros(self._vocab_size, bool)
        self._mask[: len(bits)] = bits[: self._vocab_size]
