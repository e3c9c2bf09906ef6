"""The learning rate over a run."""

from __future__ import annotations

import math

from gossamer.train.config import ScheduleConfig


def learning_rate_factor(step: int, fraction: float, config: ScheduleConfig) -> float:
    """Return the multiple of the peak learning rate for step `step` (1, 2, …), with `fraction` of the run behind it.

    Warm-up–stable–decay (arXiv 2404.06395) falls in a straight line over the last `decay_fraction` of the run; falling
    to zero is the strongest of the simple schedules (arXiv 2502.15938). Cosine: arXiv 1608.03983.
    """
    climb = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    if config.kind == "cosine":
        fall = 0.5 * (1 + math.cos(math.pi * fraction))
    else:
        fall = min(1.0, (1 - fraction) / config.decay_fraction) if config.decay_fraction else 1.0
    return climb * (config.final_fraction + (1 - config.final_fraction) * fall)
