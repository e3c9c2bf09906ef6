"""Text that must match a JSON schema, a regular expression or a grammar: which tokens may come next.

A grammar is compiled and followed in a process of its own, where it can do no harm (``isolated``, ``matching``): in an
engine, all that others notice of one that takes too long is that its own text does not go on. While the model computes
a step, the process works out the tokens that may follow it.
"""

from __future__ import annotations

from collections import deque
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.isolated import Exhausted, Isolated, Refused, Worker
from gossamer.infer.matching import ENDED, HEAD, MASK, matching
from gossamer.infer.request import Grammar

__all__ = ["GrammarError", "Grammars", "Matcher"]

LONGEST = 256 << 10
"""Characters of a grammar's text."""
COMPILING = 2.0
"""Seconds of the processor's time until the first token may be chosen."""
A_TOKEN = 0.25
"""Seconds of the processor's time for every further token."""
MEMORY = 256 << 20
"""Bytes, beyond the vocabulary."""
QUICK = 0.02
"""Seconds: a grammar that takes more for a token is not waited for, its text goes on when the answer is there."""


class GrammarError(UserError):
    """A grammar cannot be used, or not any further: whose text it is has to mend it."""


class Grammars:
    """Makes matchers for a tokenizer. May be used by several threads.

    Args:
        tokenizer: whose tokens are to be allowed or forbidden
        vocab_size: of the model, at least the tokenizer's
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size

    @cached_property
    def _processes(self) -> Isolated:
        return Isolated(matching, self._tokenizer, self._vocab_size, memory=MEMORY)

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of a text.

        Raises:
            GrammarError: the grammar cannot be read, or takes more time or memory than it may.
        """
        if len(grammar.text) > LONGEST:
            raise GrammarError(
                f"grammar: {grammar.kind} of {len(grammar.text):,} characters is too long; {LONGEST:,} are taken"
            )
        try:
            text = f"{grammar.kind}\n{grammar.text}".encode()
        except UnicodeEncodeError as error:
            raise GrammarError(
                f"grammar: {grammar.kind} holds half of a surrogate pair, which is no character; leave it out"
            ) from error
        try:
            worker = self._processes.worker()
            worker.send(text, COMPILING)
            worker.send(MASK, COMPILING)
            return Matcher(worker, self._vocab_size)
        except (Refused, Exhausted) as error:
            raise GrammarError(f"grammar: {grammar.kind} cannot be used: {error}") from error


class Matcher:
    """Where a text is in its grammar.

    Args:
        worker: that has been asked to read the grammar, and for the tokens that may come first
        vocab_size: of the model

    Raises:
        Refused, Exhausted: by the worker.
    """

    def __init__(self, worker: Worker, vocab_size: int) -> None:
        self._worker, self._vocab_size = worker, vocab_size
        self._owed = deque([self._read_end, self._read_mask])  # answers of the worker that have not been read
        self._ended = False
        self._mask = np.zeros(vocab_size, bool)
        self._quick = True
        self._failure: GrammarError | None = None
        while self._owed:
            self._owed.popleft()()

    @property
    def ready(self) -> bool:
        """Whether it is known what may come next, or will be in no time."""
        while self._owed and not self._quick and self._worker.answered():
            self._read()
        return self._quick or not self._owed

    @property
    def quick(self) -> bool:
        """Whether the last answer was there in no time."""
        return self._quick

    def allowed(self) -> Tensor:
        """Which tokens may come next, [V] of bool.

        Raises:
            GrammarError: it cannot be told within the limits.
        """
        self._read_all()
        return torch.from_numpy(self._mask)

    def consume(self, token: int) -> None:
        """Go on by a token.

        Raises:
            ValueError: the grammar does not allow it.
            GrammarError: it cannot be told within the limits.
        """
        self._read_all()
        if not self._mask[token]:
            raise ValueError(f"token {token} breaks the grammar")
        if self._ended:
            return  # by the end of text, which alone may come now
        try:
            self._worker.send(b"%d" % token, A_TOKEN)
            self._worker.send(MASK, A_TOKEN)
        except Exhausted as error:
            raise GrammarError(f"grammar: {error}") from error
        self._owed += self._read_end, self._read_mask

    @property
    def ended(self) -> bool:
        """Whether nothing more may come; with a grammar that is not quick it may be known only at the next token."""
        if len(self._owed) == 2 and self._quick:
            self._read()
        return self._ended

    def fileno(self) -> int:
        """To wait with others for what the worker says next."""
        return self._worker.fileno()

    def close(self) -> None:
        """Nothing more is asked."""
        self._worker.close()

    def _read_all(self) -> None:
        while self._owed:
            self._read()
        if self._failure is not None:
            raise self._failure

    def _read(self) -> None:
        """Take in the next answer that the worker owes; what went wrong is told when its tokens are asked for."""
        try:
            self._owed.popleft()()
        except (Refused, Exhausted) as error:
            self._owed.clear()
            self._failure = GrammarError(f"grammar: {error}")
            self._failure.__cause__ = error

    def _read_end(self) -> None:
        self._ended = self._worker.receive() == ENDED

    def _read_mask(self) -> None:
        answer = self._worker.receive()
        (seconds,) = HEAD.unpack_from(answer)
        self._quick = seconds <= QUICK
        bits = np.unpackbits(np.frombuffer(answer, np.uint8, offset=HEAD.size), bitorder="little")
        self._mask = np.zeros(self._vocab_size, bool)
        self._mask[: len(bits)] = bits[: self._vocab_size]
