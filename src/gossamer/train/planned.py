"""The network that a word of the command line names, for the planner: a preset, a recipe, or Hugging Face's config."""

from __future__ import annotations

from pathlib import Path

from gossamer.cost.planner import Workload, workload_from, workload_of
from gossamer.errors import UserError, nearest
from gossamer.hub.find import find_model, read_json
from gossamer.hub.names import CONFIG
from gossamer.train.recipe import load_recipe, recipe_from, recipe_names


def planned_network(word: str) -> Workload:
    """Read a network's sizes.

    Args:
        word: name of a recipe that comes with gossamer, path of a recipe's YAML file, of a config.json, or of a folder
            that holds one

    Raises:
        UserError: it names nothing, or something that no cost can be counted of.
    """
    path = Path(word).expanduser()
    if path.is_dir():
        return workload_from(read_json(find_model(path) / CONFIG), word)
    if path.suffix == ".json" and path.is_file():
        return workload_from(read_json(path), word)
    names = recipe_names()
    if word not in names and not path.is_file():
        raise UserError(
            f"unknown model {word!r}{nearest(word, names)} (one of {', '.join(names)}, a recipe's YAML file, or a "
            "Hugging Face config.json or its folder)"
        )
    return workload_of(recipe_from(load_recipe(word)).model, path.stem if path.is_file() else word)
