"""A model's fingerprint: the same for the same files wherever they lie, another for other weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gossamer.hub.fingerprint import model_fingerprint


def test_it_follows_the_weights_and_not_the_place(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "config.json").write_text("{}")
    (first / "model.safetensors").write_bytes(bytes(range(256)) * 1024)
    shutil.copytree(first, second)
    os.utime(second / "config.json", (0, 0))
    found = model_fingerprint(first)
    assert model_fingerprint(second) == found and len(found) == 32
    for place in (0, 131_072, 262_143):
        with open(second / "model.safetensors", "r+b") as file:
            file.seek(place)
            old = file.read(1)
            file.seek(place)
            file.write(bytes([old[0] ^ 1]))
            file.flush()
            assert model_fingerprint(second) != found
            file.seek(place)
            file.write(old)
    assert model_fingerprint(second) == found
    (second / "config.json").write_text("[]")
    assert model_fingerprint(second) != found
