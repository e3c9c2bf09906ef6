"""Which text to learn from, how it becomes tokens and where the result is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from gossamer.errors import FieldError, did_you_mean
from gossamer.reading import TextErrors, user_path
from gossamer.typed import RESUMABLE, Flag, Metavar, Range, Unit, check_fields, reject_unknown_fields

__all__ = ["DEFAULT_VALIDATION_SET", "MIN_BPE_VOCAB", "CorpusConfig", "SetConfig"]

DEFAULT_VALIDATION_SET = "held-out"
"""The validation set of a corpus that names none."""

MIN_BPE_VOCAB = 257
"""256 byte symbols, so that any text can be written, and the document delimiter."""


_Paths = Annotated[tuple[str, ...], Metavar("PATH")]


@reject_unknown_fields
@dataclass(frozen=True)
class SetConfig:
    """One of the named sets of text that a corpus is mixed from.

    Attributes:
        paths: files, folders and Hub datasets, as for a whole corpus
        weight: share of the training tokens, relative to the other sets' weights; a set of weight 0 is measured on and
            not trained on
        validation_paths: text to validate on; empty: a tenth of the set is held out
    """

    paths: _Paths = ()
    weight: Annotated[float, Range(0, 1e12)] = 1.0
    validation_paths: _Paths = ()

    def __post_init__(self) -> None:
        check_fields(self)


@reject_unknown_fields
@dataclass(frozen=True)
class CorpusConfig:
    """The text to train on, the text to validate on, and the tokenizer.

    Attributes:
        paths: text to train on: files and folders of text, source code, JSONL or Parquet, and
            `hf:NAME[[:CONFIG]:SPLIT]` for a dataset of the Hub; empty: the source of Python's standard library
        validation_paths: text to validate on, left out of the training text where the two overlap; empty: a tenth of
            the documents is held out or, where those are few or too uneven, the last tenth of every document
        sets: several sets of text by name, in place of the two above, each with paths, a weight and validation_paths of
            its own: `{novels: {paths: [a, b], weight: 2}}`. On the command line, `--corpus.sets.novels.weight 2` sets
            one value of them. The validation text of each set has its name
        validation_sets: more text to validate on, by name, left out of all training text: `{news: [c, d]}`
        tokenizer: bpe or char, trained on the training text only, or a folder with a tokenizer.json: a run or a Hugging
            Face directory
        vocab_size: size of a bpe tokenizer's vocabulary, special tokens included; a small corpus may give fewer
        text_field: JSONL field or Parquet column that holds the text
        errors: what to do about bytes that are not UTF-8: strict refuses them, replace reads each as U+FFFD
        cache_dir: folder that tokens are kept in (default: $GOSSAMER_CACHE, else $XDG_CACHE_HOME/gossamer, else
            ~/.cache/gossamer)
        workers: processes that tokenize; 0: one for each core. The result does not depend on it
    """

    paths: Annotated[_Paths, Flag("data")] = ()
    validation_paths: _Paths = ()
    sets: dict[str, SetConfig] = field(default_factory=dict)
    validation_sets: dict[str, _Paths] = field(default_factory=dict)
    tokenizer: Annotated[str, Flag("tokenizer")] = "bpe"
    vocab_size: Annotated[int, Range(1, 1 << 24), Unit("tokens")] = 4096
    text_field: str = "text"
    errors: Annotated[TextErrors, Flag("errors")] = "strict"
    cache_dir: Annotated[str | None, RESUMABLE] = None
    workers: Annotated[int, Range(0, 1024), Unit("processes"), RESUMABLE] = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.tokenizer == "bpe" and self.vocab_size < MIN_BPE_VOCAB:
            problem = f"{self.vocab_size} is too small for byte-level BPE; give at least {MIN_BPE_VOCAB} "
            raise FieldError("vocab_size", f": {problem}(256 bytes and the document delimiter)")
        self._check_sets()

    def _check_sets(self) -> None:
        for key in ("sets", "validation_sets"):
            for name in getattr(self, key):
                if not re.fullmatch(r"[\w-]+", name):
                    raise FieldError(key, f": {name!r} is not a valid name; use letters, digits, - and _")
        if self.sets and (self.paths or self.validation_paths):
            given = "paths" if self.paths else "validation_paths"
            raise FieldError(given, ": the corpus is mixed from sets; name the text in one of them, or leave sets out")
        with_paths = [name for name, one in self.sets.items() if one.paths]
        for name, one in self.sets.items():
            if not one.paths:
                hint = did_you_mean(name, with_paths) or "; give its files and folders"
                raise FieldError(f"sets.{name}", f": names no paths{hint}")
        if self.sets and not any(one.weight for one in self.sets.values()):
            raise FieldError("sets", ": all weights are 0, and nothing is left to train on; give one a weight > 0")
        for name, paths in self.validation_sets.items():
            if not paths:
                raise FieldError(f"validation_sets.{name}", ": names no paths; give its files and folders")
            if name in (self.sets or (DEFAULT_VALIDATION_SET,)):
                problem = ": there is a validation set of that name already; choose another name"
                raise FieldError(f"validation_sets.{name}", problem)

    def cache_folder(self) -> Path:
        """The folder that holds prepared corpora; it need not exist yet."""
        if self.cache_dir is not None:
            return user_path(self.cache_dir)
        from gossamer.files import cache_folder  # the command line reads this module before it knows which verb runs

        return cache_folder()
