"""Hints for what was probably meant."""

import pytest

from gossamer.errors import UserError, did_you_mean, did_you_mean_path

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
    assert did_you_mean(typed, OPTIONS if typed.startswith("--") else KEYS) == f"; did you mean {meant!r}?"


def test_says_nothing_when_nothing_is_near() -> None:
    assert did_you_mean("zzz", KEYS) == ""
    assert did_you_mean("training.zzz", KEYS) == ""
    assert did_you_mean("--zz", OPTIONS) == ""
    assert did_you_mean("zzz", []) == ""


@pytest.mark.parametrize("typed", ["--epochs", "--force", "--dropout", "--clip", "--verbose", "--topk", "--iters"])
def test_offers_nothing_far_fetched(typed: str) -> None:
    assert did_you_mean(typed, OPTIONS) == ""


def test_paths_are_compared_by_their_own_names() -> None:
    runs = ["/data/experiments/one", "/data/experiments/mine"]
    assert did_you_mean_path("/data/experiments/mien", runs) == "; did you mean '/data/experiments/mine'?"
    assert did_you_mean_path("/data/experiments/zzz", runs) == ""
    assert (
        did_you_mean_path("zzz.txt", ["novel.txt"])
        == did_you_mean_path("a.jsonl", ["b.jsonl"])
        == did_you_mean_path("a", [])
        == ""
    )
    assert did_you_mean_path("novels.txt", ["novel.txt"]) == did_you_mean_path("novel.text", ["novel.txt"])


def test_user_errors_are_value_errors_to_python() -> None:
    assert issubclass(UserError, ValueError)


def test_a_slip_in_three_letters() -> None:
    assert did_you_mean("h2o", ["h100", "h20"]) == "; did you mean 'h20'?"
    assert did_you_mean("eps", ["epochs", "ups"]) == "; did you mean 'ups'?"
    assert did_you_mean("eps", ["epochs"]) == ""


def test_a_hint_stays_short_whatever_the_name() -> None:
    assert len(did_you_mean("a" * 5000, ["a" * 5001])) < 120
