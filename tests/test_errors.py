"""Hints for what was probably meant."""

import pytest

from gossamer.errors import UserError, nearest, nearest_path

KEYS = ["model.num_experts", "model.num_experts_per_tok", "training.steps", "training.seed"]
OPTIONS = ["--help", "--tokenizer", "--optimizer.learning_rate", "--training.steps", "--training.tokens"]
OPTIONS += ["--training.sequence_length", "--optimizer.eps", "--price", "--out", "--recipe", "--model.num_experts"]


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
        ("--seq_len", "--training.sequence_length"),
        ("--n_experts", "--model.num_experts"),
    ],
)
def test_names_the_nearest(typed: str, meant: str) -> None:
    assert nearest(typed, OPTIONS if typed.startswith("--") else KEYS) == f"; did you mean {meant!r}?"


def test_says_nothing_when_nothing_is_near() -> None:
    assert nearest("zzz", KEYS) == ""
    assert nearest("training.zzz", KEYS) == ""
    assert nearest("--zz", OPTIONS) == ""
    assert nearest("zzz", []) == ""


@pytest.mark.parametrize("typed", ["--epochs", "--force", "--dropout", "--clip", "--verbose", "--topk", "--iters"])
def test_offers_nothing_far_fetched(typed: str) -> None:
    assert nearest(typed, OPTIONS) == ""


def test_paths_are_compared_by_their_own_names() -> None:
    runs = ["/data/experiments/one", "/data/experiments/mine"]
    assert nearest_path("/data/experiments/mien", runs) == "; did you mean '/data/experiments/mine'?"
    assert nearest_path("/data/experiments/zzz", runs) == ""
    assert nearest_path("zzz.txt", ["novel.txt"]) == nearest_path("a.jsonl", ["b.jsonl"]) == nearest_path("a", []) == ""
    assert nearest_path("novels.txt", ["novel.txt"]) == nearest_path("novel.text", ["novel.txt"])


def test_user_errors_are_value_errors_to_python() -> None:
    assert issubclass(UserError, ValueError)


def test_a_slip_in_three_letters() -> None:
    assert nearest("h2o", ["h100", "h20"]) == "; did you mean 'h20'?"
    assert nearest("eps", ["epochs", "ups"]) == "; did you mean 'ups'?"
    assert nearest("eps", ["epochs"]) == ""


def test_a_hint_stays_short_whatever_the_name() -> None:
    assert len(nearest("a" * 5000, ["a" * 5001])) < 120
