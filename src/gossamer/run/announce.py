"""What a run says of itself before its first step and after its last."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gossamer import __version__, ops
from gossamer import device as devices
from gossamer.cost.network import count_network
from gossamer.data.dataset import Dataset
from gossamer.run.dial import Plan
from gossamer.run.evaluate import Evaluation
from gossamer.run.memory import MemoryEstimate
from gossamer.run.meter import Meter
from gossamer.run.prompt import misfit
from gossamer.train.recipe import Recipe
from gossamer.train.step import Learner
from gossamer.train.world import World
from gossamer.units import SIZES, network_words

__all__ = ["announce", "conclude", "start_facts", "what_next"]

log = logging.getLogger("gossamer")


def announce(
    say: Callable[[str], None],
    recipe: Recipe,
    dataset: Dataset,
    learner: Learner,
    meter: Meter,
    estimate: MemoryEstimate,
    plan: Plan | None,
    world: World,
) -> None:
    """Tell `say` of the text, the size, the plan and what the run will take, in lines.

    What is likely to be regretted is logged as a warning, on the main process alone.
    """

    def warn(line: str | None) -> None:
        if line is not None and world.is_main:
            log.warning(line)

    say(dataset.description)
    warn(dataset.warning())
    if reason := misfit(recipe.training.sample_prompt, dataset.tokenizer):
        warn(f"samples begin without training.sample_prompt: {reason}")
    counts = count_network(recipe.model, recipe.training.sequence_length)
    dtype = str(learner.dtype).removeprefix("torch.")
    say(network_words(*counts.sizes))
    say(f"steps of {meter.tokens_per_step:,} tokens in {dtype} on {world.size} x {devices.device_name(learner.device)}")
    if plan is not None:
        say(plan.describe(recipe.training.budget))
        warn(plan.warning(recipe.training.budget, dataset.train.num_bytes))
    say(estimate.describe())
    if not estimate.fits(world.device, world.sharing):
        warn("that is more than the device has; a smaller training.batch_size, or training.recompute, needs less")
    runs = Counter(found["runs"] for found in ops.describe(learner.device).values())
    say(
        f"operations: {', '.join(f'{count} {name}' for name, count in runs.most_common())} (gossamer doctor lists them)"
    )
    say(meter.describe_peak())


def start_facts(recipe: Recipe, dataset: Dataset, learner: Learner, meter: Meter) -> dict[str, Any]:
    """What the event `start` holds, see `train.metrics`."""
    counts = count_network(recipe.model, recipe.training.sequence_length)
    return {
        "gossamer": __version__,
        "torch": torch.__version__,
        "device": devices.device_name(learner.device),
        **dict(zip(SIZES, counts.sizes, strict=True)),
        "flops_per_token": meter.flops_per_token,
        "tokens_per_step": meter.tokens_per_step,
        "steps": recipe.training.steps,
        "corpus": dataset.description,
    }


def conclude(say: Callable[[str], None], final: Evaluation, tokens: int, elapsed: float, plan: Plan | None) -> None:
    """Tell what a run of so many tokens and seconds of training has come to."""
    say(
        f"validation loss {final.loss:.4f} nats a token, {final.bits_per_byte:.4f} bits per byte, over "
        f"{final.tokens:,} held-out tokens, after {tokens:,} tokens in {elapsed:.0f} s of training"
    )
    if plan is not None:
        say(plan.outcome(final.bits_per_byte))


def what_next(run: Path, prompt: str) -> str:
    """The command that shows what the run has learnt, in a line."""
    return f"what it writes: gossamer sample {shlex.quote(str(run))} --prompt {shlex.quote(prompt or 'TEXT')}"
