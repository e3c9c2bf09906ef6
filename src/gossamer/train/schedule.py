"""How far a run has come, and the learning rate there."""

from __future__ import annotations

import math

from gossamer.train.config import ScheduleConfig, TrainingConfig


def progress(training: TrainingConfig, step: int, tokens: int, seconds: float) -> float:
    """The share of the run that is done, 0 to 1, by whichever measure its length is given in."""
    if training.seconds:
        return min(1.0, seconds / training.seconds)
    if training.tokens:
        return min(1.0, tokens / training.tokens)
    return min(1.0, step / training.steps)


def learning_rate_factor(step: int, done: float, config: ScheduleConfig) -> float:
    """The multiple of the peak learning rate for step `step` (1, 2, …), when `done` of the run lies behind it.

    Warm-up–stable–decay (arXiv 2404.06395) falls in a straight line over the last `decay_fraction` of the run: to zero
    it is the strongest of the simple ones (arXiv 2502.15938). Cosine: arXiv 1608.03983.
    """
    climb = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    if config.kind == "cosine":
        fall = 0.5 * (1 + math.cos(math.pi * done))
    else:
        fall = min(1.0, (1 - done) / config.decay_fraction) if config.decay_fraction else 1.0
    return climb * (config.final_fraction + (1 - config.final_fraction) * fall)
