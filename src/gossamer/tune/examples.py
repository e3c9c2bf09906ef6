"""What a tuning works on, before anything is trained: its base, its examples and its recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from gossamer.data.chat.records import Records, read_records
from gossamer.data.chat.rows import ExampleBatches, split_held_out
from gossamer.data.chat.samples import Example, Examples, build_examples
from gossamer.errors import UserError
from gossamer.run.start import with_absolute_paths
from gossamer.train.recipe import Recipe
from gossamer.train.world import World
from gossamer.tune.base import Base, open_base
from gossamer.tune.memory import allowed_row_tokens
from gossamer.tune.objectives import trained_examples
from gossamer.tune.recipe import LENGTHS, Counts, final_recipe, first_recipe, other_length, said_by, tuning_of

__all__ = ["Material", "begun_material", "resumed_material"]

_STANDARD_INPUT = "-"
_MAX_SEEN = 200  # examples that are measured where none are held out


@dataclass(frozen=True, eq=False)
class Material:
    """What a tuning works on.

    Attributes:
        recipe: all that decides it
        base: what is tuned
        examples: all examples
        learned: the indices of those that are learned from
        measured: the indices of those that are measured
        measured_name: what these are called: held-out, or seen where there are too few to hold some out
    """

    recipe: Recipe
    base: Base
    examples: Examples
    learned: tuple[int, ...]
    measured: tuple[int, ...]
    measured_name: str

    @cached_property
    def trained(self) -> list[Example]:
        """All examples as rows of training hold them."""
        return trained_examples(self.examples.examples)

    @property
    def num_new_tokens(self) -> int:
        """How many tokens the chat template has brought that the base has not."""
        return self.examples.tokenizer.vocab_size - self.base.tokenizer.vocab_size

    def batches(self, world: World) -> ExampleBatches:
        """Return the rows of the steps, this process's share of them."""
        tuning = tuning_of(self.recipe)
        assert tuning.row_tokens is not None
        return ExampleBatches(
            self.trained,
            tuning.batch,
            tuning.row_tokens,
            self.recipe.training.seed,
            self.learned,
            tuning.epochs,
            rank=world.rank,
            world_size=world.size,
        )

    @property
    def counts(self) -> Counts:
        """What the recipe has to know of the examples."""
        return _counts(self.examples, self.learned, tuning_of(self.recipe).batch)


def begun_material(name: str | None, overrides: Mapping[str, Any], world: World) -> Material:
    """Return what a tuning that begins works on.

    Args:
        name: name or path of the recipe that the command names, if it names one
        overrides: values by dotted name; `training.init_from` and `corpus.paths` among them
        world: the processes, whose device the rows must fit into

    Raises:
        UserError: a line of the data, the base or a value is refused.
    """
    said = said_by(name, overrides)
    paths, method = said.get("corpus.paths") or (), said.get("tuning.method", "auto")
    if not paths:
        raise UserError("--data: name the files with examples")
    records = world.call_on_main(lambda: read_records(paths, method=method))  # standard input is there once
    recipe = first_recipe(records.method, name, overrides)
    base, examples, learned, measured = _examples(recipe, records)
    counts = _counts(examples, learned, tuning_of(recipe).batch)
    rows = 0 if tuning_of(recipe).row_tokens else allowed_row_tokens(recipe, base, world)
    recipe = with_absolute_paths(final_recipe(recipe, counts, said, rows))
    return _material(recipe, base, examples, learned, measured)


def resumed_material(recipe: Recipe, overrides: Mapping[str, Any]) -> Material:
    """Return what a tuning that is continued works on.

    Args:
        recipe: the run's own, with the overrides
        overrides: values by dotted name that the command gives

    Raises:
        UserError: the data are gone or have changed.
    """
    if _STANDARD_INPUT in recipe.corpus.paths:
        raise UserError("--resume: the run's examples came from standard input and are gone; begin another from a file")
    tuning, steps = tuning_of(recipe), recipe.training.steps
    if tuning.epochs is not None and any(overrides.get(key) for key in LENGTHS):
        tuning = replace(tuning, epochs=None)
    elif tuning.epochs is not None and (other := other_length(recipe)):
        raise UserError(f"--epochs: the run ends by its {other}; give --{other} to continue it")
    records = read_records(recipe.corpus.paths, method=tuning.method)
    base, examples, learned, measured = _examples(recipe, records)
    if tuning.epochs is not None:
        steps = _counts(examples, learned, tuning.batch).steps(tuning.epochs)
    recipe = replace(recipe, tuning=tuning, training=replace(recipe.training, steps=steps))
    return _material(recipe, base, examples, learned, measured)


def _examples(recipe: Recipe, records: Records) -> tuple[Base, Examples, list[int], list[int]]:
    tuning = tuning_of(recipe)
    base = open_base(recipe.training.init_from, tuning.template)
    assert tuning.context is not None
    examples = build_examples(
        records,
        base.tokenizer,
        context=tuning.context,
        too_long=tuning.too_long,
        turns=tuning.turns,
        template=tuning.template if tuning.template != "stored" else "",
    )
    learned, held_out = split_held_out(examples.examples, tuning.hold_out)
    if all(examples.examples[index].label is False for index in held_out):  # nothing to measure the model by
        learned, held_out = list(range(len(examples.examples))), []
    return base, examples, learned, held_out


def _material(recipe: Recipe, base: Base, examples: Examples, learned: list[int], held_out: list[int]) -> Material:
    """Return the material; its network has rows for tokens that the template has brought."""
    size = max(base.checkpoint.config.vocab_size, examples.tokenizer.vocab_size)
    if tuning_of(recipe).lora and examples.tokenizer.vocab_size > base.tokenizer.vocab_size:
        raise UserError(
            "--template chatml: its tokens need rows of embedding and head, which an adapter cannot hold; leave --lora "
            "out, or take a base with a chat template"
        )
    measured = held_out or [index for index in learned if examples.examples[index].label is not False][:_MAX_SEEN]
    if not measured:
        raise UserError("no rated answer is good, so there is nothing to measure the model by; add some that are")
    return Material(
        replace(recipe, model=replace(recipe.model, vocab_size=size)),
        base,
        examples,
        tuple(learned),
        tuple(measured),
        "held-out" if held_out else "seen",
    )


def _counts(examples: Examples, learned: Sequence[int], batch: int) -> Counts:
    trained = trained_examples(examples.examples)
    tokens = sum(len(trained[index]) for index in learned)
    return Counts(examples.method, len(learned), batch, max(map(len, examples.examples)), tokens)
