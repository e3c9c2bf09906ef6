"""Telling the chip to fail: what it lacks, leaves to the host or computes wrongly, and how much memory it has."""

from __future__ import annotations

import torch

from chip.state import CHIP, ROOMY, allocated


def lack(*operators: str) -> None:
    """Do without these operators (`aten.topk`, or one overload, `aten.topk.default`): NotImplementedError."""
    CHIP.lacking.update(map(_known, operators))


def fall_back(*operators: str) -> None:
    """Leave these operators to the host, right but counted apart, as plug-ins do with what they have no kernel for."""
    CHIP.on_host.update(map(_known, operators))


def break_operator(operator: str, scale: float = 1.01) -> None:
    """Compute an operator wrongly: every floating-point result is multiplied by `scale`."""
    CHIP.wrong[_known(operator)] = scale


def capacity(size: int) -> None:
    """Give the chip so many bytes of memory."""
    CHIP.capacity = size


def reset() -> None:
    """Forget all faults and counts; what lies in memory stays there."""
    CHIP.lacking.clear()
    CHIP.on_host.clear()
    CHIP.wrong.clear()
    CHIP.ran.clear()
    CHIP.ran_on_host.clear()
    CHIP.capacity, CHIP.peak = ROOMY, allocated()


def _known(operator: str) -> str:
    """The name, if PyTorch has such an operator (AttributeError): a fault with a slip in its name would plant none."""
    found = torch.ops
    for part in operator.split("."):
        found = getattr(found, part)
    return operator
