"""Fifty steps of training on a device beside the CPU's, and whether the same run gives the same weights again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from gossamer import ops
from gossamer.certify import network
from gossamer.certify.checks import Check, first_line, judge, named

CPU = torch.device("cpu")
STEPS = 50
# Of each step's loss. Seen on a CPU: 2e-7, with products in bfloat16 1e-3. On an accelerator Muon orthogonalises in
# bfloat16 whatever the products are computed in, and a token between two experts may go to the other one.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 1e-2}
LEARNT = 0.7  # the last loss over the first at most; less tells nothing of a curve
REPEATED = 3  # steps


@dataclass
class Curves:
    """The losses of the runs, in nats a token; by type, `reference` for the CPU's in float64."""

    losses: dict[str, list[float]] = field(default_factory=dict)


@lru_cache
def reference_curve() -> tuple[float, ...]:
    """The CPU's losses in float64, through PyTorch alone."""
    with ops.forced(**ops.pytorch_alone()):
        learner = network.learner(CPU, "fp32", torch.float64)
        return tuple(network.train(learner, network.batches(STEPS)))


def check_training(device: torch.device, precisions: Mapping[str, torch.dtype], curves: Curves) -> Iterator[Check]:
    """The losses of all steps, in each of a recipe's precisions; they are left in `curves`."""
    expected = curves.losses["reference"] = list(reference_curve())
    for precision, dtype in precisions.items():
        name = f"{STEPS} steps"
        try:
            found = network.train(network.learner(device, precision), network.batches(STEPS))
        except Exception as error:
            yield Check("training", name, "fail", first_line(error), named(dtype), where="src/gossamer/train/step.py")
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
        learnt = found[-1] / found[0]
        message = f"the loss went from {found[0]:.3g} to {found[-1]:.3g}"
        yield judge("training", "what was learnt", learnt, LEARNT, message, "the optimizers", dtype=named(dtype))


def check_determinism(device: torch.device, precisions: Mapping[str, torch.dtype]) -> Iterator[Check]:
    """The same few steps twice, from the same seed: every loss and every weight, bit for bit."""
    for precision, dtype in precisions.items():
        name = f"{REPEATED} steps twice"
        try:
            runs = [_run(device, precision) for _ in range(2)]
        except Exception as error:
            yield Check("determinism", name, "fail", first_line(error), named(dtype), where="the training's checks")
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
    losses = network.train(learner, network.batches(STEPS)[:REPEATED])
    return losses, {name: value.detach().cpu() for name, value in learner.model.state_dict().items()}
