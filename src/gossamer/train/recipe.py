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

import yaml

from gossamer.data.config import CorpusConfig
from gossamer.errors import UserError, nearest
from gossamer.model.config import ModelConfig
from gossamer.train.config import OptimizerConfig, ScheduleConfig, TrainingConfig, require
from gossamer.train.typed import convert


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
        (parts[section] if section else top)[name] = convert(value, types[key], key)
    hints = get_type_hints(Recipe)
    return Recipe(**{name: _build(hints[name], parts[name], name) for name in sections}, **top)


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
    path = Path(name_or_path).expanduser()
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
    try:
        values = parse_yaml(path.read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict):
            raise UserError(f"expected sections of keys, got {type(values).__name__}")
        recipe_from(values)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: {problem or error}") from None
    except ValueError as error:  # what recipe_from refuses, bytes that are no UTF-8, dates that no calendar has
        raise UserError(f"{path}: {error}") from None
    return values


def parse_yaml(text: str) -> Any:
    """What a text in YAML says, with `_Loader`'s idea of numbers; yaml.YAMLError if it is none."""
    return yaml.load(text, Loader=_Loader)


def to_yaml(recipe: Recipe) -> str:
    """Write every value of the recipe; `load_recipe` and `recipe_from` make an equal recipe of it again."""
    return yaml.dump(_plain(asdict(recipe)), Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in YAML 1.2, and no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that `_Loader` would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
