"""The engine's log-probabilities in OpenAI's two forms."""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.data.tokenizer import Tokenizer
from gossamer.infer.request import TokenLogprobs
from gossamer.serve.wire.base import Logprob
from gossamer.serve.wire.chat import TokenLogprob
from gossamer.serve.wire.completions import CompletionsLogprobs

__all__ = ["chat_logprobs", "completion_logprobs"]


def chat_logprobs(tokenizer: Tokenizer, told: Sequence[TokenLogprobs]) -> list[TokenLogprob]:
    """A list with each token of an answer, the alternatives with it."""
    return [
        TokenLogprob(
            token=_text(tokenizer, token.token),
            logprob=token.logprob,
            bytes=_bytes(tokenizer, token.token),
            top_logprobs=[
                Logprob(token=_text(tokenizer, index), logprob=logprob, bytes=_bytes(tokenizer, index))
                for index, logprob in token.top
            ],
        )
        for token in told
    ]


def completion_logprobs(tokenizer: Tokenizer, told: Sequence[TokenLogprobs], offset: int) -> CompletionsLogprobs:
    """Parallel lists over the tokens.

    Args:
        offset: where in the text the first token begins (characters).
    """
    tokens = [_text(tokenizer, token.token) for token in told]
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    top = [{_text(tokenizer, index): logprob for index, logprob in token.top} for token in told]
    return CompletionsLogprobs(
        tokens=tokens,
        token_logprobs=[token.logprob for token in told],
        top_logprobs=top if any(top) else None,
        text_offset=offsets,
    )


def _text(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode([token], special=True)


def _bytes(tokenizer: Tokenizer, token: int) -> list[int] | None:
    """None for a piece of a character, whose text says nothing of its bytes."""
    text = _text(tokenizer, token)
    return None if "\ufffd" in text else list(text.encode())
