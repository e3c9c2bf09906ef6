"""Log-probabilities as OpenAI tells them: real bytes, every alternative, and where each token begins."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from engine_double import write_tokenizer
from gossamer.data.tokenizer import Tokenizer
from gossamer.infer.request import TokenLogprobs
from gossamer.serve.routes.common import chat_logprobs, completion_logprobs


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def byte_fallback() -> Tokenizer:
    """Like Llama's: a few characters, the 256 bytes."""
    names = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a"]
    core = tokenizers.Tokenizer(
        models.BPE({name: index for index, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>")
    )
    core.normalizer = normalizers.Replace(" ", "\u2581")
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens(["<unk>", "</s>"])
    return Tokenizer(core, "</s>", {"eos_token": "</s>"})


def told(ids: list[int], top: tuple[tuple[int, float], ...] = ()) -> list[TokenLogprobs]:
    return [TokenLogprobs(token, -1.0, top or ((token, -1.0),)) for token in ids]


@given(st.text("a 日😀\ufffdé"))
@settings(deadline=None)
def test_bytes_of_all_tokens_are_those_of_the_text(byte_level: Tokenizer, text: str) -> None:
    for tokenizer in (byte_level, byte_fallback()):
        entries = chat_logprobs(tokenizer, told(tokenizer.encode(text)))
        for found in (entries, [entry.top_logprobs[0] for entry in entries]):
            assert bytes(byte for entry in found for byte in entry.bytes or ()) == text.encode()


def test_a_piece_of_a_character_is_written_by_its_bytes(byte_level: Tokenizer) -> None:
    """The forms of OpenAI's chat completions and of its completions."""
    pieces = told(byte_level.encode("é"))
    assert [entry.token for entry in chat_logprobs(byte_level, pieces)] == ["\\xc3", "\\xa9"]
    assert completion_logprobs(byte_level, pieces, 0).tokens == ["bytes:\\xc3", "bytes:\\xa9"]
    end = byte_level.eot_id
    (entry,) = chat_logprobs(byte_level, told([end]))
    assert (entry.token, entry.bytes) == ("<|im_end|>", list(b"<|im_end|>"))
    (unused,) = chat_logprobs(byte_level, told([byte_level.vocab_size + 3]))
    assert (unused.token, unused.bytes) == ("", [])


def test_the_replacement_character_is_itself() -> None:
    core = tokenizers.Tokenizer(models.BPE({"ï¿½": 0, "<|end|>": 1}, []))
    core.decoder = decoders.ByteLevel()
    (entry,) = chat_logprobs(Tokenizer(core, "<|end|>"), told([0]))
    assert (entry.token, entry.bytes) == ("\ufffd", [0xEF, 0xBF, 0xBD])


def test_every_alternative_is_told_and_the_likelier_keeps_the_text(byte_level: Tokenizer) -> None:
    one, two, three = byte_level.encode("日")
    size = byte_level.vocab_size
    alternatives = ((size + 1, -3.0), (one, -0.1), (two, -0.7), (size, -2.0), (three, -2.5))
    found = completion_logprobs(byte_level, told([one], alternatives), 0)
    assert found.top_logprobs == [
        {"bytes:\\xe6": -0.1, "bytes:\\x97": -0.7, "": -2.0, "bytes:\\xa5": -2.5, f"token_id:{size + 1}": -3.0}
    ]


@given(st.text("a 日😀é\ufffd"), st.data())
@settings(deadline=None)
def test_offsets_are_the_same_in_whatever_pieces_they_are_told(
    byte_level: Tokenizer, text: str, data: st.DataObject
) -> None:
    ids = byte_level.encode(text)
    right = [place for place, character in enumerate(text) for _ in character.encode()]  # a token is a byte
    assert completion_logprobs(byte_level, told(ids), 5).text_offset == [5 + place for place in right]
    stream, found = byte_level.stream(), list[int]()
    while len(found) < len(ids):
        size = data.draw(st.integers(1, len(ids) - len(found)))
        some = ids[len(found) : len(found) + size]
        found += completion_logprobs(byte_level, told(some), 0, stream).text_offset
    assert found == right


def test_offsets_with_byte_fallback_and_special_tokens() -> None:
    tokenizer = byte_fallback()
    ids = [*tokenizer.encode("a日"), 1, *tokenizer.encode(" a")]
    assert completion_logprobs(tokenizer, told(ids), 0).text_offset == [0, 1, 1, 1, 1, 2, 3]
