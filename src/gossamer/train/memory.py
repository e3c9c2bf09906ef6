"""How much memory a recipe takes at its peak, before anything is allocated.

A step is walked through as it will run: forward, part by part; backward, where each part's activations go and its
gradients come; the optimizer. The fullest moment is the answer. What a part keeps and needs is in `activations.py`,
the sizes of weights are those of the network itself, built without memory.

What is not counted: text that is mapped from disk, which the system takes back when it needs the memory; and documents
much shorter than 64 tokens, whose chunks in linear attention are partly empty. Of many processes, what sends experts'
tokens between them is not counted either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer import device as devices
from gossamer.model.block import Block
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import FULL
from gossamer.train import activations
from gossamer.train.activations import Activations, Shape
from gossamer.train.muon import Split, matrix_splits
from gossamer.train.recipe import Recipe

# Loaded by PyTorch's first products and first backward pass: measured with a network of no size to speak of.
_FIRST_USE = 56 << 20
# glibc takes memory for a tensor of this size and more from the system, and gives it back; smaller ones share a heap.
_MAPPED = 32 << 20
_FLOAT = 4  # bytes of a float32, which weights, gradients and optimizer state are in


@dataclass(frozen=True)
class MemoryEstimate:
    """What a process's memory holds at the fullest moment of a training step, in bytes.

    Attributes:
        weights: of the network, in float32; of many processes, this one's part
        gradients: those that are there at that moment
        optimizer: its state
        activations: what the forward pass has kept for the backward pass
        workspace: temporaries of the part that is at work, and weights gathered from other processes
        slack: holes in the C library's heap, between tensors that stay; on a CPU alone
        base: the process without a network: Python, PyTorch, tokenizer; on a CPU alone
        checkpoint: beside all that, in the host's memory, while a checkpoint is written
        device_type: whose memory it is
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    slack: int
    base: int
    checkpoint: int
    device_type: str

    @property
    def total(self) -> int:
        """All but the checkpoint's copies, in bytes."""
        return self.tensors + self.slack + self.base

    @property
    def tensors(self) -> int:
        """What tensors hold, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.workspace

    @property
    def most(self) -> int:
        """What the device has to have, in bytes: on a CPU a checkpoint's copies come to the total."""
        return self.total + (self.checkpoint if self.device_type == "cpu" else 0)

    def fits(self, device: torch.device, processes: int = 1) -> bool:
        """Whether the device's memory is enough for so many processes like this one."""
        return self.most * processes <= devices.memory_bytes(device)

    def describe(self) -> str:
        """One line for people, in GiB."""
        names = "weights gradients optimizer activations workspace slack base".split()
        parts = ", ".join(f"{name} {_gib(getattr(self, name))}" for name in names if getattr(self, name) >= 50 << 20)
        line = f"about {_gib(self.total)} GiB of memory at the peak: {parts or 'little of anything'}"
        if self.most > self.total:
            line += f"; {_gib(self.checkpoint)} more while a checkpoint is written"
        return line


def estimate_peak(recipe: Recipe, device: torch.device, processes: int = 1) -> MemoryEstimate:
    """The most memory that one of `processes` takes while it trains by `recipe` on `device`.

    On a CPU, call it before the network is built: the process as it stands is taken to be the base.

    Raises:
        UserError: the device cannot compute in the recipe's precision.
    """
    training = recipe.training
    itemsize = devices.compute_dtype(device, training.precision).itemsize
    shape = Shape(max(1, training.batch_size // processes), training.sequence_length, itemsize)
    with torch.device("meta"):
        model = CausalLM(recipe.model, random_weights=False)
    steps = training.mtp_steps if model.mtp is not None and training.mtp_loss_weight else 0
    if model.mtp is not None and not steps:
        model.mtp.requires_grad_(False)

    splits = matrix_splits(model) if recipe.optimizer.kind == "muon" else {}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = _bytes(model) // processes
    gradients = _FLOAT * sum(parameter.numel() for parameter in trained) // processes
    # Muon keeps a running mean of each matrix, AdamW a running mean and a running square of all else.
    state = sum(_FLOAT * p.numel() * (1 if p in splits else 2) for p in trained) // processes
    gathered = _gathered(model, itemsize) if processes > 1 else 0

    stages = list(_stages(recipe, model, steps, shape))
    moments = list(_moments(stages, shape, recipe, gradients, processes))
    update = max(
        (_muon_workspace(p, split, device, processes) for p, split in splits.items() if p in set(trained)), default=0
    )
    moments = [replace(moment, workspace=[*moment.workspace, gathered]) for moment in moments]
    moments.append(_Moment(gradients, [], [update]))
    fullest = max(moments, key=lambda moment: moment.total)
    on_cpu = device.type == "cpu"
    return MemoryEstimate(
        weights=weights,
        gradients=fullest.gradients,
        optimizer=state,
        activations=sum(fullest.kept),
        workspace=sum(fullest.workspace),
        slack=_slack(fullest) if on_cpu else 0,
        base=_base() if on_cpu else 0,
        checkpoint=weights + state + _bytes(model),
        device_type=device.type,
    )


@dataclass(frozen=True)
class _Stage:
    """A part of the forward pass.

    Attributes:
        stored: bytes of the tensors that the forward pass leaves
        again: those that the backward pass computes again for this part
        working: what its backward pass needs beside both
        released: bytes that it has let go of before its fullest moment
        weights: the modules and parameters whose gradients it gives, by name, in float32
        cast: bytes of its weights' copies in the computing type
    """

    stored: Sequence[int]
    working: Sequence[int] = ()
    again: Sequence[int] = ()
    released: int = 0
    weights: dict[str, int] = field(default_factory=dict)
    cast: int = 0


@dataclass(frozen=True)
class _Moment:
    """Bytes of gradients, of each tensor that is kept, and of each temporary, at one moment of a step."""

    gradients: int
    kept: list[int]
    workspace: list[int]

    @property
    def total(self) -> int:
        return self.gradients + sum(self.kept) + sum(self.workspace)


def _stages(recipe: Recipe, model: CausalLM, steps: int, shape: Shape) -> Iterator[_Stage]:
    """The parts of a step's forward pass, in order."""
    config, training = recipe.model, recipe.training
    embedding, narrow = _bytes(model.model.embed_tokens), shape.itemsize < _FLOAT
    head = {"embedding" if config.tie_word_embeddings else "head": embedding}
    yield _Stage([], weights={"embedding": embedding})
    for index, kind in enumerate(config.mixers):
        block = model.model.layers[index]
        assert isinstance(block, Block)
        parts = [
            activations.mixer(config, kind, shape),
            activations.feed_forward(config, config.is_sparse(index), shape),
        ]
        yield from _block(block, f"layer {index}", parts, shape, training.recompute)
    yield _of(activations.loss(config, shape, True), head, False)
    for _ in range(steps):
        assert model.mtp is not None
        block = model.mtp.layers[0]
        assert isinstance(block, Block)
        shared = {"embedding": embedding} if training.mtp_trunk_gradient else {}
        yield _of(activations.draft_input(config, shape), {"mtp": _bytes(model.mtp.fc)} | shared, narrow, ("mtp",))
        parts = [
            activations.mixer(config, FULL, shape),
            activations.feed_forward(config, config.num_experts > 0, shape),
        ]
        yield from _block(block, "mtp", parts, shape, False)
        teaches = training.mtp_trunk_gradient
        yield _of(activations.loss(config, shape, teaches), head if teaches else {}, False)


def _block(block: Block, name: str, parts: list[Activations], shape: Shape, recompute: bool) -> Iterator[_Stage]:
    mixer, mlp = parts
    attention = block.linear_attn if block.is_linear else block.self_attn
    narrow = shape.itemsize < _FLOAT
    first = _of(mixer, {f"{name} mixer": _bytes(attention)}, narrow)
    second = _of(mlp, {f"{name} mlp": _bytes(block.mlp)}, narrow)
    if not recompute:
        yield from (first, second)
        return
    stream, *rest = first.stored
    yield replace(first, stored=[stream], again=rest)
    yield replace(second, stored=[], again=[*rest, *second.stored])


def _of(part: Activations, weights: dict[str, int], narrow: bool, cast: Sequence[str] = ()) -> _Stage:
    """A stage whose weights, or those named in `cast`, are copied in the computing type if that is a narrow one."""
    copied = sum(size for name, size in weights.items() if not cast or name in cast) // 2 if narrow else 0
    stored = [*part.kept, copied] if copied else list(part.kept)
    return _Stage(stored, [*part.working, copied], (), part.released, weights, copied)


def _moments(stages: list[_Stage], shape: Shape, recipe: Recipe, gradients: int, processes: int) -> Iterator[_Moment]:
    """The fullest moment of the forward pass, and of each part's backward pass, last part first."""
    before = recipe.training.gradient_accumulation > 1  # all gradients are there from the micro-batch before
    stored = [size for stage in stages for size in stage.stored]
    yield _Moment(gradients if before else 0, stored, activations.loss_forward(recipe.model, shape))
    there: dict[str, int] = {}
    for index in reversed(range(len(stages))):
        stage = stages[index]
        kept = [size for earlier in stages[: index + 1] for size in earlier.stored] + list(stage.again)
        kept.append(-stage.released)
        held = gradients if before else sum(there.values()) // processes
        # What is there already is added to, once the new gradient is whole.
        new = {name: size for name, size in stage.weights.items() if before or name in there}
        fresh = sum(size for name, size in stage.weights.items() if name not in new) // processes
        yield _Moment(held + fresh, kept, [*stage.working, *new.values()])
        there |= stage.weights


def _muon_workspace(parameter: Tensor, split: Split, device: torch.device, processes: int) -> int:
    """Bytes that Muon's update of a parameter takes: the update, and the rounds on one of its parts at a time."""
    shared = processes if parameter.ndim > 2 else 1  # experts are spread as wholes, a matrix is gathered
    itemsize = devices.compute_dtype(device, "auto").itemsize
    most = 0
    for matrices in split(parameter):
        part, small = matrices.numel() // shared, min(matrices.shape[-2:])
        gram = part // max(matrices.shape[-2:]) * small
        cast = part * _FLOAT if itemsize < _FLOAT else 0
        # X, a X, (b G + c G²) X and their sum beside G; or X and a X beside all that it takes to make b G + c G².
        most = max(most, itemsize * max(4 * part + gram, 2 * part + 5 * gram) + cast)
    return parameter.numel() // shared * _FLOAT + most


def _gathered(model: CausalLM, itemsize: int) -> int:
    """Bytes of weights that FSDP gathers: embedding and head all the time, a block and the one after it."""
    blocks = [_bytes(block) for block in model.modules() if isinstance(block, Block)]
    rest = _bytes(model) - sum(blocks)
    return (rest + 2 * max(blocks)) * itemsize // _FLOAT + max(blocks)  # and one block's whole gradient


def _bytes(module: nn.Module) -> int:
    return _FLOAT * sum(parameter.numel() for parameter in module.parameters())


def _slack(moment: _Moment) -> int:
    return 0


def _base() -> int:
    """Bytes of the process as it stands, and of what PyTorch loads when it first computes."""
    statm = Path("/proc/self/statm")
    if not statm.exists():  # the most that it ever had is the best that can be known
        return devices.peak_memory(torch.device("cpu")) + _FIRST_USE
    import resource

    return int(statm.read_text().split()[1]) * resource.getpagesize() + _FIRST_USE
