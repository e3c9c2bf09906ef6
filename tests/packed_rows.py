"""Token files whose tokens can be found again, and what holds for every packed batch."""

from collections import Counter
from itertools import pairwise

import numpy as np
import torch
from hypothesis import strategies as st

from gossamer.data.packing import Batch
from gossamer.data.token_files import Mixture, TokenFile
from gossamer.ops.linear_cross_entropy import IGNORED

SIZES = st.lists(st.integers(3, 40), min_size=1, max_size=12)
LENGTHS = st.integers(2, 16)


def numbered_tokens(sizes: list[int], fingerprint: str = "f") -> TokenFile:
    """Documents of `sizes` tokens; each token but the delimiters (0) is another number, so that it is found again."""
    offsets = np.cumsum([0, *sizes])
    tokens = np.arange(1, offsets[-1] + 1, dtype=np.uint32)
    tokens[offsets[:-1]] = tokens[offsets[1:] - 1] = 0
    return TokenFile(tokens, offsets, int(offsets[-1]), fingerprint)


def marked(sizes: list[int]) -> TokenFile:
    """Like `numbered_tokens` with numbers for the delimiters, too: token i is i + 1."""
    offsets = np.cumsum([0, *sizes])
    return TokenFile(np.arange(1, offsets[-1] + 1, dtype=np.uint32), offsets, int(offsets[-1]), "f")


def mixture_of(token_file: TokenFile) -> Mixture:
    return Mixture({"train": token_file})


def spans(batch: Batch) -> list[list[int]]:
    """What lies between the boundaries, padding left out."""
    flat, labels = batch.input_ids.flatten(), batch.labels.flatten()
    bounds = batch.cu_seqlens.tolist()
    found = []
    for begin, end in pairwise(bounds):
        kept = labels[begin:end] != IGNORED
        assert bool(kept.all()) or not bool(kept.any())  # padding is a document of its own
        if bool(kept.all()):
            found.append(flat[begin:end].tolist())
    return found


def check(batch: Batch, rows: int, length: int, token_file: TokenFile) -> None:
    """What holds for every batch."""
    assert batch.input_ids.shape == batch.labels.shape == (rows, length)
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    padding = batch.labels == IGNORED
    assert torch.equal(batch.labels[~padding], batch.input_ids[~padding])
    assert bool((batch.input_ids[padding] == int(token_file.tokens[0])).all())
    assert bool((padding[:, 1:] >= padding[:, :-1]).all())  # at rows' ends alone
    cu = batch.cu_seqlens
    assert cu.dtype == torch.int32 and cu.device.type == "cpu"
    assert cu[0] == 0 and cu[-1] == rows * length and bool((cu.diff() > 0).all())
    assert set(range(0, rows * length, length)) <= set(cu.tolist())


def inside_one_document(span: list[int], token_file: TokenFile) -> bool:
    """Consecutive tokens of a `marked` file, all of one document."""
    begin = span[0] - 1
    document = np.searchsorted(token_file.offsets, begin, side="right")
    return span == list(range(begin + 1, begin + 1 + len(span))) and begin + len(span) <= token_file.offsets[document]


def targets(batch: Batch) -> list[int]:
    """Tokens that are predicted: all of a span but its first."""
    return [token for span in spans(batch) for token in span[1:]]


def all_targets(token_file: TokenFile) -> Counter[int]:
    return Counter(set(range(1, token_file.num_tokens + 1)) - set((token_file.offsets[:-1] + 1).tolist()))
