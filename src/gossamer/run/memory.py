"""How much memory a recipe takes at its peak, before anything is allocated.

A step is walked through as it will run (`gossamer.cost.step_memory`), then comes the optimizer. The fullest moment is
the answer.

What is not counted: text that is mapped from disk, which the system takes back when it needs the memory; and documents
much shorter than 64 tokens, whose chunks in linear attention are partly empty. Of many processes, what sends experts'
tokens between them is not counted either.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gossamer import device as devices
from gossamer.cost.activations import Shape
from gossamer.cost.step_memory import Moment, Step, gathered, moments, weight_bytes
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.ops.orthogonalize.native import LARGEST
from gossamer.ops.registry import OPERATIONS
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
_MOST_PARAMETERS = 1 << 50
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
        _require("about", self.most * processes, device)

    def describe(self) -> str:
        """One line for people, in GiB."""
        names = "weights gradients optimizer activations workspace slack base".split()
        parts = ", ".join(f"{name} {_gib(getattr(self, name))}" for name in names if getattr(self, name) >= 50 << 20)
        line = f"about {_gib(self.total)} GiB of memory at the peak: {parts or 'little of anything'}"
        if self.most > self.total:
            line += f"; {_gib(self.checkpoint)} more while a checkpoint is written"
        return line


def require_weights(config: ModelConfig, world_size: int, device: torch.device, processes: int = 1) -> None:
    """Refuse (UserError) a network whose weights, gradients and running means alone are too many for the device.

    It takes no time: `estimate_peak` lays the network out first, half a minute for some thousand layers.

    Args:
        world_size: all processes, which share the network
        processes: of them on this device
    """
    _require("more than", 3 * _FLOAT * config.counts().parameters // world_size * processes, device)


def _require(about: str, needed: int, device: torch.device) -> None:
    there = devices.memory_bytes(device)
    if needed > _ERROR * there:
        raise UserError(
            f"training would take {about} {_gib(needed)} GiB of memory, and {device} has {_gib(there)} GiB; a "
            "smaller model, --training.batch_size or --training.sequence_length, --training.recompute true, and "
            "more devices (docs/cluster.md) need less"
        )


def estimate_peak(recipe: Recipe, device: torch.device, processes: int = 1) -> MemoryEstimate:
    """The most memory that one of `processes` takes while it trains by `recipe` on `device`.

    On a CPU, call it before the network is built: the process as it stands is taken to be the base.

    Raises:
        UserError: the device cannot compute in the recipe's precision, or the network is beyond every machine.
    """
    parameters = recipe.model.counts().parameters
    if parameters > _MOST_PARAMETERS:  # whose sizes PyTorch cannot count
        raise UserError(f"model: {parameters:.3g} parameters are more than any machine holds; make its sizes smaller")
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

    step = Step(shape, training.recompute, training.gradient_accumulation > 1, steps, training.mtp_trunk_gradient)
    sizes = weight_bytes(recipe.model)
    passed = moments(recipe.model, step, sizes, gradients, processes)
    passed.append(Moment("optimizer", gradients, 0, [update]))
    fullest = max(passed, key=lambda moment: moment.total)
    return MemoryEstimate(
        weights=weights,
        gradients=fullest.gradients,
        optimizer=state,
        activations=fullest.kept,
        workspace=sum(fullest.workspace) + (gathered(sizes, itemsize) if processes > 1 else 0),
        slack=_slack(passed) if on_cpu else 0,
        base=base,
        checkpoint=weights + state + _bytes(model.parameters()),
        device_type=device.type,
    )


def _slack(passed: Iterable[Moment]) -> int:
    """Bytes of holes in the C library's heap; see `_HOLES`."""
    largest: dict[str, int] = {}
    for moment in passed:
        counted = sum(size if size < _LARGE else size // 2 for size in moment.workspace)
        largest[moment.kind] = max(counted, largest.get(moment.kind, 0))
    return int(_HOLES * sum(largest.values()))


def _muon_workspace(parameter: Tensor, split: Split, device: torch.device, processes: int) -> int:
    """Bytes that Muon's update of a parameter takes: the update, and the rounds on one of its parts at a time."""
    shared = processes if parameter.ndim > 2 else 1  # experts are spread as wholes, a matrix is gathered
    native = OPERATIONS["orthogonalize"].choose(device).name == "native"  # keeps its rounds in the threads' caches
    itemsize = devices.compute_dtype(device, "auto").itemsize
    most = 0
    for matrices in split(parameter):
        part, small = matrices.numel() // shared, min(matrices.shape[-2:])
        gram = part // max(matrices.shape[-2:]) * small
        if native and small <= LARGEST:
            most = max(most, part * _FLOAT)
            continue
        # X, a X, (b G + c G²) X and their sum beside G; or X and a X beside all that it takes to make b G + c G².
        rounds = itemsize * max(4 * part + gram, 2 * part + 5 * gram)
        most = max(most, rounds + (part * _FLOAT if itemsize < _FLOAT else 0))
    return parameter.numel() // shared * _FLOAT + most


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
