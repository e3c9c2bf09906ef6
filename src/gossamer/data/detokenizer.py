"""Tokens to text, one at a time, with exactly the result of the `tokenizers` library for all of them together.

The library decodes a whole list of tokens through a chain of decoders: byte-level alphabet, byte fallback, spaces of
SentencePiece, and so on. Here each decoder is a small state machine. It passes on what no later token can change and
holds back the rest, so a text of n tokens takes time in proportion to n, and every character is shown as soon as it is
certain. What a decoder does to a single token is left to the library itself. The library's own `DecodeStream` raises
for some sequences of bytes, differs from its `decode` for others, and takes quadratic time for broken characters.
"""

from __future__ import annotations

import codecs
import functools
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from tokenizers import decoders, pre_tokenizers

__all__ = ["Detokenizer", "byte_alphabet", "decoder_steps", "token_bytes_of"]

REPLACEMENT = "\ufffd"
# The library parses the two digits with Rust's `u8::from_str_radix`, which also accepts a plus sign.
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


class Step:
    """One decoder of a chain, which receives one token at a time.

    Attributes:
        held_before: how many of the characters that the step holds back come before the token that was pushed last
    """

    held_before = 0

    def push(self, token: str) -> Iterable[str]:
        """Return the strings that are certain after this token."""
        raise NotImplementedError

    def finish(self) -> Iterable[str]:
        """Return the strings that were held back until the end."""
        return ()


class Detokenizer:
    """Decodes tokens, as the vocabulary spells them, one by one.

    Args:
        spec: the `decoder` of a tokenizer.json; None if it has none, in which case tokens are joined by spaces

    Attributes:
        token_start: the character of the text at which the token that was pushed last begins. It is exact for
            byte-level tokenizers. With byte fallback a run of bytes counts as valid until it turns out not to be
    """

    def __init__(self, spec: dict[str, Any] | None) -> None:
        self._steps = _make_steps(spec)
        self._num_shown = 0
        self.token_start = 0

    def push(self, token: str) -> str:
        """Return the text that `token` makes certain."""
        text = self._run([token], 0)
        self.token_start = self._num_shown + sum(step.held_before for step in self._steps)
        self._num_shown += len(text)
        return text

    def skip(self) -> None:
        """Note a token that is not part of the text."""
        self.token_start = self._num_shown

    def finish(self) -> str:
        """Return the text that was still held back."""
        text = ""
        for index, step in enumerate(self._steps):
            text += self._run(step.finish(), index + 1)
        self._num_shown += len(text)
        return text

    def _run(self, strings: Iterable[str], first_step: int) -> str:
        for step in self._steps[first_step:]:
            strings = [decoded for string in strings for decoded in step.push(string)]
        return "".join(strings)


def decoder_steps(spec: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the decoders of a chain in a flat list, without nested sequences."""
    if spec is None:
        return []
    if spec["type"] == "Sequence":
        return [step for part in spec["decoders"] for step in decoder_steps(part)]
    return [spec]


def token_bytes_of(spec: dict[str, Any] | None) -> Callable[[str], bytes]:
    """Return a function that gives the bytes which a token adds in the middle of a text.

    Args:
        spec: the `decoder` of a tokenizer.json, or None
    """
    steps = decoder_steps(spec)
    byte_step = next((i for i, step in enumerate(steps) if step["type"] in ("ByteLevel", "ByteFallback")), None)
    kind = None if byte_step is None else steps[byte_step]["type"]
    before = [_library_decoder(step) for step in steps[: byte_step or 0]]
    whole = None if spec is None else _library_decoder(spec)

    def decode(*tokens: str) -> str:
        return " ".join(tokens) if whole is None else whole.decode(list(tokens))

    # The token stands between two others, because a chain may treat the first and the last one differently.
    start = decode("x")
    end = decode("x", "y")[len(start) :]

    def bytes_of(token: str) -> bytes:
        if kind is not None:
            spelled = token
            for step in before:
                spelled = step.decode([spelled])
            if kind == "ByteLevel":
                return byte_level_bytes(spelled)
            if found := _BYTE_TOKEN.fullmatch(spelled):
                return bytes([int(found[1], 16)])
        text = decode("x", token, "y")
        return text[len(start) : len(text) - len(end)].encode()

    return bytes_of


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of the byte-level alphabet stands for.

    Printable bytes of Latin-1 are their own characters; the others are the characters from U+0100 on, in order.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own = {character: ord(character) for character in alphabet if ord(character) < 256}
    rest = sorted(set(range(256)) - set(own.values()))
    return own | {chr(256 + number): byte for number, byte in enumerate(rest)}


def byte_level_bytes(token: str) -> bytes:
    """Return the bytes of a token in the byte-level alphabet; for any other token, its own UTF-8."""
    alphabet = byte_alphabet()
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:
        return token.encode()


def _make_steps(spec: dict[str, Any] | None) -> list[Step]:
    if spec is None:
        return [_JoinedBySpaces()]
    steps: list[Step] = []
    rest = decoder_steps(spec)
    while rest:
        step, rest = rest[0], rest[1:]
        kind = step["type"]
        if kind == "ByteLevel":
            steps.append(_ByteLevel())
        elif kind == "ByteFallback":
            steps.append(_ByteFallback())
        elif kind == "Replace":
            steps.append(_EachToken(step))
        elif kind in ("Metaspace", "WordPiece"):
            steps.append(_FirstDiffers(step))
        elif kind == "BPEDecoder":
            steps.append(_LastDiffers(step))
        elif kind == "CTC":
            steps.append(_WithoutRepeats(step))
        elif kind == "Strip":
            steps.append(_StripEach(step))
        elif kind != "Fuse":
            return [*steps, _WholeList([step, *rest])]
        if kind in ("ByteLevel", "Fuse"):
            return [*steps, *_steps_on_one_string(rest)]
    return steps


def _steps_on_one_string(rest: list[dict[str, Any]]) -> list[Step]:
    """The steps after one that has joined all tokens: parts of one string pass through them."""
    steps: list[Step] = []
    for index, step in enumerate(rest):
        if step["type"] == "Strip":
            steps.append(_StripWhole(step))
        elif step["type"] != "Fuse":
            return [*steps, _WholeText(rest[index:])]
    return steps


def _library_decoder(spec: dict[str, Any]) -> Any:
    """The library's decoder for a part of a tokenizer.json."""
    decoder = decoders.Fuse()
    decoder.__setstate__(json.dumps(spec).encode())
    return decoder


class _JoinedBySpaces(Step):
    """Joins tokens by spaces."""

    def __init__(self) -> None:
        self._first = True

    def push(self, token: str) -> Iterable[str]:
        text, self._first = (token if self._first else " " + token), False
        return (text,)


class _ByteLevel(Step):
    """Decodes tokens of bytes, several of which may make one character; returns parts of one string."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = b""

    def push(self, token: str) -> Iterable[str]:
        new = byte_level_bytes(token)
        self.held_before = int(bool(self._pending and new) and not _is_prefix(self._pending + new[:1]))
        text = self._decoder.decode(new)
        self._pending = self._decoder.getstate()[0]
        if self._pending and not _is_prefix(self._pending):  # Python waits for the third byte of half a surrogate pair
            text += self._pending.decode(errors="replace")
            self._pending = b""
            self._decoder.reset()
        return (text,) if text else ()

    def finish(self) -> Iterable[str]:
        text = self._decoder.decode(b"", final=True)
        self._pending, self.held_before = b"", 0
        return (text,) if text else ()


def _is_prefix(data: bytes) -> bool:
    """Whether `data` is valid UTF-8 or the beginning of it."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


class _ByteFallback(Step):
    """Decodes runs of tokens `<0xE6>`: text if the whole run is valid UTF-8, else U+FFFD for every byte of it.

    A run that is valid so far is held back, because a single byte can still invalidate all of it.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._run, self._characters, self._broken = bytearray(), 0, False
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def push(self, token: str) -> Iterable[str]:
        found = _BYTE_TOKEN.fullmatch(token)
        if found is None:
            strings = [*self.finish(), token]
            self.held_before = sum(map(len, strings[:-1]))
            return strings
        self.held_before = self._characters
        if self._broken:
            return (REPLACEMENT,)
        self._run.append(int(found[1], 16))
        try:
            self._characters += len(self._decoder.decode(self._run[-1:]))
        except UnicodeDecodeError:
            broken, self._broken = len(self._run), True
            self.held_before, self._characters = broken - 1, 0
            self._run.clear()
            return [REPLACEMENT] * broken
        return ()

    def finish(self) -> Iterable[str]:
        run, whole = bytes(self._run), not self._decoder.getstate()[0]
        self._reset()
        self.held_before = 0
        if not run:
            return ()
        return (run.decode(),) if whole else [REPLACEMENT] * len(run)


class _EachToken(Step):
    """A decoder that treats all tokens alike."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._decoder = _library_decoder(spec)

    def push(self, token: str) -> Iterable[str]:
        return (self._decoder.decode([token]),)


class _FirstDiffers(Step):
    """A decoder that treats the first token differently: it adds no space before it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._decoder, self._before = _library_decoder(spec), list[str]()

    def push(self, token: str) -> Iterable[str]:
        text = self._decoder.decode([*self._before, token])
        self._before = [""]
        return (text,)


class _LastDiffers(Step):
    """A decoder that treats the last token differently, so the newest token is held back."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._decoder = _library_decoder(spec)
        self._held: str | None = None

    def push(self, token: str) -> Iterable[str]:
        text = None if self._held is None else self._decoder.decode([self._held, ""])
        self._held, self.held_before = token, len(text or "")
        return () if text is None else (text,)

    def finish(self) -> Iterable[str]:
        held, self._held, self.held_before = self._held, None, 0
        return () if held is None else (self._decoder.decode([held]),)


class _WithoutRepeats(Step):
    """Decodes CTC, where a token that equals the one before adds nothing, nor does one without text."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._decoder = _library_decoder(spec)
        self._last: str | None = None

    def push(self, token: str) -> Iterable[str]:
        text = "" if token == self._last else self._decoder.decode([token])
        self._last = token
        return (text,) if text else ()


class _StripEach(Step):
    """Strips every token, before they are joined."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._content, self._start, self._stop = spec["content"], spec["start"], spec["stop"]

    def push(self, token: str) -> Iterable[str]:
        begin = _num_leading(token, self._content, self._start)
        end = len(token) - _num_leading(token[::-1], self._content, self._stop)
        return (token[begin:end],)


class _StripWhole(Step):
    """Strips the beginning and the end of the text, after tokens were joined."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._content, self._start, self._stop = spec["content"], spec["start"], spec["stop"]
        self._tail = ""  # what is stripped if it is the end of the text

    def push(self, token: str) -> Iterable[str]:
        cut = _num_leading(token, self._content, self._start)
        self._start = self._start - cut if cut == len(token) else 0
        text = self._tail + token[cut:]
        held = _num_leading(text[::-1], self._content, self._stop)
        self._tail, self.held_before = text[len(text) - held :], len(self._tail)
        return (text[: len(text) - held],)

    def finish(self) -> Iterable[str]:
        self._tail, self.held_before = "", 0
        return ()


def _num_leading(text: str, character: str, max_count: int) -> int:
    """How often `character` is repeated at the beginning of `text`, counted up to `max_count`."""
    head = text[:max_count]
    return len(head) - len(head.lstrip(character))


class _WholeList(Step):
    """Decoders that are unknown here: they get all tokens at the end."""

    def __init__(self, specs: list[dict[str, Any]]) -> None:
        self._decoder = _library_decoder({"type": "Sequence", "decoders": specs})
        self._tokens: list[str] = []

    def push(self, token: str) -> Iterable[str]:
        self.held_before += len(self._tokens[-1]) if self._tokens else 0
        self._tokens.append(token)
        return ()

    def finish(self) -> Iterable[str]:
        tokens, self._tokens, self.held_before = self._tokens, [], 0
        return (self._decoder.decode(tokens),) if tokens else ()


class _WholeText(_WholeList):
    """Decoders that follow one which has joined all tokens, and that need the whole string."""

    def finish(self) -> Iterable[str]:
        self._tokens = ["".join(self._tokens)] if self._tokens else []
        return super().finish()
