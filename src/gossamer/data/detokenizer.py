"""Tokens to text one at a time, giving exactly what the `tokenizers` library makes of all of them together.

The library decodes a whole list of tokens through a chain of decoders: byte-level alphabet, byte fallback, spaces of
SentencePiece, and so on. Each decoder is a small state machine here. It passes on what no later token can change and
holds back the rest, so that a text of n tokens takes time in proportion to n and every character is shown as soon as
it is certain. What a decoder does to one token is left to the library itself. The library's own `DecodeStream` raises
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
# The library parses the two digits with Rust's `u8::from_str_radix`, which also takes a plus sign.
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


class Step:
    """One decoder of a chain, fed token by token.

    Attributes:
        begins: how many of the characters that the step holds back come before the token that was pushed last.
    """

    begins = 0

    def push(self, token: str) -> Iterable[str]:
        """The strings that are certain now."""
        raise NotImplementedError

    def finish(self) -> Iterable[str]:
        """The strings that were held back until the end."""
        return ()


class Detokenizer:
    """Decodes tokens, given as the vocabulary spells them, one by one.

    Args:
        spec: `decoder` of a tokenizer.json; None where it has none, and tokens are joined by spaces.

    Attributes:
        begins: the character of the text at which the token that was pushed last begins. It is exact for byte-level
            tokenizers. With byte fallback it takes a run of bytes to be valid until the run proves not to be.
    """

    def __init__(self, spec: dict[str, Any] | None) -> None:
        self._steps = _make_steps(spec)
        self._shown = 0
        self.begins = 0

    def push(self, token: str) -> str:
        """The text that `token` makes certain."""
        text = self._run([token], 0)
        self.begins = self._shown + sum(step.begins for step in self._steps)
        self._shown += len(text)
        return text

    def skip(self) -> None:
        """Note a token that is no part of the text."""
        self.begins = self._shown

    def finish(self) -> str:
        """The text that was still held back."""
        text = ""
        for place, step in enumerate(self._steps):
            text += self._run(step.finish(), place + 1)
        self._shown += len(text)
        return text

    def _run(self, strings: Iterable[str], place: int) -> str:
        for step in self._steps[place:]:
            strings = [made for string in strings for made in step.push(string)]
        return "".join(strings)


def decoder_steps(spec: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The decoders of a chain one after another, sequences taken apart."""
    if spec is None:
        return []
    if spec["type"] == "Sequence":
        return [step for part in spec["decoders"] for step in decoder_steps(part)]
    return [spec]


def token_bytes_of(spec: dict[str, Any] | None) -> Callable[[str], bytes]:
    """A function that gives the bytes which a token adds in the middle of a text.

    Args:
        spec: `decoder` of a tokenizer.json, or None.
    """
    steps = decoder_steps(spec)
    at = next((place for place, step in enumerate(steps) if step["type"] in ("ByteLevel", "ByteFallback")), None)
    kind = None if at is None else steps[at]["type"]
    before = [_library(step) for step in steps[: at or 0]]
    whole = None if spec is None else _library(spec)

    def decode(*tokens: str) -> str:
        return " ".join(tokens) if whole is None else whole.decode(list(tokens))

    # Between two tokens, since a chain may treat the first and the last one of a text differently.
    start = decode("x")
    end = decode("x", "y")[len(start) :]

    def bytes_of(token: str) -> bytes:
        if kind is not None:
            spelt = token
            for step in before:
                spelt = step.decode([spelt])
            if kind == "ByteLevel":
                return byte_level_bytes(spelt)
            if found := _BYTE_TOKEN.fullmatch(spelt):
                return bytes([int(found[1], 16)])
        text = decode("x", token, "y")
        return text[len(start) : len(text) - len(end)].encode()

    return bytes_of


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """The byte that each character of the byte-level alphabet stands for.

    Printable bytes of Latin-1 are their own characters; the others, in order, are those from U+0100 on.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own = {character: ord(character) for character in alphabet if ord(character) < 256}
    rest = sorted(set(range(256)) - set(own.values()))
    return own | {chr(256 + number): byte for number, byte in enumerate(rest)}


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a token that is spelt in the byte-level alphabet; of any other token its own UTF-8."""
    alphabet = byte_alphabet()
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:
        return token.encode()


def _make_steps(spec: dict[str, Any] | None) -> list[Step]:
    if spec is None:
        return [_JoinedBySpaces()]
    made: list[Step] = []
    rest = decoder_steps(spec)
    while rest:
        step, rest = rest[0], rest[1:]
        kind = step["type"]
        if kind == "ByteLevel":
            made.append(_ByteLevel())
        elif kind == "ByteFallback":
            made.append(_ByteFallback())
        elif kind == "Replace":
            made.append(_EachToken(step))
        elif kind in ("Metaspace", "WordPiece"):
            made.append(_FirstDiffers(step))
        elif kind == "BPEDecoder":
            made.append(_LastDiffers(step))
        elif kind == "CTC":
            made.append(_WithoutRepeats(step))
        elif kind == "Strip":
            made.append(_StripEach(step))
        elif kind != "Fuse":
            return [*made, _WholeList([step, *rest])]
        if kind in ("ByteLevel", "Fuse"):
            return [*made, *_on_one_string(rest)]
    return made


def _on_one_string(rest: list[dict[str, Any]]) -> list[Step]:
    """The steps after one that has joined all tokens: a string that comes in pieces passes through them."""
    made: list[Step] = []
    for place, step in enumerate(rest):
        if step["type"] == "Strip":
            made.append(_StripWhole(step))
        elif step["type"] != "Fuse":
            return [*made, _WholeText(rest[place:])]
    return made


def _library(spec: dict[str, Any]) -> Any:
    """The library's decoder for a part of a tokenizer.json."""
    made = decoders.Fuse()
    made.__setstate__(json.dumps(spec).encode())
    return made


class _JoinedBySpaces(Step):
    def __init__(self) -> None:
        self._first = True

    def push(self, token: str) -> Iterable[str]:
        text, self._first = (token if self._first else " " + token), False
        return (text,)


class _ByteLevel(Step):
    """Tokens of bytes, of which a character may need several. Gives pieces of one string."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = b""

    def push(self, token: str) -> Iterable[str]:
        new = byte_level_bytes(token)
        self.begins = int(bool(self._pending and new) and not _goes_on(self._pending + new[:1]))
        text = self._decoder.decode(new)
        self._pending = self._decoder.getstate()[0]
        if self._pending and not _goes_on(self._pending):  # Python waits for a third byte of half a surrogate pair
            text += self._pending.decode(errors="replace")
            self._pending = b""
            self._decoder.reset()
        return (text,) if text else ()

    def finish(self) -> Iterable[str]:
        text = self._decoder.decode(b"", final=True)
        self._pending, self.begins = b"", 0
        return (text,) if text else ()


def _goes_on(data: bytes) -> bool:
    """Whether `data` is one character or the beginning of one."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


class _ByteFallback(Step):
    """Runs of tokens `<0xE6>`: text if the whole run is valid UTF-8, else U+FFFD for every byte of it.

    A run that is valid so far is held back, since a single byte may yet undo all of it.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._run, self._characters, self._broken = bytearray(), 0, False
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def push(self, token: str) -> Iterable[str]:
        found = _BYTE_TOKEN.fullmatch(token)
        if found is None:
            strings = [*self.finish(), token]
            self.begins = sum(map(len, strings[:-1]))
            return strings
        self.begins = self._characters
        if self._broken:
            return (REPLACEMENT,)
        self._run.append(int(found[1], 16))
        try:
            self._characters += len(self._decoder.decode(self._run[-1:]))
        except UnicodeDecodeError:
            broken, self._broken = len(self._run), True
            self.begins, self._characters = broken - 1, 0
            self._run.clear()
            return [REPLACEMENT] * broken
        return ()

    def finish(self) -> Iterable[str]:
        run, whole = bytes(self._run), not self._decoder.getstate()[0]
        self._begin()
        self.begins = 0
        if not run:
            return ()
        return (run.decode(),) if whole else [REPLACEMENT] * len(run)


class _EachToken(Step):
    """A decoder that treats every token alike."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._decoder = _library(spec)

    def push(self, token: str) -> Iterable[str]:
        return (self._decoder.decode([token]),)


class _FirstDiffers(Step):
    """A decoder that treats the first token differently: it brings no space."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._decoder, self._before = _library(spec), list[str]()

    def push(self, token: str) -> Iterable[str]:
        text = self._decoder.decode([*self._before, token])
        self._before = [""]
        return (text,)


class _LastDiffers(Step):
    """A decoder that treats the last token differently, which is therefore held back."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._decoder = _library(spec)
        self._held: str | None = None

    def push(self, token: str) -> Iterable[str]:
        text = None if self._held is None else self._decoder.decode([self._held, ""])
        self._held, self.begins = token, len(text or "")
        return () if text is None else (text,)

    def finish(self) -> Iterable[str]:
        held, self._held, self.begins = self._held, None, 0
        return () if held is None else (self._decoder.decode([held]),)


class _WithoutRepeats(Step):
    """CTC: a token that follows its equal says nothing, nor does one that comes to nothing."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._decoder = _library(spec)
        self._latest: str | None = None

    def push(self, token: str) -> Iterable[str]:
        text = "" if token == self._latest else self._decoder.decode([token])
        self._latest = token
        return (text,) if text else ()


class _StripEach(Step):
    """Strip before tokens are joined."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._content, self._start, self._stop = spec["content"], spec["start"], spec["stop"]

    def push(self, token: str) -> Iterable[str]:
        begin = _leading(token, self._content, self._start)
        end = len(token) - _leading(token[::-1], self._content, self._stop)
        return (token[begin:end],)


class _StripWhole(Step):
    """Strip after tokens were joined: of the text's beginning and end."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._content, self._start, self._stop = spec["content"], spec["start"], spec["stop"]
        self._tail = ""  # it may be the end of the text

    def push(self, token: str) -> Iterable[str]:
        cut = _leading(token, self._content, self._start)
        self._start = self._start - cut if cut == len(token) else 0
        text = self._tail + token[cut:]
        keep = _leading(text[::-1], self._content, self._stop)
        self._tail, self.begins = text[len(text) - keep :], len(self._tail)
        return (text[: len(text) - keep],)

    def finish(self) -> Iterable[str]:
        self._tail, self.begins = "", 0
        return ()


def _leading(text: str, character: str, most: int) -> int:
    """How often `character` stands at the beginning of `text`, `most` times at most."""
    head = text[:most]
    return len(head) - len(head.lstrip(character))


class _WholeList(Step):
    """Decoders that are not known here: they get all tokens at the end."""

    def __init__(self, specs: list[dict[str, Any]]) -> None:
        self._decoder = _library({"type": "Sequence", "decoders": specs})
        self._tokens: list[str] = []

    def push(self, token: str) -> Iterable[str]:
        self.begins += len(self._tokens[-1]) if self._tokens else 0
        self._tokens.append(token)
        return ()

    def finish(self) -> Iterable[str]:
        tokens, self._tokens, self.begins = self._tokens, [], 0
        return (self._decoder.decode(tokens),) if tokens else ()


class _WholeText(_WholeList):
    """Decoders that follow one which has joined all tokens, and that need the whole of the string."""

    def finish(self) -> Iterable[str]:
        self._tokens = ["".join(self._tokens)] if self._tokens else []
        return super().finish()
