"""Which accelerator is here and what it can do: the only file that names one.

Everything else asks this module for a device, a data type or a piece of random state, through PyTorch's
device-independent interface (`torch.accelerator`), so that a chip whose plug-in registers itself with PyTorch
(`npu`, `mlu`, `musa`, …) needs no line elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import platform
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

import torch

from gossamer.errors import UserError, nearest

# Collective-communication library of each device type; gloo serves every other one through host memory.
COLLECTIVE_BACKENDS = {"cuda": "nccl", "xpu": "xccl", "npu": "hccl", "mlu": "cncl", "musa": "mccl"}


def default_device() -> torch.device:
    """The accelerator PyTorch sees, or the CPU. `GOSSAMER_DEVICE` overrides it."""
    if wanted := os.environ.get("GOSSAMER_DEVICE"):
        return resolve(wanted)
    return torch.device(available_devices()[0])


def resolve(name: str = "auto") -> torch.device:
    """Turn a user's word (`auto`, `cpu`, `cuda`, `cuda:1`, `npu` …) into a device that is present.

    Raises:
        UserError: the word names no device type, or one that is not on this machine.
    """
    if name == "auto":
        return default_device()
    present = available_devices()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}{nearest(name, present)}; here: {', '.join(present)}") from None
    if device.type not in present:
        raise UserError(f"device {name!r} is not on this machine; here: {', '.join(present)}")
    if device.index is not None and device.index >= device_count(device):
        raise UserError(f"device {name!r}: only {device_count(device)} of type {device.type!r} on this machine")
    return device


def available_devices() -> list[str]:
    """Device types a user can name here, best first."""
    _load_plugin()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ([accelerator.type] if accelerator else []) + ["cpu"]


@lru_cache
def _load_plugin() -> None:
    """Import the module that GOSSAMER_PLUGIN names, for a chip whose plug-in PyTorch does not load by itself."""
    if name := os.environ.get("GOSSAMER_PLUGIN"):
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(f"GOSSAMER_PLUGIN {name!r} cannot be imported: {error}") from error


def device_count(device: torch.device) -> int:
    """How many devices of this one's type are here."""
    return 1 if device.type == "cpu" else torch.accelerator.device_count()


@lru_cache
def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 run in hardware; where they are emulated they can be a hundred times slower."""
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))
    supported = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return True if supported is None else bool(supported())


def compute_dtype(device: torch.device, precision: str) -> torch.dtype:
    """What products are computed in, for a recipe's word: bf16, fp32, or auto.

    auto is bfloat16 on an accelerator that has it and float32 on a CPU: even with bfloat16 units, a CPU gains nothing
    on small matrices.

    Raises:
        UserError: bf16 was asked for where it would be emulated.
    """
    if precision == "bf16" and not has_fast_bfloat16(device):
        raise UserError(f"precision bf16: {device} has no bfloat16 units and would be slower by far; use fp32 or auto")
    if precision == "bf16" or (precision == "auto" and device.type != "cpu" and has_fast_bfloat16(device)):
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Compute products in `dtype` inside this context; float32 computes everything as it is."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def is_accelerator(device: torch.device) -> bool:
    """Whether it is something other than the CPU."""
    return device.type != "cpu"


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Make it the device that kernels are launched on; PyTorch's own functions need no such help."""
    return nullcontext() if device.index is None else torch.accelerator.device_index(device.index)


def triton_obstacle(device: torch.device) -> str:
    """What keeps Triton kernels from running there, or ""; on a CPU they run in Triton's interpreter, for tests."""
    if not _installed("triton"):
        return "no Triton"
    if device.type == "cpu":
        return "" if os.environ.get("TRITON_INTERPRET") == "1" else "a CPU, and TRITON_INTERPRET is not set"
    target = _triton_target()
    return "" if target and target[0] == device.type else f"this Triton has no driver for {device.type!r} here"


def triton_dot_precisions(device: torch.device) -> tuple[str, str]:
    """Words for Triton's `dot` of float32: the fastest that still beats bfloat16, and a fast one as good as float32."""
    target = _triton_target() if is_accelerator(device) else None
    return ("tf32", "tf32x3") if target and target[1] == "cuda" else ("ieee", "ieee")


def shared_memory(device: torch.device) -> int:
    """Bytes of fast memory that one block of threads may have; a great many where the device does not say."""
    if not is_accelerator(device):
        return 1 << 30
    properties = torch.get_device_module(device).get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 1 << 30))


def fla_obstacle(device: torch.device) -> str:
    """What keeps flash-linear-attention from running there, or ""."""
    if not _installed("fla"):
        return "flash-linear-attention is not installed"
    if device.type == "cpu":
        return "a CPU"
    if (version := _fla_version()) < (0, 5):
        return f"flash-linear-attention {'.'.join(map(str, version))} is older than 0.5"
    return triton_obstacle(device)


def grouped_mm_obstacle(device: torch.device) -> str:
    """What keeps PyTorch's grouped matrix product from running there, or ""; a CPU has a simple form of it."""
    if not hasattr(torch.nn.functional, "grouped_mm"):
        return "this PyTorch has no grouped product"
    if device.type not in ("cpu", "cuda", "xpu"):
        return f"PyTorch has no grouped product for {device.type!r}"
    return "" if device.type == "cpu" or has_fast_bfloat16(device) else "no bfloat16 units"


@lru_cache
def _installed(package: str) -> bool:
    return find_spec(package) is not None


@lru_cache
def _triton_target() -> tuple[str, str] | None:
    """PyTorch's name of the device type that Triton's driver is for, and the name of Triton's compiler for it."""
    import triton

    try:
        driver = triton.runtime.driver.active
        return driver.get_active_torch_device().type, driver.get_current_target().backend
    except (RuntimeError, AttributeError):  # no driver, or more than one
        return None


@lru_cache
def _fla_version() -> tuple[int, ...]:
    for package in ("fla-core", "flash-linear-attention"):
        try:
            return tuple(int(part) for part in metadata.version(package).split(".")[:2])
        except (metadata.PackageNotFoundError, ValueError):
            continue
    return (0,)


def keep_freed_memory() -> None:
    """Let the C library keep the host memory that tensors free, instead of handing each page back to the system.

    A training step frees and takes the same megabytes over and over; with glibc's defaults every round costs a page
    fault for each 4 KiB, which was measured to be most of the time of a small model's backward pass. Does nothing
    where the C library is another one.
    """
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # parameter numbers of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(arena_max, 1)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)  # the largest tensors, the experts' gradients, come from the heap as well


def seed_everything(seed: int) -> None:
    """Seed the random generators of the CPU and of every device."""
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of the generators a training step may draw from, as CPU tensors of bytes."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put back what `random_state` returned; a state of another device type is passed over."""
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type], device)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the process on a CPU, of the allocator on an accelerator."""
    if device.type != "cpu":
        return int(_call(device, "max_memory_allocated"))
    try:  # the kernel's own mark of this program: ru_maxrss begins with that of the program that started it
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device) -> None:
    """Let go of memory that no tensor holds, and measure the peak of an accelerator's memory from here on."""
    if is_accelerator(device):
        with suppress(RuntimeError, AttributeError):  # a chip whose plug-in keeps no such figures
            torch.get_device_module(device).empty_cache()
            _call(device, "reset_peak_memory_stats")


def peak_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two large square matrices, the best of a few, in a fraction of a second.

    It is measured as training computes: in this type, on the threads that PyTorch has, by its settings.
    """
    return _peak_rate(device, dtype, torch.get_num_threads())


@lru_cache
def _peak_rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    size, took = 256, 0.0
    while True:
        # No random numbers: training draws from their generators. Zeros would be faster than others on some chips.
        a = torch.arange(size * size, device=device, dtype=torch.float32).sin_().view(size, size).to(dtype)
        _seconds_of_product(a, 1)
        took = _seconds_of_product(a, 1)
        if took >= 5e-3 or size == 8192:
            break
        size *= 2
    repeats = max(1, int(0.01 / took))  # in a row: an accelerator is told of the next product during the last
    best = min(took, *(_seconds_of_product(a, repeats) for _ in range(3)))
    del a
    reset_peak_memory(device)  # what training will need at most is measured from here on
    return 2.0 * size**3 / best


def _seconds_of_product(a: torch.Tensor, repeats: int) -> float:
    out = torch.empty_like(a)
    synchronize(a.device)
    began = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, a, out=out)
    synchronize(a.device)
    return (time.perf_counter() - began) / repeats


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if is_accelerator(device):
        _call(device, "synchronize")


def _call(device: torch.device, name: str) -> Any:
    """Ask the device's own module, as `torch.npu` is, or else `torch.accelerator`, which not every plug-in serves."""
    return getattr(torch.get_device_module(device), name, getattr(torch.accelerator, name))(device)


def energy(device: torch.device) -> float | None:
    """Joules that an accelerator has used since some moment in the past; None if it does not say.

    NVIDIA's management library, which comes with the driver, tells it of its GPUs since Volta.
    """
    if device.type != "cuda":
        return None
    try:
        library, handle = _nvml(device)
        used = ctypes.c_ulonglong()  # millijoules
        return (
            used.value / 1e3 if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used)) == 0 else None
        )
    except (OSError, AttributeError, RuntimeError):
        return None


@lru_cache
def _nvml(device: torch.device) -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    """NVIDIA's management library and its handle of a device, found by its UUID: the two count devices differently."""
    library, handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
    uuid = str(torch.get_device_module(device).get_device_properties(device).uuid)
    name = f"GPU-{uuid.removeprefix('GPU-')}".encode()
    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
        raise OSError("no such device")
    return library, handle


def cpu_name() -> str:
    """The processor's name as its maker gives it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def product_name(device: torch.device) -> str:
    """A device's name as its maker gives it."""
    if device.type == "cpu":
        return cpu_name()
    properties = torch.get_device_module(device).get_device_properties(device)
    return str(getattr(properties, "name", "unnamed"))


def device_name(device: torch.device) -> str:
    """A device's name for people, such as `cpu (AMD EPYC, 2 threads)`."""
    threads = "" if is_accelerator(device) else f", {torch.get_num_threads()} threads"
    return f"{device.type} ({product_name(device)}{threads})"


def memory_bytes(device: torch.device) -> int:
    """Memory in bytes that the device has in all."""
    if device.type != "cpu":
        own = getattr(torch.get_device_module(device), "mem_get_info", torch.accelerator.get_memory_info)
        return int(own(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe(device: torch.device | None = None) -> dict[str, Any]:
    """What `gossamer doctor` prints of the machine."""
    device = device or default_device()
    return {
        "device": device_name(device),
        "device_type": device.type,
        "memory_gib": round(memory_bytes(device) / 2**30, 1),
        "collective_backend": COLLECTIVE_BACKENDS.get(device.type, "gloo"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
