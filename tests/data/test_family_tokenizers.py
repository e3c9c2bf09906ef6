"""Tokenizers of Qwen3 and Qwen3.5 as transformers' own classes write them: the same ids and the same text."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from family_templates import CLASSES, PLAIN, PROSE, SPECIAL, TEMPLATES, write_family_tokenizer
from gossamer.data.tokenizer import Tokenizer, char_tokenizer, train_bpe
from gossamer.data.tokenizer_files import end_ids

# Composed and not, combining marks, joiners, digits, several scripts, ends of lines, and beginnings of special tokens.
PIECES = [
    "naïve",
    "e\u0301",
    "हिन्दी",
    "ก็",
    "日本語",
    "😀👨‍👩‍👧",
    "1234",
    "½",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u3000",
    "don't",
]
PIECES += [
    "'LL",
    "stream",
    "text",
    "(",
    "))",
    "!",
    "\u0301",
    "\ufeff",
    "\x00",
    "ſ",
    "ﬁ",
    "\u1100\u1161",
]
text_of_pieces = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
texts = text_of_pieces | st.text(max_size=20)
marked = st.lists(st.sampled_from([*PIECES, *SPECIAL, *PLAIN, "<|im", "_start|>"]), max_size=8).map("".join)


@pytest.fixture(scope="module", params=CLASSES)
def both(request, tmp_path_factory):
    folder = write_family_tokenizer(tmp_path_factory.mktemp("tokenizer"), request.param)
    (folder / "config.json").write_text(json.dumps({"model_type": f"{request.param}_text", "vocab_size": 320}))
    peer = transformers.AutoTokenizer.from_pretrained(folder)
    return SimpleNamespace(form=request.param, folder=folder, tokenizer=Tokenizer.load(folder), peer=peer)


@given(text=texts)
def test_a_text_has_the_ids_of_transformers(both, text):
    wanted = both.peer.encode(text, add_special_tokens=False)
    assert both.tokenizer.encode(text) == both.tokenizer.encode(text, special=True) == wanted
    assert both.tokenizer.decode(wanted) == both.peer.decode(wanted)


@given(text=marked)
def test_added_tokens_are_those_of_transformers_and_special_ones_only_on_demand(both, text):
    wanted = both.peer.encode(text, add_special_tokens=False)
    assert both.tokenizer.encode(text, special=True) == wanted
    assert both.tokenizer.decode(wanted, special=True) == both.peer.decode(wanted)
    assert both.tokenizer.decode(wanted) == both.peer.decode(wanted, skip_special_tokens=True)
    assert not set(both.tokenizer.encode(text)) & set(both.tokenizer.special_tokens.values())


@given(data=st.data())
def test_ids_one_by_one_become_the_text_of_transformers(both, data):
    ids = data.draw(st.lists(st.integers(0, len(both.peer) - 1), max_size=30))
    for special in (False, True):
        stream = both.tokenizer.stream(special)
        shown = [stream.push(token) for token in ids] + [stream.finish()]
        assert "".join(shown) == both.peer.decode(ids, skip_special_tokens=not special)


def test_the_split_into_words_is_that_of_each_class(tmp_path):
    vocabulary = {form: Tokenizer.load(write_family_tokenizer(tmp_path / form, form)) for form in CLASSES}
    # A vowel sign belongs to its word for Qwen3.5, and is a word of its own for Qwen3.
    assert vocabulary["qwen3"].encode("हिन्दी") != vocabulary["qwen3_5"].encode("हिन्दी")


def test_what_the_files_say_is_what_transformers_says(both):
    tokenizer, peer = both.tokenizer, both.peer
    assert tokenizer.kind == "BPE" and tokenizer.vocab_size == len(peer) and tokenizer.prefix_ids == ()
    assert (tokenizer.eot, tokenizer.eot_id) == (peer.eos_token, peer.eos_token_id)
    assert tokenizer.named_tokens == peer.special_tokens_map and tokenizer.bos is None is peer.bos_token
    assert set(tokenizer.special_tokens) == set(SPECIAL) >= set(peer.all_special_tokens)
    assert tokenizer.chat_template == peer.chat_template == TEMPLATES[both.form]


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_is_found_in_either_file(both, tmp_path, place):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((both.folder / file).read_bytes())
    if place.endswith(".jinja"):
        (tmp_path / place).write_text("{{ messages[0].content }}{{ eos_token }}")
    else:
        config = json.loads((tmp_path / place).read_text())
        (tmp_path / place).write_text(
            json.dumps(config | {"chat_template": "{{ messages[0].content }}{{ eos_token }}"})
        )
    found, peer = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert found.chat_template == peer.chat_template and found.chat_template is not None


def test_every_end_of_a_released_checkpoint_ends_an_answer(both, tmp_path):
    """generation_config.json lists several, the language model of a larger one has its own, and some lie beyond it."""
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [302, 300], "pad_token_id": 300}))
    inner = {"vocab_size": 320, "eos_token_id": 301}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen3_5", "text_config": inner, "eos_token_id": 999})
    )
    assert end_ids(tmp_path) == (302, 300, 301)


def test_rows_of_an_embedding_without_a_token_are_found(both):
    size = both.tokenizer.vocab_size
    assert both.tokenizer.unused_ids(size + 3).tolist() == [size, size + 1, size + 2]
    assert both.tokenizer.unused_ids(size).tolist() == []
    assert [both.tokenizer._core.id_to_token(index) for index in (size, size - 1)] == [None, PLAIN[-1]]


@pytest.mark.parametrize("model_type", ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"])
@pytest.mark.parametrize("make", [lambda: train_bpe([PROSE], 300), lambda: char_tokenizer([PROSE, *PIECES])])
def test_a_tokenizer_that_was_trained_here_is_read_by_transformers_beside_every_network(make, model_type, tmp_path):
    made = make()
    made.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    # AutoTokenizer has a class for networks of Qwen3.5 with experts, and takes its split instead of the file's.
    is_overruled = model_type == "qwen3_5_moe_text"
    reader = transformers.PreTrainedTokenizerFast if is_overruled else transformers.AutoTokenizer
    peer = reader.from_pretrained(tmp_path)
    for text in (PROSE, *PIECES):
        assert peer.encode(text, add_special_tokens=False) == made.encode(text)
        assert peer.decode(made.encode(text)) == text
    if is_overruled:
        overruled = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert overruled.encode("e\u0301", add_special_tokens=False) != made.encode("e\u0301")
