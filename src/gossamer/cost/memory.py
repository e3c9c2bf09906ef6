"""The memory of a training step, moment by moment, on one chip of a layout.

A step is followed as it will run: forward, part by part; backward, where the activations of each part are released and
its gradients are made; and last the optimizer. The answer is the moment at which memory is fullest. The activations of
each part are counted in `cost.activations`, the sizes of weights in `cost.network`: nothing is built. The trainer's
estimate (`run.memory`) and the planner (`plan.search`) both ask `step_memory`; they differ only in what they know of
the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from gossamer.cost import activations
from gossamer.cost.activations import Activations, MicroBatchShape
from gossamer.cost.layer import Layer
from gossamer.cost.layout import Layout
from gossamer.cost.network import network_of
from gossamer.model.config import FULL, ModelConfig

__all__ = [
    "BlockBytes",
    "MemoryMoment",
    "ResidentBytes",
    "StepMemory",
    "StepSpec",
    "StepTimeline",
    "step_memory",
    "trace_step",
    "weight_bytes",
]

_FLOAT32 = 4  # bytes of a number in weights and gradients


@dataclass(frozen=True)
class BlockBytes:
    """The weights of a block in float32, in bytes.

    Attributes:
        mixer: the mixer, and both norms
        experts: the routed experts
        other: router and shared expert, or the dense feed-forward part
    """

    mixer: int
    experts: int
    other: int

    @property
    def mlp(self) -> int:
        """Bytes of the feed-forward part."""
        return self.experts + self.other

    @property
    def total(self) -> int:
        """Bytes of the block."""
        return self.mixer + self.mlp

    def share(self, mixer: float, experts: float, other: float) -> BlockBytes:
        """Return the block with these shares of its parts."""
        return BlockBytes(int(self.mixer * mixer), int(self.experts * experts), int(self.other * other))


@dataclass(frozen=True)
class WeightBytes:
    """The weights of a network in float32, in bytes.

    Attributes:
        embedding: the embedding; the output head is as large unless it is tied
        blocks: the blocks of the trunk
        draft: the block of the multi-token-prediction head; None if there is none
        fc: the projection before that block
        total: the whole network
    """

    embedding: int
    blocks: tuple[BlockBytes, ...]
    draft: BlockBytes | None
    fc: int
    total: int

    @property
    def all_blocks(self) -> tuple[BlockBytes, ...]:
        """The blocks of the trunk and of the multi-token-prediction head."""
        return (*self.blocks, *([self.draft] if self.draft else []))

    def share(self, tensor: int, expert: int) -> WeightBytes:
        """Return the part of one chip where products are shared by `tensor` chips and experts by `expert` chips."""
        shares = 1 / tensor, 1 / expert, 1 / tensor
        return self._with_blocks(shares, self.embedding, self.fc // tensor)

    def scaled(self, share: float) -> WeightBytes:
        """Return a share of everything."""
        found = self._with_blocks((share,) * 3, int(self.embedding * share), int(self.fc * share))
        return replace(found, total=int(self.total * share))

    def _with_blocks(self, shares: tuple[float, float, float], embedding: int, fc: int) -> WeightBytes:
        blocks = tuple(block.share(*shares) for block in self.blocks)
        draft = self.draft.share(*shares) if self.draft else None
        outside = self.total - sum(block.total for block in self.all_blocks)
        total = outside + sum(block.total for block in (*blocks, *([draft] if draft else [])))
        return WeightBytes(embedding, blocks, draft, fc, total)

    def gathered(self, itemsize: int) -> int:
        """Return the bytes that FSDP gathers: all outside of blocks, a block and the next one, and a block's gradient.

        Args:
            itemsize: bytes of a number in the type that weights are gathered in
        """
        largest = max(block.total for block in self.all_blocks)
        outside = self.total - sum(block.total for block in self.all_blocks)
        return (outside + 2 * largest) * itemsize // _FLOAT32 + largest


@lru_cache(maxsize=64)
def weight_bytes(config: ModelConfig) -> WeightBytes:
    """Return the bytes of the weights of a network; a test holds them to the module's."""
    network = network_of(config)

    def block(layer: Layer) -> BlockBytes:
        part = layer.feed_forward
        other = part.router_parameters + part.shared_parameters
        sizes = layer.mixer.parameters + layer.norm_parameters, part.expert_parameters, other
        return BlockBytes(*(_FLOAT32 * size for size in sizes))

    return WeightBytes(
        embedding=_FLOAT32 * network.vocab_size * network.hidden_size,
        blocks=tuple(block(layer) for layer in network.layers),
        draft=block(network.mtp_layers[0]) if network.mtp_layers else None,
        fc=_FLOAT32 * 2 * network.hidden_size**2 if network.mtp_layers else 0,
        total=_FLOAT32 * network.parameters,
    )


@dataclass(frozen=True)
class StepSpec:
    """The settings that the memory of one forward and backward pass depends on.

    Attributes:
        shape: size of a micro-batch and type of its numbers
        recompute: whether a block keeps only its input, from which the backward pass computes the rest again
        accumulates: whether the gradients of an earlier micro-batch are there already
        mtp_steps: how often the multi-token-prediction head is applied
        mtp_trunk_gradient: whether the gradient of its loss also reaches the trunk
        casts: whether weights in float32 are copied into the computing type; False where they are gathered in it
    """

    shape: MicroBatchShape
    recompute: bool = False
    accumulates: bool = False
    mtp_steps: int = 0
    mtp_trunk_gradient: bool = True
    casts: bool = True


@dataclass(frozen=True)
class MemoryMoment:
    """The bytes of gradients and activations at the point where the backward pass of one part needs the most.

    Attributes:
        kind: kind of the part, such as `experts`; `logits` is the end of the forward pass
        gradients: bytes of the gradients that the backward pass has made so far
        saved: bytes of the activations that are still kept for the backward pass
        workspace: bytes of each temporary tensor of the part
    """

    kind: str
    gradients: int
    saved: int
    workspace: tuple[int, ...]


@dataclass(frozen=True)
class StepTimeline:
    """The memory of one forward and backward pass over time, without what a chip holds throughout.

    Attributes:
        step: the settings that it was computed for
        moments: the end of the forward pass, then the peak of each part's backward pass, last part first
        trunk_saved: bytes of activations that the trunk's blocks save of one micro-batch
        gathered: bytes of weights that a chip gathers from the others where weights are spread
    """

    step: StepSpec
    moments: tuple[MemoryMoment, ...]
    trunk_saved: int
    gathered: int


@dataclass(frozen=True)
class ResidentBytes:
    """The bytes that a chip holds from step to step, and those of its optimizer's update.

    Attributes:
        weights: bytes of its share of the weights
        gradients: bytes of its share of the gradients after the backward pass
        optimizer: bytes of its share of the optimizer's state
        update: bytes of each temporary tensor of the optimizer's update
    """

    weights: int
    gradients: int
    optimizer: int
    update: tuple[int, ...] = ()


@dataclass(frozen=True)
class StepMemory:
    """The bytes of all tensors on the fullest chip at the fullest moment of a training step.

    Attributes:
        weights: the chip's share of the weights
        gradients: the gradients that are there at that moment
        optimizer: the chip's share of the optimizer's state
        activations: what forward passes have saved for their backward passes, of all micro-batches under way
        workspace: temporaries of the part that is at work, and weights gathered from other chips
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.workspace


def step_memory(timeline: StepTimeline, layout: Layout, resident: ResidentBytes, micro_batches: int = 1) -> StepMemory:
    """Return the memory of a training step on one chip of a layout.

    Gradients come one after another where every chip holds an equal share of everything; in other layouts, and while
    they are accumulated, all of them are assumed to be there.

    Args:
        timeline: the step on a chip of this layout
        layout: how the network is divided
        resident: what the chip holds beside activations and temporaries
        micro_batches: micro-batches of an optimizer step; a pipeline keeps the activations of several
    """
    one_by_one = layout.has_equal_shares and not timeline.step.accumulates

    def gradients(moment: MemoryMoment) -> int:
        return moment.gradients // layout.copies if one_by_one else resident.gradients

    found = [(gradients(moment), moment.saved, sum(moment.workspace)) for moment in timeline.moments]
    gradient_bytes, saved, workspace = max([*found, (resident.gradients, 0, sum(resident.update))], key=sum)
    gathered = timeline.gathered if layout.spread_weights and layout.copies > 1 else 0
    return StepMemory(
        weights=resident.weights,
        gradients=gradient_bytes,
        optimizer=resident.optimizer,
        activations=saved + (min(layout.pipeline, micro_batches) - 1) * timeline.trunk_saved,
        workspace=workspace + gathered,
    )


def trace_step(config: ModelConfig, layout: Layout, step: StepSpec, trained: float = 1.0) -> StepTimeline:
    """Follow the memory of a training step on one chip of a layout, part by part.

    A pipeline's stage is assumed to have both the embedding and the output head.

    Args:
        config: the network
        layout: how the network is divided
        step: the settings of the step
        trained: share of the parameters that is trained
    """
    return _trace_step(config, layout.pipeline, layout.tensor, layout.expert, step, trained)


@lru_cache(maxsize=4096)
def _trace_step(
    config: ModelConfig, pipeline: int, tensor: int, expert: int, step: StepSpec, trained: float
) -> StepTimeline:
    stage = _pipeline_stage(config, -(-config.num_hidden_layers // pipeline), tensor)
    weights = weight_bytes(stage).share(tensor, expert)
    gathered = weights.gathered(step.shape.itemsize)
    if trained < 1:
        weights = weights.scaled(trained)
    trunk = replace(step, mtp_steps=0)
    return StepTimeline(
        step=step,
        moments=tuple(_moments(stage, step, weights)),
        trunk_saved=sum(part.saved for part in _parts(stage, trunk, weights) if part.kind != "loss"),
        gathered=gathered,
    )


def _pipeline_stage(config: ModelConfig, num_layers: int, tensor: int) -> ModelConfig:
    """The network with fewer layers and a part of the vocabulary."""
    if num_layers == config.num_hidden_layers and tensor == 1:
        return config
    return replace(
        config,
        vocab_size=-(-config.vocab_size // tensor),
        num_hidden_layers=num_layers,
        layer_types=config.mixers[:num_layers],
        mlp_only_layers=tuple(index for index in config.mlp_only_layers if index < num_layers),
    )


def _moments(config: ModelConfig, step: StepSpec, weights: WeightBytes) -> Iterator[MemoryMoment]:
    """The end of the forward pass, then the fullest moment of each part's backward pass, last part first."""
    parts = list(_parts(config, step, weights))
    saved = sum(part.saved for part in parts)
    yield MemoryMoment("logits", 0, saved, tuple(activations.loss_forward(config, step.shape)))
    present: dict[str, int] = {}
    for part in reversed(parts):
        # A gradient that is there already is added to, once the new one is whole.
        added = [size for name, size in part.weights.items() if step.accumulates or name in present]
        present |= part.weights
        workspace = (*part.workspace, part.recomputed, *added)
        yield MemoryMoment(part.kind, sum(present.values()), saved - part.released, workspace)
        saved -= part.saved - part.lasting


@dataclass(frozen=True)
class _Part:
    """A part of the forward pass; sizes in bytes.

    Attributes:
        kind: kind of the part
        saved: what the forward pass saves for the backward pass
        workspace: each tensor that its backward pass needs beside that at its fullest moment
        recomputed: what the backward pass computes again
        released: the share of `saved` and `recomputed` that the backward pass has released before that moment
        lasting: the share of `saved` that stays until the backward pass of all parts is over
        weights: what it gives gradients of, by name, in float32
    """

    kind: str
    saved: int = 0
    workspace: Sequence[int] = ()
    recomputed: int = 0
    released: int = 0
    lasting: int = 0
    weights: dict[str, int] = field(default_factory=dict)


def _parts(config: ModelConfig, step: StepSpec, weights: WeightBytes) -> Iterator[_Part]:
    """The parts of a step's forward pass, in order."""
    shape, embedding = step.shape, weights.embedding
    head = {"embedding" if config.tie_word_embeddings else "head": embedding}
    yield _Part("embedding", weights={"embedding": embedding})
    by_kind: dict[tuple[str, bool], tuple[Activations, Activations]] = {}  # layers of one kind have the same
    for index, (kind, block) in enumerate(zip(config.mixers, weights.blocks, strict=True)):
        key = kind, config.is_sparse(index)
        if key not in by_kind:
            by_kind[key] = activations.mixer(config, kind, shape), activations.feed_forward(config, key[1], shape)
        yield from _block(config, step, block, f"layer {index}", kind, by_kind[key], step.recompute)
    yield _part("loss", activations.loss(config, shape, True), head)
    for _ in range(step.mtp_steps):
        assert weights.draft is not None
        trains_trunk, fc = step.mtp_trunk_gradient, weights.fc
        joined = _part("draft", activations.draft_input(config, shape), {"mtp": fc}, _copies(fc, step))
        yield replace(joined, weights=joined.weights | ({"embedding": embedding} if trains_trunk else {}))
        own = activations.mixer(config, FULL, shape), activations.feed_forward(config, config.num_experts > 0, shape)
        yield from _block(config, step, weights.draft, "mtp", FULL, own, recompute=False)
        yield _part("loss", activations.loss(config, shape, trains_trunk), head if trains_trunk else {})


def _block(
    config: ModelConfig,
    step: StepSpec,
    block: BlockBytes,
    name: str,
    mixer: str,
    parts: tuple[Activations, Activations],
    recompute: bool,
) -> Iterator[_Part]:
    first, second = parts
    sparse = block.experts > 0
    attention = _part(mixer, first, {f"{name} mixer": block.mixer}, _copies(block.mixer, step))
    cast = block.other if sparse and activations.experts_native(config, step.shape) else block.mlp
    feed_forward = _part("experts" if sparse else "dense", second, {f"{name} mlp": block.mlp}, _copies(cast, step))
    if recompute:  # only the stream that enters the block stays, as long as the network's graph does
        recomputed, stream = attention.saved - first.saved[0], first.saved[0]
        attention = replace(attention, saved=stream, recomputed=recomputed, lasting=stream)
        feed_forward = replace(feed_forward, saved=0, recomputed=recomputed + feed_forward.saved)
    yield from (attention, feed_forward)


def _part(kind: str, part: Activations, weights: dict[str, int], copies: int = 0) -> _Part:
    """A part; `copies` are its weights in a narrower computing type, which are saved, and so come their gradients."""
    return _Part(kind, sum(part.saved) + copies, [*part.workspace, copies], 0, part.released, part.lasting, weights)


def _copies(weights: int, step: StepSpec) -> int:
    """Bytes of the copies in the computing type of so many bytes of weights; float32 needs none."""
    narrow = step.casts and step.shape.itemsize != _FLOAT32
    return weights * step.shape.itemsize // _FLOAT32 if narrow else 0
