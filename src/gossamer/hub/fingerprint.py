"""What tells one model from another: a hash of its files that takes moments, also where they hold hundreds of GB."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gossamer.hub.find import CONFIG
from gossamer.reading import open_to_read

__all__ = ["model_fingerprint"]

_FILES = (CONFIG, "*.safetensors", "gguf.json")
_CHUNK = 64 << 10  # bytes
_MAX_CHUNKS = 1024  # of a file, spread evenly over it; a file of up to 64 MiB is read whole


def model_fingerprint(folder: Path) -> str:
    """Return the fingerprint of the model in a Hugging Face directory (32 hex digits).

    It is a hash of config.json, and of the names, sizes and contents of the shards. Of a large shard, 1,024 chunks of
    64 KiB stand for the whole.

    Args:
        folder: what `find_model` gives

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for name in _FILES for path in folder.glob(name)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        count = min(_MAX_CHUNKS, -(-size // _CHUNK))
        with open_to_read(path) as file:
            for index in range(count):
                file.seek(max(size - _CHUNK, 0) * index // max(count - 1, 1))
                digest.update(file.read(_CHUNK))
    return digest.hexdigest()
