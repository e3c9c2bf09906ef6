"""The accelerators of this machine and what they can do: the only room that names one.

Every other room asks this one for a device, a dtype or a random state, through PyTorch's device-independent interface.
A chip whose plug-in registers itself with PyTorch (`npu`, `mlu`, `musa`, …) therefore needs no line in other rooms, and
here at most one row in the table of `backends`.
"""

from gossamer.device.accelerator import (
    available_devices,
    default_device,
    device_count,
    device_key,
    device_name,
    get_rng_state,
    is_accelerator,
    load_plugins,
    memory_bytes,
    peak_memory,
    product_name,
    reset_peak_memory_stats,
    resolve,
    seed_everything,
    set_rng_state,
    synchronize,
)
from gossamer.device.backends import BACKENDS, Backend, backend_of
from gossamer.device.capabilities import (
    Capabilities,
    autocast,
    can_hold,
    capabilities,
    collective_backend,
    compute_dtype,
    describe,
    device_context,
    fla_obstacle,
    grouped_mm_obstacle,
    has_fast_bfloat16,
    hidden_dtype,
    shared_memory,
    triton_dot_precisions,
    triton_obstacle,
)
from gossamer.device.measure import energy, peak_rate
from gossamer.device.process import keep_freed_memory, prepare_process, use_huge_pages
from gossamer.device.processor import Processor, processor

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
    "default_device",
    "describe",
    "device_context",
    "device_count",
    "device_key",
    "device_name",
    "energy",
    "fla_obstacle",
    "get_rng_state",
    "grouped_mm_obstacle",
    "has_fast_bfloat16",
    "hidden_dtype",
    "is_accelerator",
    "keep_freed_memory",
    "load_plugins",
    "memory_bytes",
    "peak_memory",
    "peak_rate",
    "prepare_process",
    "processor",
    "product_name",
    "reset_peak_memory_stats",
    "resolve",
    "seed_everything",
    "set_rng_state",
    "shared_memory",
    "synchronize",
    "triton_dot_precisions",
    "triton_obstacle",
    "use_huge_pages",
]
