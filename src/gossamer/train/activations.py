"""What each part of the network keeps in memory for its backward pass, and what it needs beside that while it runs.

Each part's tensors are listed by their width: numbers a token, or bytes where they are no floating-point numbers. The
lists follow the code: what a module's and an operation's autograd saves, and what is alive at the fullest moment of
their backward passes (a function's local tensors stay until it returns). `tests/train/test_memory.py` holds them
against the tensors of a real step.

Norms, gates and the delta rule are in float32 always (`Shape.wide`), the rest in the computing type (`Shape.narrow`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gossamer.model.config import LINEAR, ModelConfig
from gossamer.ops.delta_rule import CHUNK
from gossamer.ops.linear_cross_entropy.chunked import CHUNK_BYTES

_FLOAT = 4  # bytes of a float32
_INDEX = 8  # bytes of an int64


@dataclass(frozen=True)
class Shape:
    """What passes the network at once, on one process.

    Attributes:
        rows: rows of a micro-batch
        length: tokens of a row, taken to be one document
        itemsize: bytes of a number in the computing type: 4, or 2 in bfloat16
    """

    rows: int
    length: int
    itemsize: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def wide(self, *widths: float) -> list[int]:
        """Bytes of float32 tensors of so many numbers a token."""
        return [int(self.tokens * width * _FLOAT) for width in widths]

    def narrow(self, *widths: float) -> list[int]:
        """Bytes of tensors in the computing type."""
        return [int(self.tokens * width * self.itemsize) for width in widths]

    def inputs(self, width: int, projections: int) -> list[int]:
        """What so many projections of one float32 tensor keep of it: itself, or a copy each in the computing type."""
        return self.wide(width) if self.itemsize == _FLOAT else self.narrow(*[width] * projections)


@dataclass(frozen=True)
class Activations:
    """Tensors of a part of the network, in bytes each.

    Attributes:
        kept: from the forward pass to the end of the part's backward pass
        working: beside those at the fullest moment of the part's backward pass, gradients of weights aside
        released: bytes of `kept` that the backward pass has let go of before that moment
    """

    kept: tuple[int, ...]
    working: tuple[int, ...]
    released: int = 0


def _listed(kept: Iterable[int], working: Iterable[int], released: Iterable[int] = ()) -> Activations:
    return Activations(tuple(kept), tuple(working), sum(released))


def linear_attention(config: ModelConfig, shape: Shape) -> Activations:
    """Gated DeltaNet with the norm before it and the residual stream that enters it."""
    hidden, key, value = config.hidden_size, config.linear_key_dim, config.linear_value_dim
    key_heads, value_heads = config.linear_num_key_heads, config.linear_num_value_heads
    chunk = min(CHUNK, 1 << (shape.length - 1).bit_length())
    slots = -(-shape.length // chunk) * chunk / shape.length  # places of the chunks, for each token
    scores, keys = value_heads * chunk * slots, value_heads * config.linear_key_head_dim * slots
    states = value_heads * config.linear_key_head_dim * config.linear_value_head_dim * slots / chunk
    key_side, value_side = key * slots, value * slots
    wide, narrow = shape.wide, shape.narrow

    gated_norm = [*wide(value, value, value, value, value), *narrow(value)]  # o, normed, y, z, SiLU(z), their product
    kept = [
        *_norm(config, shape),
        *shape.inputs(hidden, 2),
        *narrow(config.linear_conv_dim),
        *wide(*[value_heads] * 5),  # the gates, before and after the chunks
        *wide(key_side, key_side, value_side, value_side, scores, states),  # Q, K, V, Ṽ, A and the states
        *wide(key_heads, key_heads),
        *gated_norm,
    ]
    working = [
        *wide(hidden),  # gradient of the residual stream
        *narrow(value, value),  # gradients of o and z
        *wide(*[scores] * 9),  # M, P, L, dP, G, dA, dL, H, dM
        *wide(*[key_heads * chunk * slots] * 2),  # K Kᵀ, Q Kᵀ
        *wide(*[keys] * 8),  # β e^c K, W, r K, e^c Q, dO Sᵀ, dW, Y, Ṽ dS'ᵀ
        *wide(*[value_side] * 5),  # dO, dṼ, X, β X, and that token by token
        *wide(*[key_side] * 4),  # dQ, dK, before and after the norm's backward
        *wide(states),
        *narrow(value, key, key),
    ]
    return _listed(kept, working, gated_norm)


def full_attention(config: ModelConfig, shape: Shape) -> Activations:
    """Gated softmax attention with the norm before it and the residual stream that enters it."""
    hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
    narrow, kv_width = shape.narrow, config.num_key_value_heads * config.head_dim
    projected = narrow(2 * width) if shape.itemsize == _FLOAT else shape.wide(width)  # q alone is kept if it is cast
    kept = [
        *_norm(config, shape),
        *shape.inputs(hidden, 3),
        *projected,
        *shape.wide(width, kv_width, kv_width),  # q normed; k before and after
        *narrow(width, kv_width, kv_width),  # q and k rotated, v
        *narrow(width, width, width),  # the result, its gate, their product
        *shape.wide(2 * config.num_attention_heads + config.num_key_value_heads),
    ]
    gradients = narrow(*[width] * 4, *[kv_width] * 2)  # of result, gate and product, of q, k and v
    return _listed(kept, [*shape.wide(hidden), *gradients], narrow(width))


def experts(config: ModelConfig, shape: Shape) -> Activations:
    """Router, routed experts and shared expert with the norm before them and the residual stream that enters them."""
    hidden, chosen, narrow = config.hidden_size, config.num_experts_per_tok, shape.narrow
    width, shared = config.moe_intermediate_size, config.shared_expert_intermediate_size
    kept = [
        *_norm(config, shape),
        *shape.wide(hidden),  # the router's input
        *([] if shape.itemsize == _FLOAT else narrow(hidden, hidden, hidden)),  # the shared expert's and its gate's
        *shape.wide(config.num_experts, config.num_experts),
        *[shape.tokens * chosen * _INDEX] * 4,
        *shape.wide(chosen, chosen, chosen),
        *narrow(chosen * hidden, 2 * chosen * width, chosen * width),
        *narrow(shared, shared, shared, shared, hidden),
    ]
    working = [
        *shape.wide(hidden),
        *narrow(hidden),
        *narrow(chosen * hidden, chosen * hidden),  # gradients of the rows, and those by token
        *narrow(2 * chosen * width, chosen * width, chosen * width),
        *narrow(hidden),
    ]
    return _listed(kept, working, narrow(shared, shared, shared, shared, hidden))


def dense(config: ModelConfig, shape: Shape) -> Activations:
    """A dense SwiGLU with the norm before it and the residual stream that enters it."""
    hidden, width = config.hidden_size, config.intermediate_size
    kept = [*_norm(config, shape), *shape.inputs(hidden, 2), *shape.narrow(width, width, width, width)]
    return _listed(kept, [*shape.wide(hidden), *shape.narrow(width, width, width, hidden)], shape.narrow(width))


def mixer(config: ModelConfig, kind: str, shape: Shape) -> Activations:
    """A layer's attention of either kind."""
    part: Callable[[ModelConfig, Shape], Activations] = linear_attention if kind == LINEAR else full_attention
    return part(config, shape)


def feed_forward(config: ModelConfig, sparse: bool, shape: Shape) -> Activations:
    """A layer's feed-forward part of either kind."""
    return experts(config, shape) if sparse else dense(config, shape)


def draft_input(config: ModelConfig, shape: Shape) -> Activations:
    """What the multi-token-prediction head does before its block: two norms and the projection of both together."""
    hidden = config.hidden_size
    joined = shape.wide(2 * hidden) if shape.itemsize == _FLOAT else shape.narrow(2 * hidden)
    return _listed([*shape.wide(hidden, hidden, hidden), *joined], shape.wide(2 * hidden, hidden, hidden))


def loss(config: ModelConfig, shape: Shape, teaches_head: bool) -> Activations:
    """The last norm, and the output head's loss with the gradients that it computes beforehand."""
    hidden, head = config.hidden_size, config.vocab_size * config.hidden_size * _FLOAT
    kept = [*_norm(config, shape), *shape.wide(hidden), *shape.narrow(hidden)]
    cast = [] if shape.itemsize == _FLOAT else shape.narrow(hidden)
    if teaches_head:
        kept.append(head)
    return _listed([*kept, *cast], [*shape.narrow(hidden), *shape.wide(hidden)])


def loss_forward(config: ModelConfig, shape: Shape) -> list[int]:
    """What the loss needs while it computes: a chunk of logits, the one before it, and the head.

    Under autocast both are there in the computing type, too.
    """
    row, weight = config.vocab_size * _FLOAT, config.vocab_size * config.hidden_size
    rows = min(shape.tokens, max(1, CHUNK_BYTES // row))
    chunks = 2 if rows < shape.tokens else 1
    if shape.itemsize == _FLOAT:
        return [rows * row] * chunks
    return [rows * row, rows * row // 2] * chunks + [weight * shape.itemsize] * 2  # the head and its gradient


def _norm(config: ModelConfig, shape: Shape) -> list[int]:
    """A norm keeps its input, which is the residual stream, and the input over its length."""
    return shape.wide(config.hidden_size, config.hidden_size, 1)
