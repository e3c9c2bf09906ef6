"""Which accelerator is here and what it can do: the only room that names one.

Everything else asks this one for a device, a data type or a piece of random state, through PyTorch's device-independent
interface, so that a chip whose plug-in registers itself with PyTorch (`npu`, `mlu`, `musa`, …) needs no line elsewhere,
and here at most one in the table of `backends`.
"""

from gossamer.device.backends import BACKENDS, Backend, backend_of
from gossamer.device.calls import synchronize
from gossamer.device.find import available_devices, default_device, device_count, load_plugins, resolve
from gossamer.device.flags import Capabilities, can_hold, capabilities, collective_backend, has_fast_bfloat16
from gossamer.device.huge_pages import use_huge_pages
from gossamer.device.kernels import (
    current,
    fla_obstacle,
    grouped_mm_obstacle,
    shared_memory,
    triton_dot_precisions,
    triton_obstacle,
)
from gossamer.device.memory import forget_peak_memory, keep_freed_memory, memory_bytes, peak_memory
from gossamer.device.names import device_key, device_name, is_accelerator, product_name
from gossamer.device.numbers import autocast, compute_dtype
from gossamer.device.nvml import energy
from gossamer.device.process import prepare_process
from gossamer.device.processor import Processor, processor
from gossamer.device.randomness import random_state, seed_everything, set_random_state
from gossamer.device.speed import peak_rate
from gossamer.device.summary import describe

__all__ = [
    "BACKENDS",
    "Backend",
    "Capabilities",
    "Processor",
    "autocast",
    "available_devices",
    "backend_of",
    "can_hold",
    "capabilities",
    "collective_backend",
    "compute_dtype",
    "current",
    "default_device",
    "describe",
    "device_count",
    "device_key",
    "device_name",
    "energy",
    "fla_obstacle",
    "forget_peak_memory",
    "grouped_mm_obstacle",
    "has_fast_bfloat16",
    "is_accelerator",
    "keep_freed_memory",
    "load_plugins",
    "memory_bytes",
    "peak_memory",
    "peak_rate",
    "prepare_process",
    "processor",
    "product_name",
    "random_state",
    "resolve",
    "seed_everything",
    "set_random_state",
    "shared_memory",
    "synchronize",
    "triton_dot_precisions",
    "triton_obstacle",
    "use_huge_pages",
]
