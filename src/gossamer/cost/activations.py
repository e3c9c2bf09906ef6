"""The activations of each part of a layer: what it keeps for its backward pass, and what it needs while that runs.

Each part's tensors are listed by their width: numbers per token, or bytes where they are no floating-point numbers. The
lists follow the code: what the autograd of a module or an operation saves, and what is alive at the fullest moment of
its backward pass (the local tensors of a function stay until it returns). `tests/run/test_memory.py` holds them against
the tensors of a real step.

The native kernels of an operation keep and need less than PyTorch's functions do: where they differ, a part has a list
for each (`MicroBatchShape.native`). The per-chunk scratch of a native kernel fits in the CPU cache and is not counted.

Norms, gates and the delta rule are always in float32 (`MicroBatchShape.float32`), and so are all native kernels; the
rest is in the computing type (`MicroBatchShape.compute`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gossamer.model.config import LINEAR, ModelConfig
from gossamer.ops.delta_rule import CHUNK_SIZE
from gossamer.ops.grouped_mlp import runs_natively
from gossamer.ops.linear_cross_entropy import rows_of_chunk

_FLOAT32, _INT64 = 4, 8  # bytes of a number


@dataclass(frozen=True)
class MicroBatchShape:
    """The size of a micro-batch in one process, and the bytes of tensors that have its tokens.

    Attributes:
        rows: rows of a micro-batch
        length: tokens of a row, which is assumed to be one document
        itemsize: bytes of a number in the computing type: 4, or 2 in bfloat16
        native: names of the operations that run by the native kernels; the others run through PyTorch
    """

    rows: int
    length: int
    itemsize: int
    native: frozenset[str] = frozenset()

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.rows * self.length

    def float32(self, *widths: float) -> list[int]:
        """Return the bytes of float32 tensors of so many numbers per token."""
        return [int(self.tokens * width * _FLOAT32) for width in widths]

    def compute(self, *widths: float) -> list[int]:
        """Return the bytes of tensors of so many numbers per token in the computing type."""
        return [int(self.tokens * width * self.itemsize) for width in widths]

    def inputs(self, width: int, projections: int) -> list[int]:
        """Return what projections of one float32 tensor save of it: itself, or a copy each in the computing type."""
        return self.float32(width) if self.itemsize == _FLOAT32 else self.compute(*[width] * projections)


@dataclass(frozen=True)
class Activations:
    """The tensors of a part of the network, in bytes each.

    Attributes:
        saved: tensors that stay from the forward pass to the end of the part's backward pass
        workspace: tensors beside those at the fullest moment of the backward pass, without gradients of weights
        released: bytes of `saved` that the backward pass has released before that moment
        lasting: bytes of `saved` that stay until the backward pass of all parts is over: what the network returns
    """

    saved: tuple[int, ...]
    workspace: tuple[int, ...]
    released: int = 0
    lasting: int = 0


def _listed(
    saved: Iterable[int], workspace: Iterable[int], released: Iterable[int] = (), lasting: int = 0
) -> Activations:
    return Activations(tuple(saved), tuple(workspace), sum(released), lasting)


def linear_attention(config: ModelConfig, shape: MicroBatchShape) -> Activations:
    """Return the activations of Gated DeltaNet, with the norm before it and the residual stream that enters it."""
    hidden, key, value = config.hidden_size, config.linear_key_dim, config.linear_value_dim
    value_heads, conv = config.linear_num_value_heads, config.linear_conv_dim
    state = value_heads * config.linear_key_head_dim * config.linear_value_head_dim  # numbers
    is_float32, float32, compute = shape.itemsize == _FLOAT32, shape.float32, shape.compute
    saved = [
        *_norm(config, shape),
        *shape.inputs(hidden, 1),
        *float32(*[value_heads] * 4),  # the gates
        # The weights in order; autocast's copies are counted as such.
        *([hidden * (conv + value + 2 * value_heads) * _FLOAT32] if is_float32 else []),
    ]
    workspace = [*float32(hidden), *compute(value)]  # gradients of the residual stream and of z
    if "delta_rule" not in shape.native:
        return _chunked_linear_attention(config, shape, saved, workspace, state)
    released = [*float32(value), *compute(value)]  # o and what the norm makes of it
    saved += [
        *float32(conv + value + 2 * value_heads),  # the projections
        *float32(conv, state / CHUNK_SIZE, value_heads),  # q, k and v; the states before each chunk; the norm's factors
        *released,
    ]
    # Gradients of o, of all inputs, and of the states at the rows' ends.
    workspace += float32(value, key, key, value, value_heads, value_heads, *[state / shape.length] * 2)
    return _listed(saved, workspace, released)


def _chunked_linear_attention(
    config: ModelConfig, shape: MicroBatchShape, saved: list[int], workspace: list[int], state: int
) -> Activations:
    """Linear attention through PyTorch's functions, on all chunks at once, with what both ways have in common."""
    key, value = config.linear_key_dim, config.linear_value_dim
    key_heads, value_heads = config.linear_num_key_heads, config.linear_num_value_heads
    chunk = min(CHUNK_SIZE, 1 << (shape.length - 1).bit_length())
    slots = -(-shape.length // chunk) * chunk / shape.length  # places of the chunks, for each token
    scores, shared_scores = value_heads * chunk * slots, key_heads * chunk * slots
    keys, key_side, value_side = value_heads * config.linear_key_head_dim * slots, key * slots, value * slots
    states, float32, compute = state * slots / chunk, shape.float32, shape.compute

    released = [*float32(value, value, value, value, value), *compute(value)]  # o, normed, y, z, SiLU(z), their product
    if shape.itemsize == _FLOAT32:
        # z is a part of the tensor of all projections, which stays with it.
        released += float32(config.linear_conv_dim + 2 * value_heads)
    saved += [
        *compute(config.linear_conv_dim),
        *float32(value_heads, value_heads),  # the gates in chunks
        *float32(key_side, key_side, value_side, value_side, scores, states),  # Q, K, V, Ṽ, A and the states
        *float32(key_heads, key_heads),
        *released,
    ]
    workspace += [
        *compute(value),  # gradient of o
        *float32(*[scores] * 9),  # M, P, L, dP, G, dL, H, β H, dM
        *float32(*[shared_scores] * 4),  # K Kᵀ, Q Kᵀ, and sums over the value heads of G and of β H
        *float32(*[keys] * 7),  # β e^c K, W, r K, e^c Q, dO Sᵀ, Y, Ṽ dS'ᵀ
        *float32(*[value_side] * 5),  # dO, dṼ, X, β X, and that token by token
        *float32(*[key_side] * 4),  # dQ, dK, before and after the norm's backward
        *float32(states, *[state / shape.length] * 4),  # gradients of the states, and of those at the rows' ends
        *compute(value, key, key),
    ]
    return _listed(saved, workspace, released)


def full_attention(config: ModelConfig, shape: MicroBatchShape) -> Activations:
    """Return the activations of gated softmax attention, with its norm and the residual stream that enters it."""
    hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
    compute, kv_width = shape.compute, config.num_key_value_heads * config.head_dim
    if "rms_norm" in shape.native:
        norms = shape.float32(width, kv_width)  # of q a copy
    else:  # q with its gate, or q alone if it is cast; k; both over their lengths
        norms = shape.float32(2 * width if shape.itemsize == _FLOAT32 else width, kv_width, width, kv_width)
    saved = [
        *_norm(config, shape),
        *shape.inputs(hidden, 3),
        *norms,
        *compute(width, kv_width, kv_width),  # q and k rotated, v
        *compute(width, width, width),  # the result, its gate, their product
        *shape.float32(2 * config.num_attention_heads + config.num_key_value_heads),
    ]
    # Of result and gate; and of their product, or then of k and v, with that of q where the gate was.
    gradients = compute(width, width, max(width, 2 * kv_width))
    return _listed(saved, [*shape.float32(hidden), *gradients], compute(width))


def experts(config: ModelConfig, shape: MicroBatchShape) -> Activations:
    """Return the activations of router, routed experts and shared expert, with their norm and the residual stream."""
    hidden, top_k, compute = config.hidden_size, config.num_experts_per_tok, shape.compute
    width, shared = config.moe_intermediate_size, config.shared_expert_intermediate_size
    is_float32, native = shape.itemsize == _FLOAT32, experts_native(config, shape)
    shared_expert = compute(shared, shared, shared, shared, hidden)
    saved = [
        *_norm(config, shape),
        *shape.float32(hidden),  # the router's input
        *([] if is_float32 else compute(hidden, hidden, hidden)),  # the shared expert's and its gate's
        *shape.float32(config.num_experts, config.num_experts),
        *[shape.tokens * top_k * _INT64] * (3 if native else 4),
        *shape.float32(top_k, top_k, top_k),
        *shared_expert,
    ]
    workspace = [*shape.float32(hidden), *compute(hidden)]  # gradients of the residual stream and of the result
    if native:
        saved += [*([] if is_float32 else shape.float32(hidden)), *shape.float32(2 * top_k * width)]
        workspace += shape.float32(top_k * hidden, hidden)  # gradients of the rows, and those by token
    else:
        saved += compute(top_k * hidden, 2 * top_k * width, top_k * width)
        workspace += [
            *compute(top_k * hidden, top_k * hidden),  # gradients of the rows, and those by token
            *compute(2 * top_k * width, top_k * width, top_k * width),
            *compute(hidden),
        ]
    return _listed(saved, workspace, shared_expert)


def experts_native(config: ModelConfig, shape: MicroBatchShape) -> bool:
    """Return whether the routed experts run by the native kernels, which read float32 weights as they are."""
    return "grouped_mlp" in shape.native and runs_natively(config.num_experts)


def dense(config: ModelConfig, shape: MicroBatchShape) -> Activations:
    """Return the activations of a dense SwiGLU, with the norm before it and the residual stream that enters it."""
    hidden, width = config.hidden_size, config.intermediate_size
    saved = [*_norm(config, shape), *shape.inputs(hidden, 2), *shape.compute(width, width, width, width)]
    return _listed(saved, [*shape.float32(hidden), *shape.compute(width, width, width)], shape.compute(width))


def mixer(config: ModelConfig, kind: str, shape: MicroBatchShape) -> Activations:
    """Return the activations of a layer's mixer of either kind."""
    part: Callable[[ModelConfig, MicroBatchShape], Activations] = linear_attention if kind == LINEAR else full_attention
    return part(config, shape)


def feed_forward(config: ModelConfig, sparse: bool, shape: MicroBatchShape) -> Activations:
    """Return the activations of a layer's feed-forward part of either kind."""
    return experts(config, shape) if sparse else dense(config, shape)


def draft_input(config: ModelConfig, shape: MicroBatchShape) -> Activations:
    """Return the activations of the multi-token-prediction head before its block: two norms and their projection."""
    hidden, float32 = config.hidden_size, shape.float32
    joined = float32(2 * hidden) if shape.itemsize == _FLOAT32 else shape.compute(2 * hidden)
    workspace = float32(hidden, 2 * hidden)  # gradients of the result and of both inputs together
    if "rms_norm" in shape.native:
        return _listed([*float32(hidden), *joined], [*workspace, *float32(hidden, hidden)], joined)
    return _listed(
        [*float32(hidden, hidden, hidden), *joined], [*workspace, *float32(*[hidden] * 5)], [*joined, *float32(hidden)]
    )


def loss(config: ModelConfig, shape: MicroBatchShape, trains_lm_head: bool) -> Activations:
    """Return the activations of the last norm and of the loss, which computes its gradients beforehand."""
    hidden, head = config.hidden_size, config.vocab_size * config.hidden_size * _FLOAT32
    returned = shape.float32(hidden)
    saved = [*_norm(config, shape), *returned, *shape.compute(hidden)]
    cast = [] if shape.itemsize == _FLOAT32 else shape.compute(hidden)
    if trains_lm_head:
        saved.append(head)
    return _listed([*saved, *cast], [*shape.compute(hidden), *shape.float32(hidden)], lasting=sum(returned))


def loss_forward(config: ModelConfig, shape: MicroBatchShape) -> list[int]:
    """Return the bytes that the loss needs while it computes: a chunk of logits, the one before it, and the head.

    Under autocast both are there in the computing type, too.
    """
    row, weight = config.vocab_size * _FLOAT32, config.vocab_size * config.hidden_size
    rows = min(shape.tokens, rows_of_chunk(row))
    chunks = 2 if rows < shape.tokens else 1
    if shape.itemsize == _FLOAT32:
        return [rows * row] * chunks
    return [rows * row, rows * row // 2] * chunks + [weight * shape.itemsize] * 2  # the head and its gradient


def _norm(config: ModelConfig, shape: MicroBatchShape) -> list[int]:
    """Tensors that a norm saves: its input, the residual stream; its length; and through PyTorch their quotient."""
    hidden = config.hidden_size
    return shape.float32(hidden, 1) if "rms_norm" in shape.native else shape.float32(hidden, 1, hidden)
