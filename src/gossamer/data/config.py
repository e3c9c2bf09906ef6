"""Which text to learn from, how it becomes tokens and where the result is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from gossamer.cache import cache_folder
from gossamer.errors import UserError, names_meant, nearest
from gossamer.reading import user_path
from gossamer.typed import Range, check_fields

__all__ = ["HELD_OUT_NAME", "MIN_BPE_VOCAB", "CorpusConfig", "SetConfig"]

HELD_OUT_NAME = "held-out"
"""The held-out set of a corpus that names none."""

MIN_BPE_VOCAB = 257
"""256 byte symbols, so that any text can be written, and the document delimiter."""


@names_meant
@dataclass(frozen=True)
class SetConfig:
    """One of the named sets of text that a corpus is mixed from.

    Args:
        paths: files, folders and Hub datasets, as for a whole corpus.
        weight: share of the training tokens, relative to the other sets' weights; 0: measured on, not trained on.
        validation_paths: explicit held-out text; empty: a tenth of the set is held out.
    """

    paths: tuple[str, ...] = ()
    weight: Annotated[float, Range(0, 1e12)] = 1.0
    validation_paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values of another type or out of range (UserError)."""
        check_fields(self)


@names_meant
@dataclass(frozen=True)
class CorpusConfig:
    """The corpus, its tokenizer and its held-out part.

    Args:
        paths: files and folders of text, source code, JSONL or Parquet, and ``hf:NAME[[:CONFIG]:SPLIT]`` for a Hub
            dataset. Empty: the running Python's standard-library source.
        validation_paths: explicit held-out text, left out of the training text where the two overlap. Empty: a tenth
            of the documents or, where those are few or too uneven, the last tenth of every document is held out.
        sets: several sets of text by name, each with ``paths``, a ``weight`` and ``validation_paths`` of its own, in
            place of the two above: ``{novels: {paths: [a, b], weight: 2}}``. The held-out part of each has its name.
            On the command line ``--corpus.sets.novels.weight 2`` sets one value.
        validation_sets: more held-out text by name, files and folders, left out of all training text.
        tokenizer: ``bpe`` or ``char``, trained on the training text alone, or a run folder or Hugging Face directory
            with a tokenizer.json.
        vocab_size: tokens of a ``bpe`` tokenizer, special tokens included. A small corpus may support fewer: the
            tokenizer's own ``vocab_size`` is the truth.
        text_field: the JSONL field or Parquet column that holds the text.
        errors: ``strict`` refuses bytes that are not UTF-8, ``replace`` reads each as U+FFFD.
        cache_dir: where tokens are kept; default ``$GOSSAMER_CACHE``, else ``$XDG_CACHE_HOME/gossamer``, else
            ``~/.cache/gossamer``.
        workers: processes that tokenise; 0: one for each core. The result does not depend on it.
    """

    paths: tuple[str, ...] = ()
    validation_paths: tuple[str, ...] = ()
    sets: dict[str, SetConfig] = field(default_factory=dict)
    validation_sets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tokenizer: str = "bpe"
    vocab_size: Annotated[int, Range(1, 1 << 24)] = 4096
    text_field: str = "text"
    errors: str = "strict"
    cache_dir: str | None = None
    workers: Annotated[int, Range(0, 1024)] = 0

    def __post_init__(self) -> None:
        """Refuse values that no corpus could be prepared with (UserError)."""
        check_fields(self)
        if self.errors not in ("strict", "replace"):
            raise UserError(
                f"errors: {self.errors!r} is not 'strict' or 'replace'{nearest(self.errors, ['strict', 'replace'])}"
            )
        if self.tokenizer == "bpe" and self.vocab_size < MIN_BPE_VOCAB:
            raise UserError(
                f"vocab_size: {self.vocab_size} is too small for byte-level BPE; give at least {MIN_BPE_VOCAB} "
                "(256 bytes and the document delimiter)"
            )
        self._check_sets()

    def _check_sets(self) -> None:
        for key in ("sets", "validation_sets"):
            for name in getattr(self, key):
                if not re.fullmatch(r"[\w-]+", name):
                    raise UserError(f"{key}: {name!r} is no name; take letters, digits, - and _")
        if self.sets and (self.paths or self.validation_paths):
            given = "paths" if self.paths else "validation_paths"
            raise UserError(f"{given}: the corpus is mixed from sets; name the text in one of them, or leave sets out")
        full = [name for name, one in self.sets.items() if one.paths]
        for name, one in self.sets.items():
            if not one.paths:
                raise UserError(f"sets.{name}: names no paths{nearest(name, full) or '; give its files and folders'}")
        if self.sets and not any(one.weight for one in self.sets.values()):
            raise UserError("sets: all weights are 0, and nothing is left to train on; give one of them a weight > 0")
        for name, paths in self.validation_sets.items():
            if not paths:
                raise UserError(f"validation_sets.{name}: names no paths; give its files and folders")
            if name in (self.sets or (HELD_OUT_NAME,)):
                raise UserError(f"validation_sets.{name}: there is a held-out set of that name already; take another")

    def cache_folder(self) -> Path:
        """The folder that holds prepared corpora; it need not exist yet."""
        if self.cache_dir is not None:
            return user_path(self.cache_dir)
        return cache_folder()
