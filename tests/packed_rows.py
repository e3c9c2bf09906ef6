"""Shards whose tokens can be found again, and what holds for every packed batch."""

from collections import Counter
from itertools import pairwise

import numpy as np
import torch
from hypothesis import strategies as st

from gossamer.data.mixture import Mixture
from gossamer.data.packing import IGNORE, Batch
from gossamer.data.shards import Shard

SIZES = st.lists(st.integers(3, 40), min_size=1, max_size=12)
LENGTHS = st.integers(2, 16)


def shard_of(sizes: list[int], fingerprint: str = "f") -> Shard:
    """Documents of ``sizes`` tokens; each token but the delimiters (0) is another number, so that it is found again."""
    offsets = np.cumsum([0, *sizes])
    tokens = np.arange(1, offsets[-1] + 1, dtype=np.uint32)
    tokens[offsets[:-1]] = tokens[offsets[1:] - 1] = 0
    return Shard(tokens, offsets, int(offsets[-1]), fingerprint)


def marked(sizes: list[int]) -> Shard:
    """Like ``shard_of`` with numbers for the delimiters, too: token i is i + 1."""
    offsets = np.cumsum([0, *sizes])
    return Shard(np.arange(1, offsets[-1] + 1, dtype=np.uint32), offsets, int(offsets[-1]), "f")


def alone(shard: Shard) -> Mixture:
    return Mixture({"train": shard})


def stretches(batch: Batch) -> list[list[int]]:
    """What lies between the boundaries, padding left out."""
    flat, labels = batch.input_ids.flatten(), batch.labels.flatten()
    bounds = batch.cu_seqlens.tolist()
    found = []
    for begin, end in pairwise(bounds):
        kept = labels[begin:end] != IGNORE
        assert bool(kept.all()) or not bool(kept.any())  # padding is a document of its own
        if bool(kept.all()):
            found.append(flat[begin:end].tolist())
    return found


def check(batch: Batch, rows: int, length: int, shard: Shard) -> None:
    """What holds for every batch."""
    assert batch.input_ids.shape == batch.labels.shape == (rows, length)
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    padding = batch.labels == IGNORE
    assert torch.equal(batch.labels[~padding], batch.input_ids[~padding])
    assert bool((batch.input_ids[padding] == int(shard.tokens[0])).all())
    assert bool((padding[:, 1:] >= padding[:, :-1]).all())  # at rows' ends alone
    cu = batch.cu_seqlens
    assert cu.dtype == torch.int32 and cu.device.type == "cpu"
    assert cu[0] == 0 and cu[-1] == rows * length and bool((cu.diff() > 0).all())
    assert set(range(0, rows * length, length)) <= set(cu.tolist())


def inside_one_document(stretch: list[int], shard: Shard) -> bool:
    """Consecutive tokens of a ``marked`` shard, all of one document."""
    begin = stretch[0] - 1
    document = np.searchsorted(shard.offsets, begin, side="right")
    return (
        stretch == list(range(begin + 1, begin + 1 + len(stretch))) and begin + len(stretch) <= shard.offsets[document]
    )


def targets(batch: Batch) -> list[int]:
    """Tokens that are predicted: all of a stretch but its first."""
    return [token for stretch in stretches(batch) for token in stretch[1:]]


def all_targets(shard: Shard) -> Counter[int]:
    return Counter(set(range(1, shard.num_tokens + 1)) - set((shard.offsets[:-1] + 1).tolist()))
