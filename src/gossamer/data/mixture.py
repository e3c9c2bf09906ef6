"""Several sets of text to learn from, each with its share of the training tokens."""

from __future__ import annotations

from collections.abc import Mapping

from gossamer.data.shards import Shard
from gossamer.errors import UserError

__all__ = ["Mixture"]


class Mixture:
    """Training sets by name.

    Args:
        shards: the sets, tokenised by the same tokenizer.
        weights: the share of each in the training tokens, relative to the others; default: equal shares. Sets with
            weight 0 are left out.

    Raises:
        UserError: a weight is negative, or none is positive.
    """

    def __init__(self, shards: Mapping[str, Shard], weights: Mapping[str, float] | None = None) -> None:
        weights = dict.fromkeys(shards, 1.0) if weights is None else weights
        assert weights.keys() == shards.keys()
        for name, weight in weights.items():
            if not weight >= 0:
                raise UserError(f"sets.{name}.weight = {weight}: must be >= 0")
        self.shards: dict[str, Shard] = {name: shard for name, shard in shards.items() if weights[name]}
        self.weights: dict[str, float] = {name: float(weights[name]) for name in self.shards}
        if not self.shards:
            raise UserError("sets: all weights are 0, and nothing is left to train on; give one of them a weight > 0")

    @property
    def num_tokens(self) -> int:
        """Tokens of all sets, delimiters included."""
        return sum(shard.num_tokens for shard in self.shards.values())

    @property
    def num_documents(self) -> int:
        """Documents of all sets."""
        return sum(shard.num_documents for shard in self.shards.values())

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all sets' text."""
        return sum(shard.num_bytes for shard in self.shards.values())
