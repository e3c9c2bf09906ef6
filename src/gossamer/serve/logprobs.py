"""The engine's log-probabilities in OpenAI's two forms.

A token that is a part of a character has no text of its own. It is written by its bytes, as OpenAI writes it:
`\\xe6\\x97` in a chat's answer, `bytes:\\xe6\\x97` in a completion's. So U+FFFD stands for the character U+FFFD alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.data.tokenizer import TextStream, Tokenizer
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
            bytes=list(_bytes(tokenizer, token.token)),
            top_logprobs=[
                Logprob(token=_text(tokenizer, index), logprob=logprob, bytes=list(_bytes(tokenizer, index)))
                for index, logprob in token.top
            ],
        )
        for token in told
    ]


def completion_logprobs(
    tokenizer: Tokenizer, told: Sequence[TokenLogprobs], offset: int, stream: TextStream | None = None
) -> CompletionsLogprobs:
    """Parallel lists over the tokens.

    Args:
        tokenizer: of the model.
        told: the tokens of an answer, or of a part of it.
        offset: characters before the answer.
        stream: what has decoded the answer's tokens before these; it is moved on. None: these are the first.
    """
    stream = tokenizer.stream() if stream is None else stream
    offsets = []
    for token in told:
        stream.push(token.token)
        offsets.append(offset + stream.token_start)
    top = [_by_text(tokenizer, token.top) for token in told]
    return CompletionsLogprobs(
        tokens=[_text(tokenizer, token.token, "bytes:") for token in told],
        token_logprobs=[token.logprob for token in told],
        top_logprobs=top if any(top) else None,
        text_offset=offsets,
    )


def _by_text(tokenizer: Tokenizer, top: Sequence[tuple[int, float]]) -> dict[str, float]:
    """Log-probabilities by the tokens' texts. Of two tokens with the same text the likelier one keeps it.

    The other one is named by its id, in the form that vLLM has for that.
    """
    found: dict[str, float] = {}
    for index, logprob in sorted(top, key=lambda one: -one[1]):
        text = _text(tokenizer, index, "bytes:")
        found[f"token_id:{index}" if text in found else text] = logprob
    return found


def _text(tokenizer: Tokenizer, token: int, prefix: str = "") -> str:
    data = _bytes(tokenizer, token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in data)


def _bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """What a token stands for; nothing for one that the network has and the tokenizer does not."""
    return tokenizer.token_byte_values[token] if token < tokenizer.vocab_size else b""
