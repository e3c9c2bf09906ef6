"""Tokens to text one by one: what comes is what the library makes of all of them, and it comes as soon as it can."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders

from gossamer.data.detokenizer import REPLACEMENT, Detokenizer, byte_alphabet, token_bytes_of

BYTES = {byte: character for character, byte in byte_alphabet().items()}
# Lead and continuation bytes of every length, overlong ones, surrogates, and what is no UTF-8 at all.
HARD = bytes.fromhex("0041 7f80 8f90 9f98 a0a5 bdbf c0c2 dfe0 e697 edef f09f f4f5 ff".replace(" ", ""))

STEPS: list[Any] = [
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.ByteLevel(),
    decoders.Replace("\u2581", " "),
    decoders.Replace(Regex("[ab]+"), "c"),
    decoders.Strip(" ", 1, 0),
    decoders.Strip(" ", 2, 0),
    decoders.Metaspace(),
    decoders.Metaspace(prepend_scheme="never"),
    decoders.WordPiece(),
    decoders.BPEDecoder(),
    decoders.CTC(),
]
tokens = st.lists(
    st.sampled_from(HARD).map(BYTES.__getitem__)
    | st.sampled_from(HARD).map("<0x{:02X}>".format)
    | st.sampled_from(
        ["\u2581a", "\u2581", "a", "b</w>", "##b", ".", " ", "  a", "|", "<pad>", "日", "<0x+A>", "<0xG0>"]
    ),
    max_size=12,
)


def spec_of(decoder: Any) -> dict[str, Any]:
    return json.loads(decoder.__getstate__())


def streamed(decoder: Any, spelled: list[str]) -> str:
    made = Detokenizer(spec_of(decoder))
    text = "".join(map(made.push, spelled)) + made.finish()
    assert made.finish() == ""
    return text


@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=4), tokens)
@settings(max_examples=400, deadline=None)
@example([STEPS[3], STEPS[0], STEPS[1], STEPS[5]], ["\u2581", "<0x60>", "<0x86>", "a"])  # Llama's chain
@example([STEPS[0], STEPS[7]], ["<0xE6>", "<0x97>", "<0xA5>", "<0xFF>"])
def test_any_chain_gives_what_the_library_gives(chain: list[Any], spelled: list[str]) -> None:
    decoder = decoders.Sequence(chain)
    assert streamed(decoder, spelled) == (decoder.decode(spelled) if spelled else "")


@given(st.lists(st.sampled_from(HARD), max_size=12))
@settings(max_examples=300, deadline=None)
def test_bytes_of_any_kind(data: list[int]) -> None:
    spelled = [BYTES[byte] for byte in data]
    assert (
        streamed(decoders.ByteLevel(), spelled)
        == decoders.ByteLevel().decode(spelled)
        == bytes(data).decode(errors="replace")
    )


def test_without_a_decoder_tokens_are_joined_by_spaces() -> None:
    made = Detokenizer(None)
    assert [made.push("a"), made.push("b"), made.finish()] == ["a", " b", ""]


def test_a_decoder_of_a_later_version_gets_all_tokens_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.data.detokenizer._library_decoder", lambda spec: decoders.Fuse())
    made = Detokenizer({"type": "New"})
    assert [made.push("a"), made.push("b"), made.finish()] == ["", "", "ab"]


def test_text_comes_as_soon_as_nothing_can_change_it() -> None:
    level = Detokenizer(spec_of(decoders.ByteLevel()))
    pushed = [level.push(BYTES[byte]) for byte in b"a\xe6\x97\xa5\xe6a\xff"]
    assert pushed == ["a", "", "", "日", "", REPLACEMENT + "a", REPLACEMENT]
    fallback = Detokenizer(spec_of(decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])))
    # The library undoes a whole run for one wrong byte, so that a right one is certain at its end only.
    spelled = ["<0xE6>", "<0x97>", "<0xA5>", "a", "<0xE6>", "<0xFF>", "<0x41>", "a"]
    assert [fallback.push(token) for token in spelled] == ["", "", "", "日a", "", "\ufffd" * 2, "\ufffd", "a"]


@pytest.mark.parametrize("data", [b"\xc3" * 40_000, "日".encode() * 13_000, bytes(range(256)) * 150])
@pytest.mark.parametrize("chain", ["bytes", "fallback"])
def test_time_is_linear(data: bytes, chain: str) -> None:
    decoder = (
        decoders.ByteLevel() if chain == "bytes" else decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    )
    spelled = [BYTES[byte] if chain == "bytes" else f"<0x{byte:02X}>" for byte in data]
    began = time.process_time()
    streamed(decoder, spelled)
    # About 0.1 s. The library's own stream takes minutes for the first of these.
    assert time.process_time() - began < 5


@given(st.text("aé日😀", max_size=8), st.lists(st.sampled_from(HARD), max_size=6))
@settings(deadline=None)
def test_where_tokens_begin(text: str, broken: list[int]) -> None:
    """A token begins at the character that its first byte belongs to in the whole text."""
    data = text.encode() + bytes(broken)
    made = Detokenizer(spec_of(decoders.ByteLevel()))
    begins = []
    for byte in data:
        made.push(BYTES[byte])
        begins.append(made.token_start)
    right = [_character_of(data, place) for place in range(len(data))]
    assert begins == right


def _character_of(data: bytes, place: int) -> int:
    """The number of the character that holds this byte, decoding the whole text from its beginning."""
    at = number = 0
    while True:
        size = next((n for n in range(1, 5) if _is_character(data[at : at + n])), 0)
        if not size:
            try:
                data[at : at + 4].decode()
                size = len(data) - at
            except UnicodeDecodeError as error:
                size = error.end - error.start
        if place < at + size:
            return number
        at, number = at + size, number + 1


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


def test_bytes_of_a_token_in_the_middle_of_a_text() -> None:
    llama = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    cases: list[tuple[Any, dict[str, bytes]]] = [
        (decoders.ByteLevel(), {"Ġa": b" a", BYTES[0xE6]: b"\xe6", "日": "日".encode()}),
        (llama, {"\u2581a": b" a", "<0xE6>": b"\xe6", "\u2581": b" ", "a": b"a"}),
        (decoders.WordPiece(), {"##ing": b"ing", "a": b" a"}),
        (decoders.BPEDecoder(), {"a</w>": b"a ", "a": b"a"}),
        (decoders.Metaspace(), {"\u2581a": b" a"}),
        (decoders.Fuse(), {"<0x41>": b"<0x41>"}),
    ]
    for decoder, right in cases:
        bytes_of = token_bytes_of(spec_of(decoder))
        assert {token: bytes_of(token) for token in right} == right, decoder
    assert token_bytes_of(None)("a") == b" a"
