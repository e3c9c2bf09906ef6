"""The recipe and the folder of a run that begins or is resumed, decided before anything is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gossamer.data.sources import HUB_PREFIX
from gossamer.errors import UserError
from gossamer.hub.find import RUN_CONFIG
from gossamer.reading import user_path
from gossamer.run.lock import require_unclaimed
from gossamer.train.recipe import (
    CONTINUE_RECIPE,
    Recipe,
    flatten,
    load_recipe,
    recipe_file,
    recipe_names,
    recipe_options,
)


def require_undecided(recipe: str | None, overrides: Mapping[str, Any]) -> None:
    """Refuse to be given, beside --budget, what the budget decides.

    Args:
        recipe: the recipe that the command names, if it names one
        overrides: values that the command gives, by dotted name

    Raises:
        UserError: the line says what to leave out, and what to do instead.
    """
    own = "--recipe R --training.budget B keeps a recipe's network and all you say of it"
    if "training.init_from" in overrides:
        raise UserError(
            "--budget chooses the network, and --from brings one; --training.budget B ends a run that begins so"
        )
    if recipe is not None:
        raise UserError(f"--budget chooses the network, as does --recipe {recipe}; give one of them, or {own}")
    options = recipe_options()
    for key in overrides:
        if key in options and options[key].is_set_by_budget:
            raise UserError(f"--budget decides --{key}; leave one of them out, or {own}")


def run_folder(recipe: str | None, recipe_name: str, paths: Sequence[str]) -> Path:
    """Return the folder of a run that was given none: the name of its recipe or, if only text was given, of the text.

    Args:
        recipe: the recipe that the command names, if it names one
        recipe_name: name or path of the recipe that it trains by
        paths: the text that it gives
    """
    text = ""
    if recipe is None and paths:
        first = user_path(paths[0])
        name = paths[0] if paths[0].startswith(HUB_PREFIX) else first.resolve().name
        # The kind of a file says nothing; the dots of a folder's name may.
        text = re.sub(r"[^\w.-]+", "-", name.removesuffix(first.suffix) if first.is_file() else name).strip("-.")
    # A recipe's name may have dots, which are no suffix: qwen3.5-9b.
    return Path("runs") / (text or (recipe_name if recipe_name in recipe_names() else Path(recipe_name).stem))


def fresh_recipe(folder: Path, name: str, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a run that begins.

    Args:
        folder: the run's
        name: name or path of the recipe
        overrides: values that win over the recipe's, by dotted name

    Raises:
        UserError: a bad recipe or override, a folder in use, or text that the recipe names and that is not here.
    """
    recipe = with_absolute_paths(load_recipe(name, overrides))
    if recipe.tuning is not None:
        raise UserError(f"--recipe {name}: has the section tuning, which is for gossamer tune")
    require_free(folder)
    if "corpus.paths" not in overrides:
        _require_text(recipe.corpus.paths, recipe_file(name))
    if not recipe.training.init_from:
        if name == CONTINUE_RECIPE:
            raise UserError(f"--recipe {name} has no network of its own; name the checkpoint that has, with --from DIR")
        return recipe
    from gossamer.run.pretrained import pretrained_recipe  # it needs PyTorch

    pretrained = pretrained_recipe(recipe, overrides)
    if not (recipe.corpus.paths or recipe.corpus.sets):
        raise UserError("--from: name the text to learn from, with --data PATH")
    return pretrained


def require_free(folder: Path) -> None:
    """Refuse a folder for a run that begins if it holds anything."""
    if (folder / RUN_CONFIG).exists():
        require_unclaimed(folder)
        raise UserError(f"{folder} already holds a run; continue it with --resume, or begin another with --out DIR")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose a folder with --out DIR")
    # A start that was killed leaves hidden files.
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run; choose another folder with --out DIR")


def _require_text(paths: Iterable[str], recipe: Path) -> None:
    """Refuse a recipe whose text is not here; what the command line names is left to the code that opens it."""
    for path in paths:
        if not path.startswith(HUB_PREFIX) and not user_path(path).exists():
            raise UserError(
                f"{path}: no such file or folder; it is the corpus.paths of {recipe}, which may say where to get it; "
                "--data PATH gives other text"
            )


def resumed_recipe(folder: Path, name: str | None, overrides: Mapping[str, Any], tuning: bool = False) -> Recipe:
    """Return the recipe of a run that is resumed, with overrides of what may still change.

    Overrides that repeat the run's own values are accepted, so that a command can be repeated with --resume at its end.

    Args:
        folder: the run's
        name: name or path of the recipe that the command names, if it names one
        overrides: values that win over the run's own, by dotted name
        tuning: whether it is a tuning

    Raises:
        UserError: no run there, a run of another recipe than `name`, or an override of what is fixed.
    """
    saved = folder / RUN_CONFIG
    if not saved.is_file():
        raise UserError(f"--resume: no run in {folder} (it has no config.yaml); leave --resume out to begin one")
    before = with_absolute_paths(load_recipe(saved))
    if before.tuning is not None and not tuning:
        raise UserError(f"--resume: the run in {folder} is a tuning; continue it with gossamer tune")
    if before.tuning is None and tuning:
        raise UserError(f"--resume: the run in {folder} is no tuning; continue it with gossamer train")
    # The overrides of its first command are part of a run's recipe; the description tells which file they were put on.
    if name is not None and load_recipe(name).description != before.description:
        raise UserError(f"--recipe {name}: the run in {folder} was begun by another recipe; leave --recipe out")
    after = with_absolute_paths(load_recipe(saved, overrides))
    for key in _changed_keys(before, after):
        option = recipe_options(tuning)[key]
        if tuning and key == "training.init_from":
            raise UserError(
                f"the run in {folder} tunes {before.training.init_from}; name that, or begin another run with --out DIR"
            )
        if not option.is_resumable:
            raise UserError(
                f"--{option.short_flag or key} is fixed for the run in {folder}; leave it out, or begin another run "
                "with --out DIR"
            )
    return after


def _changed_keys(recipe: Recipe, other: Recipe) -> list[str]:
    before, after = flatten(recipe), flatten(other)
    return [key for key in before if before[key] != after[key]]


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths: a run may be resumed and evaluated from another working directory."""

    def absolute(path: str) -> str:
        found = user_path(path).absolute()
        return str(found) if path and found.exists() else path  # the code that opens it complains in the user's words

    def all_absolute(part: Any) -> dict[str, Any]:
        return {name: tuple(map(absolute, getattr(part, name))) for name in ("paths", "validation_paths")}

    corpus = recipe.corpus
    return replace(
        recipe,
        corpus=replace(
            corpus,
            **all_absolute(corpus),
            sets={name: replace(one, **all_absolute(one)) for name, one in corpus.sets.items()},
            validation_sets={name: tuple(map(absolute, paths)) for name, paths in corpus.validation_sets.items()},
            tokenizer=corpus.tokenizer if corpus.tokenizer in ("bpe", "char") else absolute(corpus.tokenizer),
        ),
        training=replace(recipe.training, init_from=absolute(recipe.training.init_from)),
        tuning=recipe.tuning and replace(recipe.tuning, keep=tuple(map(absolute, recipe.tuning.keep))),
    )
