"""A training step's memory, moment by moment: what the forward pass keeps, and what each part's backward pass needs.

A step is walked through as it will run: forward, part by part; backward, where each part's activations go and its
gradients come. What a part keeps and needs is in `activations.py`, the sizes of weights are counted
(`gossamer.model.counts`): nothing is built. The trainer's estimate and the planner's both are this walk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from gossamer.cost import activations
from gossamer.cost.activations import Activations, Shape
from gossamer.model.config import FULL, ModelConfig

_FLOAT = 4  # bytes of a float32, which weights and gradients are in


@dataclass(frozen=True)
class BlockBytes:
    """Weights of a block in float32, in bytes: the mixer with the norms, and the feed-forward part's two kinds.

    Attributes:
        mixer: attention of either kind, and both norms
        experts: the routed experts
        other: router and shared expert, or the dense feed-forward part
    """

    mixer: int
    experts: int
    other: int

    @property
    def mlp(self) -> int:
        return self.experts + self.other

    @property
    def total(self) -> int:
        return self.mixer + self.mlp


@dataclass(frozen=True)
class WeightBytes:
    """Weights of a network in float32, in bytes.

    Attributes:
        embedding: the embedding, and as much again is the head unless it is tied
        blocks: of the trunk
        draft: the block of the multi-token-prediction head; None without one
        fc: the projection before it
        total: of the whole network
    """

    embedding: int
    blocks: tuple[BlockBytes, ...]
    draft: BlockBytes | None
    fc: int
    total: int


@lru_cache(maxsize=64)
def weight_bytes(config: ModelConfig) -> WeightBytes:
    """Count the weights of a network; a test holds them to the module's."""
    parts = {part.name: part.parameters * _FLOAT for part in config.counts().parts}

    def block(name: str) -> BlockBytes:
        own = {key.removeprefix(f"{name}."): size for key, size in parts.items() if key.startswith(f"{name}.")}
        experts = own.get("mlp.experts", 0)
        other = sum(size for key, size in own.items() if key.startswith("mlp")) - experts
        return BlockBytes(sum(own.values()) - experts - other, experts, other)

    return WeightBytes(
        embedding=parts["model.embed_tokens"],
        blocks=tuple(block(f"model.layers.{index}") for index in range(config.num_hidden_layers)),
        draft=block("mtp.layers.0") if config.num_nextn_predict_layers else None,
        fc=parts.get("mtp.fc", 0),
        total=sum(parts.values()),
    )


@dataclass(frozen=True)
class Step:
    """What of a training step decides its memory.

    Attributes:
        shape: what passes the network at once
        recompute: a block's input alone is kept
        accumulates: gradients of an earlier micro-batch are there already
        mtp_steps: how often the multi-token-prediction head is applied
        mtp_trunk_gradient: its loss teaches the trunk, too
        casts: weights in float32 are copied into the computing type; False where they are gathered in that type
    """

    shape: Shape
    recompute: bool = False
    accumulates: bool = False
    mtp_steps: int = 0
    mtp_trunk_gradient: bool = True
    casts: bool = True


@dataclass(frozen=True)
class Moment:
    """Bytes of gradients, of what is kept, and of each temporary, while one part is at work."""

    kind: str
    gradients: int
    kept: int
    workspace: list[int]

    @property
    def total(self) -> int:
        return self.gradients + self.kept + sum(self.workspace)


def moments(config: ModelConfig, step: Step, weights: WeightBytes, gradients: int, processes: int = 1) -> list[Moment]:
    """The end of the forward pass, then the fullest moment of each part's backward pass, last part first.

    Args:
        weights: of this network, or what one process has of them when it computes
        gradients: bytes of all gradients that this process holds at the end
        processes: over which gradients are spread as they come
    """
    stages = list(_stages(config, step, weights))
    stored = sum(stage.stored for stage in stages)
    before = step.accumulates
    found = [Moment("logits", gradients if before else 0, stored, activations.loss_forward(config, step.shape))]
    there: dict[str, int] = {}
    for stage in reversed(stages):
        # What is there already is added to, once the new gradient is whole.
        added = [size for name, size in stage.weights.items() if before or name in there]
        there |= stage.weights
        held = gradients if before else sum(there.values()) // processes
        found.append(Moment(stage.kind, held, stored - stage.released, [*stage.working, stage.again, *added]))
        stored -= stage.stored - stage.lasting
    return found


def stored(config: ModelConfig, step: Step, weights: WeightBytes) -> int:
    """Bytes that a micro-batch's forward pass leaves in the trunk's blocks for its backward pass."""
    alone = replace(step, mtp_steps=0)
    return sum(stage.stored for stage in _stages(config, alone, weights) if stage.kind != "loss")


def gathered(weights: WeightBytes, itemsize: int) -> int:
    """Bytes that FSDP gathers: embedding and head all the time, a block and the next one, and a block's gradient."""
    trunk = [block.total for block in weights.blocks]
    blocks = trunk + ([weights.draft.total] if weights.draft else [])
    always = weights.total - sum(blocks)
    return (always + 2 * max(blocks)) * itemsize // _FLOAT + max(blocks)


@dataclass(frozen=True)
class _Stage:
    """A part of the forward pass; sizes in bytes.

    Attributes:
        kind: of part
        stored: what the forward pass leaves
        working: what its backward pass needs beside that at its fullest moment, each tensor
        again: what the backward pass computes again
        released: of `stored` and `again`, what it has let go of before its fullest moment
        lasting: of `stored`, what stays until the backward pass of all parts is through
        weights: what it gives gradients of, by name, in float32
    """

    kind: str
    stored: int = 0
    working: Sequence[int] = ()
    again: int = 0
    released: int = 0
    lasting: int = 0
    weights: dict[str, int] = field(default_factory=dict)


def _stages(config: ModelConfig, step: Step, weights: WeightBytes) -> Iterator[_Stage]:
    """The parts of a step's forward pass, in order."""
    shape, embedding = step.shape, weights.embedding
    head = {"embedding" if config.tie_word_embeddings else "head": embedding}
    yield _Stage("embedding", weights={"embedding": embedding})
    parts: dict[tuple[str, bool], tuple[Activations, Activations]] = {}  # layers of a kind are alike
    for index, (kind, block) in enumerate(zip(config.mixers, weights.blocks, strict=True)):
        key = kind, config.is_sparse(index)
        if key not in parts:
            parts[key] = activations.mixer(config, kind, shape), activations.feed_forward(config, key[1], shape)
        yield from _block(config, step, block, f"layer {index}", kind, parts[key], step.recompute)
    yield _stage("loss", activations.loss(config, shape, True), head)
    for _ in range(step.mtp_steps):
        assert weights.draft is not None
        teaches, fc = step.mtp_trunk_gradient, weights.fc
        joined = _stage("draft", activations.draft_input(config, shape), {"mtp": fc}, _copies(fc, step))
        yield replace(joined, weights=joined.weights | ({"embedding": embedding} if teaches else {}))
        own = activations.mixer(config, FULL, shape), activations.feed_forward(config, config.num_experts > 0, shape)
        yield from _block(config, step, weights.draft, "mtp", FULL, own, recompute=False)
        yield _stage("loss", activations.loss(config, shape, teaches), head if teaches else {})


def _block(
    config: ModelConfig,
    step: Step,
    block: BlockBytes,
    name: str,
    mixer: str,
    parts: tuple[Activations, Activations],
    recompute: bool,
) -> Iterator[_Stage]:
    first, second = parts
    sparse = block.experts > 0
    attention = _stage(mixer, first, {f"{name} mixer": block.mixer}, _copies(block.mixer, step))
    cast = block.other if sparse and activations.experts_native(config, step.shape) else block.mlp
    feed_forward = _stage("experts" if sparse else "dense", second, {f"{name} mlp": block.mlp}, _copies(cast, step))
    if recompute:  # the stream that enters the block is all that stays, as long as there is the network's graph
        again, stream = attention.stored - first.kept[0], first.kept[0]
        attention = replace(attention, stored=stream, again=again, lasting=stream)
        feed_forward = replace(feed_forward, stored=0, again=again + feed_forward.stored)
    yield from (attention, feed_forward)


def _stage(kind: str, part: Activations, weights: dict[str, int], copies: int = 0) -> _Stage:
    """A stage; `copies` are its weights in a narrower computing type: they are kept, and so come their gradients."""
    return _Stage(kind, sum(part.kept) + copies, [*part.working, copies], 0, part.released, part.lasting, weights)


def _copies(weights: int, step: Step) -> int:
    """Bytes of copies in the computing type of so many bytes of weights; float32 needs none."""
    narrow = step.casts and step.shape.itemsize != _FLOAT
    return weights * step.shape.itemsize // _FLOAT if narrow else 0
