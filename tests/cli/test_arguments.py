"""Options of a verb: how they may be spelled, and values of a recipe among them."""

import pytest

from gossamer.cli import main
from gossamer.data.config import SetConfig
from stand_in import Calls, replace


@pytest.mark.parametrize("spelled", ["1.5M", "1.5m", "1500K", "0.0015B"])
def test_counts_may_be_written_short(spelled: str, training: Calls) -> None:
    words = ["--training.tokens", spelled, f"--training.eval_tokens={spelled}", "--training.sample_prompt", spelled]
    assert main(["train", *words]) == 0
    (((recipe, *_), _),) = training
    assert (recipe.training.tokens, recipe.training.eval_tokens) == (1_500_000, 1_500_000)
    assert recipe.training.sample_prompt == spelled


def test_a_short_count_that_is_none(training: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    for spelled in ("1.0005K", "15X", "K", "-5K"):
        assert main(["train", f"--training.tokens={spelled}"]) == 2
        assert capsys.readouterr().err.startswith(f"gossamer: --training.tokens {spelled}: expected a whole number")


def test_options_take_dashes_for_underscores(training: Calls, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "train --training.batch-size 3 --training.log-every=7 --corpus.cache_dir x"
    line += " --corpus.sets.my-own.validation-paths a --corpus.sets.my-own.paths b --corpus.validation-sets.far-off c"
    assert main(line.split()) == 0
    (((recipe, *_), _),) = training
    assert (recipe.training.batch_size, recipe.training.log_every, recipe.corpus.cache_dir) == (3, 7, "x")
    assert recipe.corpus.sets == {"my-own": SetConfig(("b",), 1.0, ("a",))}
    assert recipe.corpus.validation_sets == {"far-off": ("c",)}
    calls = replace(monkeypatch, "gossamer.infer.generation", "sample_run")
    calls.answer = iter(())
    assert main(["sample", run, "--max-tokens", "5", "--top-p=0.5", "--prompt=--top-k"]) == 0
    assert calls[0][0][1:3] == ("--top-k", 5) and calls[0][0][3]["top_p"] == 0.5


@pytest.mark.parametrize(
    "word", ["1:30", "nan", ".inf", "1e400", "!!int 5", "5 # x", "[5]", "٣", "", "true", "9" * 5000]
)
def test_what_is_no_number_is_none_for_any_option(
    word: str, training: Calls, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in (
        ["sample", run, "--max_tokens"],
        ["train", "--price"],
        ["train", "--training.steps"],
        ["plan", "--tokens"],
    ):
        assert main([*line, word]) == 2
        message = capsys.readouterr().err
        assert (
            message.startswith(f"gossamer: {line[-1].replace('max_tokens', 'max-tokens')} {word[:180]}")
            and ": expected a " in message
        )
        assert len(message) < 300 and message.count("\n") == 1
    assert not training


def test_numbers_are_read_as_in_a_recipe(training: Calls) -> None:
    line = "train --training.steps 1_000 --optimizer.learning_rate 1e-3 --training.price null"
    line += " --model.mlp_only_layers 0 1"
    assert main(line.split()) == 0
    (((recipe, *_), _),) = training
    assert (recipe.training.steps, recipe.optimizer.learning_rate, recipe.training.price) == (1000, 1e-3, None)
    assert recipe.model.mlp_only_layers == (0, 1)


def test_names_that_differ_in_a_dash_are_told_apart(training: Calls) -> None:
    words = "train --corpus.sets.my-set.paths a --corpus.sets.my_set.paths b --corpus.sets.my_set.weight 3"
    assert main(words.split()) == 0
    (((recipe, *_), _),) = training
    assert recipe.corpus.sets == {"my-set": SetConfig(("a",)), "my_set": SetConfig(("b",), 3.0)}


def test_a_flag_for_true_or_false_may_have_a_value(training: Calls, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train", "--training.recompute", "--model.norm-topk-prob", "false"]) == 0
    assert main(["train", "--training.recompute"]) == 0
    assert main(["train", "--model.tie_word_embeddings", "--training.recompute", "true", "--profile=false"]) == 0
    (first, _), (second, _), (third, _) = training
    assert first[0].training.recompute and not first[0].model.norm_topk_prob
    assert second[0].training.recompute and third[0].model.tie_word_embeddings and third[0].training.recompute
    calls = replace(monkeypatch, "gossamer.serve.server", "serve")
    for words, is_on in (
        (["--log-prompts", run], True),
        (["--log_prompts", "false", run], False),
        ([run, "--log-prompts=true"], True),
        (
            [
                run,
                "--log-prompts",
                "--",
            ],
            True,
        ),
    ):
        assert main(["serve", *words]) == 0
        assert calls[-1][0][1].log_prompts is is_on, words


def test_lists_grow_with_each_flag_and_pairs_are_replaced(training: Calls) -> None:
    line = "train --corpus.paths a b --data c --optimizer.betas 0.1 0.2 --optimizer.betas 0.3 0.4"
    assert main(line.replace("--data", "--corpus.paths").split()) == 0
    (((recipe, *_), _),) = training
    assert recipe.corpus.paths == ("a", "b", "c") and recipe.optimizer.betas == (0.3, 0.4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --training.best_by x", "--training.best_by is now called --training.best_checkpoint_by"),
        ("train --training.pair-steps 3", "--training.pair-steps is now called --training.bigram_steps"),
        ("serve runs/mine --drain 3", "--drain is now called --drain-timeout"),
    ],
)
def test_a_flag_of_an_earlier_release_is_refused_with_the_new_one(
    run: str, training: Calls, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert main(line.split()) == 2
    assert capsys.readouterr().err == f"gossamer: {message}\n"


def test_a_flag_twice_takes_the_last_value_and_two_dashes_end_the_flags(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = replace(monkeypatch, "gossamer.infer.generation", "sample_run")
    calls.answer = iter(())
    assert main(["sample", "--max_tokens", "5", "--max-tokens=6", "--", run]) == 0
    assert calls[0][0][2] == 6
