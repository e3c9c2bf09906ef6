"""What loss a network of this family reaches: a law whose constants were fitted to runs (benchmarks/scaling.py).

    bits per byte = (c / c0)^γ · (E + ((A / N^α)^(1/β) + (B / D'^β)^(1/β))^β)
    D' = U + U R (1 - exp(-(D / U - 1) / R))        where D > U, else D

N: trunk parameters that a token passes, in millions. D: bytes of text read, in millions. U: different ones among them;
reading them again is worth less each time (arXiv 2305.16264). c: bits that a compressor needs for a byte of the text,
c0 of the text that most runs read: harder text is harder to learn. Size and data are joined as in arXiv 2001.08361:
what there is less of decides, so that after little text all sizes are alike, which a sum of both would deny. Bytes and
bits, not tokens and nats, let texts and tokenizers be compared.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from gossamer.reading import read_object

__all__ = ["Law", "Text", "law", "write_law"]

_FILE = Path(__file__).with_name("scaling.json")
_MILLION = 1e6


@dataclass(frozen=True)
class Text:
    """What the law has to know of a text.

    Attributes:
        unique_bytes: of the training text
        compressed_bits: that bzip2 needs for a byte of it
    """

    unique_bytes: float
    compressed_bits: float


@dataclass(frozen=True)
class Law:
    """The law's constants, and where they come from.

    Attributes:
        E, A, alpha, B, beta, gamma, R: see above
        c0: bits that bzip2 needs for a byte of the text that most runs read
        trunk_parameters: fewest and most of the runs' networks
        bytes: least and most text that a run read
        error: mean relative error for a run on the text that most read, left out of the fit
        worst: the largest of these
        other_text: mean relative error for the runs on a text none of which was in the fit
        runs: how many
        texts: what they read
        recipe: fingerprint of the recipe that they are runs of
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    gamma: float
    R: float
    c0: float
    trunk_parameters: tuple[float, float] = (0.0, math.inf)
    bytes: tuple[float, float] = (0.0, math.inf)
    error: float = 0.0
    worst: float = 0.0
    other_text: float = 0.0
    runs: int = 0
    texts: tuple[str, ...] = ()
    recipe: str = ""

    def bits_per_byte(self, trunk_parameters: float, read_bytes: float, text: Text) -> float:
        """What a network is predicted to need for a byte of held-out text, having read so many bytes of its kind."""
        data = self.worth(read_bytes, text.unique_bytes) / _MILLION
        size = trunk_parameters / _MILLION
        by_size, by_data = self.A * size**-self.alpha, self.B * data**-self.beta
        less, more = sorted((by_size, by_data))
        bits = self.E + more * (1 + (less / more) ** (1 / self.beta)) ** self.beta
        return (text.compressed_bits / self.c0) ** self.gamma * bits

    def worth(self, read_bytes: float, unique_bytes: float) -> float:
        """Bytes never read before that would teach as much."""
        if read_bytes <= unique_bytes:
            return read_bytes
        again = read_bytes / unique_bytes - 1
        return unique_bytes * (1 + self.R * -math.expm1(-again / self.R))

    def covers(self, trunk_parameters: float, read_bytes: float) -> bool:
        """Whether runs of such a size and length were fitted, or smaller and larger ones."""
        sizes, lengths = self.trunk_parameters, self.bytes
        return sizes[0] <= trunk_parameters <= sizes[1] and lengths[0] <= read_bytes <= lengths[1]


@lru_cache
def law() -> Law:
    """The law as it was last fitted."""
    record: dict[str, Any] = read_object(_FILE)
    return Law(**{item.name: _tuple(record[item.name]) for item in fields(Law)})


def write_law(found: Law) -> Path:
    """Make it the law from now on; returns the file."""
    _FILE.write_text(json.dumps(asdict(found), indent=1) + "\n")
    return _FILE


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
