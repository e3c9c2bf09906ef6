"""A byte-level BPE tokenizer as llama.cpp reads it: tokens, merges, and the name of the split before them.

llama.cpp has the splits of known tokenizers in its program, by name, and its converter recognises a tokenizer by the
ids that it gives; one that was trained here it cannot know. The split itself is in `tokenizer.json`, though, so here
the name follows from that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.hub.find import read_json

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's llama_token_type

# Qwen's splits, by the name that src/llama-vocab.cpp has for each; the second is that of the tokenizers trained here.
_PRE = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen35",
}


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of its tokenizer.

    Attributes:
        tokens: by id, in the byte-level alphabet; as many as the network has
        types: NORMAL, CONTROL … of each
        merges: the pairs that are joined, the first first
        pre: llama.cpp's name of the split
        eos: id of the token that ends a text
        bos: id of the token that begins one, which llama.cpp then puts there by itself; None: there is none
        chat_template: Jinja, if there is one
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    eos: int
    bos: int | None
    chat_template: str | None


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Read the tokenizer of a Hugging Face directory.

    Args:
        folder: with tokenizer.json
        size: token ids of the network; those that the tokenizer does not use are marked so

    Raises:
        UserError: there is no tokenizer, it is none of byte-level BPE, or its split has no name in llama.cpp.
    """
    tokenizer = Tokenizer.load(folder)
    file = folder / "tokenizer.json"
    values = read_json(file)
    if tokenizer.kind != "BPE":
        raise UserError(
            f"{file}: llama.cpp gets byte-level BPE alone from here, this tokenizer is {tokenizer.kind}; "
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
    bos = None if tokenizer.bos is None else tokens.index(tokenizer.bos)
    pre = _pre_tokenizer(values.get("pre_tokenizer"), file)
    return Vocabulary(tokens, types, merges, pre, tokenizer.eot_id, bos, tokenizer.chat_template)


def _pre_tokenizer(value: dict[str, Any] | None, file: Path) -> str:
    splits = [step["pattern"].get("Regex", "") for step in _steps(value) if step.get("type") == "Split"]
    if len(splits) != 1 or splits[0] not in _PRE:
        raise UserError(
            f"{file}: llama.cpp's name of the way this tokenizer splits a text is not known here; "
            "convert what --to hf writes with llama.cpp's convert_hf_to_gguf.py"
        )
    return _PRE[splits[0]]


def _steps(value: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a pre-tokenizer, sequences taken apart."""
    if value is None:
        return
    if value.get("type") == "Sequence":
        for step in value["pretokenizers"]:
            yield from _steps(step)
    else:
        yield value
