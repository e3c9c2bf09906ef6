"""The aten operators that training asks of a device: how often, whether each is right, and where it really ran.

A dispatch mode sees what PyTorch asks of the device: each operator with its inputs. They are copied to the CPU, widened
to float64, and the operator is run there once more. So a wrong operator is found by its own name, inside any program,
forward and backward. Kernels that are launched without PyTorch's dispatcher (those of Triton or C++) are not seen.

An operator that a plug-in lacks can be run on the CPU by its fall-back: right, and slow. PyTorch's dispatcher knows
which operators have a kernel for the device; a plug-in that falls back in its own way usually says so in a warning.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_leaves, tree_map

from gossamer import ops
from gossamer.certify import network
from gossamer.certify.checks import Check, named, off_by
from gossamer.errors import exception_line

CPU = torch.device("cpu")
_WARNED = re.compile(r"(aten::[\w.]+).*?(?:fall|fell)\w*[ -]?back", re.IGNORECASE | re.DOTALL)
_COMPOSITE = ("CompositeExplicitAutograd", "CompositeImplicitAutograd")

# Where an operator can have run.
NATIVE, COMPOSED, PLUGIN, FELL_BACK = "natively", "composed of others", "by the plug-in", "on the CPU"


@dataclass
class Census:
    """The operators of a training step.

    Attributes:
        operators: for each its calls in two steps, where it ran, and its largest error
    """

    operators: list[dict[str, Any]] = field(default_factory=list)

    def fell_back(self) -> list[str]:
        """Name the operators that ran on the CPU instead."""
        return [row["operator"] for row in self.operators if row["ran"] == FELL_BACK]


def check_operators(
    device: torch.device, precisions: Mapping[str, torch.dtype], quick: bool, census: Census
) -> Iterator[Check]:
    """Check every operator of two training steps in each precision beside the CPU's; counts are left in `census`.

    Operations run through PyTorch alone here, so that operators are seen which a fused kernel would hide.
    """
    calls: dict[str, int] = {}
    compared: dict[str, list[Compared]] = {}
    skipped: dict[str, str] = {}
    warned: set[str] = set()
    batches = network.batches(2)
    for precision, dtype in precisions.items():
        shadow = Shadow(device, max_kinds=3 if quick else 12)
        problem = ""
        with warnings.catch_warnings(record=True) as caught, ops.forced(**ops.pytorch_only()):
            warnings.simplefilter("always")
            try:
                learner = network.learner(device, precision)
                with shadow:
                    network.train(learner, batches)
            except Exception as error:
                problem = exception_line(error)
        warned |= {name for warning in caught for name in _WARNED.findall(str(warning.message))}
        for name, count in shadow.calls.items():
            calls[name] = calls.get(name, 0) + count
        for one in shadow.compared:
            compared.setdefault(one.operator, []).append(one)
        skipped |= shadow.not_compared
        if problem:
            yield from _broken(shadow, problem, named(dtype))
    for name in sorted(compared):
        yield _worst(compared[name])
    for name in sorted(set(skipped) - set(compared)):
        yield Check("operators", name, "not run", skipped[name])
    census.operators = [_row(name, count, device, warned, compared.get(name, [])) for name, count in calls.items()]
    census.operators.sort(key=lambda row: -row["calls"])


def _broken(shadow: Shadow, problem: str, dtype: str) -> Iterator[Check]:
    """Tell of steps that did not end, unless the operator that failed tells it already, and of what was not reached."""
    if not shadow.wrong:
        yield Check("operators", "two training steps", "fail", problem, dtype, where="src/gossamer/train/step.py")
    complete = Shadow(CPU, max_kinds=0)
    learner = network.learner(CPU, "fp32", torch.float64)
    with ops.forced(**ops.pytorch_only()), complete:
        network.train(learner, network.batches(2))
    missed = sorted(set(complete.calls) - set(shadow.calls))
    if missed:
        message = f"the step ended before them: {', '.join(missed[:5])}{' …' if len(missed) > 5 else ''}"
        yield Check("operators", f"{len(missed)} operators of the CPU's step", "not run", message, dtype)


def _worst(found: list[Compared]) -> Check:
    worst = max(found, key=lambda one: one.error / one.tolerance if one.tolerance else (one.error or 0.0))
    about = {"dtype": worst.dtype, "shape": worst.shapes, "error": worst.error, "tolerance": worst.tolerance}
    if worst.is_right:
        return Check("operators", worst.operator, "pass", **about)  # type: ignore[arg-type]
    message = worst.problem or f"is {off_by(worst.error, worst.tolerance)}"
    where = f"the plug-in's {worst.operator}"
    return Check("operators", worst.operator, "fail", message, where=where, **about)  # type: ignore[arg-type]


def _row(name: str, count: int, device: torch.device, warned: set[str], found: list[Compared]) -> dict[str, Any]:
    errors = [one.error for one in found]
    return {"operator": name, "calls": count, "ran": where_it_ran(name, device, warned)} | (
        {"error": max(errors)} if errors else {}
    )


def where_it_ran(name: str, device: torch.device, warned: set[str]) -> str:
    """Return where an operator ran, by what PyTorch's dispatcher has registered and by warnings of a fall-back.

    Args:
        name: an operator with its overload
        device: where it was to run
        warned: operators, with or without their overload, whose fall-back a warning has told of
    """
    base = name.split(".")[0]
    if name in warned or base in warned:
        return FELL_BACK
    key = torch._C._dispatch_key_for_device(device.type)
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    out = f"{base}.out"  # a structured operator is only a shell around this overload
    if has(name, key) or (has(name, "CompositeExplicitAutogradNonFunctional") and _known(out) and has(out, key)):
        return NATIVE
    if any(has(name, composite) for composite in _COMPOSITE):
        return COMPOSED
    parsed = torch._C._parse_dispatch_key(key)
    return FELL_BACK if parsed is not None and torch._C._dispatch_has_backend_fallback(parsed) else PLUGIN


def _known(name: str) -> bool:
    return bool(torch._C._dispatch_has_kernel(name))


# Of the largest magnitude among results, for sums also among inputs. On a CPU 4e-7 and 4e-3 are the most seen.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
# Their results are of no value yet, or depend on where in memory a tensor lies.
_NOT_COMPARED = ("aten::empty", "aten::new_empty", "aten::resize_", "aten::set_", "aten::as_strided", "aten::record")
# Among equal values any order is right: their indices are not compared.
_ANY_ORDER = ("aten::topk", "aten::sort", "aten::kthvalue", "aten::mode", "aten::median")


@dataclass(frozen=True)
class Compared:
    """The comparison of one operator on one kind of input.

    Attributes:
        operator: its name with the overload, such as `aten::add.Tensor`
        dtype: the narrowest floating-point type among its tensors
        shapes: shapes of its inputs
        error: see `TOLERANCE`; infinite if it raised an exception or gave another shape or type
        tolerance: the largest error that passes
        problem: what it did then
    """

    operator: str
    dtype: str
    shapes: str
    error: float
    tolerance: float
    problem: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the error passes."""
        return self.error <= self.tolerance

    def describe(self) -> str:
        """Say in a line what is wrong."""
        wrong = self.problem or f"is {off_by(self.error, self.tolerance)}"
        return f"{self.operator} in {self.dtype} on {self.shapes} {wrong}"


class _WrongOperator(Exception):
    """What is wrong has been found, and the rest need not run."""


class Shadow(TorchDispatchMode):
    """A dispatch mode that counts the operators that run on a device, and compares them with the CPU's.

    Args:
        device: operators that touch none of its tensors are ignored
        max_kinds: the largest number of kinds of input that are compared of an operator; 0 only counts
        until_wrong: end with an error at the first operator that is wrong

    Attributes:
        calls: by operator
        compared: the comparisons, in order
        not_compared: operators that cannot be compared, with the reason
    """

    def __init__(self, device: torch.device, max_kinds: int = 3, until_wrong: bool = False) -> None:
        super().__init__()
        self.device, self.max_kinds, self.until_wrong = device, max_kinds, until_wrong
        self.calls: Counter[str] = Counter()
        self.compared: list[Compared] = []
        self.not_compared: dict[str, str] = {}
        self._seen: dict[str, set[str]] = {}

    @property
    def wrong(self) -> list[Compared]:
        """The comparisons that do not pass."""
        return [one for one in self.compared if not one.is_right]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.until_wrong and self.compared and not self.compared[-1].is_right:
            raise _WrongOperator  # again and again, since what runs here may have its own way with errors
        if torch.is_inference_mode_enabled():  # where operators that consist of others arrive whole
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if not self._is_concerned(args, kwargs):
            return func(*args, **kwargs)
        name = func.name()
        self.calls[name] += 1
        if not self._is_compared(func, name, args, kwargs):
            return func(*args, **kwargs)
        with torch.no_grad():
            before = _on_cpu((args, kwargs))
        try:
            out = func(*args, **kwargs)
        except Exception as error:
            problem = f"raises {exception_line(error)}"
            self.compared.append(Compared(name, *_kind(args, kwargs), math.inf, 0.0, problem))
            raise
        with torch.no_grad():
            self._compare(func, name, args, kwargs, out, before)
        return out

    def _is_concerned(self, args: Any, kwargs: Any) -> bool:
        for leaf in tree_iter((args, kwargs)):
            device = leaf.device if isinstance(leaf, Tensor) else leaf
            if isinstance(device, torch.device) and device.type == self.device.type:
                return True
        return False

    def _is_compared(self, func: Any, name: str, args: Any, kwargs: Any) -> bool:
        if not self.max_kinds or not name.startswith("aten::") or name.startswith(_NOT_COMPARED):
            return False
        if torch.Tag.nondeterministic_seeded in func.tags and not _without_dropout(func, args, kwargs):
            self.not_compared[name] = "uses random numbers"
            return False
        seen, kind = self._seen.setdefault(name, set()), repr([*map(_key, tree_iter((args, kwargs)))])
        if kind in seen or len(seen) >= self.max_kinds:
            return False
        seen.add(kind)
        return True

    def _compare(self, func: Any, name: str, args: Any, kwargs: Any, out: Any, before: Any) -> None:
        try:
            want = func(*before[0], **before[1])
        except Exception as reason:  # not in float64, or not on a CPU at all
            self.not_compared[name] = f"the CPU cannot run it: {exception_line(reason, 80)}"
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
    """Find the first aten operator that goes wrong in `run`, for the end of a message; "" if all of them are right."""
    shadow = Shadow(device, max_kinds=1 << 30, until_wrong=True)
    try:
        with shadow:
            run()
    except Exception:  # the caller reports it
        pass
    return f"; in it {shadow.wrong[0].describe()}" if shadow.wrong else ""


def _on_cpu(tree: Any) -> Any:
    """Copy to the CPU, floating-point numbers in float64; a device among the arguments becomes the CPU."""

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            copy = leaf.detach().to("cpu", copy=True)
            return copy.double() if copy.is_floating_point() else copy
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    return tree_map(move, tree)


def _without_dropout(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator could use random numbers and is told not to."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            share = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
            return bool(share == 0)
    return False


def _results(func: Any, args: Any, kwargs: Any, out: Any) -> Iterator[Tensor]:
    """Return the tensors that an operator returns, numbers as tensors, and the tensors that it writes into."""
    for leaf in tree_iter(out):
        if isinstance(leaf, Tensor | bool | int | float):
            yield leaf if isinstance(leaf, Tensor) else torch.tensor(leaf, dtype=torch.float64)
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_iter(value) if isinstance(leaf, Tensor))


def _wrong_form(func: Any, args: Any, kwargs: Any, out: Any) -> str:
    """Say whether results have another shape or type than PyTorch's rules say, as its meta kernels know them."""
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
    """Find the largest finite magnitude among tensors of floating-point numbers."""
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]
    return max((float(leaf.abs().nan_to_num(0.0, 0.0, 0.0).max()) for leaf in found), default=0.0)


def _kind(args: Any, kwargs: Any, results: list[Tensor] | None = None) -> tuple[str, str]:
    """Return the narrowest floating-point type among tensors, and the shapes of the inputs."""
    inputs = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
    types = {leaf.dtype for leaf in [*inputs, *(results or [])] if leaf.is_floating_point()}
    narrowest = min(types, key=lambda dtype: (dtype.itemsize, -torch.finfo(dtype).eps), default=None)
    shapes = [str(list(leaf.shape)) for leaf in inputs]
    more = f" and {len(shapes) - 4} more" if len(shapes) > 4 else ""
    return named(narrowest) if narrowest else "integers", " × ".join(shapes[:4]) + more or "no tensor"


def _key(leaf: Any) -> Any:
    """Return what tells one kind of input from another; floating-point numbers vary from step to step."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.is_contiguous()
    return leaf if isinstance(leaf, bool | int | str | None | torch.dtype) else type(leaf).__name__
