"""A recipe: everything that decides a training run. YAML fills its frozen dataclasses, the command line overrides them.

Precedence, lowest first: the dataclasses' defaults, the recipe's YAML file, overrides by dotted name. The merged recipe
is saved with the run (`to_yaml`) and loads back to an equal `Recipe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_origin

from gossamer.data.config import CorpusConfig
from gossamer.errors import FieldError, UnknownKeyError, UserError, did_you_mean
from gossamer.model.config import ModelConfig
from gossamer.options import Option, options_of, without_none
from gossamer.reading import read_text, user_path
from gossamer.train.config import OptimizerConfig, ScheduleConfig, TrainingConfig, TuningConfig
from gossamer.typed import check_fields, hints_of, parse_suffixed_number, reject_unknown_fields
from gossamer.yaml_files import MAX_YAML, parse_yaml, plain_values, yaml_text


@reject_unknown_fields
@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        model: the network
        corpus: the text that it is trained and validated on
        optimizer: how a gradient becomes a step
        schedule: the learning rate over the run
        training: what a step is made of, how many there are, and what happens between them
        tuning: what `gossamer tune` makes of a model; None: the run learns from text
        description: what the recipe is for, in a line
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    tuning: TuningConfig | None = None
    description: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        length, longest = self.training.sequence_length, self.model.max_position_embeddings
        if length > longest:
            problem = f" = {length}: must be <= model.max_position_embeddings = {longest}"
            raise FieldError("training.sequence_length", problem)


DEFAULT_RECIPE = "demo"
CONTINUE_RECIPE = "continue"  # the recipe of a run that begins with the weights of a checkpoint
BUDGET_RECIPE = "budget"  # the recipe that a budget's recipe is made from
TUNING = "tuning"  # the section that only the recipe of a tuning has


@cache
def recipe_options(tuning: bool = False) -> dict[str, Option]:
    """Every value of a recipe under its dotted name, those of a tuning only if they are asked for."""
    options: dict[str, Option] = {}
    for name, option in options_of(Recipe).items():
        kind = without_none(option.annotation)
        if tuning or name != TUNING:
            options |= options_of(kind, name) if is_dataclass(kind) else {name: option}
    return options


def _sections() -> dict[str, Any]:
    kinds = {name: without_none(kind) for name, kind in hints_of(Recipe).items()}
    return {name: kind for name, kind in kinds.items() if is_dataclass(kind)}


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Every value of a recipe under its dotted name, those of a tuning only where it is one."""
    flat: dict[str, Any] = {}
    for part in fields(recipe):
        value = getattr(recipe, part.name)
        if is_dataclass(value):
            flat |= {f"{part.name}.{item.name}": getattr(value, item.name) for item in fields(value)}
        elif part.name != TUNING:
            flat[part.name] = value
    return flat


def recipe_from(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Build a recipe.

    Args:
        values: nested sections, as YAML holds them; names of earlier releases are understood
        overrides: values that win over them, by dotted name

    Raises:
        UserError: a key that no section has, a value of another type, or values that do not fit together.
    """
    options, sections = recipe_options(tuning=True), _sections()
    flat = _with_new_names(_flat(values))
    for key in overrides or {}:
        if (new := _new_names().get(key)) is not None:
            raise UserError(f"{key} is now called {new}")
    flat |= overrides or {}
    _fold(flat)
    parts: dict[str, dict[str, Any]] = {name: {} for name in ("", *sections)}
    for key, value in flat.items():
        if key not in options:
            raise UnknownKeyError(key, did_you_mean(key, [*options, *sections]))
        section, _, name = key.rpartition(".")
        count = parse_suffixed_number(value, options[key].annotation) if isinstance(value, str) else None  # 15T
        parts[section][name] = value if count is None else count
    _derive_sizes(parts["model"])
    if TUNING not in values and not parts[TUNING]:
        del sections[TUNING]
    made = {name: _section(kind, parts[name], name) for name, kind in sections.items()}
    return Recipe(**made, **parts[""])


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested sections by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name not in _sections():
            flat[str(name)] = value
        elif isinstance(value, Mapping):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        elif value is not None:  # a section with every line commented out is empty
            raise UserError(f"{name} = {value!r}: expected a section of keys")
    return flat


@cache
def _new_names() -> dict[str, str]:
    """The name that each value of an earlier release has now."""
    return {former: name for name, option in recipe_options().items() for former in option.former_names}


def _with_new_names(flat: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {_new_names().get(key, key): value for key, value in flat.items()}
    if len(renamed) < len(flat):
        old = next(key for key in flat if _new_names().get(key) in flat)
        raise UserError(f"{old} is now called {_new_names()[old]}, and both are given; leave {old} out")
    return renamed


def _derive_sizes(model: dict[str, Any]) -> None:
    """Derive sizes that nobody gave from those that were given: the defaults are those of one network, 80B-A3B.

    Beside a width of 128, its dense layer of 5,632 would be most of the network.
    """
    usual = ModelConfig()
    width, experts = model.get("hidden_size"), model.get("num_experts")
    if type(width) is int:
        for name in ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"):
            model.setdefault(name, max(1, width * getattr(usual, name) // usual.hidden_size))
    if type(experts) is int:
        model.setdefault("num_experts_per_tok", max(1, min(usual.num_experts_per_tok, experts)))


def _fold(flat: dict[str, Any]) -> None:
    """Put what a dotted name says about a part of a mapping, as corpus.sets.novels.weight, into that mapping."""

    def merged(whole: Any, path: list[str], value: Any) -> dict[str, Any]:
        known = asdict(whole) if is_dataclass(whole) and not isinstance(whole, type) else dict(whole or {})
        name, *rest = path
        return known | {name: merged(known.get(name), rest, value) if rest else value}

    for owner in [
        key for key, option in recipe_options().items() if get_origin(without_none(option.annotation)) is dict
    ]:
        for key in [key for key in flat if key.startswith(f"{owner}.")]:
            path = key.removeprefix(f"{owner}.").split(".")
            flat[owner] = merged(flat.get(owner), path, flat.pop(key))


def _section(kind: Any, values: dict[str, Any], name: str) -> Any:
    try:
        return kind(**values)
    except FieldError as error:
        raise error.inside(name) from None


# Recipes on disk.

_OF_TUNING = "tune-"  # how the names of recipes begin that have a section `tuning`


def recipe_folder() -> Path:
    """The recipes that come with the package: inside an installed wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def recipe_names(tuning: bool = False) -> list[str]:
    """Names of the recipes that come with the package: those of training, or those of tuning."""
    names = sorted(path.stem for path in recipe_folder().glob("*.yaml"))
    return [name for name in names if name.startswith(_OF_TUNING) == tuning]


def recipe_file(name_or_path: str | Path) -> Path:
    """Return the YAML file of a recipe, given its path or the name of one that comes with the package.

    Raises:
        UserError: there is no such recipe.
    """
    path = user_path(name_or_path)
    if path.is_file():
        return path
    name = str(name_or_path)
    names = [*recipe_names(), *recipe_names(tuning=True)]
    if name not in names:
        raise UserError(
            f"no recipe {name!r}{did_you_mean(name, names)} (a path of a YAML file, or one of {', '.join(names)})"
        )
    return recipe_folder() / f"{name}.yaml"


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: path of its YAML file, or the name of a recipe that comes with the package
        overrides: values that win over those of the file, by dotted name

    Raises:
        UserError: no such recipe, no valid YAML, or values that `recipe_from` refuses. Where the file is at fault, the
            line names it.
    """
    path = recipe_file(name_or_path)
    values = parse_yaml(read_text(path, max_bytes=MAX_YAML), str(path)) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections of keys, got {type(values).__name__}")
    try:
        return recipe_from(values, overrides)
    except UserError as error:
        if overrides:
            load_recipe(path)  # raises if the file alone is at fault
            raise
        raise UserError(f"{path}: {error}") from None


def to_yaml(recipe: Recipe) -> str:
    """Write every value of a recipe; `load_recipe` makes an equal recipe of it again."""
    values = plain_values(asdict(recipe))
    if recipe.tuning is None:
        del values[TUNING]
    return yaml_text(values)
