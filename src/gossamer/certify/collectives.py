"""How fast the devices of one machine add up a tensor between them, and whether the sum is right."""

from __future__ import annotations

import os
import socket
import time
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from gossamer import device as devices
from gossamer.train.world import World

_REPEATS = 5


def collective_rate(device_type: str, processes: int, megabytes: int = 64) -> float:
    """Bytes of a tensor that every process ends up with the sum of, over the seconds that it takes.

    Each process has a device of its own, on a CPU they share it.

    Raises:
        RuntimeError: a sum is wrong.
        torch.multiprocessing.ProcessRaisedException: a process failed.
    """
    context = multiprocessing.get_context("spawn")
    rates: SimpleQueue[float] = context.SimpleQueue()
    arguments = (device_type, processes, _free_port(), megabytes, rates)
    multiprocessing.spawn(_serve, args=arguments, nprocs=processes)
    return min(rates.get() for _ in range(processes))


def _serve(rank: int, device_type: str, processes: int, port: int, megabytes: int, rates: Any) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {name: str(value) for name, value in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = World.join(torch.device(device_type))
    own = torch.full((megabytes << 18,), float(rank + 1), device=world.device)
    total = processes * (processes + 1) / 2
    if not bool((world.sum_(own.clone()) == total).all()):
        raise RuntimeError(f"the sum over {processes} devices is wrong")
    devices.synchronize(world.device)
    world.barrier()
    began = time.perf_counter()
    for _ in range(_REPEATS):
        world.sum_(own)
    devices.synchronize(world.device)
    rates.put(own.nbytes * _REPEATS / (time.perf_counter() - began))
    world.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
