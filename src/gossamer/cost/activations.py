"""What each part of the network keeps in memory for its backward pass, and what it needs beside that while it runs.

Each part's tensors are listed by their width: numbers a token, or bytes where they are no floating-point numbers. The
lists follow the code: what a module's and an operation's autograd saves, and what is alive at the fullest moment of
their backward passes (a function's local tensors stay until it returns). `tests/run/test_memory.py` holds them
against the tensors of a real step.

An operation's native kernels keep and take less than PyTorch's functions do: where they differ, a part has a list for
each way (`Shape.native`). What a native kernel has for a chunk of tokens lies in the cache and is not counted.

Norms, gates and the delta rule are in float32 always (`Shape.wide`), so are all native kernels; the rest is in the
computing type (`Shape.narrow`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gossamer.model.config import LINEAR, ModelConfig
from gossamer.ops.delta_rule import CHUNK
from gossamer.ops.grouped_mlp import runs_natively
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
        native: names of the operations that run by the native kernels; the others run through PyTorch
    """

    rows: int
    length: int
    itemsize: int
    native: frozenset[str] = frozenset()

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
        lasting: bytes of `kept` that stay until the backward pass of all parts is through: what the network returns
    """

    kept: tuple[int, ...]
    working: tuple[int, ...]
    released: int = 0
    lasting: int = 0


def _listed(kept: Iterable[int], working: Iterable[int], released: Iterable[int] = (), lasting: int = 0) -> Activations:
    return Activations(tuple(kept), tuple(working), sum(released), lasting)


def linear_attention(config: ModelConfig, shape: Shape) -> Activations:
    """Gated DeltaNet with the norm before it and the residual stream that enters it."""
    hidden, key, value = config.hidden_size, config.linear_key_dim, config.linear_value_dim
    value_heads, conv = config.linear_num_value_heads, config.linear_conv_dim
    state = value_heads * config.linear_key_head_dim * config.linear_value_head_dim  # numbers
    float32, wide, narrow = shape.itemsize == _FLOAT, shape.wide, shape.narrow
    kept = [
        *_norm(config, shape),
        *shape.inputs(hidden, 1),
        *wide(*[value_heads] * 4),  # the gates
        # The weights in order; autocast's copies are counted as such.
        *([hidden * (conv + value + 2 * value_heads) * _FLOAT] if float32 else []),
    ]
    working = [*wide(hidden), *narrow(value)]  # gradients of the residual stream and of z
    if "delta_rule" not in shape.native:
        return _chunked_linear_attention(config, shape, kept, working, state)
    released = [*wide(value), *narrow(value)]  # o and what the norm makes of it
    kept += [
        *wide(conv + value + 2 * value_heads),  # the projections
        *wide(conv, state / CHUNK, value_heads),  # q, k and v; the states before each chunk; the norm's factors
        *released,
    ]
    # Gradients of o, of all inputs, and of the states at the rows' ends.
    working += wide(value, key, key, value, value_heads, value_heads, *[state / shape.length] * 2)
    return _listed(kept, working, released)


def _chunked_linear_attention(
    config: ModelConfig, shape: Shape, kept: list[int], working: list[int], state: int
) -> Activations:
    """Linear attention through PyTorch's functions, on all chunks at once; `kept` and `working` are of both ways."""
    key, value = config.linear_key_dim, config.linear_value_dim
    key_heads, value_heads = config.linear_num_key_heads, config.linear_num_value_heads
    chunk = min(CHUNK, 1 << (shape.length - 1).bit_length())
    slots = -(-shape.length // chunk) * chunk / shape.length  # places of the chunks, for each token
    scores, shared_scores = value_heads * chunk * slots, key_heads * chunk * slots
    keys, key_side, value_side = value_heads * config.linear_key_head_dim * slots, key * slots, value * slots
    states, wide, narrow = state * slots / chunk, shape.wide, shape.narrow

    released = [*wide(value, value, value, value, value), *narrow(value)]  # o, normed, y, z, SiLU(z), their product
    if shape.itemsize == _FLOAT:
        released += wide(config.linear_conv_dim + 2 * value_heads)  # z is a part of all projections: they stay with it
    kept += [
        *narrow(config.linear_conv_dim),
        *wide(value_heads, value_heads),  # the gates in chunks
        *wide(key_side, key_side, value_side, value_side, scores, states),  # Q, K, V, Ṽ, A and the states
        *wide(key_heads, key_heads),
        *released,
    ]
    working += [
        *narrow(value),  # gradient of o
        *wide(*[scores] * 9),  # M, P, L, dP, G, dL, H, β H, dM
        *wide(*[shared_scores] * 4),  # K Kᵀ, Q Kᵀ, and sums over the value heads of G and of β H
        *wide(*[keys] * 7),  # β e^c K, W, r K, e^c Q, dO Sᵀ, Y, Ṽ dS'ᵀ
        *wide(*[value_side] * 5),  # dO, dṼ, X, β X, and that token by token
        *wide(*[key_side] * 4),  # dQ, dK, before and after the norm's backward
        *wide(states, *[state / shape.length] * 4),  # gradients of the states, and of those at the rows' ends
        *narrow(value, key, key),
    ]
    return _listed(kept, working, released)


def full_attention(config: ModelConfig, shape: Shape) -> Activations:
    """Gated softmax attention with the norm before it and the residual stream that enters it."""
    hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
    narrow, kv_width = shape.narrow, config.num_key_value_heads * config.head_dim
    if "rms_norm" in shape.native:
        norms = shape.wide(width, kv_width)  # of q a copy
    else:  # q with its gate, or q alone if it is cast; k; both over their lengths
        norms = shape.wide(2 * width if shape.itemsize == _FLOAT else width, kv_width, width, kv_width)
    kept = [
        *_norm(config, shape),
        *shape.inputs(hidden, 3),
        *norms,
        *narrow(width, kv_width, kv_width),  # q and k rotated, v
        *narrow(width, width, width),  # the result, its gate, their product
        *shape.wide(2 * config.num_attention_heads + config.num_key_value_heads),
    ]
    # Of result and gate; and of their product, or then of k and v, with that of q where the gate was.
    gradients = narrow(width, width, max(width, 2 * kv_width))
    return _listed(kept, [*shape.wide(hidden), *gradients], narrow(width))


def experts(config: ModelConfig, shape: Shape) -> Activations:
    """Router, routed experts and shared expert with the norm before them and the residual stream that enters them."""
    hidden, chosen, narrow = config.hidden_size, config.num_experts_per_tok, shape.narrow
    width, shared = config.moe_intermediate_size, config.shared_expert_intermediate_size
    float32, native = shape.itemsize == _FLOAT, experts_native(config, shape)
    shared_expert = narrow(shared, shared, shared, shared, hidden)
    kept = [
        *_norm(config, shape),
        *shape.wide(hidden),  # the router's input
        *([] if float32 else narrow(hidden, hidden, hidden)),  # the shared expert's and its gate's
        *shape.wide(config.num_experts, config.num_experts),
        *[shape.tokens * chosen * _INDEX] * (3 if native else 4),
        *shape.wide(chosen, chosen, chosen),
        *shared_expert,
    ]
    working = [*shape.wide(hidden), *narrow(hidden)]  # gradients of the residual stream and of the result
    if native:
        kept += [*([] if float32 else shape.wide(hidden)), *shape.wide(2 * chosen * width)]
        working += shape.wide(chosen * hidden, hidden)  # gradients of the rows, and those by token
    else:
        kept += narrow(chosen * hidden, 2 * chosen * width, chosen * width)
        working += [
            *narrow(chosen * hidden, chosen * hidden),  # gradients of the rows, and those by token
            *narrow(2 * chosen * width, chosen * width, chosen * width),
            *narrow(hidden),
        ]
    return _listed(kept, working, shared_expert)


def experts_native(config: ModelConfig, shape: Shape) -> bool:
    """Whether the routed experts run by the native kernels, which take float32 weights as they are."""
    return "grouped_mlp" in shape.native and runs_natively(config.num_experts)


def dense(config: ModelConfig, shape: Shape) -> Activations:
    """A dense SwiGLU with the norm before it and the residual stream that enters it."""
    hidden, width = config.hidden_size, config.intermediate_size
    kept = [*_norm(config, shape), *shape.inputs(hidden, 2), *shape.narrow(width, width, width, width)]
    return _listed(kept, [*shape.wide(hidden), *shape.narrow(width, width, width)], shape.narrow(width))


def mixer(config: ModelConfig, kind: str, shape: Shape) -> Activations:
    """A layer's attention of either kind."""
    part: Callable[[ModelConfig, Shape], Activations] = linear_attention if kind == LINEAR else full_attention
    return part(config, shape)


def feed_forward(config: ModelConfig, sparse: bool, shape: Shape) -> Activations:
    """A layer's feed-forward part of either kind."""
    return experts(config, shape) if sparse else dense(config, shape)


def draft_input(config: ModelConfig, shape: Shape) -> Activations:
    """What the multi-token-prediction head does before its block: two norms and the projection of both together."""
    hidden, wide = config.hidden_size, shape.wide
    joined = wide(2 * hidden) if shape.itemsize == _FLOAT else shape.narrow(2 * hidden)
    working = wide(hidden, 2 * hidden)  # gradients of the result and of both inputs together
    if "rms_norm" in shape.native:
        return _listed([*wide(hidden), *joined], [*working, *wide(hidden, hidden)], joined)
    return _listed([*wide(hidden, hidden, hidden), *joined], [*working, *wide(*[hidden] * 5)], [*joined, *wide(hidden)])


def loss(config: ModelConfig, shape: Shape, teaches_head: bool) -> Activations:
    """The last norm, and the output head's loss with the gradients that it computes beforehand."""
    hidden, head = config.hidden_size, config.vocab_size * config.hidden_size * _FLOAT
    returned = shape.wide(hidden)
    kept = [*_norm(config, shape), *returned, *shape.narrow(hidden)]
    cast = [] if shape.itemsize == _FLOAT else shape.narrow(hidden)
    if teaches_head:
        kept.append(head)
    return _listed([*kept, *cast], [*shape.narrow(hidden), *shape.wide(hidden)], lasting=sum(returned))


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
    """A norm keeps its input, which is the residual stream, and its length; through PyTorch also their quotient."""
    hidden = config.hidden_size
    return shape.wide(hidden, 1) if "rms_norm" in shape.native else shape.wide(hidden, 1, hidden)
