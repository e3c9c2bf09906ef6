"""The learning rate over a run: warm-up, a plateau, decay."""

from __future__ import annotations

from gossamer.train.config import ScheduleConfig


def learning_rate_factor(step: int, steps: int, config: ScheduleConfig) -> float:
    """The multiple of the peak learning rate that step `step` of 1 … `steps` is taken with.

    Straight lines: up over the warm-up, level, and down over the last `decay_fraction` of the run (warm-up–stable–
    decay, arXiv 2404.06395; a linear decay to zero is the strongest of the simple ones, arXiv 2502.15938).
    """
    climb = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    decay_steps = config.decay_fraction * steps
    fall = min(1.0, (steps - step + 1) / (decay_steps + 1)) if decay_steps else 1.0
    return climb * (config.final_fraction + (1 - config.final_fraction) * fall)
