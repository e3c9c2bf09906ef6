"""Text to token ids and back: byte-level BPE, single characters, or anybody's ``tokenizer.json``.

All three are ``tokenizers`` models, so what is saved beside the weights loads in transformers, vLLM and SGLang. Text
is never taken for a special token: a document that holds the literal ``<|endoftext|>`` is encoded as those thirteen
characters, unless the caller asks for special tokens, as a chat template must.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from gossamer.data.config import MIN_BPE_VOCAB
from gossamer.data.tokenizer_files import end_of_text, find_tokenizer, read_json
from gossamer.errors import UserError

__all__ = ["EOT", "TextStream", "Tokenizer", "char_tokenizer", "train_bpe"]

EOT = "<|endoftext|>"
"""Begins and ends every document of the tokenizers trained here; their id 0."""

# Qwen's split (contractions; a word with the sign or space before it; single digits; runs of signs; line ends;
# spaces), with combining marks counted to the word they stand on, as most of the world's scripts need. Every character
# is in some match or between two, and both are kept: nothing is lost.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ANY_CHARACTER = r"[\s\S]"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}


class Tokenizer:
    """Token ids of text and text of token ids.

    Args:
        core: the tokenizer proper.
        eot: its token that delimits documents.
        config: what ``tokenizer_config.json`` holds; default: that of a tokenizer trained here.
        chat_template: of ``chat_template.jinja``, where the folder has that file.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        eot: str,
        config: dict[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        delimiter = core.token_to_id(eot)
        if delimiter is None:
            raise UserError(
                f"tokenizer: its end-of-text token {eot!r} is not in its vocabulary; mend tokenizer_config.json"
            )
        self.eot_id: int = delimiter
        self._core = core
        self._core.encode_special_tokens = True
        self._eot = eot
        self._template_file = chat_template
        self._config = dict(config or _CONFIG | {"bos_token": eot})
        if not self._config.get("eos_token"):  # known from elsewhere; what is saved must name it
            self._config["eos_token"] = eot
        vocab = core.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocab.values()) + 1
        model = core.model
        is_char = isinstance(model, models.WordLevel) and all(len(token) == 1 for token in vocab if token != eot)
        # a dictionary does for characters what the library does, eighty times faster
        self._characters = {token: index for token, index in vocab.items() if token != eot} if is_char else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew in another process: the library forgets there that special tokens are text."""
        return type(self), (self._core, self._eot, self._config, self._template_file)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Load from a Hugging Face directory, a run folder (its ``model/``), or a ``tokenizer.json`` file itself.

        Raises:
            UserError: nothing is there, it cannot be read, or it names no end-of-text token.
        """
        file = find_tokenizer(folder)
        try:
            core = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{file}: not a tokenizer that can be read ({error}); save it anew") from error
        template = file.with_name("chat_template.jinja")
        config = read_json(file.with_name("tokenizer_config.json"))
        eot = end_of_text(file.parent, config, core, EOT)
        return cls(core, eot, config, template.read_text(encoding="utf-8") if template.is_file() else None)

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` (and a chat template file, where there was one)."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / "tokenizer.json").write_text(self._core.to_str(pretty=True), encoding="utf-8")
        config = json.dumps(self._config, indent=2, ensure_ascii=False)
        (place / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
        if self._template_file is not None:
            (place / "chat_template.jinja").write_text(self._template_file, encoding="utf-8")

    @property
    def kind(self) -> str:
        """``char`` or the library's name of the model: ``BPE``, ``Unigram``, ``WordPiece``, ``WordLevel``."""
        return "char" if self._characters is not None else type(self._core.model).__name__

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that turns messages into text, if the tokenizer came with one."""
        template = self._template_file if self._template_file is not None else self._config.get("chat_template")
        return template if isinstance(template, str) else None

    @property
    def eot(self) -> str:
        """The token that delimits documents, as text."""
        return self._eot

    @property
    def bos(self) -> str | None:
        """The token that every text begins with, as text; None where none does, as with Qwen's tokenizers."""
        token = self._config.get("bos_token")
        token = token.get("content") if isinstance(token, dict) else token
        return token if isinstance(token, str) and self._core.token_to_id(token) is not None else None

    @property
    def bos_id(self) -> int | None:
        """The same as an id."""
        return None if self.bos is None else self._core.token_to_id(self.bos)

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """Ids of the tokens that ``encode`` makes with ``special`` alone and ``decode`` leaves out, by their text."""
        added = self._core.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if token.special}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Equal for tokenizers that give equal ids (32 hex digits)."""
        return hashlib.blake2b((self._core.to_str() + self._eot).encode(), digest_size=16).hexdigest()

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of ``text``; with ``special``, special tokens spelt out in it become their ids.

        Raises:
            UserError: a character that a ``char`` tokenizer does not know, or half of a surrogate pair.
        """
        return self.encode_batch([text], special)[0]

    def encode_batch(self, texts: list[str], special: bool = False) -> list[list[int]]:
        """Ids of each text, on all cores."""
        try:
            if self._characters is not None and not special:
                return [[self._characters[character] for character in text] for text in texts]
            core = self._special_core if special else self._core
            return [encoding.ids for encoding in core.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:  # the library raises bare Exception for an unknown character
            raise self._unencodable(texts, error) from error

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of ``ids``; special tokens are left out unless ``special``. Bytes that are not UTF-8 become U+FFFD."""
        return self._core.decode(list(ids), skip_special_tokens=not special)

    def stream(self, special: bool = False) -> TextStream:
        """Decode id by id; see ``TextStream``."""
        return TextStream(self, special)

    def pieces(self) -> list[bytes]:
        """What each token stands for in a text, [vocab_size]; special tokens by their name, unused ids by nothing."""
        pieces = [b""] * self.vocab_size
        decoder = json.loads(self._core.to_str()).get("decoder")
        is_byte_level = '"ByteLevel"' in json.dumps(decoder)
        alphabet = _byte_alphabet()
        for token, index in self._core.get_vocab(with_added_tokens=True).items():
            if is_byte_level and alphabet.keys() >= set(token):
                pieces[index] = bytes(alphabet[character] for character in token)
            elif _BYTE_TOKEN.fullmatch(token) and not self._characters:
                pieces[index] = bytes([int(token[3:5], 16)])
            else:
                # SentencePiece spells a space as U+2581
                pieces[index] = (token if self._characters else token.replace("\u2581", " ")).encode()
        for index, added in self._core.get_added_tokens_decoder().items():
            pieces[index] = added.content.encode()  # spelt plainly, whatever the model
        return pieces

    @property
    def special_ids(self) -> list[int]:
        """Ids of special tokens, which are no part of a text."""
        return [index for index, added in self._core.get_added_tokens_decoder().items() if added.special]

    def token_bytes(self) -> npt.NDArray[np.int32]:
        """UTF-8 bytes that each token stands for, int32 [vocab_size]; 0 for special tokens and unused ids.

        The sum over the ids of a text is the number of its bytes, if the tokenizer does not normalise it. That turns a
        loss in nats a token into bits a byte, which compares models with different tokenizers.
        """
        sizes = np.array([len(piece) for piece in self.pieces()], np.int32)
        sizes[self.special_ids] = 0
        return sizes

    @functools.cached_property
    def _special_core(self) -> tokenizers.Tokenizer:
        """A copy that recognises special tokens: the setting is the object's, and threads share it."""
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


class TextStream:
    """Decodes token by token, so that text can be shown as it is made.

    What ``push`` returned so far, and then ``finish``, is together what ``decode`` makes of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer, special: bool) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._stream = decoders.DecodeStream(skip_special_tokens=not special)
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """Text that ``token`` completes: whole characters only, "" while one is still in pieces."""
        self._ids.append(token)
        text = self._stream.step(self._tokenizer._core, token) or ""
        self._shown += len(text)
        return text

    def finish(self) -> str:
        """What is still held back at the end: the beginning of a character that never came, as U+FFFD."""
        rest = self._tokenizer.decode(self._ids, self._special)[self._shown :]
        self._shown += len(rest)
        return rest


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE on ``texts``.

    Any text can be encoded and comes back unchanged: all 256 bytes are tokens. The vocabulary is smaller than
    ``vocab_size`` (special token included) when no pair of tokens is left that occurs twice; ``Tokenizer.vocab_size``
    tells.
    """
    if vocab_size < MIN_BPE_VOCAB:
        raise UserError(f"vocab_size: {vocab_size} is too small for byte-level BPE; give at least {MIN_BPE_VOCAB}")
    core = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(iter(texts), trainer)
    return Tokenizer(core, EOT)


def char_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A token for each character of ``texts``, in the order of their code points, after the delimiter (id 0)."""
    characters = sorted(set().union(*map(set, texts)))
    vocab = {EOT: 0} | {character: index for index, character in enumerate(characters, 1)}
    core = tokenizers.Tokenizer(
        models.WordLevel(vocab, unk_token="<unk>")
    )  # not in the vocabulary: unknown is an error
    core.pre_tokenizer = pre_tokenizers.Split(Regex(_ANY_CHARACTER), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([EOT])
    return Tokenizer(core, EOT)


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of the byte-level alphabet stands for.

    Printable bytes of Latin-1 are their own characters; the others, in order, are those from U+0100 on.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own = {character: ord(character) for character in alphabet if ord(character) < 256}
    rest = sorted(set(range(256)) - set(own.values()))
    return own | {chr(256 + number): byte for number, byte in enumerate(rest)}
