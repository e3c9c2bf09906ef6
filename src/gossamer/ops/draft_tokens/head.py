"""What `draft_tokens` needs to know of a multi-token-prediction head, and of the tokens that are wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops.checks import check_floats, check_kind, shape
from gossamer.ops.decode_layers.layers import Int8, Layers, Matrix, check_matrix, in_one_piece
from gossamer.ops.sequences import Sequences


@dataclass(frozen=True)
class Head:
    """A multi-token-prediction head, and the output head that it shares with the trunk.

    Attributes:
        embedding: [V, hidden], of tokens
        embedding_norm: [hidden], of a token's embedding, as what is multiplied with
        hidden_norm: [hidden], of a hidden state, likewise
        joint: [hidden, 2 · hidden], what joins the two
        layers: the head's one layer and the norm behind it
        logits: [V, hidden], the output head
        plain: ids after each place [T], hidden states [T, hidden], whose they are → the head's output [T, hidden]
    """

    embedding: Tensor
    embedding_norm: Tensor
    hidden_norm: Tensor
    joint: Matrix
    layers: Layers
    logits: Matrix
    plain: Callable[[Tensor, Tensor, Sequences], Tensor]

    def __post_init__(self) -> None:
        """Refuse what does not belong together (UserError): no step looks again."""
        check_kind("draft_tokens", "layers", self.layers, Layers)
        check_floats("draft_tokens", final_norm=self.layers.final_norm, embedding=self.embedding)
        hidden, vocab = len(self.layers.final_norm), self.embedding.shape[0] if self.embedding.ndim else 0
        shapes = {"embedding": (vocab, hidden), "embedding_norm": (hidden,), "hidden_norm": (hidden,)}
        shapes |= {"joint": (hidden, 2 * hidden), "logits": (vocab, hidden)}
        for name, wanted in shapes.items():
            matrix = values = numbers = getattr(self, name)
            if name in ("joint", "logits") and isinstance(matrix, Int8):
                check_matrix("draft_tokens", name, matrix)
                values, numbers = matrix
            check_floats("draft_tokens", **{"final_norm": self.layers.final_norm, name: numbers})
            if tuple(values.shape) != wanted:
                raise UserError(f"draft_tokens: {name} {shape(values)} must be {list(wanted)}")

    @property
    def fits_kernel(self) -> bool:
        """Whether all is of float32 or, with scales, of int8, and lies in one piece."""
        norms = self.embedding, self.embedding_norm, self.hidden_norm
        return self.layers.fits_kernel and all(in_one_piece(x) for x in (*norms, self.joint, self.logits))


class Draws(NamedTuple):
    """How tokens of N sequences are drawn (see `ops.draw`).

    Attributes:
        counts: [N] tokens wanted
        temperatures: [N] float32 on the CPU
        keys: [N, largest count] int64 on the CPU, of each token
    """

    counts: tuple[int, ...]
    temperatures: Tensor
    keys: Tensor
