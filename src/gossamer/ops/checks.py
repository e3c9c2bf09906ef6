"""Checks of the operations' arguments, which come before any of them reaches a kernel as a pointer.

A kernel trusts the addresses and sizes that it gets, so a wrong dtype, device, shape or index would read or write
arbitrary memory and at best end the process. Every operation's public function checks its arguments with the functions
below, whichever implementation runs, so that all of them refuse the same things with the same message.

Checks that would take too long in every step are done once, when an object is made: the weights and memory of a network
that decodes (`DecoderLayers` and `DraftHead` in model/decode), and the positions of a batch's sequences
(`sequences.Sequences`), whose bounds are then compared with those of the memory at each call.

Indices are compared with their bounds on the CPU only. On an accelerator a step would have to wait for the answer;
there PyTorch's own kernels refuse wrong indices, and gossamer's skip them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeGuard

import torch
from torch import Tensor

from gossamer.errors import UserError

P = ParamSpec("P")

FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
INTEGERS = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
MAX_SIZE = (1 << 31) - 1  # of sizes and positions


def not_none(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Return the tensors that are not None, as arguments for `check_floats`."""
    return {name: x for name, x in tensors.items() if x is not None}


def check_kind(operation: str, name: str, x: object, kind: type) -> None:
    """Refuse an argument that is not an instance of `kind`.

    Raises:
        UserError: the message names the operation, the argument and its type.
    """
    if not isinstance(x, kind):
        raise UserError(f"{operation}: {name} must be of type {kind.__name__}, not {describe(x)}")


def are_integers(x: object) -> bool:
    """Whether x is a tuple or list of integers only, which an integer tensor takes unchanged."""
    return isinstance(x, (tuple, list)) and {int}.issuperset(map(type, x))


def is_dense(x: object) -> TypeGuard[Tensor]:
    """Whether x is a tensor that is neither sparse nor nested."""
    return isinstance(x, Tensor) and x.layout is torch.strided and not x.is_nested


def check_floats(operation: str, **tensors: Tensor) -> None:
    """Refuse arguments that are not dense floating-point tensors on the device of the first one.

    Raises:
        UserError: the message names the operation, the argument, and its shape, dtype and device.
    """
    device, first = None, ""
    for name, x in tensors.items():
        if not is_dense(x) or x.dtype not in FLOATS:
            raise UserError(f"{operation}: {name} must be a dense tensor of floating-point numbers, not {describe(x)}")
        if device is None:
            if x.is_meta:
                raise UserError(f"{operation}: {name} is on meta, where tensors have no numbers")
            device, first = x.device, name
        elif x.device != device:
            raise UserError(f"{operation}: {name} is on {x.device}, but {first} is on {device}; move one of them")


def check_same_dtype(operation: str, **tensors: Tensor) -> None:
    """Refuse tensors of different dtypes.

    Raises:
        UserError: the message names the operation and each argument's dtype.
    """
    if len({x.dtype for x in tensors.values()}) > 1:
        found = ", ".join(f"{name} of {_name(x.dtype)}" for name, x in tensors.items())
        raise UserError(f"{operation}: {found} must have the same dtype")


def check_indices(
    operation: str,
    name: str,
    x: Tensor,
    below: int,
    device: torch.device,
    ignored: int | None = None,
    of: str = "",
) -> Tensor:
    """Refuse an argument that is not a dense tensor of integers from 0 to `below` − 1, or equal to `ignored`.

    Args:
        operation: the operation whose argument it is
        name: the argument's name
        x: the tensor, of any integer dtype
        below: upper bound of the indices
        device: the device on which the tensor must be
        ignored: a negative number that stands for no index
        of: what the indices count, for the message

    Returns:
        x in int64.

    Raises:
        UserError: the message names the operation, the argument, and its shape, dtype and device or the first wrong
            index.
    """
    if not is_dense(x) or x.dtype not in INTEGERS:
        raise UserError(f"{operation}: {name} must be a dense tensor of integers, not {describe(x)}")
    if x.device != device:
        raise UserError(
            f"{operation}: {name} is on {x.device}, but the other tensors are on {device}; move one of them"
        )
    if x.dtype != torch.int64:
        x = x.long()
    if device.type != "cpu" or not x.numel():
        return x
    low, high = (int(bound) for bound in torch.aminmax(x.detach()))
    if high < below and (low >= 0 or (low == ignored and not bool(((x < 0) & (x != ignored)).any()))):
        return x
    wrong = (x >= below) | (x < 0)
    if ignored is not None:
        wrong &= x != ignored
    position = wrong.nonzero()[0]
    value, at = int(x[tuple(position)]), ", ".join(str(int(index)) for index in position)
    bound = f"the {of} of {below}" if of else f"0 to {below - 1}"
    hint = "" if ignored is None else f"; {ignored} marks positions without one"
    raise UserError(f"{operation}: {name}[{at}]: id {value} is outside {bound}{hint}")


def check_number(operation: str, name: str, value: float) -> float:
    """Refuse an argument that is not a finite number of at least 0, and return it as a float.

    Raises:
        UserError: the message names the operation and the argument.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UserError(f"{operation}: {name} must be a finite number of 0 or more, not {value!r}")
    return float(value)


def once_differentiable(operation: str) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Make a hand-written backward pass refuse to be differentiated again.

    Autograd does not see what it computes, so the gradient of its result would silently be zero.
    """

    def mark(backward: Callable[P, Any]) -> Callable[P, Any]:
        @wraps(backward)
        def once(*args: P.args, **kwargs: P.kwargs) -> Any:
            if torch.is_grad_enabled():  # only with create_graph
                raise UserError(
                    f"{operation} has no second derivative, so create_graph=True is not supported; "
                    f"gossamer.ops.forced({operation}='reference') may help"
                )
            return backward(*args, **kwargs)

        return once

    return mark


def shape(x: object) -> str:
    """Describe a tensor's shape in a message, or name the type of anything else."""
    return str(list(x.shape)) if isinstance(x, Tensor) else type(x).__name__


def describe(x: object) -> str:
    """Describe a tensor's shape, dtype and device in a message, or name the type of anything else."""
    if not isinstance(x, Tensor):
        return f"{type(x).__name__}"
    if x.is_nested or x.layout is not torch.strided:
        return f"a {str(x.layout).removeprefix('torch.')} tensor of {_name(x.dtype)}"
    return f"{shape(x)} of {_name(x.dtype)} on {x.device}"


def _name(dtype: torch.dtype) -> str:
    """Name a dtype without the prefix `torch.`."""
    return str(dtype).removeprefix("torch.")
