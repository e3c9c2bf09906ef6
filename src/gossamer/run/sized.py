"""From a recipe and a width to the recipe of a run of that size: what depends on the size and on the run's length."""

from __future__ import annotations

import math
from dataclasses import replace

from gossamer.cost.sizes import sized
from gossamer.train.recipe import Recipe

__all__ = ["sized_recipe"]

_WIDTH, _TOKENS = 128, 1e6  # that the recipe's learning rate and batch are meant for
_LEAST_ROWS = 4


def sized_recipe(base: Recipe, width: int, tokens: float, processes: int = 1) -> Recipe:
    """The recipe for a network of this width that learns from about so many tokens.

    The learning rate falls with the root of the width: Muon's step has a spectral norm that grows with the root of a
    matrix's size, whose activations should change by as much whatever it is (arXiv 2310.17813). The batch grows with
    the root of the tokens, as the batch beyond which more rows save no steps does (arXiv 2410.21676), in powers of two
    and shared equally by the processes. A tenth of the steps at most warms up. Evaluations on the way and the last one
    read a few percent of what is trained on.
    """
    training = base.training
    wanted = training.batch_size * math.sqrt(tokens / _TOKENS)
    rows = max(_LEAST_ROWS, 2 ** round(math.log2(wanted)))
    rows = math.ceil(rows / processes) * processes
    a_batch = rows * training.sequence_length
    steps = int(tokens / a_batch)
    read = {"eval_tokens": max(0.005 * tokens, a_batch), "final_eval_tokens": max(0.05 * tokens, 8 * a_batch)}
    return replace(
        base,
        model=sized(base.model, width),
        optimizer=replace(base.optimizer, learning_rate=base.optimizer.learning_rate * math.sqrt(_WIDTH / width)),
        schedule=replace(base.schedule, warmup_steps=min(base.schedule.warmup_steps, steps // 10)),
        training=replace(
            training,
            batch_size=rows,
            eval_every=max(1, steps // 8),
            sample_every=max(1, steps // 2),
            checkpoint_every=max(1, steps // 10),
            **{name: min(getattr(training, name), round(most)) for name, most in read.items()},
        ),
    )
