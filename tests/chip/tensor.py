"""The chip's tensors, and what happens when an operator is called on them.

A tensor wraps one in host memory. Autograd, autocast and what PyTorch composes of other operators happen above; what
arrives here is what the kernels of a real chip would be called for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

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
        with torch.inference_mode(host.is_inference()):  # a view of a weight is none, even in inference mode
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


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call an operator on tensors of the chip, or have one made there.

    Raises:
        RuntimeError: the device is gone, a data type is unknown to it, or an operand lies elsewhere.
        NotImplementedError: the chip lacks the operator.
        torch.OutOfMemoryError: the results do not fit.
    """
    name = func._schema.name
    # In inference mode nothing above has composed it of others. Where CPUs have a kernel of its own, so has the chip.
    if not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CPU"):
        composed = func.decompose(*args, **kwargs)
        if composed is not NotImplemented:
            return composed
    operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    _check_present(name)
    _check_operands(name, operands, kwargs.get("generator"))
    _count(func)
    target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    options = tree_map(_host_of, kwargs)
    if target is not None:
        options |= {"device": torch.device("cpu")} | ({"pin_memory": False} if "pin_memory" in kwargs else {})
    random = torch.Tag.nondeterministic_seeded in func.tags
    with CHIP.randomness() if random else nullcontext():
        result = func(*tree_map(_host_of, args), **options)
    _spoil(func, args, result)
    # A result that is an operand, as of `add_`, comes back as that operand.
    same = {id(_host_of(operand)): operand for operand in operands}
    elsewhere = target is not None and target.type != CHIP.name
    return tree_map(lambda leaf: _delivered(leaf, same, elsewhere), result)


def _delivered(leaf: Any, same: dict[int, torch.Tensor], elsewhere: bool) -> Any:
    if not isinstance(leaf, torch.Tensor) or elsewhere:
        return leaf
    return same[id(leaf)] if id(leaf) in same else ChipTensor(leaf)


def _host_of(value: Any) -> Any:
    return value.host if isinstance(value, ChipTensor) else value


def _check_present(name: str) -> None:
    if not CHIP.present:
        raise RuntimeError(f"{name}: device {CHIP.name!r} does not answer")


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype in _UNSUPPORTED:
        raise RuntimeError(f"{CHIP.name} has no {str(dtype).removeprefix('torch.')}")


def _check_operands(name: str, operands: list[torch.Tensor], generator: torch.Generator | None) -> None:
    if generator is not None:
        raise RuntimeError(f"{name}: expected a generator of {CHIP.name!r}, got one of {generator.device.type!r}")
    if name in _CROSSING:
        return
    for operand in operands:
        if not isinstance(operand, ChipTensor):
            if operand.ndim > 0:
                raise RuntimeError(
                    f"{name}: expected all tensors to be on {CHIP.name!r}, got one on {operand.device.type!r}"
                )
            _check_dtype(operand.dtype)


def _named(func: Any, names: Callable[[str], Any]) -> Any:
    """What `names` gives for an overload, or else for the operator whose overload it is."""
    return names(str(func)) or names(str(func.overloadpacket))


def _count(func: Any) -> None:
    if _named(func, CHIP.lacking.__contains__):
        raise NotImplementedError(
            f"Could not run '{func.name()}' with arguments from the '{CHIP.name}' backend: it has no such operator"
        )
    if not _named(func, CHIP.on_host.__contains__):
        CHIP.ran[str(func)] += 1
        return
    CHIP.ran_on_host[str(func)] += 1
    warnings.warn(f"{func.name()} is not supported on {CHIP.name!r} and falls back to the CPU", stacklevel=2)


def _spoil(func: Any, args: tuple[Any, ...], result: Any) -> None:
    """Multiply the results of an operator that is computed wrongly, those it writes in place included."""
    if scale := _named(func, CHIP.wrong.get):
        written = [
            value
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        leaves = {id(leaf): leaf for leaf in map(_host_of, tree_leaves((written, result)))}
        for leaf in leaves.values():
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                leaf.mul_(scale)
