"""The results of a certification: checks, each with its outcome, and the verdict over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from gossamer.units import scientific

Status = Literal["pass", "fail", "not run"]

# Kinds of check, in the order in which they run, each with what it asks. A certificate passes only if every kind that
# is required could be run at least in part.
GROUPS = {
    "numbers": "Does the device compute in the types that it claims?",
    "operations": "Does every implementation of every operation agree with the float64 reference, gradients included?",
    "operators": "Does every aten operator of a training step agree with the CPU's, and where did it run?",
    "network": "Does a whole network give the reference's losses and gradients, and decode as it was trained?",
    "training": "Do 50 steps of training follow the CPU's curve?",
    "determinism": "Does the same run twice give the same weights, bit for bit?",
    "storage": "Do weights and training state move between this device and the CPU unharmed?",
    "memory": "Is the peak what was estimated, and is a full device a clean failure?",
    "speed": "How fast are products, copies, collectives and training steps?",
}
REQUIRED = [group for group in GROUPS if group != "speed"]


@dataclass(frozen=True)
class Check:
    """One question with its answer.

    Attributes:
        group: a key of `GROUPS`
        name: what was checked, such as `delta_rule chunked`
        status: pass, fail or not run
        message: what is wrong, why it was not run, or a remark
        dtype: type that was computed in, without `torch.`
        case: which inputs were tried
        shape: shape of the inputs
        error: largest difference, in units of the reference's largest magnitude unless the name says otherwise
        tolerance: the largest error that passes
        where: where to look when it fails
        seconds: how long it took
    """

    group: str
    name: str
    status: Status
    message: str = ""
    dtype: str = ""
    case: str = ""
    shape: str = ""
    error: float | None = None
    tolerance: float | None = None
    where: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        assert self.group in GROUPS, self.group
        assert self.status == "pass" or self.message, f"{self.name}: {self.status} without a reason"

    def to_dict(self) -> dict[str, Any]:
        """Return what the certificate holds; empty fields are left out."""
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}

    def describe(self) -> str:
        """Describe a failure, or what could not be run, in a line: operation, type, inputs, error, where to look."""
        what = " ".join(part for part in (self.name, self.dtype, self.case, self.shape) if part)
        return f"{what}: {self.message}" + (f" (look at {self.where})" if self.where else "")


def judge(
    group: str, name: str, error: float, tolerance: float, message: str = "", where: str = "", **rest: Any
) -> Check:
    """Make a check that passes if the error is not above the tolerance; an error that is no number fails.

    Args:
        group: see `Check`
        name: see `Check`
        error: see `Check`
        tolerance: see `Check`
        message: what to say of a failure; None says how large the error is
        where: where to look when it fails
        rest: further fields of `Check`
    """
    if error <= tolerance:
        return Check(group, name, "pass", error=error, tolerance=tolerance, **rest)
    text = message or off_by(error, tolerance)
    return Check(group, name, "fail", text, error=error, tolerance=tolerance, where=where, **rest)


def off_by(error: float, tolerance: float) -> str:
    """Say how far off a result is, beside what is allowed, for a message."""
    if not math.isfinite(error):
        return "not finite"
    return f"off by {scientific(error)}, allowed {scientific(tolerance, 0)}"


def failed(checks: Iterable[Check]) -> list[Check]:
    """Pick the checks that failed."""
    return [check for check in checks if check.status == "fail"]


def verdict(checks: Sequence[Check]) -> tuple[Literal["pass", "fail"], list[str]]:
    """Decide whether the device passes, and if not, why: failures, and kinds of check that could not run."""
    ran = {check.group for check in checks if check.status != "not run"}
    reasons = [check.describe() for check in failed(checks)]
    reasons += [f"{group}: nothing of it could be run" for group in REQUIRED if group not in ran]
    return ("fail" if reasons else "pass"), reasons


def named(dtype: torch.dtype) -> str:
    """Name a type as `bfloat16`, not `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
