"""The processes that train together, as torchrun starts them: who this one is, and how it talks to the others.

One process alone is a world, too: then every method is a no-op, and no process group exists.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.reading import parse_number
from gossamer.typed import Range, shown

# Main may tokenise a corpus while the others wait for it; a process that dies is noticed by torchrun, not by this.
_PATIENCE = timedelta(hours=2)
_NUMBERS = Range(0, 1 << 20)  # of processes and restarts

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """All processes of a run. `World()` is one process alone; `World.join` reads torchrun's environment.

    Attributes:
        device: this process's own
        rank: its number, from 0
        size: how many processes there are
        group: of processes that talk; None: PyTorch's default one
        sharing: how many of them have their memory together, as those of one machine's CPU do
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    sharing: int = 1

    @classmethod
    def join(cls, device: torch.device) -> World:
        """Meet the other processes that torchrun has started, or be alone where it has not.

        Args:
            device: of any index; an accelerator's becomes LOCAL_RANK, unless this process is alone

        Raises:
            UserError: torchrun's variables are incomplete, there are fewer devices than processes here, or torchrun
                was not set up for restarts.
        """
        size = _variable("WORLD_SIZE", 1)
        if size == 1:
            return cls(device)
        restarted = _variable("TORCHELASTIC_RESTART_COUNT", 0) > 0
        if restarted and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            raise UserError(
                "torchrun has restarted these processes on a store that still holds the old ones' addresses, which "
                "hangs; start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 (docs/cluster.md)"
            )
        rank, local_rank = _variable("RANK"), _variable("LOCAL_RANK")
        if device.type != "cpu":
            count = devices.device_count(device)
            if local_rank >= count:
                raise UserError(
                    f"process {local_rank} of this machine has no device of its own, there are {count} of type "
                    f"{device.type!r}: torchrun --nproc-per-node {count}"
                )
            device = torch.device(device.type, local_rank)
            torch.accelerator.set_device_index(local_rank)
        own = devices.collective_backend(device)
        backend = own if device.type == "cpu" else f"cpu:gloo,{device.type}:{own}"
        # With the device given, its communicator is set up now, and on the right device.
        device_id = None if device.type == "cpu" else device
        try:
            dist.init_process_group(backend, rank=rank, world_size=size, timeout=_PATIENCE, device_id=device_id)
        except ValueError as error:  # MASTER_ADDR or MASTER_PORT is missing
            raise UserError(f"WORLD_SIZE is {size}, but {error}; start the processes with torchrun") from error
        sharing = _variable("LOCAL_WORLD_SIZE", size) if device.type == "cpu" else 1
        return cls(device, rank, size, sharing=sharing)

    def aside(self) -> World:
        """The same processes on a line of their own through host memory, for a thread beside the one that trains."""
        if self.size == 1:
            return self
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        assert isinstance(group, dist.ProcessGroup)
        return World(torch.device("cpu"), self.rank, self.size, group)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    @cached_property
    def mesh(self) -> DeviceMesh:
        """All processes in a row."""
        return init_device_mesh(self.device.type, (self.size,), mesh_dim_names=("world",))

    def grid(self, expert_parallel: int) -> DeviceMesh:
        """All processes in rows of `expert_parallel` neighbours: dimensions `data` and `expert`."""
        shape = (self.size // expert_parallel, expert_parallel)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("data", "expert"))

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor, of the same shape on every process, by its sum over them; returns it."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def max(self, number: int) -> int:
        """The largest of the processes' numbers, such as the signals they have caught."""
        if self.size == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return int(largest)

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.max(0)  # dist.barrier would guess a device

    def on_main(self, function: Callable[[], T]) -> T:
        """Call `function` on the main process alone and give its result, which pickle must know, to all of them.

        Raises:
            UserError: `function` raised it, on every process. Any other exception ends the main process, and
                torchrun then ends the others.
        """
        if self.size == 1:
            return function()
        result: list[Any] = [None, None]
        if self.is_main:
            try:
                result[0] = function()
            except UserError as error:
                result[1] = str(error)
        dist.broadcast_object_list(result, src=0, group=self.group, device=self.device)
        if result[1] is not None:
            raise UserError(result[1])
        value: T = result[0]
        return value

    def gather(self, value: T) -> list[T]:
        """Every process's value, which pickle must know, by rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def close(self) -> None:
        """Part with the others; nothing of this object can be used afterwards."""
        if self.size > 1:
            # gloo's threads let go of the last tensors shortly after the call that waited for them. Should Python end
            # before that, they abort the process (pytorch/pytorch#179291).
            time.sleep(0.2)
            dist.destroy_process_group()


ALONE = World()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, sharing its memory: of a plain tensor, the whole."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part


def _variable(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    value = parse_number(text)
    if not isinstance(value, int) or value not in _NUMBERS:
        raise UserError(
            f"environment variable {name} is {shown(text)}: start the processes with torchrun, which sets it"
        )
    return value
