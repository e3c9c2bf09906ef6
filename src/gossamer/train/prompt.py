"""Whether a prompt suits the text that a run has read: a recipe's own prompt is meant for the recipe's own text."""

from __future__ import annotations

from gossamer.data.dataset import Dataset
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError

__all__ = ["misfit", "occurs"]

_LOOKED_AT = 1 << 18  # tokens of each set


def misfit(prompt: str, tokenizer: Tokenizer) -> str | None:
    """Why the tokenizer cannot read a prompt; None if it can."""
    try:
        tokenizer.encode(prompt)
    except UserError as error:
        return str(error)
    return None


def occurs(prompt: str, dataset: Dataset) -> bool:
    """Whether the training text has the prompt, near its beginning."""
    texts = (shard.tokens[:_LOOKED_AT].tolist() for shard in dataset.train.shards.values())
    return any(prompt in dataset.tokenizer.decode(ids) for ids in texts)
