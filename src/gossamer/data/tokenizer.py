"""Text to token ids and back: byte-level BPE, single characters, or the `tokenizer.json` of any checkpoint.

All three are models of the `tokenizers` library, so what is saved beside the weights loads in transformers, vLLM and
SGLang. Text never becomes a special token: a document that holds the literal `<|endoftext|>` is encoded as those
thirteen characters, unless the caller asks for special tokens, as a chat template must.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from gossamer.data.config import MIN_BPE_VOCAB
from gossamer.data.detokenizer import Detokenizer, token_bytes_of
from gossamer.data.tokenizer_files import (
    TOKEN_NAMES,
    chat_templates_of,
    find_eot_token,
    find_tokenizer,
    prefix_ids_of,
    read_chat_template_files,
    read_token_names,
    token_text,
    write_chat_template_files,
)
from gossamer.errors import UserError, shorten
from gossamer.reading import MAX_TOKENIZER, parse_json, read_text
from gossamer.typed import shown

__all__ = ["EOT", "IncrementalDetokenizer", "Tokenizer", "char_tokenizer", "train_bpe"]

EOT = "<|endoftext|>"
"""The token that begins and ends every document, for the tokenizers that are trained here; its id is 0."""

MAX_WORD = 256
"""Characters of the longest word that BPE merges are learned from; longer ones are cut."""

# Qwen's split (contractions; a word with the punctuation or space before it; single digits; runs of punctuation; line
# ends; spaces), except that combining marks belong to their word, as most of the world's scripts need. Every character
# is in a match or between two matches, and both become words: nothing is lost.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ANY_CHARACTER = r"[\s\S]"
_END_KEYS = ("bos_token", "eos_token")
_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}

# What a model writes around its reasoning and tool calls. Some checkpoints register these as special tokens, others as
# ordinary ones. They are part of the text either way, because the parser of an answer looks for them there.
_TAGS = frozenset("<think> </think> <tool_call> </tool_call> <function= </function> <parameter= </parameter>".split())

MAX_VOCABULARY = 1 << 24
"""Token ids that a tokenizer, and a network, may have; the largest vocabularies have a sixteenth of it."""


class Tokenizer:
    """Encodes text as token ids and decodes token ids to text.

    A text is encoded as a whole and always to the same ids. Truncation, padding and random merges (BPE-dropout) are
    switched off, even if the tokenizer.json asks for them because they were used in training.

    Args:
        core: the tokenizer of the `tokenizers` library
        eot: the token that delimits documents
        config: the content of `tokenizer_config.json`; by default that of a tokenizer trained here
        chat_template: the chat templates that lie in files beside the tokenizer, one text or several by name. They take
            precedence over those of `config`

    Raises:
        UserError: the vocabulary lacks `eot`, or an id is too large.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        eot: str,
        config: dict[str, Any] | None = None,
        chat_template: str | Mapping[str, str] | None = None,
    ) -> None:
        delimiter = core.token_to_id(eot)
        if delimiter is None:
            raise UserError(
                f"tokenizer: its end-of-text token {shown(eot)} is not in its vocabulary; mend tokenizer_config.json"
            )
        self.eot_id: int = delimiter
        self._core = core
        self._core.encode_special_tokens = True
        self._core.no_truncation()
        self._core.no_padding()
        if isinstance(core.model, models.BPE):
            core.model.dropout = None
        self._eot = eot
        named = {"default": chat_template} if isinstance(chat_template, str) else chat_template
        self._template_files = dict(named or {})
        self._config = dict(config or _CONFIG | {"bos_token": eot})
        if not self._config.get("eos_token"):  # found elsewhere, but what is saved must name it
            self._config["eos_token"] = eot
        vocab = core.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocab.values()) + 1
        if self.vocab_size > MAX_VOCABULARY:  # tables of this size are made
            raise UserError(f"tokenizer: has the id {self.vocab_size - 1}; ids must be below {MAX_VOCABULARY:,}")
        model = core.model
        self._characters: dict[str, int] | None = None
        if isinstance(model, models.WordLevel) and model.unk_token not in vocab:
            special = {eot, *self.special_tokens}
            characters = {token: index for token, index in vocab.items() if token not in special}
            # for single characters a dictionary does the same as the library, eighty times faster
            self._characters = characters if all(len(token) == 1 for token in characters) else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the constructor's arguments: a copy by the library would forget that special tokens are text."""
        return type(self), (self._core, self._eot, self._config, self._template_files)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Load from a Hugging Face directory, the `model/` folder of a run, or a `tokenizer.json` file itself.

        Raises:
            UserError: there is no tokenizer, it cannot be read, or it names no end-of-text token.
        """
        file = find_tokenizer(folder)
        text = read_text(file, max_bytes=MAX_TOKENIZER)
        try:
            core = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                f"{file}: not a tokenizer that can be read ({shorten(error, 300)}); save it again"
            ) from error
        config = read_token_names(file.with_name("tokenizer_config.json"))
        eot = find_eot_token(file.parent, config, core, EOT)
        return cls(core, eot, config, read_chat_template_files(file.parent))

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and the files with chat templates, if there are any."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / "tokenizer.json").write_text(self._core.to_str(pretty=True), encoding="utf-8")
        config = json.dumps(self._config, indent=2, ensure_ascii=False)
        (place / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
        write_chat_template_files(place, self._template_files)

    def with_chat(self, template: str, special_tokens: Iterable[str] = ()) -> Tokenizer:
        """Return a copy with another chat template, and with more special tokens after all others."""
        core = tokenizers.Tokenizer.from_str(self._core.to_str())
        core.add_special_tokens(list(special_tokens))
        config = {key: value for key, value in self._config.items() if key != "chat_template"}
        return type(self)(core, self._eot, config, template)

    def with_template_line(self, line: str) -> Tokenizer:
        """Return a copy whose chat templates begin with a line more."""
        core = tokenizers.Tokenizer.from_str(self._core.to_str())
        return type(self)(
            core, self._eot, self._config, {name: line + text for name, text in self.chat_templates.items()}
        )

    def check_embedding(self, rows: int, folder: Path) -> None:
        """Refuse a network whose embedding lacks rows for ids of this tokenizer; rows beyond them are padding.

        Args:
            rows: of the embedding
            folder: of the network and the tokenizer, for the message

        Raises:
            UserError: there are too few.
        """
        if self.vocab_size > rows:
            raise UserError(
                f"{folder}: its tokenizer has {self.vocab_size} entries, but the embedding has only {rows} rows; "
                "take the tokenizer that the model was trained with"
            )

    @property
    def kind(self) -> str:
        """The kind of tokenizer: `char`, or the library's name: `BPE`, `Unigram`, `WordPiece`, `WordLevel`."""
        return "char" if self._characters is not None else type(self._core.model).__name__

    @property
    def chat_templates(self) -> dict[str, str]:
        """The Jinja templates that turn messages into text, by name; empty if the checkpoint has none.

        Raises:
            UserError: the `chat_template` of `tokenizer_config.json` is something else.
        """
        return self._template_files or chat_templates_of(self._config.get("chat_template"))

    def chat_template_for(self, tools: bool) -> str | None:
        """Return the template that transformers would use: `tool_use` if there are tools and it exists, else `default`.

        Raises:
            UserError: there are templates, but none of them fits.
        """
        templates = self.chat_templates
        if not templates:
            return None
        name = "tool_use" if tools and "tool_use" in templates else "default"
        if name not in templates:
            named = shorten(", ".join(sorted(templates)))
            raise UserError(f"tokenizer: none of its chat templates {named} is named default; name one so")
        return templates[name]

    @property
    def chat_template(self) -> str | None:
        """The template for a conversation without tools; see `chat_template_for`."""
        return self.chat_template_for(tools=False)

    @property
    def eot(self) -> str:
        """The token that delimits documents, as text."""
        return self._eot

    @property
    def bos(self) -> str | None:
        """The token that chat templates know as the beginning of a text; None if there is none, as for Qwen.

        Whether texts without a template begin with it is said by `prefix_ids`.
        """
        token = token_text(self._config.get("bos_token"))
        return token if token is not None and self._core.token_to_id(token) is not None else None

    @property
    def named_tokens(self) -> dict[str, str]:
        """The tokens that chat templates know by a name, such as `eos_token` and `pad_token`, as text."""
        found = {name: token_text(self._config.get(name)) for name in TOKEN_NAMES} | {"eos_token": self._eot}
        return {name: text for name, text in found.items() if text is not None}

    @property
    def bos_id(self) -> int | None:
        """The id of `bos`; None if there is none."""
        return None if self.bos is None else self._core.token_to_id(self.bos)

    @functools.cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """The ids that every text without a chat template begins with.

        As in transformers, they come from the post-processor of tokenizer.json, whatever tokenizer_config.json says in
        `bos_token` or `add_bos_token`. A tokenizer that was trained here has no post-processor; its texts begin with
        the delimiter, as its documents do.
        """
        if self._core.post_processor is None and self._config == _CONFIG | dict.fromkeys(_END_KEYS, self._eot):
            return (self.eot_id,)
        return prefix_ids_of(self._core.post_processor)

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """The ids of the special tokens by their text; `encode` makes them only with `special`."""
        added = self._core.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if token.special}

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash that is equal for tokenizers that give equal ids (32 hex digits)."""
        return hashlib.blake2b((self._core.to_str() + self._eot).encode(), digest_size=16).hexdigest()

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of `text`; with `special`, special tokens that are spelled out in it become their ids.

        Raises:
            UserError: the text holds a character that a `char` tokenizer does not know, or half of a surrogate pair.
        """
        return self.encode_batch([text], special)[0]

    def encode_batch(self, texts: list[str], special: bool = False) -> list[list[int]]:
        """Return the ids of each text, using all cores; raises as `encode` does."""
        try:
            if self._characters is not None and not special:
                return [[self._characters[character] for character in text] for text in texts]
            core = self._special_core if special else self._core
            return [encoding.ids for encoding in core.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:  # the library raises bare Exception for an unknown character
            raise self._unencodable(texts, error) from error

    def encode_with_places(self, text: str, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of `text`, and for each at which character it begins and ends; raises as `encode` does."""
        core = self._special_core if special else self._core
        try:
            encoding = core.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception for an unknown character
            raise self._unencodable([text], error) from error
        return encoding.ids, encoding.offsets

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Return the text of `ids`, without `special_ids` unless `special`; bytes that are not UTF-8 become U+FFFD."""
        hidden = () if special else self._hidden
        return self._core.decode([index for index in ids if index not in hidden], skip_special_tokens=False)

    def stream(self, special: bool = False) -> IncrementalDetokenizer:
        """Return a stream that decodes one id at a time."""
        return IncrementalDetokenizer(self._core.id_to_token, self._decoder, frozenset() if special else self._hidden)

    @functools.cached_property
    def token_byte_values(self) -> list[bytes]:
        """The bytes that each token stands for in a text, [vocab_size]: its name if it is special, b"" if unused."""
        values = [b""] * self.vocab_size
        spell = str.encode if self._characters is not None else token_bytes_of(self._decoder)
        for token, index in self._core.get_vocab(with_added_tokens=True).items():
            values[index] = spell(token)
        for index, added in self._core.get_added_tokens_decoder().items():
            values[index] = added.content.encode()  # added tokens are spelled as plain text by every model
        return values

    def unused_ids(self, rows: int) -> npt.NDArray[np.int64]:
        """Return the ids below `rows` that no token has, in rising order, such as those of padding in an embedding."""
        is_unused = np.ones(max(rows, self.vocab_size), bool)
        is_unused[list(self._core.get_vocab(with_added_tokens=True).values())] = False
        return np.flatnonzero(is_unused[:rows])

    @functools.cached_property
    def special_ids(self) -> list[int]:
        """The ids of special tokens that are not part of a text. Those of reasoning and tool calls are part of it."""
        return [index for token, index in self.special_tokens.items() if token not in _TAGS]

    def num_bytes_per_token(self) -> npt.NDArray[np.int32]:
        """Return how many UTF-8 bytes each token stands for, int32 [vocab_size]; 0 for special tokens and unused ids.

        The sum over the ids of a text is the number of its bytes, unless the tokenizer rewrites the text by Unicode
        normalization or in lower case.
        """
        sizes = np.array([len(value) for value in self.token_byte_values], np.int32)
        sizes[self.special_ids] = 0
        return sizes

    @functools.cached_property
    def _hidden(self) -> frozenset[int]:
        return frozenset(self.special_ids)

    @functools.cached_property
    def _decoder(self) -> dict[str, Any] | None:
        """The `decoder` of tokenizer.json."""
        decoder = self._core.decoder
        return None if decoder is None else parse_json(decoder.__getstate__().decode(), "the tokenizer's decoder")

    @functools.cached_property
    def _special_core(self) -> tokenizers.Tokenizer:
        """A copy that recognizes special tokens, because the setting belongs to the object, which threads share."""
        return tokenizers.Tokenizer.from_str(self._core.to_str())

    def _unencodable(self, texts: list[str], error: Exception) -> UserError:
        for text in texts:
            for character in text:
                if "\ud800" <= character <= "\udfff":
                    return UserError(
                        f"the text holds {character!r}, half of a surrogate pair, which is no character; leave it out"
                    )
                if self._characters is not None and character not in self._characters:
                    return UserError(
                        f"character {character!r} (U+{ord(character):04X}) is none of the {len(self._characters)} that "
                        "this char tokenizer knows; train on text that has it, or with --tokenizer bpe"
                    )
        return UserError(f"the text cannot be encoded ({error}); use another tokenizer")


class IncrementalDetokenizer:
    """Decodes one token at a time, so that text can be shown while it is generated.

    What `push` returns, and at the end `finish`, is together what `decode` returns for all ids, in time that is linear
    in their number.

    Args:
        spell: returns the token of an id as the vocabulary spells it, None for an id without a token
        decoder: the `decoder` of tokenizer.json
        hidden: the ids that are left out of the text
    """

    def __init__(
        self, spell: Callable[[int], str | None], decoder: dict[str, Any] | None, hidden: frozenset[int]
    ) -> None:
        self._spell, self._hidden = spell, hidden
        self._detokenizer = Detokenizer(decoder)

    @property
    def token_start(self) -> int:
        """The character of the text at which the token that was pushed last begins."""
        return self._detokenizer.token_start

    def push(self, token: int) -> str:
        """Return the text that `token` completes: whole characters only, "" while a character is incomplete."""
        spelled = None if token in self._hidden else self._spell(token)
        if spelled is None:
            self._detokenizer.skip()
            return ""
        return self._detokenizer.push(spelled)

    def finish(self) -> str:
        """Return the text that was still held back: the beginning of an incomplete character, as U+FFFD."""
        return self._detokenizer.finish()


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE on `texts`, all of which are read before the first merge is learned.

    Any text can be encoded and is decoded unchanged, because all 256 bytes are tokens. The vocabulary is smaller than
    `vocab_size`, which includes the special token, if no pair of tokens is left that occurs twice; see
    `Tokenizer.vocab_size`.

    Merges are learned from words of at most `MAX_WORD` characters. Learning takes time in proportion to the square of
    the length of a word, and DNA, base64 or a row of spaces may have no break for megabytes. Encoding does not cut
    words.

    Raises:
        UserError: `vocab_size` is too small.
    """
    if vocab_size < MIN_BPE_VOCAB:
        raise UserError(f"vocab_size: {vocab_size} is too small for byte-level BPE; give at least {MIN_BPE_VOCAB}")
    core = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    short_words = pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{MAX_WORD}}}"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([words, short_words, byte_level])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(iter(texts), trainer)
    core.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    return Tokenizer(core, EOT)


def char_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer with the delimiter (id 0) and a token for each character of `texts`, by code point."""
    characters = sorted(set().union(*map(set, texts)))
    vocab = {EOT: 0} | {character: index for index, character in enumerate(characters, 1)}
    # The vocabulary lacks this token for the unknown, so an unknown character is an error.
    core = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(_ANY_CHARACTER), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([EOT])
    return Tokenizer(core, EOT)
