"""Memory of a chip under a layout: the trainer's own walk through a step, with the share of everything that is here.

On one chip it is what `gossamer.run.memory` estimates for AdamW. Weights and gradients are in float32 where they are
spread; where every copy keeps them, the weights are in bfloat16 and their float32 original lies with the optimizer's
state, spread over the copies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from gossamer.cost.activations import Shape
from gossamer.cost.step_memory import BlockBytes, Moment, Step, WeightBytes, gathered, moments, stored, weight_bytes
from gossamer.model.config import ModelConfig
from gossamer.plan.layout import Layout
from gossamer.plan.workload import Workload

_FLOAT, _NARROW = 4, 2
_MOMENTS = 2  # numbers of AdamW's state for a parameter
# What a driver, the collectives' buffers and the allocator's gaps take of a chip: taken, not measured.
RESERVED = 0.08


@dataclass(frozen=True)
class ChipMemory:
    """Bytes on the fullest chip at the fullest moment.

    Attributes:
        weights, gradients, optimizer: this chip's share
        activations: what forward passes have kept, of all micro-batches under way
        workspace: temporaries, and weights gathered from other chips
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.workspace


def chip_memory(
    work: Workload,
    layout: Layout,
    length: int,
    micro_batches: int,
    mtp_steps: int,
    itemsize: int = _NARROW,
    native: frozenset[str] = frozenset(),
    trained: float = 1.0,
) -> ChipMemory:
    """What a chip of a layout holds at the fullest moment of a step.

    Args:
        length: of a row (tokens)
        micro_batches: of an optimizer step, for each copy of the network
        mtp_steps: how often the multi-token-prediction head is applied
        itemsize: bytes of a number in the computing type
        native: operations that run by the native CPU kernels
        trained: share of the parameters that is trained; below 1 the others are held in bfloat16
    """
    alone = layout.chips == 1 and trained == 1
    tokens = max(1, length // (layout.context * layout.tensor))
    shape = Shape(layout.rows, tokens, itemsize, native)
    step = Step(shape, layout.recompute, micro_batches > 1, mtp_steps, casts=alone)
    walk = _walk(work.twin, layout.pipeline, layout.tensor, layout.expert, step, trained)
    dense, experts = (work.dense_parameters + work.vocabulary_parameters), work.expert_parameters
    mine = dense / layout.pipeline / layout.tensor
    mine_experts = experts / layout.pipeline / layout.expert
    spread = mine / layout.copies + mine_experts / layout.expert_copies
    whole = mine + mine_experts
    under_way = min(layout.pipeline, micro_batches) - 1
    if layout.spread_weights:
        weights = spread * (_FLOAT if trained == 1 else _NARROW + _FLOAT * trained)
        optimizer, gradients = spread * _FLOAT * _MOMENTS * trained, spread * _FLOAT * trained
        aside = walk.gathered if layout.copies > 1 else 0
    else:
        weights, optimizer = whole * _NARROW, spread * _FLOAT * (_MOMENTS + 1) * trained
        gradients, aside = whole * _FLOAT * trained, 0
    fullest = max(walk.moments, key=lambda moment: moment.total if alone else sum(moment.workspace) + moment.kept)
    return ChipMemory(
        weights=int(weights),
        gradients=fullest.gradients if alone else int(gradients),
        optimizer=int(optimizer),
        activations=fullest.kept + under_way * walk.stored,
        workspace=sum(fullest.workspace) + aside,
    )


@dataclass(frozen=True)
class _Walk:
    moments: tuple[Moment, ...]
    stored: int
    gathered: int


@lru_cache(maxsize=4096)
def _walk(config: ModelConfig, pipeline: int, tensor: int, expert: int, step: Step, trained: float) -> _Walk:
    """A step of one pipeline stage, taken to have both embedding and head, with this chip's share of the weights.

    What a block's gathered weights take is counted in full, its gradients as far as it is trained.
    """
    stage = _stage(config, -(-config.num_hidden_layers // pipeline), tensor)
    whole = weight_bytes(stage)
    weights = WeightBytes(
        embedding=whole.embedding,
        blocks=tuple(_share(block, tensor, expert) for block in whole.blocks),
        draft=_share(whole.draft, tensor, expert) if whole.draft else None,
        fc=whole.fc // tensor,
        total=0,
    )
    blocks = [*weights.blocks, *([weights.draft] if weights.draft else [])]
    whole_blocks = [*whole.blocks, *([whole.draft] if whole.draft else [])]
    always = whole.total - sum(block.total for block in whole_blocks)
    weights = replace(weights, total=always + sum(block.total for block in blocks))
    aside = gathered(weights, step.shape.itemsize)
    if trained < 1:
        weights = _scaled(weights, trained)
    passed = moments(stage, step, weights, weights.total)
    return _Walk(
        moments=(*passed, Moment("optimizer", weights.total, 0, [0])),
        stored=stored(stage, step, weights),
        gathered=aside,
    )


def _scaled(weights: WeightBytes, share: float) -> WeightBytes:
    def scale(block: BlockBytes) -> BlockBytes:
        return BlockBytes(int(block.mixer * share), int(block.experts * share), int(block.other * share))

    return WeightBytes(
        embedding=int(weights.embedding * share),
        blocks=tuple(scale(block) for block in weights.blocks),
        draft=scale(weights.draft) if weights.draft else None,
        fc=int(weights.fc * share),
        total=int(weights.total * share),
    )


def _share(block: BlockBytes, tensor: int, expert: int) -> BlockBytes:
    return BlockBytes(block.mixer // tensor, block.experts // expert, block.other // tensor)


def _stage(config: ModelConfig, count: int, tensor: int) -> ModelConfig:
    """The network with fewer layers and a part of the vocabulary."""
    if count == config.num_hidden_layers and tensor == 1:
        return config
    kept = tuple(index for index in config.mlp_only_layers if index < count)
    return replace(
        config,
        vocab_size=-(-config.vocab_size // tensor),
        num_hidden_layers=count,
        layer_types=config.mixers[:count],
        mlp_only_layers=kept,
    )
