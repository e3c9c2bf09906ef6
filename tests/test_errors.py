"""Hints for what was probably meant."""

import pytest

from gossamer.errors import UserError, nearest

KEYS = ["model.num_experts", "model.num_experts_per_tok", "training.steps", "training.seed"]
OPTIONS = ["--help", "--tokenizer", "--optimizer.learning_rate", "--training.steps", "--training.tokens"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("training.step", "training.steps"),
        ("model.num_expert", "model.num_experts"),
        ("sead", "training.seed"),
        ("modle.num_experts", "model.num_experts"),
        ("seed", "training.seed"),
        ("--lr", "--optimizer.learning_rate"),
        ("--steps", "--training.steps"),
        ("--hepl", "--help"),
        ("--tokens", "--training.tokens"),
    ],
)
def test_names_the_nearest(typed: str, meant: str) -> None:
    assert nearest(typed, OPTIONS if typed.startswith("--") else KEYS) == f"; did you mean {meant!r}?"


def test_says_nothing_when_nothing_is_near() -> None:
    assert nearest("zzz", KEYS) == ""
    assert nearest("training.zzz", KEYS) == ""
    assert nearest("--zz", OPTIONS) == ""
    assert nearest("zzz", []) == ""


def test_user_errors_are_value_errors_to_python() -> None:
    assert issubclass(UserError, ValueError)
