"""A recipe: everything that decides a training run. YAML fills its frozen dataclasses, the command line overrides them.

Precedence, lowest first: the dataclasses' defaults, the recipe's YAML file, overrides by dotted name. The merged
result is saved with the run (`to_yaml`) and loads back to an equal `Recipe`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from gossamer.data.config import CorpusConfig
from gossamer.errors import UserError, names_meant, nearest
from gossamer.model.config import ModelConfig
from gossamer.reading import MAX_YAML, parse_yaml, plain_values, read_text, user_path, yaml_text
from gossamer.train.config import OptimizerConfig, ScheduleConfig, TrainingConfig, require
from gossamer.typed import convert, count_of


@names_meant
@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        model: the network
        corpus: the text it reads
        optimizer: how a gradient becomes a step
        schedule: the learning rate over the run
        training: what a step is made of, and how many there are
        description: what the recipe is for, in a line
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    description: str = ""

    def __post_init__(self) -> None:
        length, longest = self.training.sequence_length, self.model.max_position_embeddings
        require("training.sequence_length", length, length <= longest, f"<= model.max_position_embeddings = {longest}")


DEFAULT_RECIPE = "demo"
BUDGET_RECIPE = "budget"  # what a budget's recipe is made from


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Every value of the recipe under its dotted name."""
    flat: dict[str, Any] = {}
    for part in fields(recipe):
        value = getattr(recipe, part.name)
        if is_dataclass(value):
            flat |= {f"{part.name}.{item.name}": getattr(value, item.name) for item in fields(value)}
        else:
            flat[part.name] = value
    return flat


def field_types() -> dict[str, Any]:
    """Every dotted name of a recipe with its annotated type."""
    types: dict[str, Any] = {}
    for name, annotation in get_type_hints(Recipe).items():
        if is_dataclass(annotation):
            types |= {f"{name}.{item}": hint for item, hint in get_type_hints(annotation).items()}
        else:
            types[name] = annotation
    return types


def recipe_from(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Build a recipe from nested sections, as YAML holds them, and overrides by dotted name.

    Raises:
        UserError: a key that no section has, a value of another type, or values that do not fit together.
    """
    types = field_types()
    flat: dict[str, Any] = {}
    sections = {name for name, hint in get_type_hints(Recipe).items() if is_dataclass(hint)}
    for name, value in values.items():
        if name not in sections:
            flat[str(name)] = value
        elif isinstance(value, Mapping):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        elif value is not None:  # a section with every line commented out is empty
            raise UserError(f"{name} = {value!r}: expected a section of keys")
    flat |= overrides or {}
    _fold(flat, types)

    parts: dict[str, dict[str, Any]] = {name: {} for name in sections}
    top: dict[str, Any] = {}
    for key, value in flat.items():
        if key not in types:
            raise UserError(f"unknown key {key!r}{nearest(key, [*types, *sections])}")
        section, _, name = key.rpartition(".")
        count = count_of(value, types[key]) if isinstance(value, str) else None  # 15T
        value = value if count is None else count
        (parts[section] if section else top)[name] = convert(value, types[key], key)
    _derive(parts["model"])
    hints = get_type_hints(Recipe)
    return Recipe(**{name: _build(hints[name], parts[name], name) for name in sections}, **top)


def _derive(model: dict[str, Any]) -> None:
    """Sizes that nobody gave follow from those that were given: the defaults are those of one network, 80B-A3B.

    Beside a width of 128, its dense layer of 5,632 would be most of the network.
    """
    usual = ModelConfig()
    width, experts = model.get("hidden_size"), model.get("num_experts")
    if width is not None:
        for name in ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"):
            model.setdefault(name, max(1, width * getattr(usual, name) // usual.hidden_size))
    if experts is not None:
        model.setdefault("num_experts_per_tok", max(1, min(usual.num_experts_per_tok, experts)))


def _fold(flat: dict[str, Any], types: Mapping[str, Any]) -> None:
    """Put what a dotted name says about a part of a mapping, as corpus.sets.novels.weight, into that mapping."""

    def merged(whole: Any, path: list[str], value: Any) -> dict[str, Any]:
        known = asdict(whole) if is_dataclass(whole) and not isinstance(whole, type) else dict(whole or {})
        name, *rest = path
        return known | {name: merged(known.get(name), rest, value) if rest else value}

    for owner in [name for name, hint in types.items() if get_origin(hint) is dict]:
        for key in [key for key in flat if key.startswith(f"{owner}.")]:
            path = key.removeprefix(f"{owner}.").split(".")
            flat[owner] = merged(flat.get(owner), path, flat.pop(key))


def _build(section: type, values: dict[str, Any], prefix: str) -> Any:
    """Make one section; its own complaint begins with a field's name, which gets the section's before it."""
    try:
        return section(**values)
    except UserError as error:
        first = re.match(r"\w*", str(error))
        own = first is not None and first.group() in {item.name for item in fields(section)}
        raise UserError(f"{prefix}.{error}" if own else str(error)) from None


# Recipes on disk.


def recipe_folder() -> Path:
    """The recipes that come with the package: inside an installed wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def recipe_file(name_or_path: str | Path) -> Path:
    """The YAML file of a recipe, given its path or the name of one that comes with the package.

    Raises:
        UserError: no such recipe.
    """
    path = user_path(name_or_path)
    if path.is_file():
        return path
    name = str(name_or_path)
    if name not in recipe_names():
        raise UserError(
            f"no recipe {name!r}{nearest(name, recipe_names())} "
            f"(a path of a YAML file, or one of {', '.join(recipe_names())})"
        )
    return recipe_folder() / f"{name}.yaml"


def load_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """Read a recipe's YAML file, given its path or the name of one that comes with the package, as nested sections.

    Raises:
        UserError: no such recipe, no valid YAML, or contents that `recipe_from` refuses; the line names the file.
    """
    path = recipe_file(name_or_path)
    values = parse_yaml(read_text(path, most=MAX_YAML), str(path)) or {}
    try:
        if not isinstance(values, dict):
            raise UserError(f"expected sections of keys, got {type(values).__name__}")
        recipe_from(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return values


def to_yaml(recipe: Recipe) -> str:
    """Write every value of the recipe; `load_recipe` and `recipe_from` make an equal recipe of it again."""
    return yaml_text(plain_values(asdict(recipe)))
