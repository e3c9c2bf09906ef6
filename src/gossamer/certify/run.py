"""A certification from beginning to end: every kind of check in turn, whatever fails on the way.

A device that stops answering ends it: checks that had not begun are `not run`, and the verdict is fail.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import torch

from gossamer import device as devices
from gossamer import ops
from gossamer.certify.aten_operators import Census, check_operators
from gossamer.certify.checks import GROUPS, Check
from gossamer.certify.decoding import check_decoding, check_served_operations
from gossamer.certify.hardware import check_memory, check_numbers, checked_dtypes
from gossamer.certify.operations import check_operations
from gossamer.certify.speed import Measured, check_speed
from gossamer.certify.training import Curves, check_determinism, check_model, check_storage, check_training
from gossamer.errors import UserError, exception_line, is_out_of_memory

Listener = Callable[[str, list[Check], float], None]


@dataclass
class Findings:
    """All that is found out about a device.

    Attributes:
        device: the device
        quick: whether fewer inputs were tried
        identity: what the device is, what runs there, and which implementation of each operation is chosen
        checks: all checks, in the order in which they ran
        census: the operators of training
        curves: the losses of training
        measured: the device's rates
        lost: why the device stopped answering, or ""
        seconds: how long it took
    """

    device: torch.device
    quick: bool
    identity: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    census: Census = field(default_factory=Census)
    curves: Curves = field(default_factory=Curves)
    measured: Measured = field(default_factory=Measured)
    lost: str = ""
    seconds: float = 0.0


def examine(device: torch.device, quick: bool, listener: Listener = lambda group, checks, seconds: None) -> Findings:
    """Ask every question about a device.

    Args:
        device: the device
        quick: whether to try fewer inputs, which takes under a minute on two CPU cores
        listener: called after each kind of check with its name, its checks, and the seconds they took

    Raises:
        UserError: the device does not answer at all.
    """
    begin = time.perf_counter()
    try:
        findings = Findings(device, quick, identity(device))
    except RuntimeError as error:
        raise UserError(f"{device} does not answer: {exception_line(error)}") from error
    for group in GROUPS:
        start, checks = time.perf_counter(), list[Check]()
        if findings.lost:
            checks.append(Check(group, "everything", "not run", "the device had stopped answering"))
        else:
            findings.lost = _run(group, findings, checks)
        findings.checks += checks
        listener(group, checks, time.perf_counter() - start)
    findings.seconds = time.perf_counter() - begin
    return findings


def identity(device: torch.device) -> dict[str, Any]:
    """Ask what the device says of itself; this comes first, since it may not answer later."""
    name = devices.product_name(device)
    try:
        memory = devices.memory_bytes(device)
    except Exception:  # a plug-in need not know
        memory = None
    return {
        "device": {
            "type": device.type,
            "name": name,
            "count": devices.device_count(device),
            "memory_bytes": memory,
            "backend": devices.backend_of(device.type, name).name,
            "capabilities": asdict(devices.capabilities(device)),
        },
        "software": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "threads": torch.get_num_threads(),
        },
        "implementations": {name: found["runs"] for name, found in ops.describe(device).items()},
    }


def _run(group: str, findings: Findings, checks: list[Check]) -> str:
    """Run one kind of check into `checks`, and say why the device was lost, or ""."""
    device = findings.device
    try:
        for check in _questions(group, findings):
            checks.append(check)
            if check.status == "fail" and (lost := _silent(device)):
                checks.append(Check(group, "the device", "fail", f"it stopped answering: {lost}", where="its driver"))
                return lost
    except Exception as error:  # an error outside of a check; the verdict must not be a pass
        checks.append(Check(group, "the checks themselves", "fail", exception_line(error), where=f"certify, {group}"))
        if lost := _silent(device):
            return lost
    return ""


def _questions(group: str, findings: Findings) -> Iterator[Check]:
    device, quick = findings.device, findings.quick
    dtypes = checked_dtypes(device)
    precisions = _precisions(device)
    match group:
        case "numbers":
            return check_numbers(device)
        case "operations":
            return chain(check_operations(device, dtypes, quick), check_served_operations(device, dtypes))
        case "operators":
            return check_operators(device, precisions, quick, findings.census)
        case "network":
            types = list(precisions.values())
            return chain(check_model(device, types), check_decoding(device, types))
        case "training":
            return check_training(device, precisions, findings.curves)
        case "determinism":
            return check_determinism(device, precisions)
        case "storage":
            return check_storage(device)
        case "memory":
            return check_memory(device, quick)
        case "speed":
            return check_speed(device, list(precisions.values()), quick, findings.measured)
    raise AssertionError(group)


def _precisions(device: torch.device) -> dict[str, torch.dtype]:
    """Return a recipe's names for the precisions that the device trains in, with the types of products."""
    precisions = {"fp32": torch.float32}
    return precisions | ({"bf16": torch.bfloat16} if devices.has_fast_bfloat16(device) else {})


def _silent(device: torch.device) -> str:
    """Explain why a device no longer answers, or "": it is asked for nothing but a number.

    A device that lacks an operator or memory does answer.
    """
    try:
        torch.ones(1).to(device).cpu()
    except NotImplementedError:
        return ""
    except Exception as error:
        return "" if is_out_of_memory(error) else exception_line(error)
    return ""
