"""The law of what loss a network of this family reaches, with constants fitted to runs (benchmarks/scaling.py).

    bits per byte = (c / c0)^γ · (E + ((A / N^α)^(1/β) + (B / D'^β)^(1/β))^β)
    D' = U + U R (1 - exp(-(D / U - 1) / R))        where D > U, else D

N is the number of trunk parameters that a token passes, in millions. D is the number of bytes of text read, in
millions; U is how many of them are different, for reading them again is worth less each time (arXiv 2305.16264). c is
the number of bits that a compressor needs for a byte of the text, and c0 that of the text that most runs read: harder
text is harder to learn. Size and data are joined as in arXiv 2001.08361: the scarcer of the two decides, so that after
little text all sizes are alike, which a sum of both would deny. Bytes and bits, not tokens and nats, make texts and
tokenizers comparable.
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
_SAME_TEXT = 0.02  # relative difference in what a compressor needs, below which a text is like that of the runs
_DOUBT_BEYOND = 0.5  # of the difference that the law makes between the fitted runs and what lies beyond them


@dataclass(frozen=True)
class Text:
    """What the law has to know of a text.

    Attributes:
        unique_bytes: bytes of the training text
        compressed_bits: bits that bzip2 needs for a byte of it
    """

    unique_bytes: float
    compressed_bits: float


@dataclass(frozen=True)
class Law:
    """The constants of the law, and where they come from; the head of this file gives the formula.

    Attributes:
        E: bits that remain, however large the network and however long the text
        A: factor of the size
        alpha: exponent of the size
        B: factor of the data
        beta: exponent of the data
        gamma: exponent of the text's difficulty
        R: how many repetitions of a text are worth reading
        c0: bits that bzip2 needs for a byte of the text that most runs read
        trunk_parameters: sizes of the smallest and the largest network of the runs
        bytes: the shortest and the longest text that a run read
        error: relative error that nine of ten runs stay within on the text that most read, by runs left out of the fit
        other_text: the same on another text, by texts left out of the fit
        speed_error: factor less one by which nine of ten runs read less or more text than the machine's speed had
            promised, which was measured for a moment before they began
        runs: number of runs
        texts: texts that they read
        recipe: fingerprint of their recipe
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
    other_text: float = 0.0
    speed_error: float = 0.0
    runs: int = 0
    texts: tuple[str, ...] = ()
    recipe: str = ""

    def bits_per_byte(self, trunk_parameters: float, read_bytes: float, text: Text) -> float:
        """Predict the bits that a network needs for a byte of held-out text.

        Args:
            trunk_parameters: parameters that a token passes in the layers
            read_bytes: bytes of text that the network has read
            text: the text
        """
        data = self.worth(read_bytes, text.unique_bytes) / _MILLION
        size = trunk_parameters / _MILLION
        by_size, by_data = self.A * size**-self.alpha, self.B * data**-self.beta
        less, more = sorted((by_size, by_data))
        bits = self.E + more * (1 + (less / more) ** (1 / self.beta)) ** self.beta
        return (text.compressed_bits / self.c0) ** self.gamma * bits

    def worth(self, read_bytes: float, unique_bytes: float) -> float:
        """Return how many bytes that were never read before would teach as much as those read."""
        if read_bytes <= unique_bytes:
            return read_bytes
        again = read_bytes / unique_bytes - 1
        return unique_bytes * (1 + self.R * -math.expm1(-again / self.R))

    def band(self, trunk_parameters: float, read_bytes: float, text: Text, by_clock: bool) -> float:
        """Return the relative error of a prediction that nine of ten runs stay within.

        Three independent errors are joined: what the law misses of a text; how far off the speed may be, if the run
        ends at a time; and beyond the runs that were fitted, a part of what the law says is gained there.

        Args:
            trunk_parameters: parameters that a token passes in the layers
            read_bytes: bytes of text that the network has read
            text: the text
            by_clock: whether the run ends at a time, so that its speed decides how much it reads
        """
        predicted = self.bits_per_byte(trunk_parameters, read_bytes, text)
        same_text = abs(text.compressed_bits / self.c0 - 1) < _SAME_TEXT
        errors = [self.error if same_text else self.other_text]
        if by_clock:
            slower = self.bits_per_byte(trunk_parameters, read_bytes / (1 + self.speed_error), text)
            errors.append(slower / predicted - 1)
        size, length = (
            min(max(value, low), high)
            for value, (low, high) in ((trunk_parameters, self.trunk_parameters), (read_bytes, self.bytes))
        )
        errors.append(_DOUBT_BEYOND * abs(math.log(self.bits_per_byte(size, length, text) / predicted)))
        return math.hypot(*errors)

    def covers(self, trunk_parameters: float, read_bytes: float) -> bool:
        """Return whether a run lies within the sizes and lengths of the runs that were fitted."""
        sizes, lengths = self.trunk_parameters, self.bytes
        return sizes[0] <= trunk_parameters <= sizes[1] and lengths[0] <= read_bytes <= lengths[1]


@lru_cache
def law() -> Law:
    """Return the law as it was last fitted."""
    record: dict[str, Any] = read_object(_FILE)
    return Law(**{item.name: _tuple(record[item.name]) for item in fields(Law)})


def write_law(new: Law) -> Path:
    """Write a law as the one that holds from now on, and return its file."""
    _FILE.write_text(json.dumps(asdict(new), indent=1) + "\n")
    return _FILE


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
