"""The work of a grammar's own process (see `isolated`): llguidance, which says which tokens may come next.

Every grammar has a process, so nothing heavy is imported here.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import llguidance

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import shorten
from gossamer.isolated import Handler, RefusedError

__all__ = ["ENDED", "MASK", "SECONDS", "prepare_matching"]

SECONDS = struct.Struct("<d")
"""How the answer with a mask begins: the seconds that it took. The mask follows, a bit a token."""
ENDED, GOES_ON = b"e", b"g"
"""The answers to a grammar and to a token: whether nothing more may come."""
MASK = b""
"""The question for the tokens that may come next."""
_ANY_OBJECT = '{"type": "object"}'


def prepare_matching(tokenizer: Tokenizer, vocab_size: int) -> Callable[[], Handler]:
    """Prepare a vocabulary.

    Args:
        tokenizer: its tokens are allowed or forbidden; text that a grammar forces is allowed as it splits it into
            tokens
        vocab_size: the model's number of tokens, not less than the tokenizer's

    Returns:
        A function that makes the handler of one text. The handler takes the kind and the text of the grammar, in two
        lines, then ids of tokens as `str`, each of which it appends to the text, and `MASK`.
    """
    wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
    vocabulary = llguidance.LLTokenizer(wrapper, n_vocab=vocab_size)
    vocabulary.tokenize_str("a")  # what it does on first use is done before the first fork

    def begin() -> Handler:
        matcher: llguidance.LLMatcher | None = None

        def handle(message: bytes) -> bytes:
            nonlocal matcher
            if matcher is None:
                kind, _, text = message.partition(b"\n")
                matcher = _compile(vocabulary, kind.decode(), text.decode())
            elif message == MASK:
                return _mask(matcher)
            elif not matcher.consume_token(int(message)):
                raise RefusedError(_in_one_line(matcher.get_error()))
            return ENDED if matcher.is_stopped() else GOES_ON

        return handle

    return begin


def _mask(matcher: llguidance.LLMatcher) -> bytes:
    start = time.perf_counter()
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        raise RefusedError(_in_one_line(matcher.get_error()))
    return SECONDS.pack(time.perf_counter() - start) + mask


def _compile(vocabulary: llguidance.LLTokenizer, kind: str, text: str) -> llguidance.LLMatcher:
    make = llguidance.LLMatcher
    try:
        if kind == "regex":
            grammar = make.grammar_from_regex(text)
        elif kind == "lark":
            grammar = make.grammar_from_lark(text)
        else:
            grammar = make.grammar_from_json_schema(text if kind == "json_schema" else _ANY_OBJECT)
        limits = llguidance.LLParserLimits(verbose_errors=False)
        matcher = make(vocabulary, grammar, log_level=0, limits=limits)
    except ValueError as error:
        raise RefusedError(_in_one_line(str(error))) from error
    if matcher.is_error():
        raise RefusedError(_in_one_line(matcher.get_error()))
    return matcher


def _in_one_line(error: str) -> str:
    error = error.split("<backtrace>")[0].replace("<non-verbose/>", "")
    if error.startswith("panic:"):
        return "it is more than the library for grammars can hold"
    return shorten(error, 300)


class _Vocabulary:
    """A tokenizer with the attributes that llguidance reads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eot_id
        self.bos_token_id = None
        self.tokens = tokenizer.token_byte_values
        self.special_token_ids = tokenizer.special_ids
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("text, not bytes")  # so that llguidance gives text
        return self._tokenizer.encode(text)
