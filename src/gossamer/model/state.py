"""What decoding remembers of the tokens it has seen.

Full attention keeps the keys and values of every token; linear attention keeps one matrix a head and the last inputs
of its convolution, however long the text is. Here for texts of equal length that grow together; `pool` is the same for
many sequences that come and go.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gossamer import ops
from gossamer.errors import UserError
from gossamer.model.config import LINEAR, ModelConfig


@dataclass
class LinearState:
    """State of a linear-attention layer; None before the first token.

    Attributes:
        conv: [B, K − 1, channels] last inputs of the convolution, oldest first
        recurrent: [B, Hv, dk, dv] in float32
    """

    conv: Tensor | None = None
    recurrent: Tensor | None = None


@dataclass
class KeyValueState:
    """Keys and values of a full-attention layer, in buffers that double when they are full.

    Attributes:
        length: tokens held
    """

    length: int = 0
    _keys: Tensor | None = field(default=None, repr=False)
    _values: Tensor | None = field(default=None, repr=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Add the new tokens' k and v, [B, T, Hkv, D]; what q [B, T, H, D] sees of all that is held, [B, T, H, D]."""
        return ops.attention(q, *self._append(k, v))

    def _append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All that is held with these, [B, length, Hkv, D] each."""
        start, self.length = self.length, self.length + k.shape[1]
        self._keys = _append(self._keys, k, start)
        self._values = _append(self._values, v, start)
        return self._keys[:, : self.length], self._values[:, : self.length]


def _append(buffer: Tensor | None, new: Tensor, start: int) -> Tensor:
    end = start + new.shape[1]
    if buffer is None or end > buffer.shape[1]:
        capacity = max(end, 2 * start, 64)
        larger = new.new_empty(new.shape[0], capacity, *new.shape[2:])
        if buffer is not None:
            larger[:, :start] = buffer[:, :start]
        buffer = larger
    buffer[:, start:end] = new
    return buffer


class State:
    """The state of a whole network for a batch of sequences of equal length."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.length = config, 0
        self.batch: int | None = None  # texts, once there are any
        self.layers: list[LinearState | KeyValueState] = [
            LinearState() if mixer == LINEAR else KeyValueState() for mixer in config.mixers
        ]

    def check(self, config: ModelConfig, batch: int) -> None:
        """Refuse a state of another network, or of another number of texts (UserError)."""
        if self.config != config:
            raise UserError("the decoding state is another network's; model.new_state() makes one")
        if self.batch not in (None, batch):
            raise UserError(f"the decoding state is of {self.batch} texts, not of {batch}; begin with a new one")
        self.batch = batch

    def positions(self, new: int, device: torch.device) -> Tensor:
        """Places of the next `new` tokens, [1, new] int64."""
        return torch.arange(self.length, self.length + new, device=device).unsqueeze(0)
