"""A run that begins with the weights of a checkpoint: its recipe, its network, and what it keeps of the checkpoint.

The checkpoint decides the network and the tokenizer; the recipe decides all else. The optimizer begins anew, and the
weights are in float32, whatever type they are stored in.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gossamer import device as devices
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.files import replacing
from gossamer.hub.checkpoint import open_checkpoint
from gossamer.hub.find import find_model
from gossamer.hub.names import ROUTER_BIAS
from gossamer.hub.read import load, merged
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.model.initialize import initialize
from gossamer.model.mtp import MultiTokenPrediction
from gossamer.train.config import ScheduleConfig
from gossamer.train.recipe import Recipe
from gossamer.train.world import World
from gossamer.typed import shown

__all__ = ["describe_beginning", "keep_generation_config", "pretrained_network", "pretrained_recipe"]

_GENERATION_CONFIG = "generation_config.json"
_MTP = "num_nextn_predict_layers"
_NOT_THE_NETWORK = (_MTP, "router_aux_loss_coef")  # what training may decide
_WARMUP_STEPS = 50  # or a tenth of the run, if that is less, where a recipe says none


def pretrained_recipe(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Return a recipe with the network and the tokenizer of the checkpoint that `training.init_from` names.

    Args:
        recipe: the recipe, with an absolute path of the checkpoint
        overrides: values that the command gives, by dotted name

    Raises:
        UserError: the checkpoint cannot be read, holds no tokenizer or one that is too large for it, or an override
            contradicts it; the message names it.
    """
    folder = find_model(recipe.training.init_from)
    checkpoint = open_checkpoint(folder)
    stored = checkpoint.config
    model = replace(
        stored, **{key: getattr(recipe.model, key) for key in _NOT_THE_NETWORK if f"model.{key}" in overrides}
    )
    for key in overrides:
        section, _, name = key.partition(".")
        if section == "model" and name not in _NOT_THE_NETWORK:
            _require_same(name, getattr(recipe.model, name, None), getattr(stored, name, None), recipe)
    if "corpus.tokenizer" in overrides and Path(recipe.corpus.tokenizer) != Path(recipe.training.init_from):
        raise UserError("--tokenizer: a run that begins with --from has the tokenizer of the checkpoint; leave it out")
    if overrides.get("training.bigram_steps"):
        raise UserError("--training.bigram_steps is for random weights; leave it out beside --from")
    balance = recipe.training.balance
    if any(name.endswith(ROUTER_BIAS) for name in checkpoint.stored):
        if overrides.get("training.balance", "bias") != "bias":
            raise UserError(f"--training.balance {balance}: routers of {folder} have a bias, which takes bias")
        balance = "bias"
    Tokenizer.load(folder).check_embedding(model.vocab_size, folder)
    return replace(
        recipe,
        model=model,
        corpus=replace(recipe.corpus, tokenizer=str(folder)),
        schedule=_with_warmup(recipe, overrides),
        training=replace(recipe.training, bigram_steps=0, balance=balance),
    )


def _with_warmup(recipe: Recipe, overrides: Mapping[str, Any]) -> ScheduleConfig:
    """Return the schedule, with a warmup that is no more than a tenth of the run unless the command gives its length.

    A full learning rate at once would undo some of what the checkpoint has learned.
    """
    schedule = recipe.schedule
    if "schedule.warmup_steps" in overrides:
        return schedule
    return replace(schedule, warmup_steps=min(schedule.warmup_steps or _WARMUP_STEPS, -(-recipe.training.steps // 10)))


def _require_same(name: str, value: object, stored: object, recipe: Recipe) -> None:
    if value != stored:
        raise UserError(
            f"--model.{name} = {shown(value)} contradicts the checkpoint {recipe.training.init_from}, "
            f"where it is {shown(stored)}; leave it out"
        )


def pretrained_network(recipe: Recipe, world: World, dtype: torch.dtype | None = torch.float32) -> CausalLM:
    """Return the network of the checkpoint that a recipe begins with, on the device of this process.

    If the recipe has a multi-token-prediction head and the checkpoint has none, the head has the initial weights of the
    recipe's seed.

    Args:
        recipe: names the checkpoint
        world: knows the device
        dtype: of the weights; None: each in the type in which it is stored

    Raises:
        UserError: the checkpoint cannot be read, or is no longer the one that the recipe was made for.
    """
    folder, config = Path(recipe.training.init_from), recipe.model
    devices.seed_everything(recipe.training.seed)
    network = merged(load(folder, dtype, world.device)).requires_grad_(True)
    if _without_training_values(network.config) != _without_training_values(config):
        raise UserError(f"{folder}: holds another network than when the run began; begin another run with --out DIR")
    if config.num_nextn_predict_layers and network.mtp is None:
        network.mtp = MultiTokenPrediction(config)
        initialize(network.mtp, config)
        network.mtp.to(world.device)
    elif network.mtp is not None and not config.num_nextn_predict_layers:
        network.mtp = None
    network.config = config
    return network.train()


def _without_training_values(config: ModelConfig) -> ModelConfig:
    return replace(config, num_nextn_predict_layers=0, router_aux_loss_coef=0.0)


def describe_beginning(recipe: Recipe) -> str:
    """Return the sentence that says from which weights a run begins, and what its network has that they have not."""
    folder = recipe.training.init_from
    stored, wanted = open_checkpoint(folder).config.num_nextn_predict_layers, recipe.model.num_nextn_predict_layers
    head = ""
    if wanted > stored:
        head = "; its multi-token-prediction head begins with random weights, for none is stored there"
    elif wanted < stored:
        head = "; the multi-token-prediction head that is stored there is left out"
    return f"the run begins with the weights of {folder}{head}"


def keep_generation_config(recipe: Recipe, model: Path) -> None:
    """Copy the checkpoint's generation_config.json, which names the tokens that end an answer, to a run's `model/`."""
    file = find_model(recipe.training.init_from) / _GENERATION_CONFIG
    if file.is_file():
        model.mkdir(parents=True, exist_ok=True)
        with replacing(model / _GENERATION_CONFIG) as temporary:
            shutil.copyfile(file, temporary)
