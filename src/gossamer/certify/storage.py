"""Whether weights and training state move between a device and the CPU unharmed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from gossamer import hub
from gossamer.certify import network
from gossamer.certify.checks import Check, first_line, judge
from gossamer.certify.training import TOLERANCE
from gossamer.model.causal_lm import CausalLM
from gossamer.run.checkpoint import load_checkpoint, save_checkpoint, snapshot
from gossamer.train.step import Learner

CPU = torch.device("cpu")
BEFORE, AFTER = 2, 3  # steps before saving, and in all


def check_storage(device: torch.device) -> Iterator[Check]:
    """Weights as a Hugging Face directory, and training that goes on elsewhere from a checkpoint."""
    with tempfile.TemporaryDirectory(prefix="gossamer-certify-") as name:
        folder = Path(name)
        try:
            learner = network.learner(device)
            network.train(learner, network.batches(AFTER)[:BEFORE])
        except Exception as error:
            yield Check("storage", "saving", "not run", f"training failed: {first_line(error)}")
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
        return Check("storage", name, "fail", first_line(error), where="src/gossamer/hub")
    before, after = model.state_dict(), loaded.state_dict()
    changed = [key for key in before if not torch.equal(before[key].cpu(), after[key].cpu())]
    if changed:
        return Check("storage", name, "fail", f"{changed[0]} has changed, of {len(changed)} in all", where="copies")
    return Check("storage", name, "pass", error=0.0, tolerance=0.0)


def _checkpoint(learner: Learner, device: torch.device, folder: Path) -> Iterator[Check]:
    """A step after the checkpoint: on the device bit for bit, on the CPU and back within training's tolerance."""
    try:
        state = snapshot(learner.model, learner.optimizers)
        saved = save_checkpoint(folder, BEFORE, state, {})
        expected = _next_loss(learner)
    except Exception as error:
        yield Check(
            "storage", "writing a checkpoint", "fail", first_line(error), where="src/gossamer/run/checkpoint.py"
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
            yield Check("storage", name, "fail", first_line(error), where="src/gossamer/run/checkpoint.py")
            continue
        error_ = abs(found - expected) / expected
        message = f"the next loss is {found:.8g} instead of {expected:.8g}"
        yield judge("storage", name, error_, tolerance, message, "src/gossamer/run/checkpoint.py")


def _next_loss(learner: Learner) -> float:
    """The second loss from here: the first step's weights decide it."""
    return network.train(learner, network.batches(AFTER + 1)[BEFORE:])[-1]
