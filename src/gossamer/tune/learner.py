"""The network that is tuned, and what learns with it."""

from __future__ import annotations

from dataclasses import replace

import torch

from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.model.quantize import quantize_to_int8
from gossamer.run.pretrained import pretrained_network
from gossamer.train.objective import Objective
from gossamer.train.step import Learner
from gossamer.train.trained import choose_trained
from gossamer.train.world import World
from gossamer.tune.base import grow_vocabulary
from gossamer.tune.examples import Material
from gossamer.tune.recipe import tuning_of

__all__ = ["base_network", "learner_of"]


def base_network(material: Material, world: World) -> CausalLM:
    """Return the network of the base on the device of this process, with rows for the tokens of the chat template.

    Weights that are trained are in float32, those that are not in the type in which they are stored, and rounded as
    serving rounds them if the recipe says so.

    Raises:
        UserError: the base cannot be read, or is no longer the one that the run was begun with.
    """
    recipe, tuning = material.recipe, tuning_of(material.recipe)
    stored = replace(recipe, model=replace(recipe.model, vocab_size=material.base.checkpoint.config.vocab_size))
    if tuning.lora and material.base.checkpoint.adapters:
        raise UserError(
            f"--lora: {recipe.training.init_from} is an adapter itself; make a model of it with gossamer export first, "
            "or leave --lora out"
        )
    dtype = None if tuning.lora or tuning.drafts else torch.float32
    network = pretrained_network(stored, world, dtype)
    if tuning.base == "int8":
        quantize_to_int8(network)  # rounds the weights, and leaves them in their type
    grow_vocabulary(network, material.examples.tokenizer, material.num_new_tokens)
    return network


def learner_of(network: CausalLM, material: Material, world: World, objective: Objective) -> Learner:
    """Return what learns: a network from `base_network`, of which that part is trained which the recipe says."""
    choose_trained(network, tuning_of(material.recipe))
    return Learner(network, material.recipe, world, objective)
