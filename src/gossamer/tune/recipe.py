"""The recipe of a tuning: what the base and the data decide, what the user says, and defaults for the rest.

Precedence, lowest first: what the base's own run was trained by, the defaults of tuning, the recipe's YAML file, values
by dotted name. What depends on the examples is decided by `with_examples`, once they are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gossamer.errors import FieldError, UserError
from gossamer.hub.checkpoint import open_checkpoint
from gossamer.hub.find import RUN_CONFIG
from gossamer.model.config import ModelConfig
from gossamer.reading import read_text, user_path
from gossamer.run.pretrained import pretrained_recipe
from gossamer.train.config import TuningConfig
from gossamer.train.recipe import Recipe, flatten, load_recipe, recipe_file, recipe_from
from gossamer.yaml_files import MAX_YAML, parse_yaml

__all__ = ["LENGTHS", "Counts", "final_recipe", "first_recipe", "other_length", "said_by", "tuning_of"]

_MAX_CONTEXT = 4096  # tokens, where nobody says
_WARMUP, _DECAY = 0.03, 0.5  # shares of the run
_MAX_WARMUP = 20  # steps, where nobody knows how many there will be
_OF_THE_PEAK = 0.1  # a run's learning rate in tuning, as a share of its peak
_RATES = {  # (full, low rank) by method; a run's own optimizer has its own
    "sft": (1e-5, 2e-4),
    "dpo": (1e-6, 1e-5),
    "kto": (1e-6, 1e-5),
}
_EPOCHS = {"sft": 2, "dpo": 1, "kto": 1}
LENGTHS = ("training.steps", "training.tokens", "training.seconds", "training.budget")
_OWN = (  # of a run that is tuned, since the network was trained so
    *("training.precision", "training.recompute", "training.mtp_steps", "training.mtp_decay"),
    *("training.mtp_loss_weight", "training.mtp_trunk_gradient", "training.balance", "training.balance_rate"),
    *("training.router_z_loss_weight", "training.expert_parallel"),
)
_FOR_PAIRS = ("loss", "beta", "gamma", "sft_weight")
_FOR_LOW_RANK = ("rank", "alpha", "targets", "base")
_EVALUATIONS, _CHECKPOINTS, _SAMPLES, _LINES = 8, 10, 2, 20  # of a run
_KEPT_TOKENS = 16_384  # of the text that is to be kept
_MIN_BETWEEN = 10  # steps between checkpoints, and between evaluations: short runs would do little else
_MAX_BETWEEN = 100  # steps between them where nobody knows how many there will be


@dataclass(frozen=True)
class Counts:
    """What is known of the examples that are learned from.

    Attributes:
        method: sft, dpo or kto
        examples: how many are learned from
        batch: how many a step learns from
        longest: tokens of the longest example, a pair counting as one
        tokens: of all that are learned from
    """

    method: str
    examples: int
    batch: int
    longest: int
    tokens: int

    def steps(self, epochs: int) -> int:
        """Return the steps that so many epochs have."""
        return -(-epochs * self.examples // self.batch)


def tuning_of(recipe: Recipe) -> TuningConfig:
    """Return the section of a recipe that is one of a tuning."""
    assert recipe.tuning is not None
    return recipe.tuning


def first_recipe(method: str, name: str | None, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a tuning that begins, but for what depends on its examples.

    Args:
        method: what the data are for: sft, dpo or kto
        name: name or path of the recipe that the command names, if it names one
        overrides: values by dotted name; `training.init_from` and `corpus.paths` among them

    Raises:
        UserError: values that contradict the base, one another or the method.
    """
    base = user_path(str(overrides["training.init_from"]))
    network = open_checkpoint(base).config
    said = _of_file(name) | dict(overrides)
    _check_options(said, method)
    context = _context(said, network)
    defaults = _of_run(base, method, said) | {
        "tuning.method": method,
        "tuning.context": context,
        "optimizer.weight_decay": 0.0,
        "optimizer.grad_clip": 1.0,
        "schedule.kind": "wsd",
        "schedule.decay_fraction": _DECAY,
        "schedule.final_fraction": 0.0,
        "training.sequence_length": context,
        "training.batch_size": 1,
        "training.eval_tokens": _KEPT_TOKENS,
    }
    is_lora, learns_drafts = bool(said.get("tuning.lora")), bool(said.get("tuning.drafts"))
    if is_lora or learns_drafts or method != "sft":
        defaults["training.balance"] = "none"
    if method != "sft":  # what the head predicts are answers that others gave, rejected ones among them
        defaults["training.mtp_trunk_gradient"] = False
    if is_lora and not learns_drafts:
        defaults["training.mtp_steps"] = 0
    try:
        recipe = recipe_from({"model": _network(network)}, defaults | said | {"tuning.method": method})
    except FieldError as error:
        raise UserError(str(error)) from None
    return pretrained_recipe(recipe, overrides)


def final_recipe(recipe: Recipe, counts: Counts, said: Mapping[str, Any], max_row_tokens: int) -> Recipe:
    """Return the recipe with all that follows from the examples: its length, pauses, rows and learning rate.

    Args:
        recipe: from `first_recipe`
        counts: what is known of the examples
        said: the values by dotted name that the command and its recipe give, which stay
        max_row_tokens: tokens of a row that the device's memory allows

    Raises:
        UserError: `row_tokens` is smaller than an example.
    """
    tuning, training = tuning_of(recipe), recipe.training
    ends_otherwise = any(said.get(key) for key in LENGTHS)
    epochs = None if ends_otherwise else tuning.epochs or _EPOCHS[counts.method]
    steps = training.steps if said.get("training.steps") else counts.steps(epochs or _EPOCHS[counts.method])
    row_tokens = tuning.row_tokens or max(counts.longest, min(max_row_tokens, counts.batch * counts.longest))
    if row_tokens < counts.longest:
        raise UserError(
            f"--row_tokens {row_tokens}: the longest example has {counts.longest:,} tokens; give at least as many, or "
            "a smaller --context"
        )
    is_known = not other_length(recipe)

    def every(number: int, least: int = 1) -> int:
        return max(least, steps // number if is_known else min(steps // number, _MAX_BETWEEN))

    pauses: dict[str, Any] = {
        "eval_every": every(_EVALUATIONS, _MIN_BETWEEN),
        "checkpoint_every": every(_CHECKPOINTS, _MIN_BETWEEN),
        "sample_every": every(_SAMPLES),
        "log_every": min(10, every(_LINES)),
    }
    pauses = {name: value for name, value in pauses.items() if f"training.{name}" not in said}
    warmup = math.ceil(_WARMUP * steps) if is_known else min(math.ceil(_WARMUP * steps), _MAX_WARMUP)
    if "schedule.warmup_steps" in said:
        warmup = recipe.schedule.warmup_steps
    return replace(
        recipe,
        schedule=replace(recipe.schedule, warmup_steps=warmup),
        tuning=replace(tuning, epochs=epochs, row_tokens=row_tokens),
        training=replace(training, steps=steps, **pauses),
    )


def other_length(recipe: Recipe) -> str:
    """Return what ends a run of the recipe in place of its steps: tokens, seconds or budget; empty if the steps do."""
    names = ("tokens", "seconds", "budget")
    return next((name for name in names if getattr(recipe.training, name)), "")


def said_by(name: str | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by dotted name that a recipe's file and the command give."""
    return _of_file(name) | dict(overrides)


def _of_file(name: str | None) -> dict[str, Any]:
    """Return the values of a recipe's file by dotted name; of those that it does not name, none."""
    if name is None:
        return {}
    if load_recipe(name).tuning is None:  # which refuses what is wrong with the file, too
        raise UserError(f"--recipe {name}: trains from text; name one for gossamer tune, which has the section tuning")
    path = recipe_file(name)
    values = parse_yaml(read_text(path, max_bytes=MAX_YAML), str(path)) or {}
    flat: dict[str, Any] = {}
    for section, part in values.items():
        flat |= {f"{section}.{key}": value for key, value in part.items()} if isinstance(part, dict) else {}
    return {key: value for key, value in flat.items() if not key.startswith("model.")} | {
        "description": values.get("description", "")
    }


def _of_run(base: Path, method: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a tuning takes from the recipe of the run that it tunes, and its optimizer."""
    low_rank = bool(said.get("tuning.lora") or said.get("tuning.drafts"))
    is_run = (base / RUN_CONFIG).is_file()
    own = load_recipe(base / RUN_CONFIG) if is_run else None
    values = {} if own is None else {key: flatten(own)[key] for key in _OWN}
    if own is not None and method == "sft" and not low_rank:
        share = _OF_THE_PEAK if own.tuning is None else 1.0
        optimizer = {f"optimizer.{key}": value for key, value in vars(own.optimizer).items()}
        return values | optimizer | {"optimizer.learning_rate": share * own.optimizer.learning_rate}
    return values | {"optimizer.kind": "adamw", "optimizer.learning_rate": _RATES[method][low_rank]}


def _network(config: ModelConfig) -> dict[str, Any]:
    return dict(vars(config))


def _context(said: Mapping[str, Any], network: ModelConfig) -> int:
    """Return the maximum length of an example."""
    longest = network.max_position_embeddings
    context = said.get("tuning.context")
    if context is None:
        return min(longest, _MAX_CONTEXT)
    if type(context) is int and context > longest:
        raise UserError(f"--context {context}: the base has positions for {longest:,} tokens; give at most that")
    return context if type(context) is int else min(longest, _MAX_CONTEXT)


def _check_options(said: Mapping[str, Any], method: str) -> None:
    """Refuse options that would change nothing, and those that contradict one another."""
    low_rank = said.get("tuning.lora")
    for name in _FOR_LOW_RANK:
        if f"tuning.{name}" in said and not low_rank:
            raise UserError(f"--{name} is of adapters; add --lora, or leave it out")
    for name in _FOR_PAIRS:
        is_for_method = method == "dpo" or (method == "kto" and name == "beta")
        if f"tuning.{name}" in said and not is_for_method:
            raise UserError(f"--{name} is of preferences, but the data are for {method}; leave it out")
    if "tuning.gamma" in said and said.get("tuning.loss") != "simpo":
        raise UserError("--gamma is of the loss simpo; add --loss simpo, or leave it out")
    if said.get("tuning.drafts") and method != "sft" and not low_rank:
        raise UserError("--drafts learns from answers, not from preferences; give --lora, too, or data for sft")
    lengths = [key for key in LENGTHS if said.get(key)]
    if said.get("tuning.epochs") and lengths:
        name = lengths[0].removeprefix("training.")
        raise UserError(f"--epochs and --{name} both say when the run ends; give one of them")
