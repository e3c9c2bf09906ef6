"""A byte-level BPE tokenizer as llama.cpp reads it: tokens, merges, and the name of the split before them.

llama.cpp has the splits of known tokenizers in its program, by name. Its converter recognizes a tokenizer by the ids
that it gives, so it cannot know one that was trained here. The split itself is in `tokenizer.json`, and here the name
follows from that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.data.tokenizer import Tokenizer
from gossamer.data.tokenizer_files import end_ids
from gossamer.errors import UserError
from gossamer.reading import read_object

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's llama_token_type

# Qwen's splits, by the name that src/llama-vocab.cpp has for each; the second is that of the tokenizers trained here.
SPLITS = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen35": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
_NAMES = {split: name for name, split in SPLITS.items()}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as a GGUF file describes it.

    Attributes:
        tokens: by id, in the byte-level alphabet; as many as the network has
        types: NORMAL, CONTROL … for each token
        merges: the pairs that are joined, in this order
        pre: llama.cpp's name of the split
        eos: id of the token that ends a text
        eot: id of another token that ends an answer; None: there is none
        bos: id of the token that begins a text; None: there is none
        add_bos: whether llama.cpp puts that token before a text
        chat_templates: Jinja, by name
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    eos: int
    eot: int | None
    bos: int | None
    add_bos: bool
    chat_templates: dict[str, str]


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Read the tokenizer of a Hugging Face directory.

    Args:
        folder: with tokenizer.json
        size: how many token ids the network has; those that the tokenizer does not use are marked as such

    Raises:
        UserError: there is no tokenizer, it is not byte-level BPE, its split has no name in llama.cpp, or none of its
            chat templates is the default.
    """
    tokenizer = Tokenizer.load(folder)
    file = folder / "tokenizer.json"
    values = read_object(file)
    if tokenizer.kind != "BPE":
        raise UserError(
            f"{file}: only byte-level BPE tokenizers can be exported to GGUF; this one is {tokenizer.kind}; "
            "export this model with --to hf, or train with --tokenizer bpe"
        )
    if tokenizer.vocab_size > size:
        raise UserError(
            f"{file}: has {tokenizer.vocab_size} tokens, the network {size}; use the one it was trained with"
        )
    tokens, types = [f"[PAD{index}]" for index in range(size)], [UNUSED] * size
    for token, index in values["model"]["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for added in values["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in values["model"]["merges"]]
    pre = _pre_tokenizer(values.get("pre_tokenizer"), file)
    first = tokenizer.prefix_ids[:1]  # llama.cpp knows one such token
    bos = first[0] if first else tokenizer.bos_id
    eot = next((end for end in end_ids(folder) if end != tokenizer.eot_id), None)
    templates = tokenizer.chat_templates if tokenizer.chat_template is not None else {}
    return Vocabulary(tokens, types, merges, pre, tokenizer.eot_id, eot, bos, bool(first), templates)


def _pre_tokenizer(value: dict[str, Any] | None, file: Path) -> str:
    """Return llama.cpp's name of the split that a tokenizer.json describes."""
    splits = [step["pattern"].get("Regex", "") for step in _steps(value) if step.get("type") == "Split"]
    if len(splits) != 1 or splits[0] not in _NAMES:
        raise UserError(
            f"{file}: llama.cpp's name of the way this tokenizer splits a text is not known here; known are those of "
            "Qwen2, Qwen3.5 and tokenizers trained with gossamer. llama.cpp's convert_hf_to_gguf.py knows others"
        )
    return _NAMES[splits[0]]


def _steps(value: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield the steps of a pre-tokenizer, those of sequences one by one."""
    if value is None:
        return
    if value.get("type") == "Sequence":
        for step in value["pretokenizers"]:
            yield from _steps(step)
    else:
        yield value
