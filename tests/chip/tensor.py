"""The chip's tensors, and what happens when an operator is called on them.

A tensor wraps one in host memory. Autograd, autocast and what PyTorch composes of other operators happen above; what
arrives here is what the kernels of a real chip would be called for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch

from chip.state import CHIP

# These carry numbers between devices, or ask nothing of the numbers at all.
_CROSSING = {"aten::copy_", "aten::_to_copy", "aten::_copy_from"}
_UNSUPPORTED = {torch.float64, torch.complex32, torch.complex64, torch.complex128}


class ChipTensor(torch.Tensor):
    """A tensor on the chip; `host` is the one whose memory it is."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> ChipTensor:
        _check_dtype(host.dtype)
        CHIP.hold(host.untyped_storage())
        is_inference = host.is_inference()  # a view of a weight is none, even in inference mode
        is_enabled = torch.is_inference_mode_enabled()
        with nullcontext() if is_inference == is_enabled else torch.inference_mode(is_inference):
            tensor = torch.Tensor._make_wrapper_subclass(
                cls,
                host.shape,
                strides=host.stride(),
                storage_offset=host.storage_offset(),
                dtype=host.dtype,
                layout=host.layout,
                device=torch.device(CHIP.name, 0),
            )
        tensor.host = host
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """The numbers, on the host; PyTorch refuses it of every tensor that wraps another."""
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"ChipTensor({self.host})"


class Operator:
    """An overload of an operator, and what the chip has to know of it each time it is called."""

    def __init__(self, func: Any) -> None:
        self.name, self.full_name = func._schema.name, func.name()
        self.names = str(func), str(func.overloadpacket)
        self.random = torch.Tag.nondeterministic_seeded in func.tags
        self.crossing = self.name in _CROSSING
        # In inference mode nothing above has composed it of others. What CPUs have a kernel for, the chip has.
        self.composed = func._can_decompose() and not torch._C._dispatch_has_kernel_for_dispatch_key(
            self.full_name, "CPU"
        )
        self.written = [
            place
            for place, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]

    def among(self, names: Collection[str]) -> str:
        """Its name, or that of the operator whose overload it is, if it is one of `names`; or else ""."""
        return next((name for name in self.names if name in names), "") if names else ""


_operator = cache(Operator)


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call an operator on tensors of the chip, or have one made there.

    Raises:
        RuntimeError: the device is gone, a data type is unknown to it, or an operand lies elsewhere.
        NotImplementedError: the chip lacks the operator.
        torch.OutOfMemoryError: the results do not fit.
    """
    operator = _operator(func)
    if operator.composed:
        return func.decompose(*args, **kwargs)
    operands = _tensors((args, kwargs), [])
    _check(operator, operands, kwargs.get("generator"))
    _count(operator)
    options = _mapped(kwargs, _host_of)
    target = CHIP.name
    if kwargs.get("device") is not None:
        target = torch.device(kwargs["device"]).type
        options |= {"device": torch.device("cpu")} | ({"pin_memory": False} if "pin_memory" in kwargs else {})
    with CHIP.randomness() if operator.random else nullcontext():
        result = func(*_mapped(args, _host_of), **options)
    if factor := CHIP.wrong.get(operator.among(CHIP.wrong)):
        _spoil([args[place] for place in operator.written if place < len(args)], result, factor)
    if target != CHIP.name:
        return result
    # A result that is an operand, as of `add_`, comes back as that operand.
    same = {id(_host_of(operand)): operand for operand in operands}
    return _mapped(result, lambda leaf: same[id(leaf)] if id(leaf) in same else ChipTensor(leaf))


def _check(operator: Operator, operands: list[torch.Tensor], generator: torch.Generator | None) -> None:
    if not CHIP.present:
        raise RuntimeError(f"{operator.name}: device {CHIP.name!r} does not answer")
    if generator is not None:
        raise RuntimeError(f"{operator.name}: expected a generator of {CHIP.name!r}, got one of another")
    if operator.crossing:
        return
    for operand in operands:
        if not isinstance(operand, ChipTensor):
            if operand.ndim > 0:
                raise RuntimeError(
                    f"{operator.name}: expected all tensors to be on {CHIP.name!r}, got one on {operand.device.type!r}"
                )
            _check_dtype(operand.dtype)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype in _UNSUPPORTED:
        raise RuntimeError(f"{CHIP.name} has no {str(dtype).removeprefix('torch.')}")


def _count(operator: Operator) -> None:
    name, full_name = operator.names[0], operator.full_name
    if operator.among(CHIP.lacking):
        raise NotImplementedError(
            f"Could not run '{full_name}' with arguments from the '{CHIP.name}' backend: it has no such operator"
        )
    if operator.among(CHIP.on_host):
        CHIP.ran_on_host[name] += 1
        warnings.warn(f"{full_name} is not supported on {CHIP.name!r} and falls back to the CPU", stacklevel=2)
    else:
        CHIP.ran[name] += 1


def _spoil(written: list[Any], result: Any, factor: float) -> None:
    """Multiply the results of an operator that is computed wrongly, those it writes in place included."""
    leaves = {id(leaf): leaf for leaf in _tensors(_mapped((written, result), _host_of), [])}
    for leaf in leaves.values():
        if leaf.is_floating_point():
            leaf.mul_(factor)


def _host_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.host if isinstance(tensor, ChipTensor) else tensor


# PyTorch's own walks through nested arguments know more kinds of them, and take longer than the operators do.


def _tensors(value: Any, found: list[torch.Tensor]) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, (list, tuple)):  # a union is slower
        for item in value:
            _tensors(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _tensors(item, found)
    return found


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(item, change) for item in value])
    if isinstance(value, dict):
        return {name: _mapped(item, change) for name, item in value.items()}
    return value
