"""Options as they are declared: what follows from a field and its annotation."""

from dataclasses import MISSING, dataclass
from typing import Annotated, Any

import pytest

from gossamer.cli import VERBS
from gossamer.cost.width_family import DIMENSIONS
from gossamer.infer.defaults import SAMPLING
from gossamer.infer.options import EngineOptions, SamplingOptions
from gossamer.options import description_of, documented, options_of, plain_type, without_none
from gossamer.serve.options import ServeOptions
from gossamer.train.recipe import Recipe, recipe_options
from gossamer.typed import PYTHON_ONLY, RESUMABLE, SET_BY_BUDGET, Flag, Formerly, Help, Range, Unit

_Steps = Annotated[int, Range(0, 9), Unit("steps")]


@dataclass
class Sample:
    """A sample.

    Attributes:
        length: how long it is,
            in `steps`
        hidden: not on the command line
        plain: says nothing
    """

    length: Annotated[_Steps | None, RESUMABLE, SET_BY_BUDGET, Flag("len"), Formerly("size", "extent")] = 3
    hidden: Annotated[str, PYTHON_ONLY] = "x"
    plain: int = 1


def verb(run: Annotated[str, Help("a folder")], count: _Steps = 2) -> None:
    """Do it.

    Args:
        count: how often
    """


def test_everything_is_read_from_the_declaration() -> None:
    length, hidden, plain = options_of(Sample, "part").values()
    assert (length.name, length.default, length.help) == ("part.length", 3, "how long it is, in steps")
    assert (str(length.range), length.unit, length.short_flag) == ("from 0 to 9", "steps", "len")
    assert length.former_names == ("part.size", "part.extent") and length.is_resumable and length.is_set_by_budget
    assert length.has_flag and not hidden.has_flag and plain.has_flag
    assert (plain.range, plain.unit, plain.short_flag, plain.former_names) == (None, "", "", ())
    assert not plain.is_resumable and not plain.is_set_by_budget


def test_a_verb_declares_options_as_a_dataclass_does() -> None:
    run, count = options_of(verb).values()
    assert (run.default, run.help) == (MISSING, "a folder")
    assert (count.default, count.help, count.unit) == (2, "how often", "steps")
    assert description_of(verb) == ["Do it."]


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (Annotated[int, Range(0, 1)], int),
        (Annotated[_Steps | None, RESUMABLE], int),
        (tuple[int, ...], tuple[int, ...]),
        (int | str, int | str),
    ],
)
def test_a_type_without_what_is_said_beside_it(annotation: Any, kind: Any) -> None:
    assert without_none(annotation) == kind
    assert plain_type(annotation) == kind or type(None) in plain_type(annotation).__args__


OWNERS = [*(kind for kind in (ServeOptions, EngineOptions, SamplingOptions, Recipe)), *VERBS.values()]


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
def test_every_option_has_a_sentence_of_help(owner: Any) -> None:
    options = options_of(owner) | (recipe_options() if owner is Recipe else {})
    for option in options.values():
        assert option.help and option.help[0] not in "(" and not option.help.endswith("."), option.name
    assert set(documented(owner)) <= set(options)


@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_help_names_the_default_that_readers_get(name: str) -> None:
    assert f"else {SAMPLING[name]:g})" in options_of(SamplingOptions)[name].help


def test_what_a_resumed_run_may_change_says_nothing_of_what_is_learned() -> None:
    resumable = {name for name, option in recipe_options().items() if option.is_resumable}
    assert resumable == {f"training.{name}" for name in (
        "steps", "tokens", "seconds", "budget", "log_every", "eval_every", "eval_tokens", "final_eval_tokens",
        "sample_every", "sample_prompt", "sample_tokens", "checkpoint_every", "keep_checkpoints", "price", "currency",
        "device",
    )} | {"corpus.cache_dir", "corpus.workers"}  # fmt: skip


def test_a_budget_decides_length_batch_learning_rate_and_the_sizes_of_the_network() -> None:
    decided = {name for name, option in recipe_options().items() if option.is_set_by_budget}
    assert decided == {f"training.{name}" for name in (
        "steps", "tokens", "seconds", "batch_size", "gradient_accumulation", "eval_every", "sample_every",
        "checkpoint_every",
    )} | {"optimizer.learning_rate", "schedule.warmup_steps"} | {f"model.{name}" for name in DIMENSIONS}  # fmt: skip
