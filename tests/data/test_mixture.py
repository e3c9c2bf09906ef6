"""A mixture: which sets count, and what it refuses."""

import numpy as np
import pytest

from gossamer.data.mixture import Mixture
from gossamer.data.shards import Shard
from gossamer.errors import UserError


def shard(tokens: int) -> Shard:
    return Shard(np.zeros(tokens, np.uint16), np.array([0, tokens]), 10 * tokens, "f")


def test_sums() -> None:
    mixture = Mixture({"a": shard(5), "b": shard(7), "c": shard(9)}, {"a": 1, "b": 2.5, "c": 0})
    assert (mixture.num_tokens, mixture.num_documents, mixture.num_bytes) == (12, 2, 120)
    assert mixture.weights == {"a": 1.0, "b": 2.5} and list(mixture.shards) == ["a", "b"]
    assert Mixture({"a": shard(5), "b": shard(7)}).weights == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_refusals(weight: float) -> None:
    with pytest.raises(UserError, match=rf"^sets\.a\.weight = {weight}: must be >= 0"):
        Mixture({"a": shard(5), "b": shard(5)}, {"a": weight, "b": 1})
    with pytest.raises(UserError, match=r"^sets: all weights are 0, and nothing is left to train on"):
        Mixture({"a": shard(5)}, {"a": 0})
