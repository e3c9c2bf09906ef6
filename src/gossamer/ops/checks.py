"""The one gate in front of the operations: what reaches a kernel as a pointer is looked at here first.

A kernel takes addresses and sizes and believes them, so a wrong type, device, shape or index would read or write
whatever lies there, and end the process at best. Every operation's public function checks its arguments by what is
here, whichever implementation runs: all of them refuse the same things with the same words.

What costs more than a step allows is checked where it is made and not at every call: the weights and memory of a
network that decodes (`DecoderLayers` and `DraftHead` in model/decode), and the places of a batch's sequences
(`sequences.Sequences`), whose bounds are then compared with the memory's at each call.

Indices are compared with their bounds on the CPU alone. On an accelerator a step would have to wait for the answer;
there PyTorch's own kernels refuse them, and gossamer's leave them out.
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
LIMIT = 1 << 31  # of sizes and places


def given(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Those that are not None, for `check_floats`."""
    return {name: x for name, x in tensors.items() if x is not None}


def check_kind(operation: str, name: str, x: object, kind: type) -> None:
    """Refuse what is no `kind`.

    Raises:
        UserError: names the operation, the argument and what it is.
    """
    if not isinstance(x, kind):
        raise UserError(f"{operation}: {name} must be of type {kind.__name__}, not {describe(x)}")


def whole_numbers(x: object) -> bool:
    """Whether this is a tuple or a list of nothing but whole numbers, which a tensor of integers takes as they are."""
    return isinstance(x, (tuple, list)) and {int}.issuperset(map(type, x))


def is_dense(x: object) -> TypeGuard[Tensor]:
    """Whether this is a tensor that has a shape and all of its numbers: not sparse, not nested."""
    return isinstance(x, Tensor) and x.layout is torch.strided and not x.is_nested


def check_floats(operation: str, **tensors: Tensor) -> None:
    """Refuse what is no dense tensor of floating-point numbers, or lies elsewhere than the first one.

    Raises:
        UserError: names the operation, the argument, and its shape, type and device.
    """
    device, first = None, ""
    for name, x in tensors.items():
        if not is_dense(x) or x.dtype not in FLOATS:
            raise UserError(f"{operation}: {name} must be a dense tensor of floating-point numbers, not {describe(x)}")
        if device is None:
            if x.is_meta:
                raise UserError(f"{operation}: {name} lies on meta, where there are no numbers")
            device, first = x.device, name
        elif x.device != device:
            raise UserError(f"{operation}: {name} lies on {x.device}, but {first} on {device}; move one of them")


def check_same_dtype(operation: str, **tensors: Tensor) -> None:
    """Refuse tensors of different types.

    Raises:
        UserError: names the operation, and each argument's type.
    """
    types = {x.dtype for x in tensors.values()}
    if len(types) > 1:
        told = ", ".join(f"{name} of {_type(x.dtype)}" for name, x in tensors.items())
        raise UserError(f"{operation}: {told} must be of one type")


def check_indices(
    operation: str,
    name: str,
    x: Tensor,
    below: int,
    device: torch.device,
    ignored: int | None = None,
    of: str = "",
) -> Tensor:
    """Refuse what is no dense tensor of whole numbers from 0 to `below` − 1; `ignored` is one that is passed besides.

    Args:
        operation: whose argument it is
        name: the argument's
        x: of any integer type
        below: bound of the indices
        device: where it must lie
        ignored: a negative number that stands for no index
        of: what the indices count, for the message

    Returns:
        x in int64.

    Raises:
        UserError: names the operation, the argument, and its shape, type and device or the first index that is wrong.
    """
    if not is_dense(x) or x.dtype not in INTEGERS:
        raise UserError(f"{operation}: {name} must be a dense tensor of integers, not {describe(x)}")
    if x.device != device:
        raise UserError(f"{operation}: {name} lies on {x.device}, but what it belongs to on {device}; move one of them")
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
    place = wrong.nonzero()[0]
    value, at = int(x[tuple(place)]), ", ".join(str(int(index)) for index in place)
    bound = f"the {of} of {below}" if of else f"0 to {below - 1}"
    besides = "" if ignored is None else f"; {ignored} marks what has none"
    raise UserError(f"{operation}: {name}[{at}]: id {value} is outside {bound}{besides}")


def check_number(operation: str, name: str, value: float) -> float:
    """Refuse what is no finite number of at least 0.

    Raises:
        UserError: names the operation and the argument.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UserError(f"{operation}: {name} must be a finite number of 0 or more, not {value!r}")
    return float(value)


def first_order(operation: str) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Make a backward pass written by hand refuse to be differentiated again.

    Autograd does not see what it computes, so the gradient of its result would be zero, and nobody would notice.
    """

    def mark(backward: Callable[P, Any]) -> Callable[P, Any]:
        @wraps(backward)
        def once(*args: P.args, **kwargs: P.kwargs) -> Any:
            if torch.is_grad_enabled():  # only with create_graph
                raise UserError(
                    f"{operation}: there is no gradient of its gradient, so create_graph=True cannot be had through "
                    f"it; gossamer.ops.forced({operation}='reference') may serve"
                )
            return backward(*args, **kwargs)

        return once

    return mark


def shape(x: object) -> str:
    """A tensor's shape for a message, or what it is if it is none."""
    return str(list(x.shape)) if isinstance(x, Tensor) else type(x).__name__


def describe(x: object) -> str:
    """A tensor's shape, type and device for a message, or what it is if it is none."""
    if not isinstance(x, Tensor):
        return f"{type(x).__name__}"
    if x.is_nested or x.layout is not torch.strided:
        return f"a {str(x.layout).removeprefix('torch.')} tensor of {_type(x.dtype)}"
    return f"{shape(x)} of {_type(x.dtype)} on {x.device}"


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
