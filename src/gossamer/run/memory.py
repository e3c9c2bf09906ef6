"""The peak memory of a process that trains by a recipe, before anything is allocated.

The tensors are those of `gossamer.cost.memory`; this file adds what only a training process knows: the state and the
workspace of its optimizer, and on a CPU the process itself and the holes in its heap.

Not counted are text that is mapped from disk, which the system takes back when it needs the memory; documents much
shorter than 64 tokens, whose chunks in linear attention are partly empty; and of several processes, the buffers that
send the tokens of experts between them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer import device as devices
from gossamer.cost.activations import MicroBatchShape
from gossamer.cost.layout import Layout
from gossamer.cost.memory import MemoryMoment, ResidentBytes, StepMemory, StepSpec, step_memory, trace_step
from gossamer.cost.network import count_network
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.ops.orthogonalize import MAX_NATIVE_SIDE
from gossamer.ops.registry import OPERATIONS
from gossamer.train.muon import Split, matrix_splits
from gossamer.train.recipe import Recipe
from gossamer.train.trained import choose_trained
from gossamer.units import human, size

# Loaded by PyTorch's first network, products and backward pass: measured with a network of no size to speak of.
_FIRST_USE = 56 << 20
# glibc keeps tensors in a heap where each kind of part leaves holes of its own sizes, which no other part's temporaries
# fit into; what recomputation makes again counts to them. Fitted, not derived: of 11 runs of 0.5 to 2.4 GB the total
# was 8% too low to 11% too high.
_HOLES = 1.1
# Half of the tensors of at least this size find a place again.
_LARGE = 32 << 20
# How far above the truth the estimate may be: what exceeds a device's memory by this factor cannot fit.
_ERROR = 1.15
_MAX_PARAMETERS = 1 << 50  # PyTorch cannot count the sizes of larger networks
_MIN_SHOWN = 50 << 20  # smaller parts are not described
_FLOAT32 = 4  # bytes of a number in weights, gradients and optimizer state


@dataclass(frozen=True)
class MemoryEstimate(StepMemory):
    """What a process's memory holds at the fullest moment of a training step, in bytes.

    Attributes:
        weights: the network in float32; of several processes, this one's part
        gradients: the gradients that are there at that moment
        optimizer: the optimizer's state
        activations: what the forward pass has saved for the backward pass
        workspace: temporaries of the part that is at work, and weights gathered from other processes
        slack: holes in the C library's heap, between tensors that stay; on a CPU alone
        base: the process without a network: Python, PyTorch, the tokenizer; on a CPU alone
        checkpoint: what a checkpoint takes beside all that in the host's memory while it is written
        device_type: whose memory it is
    """

    slack: int
    base: int
    checkpoint: int
    device_type: str

    @property
    def tensors(self) -> int:
        """Bytes of all tensors."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.workspace

    @property
    def total(self) -> int:
        """All bytes but those of a checkpoint's copies."""
        return self.tensors + self.slack + self.base

    @property
    def needed(self) -> int:
        """Bytes that the device must have: on a CPU the copies of a checkpoint add to the total."""
        return self.total + (self.checkpoint if self.device_type == "cpu" else 0)

    def fits(self, device: torch.device, ranks_per_device: int = 1) -> bool:
        """Return whether the device has enough memory for so many processes like this one."""
        return self.needed * ranks_per_device <= devices.memory_bytes(device)

    def require(self, device: torch.device, ranks_per_device: int = 1) -> None:
        """Refuse what the device cannot hold however wrong the estimate is.

        Raises:
            UserError: so many processes like this one need more memory than the device has.
        """
        _require("about", self.needed * ranks_per_device, device)

    def describe(self) -> str:
        """Return one line for people."""
        names = "weights gradients optimizer activations workspace slack base".split()
        parts = [f"{name} {size(getattr(self, name))}" for name in names if getattr(self, name) >= _MIN_SHOWN]
        line = f"about {size(self.total)} of memory at the peak: {', '.join(parts) or 'little of anything'}"
        if self.needed > self.total:
            line += f"; {size(self.checkpoint)} more while a checkpoint is written"
        return line


def require_weights(config: ModelConfig, world_size: int, device: torch.device, ranks_per_device: int = 1) -> None:
    """Refuse a network whose weights, gradients and running means alone exceed the device's memory.

    This takes no time, while `estimate_peak` lays the network out first: half a minute for some thousand layers.

    Args:
        config: the network
        world_size: how many processes share the network
        device: the device of this process
        ranks_per_device: how many of them share this device

    Raises:
        UserError: the device has too little memory.
    """
    _require("more than", 3 * _FLOAT32 * count_network(config).parameters // world_size * ranks_per_device, device)


def _require(about: str, needed: int, device: torch.device) -> None:
    available = devices.memory_bytes(device)
    if needed > _ERROR * available:
        raise UserError(
            f"training would take {about} {size(needed)} of memory, and {device} has {size(available)}; a smaller "
            "model, --training.batch_size or --training.sequence_length, --training.recompute true, and more devices "
            "(docs/cluster.md) need less"
        )


def estimate_peak(
    recipe: Recipe, device: torch.device, world_size: int = 1, stored_bytes: int | None = None
) -> MemoryEstimate:
    """Estimate the peak memory of one of `world_size` processes that train by `recipe` on `device`.

    On a CPU, call it before the network is built: the process as it stands is taken to be the base.

    Args:
        recipe: how is trained; that of a tuning knows the tokens of a row
        device: where
        world_size: how many processes share the network
        stored_bytes: of the network as it is stored, which is how what is frozen is held; None: in float32

    Raises:
        UserError: the device cannot compute in the recipe's precision, or the network is beyond every machine.
    """
    parameters = count_network(recipe.model).parameters
    if parameters > _MAX_PARAMETERS:
        raise UserError(
            f"model: {human(parameters)} parameters are more than any machine holds; make its sizes smaller"
        )
    training, on_cpu = recipe.training, device.type == "cpu"
    base = _base() if on_cpu else 0  # before this function adds to it
    with torch.device("meta"):
        model = CausalLM(recipe.model, random_weights=False)
    mtp_steps = training.mtp_steps if model.mtp is not None and training.mtp_loss_weight else 0
    if model.mtp is not None and not mtp_steps:
        model.mtp.requires_grad_(False)
    rows, length, accumulates = training.batch_size, training.sequence_length, training.gradient_accumulation > 1
    if recipe.tuning is not None:
        choose_trained(model, recipe.tuning)
        rows, length, accumulates = world_size, recipe.tuning.row_tokens or length, True
    resident = _resident_bytes(model, recipe.optimizer.kind, device, world_size, stored_bytes)

    itemsize = devices.compute_dtype(device, training.precision).itemsize
    native = frozenset(name for name, operation in OPERATIONS.items() if operation.choose(device).name == "native")
    layout = Layout(world_size, rows=max(1, rows // world_size), recompute=training.recompute)
    step = StepSpec(
        MicroBatchShape(layout.rows, length, itemsize, native),
        recompute=training.recompute,
        accumulates=accumulates,
        mtp_steps=mtp_steps,
        mtp_trunk_gradient=training.mtp_trunk_gradient,
        casts=world_size == 1,  # several processes gather weights in the computing type
    )
    timeline = trace_step(recipe.model, layout, step)
    return MemoryEstimate(
        **asdict(step_memory(timeline, layout, resident)),
        slack=_slack([*timeline.moments, MemoryMoment("optimizer", 0, 0, resident.update)]) if on_cpu else 0,
        base=base,
        checkpoint=2 * _bytes(_saved(model, recipe)) + resident.optimizer,
        device_type=device.type,
    )


def _saved(model: CausalLM, recipe: Recipe) -> list[nn.Parameter]:
    """Return what a checkpoint holds of a network: all of it, or of a tuning of a part that part."""
    is_partial = recipe.tuning is not None and (recipe.tuning.lora or recipe.tuning.drafts)
    return [parameter for parameter in model.parameters() if parameter.requires_grad or not is_partial]


def _resident_bytes(
    model: CausalLM, optimizer: str, device: torch.device, world_size: int, stored_bytes: int | None
) -> ResidentBytes:
    """What one process holds of a network on the meta device, and what its optimizer's update takes."""
    splits = matrix_splits(model) if optimizer == "muon" else {}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = _bytes(model.parameters())
    if stored_bytes is not None:
        weights = min(weights, stored_bytes + _bytes(trained))
    gradients = _bytes(trained) // world_size
    # Muon keeps a running mean of each matrix, AdamW a running mean and a running square of all else.
    matrices = [parameter for parameter in trained if parameter in splits]
    return ResidentBytes(
        weights=weights // world_size,
        gradients=gradients,
        optimizer=2 * gradients - _bytes(matrices) // world_size,
        update=(max((_muon_workspace(matrix, splits[matrix], device, world_size) for matrix in matrices), default=0),),
    )


def _slack(moments: Iterable[MemoryMoment]) -> int:
    """Bytes of holes in the C library's heap; see `_HOLES`."""
    largest: dict[str, int] = {}
    for moment in moments:
        counted = sum(tensor if tensor < _LARGE else tensor // 2 for tensor in moment.workspace)
        largest[moment.kind] = max(counted, largest.get(moment.kind, 0))
    return int(_HOLES * sum(largest.values()))


def _muon_workspace(parameter: Tensor, split: Split, device: torch.device, world_size: int) -> int:
    """Bytes that Muon's update of a parameter takes: the update, and the iterations on one of its parts at a time."""
    shared = world_size if parameter.ndim > 2 else 1  # experts are spread as wholes, a matrix is gathered
    native = OPERATIONS["orthogonalize"].choose(device).name == "native"  # iterates within the caches of the threads
    itemsize = devices.compute_dtype(device, "auto").itemsize
    largest = 0
    for matrices in split(parameter):
        part, small = matrices.numel() // shared, min(matrices.shape[-2:])
        gram = part // max(matrices.shape[-2:]) * small
        if native and small <= MAX_NATIVE_SIDE:
            largest = max(largest, part * _FLOAT32)
            continue
        # X, a X, (b G + c G²) X and their sum beside G; or X and a X beside all that it takes to make b G + c G².
        iterations = itemsize * max(4 * part + gram, 2 * part + 5 * gram)
        largest = max(largest, iterations + (part * _FLOAT32 if itemsize < _FLOAT32 else 0))
    return parameter.numel() // shared * _FLOAT32 + largest


def _bytes(parameters: Iterable[Tensor]) -> int:
    return _FLOAT32 * sum(parameter.numel() for parameter in parameters)


def _base() -> int:
    """Bytes of the process as it stands, and of what PyTorch loads when it first computes."""
    importlib.import_module("torch._dynamo")  # as the first optimizer will: more where Triton is installed
    statm = Path("/proc/self/statm")
    if not statm.exists():  # the peak of the process so far is the best that can be known
        return devices.peak_memory(torch.device("cpu")) + _FIRST_USE
    import resource

    return int(statm.read_text().split()[1]) * resource.getpagesize() + _FIRST_USE
