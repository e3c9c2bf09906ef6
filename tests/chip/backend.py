"""Registering the chip with PyTorch: its name, the module `torch.<name>`, and the operators that make tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from chip.faults import reset
from chip.state import CHIP, allocated, peak
from chip.tensor import run

# PyTorch composes every other factory of the first two, and silu_backward of others for a device that does not say it
# has it. What it would compose of an empty tensor that grows is a kernel, too: a wrapper's shape cannot grow.
_KERNELS = (
    "empty.memory_format", "empty_strided", "silu_backward", "arange", "arange.start", "arange.start_step", "eye",
    "eye.m", "linspace", "randperm",
)  # fmt: skip
_LIBRARY = torch.library.Library("aten", "IMPL")


def install(name: str = "testchip") -> torch.device:
    """Make this process have the chip, and return it; a second call does no more than that."""
    if not CHIP.name:
        CHIP.name, CHIP.present = name, True
        _setup_privateuseone_for_python_backend(name, backend_module=_Module(f"torch.{name}"), hook=_Hooks())
        for operator in _KERNELS:
            _LIBRARY.impl(operator, _kernel(operator), "PrivateUse1")
        _LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
    if name != CHIP.name:
        raise ValueError(f"this process has the chip as {CHIP.name!r}; PyTorch cannot rename it")
    return torch.device(name, 0)


def unplug() -> None:
    """Take the device away: PyTorch finds it no longer, and what still lies on it cannot be used."""
    CHIP.present = False


def plug() -> None:
    """Bring the device back, without faults."""
    CHIP.present = True
    reset()


def _kernel(operator: str) -> Any:
    name, _, overload = operator.partition(".")
    func = getattr(getattr(torch.ops.aten, name), overload or "default")
    return lambda *args, **kwargs: run(func, args, kwargs)


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """What `torch.tensor([1, 2], device=chip)` calls, at a place where tensors are not asked what they do."""
    run(torch.ops.aten.copy_.default, (target, source), {})
    return target


class _Hooks(torch._C._acc.PrivateUse1Hooks):  # type: ignore[misc]
    """What PyTorch's C++ asks of the device."""

    def is_available(self) -> bool:
        return CHIP.present

    def has_primary_context(self, device_index: int) -> bool:
        return CHIP.present

    def is_built(self) -> bool:
        return True


class _Stream:
    """The only stream there is."""

    def synchronize(self) -> None:
        pass

    def wait_stream(self, other: _Stream) -> None:
        pass


_STREAM = _Stream()


class _Module(ModuleType):
    """`torch.<name>`: what PyTorch and programs ask of a device type, under the names PyTorch's guide gives."""

    def is_available(self) -> bool:
        return CHIP.present

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return int(CHIP.present)

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        assert torch.device(CHIP.name, device if isinstance(device, int) else torch.device(device).index).index == 0

    # Time: an operator is done when its call returns.

    def synchronize(self, device: Any = None) -> None:
        pass

    def current_stream(self, device: Any = None) -> _Stream:
        return _STREAM

    def stream(self, stream: _Stream) -> AbstractContextManager[None]:
        return nullcontext()

    # What it is.

    def get_device_properties(self, device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(name="gossamer test chip", total_memory=CHIP.capacity)

    # Numbers.

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return []

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> None:
        CHIP.generator_state = torch.Generator().manual_seed(seed).get_state()

    def manual_seed_all(self, seed: int) -> None:
        self.manual_seed(seed)

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return CHIP.generator_state.clone()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        CHIP.generator_state = state.clone()

    # Memory.

    def memory_allocated(self, device: Any = None) -> int:
        return allocated()

    def max_memory_allocated(self, device: Any = None) -> int:
        return peak()

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        CHIP.peak = allocated()

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return CHIP.capacity - allocated(), CHIP.capacity

    def empty_cache(self) -> None:
        pass
