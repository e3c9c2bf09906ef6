"""How much memory a recipe takes at its peak, before anything is allocated.

A step is walked through as it will run: forward, part by part; backward, where each part's activations go and its
gradients come; the optimizer. The fullest moment is the answer. What a part keeps and needs is in `activations.py`,
the sizes of weights are those of the network itself, built without memory.

What is not counted: text that is mapped from disk, which the system takes back when it needs the memory; and documents
much shorter than 64 tokens, whose chunks in linear attention are partly empty. Of many processes, what sends experts'
tokens between them is not counted either.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.model.block import Block
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import FULL
from gossamer.model.experts import SparseMLP
from gossamer.ops.registry import OPERATIONS
from gossamer.train import activations
from gossamer.train.activations import Activations, Shape
from gossamer.train.muon import Split, matrix_splits
from gossamer.train.recipe import Recipe

# Loaded by PyTorch's first network, products and backward pass: measured with a network of no size to speak of.
_FIRST_USE = 56 << 20
# glibc keeps tensors in a heap where each kind of part leaves holes of its own sizes, which no other part's temporaries
# fit into; what recomputation makes again counts to them. Fitted, not derived: of 11 runs of 0.5 to 2.4 GB the total
# was 8% too low to 11% too high.
_HOLES = 1.1
# Of tensors of this size and more half are found a place again.
_LARGE = 32 << 20
# How far above the truth the estimate may be: what is more than a device has by this much cannot fit.
_ERROR = 1.15
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

    def require(self, device: torch.device, processes: int = 1) -> None:
        """Refuse (UserError) what so many processes on the device cannot have, however wrong the estimate."""
        needed, there = self.most * processes, devices.memory_bytes(device)
        if needed > _ERROR * there:
            raise UserError(
                f"training would take about {_gib(needed)} GiB of memory, and {device} has {_gib(there)} GiB; a "
                "smaller model, --training.batch_size or --training.sequence_length, --training.recompute true, and "
                "more devices (docs/cluster.md) need less"
            )

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
    training, on_cpu = recipe.training, device.type == "cpu"
    base = _base() if on_cpu else 0  # before this function adds to it
    itemsize = devices.compute_dtype(device, training.precision).itemsize
    native = frozenset(name for name, operation in OPERATIONS.items() if operation.choose(device).name == "native")
    shape = Shape(max(1, training.batch_size // processes), training.sequence_length, itemsize, native)
    with torch.device("meta"):
        model = CausalLM(recipe.model, random_weights=False)
    steps = training.mtp_steps if model.mtp is not None and training.mtp_loss_weight else 0
    if model.mtp is not None and not steps:
        model.mtp.requires_grad_(False)

    splits = matrix_splits(model) if recipe.optimizer.kind == "muon" else {}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights, gradients = _bytes(model.parameters()) // processes, _bytes(trained) // processes
    # Muon keeps a running mean of each matrix, AdamW a running mean and a running square of all else.
    matrices = [parameter for parameter in trained if parameter in splits]
    state = 2 * gradients - _bytes(matrices) // processes
    update = max((_muon_workspace(matrix, splits[matrix], device, processes) for matrix in matrices), default=0)

    stages = list(_stages(recipe, model, steps, shape))
    moments = list(_moments(stages, shape, recipe, gradients, processes))
    moments.append(_Moment("optimizer", gradients, 0, [update]))
    fullest = max(moments, key=lambda moment: moment.total)
    return MemoryEstimate(
        weights=weights,
        gradients=fullest.gradients,
        optimizer=state,
        activations=fullest.kept,
        workspace=sum(fullest.workspace) + (_gathered(model, itemsize) if processes > 1 else 0),
        slack=_slack(moments) if on_cpu else 0,
        base=base,
        checkpoint=weights + state + _bytes(model.parameters()),
        device_type=device.type,
    )


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


@dataclass(frozen=True)
class _Moment:
    """Bytes of gradients, of what is kept, and of each temporary, while one part is at work."""

    kind: str
    gradients: int
    kept: int
    workspace: list[int]

    @property
    def total(self) -> int:
        return self.gradients + self.kept + sum(self.workspace)


def _stages(recipe: Recipe, model: CausalLM, steps: int, shape: Shape) -> Iterator[_Stage]:
    """The parts of a step's forward pass, in order."""
    config, training = recipe.model, recipe.training
    embedding = _bytes(model.model.embed_tokens.parameters())
    head = {"embedding" if config.tie_word_embeddings else "head": embedding}
    yield _Stage("embedding", weights={"embedding": embedding})
    for index, kind in enumerate(config.mixers):
        sparse = config.is_sparse(index)
        yield from _block(recipe, model.model.layers[index], f"layer {index}", kind, sparse, shape, training.recompute)
    yield _stage("loss", activations.loss(config, shape, True), head)
    for _ in range(steps):
        assert model.mtp is not None
        fc, teaches = _bytes(model.mtp.fc.parameters()), training.mtp_trunk_gradient
        joined = _stage("draft", activations.draft_input(config, shape), {"mtp": fc}, _copies(fc, shape))
        yield replace(joined, weights=joined.weights | ({"embedding": embedding} if teaches else {}))
        yield from _block(recipe, model.mtp.layers[0], "mtp", FULL, config.num_experts > 0, shape, recompute=False)
        yield _stage("loss", activations.loss(config, shape, teaches), head if teaches else {})


def _block(
    recipe: Recipe, block: nn.Module, name: str, mixer: str, sparse: bool, shape: Shape, recompute: bool
) -> Iterator[_Stage]:
    assert isinstance(block, Block)
    everything, mlp = _bytes(block.parameters()), _bytes(block.mlp.parameters())
    first, second = activations.mixer(recipe.model, mixer, shape), activations.feed_forward(recipe.model, sparse, shape)
    attention = _stage(mixer, first, {f"{name} mixer": everything - mlp}, _copies(everything - mlp, shape))
    cast = mlp
    if isinstance(block.mlp, SparseMLP) and activations.experts_native(recipe.model, shape):
        cast -= _bytes(block.mlp.experts.parameters())
    feed_forward = _stage("experts" if sparse else "dense", second, {f"{name} mlp": mlp}, _copies(cast, shape))
    if recompute:  # the stream that enters the block is all that stays, as long as there is the network's graph
        again, stream = attention.stored - first.kept[0], first.kept[0]
        attention = replace(attention, stored=stream, again=again, lasting=stream)
        feed_forward = replace(feed_forward, stored=0, again=again + feed_forward.stored)
    yield from (attention, feed_forward)


def _stage(kind: str, part: Activations, weights: dict[str, int], copies: int = 0) -> _Stage:
    """A stage; `copies` are its weights in a narrower computing type: they are kept, and so come their gradients."""
    return _Stage(kind, sum(part.kept) + copies, [*part.working, copies], 0, part.released, part.lasting, weights)


def _copies(weights: int, shape: Shape) -> int:
    """Bytes of copies in the computing type of so many bytes of weights; float32 needs none."""
    return 0 if shape.itemsize == _FLOAT else weights * shape.itemsize // _FLOAT


def _moments(stages: list[_Stage], shape: Shape, recipe: Recipe, gradients: int, processes: int) -> Iterator[_Moment]:
    """The end of the forward pass, then the fullest moment of each part's backward pass, last part first."""
    before = recipe.training.gradient_accumulation > 1  # all gradients are there from the micro-batch before
    stored = sum(stage.stored for stage in stages)
    yield _Moment("logits", gradients if before else 0, stored, activations.loss_forward(recipe.model, shape))
    there: dict[str, int] = {}
    for stage in reversed(stages):
        # What is there already is added to, once the new gradient is whole.
        added = [size for name, size in stage.weights.items() if before or name in there]
        there |= stage.weights
        held = gradients if before else sum(there.values()) // processes
        yield _Moment(stage.kind, held, stored - stage.released, [*stage.working, stage.again, *added])
        stored -= stage.stored - stage.lasting


def _slack(moments: Iterable[_Moment]) -> int:
    """Bytes of holes in the C library's heap; see `_HOLES`."""
    largest: dict[str, int] = {}
    for moment in moments:
        counted = sum(size if size < _LARGE else size // 2 for size in moment.workspace)
        largest[moment.kind] = max(counted, largest.get(moment.kind, 0))
    return int(_HOLES * sum(largest.values()))


def _muon_workspace(parameter: Tensor, split: Split, device: torch.device, processes: int) -> int:
    """Bytes that Muon's update of a parameter takes: the update, and the rounds on one of its parts at a time."""
    shared = processes if parameter.ndim > 2 else 1  # experts are spread as wholes, a matrix is gathered
    itemsize = devices.compute_dtype(device, "auto").itemsize
    most = 0
    for matrices in split(parameter):
        part, small = matrices.numel() // shared, min(matrices.shape[-2:])
        gram = part // max(matrices.shape[-2:]) * small
        # X, a X, (b G + c G²) X and their sum beside G; or X and a X beside all that it takes to make b G + c G².
        rounds = itemsize * max(4 * part + gram, 2 * part + 5 * gram)
        most = max(most, rounds + (part * _FLOAT if itemsize < _FLOAT else 0))
    return parameter.numel() // shared * _FLOAT + most


def _gathered(model: CausalLM, itemsize: int) -> int:
    """Bytes that FSDP gathers: embedding and head all the time, a block and the next one, and a block's gradient."""
    blocks = [_bytes(module.parameters()) for module in model.modules() if isinstance(module, Block)]
    always = _bytes(model.parameters()) - sum(blocks)
    return (always + 2 * max(blocks)) * itemsize // _FLOAT + max(blocks)


def _bytes(parameters: Iterable[Tensor]) -> int:
    return _FLOAT * sum(parameter.numel() for parameter in parameters)


def _base() -> int:
    """Bytes of the process as it stands, and of what PyTorch loads when it first computes."""
    importlib.import_module("torch._dynamo")  # as the first optimizer will: more where Triton is installed
    statm = Path("/proc/self/statm")
    if not statm.exists():  # the most that the process ever had is the best that can be known
        return devices.peak_memory(torch.device("cpu")) + _FIRST_USE
    import resource

    return int(statm.read_text().split()[1]) * resource.getpagesize() + _FIRST_USE


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
