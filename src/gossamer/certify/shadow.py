"""Every aten operator that runs on a device, beside the same operator on the CPU in float64.

A dispatch mode sees what PyTorch asks of the device: each operator with its inputs. They are copied to the CPU, widened
to float64, and the operator is run there once more. So a wrong operator is found by its own name, inside any program,
forward and backward. What is launched behind PyTorch's back (kernels of Triton or C++) is not seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_leaves, tree_map

from gossamer.certify.checks import first_line, named

# Of the largest magnitude among results, for sums also among inputs. On a CPU 4e-7 and 4e-3 are the most seen.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
# Their results are of no value yet, or depend on where in memory a tensor lies.
_NOT_COMPARED = ("aten::empty", "aten::new_empty", "aten::resize_", "aten::set_", "aten::as_strided", "aten::record")
# Among equal values any order is right: their indices are not compared.
_ANY_ORDER = ("aten::topk", "aten::sort", "aten::kthvalue", "aten::mode", "aten::median")


@dataclass(frozen=True)
class Compared:
    """One operator on one kind of input.

    Attributes:
        operator: with its overload, such as `aten::add.Tensor`
        dtype: the narrowest floating-point type among its tensors
        shapes: of its inputs
        error: see `TOLERANCE`; infinite where it raised an exception or gave another shape or type
        problem: what it did then
    """

    operator: str
    dtype: str
    shapes: str
    error: float
    tolerance: float
    problem: str = ""

    @property
    def right(self) -> bool:
        return self.error <= self.tolerance

    def describe(self) -> str:
        wrong = self.problem or f"is off by {self.error:.1e}, allowed {self.tolerance:.0e}"
        return f"{self.operator} in {self.dtype} on {self.shapes} {wrong}"


class Shadow(TorchDispatchMode):
    """Counts the operators that run on a device, and compares them with the CPU's.

    Args:
        device: operators that touch none of its tensors are passed over
        each: how many kinds of input of an operator are compared at most; 0 counts only
    """

    def __init__(self, device: torch.device, each: int = 3) -> None:
        super().__init__()
        self.device, self.each = device, each
        self.calls: Counter[str] = Counter()
        self.compared: list[Compared] = []
        self.not_compared: dict[str, str] = {}  # operator → reason
        self._seen: dict[str, set[str]] = {}

    @property
    def wrong(self) -> list[Compared]:
        return [one for one in self.compared if not one.right]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._concerned(args, kwargs):
            return func(*args, **kwargs)
        name = func.name()
        self.calls[name] += 1
        if not self._wanted(func, name, args, kwargs):
            return func(*args, **kwargs)
        with torch.no_grad():
            before = _on_cpu((args, kwargs))
        try:
            out = func(*args, **kwargs)
        except Exception as error:
            problem = f"raises {first_line(error)}"
            self.compared.append(Compared(name, *_kind(args, kwargs), math.inf, 0.0, problem))
            raise
        with torch.no_grad():
            self._compare(func, name, args, kwargs, out, before)
        return out

    def _concerned(self, args: Any, kwargs: Any) -> bool:
        for leaf in tree_iter((args, kwargs)):
            device = leaf.device if isinstance(leaf, Tensor) else leaf
            if isinstance(device, torch.device) and device.type == self.device.type:
                return True
        return False

    def _wanted(self, func: Any, name: str, args: Any, kwargs: Any) -> bool:
        if not self.each or not name.startswith("aten::") or name.startswith(_NOT_COMPARED):
            return False
        if torch.Tag.nondeterministic_seeded in func.tags and not _without_dropout(func, args, kwargs):
            self.not_compared[name] = "draws random numbers"
            return False
        seen, kind = self._seen.setdefault(name, set()), repr([*map(_key, tree_iter((args, kwargs)))])
        if kind in seen or len(seen) >= self.each:
            return False
        seen.add(kind)
        return True

    def _compare(self, func: Any, name: str, args: Any, kwargs: Any, out: Any, before: Any) -> None:
        try:
            want = func(*before[0], **before[1])
        except Exception as reason:  # not in float64, or not on a CPU at all
            self.not_compared[name] = f"the CPU cannot run it: {first_line(reason, 80)}"
            return
        got, want = list(_results(func, args, kwargs, out)), list(_results(func, before[0], before[1], want))
        dtype, shapes = _kind(args, kwargs, got)
        allowed = TOLERANCE[getattr(torch, dtype)] if hasattr(torch, dtype) else 0.0
        problem = _wrong_form(func, args, kwargs, out)
        error = math.inf if problem else 0.0
        if not problem:
            scale = 0.0 if torch.Tag.pointwise in func.tags else _magnitude(tree_leaves(before))
            any_order = name.startswith(_ANY_ORDER) and ".stable" not in name
            if torch.Tag.nondeterministic_seeded in func.tags:  # behind the result come seeds
                got, want = got[:1], want[:1]
            for ours, theirs in zip(got, want, strict=True):
                if not (any_order and not ours.is_floating_point()):
                    error = max(error, _error(ours, theirs, scale))
        self.compared.append(Compared(name, dtype, shapes, error, allowed, problem))


def culprit(run: Callable[[], object], device: torch.device) -> str:
    """The first aten operator that goes wrong in `run`, for the end of a message; "" if all of them are right."""
    shadow = Shadow(device, each=1 << 30)
    try:
        with shadow:
            run()
    except Exception:  # told by whoever asks
        pass
    return f"; in it {shadow.wrong[0].describe()}" if shadow.wrong else ""


def _on_cpu(tree: Any) -> Any:
    """Copies on the CPU, floating-point numbers in float64; a device among the arguments becomes the CPU."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            copy = leaf.detach().to("cpu", copy=True)
            return copy.double() if copy.is_floating_point() else copy
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    return tree_map(one, tree)


def _without_dropout(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator could draw random numbers and is told not to."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            share = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
            return bool(share == 0)
    return False


def _results(func: Any, args: Any, kwargs: Any, out: Any) -> Iterator[Tensor]:
    """Tensors that an operator returns, numbers as tensors, and tensors that it writes into."""
    for leaf in tree_iter(out):
        if isinstance(leaf, Tensor | bool | int | float):
            yield leaf if isinstance(leaf, Tensor) else torch.tensor(leaf, dtype=torch.float64)
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_iter(value) if isinstance(leaf, Tensor))


def _wrong_form(func: Any, args: Any, kwargs: Any, out: Any) -> str:
    """Whether the results are of another shape or type than PyTorch's rules say, as its meta kernels know them."""
    meta = torch.device("meta")
    try:
        want = func(*tree_map(_as_meta, args), **tree_map(_as_meta, kwargs))
    except Exception:  # no such kernel, or results whose shape depends on the data
        return ""
    for ours, theirs in zip(tree_iter(out), tree_iter(want), strict=False):
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor) and theirs.device == meta:
            if ours.dtype != theirs.dtype:
                return f"gives {named(ours.dtype)} instead of {named(theirs.dtype)}"
            if ours.shape != theirs.shape:
                return f"gives shape {list(ours.shape)} instead of {list(theirs.shape)}"
    return ""


def _as_meta(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")
    return torch.device("meta") if isinstance(leaf, torch.device) else leaf


def _error(got: Tensor, want: Tensor, scale: float) -> float:
    got, want = got.detach().cpu(), want.detach()
    if got.shape != want.shape:
        return math.inf
    if not got.numel():
        return 0.0
    if not want.is_floating_point():
        return 0.0 if torch.equal(got, want) else math.inf
    got = got.double()
    same = (got == want) | (got.isnan() & want.isnan())
    difference = torch.where(same, 0.0, (got - want).abs()).max()
    if not math.isfinite(float(difference)):
        return math.inf
    return float(difference) / max(scale, _magnitude([want]), 1e-30)


def _magnitude(leaves: list[Any]) -> float:
    """The largest finite magnitude among tensors of floating-point numbers."""
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]
    return max((float(leaf.abs().nan_to_num(0.0, 0.0, 0.0).max()) for leaf in found), default=0.0)


def _kind(args: Any, kwargs: Any, results: list[Tensor] | None = None) -> tuple[str, str]:
    """The narrowest floating-point type among tensors, and the shapes of the inputs."""
    inputs = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
    types = {leaf.dtype for leaf in [*inputs, *(results or [])] if leaf.is_floating_point()}
    narrowest = min(types, key=lambda dtype: (dtype.itemsize, -torch.finfo(dtype).eps), default=None)
    shapes = [str(list(leaf.shape)) for leaf in inputs]
    more = f" and {len(shapes) - 4} more" if len(shapes) > 4 else ""
    return named(narrowest) if narrowest else "integers", " × ".join(shapes[:4]) + more or "no tensor"


def _key(leaf: Any) -> Any:
    """What tells one kind of input from another; numbers of floating point vary from step to step."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.is_contiguous()
    return leaf if isinstance(leaf, bool | int | str | None | torch.dtype) else type(leaf).__name__
