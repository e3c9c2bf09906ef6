"""Tokenizers: nothing lost, nothing taken for a special token, and the same ids in transformers."""

import functools
import json
import pickle
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from gossamer.data.tokenizer import EOT, Tokenizer, char_tokenizer, train_bpe
from gossamer.errors import UserError

PROSE = "def stream(text):\n    return [text, 'naïve café', 12345]  # don't\n\n\t日本語 😀 हिन्दी " * 20
CHARACTERS = "ab \né日😀<|endoftx>"


@functools.cache
def bpe() -> Tokenizer:
    return train_bpe([PROSE], 300)


@functools.cache
def char() -> Tokenizer:
    return char_tokenizer([CHARACTERS])


def qwen_core() -> tokenizers.Tokenizer:
    """Built like Qwen's: normalized, byte-level, special and plain added tokens behind the vocabulary."""
    core = tokenizers.Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    core.train_from_iterator([PROSE], trainer)
    core.add_special_tokens([EOT, "<|im_start|>", "<|im_end|>"])
    core.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return core


def qwen(folder: Path, config: dict[str, object] | None = None) -> Tokenizer:
    qwen_core().save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "bos_token": None} if config is None else config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)


@given(st.text())
def test_bpe_loses_nothing(text: str) -> None:
    ids = bpe().encode(text)
    assert bpe().decode(ids) == text
    assert bpe().num_bytes_per_token()[ids].sum() == len(text.encode())


@given(st.text(st.sampled_from(CHARACTERS)))
def test_char_loses_nothing(text: str) -> None:
    ids = char().encode(text)
    assert char().decode(ids) == text and len(ids) == len(text)
    assert char().num_bytes_per_token()[ids].sum() == len(text.encode())


@pytest.mark.parametrize("make", [bpe, char])
def test_text_is_no_special_token(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    make().save(tmp_path)
    for tokenizer in (make(), Tokenizer.load(tmp_path)):
        text = f"a{EOT}b"
        ids = tokenizer.encode(text)
        assert tokenizer.eot_id not in ids and tokenizer.decode(ids) == text
        assert tokenizer.encode(text, special=True) == [
            *tokenizer.encode("a"),
            tokenizer.eot_id,
            *tokenizer.encode("b"),
        ]
        assert tokenizer.encode(text) == ids  # asking for specials once has not switched them on
        assert tokenizer.decode([*ids, tokenizer.eot_id]) == text
        assert tokenizer.decode([*ids, tokenizer.eot_id], special=True) == text + EOT


@pytest.mark.parametrize("make", [bpe, char])
def test_text_is_no_special_token_in_another_process(make: Callable[[], Tokenizer]) -> None:
    text = f"a{EOT}b"
    moved = pickle.loads(pickle.dumps(make()))
    assert moved.encode(text) == make().encode(text) and moved.fingerprint == make().fingerprint
    assert moved.eot_id == make().eot_id and moved.chat_template == make().chat_template


@pytest.mark.parametrize("make", [bpe, char])
@given(data=st.data())
@settings(max_examples=60)
def test_streaming_is_decoding(make: Callable[[], Tokenizer], data: st.DataObject) -> None:
    tokenizer = make()
    one = st.integers(0, tokenizer.vocab_size - 1)
    ids = data.draw(st.lists(one, max_size=30) | st.text(st.sampled_from(CHARACTERS)).map(tokenizer.encode))
    for special in (False, True):
        stream = tokenizer.stream(special)
        parts = [stream.push(token) for token in ids]
        assert "".join(parts) + stream.finish() == tokenizer.decode(ids, special)
        assert stream.finish() == ""


def test_streaming_gives_whole_characters() -> None:
    stream = bpe().stream()
    text = "é🜀z"
    parts = [stream.push(token) for token in bpe().encode(text)]
    assert "".join(parts) == text and stream.finish() == ""
    assert all(part in ("", "é", "🜀", "z") for part in parts) and "" in parts


def test_bpe_vocabulary() -> None:
    assert bpe().vocab_size == 300 and bpe().eot_id == 0 and bpe().kind == "BPE"
    assert train_bpe(["abc"], 5000).vocab_size == 257  # no pair occurs twice
    with pytest.raises(UserError, match="at least 257"):
        train_bpe(["abc"], 256)


def test_bpe_splits_words_as_told() -> None:
    tokenizer = train_bpe(["don't stop12345 हिन्दी\n\n    x = y " * 50], 1000)
    words = [tokenizer.decode([token]) for token in tokenizer.encode("don't stop12345 हिन्दी\n\n    x = y ")]
    assert words == ["don", "'t", " stop", "1", "2", "3", "4", "5", " हिन्दी", "\n\n", "   ", " x", " =", " y", " "]


def test_training_is_deterministic() -> None:
    again = train_bpe([PROSE], 300)
    assert again.fingerprint == bpe().fingerprint
    assert len({again.fingerprint, char().fingerprint, train_bpe([PROSE], 299).fingerprint}) == 3


def test_char_vocabulary() -> None:
    tokenizer = char_tokenizer(["ba", "cab"])
    assert tokenizer.vocab_size == 4 and tokenizer.eot_id == 0 and tokenizer.kind == "char"
    assert tokenizer.encode_batch(["abc", "", "c"]) == [[1, 2, 3], [], [3]]


def test_unknown_character_is_named() -> None:
    for special in (False, True):
        with pytest.raises(UserError, match=r"character 'ß' \(U\+00DF\) is none of the 17 .* --tokenizer bpe"):
            char().encode("aß", special)


@pytest.mark.parametrize("make", [bpe, char])
def test_half_a_surrogate_is_no_text(make: Callable[[], Tokenizer]) -> None:
    with pytest.raises(UserError, match="half of a surrogate pair"):
        make().encode("a\ud800")


def test_num_bytes_per_token_of_bpe() -> None:
    sizes = bpe().num_bytes_per_token()
    assert sizes.dtype == np.int32 and sizes.shape == (300,)
    assert sizes[bpe().eot_id] == 0 and (sizes > 0).sum() == 299
    assert sizes[bpe().encode("é")].sum() == 2


@pytest.mark.parametrize("make", [bpe, char])
def test_transformers_agrees(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    make().save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    ours = Tokenizer.load(tmp_path)
    assert theirs.eos_token == theirs.bos_token == EOT and theirs.eos_token_id == ours.eot_id
    assert len(theirs) == ours.vocab_size == make().vocab_size
    for text in ("ab \n éab日 😀 ", "<d>", " e  e", ""):
        assert theirs(text)["input_ids"] == ours.encode(text) == make().encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert ours.fingerprint == make().fingerprint and ours.kind == make().kind


def test_a_foreign_tokenizer(tmp_path: Path) -> None:
    tokenizer = qwen(tmp_path)
    specials = {name: tokenizer.encode(name, special=True)[0] for name in (EOT, "<|im_start|>", "<|im_end|>")}
    assert tokenizer.eot_id == specials["<|im_end|>"] and tokenizer.vocab_size == tokenizer.encode("<tool_call>")[0] + 1
    sizes = tokenizer.num_bytes_per_token()
    assert all(sizes[index] == 0 for index in specials.values()) and sizes[-1] == len("<tool_call>")
    text = unicodedata.normalize("NFC", "<tool_call>" + PROSE + EOT)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and sizes[ids].sum() == len(text.encode())
    assert not set(ids) & set(specials.values())


def test_a_foreign_tokenizer_is_saved_as_it_came(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True}, "model_max_length": 77}
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = qwen(tmp_path, config)
    assert tokenizer.chat_template == "{{ messages }}"
    tokenizer.save(tmp_path / "run" / "model")
    again = Tokenizer.load(tmp_path / "run")  # a run folder
    assert (again.eot_id, again.chat_template) == (tokenizer.eot_id, "{{ messages }}")
    assert json.loads((tmp_path / "run/model/tokenizer_config.json").read_text()) == config
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path / "run" / "model"))
    assert theirs(PROSE)["input_ids"] == tokenizer.encode(PROSE) and theirs.model_max_length == 77


@pytest.mark.parametrize(
    ("file", "content", "eot"),
    [
        ("tokenizer_config.json", {"eos_token": {"content": "<|im_end|>"}}, "<|im_end|>"),
        ("special_tokens_map.json", {"eos_token": "<|im_end|>"}, "<|im_end|>"),
        ("generation_config.json", {"eos_token_id": [300, 301]}, EOT),
        ("config.json", {"eos_token_id": 301}, "<|im_start|>"),
        ("config.json", {}, EOT),
    ],
)
def test_end_of_text_of_foreign_tokenizers(tmp_path: Path, file: str, content: dict[str, object], eot: str) -> None:
    core = qwen_core()
    core.save(str(tmp_path / "tokenizer.json"))
    assert core.token_to_id(EOT) == 300
    (tmp_path / file).write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).eot_id == core.token_to_id(eot)
    assert Tokenizer.load(tmp_path / "tokenizer.json").eot_id == core.token_to_id(eot)
    Tokenizer.load(tmp_path).save(tmp_path / "saved")  # without the other files, which it was known from
    assert Tokenizer.load(tmp_path / "saved").eot_id == core.token_to_id(eot)


def test_chat_template_of_the_configuration(tmp_path: Path) -> None:
    assert qwen(tmp_path, {"eos_token": EOT, "chat_template": "{{ x }}"}).chat_template == "{{ x }}"
    assert bpe().chat_template is None


def test_sentencepiece_like_bytes(tmp_path: Path) -> None:
    vocab = [("<unk>", 0.0), ("\u2581a", -1.0), ("\u2581", -2.0), ("é", -2.0), ("</s>", 0.0), ("<0x0A>", -9.0)]
    core = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    core.add_special_tokens(["<unk>", "</s>"])
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.num_bytes_per_token().tolist() == [0, 2, 1, 2, 0, 1] and tokenizer.kind == "Unigram"


def test_loading_failures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such tokenizer; did you mean 'bpe'\?"):
        Tokenizer.load("bpee")
    with pytest.raises(UserError, match="no such tokenizer; give 'bpe', 'char'"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer that can be read"):
        Tokenizer.load(tmp_path)
    for content, message in (
        ("{", "not JSON"),
        ("[]", "holds no JSON object"),
        ('{"eos_token": "</s>"}', "'</s>' is not in its vocabulary"),
    ):
        qwen_core().save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(UserError, match=message):
            Tokenizer.load(tmp_path)


def test_an_id_that_no_table_holds_is_refused(tmp_path: Path) -> None:
    train_bpe(["one two"], 260).save(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["model"]["vocab"] |= {"strange": 2**31}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"has the id 2147483648; ids must be below 16,777,216"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("token", [5, [], {"text": "x"}, True])
def test_a_token_that_is_no_text_is_named(tmp_path: Path, file: str, token: object) -> None:
    train_bpe(["one two"], 260).save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / file).write_text(json.dumps({"eos_token": token}))
    with pytest.raises(UserError, match=rf"{file}: eos_token.*; mend the file"):
        Tokenizer.load(tmp_path)


def test_no_end_of_text_at_all(tmp_path: Path) -> None:
    tokenizers.Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="names no eos_token; add one"):
        Tokenizer.load(tmp_path)


def qwen_with(folder: Path, config: dict[str, object] | None = None, **parts: object) -> Tokenizer:
    """The tokenizer of `qwen` with other parts in its tokenizer.json."""
    qwen(folder, config)
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(values | parts))
    return Tokenizer.load(folder)


def test_truncation_and_padding_of_the_file_cut_and_fill_no_text(tmp_path: Path) -> None:
    """As transformers saves them after a call with truncation and padding; its own later calls do neither."""
    transformers = pytest.importorskip("transformers")
    plain = qwen(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path), pad_token=EOT)
    theirs("a", truncation=True, max_length=8, padding="max_length")
    theirs.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "tokenizer.json").read_text())
    assert saved["truncation"] and saved["padding"]
    again = Tokenizer.load(tmp_path / "again")
    for text in ("a", PROSE):
        assert again.encode(text) == plain.encode(text) == theirs(text)["input_ids"]
        assert again.encode(text, special=True) == plain.encode(text)
    assert again.encode_batch(["a", PROSE]) == [plain.encode("a"), plain.encode(PROSE)]
    again.save(tmp_path / "third")
    assert json.loads((tmp_path / "third" / "tokenizer.json").read_text())["truncation"] is None


def test_merges_are_not_left_out_at_random(tmp_path: Path) -> None:
    """BPE-dropout is for training a tokenizer's users (arXiv 1910.13267: none when a model is used)."""
    model = json.loads(qwen_core().to_str())["model"]
    dropping = qwen_with(tmp_path, model=model | {"dropout": 0.9})
    assert dropping.encode(PROSE) == dropping.encode(PROSE) == qwen(tmp_path).encode(PROSE)


def test_tags_of_thoughts_and_calls_are_text_though_they_are_special(tmp_path: Path) -> None:
    core = qwen_core()
    core.add_special_tokens(["<think>", "</think>", "<|extra|>"])
    tokenizer = Tokenizer(core, EOT)
    text = "<think>a</think><|extra|>b<tool_call><|im_end|>"
    ids = tokenizer.encode(text, special=True)
    assert len(ids) == 7 and tokenizer.decode(ids) == "<think>a</think>b<tool_call>"
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids] == ["<think>", "a", "</think>", "", "b", "<tool_call>", ""]
    assert tokenizer.decode(ids, special=True) == text
    named = {tokenizer.token_byte_values[index] for index in tokenizer.special_ids}
    assert named == {EOT.encode(), b"<|im_start|>", b"<|im_end|>", b"<|extra|>"}


TEMPLATES = {"default": "D {{ messages }}", "tool_use": "T {{ messages }}", "rag": "R"}


@pytest.mark.parametrize("how", ["list", "files", "file over list", "extra alone"])
def test_named_templates_are_those_that_transformers_takes(tmp_path: Path, how: str) -> None:
    transformers = pytest.importorskip("transformers")
    listed = [{"name": name, "template": text} for name, text in TEMPLATES.items()]
    config = {"eos_token": EOT} | ({"chat_template": listed} if how != "files" else {})
    if how in ("files", "file over list"):
        (tmp_path / "chat_template.jinja").write_text("F")
    if how in ("files", "extra alone"):
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("X")
    ours = qwen(tmp_path, config)
    ours.save(tmp_path / "saved")
    for folder in (tmp_path, tmp_path / "saved"):
        ours = Tokenizer.load(folder)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
        known = theirs.chat_template
        assert ours.chat_templates == (known if isinstance(known, dict) else {"default": known})
        assert ours.chat_template_for(tools=True) == theirs.get_chat_template(tools=[{}])
        if how == "extra alone":
            with pytest.raises(ValueError, match="no default"):
                theirs.get_chat_template()
            with pytest.raises(UserError, match="none of its chat templates tool_use is named default"):
                _ = ours.chat_template
        else:
            assert ours.chat_template == theirs.get_chat_template()


@pytest.mark.parametrize("value", [[], 7, [{"name": "default"}], ["x"], {"default": 1}, [{"name": 1, "template": "x"}]])
def test_a_template_that_is_none_is_refused(tmp_path: Path, value: object) -> None:
    tokenizer = qwen(tmp_path, {"eos_token": EOT, "chat_template": value})
    with pytest.raises(UserError, match=r"tokenizer_config\.json: chat_template must be a text or a list"):
        _ = tokenizer.chat_template


def test_a_template_file_that_is_no_text(tmp_path: Path) -> None:
    qwen(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja: not UTF-8 text"):
        Tokenizer.load(tmp_path)


def beginning(single: list[dict[str, object]]) -> dict[str, object]:
    ids = {EOT: 300, "<|im_start|>": 301, "<|im_end|>": 302}
    known = {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in ids.items()}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": known}


BOS, A, END = ({"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
               {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}})  # fmt: skip
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


@pytest.mark.parametrize("add", [None, False, True])
@pytest.mark.parametrize(
    "processor",
    [
        None,
        BYTE_LEVEL,
        beginning([BOS, A]),
        beginning([BOS, BOS, A, END]),
        beginning([A, END]),
        {"type": "Sequence", "processors": [BYTE_LEVEL, beginning([BOS, A, END])]},
        {"type": "BertProcessing", "sep": ["<|im_end|>", 302], "cls": ["<|im_start|>", 301]},
        {"type": "RobertaProcessing", "sep": ["<|im_end|>", 302], "cls": ["<|im_start|>", 301], "trim_offsets": True,
         "add_prefix_space": False},
    ],
)  # fmt: skip
def test_texts_begin_as_in_transformers(tmp_path: Path, processor: object, add: bool | None) -> None:
    transformers = pytest.importorskip("transformers")
    config: dict[str, object] = {"eos_token": EOT, "bos_token": "<|im_start|>"}
    config |= {} if add is None else {"add_bos_token": add}
    ours = qwen_with(tmp_path, config, post_processor=processor)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))("text")["input_ids"]
    assert (*ours.prefix_ids, *ours.encode("text")) == tuple(theirs[: len(ours.prefix_ids) + len(ours.encode("text"))])
    after = theirs[len(ours.prefix_ids) + len(ours.encode("text")) :]
    assert after in ([], [302]), "what is left ends the text"
    assert ours.bos == "<|im_start|>"  # for chat templates, which transformers tells of it as well


@pytest.mark.parametrize("make", [bpe, char])
def test_texts_of_tokenizers_trained_here_begin_as_their_documents_do(
    make: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    make().save(tmp_path)
    assert make().prefix_ids == Tokenizer.load(tmp_path).prefix_ids == (make().eot_id,)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": False}))
    assert Tokenizer.load(tmp_path).prefix_ids == ()


def test_learning_from_text_without_breaks_is_fast() -> None:
    draw = np.random.default_rng(1)
    text = "".join(draw.choice(list("ACGT"), 40_000)) + " " * 40_000 + "日本語" * 8_000 + "=" * 40_000
    began = time.process_time()
    tokenizer = train_bpe([text], 1000)
    assert time.process_time() - began < 5  # 0.2 s; unbounded it takes 30 s, and four times that for twice the text
    assert tokenizer.decode(tokenizer.encode(text)) == text and len(tokenizer.encode(" " * 40_000)) < 400


def test_the_bound_changes_nothing_for_text_with_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.data.tokenizer.MAX_WORD", 10**5)
    assert train_bpe([PROSE], 300).fingerprint == bpe().fingerprint
