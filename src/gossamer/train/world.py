"""The processes that train together, as torchrun starts them: the rank of this one, and how it talks to the others.

A single process is a world, too: then every method does nothing, and no process group exists.
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

# The main process may tokenize a corpus while the others wait; a process that dies is noticed by torchrun, not by this.
_TIMEOUT = timedelta(hours=2)
_COUNTS = Range(0, 1 << 20)  # of processes and restarts

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """All processes of a run. `World()` is a single process; `World.join` reads torchrun's environment.

    Attributes:
        device: the device of this process
        rank: its number among them, from 0
        size: how many processes there are
        group: the process group they talk in; None: PyTorch's default one
        ranks_per_device: how many of them share one device's memory, as those of a machine's CPU do
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    ranks_per_device: int = 1

    @classmethod
    def join(cls, device: torch.device) -> World:
        """Join the processes that torchrun has started; without torchrun the world is this process.

        Args:
            device: of any index; among several processes an accelerator's index becomes LOCAL_RANK

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
            dist.init_process_group(backend, rank=rank, world_size=size, timeout=_TIMEOUT, device_id=device_id)
        except ValueError as error:  # MASTER_ADDR or MASTER_PORT is missing
            raise UserError(f"WORLD_SIZE is {size}, but {error}; start the processes with torchrun") from error
        ranks_per_device = _variable("LOCAL_WORLD_SIZE", size) if device.type == "cpu" else 1
        return cls(device, rank, size, ranks_per_device=ranks_per_device)

    def new_group(self) -> World:
        """Return the same ranks in a group of their own that talks through host memory, for a second thread."""
        if self.size == 1:
            return self
        group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        assert isinstance(group, dist.ProcessGroup)
        return World(torch.device("cpu"), self.rank, self.size, group)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    @cached_property
    def mesh(self) -> DeviceMesh:
        """All processes, in one dimension."""
        return init_device_mesh(self.device.type, (self.size,), mesh_dim_names=("world",))

    def expert_mesh(self, expert_parallel: int) -> DeviceMesh:
        """Return all processes in rows of `expert_parallel` neighbors: dimensions `data` and `expert`."""
        shape = (self.size // expert_parallel, expert_parallel)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("data", "expert"))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Replace a tensor, of the same shape on every rank, by its sum over the ranks, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def mean_over_ranks(self, value: float) -> float:
        """Return the mean of the ranks' values, so that all of them have the same one."""
        return float(self.all_reduce(torch.tensor(value, dtype=torch.float64))) / self.size

    def max_over_ranks(self, number: int) -> int:
        """Return the largest of the ranks' numbers, such as the signals they have caught."""
        if self.size == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return int(largest)

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.max_over_ranks(0)  # dist.barrier would guess a device

    def call_on_main(self, function: Callable[[], T]) -> T:
        """Call `function` on the main process and return its result, which pickle must know, on all of them.

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

    def all_gather(self, value: T) -> list[T]:
        """Return every rank's value, which pickle must know, by rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def close(self) -> None:
        """Leave the process group; nothing of this object can be used afterwards."""
        if self.size > 1:
            # gloo's threads let go of the last tensors shortly after the call that waited for them. Should Python end
            # before that, they abort the process (pytorch/pytorch#179291).
            time.sleep(0.2)
            dist.destroy_process_group()


SINGLE_PROCESS = World()


def to_local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, sharing its memory; of a plain tensor that is the whole."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part


def _variable(name: str, default: int | None = None) -> int:
    """Return the number that an environment variable of torchrun holds."""
    text = os.environ.get(name, "" if default is None else str(default))
    value = parse_number(text)
    if not isinstance(value, int) or value not in _COUNTS:
        raise UserError(
            f"environment variable {name} is {shown(text)}: start the processes with torchrun, which sets it"
        )
    return value
