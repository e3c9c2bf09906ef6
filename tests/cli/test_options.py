"""Options of a verb: their help, how they may be spelt, and values of a recipe among them."""

import re

import pytest

from gossamer.cli import VERBS, main
from gossamer.data.config import SetConfig
from gossamer.train.recipe import field_types, recipe_names
from stand_in import Calls, replace


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_has_a_help_with_type_and_default(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    options = re.split(r"\n  (?=--(?!help )\w)", out.partition("values of the recipe")[0])[1:]
    assert options
    for option in options:
        assert re.search(r"\((.*type: .*|default: \w+)\)", " ".join(option.split())), option


def test_train_help_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    assert f"comes with gossamer ({', '.join(recipe_names())})" in " ".join(capsys.readouterr().out.split())


def test_train_help_all_shows_every_value_with_the_chosen_recipes_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", "micro", "--help", "all"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for key in ["recipe", *field_types()]:
        assert key == "description" or f"--{key} " in out
    assert "routed experts of a layer; 0 for a dense network (type: int, default: 64)" in out


def test_train_help_is_short_and_leads_to_the_sections(capsys: pytest.CaptureFixture[str]) -> None:
    sections = {key.partition(".")[0] for key in field_types() if "." in key}
    for words in (["--help"], ["-h"], ["--help", "--out", "x"], ["--recipe", "micro", "--help"]):
        assert main(["train", *words]) == 0
        out = capsys.readouterr().out
        assert out.count("\n") < 60 and "--model." not in out
        assert {line.split()[1] for line in out.splitlines() if line.startswith("  --help ")} == sections | {"all"}


def test_train_help_of_a_section_shows_its_values_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for topic in ("model", "model.num_experts", "--model.num_experts"):
        assert main(["train", "--recipe", "micro", "--help", topic]) == 0
        out = capsys.readouterr().out
        assert set(re.findall(r"\n  --([\w.]+) ", out)) == {key for key in field_types() if key.startswith("model.")}
        assert "(type: int, default: 64)" in out
    assert main(["train", "--help", "modle"]) == 2
    assert capsys.readouterr().err == "gossamer: --help modle: no section of a recipe; did you mean 'model'?\n"


@pytest.mark.parametrize("spelt", ["1.5M", "1.5m", "1500K", "0.0015B"])
def test_counts_may_be_written_short(spelt: str, training: Calls) -> None:
    words = ["--training.tokens", spelt, f"--training.eval_tokens={spelt}", "--training.sample_prompt", spelt]
    assert main(["train", *words]) == 0
    (((recipe, *_), _),) = training
    assert (recipe.training.tokens, recipe.training.eval_tokens) == (1_500_000, 1_500_000)
    assert recipe.training.sample_prompt == spelt


def test_a_short_count_that_is_none(training: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    for spelt in ("1.0005K", "15X", "K", "-5K"):
        assert main(["train", f"--training.tokens={spelt}"]) == 2
        assert capsys.readouterr().err.startswith(f"gossamer: --training.tokens={spelt}: expected a whole number")


def test_options_take_dashes_for_underscores(training: Calls, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "train --training.batch-size 3 --training.log-every=7 --corpus.cache_dir x"
    line += " --corpus.sets.my-own.validation-paths a --corpus.sets.my-own.paths b --corpus.validation-sets.far-off c"
    assert main(line.split()) == 0
    (((recipe, *_), _),) = training
    assert (recipe.training.batch_size, recipe.training.log_every, recipe.corpus.cache_dir) == (3, 7, "x")
    assert recipe.corpus.sets == {"my-own": SetConfig(("b",), 1.0, ("a",))}
    assert recipe.corpus.validation_sets == {"far-off": ("c",)}
    calls = replace(monkeypatch, "gossamer.infer.sample", "sample_run")
    calls.answer = iter(())
    assert main(["sample", run, "--max-tokens", "5", "--top-p=0.5", "--prompt=--top-k"]) == 0
    assert (calls[0][1]["tokens"], calls[0][1]["top_p"], calls[0][1]["prompt"]) == (5, 0.5, "--top-k")


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
        assert message.startswith(f"gossamer: {line[-1]} {word[:180]}") and ": expected a " in message
        assert len(message) < 300 and message.count("\n") == 1
    assert not training


def test_numbers_are_read_as_in_a_recipe(training: Calls) -> None:
    line = "train --training.steps 1_000 --optimizer.learning_rate 1e-3 --training.price null"
    line += " --model.mlp_only_layers 0 1"
    assert main(line.split()) == 0
    (((recipe, *_), _),) = training
    assert (recipe.training.steps, recipe.optimizer.learning_rate, recipe.training.price) == (1000, 1e-3, None)
    assert recipe.model.mlp_only_layers == (0, 1)
