"""Which text to learn from, how it becomes tokens and where the result is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gossamer.errors import UserError, nearest

__all__ = ["MIN_BPE_VOCAB", "CorpusConfig"]

MIN_BPE_VOCAB = 257
"""256 byte symbols, so that any text can be written, and the document delimiter."""


@dataclass(frozen=True)
class CorpusConfig:
    """The corpus, its tokenizer and its held-out part.

    Args:
        paths: files and folders of text, source code, JSONL or Parquet, and ``hf:NAME[[:CONFIG]:SPLIT]`` for a Hub
            dataset. Empty: the running Python's standard-library source.
        validation_paths: explicit held-out text, left out of the training text where the two overlap. Empty: a tenth
            of the documents (20 documents or more) or the last tenth of every document is held out.
        tokenizer: ``bpe`` or ``char``, trained on the training text alone, or a run folder or Hugging Face directory
            with a tokenizer.json.
        vocab_size: tokens of a ``bpe`` tokenizer, special tokens included. A small corpus may support fewer: the
            tokenizer's own ``vocab_size`` is the truth.
        text_field: the JSONL field or Parquet column that holds the text.
        errors: ``strict`` refuses bytes that are not UTF-8, ``replace`` reads each as U+FFFD.
        cache_dir: where tokens are kept; default ``$GOSSAMER_CACHE``, else ``$XDG_CACHE_HOME/gossamer``, else
            ``~/.cache/gossamer``.
    """

    paths: tuple[str, ...] = ()
    validation_paths: tuple[str, ...] = ()
    tokenizer: str = "bpe"
    vocab_size: int = 4096
    text_field: str = "text"
    errors: str = "strict"
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that no corpus could be prepared with (UserError)."""
        if self.errors not in ("strict", "replace"):
            raise UserError(
                f"errors: {self.errors!r} is not 'strict' or 'replace'{nearest(self.errors, ['strict', 'replace'])}"
            )
        if self.tokenizer == "bpe" and self.vocab_size < MIN_BPE_VOCAB:
            raise UserError(
                f"vocab_size: {self.vocab_size} is too small for byte-level BPE; give at least {MIN_BPE_VOCAB} "
                "(256 bytes and the document delimiter)"
            )

    def cache_folder(self) -> Path:
        """The folder that holds prepared corpora; it need not exist yet."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        if os.environ.get("GOSSAMER_CACHE"):
            return Path(os.environ["GOSSAMER_CACHE"]).expanduser()
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "gossamer"
