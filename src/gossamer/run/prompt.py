"""What a run's samples go on from: a prompt that suits its text, words that it has not read, or nothing.

A recipe's own prompt is meant for the recipe's own text. Without one a sample begins a document, as those of training
do; where there are but few, long ones, their beginnings are hardly ever seen, and what the model makes of one tells
nothing. There a sample goes on from held-out words.
"""

from __future__ import annotations

import re

from gossamer.data.dataset import Dataset
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError

__all__ = ["held_out_words", "misfit", "occurs"]

_LOOKED_AT = 1 << 18  # tokens of each set
_LONG = 16  # rows that a document fills in the mean, beyond which beginnings are rare
_WORDS, _CHARACTERS = 12, 80
_READ = 256  # tokens that hold so many words


def misfit(prompt: str, tokenizer: Tokenizer) -> str | None:
    """Why the tokenizer cannot read a prompt; None if it can."""
    try:
        tokenizer.encode(prompt)
    except UserError as error:
        return str(error)
    return None


def held_out_words(dataset: Dataset, sequence_length: int) -> str:
    """The words in the middle of the most important held-out set, where documents are long; else nothing."""
    learnt = dataset.train.token_files.values()
    documents, tokens = sum(shard.num_documents for shard in learnt), sum(shard.num_tokens for shard in learnt)
    held_out = next(iter(dataset.validation.values()))
    if documents * _LONG * sequence_length > tokens or not held_out.num_tokens:
        return ""
    begin = held_out.num_tokens // 2
    text = dataset.tokenizer.decode(held_out.read(begin, min(_READ, held_out.num_tokens - begin)).tolist())
    whole = re.search(rf"(?<=\s)(?:\S+\s+){{{_WORDS - 1}}}\S+(?=\s)", text)  # the first word may have been cut
    words = " ".join((whole.group() if whole else text).split())
    if len(words) > _CHARACTERS:
        words = words[:_CHARACTERS].rpartition(" ")[0] or words[:_CHARACTERS]
    return "" if "\ufffd" in words or misfit(words, dataset.tokenizer) else words


def occurs(prompt: str, dataset: Dataset) -> bool:
    """Whether the training text has the prompt, near its beginning."""
    texts = (shard.tokens[:_LOOKED_AT].tolist() for shard in dataset.train.token_files.values())
    return any(prompt in dataset.tokenizer.decode(ids) for ids in texts)
