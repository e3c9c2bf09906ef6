"""How hard a text is, before anything is trained on it: the bits that a compressor needs for a byte of it."""

from __future__ import annotations

import bz2

from gossamer.data.dataset import Dataset

__all__ = ["compressed_bits"]

_BLOCK = 900_000  # bytes: one block of bzip2, whose figure for longer text is the same
_PIECES = 16  # places of the text that it is taken from


def compressed_bits(dataset: Dataset) -> float:
    """Bits per byte that bzip2 needs for up to 900 kB of training text, taken evenly from it, set by set by weight.

    bzip2 sorts contexts of any length, as a language model uses them. Text of less than a block counts as it is.
    """
    data, tokenizer = dataset.train, dataset.tokenizer
    weights = sum(data.weights.values())
    text = bytearray()
    for name, shard in data.token_files.items():
        tokens = _BLOCK * data.weights[name] / weights / (shard.num_bytes / shard.num_tokens)
        count = min(int(tokens), shard.num_tokens) // _PIECES
        for piece in range(_PIECES):
            begin = piece * (shard.num_tokens // _PIECES)
            text += tokenizer.decode(shard.read(begin, count).tolist()).encode()
    return 8 * len(bz2.compress(bytes(text), 9)) / max(len(text), 1)
