"""Text that must match a JSON schema, a regular expression or a grammar: which tokens may come next (llguidance)."""

from __future__ import annotations

from functools import cached_property

import llguidance
import numpy as np
import torch
from torch import Tensor

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.request import Grammar

_ANY_OBJECT = '{"type": "object"}'


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eot_id
        self.bos_token_id = None
        self.tokens = tokenizer.pieces
        self.special_token_ids = tokenizer.special_ids
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("text, not bytes")  # so that llguidance gives text
        return self._tokenizer.encode(text)


class Grammars:
    """Makes matchers for a tokenizer.

    Args:
        tokenizer: whose tokens are to be allowed or forbidden
        vocab_size: of the model, at least the tokenizer's
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size

    @cached_property
    def _vocabulary(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer)), n_vocab=self._vocab_size
        )

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of a text.

        Raises:
            UserError: the grammar cannot be read.
        """
        make = llguidance.LLMatcher
        try:
            if grammar.kind == "regex":
                text = make.grammar_from_regex(grammar.text)
            elif grammar.kind == "lark":
                text = make.grammar_from_lark(grammar.text)
            else:
                schema = grammar.text if grammar.kind == "json_schema" else _ANY_OBJECT
                text = make.grammar_from_json_schema(schema)
            matcher = make(self._vocabulary, text, log_level=0)
            error = matcher.get_error() if matcher.is_error() else ""
        except ValueError as failure:
            error = str(failure)
        if error:
            raise UserError(f"grammar: {grammar.kind} cannot be used: {' '.join(error.split())[:300]}")
        return Matcher(matcher, self._vocab_size)


class Matcher:
    """Where a text is in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> Tensor:
        """Which tokens may come next, [V] of bool."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(bool)
        return torch.from_numpy(np.pad(mask, (0, self._vocab_size - len(mask))))

    def consume(self, token: int) -> None:
        """Go on by a token.

        Raises:
            ValueError: the grammar does not allow it.
        """
        if not self._matcher.consume_token(token):
            raise ValueError(f"token {token} breaks the grammar: {self._matcher.get_error()}")

    @property
    def ended(self) -> bool:
        """Whether nothing more may come."""
        return bool(self._matcher.is_stopped())
