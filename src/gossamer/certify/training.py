"""Training on a device beside the CPU's: losses and gradients of a batch, fifty steps, and moving what was trained."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from gossamer import device as devices
from gossamer import hub, ops
from gossamer.certify import network
from gossamer.certify.aten_operators import culprit
from gossamer.certify.checks import Check, failed, judge, named
from gossamer.certify.exactness import largest_error
from gossamer.errors import exception_line
from gossamer.model.causal_lm import CausalLM
from gossamer.run.checkpoint import TrainerState, load_checkpoint, save_checkpoint, snapshot
from gossamer.run.stop import Progress
from gossamer.train.step import Learner
from gossamer.units import scientific

CPU = torch.device("cpu")
# Of a loss; of a gradient: the length of the difference over the gradient's own, or a thousandth of all gradients'
# together, since where sums cancel nothing is left but rounding. Seen on a CPU: 1e-7 and 4e-6, and with products in
# bfloat16 2e-5 and 6e-2, where a token or two also go to another expert.
LOSS = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
GRADIENT = {torch.float32: 1e-4, torch.bfloat16: 0.25}
SHARE = 1e-3
LOSSES = ("loss", "mtp_loss", "aux_loss")
_WHERE = "the operator census, and src/gossamer/model"


def check_model(device: torch.device, dtypes: Sequence[torch.dtype]) -> Iterator[Check]:
    """Check the losses and gradients of one packed batch, with products computed in each of these types."""
    for dtype in dtypes:
        yield from _losses_and_gradients(device, dtype)


def _losses_and_gradients(device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    expected = _reference()

    def run() -> dict[str, Tensor]:
        return gradients(network.network(device), device, dtype)

    try:
        found = {name: value.cpu().double() for name, value in run().items()}
    except Exception as error:
        message = f"{exception_line(error)}{culprit(run, device)}"
        yield Check("network", "losses and gradients", "fail", message, named(dtype), where=_WHERE)
        return
    checks = []
    for name in LOSSES:
        off = largest_error(found[name], expected[name])
        checks.append(judge("network", name, off, LOSS[dtype], where=_WHERE, dtype=named(dtype)))
    worst, off = _worst_gradient(found, expected)
    message = (
        f"the gradient of {worst} is off by {scientific(off)} of its length, allowed {scientific(GRADIENT[dtype], 0)}"
    )
    checks.append(judge("network", "gradients", off, GRADIENT[dtype], message, where=_WHERE, dtype=named(dtype)))
    cause = culprit(run, device) if failed(checks) else ""
    for check in checks:
        yield check if check.status == "pass" else replace(check, message=check.message + cause)


def _worst_gradient(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[str, float]:
    lengths = {name: float(want.norm()) for name, want in expected.items() if name not in LOSSES}
    smallest = SHARE * math.hypot(*lengths.values())
    errors = {
        name: float((found[name] - expected[name]).norm()) / max(length, smallest) for name, length in lengths.items()
    }
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return worst, errors[worst]


def gradients(model: CausalLM, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Compute the losses of one batch and the gradient of every parameter, with products in `dtype`."""
    batch = network.batches(1)[0]
    with devices.autocast(device, dtype):
        out = model(batch.input_ids.to(device), labels=batch.labels.to(device), cu_seqlens=batch.cu_seqlens)
    losses = {"loss": out.loss, "mtp_loss": out.mtp_loss, "aux_loss": out.aux_loss}
    torch.stack(list(losses.values())).sum().backward()
    found = {name: loss.detach() for name, loss in losses.items()}
    return found | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@lru_cache
def _reference() -> dict[str, Tensor]:
    with ops.forced(**dict.fromkeys(ops.OPERATIONS, "reference")):
        return gradients(network.network(CPU, torch.float64), CPU, torch.float32)


STEPS = 50
# Of each step's loss. Seen on a CPU: 2e-7, with products in bfloat16 1e-3. On an accelerator Muon orthogonalizes in
# bfloat16 whatever the products are computed in, and a token between two experts may go to the other one.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 1e-2}
MAX_LOSS_RATIO = 0.7  # of the last loss to the first: a network that learns less tells nothing of a curve
REPEATED_STEPS = 3


@dataclass
class Curves:
    """The losses of the runs.

    Attributes:
        losses: in nats per token, by type; `reference` for the CPU's in float64
    """

    losses: dict[str, list[float]] = field(default_factory=dict)


@lru_cache
def reference_curve() -> tuple[float, ...]:
    """Compute the CPU's losses in float64, through PyTorch alone."""
    with ops.forced(**ops.pytorch_only()):
        learner = network.learner(CPU, "fp32", torch.float64)
        return tuple(network.train(learner, network.batches(STEPS)))


def check_training(device: torch.device, precisions: Mapping[str, torch.dtype], curves: Curves) -> Iterator[Check]:
    """Check the losses of all steps, in each of a recipe's precisions; they are left in `curves`."""
    expected = curves.losses["reference"] = list(reference_curve())
    for precision, dtype in precisions.items():
        name = f"{STEPS} steps"
        try:
            found = network.train(network.learner(device, precision), network.batches(STEPS))
        except Exception as error:
            yield Check(
                "training", name, "fail", exception_line(error), named(dtype), where="src/gossamer/train/step.py"
            )
            continue
        curves.losses[named(dtype)] = found
        errors = [abs(got - want) / want for got, want in zip(found, expected, strict=True)]
        wrong = [step for step, error in enumerate(errors, 1) if not error <= TOLERANCE[dtype]]
        worst = max((error if error == error else float("inf") for error in errors), default=0.0)
        message = ""
        if wrong:
            step = wrong[0]
            message = f"from step {step} on the loss is {found[step - 1]:.6g} instead of {expected[step - 1]:.6g}"
        yield judge("training", name, worst, TOLERANCE[dtype], message, "the network's checks", dtype=named(dtype))
        ratio = found[-1] / found[0]
        message = f"the loss went from {found[0]:.3g} to {found[-1]:.3g}"
        yield judge(
            "training", "what was learned", ratio, MAX_LOSS_RATIO, message, "the optimizers", dtype=named(dtype)
        )


def check_determinism(device: torch.device, precisions: Mapping[str, torch.dtype]) -> Iterator[Check]:
    """Take the same few steps twice, from the same seed, and compare every loss and every weight, bit for bit."""
    for precision, dtype in precisions.items():
        name = f"{REPEATED_STEPS} steps twice"
        try:
            runs = [_run(device, precision) for _ in range(2)]
        except Exception as error:
            yield Check("determinism", name, "fail", exception_line(error), named(dtype), where="the training's checks")
            continue
        (losses, weights), (again, weights_again) = runs
        step = next((step for step, pair in enumerate(zip(losses, again, strict=True), 1) if pair[0] != pair[1]), 0)
        differing = [key for key in weights if not torch.equal(weights[key], weights_again[key])]
        if step or differing:
            where = f"the loss of step {step}" if step else f"the weights of {differing[0]}"
            more = f"{where} differ{'s' if step else ''}, and {len(differing)} of {len(weights)} weights do"
            yield Check("determinism", name, "fail", more, named(dtype), where="sums by atomic additions")
        else:
            yield Check("determinism", name, "pass", dtype=named(dtype), error=0.0, tolerance=0.0)


def _run(device: torch.device, precision: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    learner = network.learner(device, precision)
    losses = network.train(learner, network.batches(STEPS)[:REPEATED_STEPS])
    return losses, {name: value.detach().cpu() for name, value in learner.model.state_dict().items()}


SAVED_STEPS, ALL_STEPS = 2, 3  # steps before saving, and in all


def check_storage(device: torch.device) -> Iterator[Check]:
    """Check weights as a Hugging Face directory, and training that continues elsewhere from a checkpoint."""
    with tempfile.TemporaryDirectory(prefix="gossamer-certify-") as name:
        folder = Path(name)
        try:
            learner = network.learner(device)
            network.train(learner, network.batches(ALL_STEPS)[:SAVED_STEPS])
        except Exception as error:
            yield Check("storage", "saving", "not run", f"training failed: {exception_line(error)}")
            return
        for target in dict.fromkeys([CPU, device]):
            yield _weights(learner.model, folder / "model", target)
        yield from _checkpoint(learner, device, folder)


def _weights(model: CausalLM, folder: Path, target: torch.device) -> Check:
    name = f"weights to {target.type}"
    try:
        hub.save(model, folder)
        loaded = hub.load(folder, device=target)
    except Exception as error:
        return Check("storage", name, "fail", exception_line(error), where="src/gossamer/hub")
    before, after = model.state_dict(), loaded.state_dict()
    changed = [key for key in before if not torch.equal(before[key].cpu(), after[key].cpu())]
    if changed:
        return Check("storage", name, "fail", f"{changed[0]} has changed, of {len(changed)} in all", where="copies")
    return Check("storage", name, "pass", error=0.0, tolerance=0.0)


def _checkpoint(learner: Learner, device: torch.device, folder: Path) -> Iterator[Check]:
    """Check a step after the checkpoint: on the device bit for bit, on the CPU within training's tolerance."""
    try:
        tensors = snapshot(learner.model, learner.optimizers)
        saved = save_checkpoint(folder, tensors, TrainerState(Progress(SAVED_STEPS, 0, 0.0, 0.5)))
        expected = _next_loss(learner)
    except Exception as error:
        yield Check(
            "storage", "writing a checkpoint", "fail", exception_line(error), where="src/gossamer/run/checkpoint.py"
        )
        return
    ways = {"the same device": (device, 0.0)}
    if device.type != "cpu":
        ways["the CPU"] = (CPU, TOLERANCE[torch.float32])
    for where, (target, tolerance) in ways.items():
        name = f"a checkpoint goes on on {where}"
        try:
            other = network.learner(target)
            load_checkpoint(saved, other.model, other.optimizers)
            found = _next_loss(other)
        except Exception as error:
            yield Check("storage", name, "fail", exception_line(error), where="src/gossamer/run/checkpoint.py")
            continue
        error_ = abs(found - expected) / expected
        message = f"the next loss is {found:.8g} instead of {expected:.8g}"
        yield judge("storage", name, error_, tolerance, message, "src/gossamer/run/checkpoint.py")


def _next_loss(learner: Learner) -> float:
    """Compute the second loss from here: the first step's weights decide it."""
    return network.train(learner, network.batches(ALL_STEPS + 1)[SAVED_STEPS:])[-1]
