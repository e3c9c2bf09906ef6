"""The help of verbs: every option with what it means, its range, unit and default."""

import re

import pytest

from gossamer.cli import VERBS, main
from gossamer.cli.arguments import flag_of, flags_of, is_switch
from gossamer.options import documented
from gossamer.train.recipe import recipe_names, recipe_options


def page(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words]) == 0
    return capsys.readouterr().out


def options(text: str) -> dict[str, str]:
    """What a page says of each flag, in one line, by the flag as the page shows it."""
    found = re.split(r"\n  --(?!help )", text)[1:]
    return {item.split()[0]: " ".join(re.split(r"\n(?! )", item)[0].split()[1:]) for item in found}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_is_explained(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = flags_of(f"gossamer {verb}", VERBS[verb])
    shown = options(page(capsys, verb, "--help"))
    assert set(shown) == {flag_of(name)[2:] for name in (*flags.own, *flags.short)}
    for name, option in (flags.own | flags.short).items():
        assert option.help in shown[flag_of(name)[2:]]
        if not is_switch(option) and option.default not in (None, (), ""):
            assert re.search(r"\[.*default .*\]", shown[flag_of(name)[2:]]), name


@pytest.mark.parametrize("verb", VERBS)
def test_no_docstring_says_what_a_shared_declaration_says(verb: str) -> None:
    flags = flags_of(f"gossamer {verb}", VERBS[verb])
    own = [option for option in (*flags.positional.values(), *flags.own.values()) if option.owner is VERBS[verb]]
    shared = [option.name for option in own if option.help not in documented(VERBS[verb]).values()]
    assert not set(shared) & {*documented(VERBS[verb])}


def test_a_range_a_unit_and_a_default_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown = options(page(capsys, "serve", "--help"))
    assert shown["port"].endswith("[int, 0 to 65,535, default 8000]")
    assert shown["queue-timeout"].endswith("[float, above 0 to 1,000,000 seconds, default 120]")
    assert shown["weights"].endswith("[default stored]") and "{stored,int8}" in shown["weights"]
    training = options(page(capsys, "train", "--help", "all"))
    assert (
        training["optimizer.betas"].startswith("X X ")
        and "0 to below 1, default 0.9 0.95]" in training["optimizer.betas"]
    )
    assert training["corpus.sets"].startswith("YAML ") and training["corpus.validation_sets"].startswith("YAML ")
    assert training["data"].endswith("[the same as --corpus.paths]")


def test_train_help_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"comes with gossamer ({', '.join(recipe_names())})" in " ".join(page(capsys, "train", "--help").split())


def test_train_help_all_shows_every_value_with_the_chosen_recipes_default(capsys: pytest.CaptureFixture[str]) -> None:
    shown = options(page(capsys, "train", "--recipe", "micro", "--help", "all"))
    assert {"recipe", *recipe_options()} - {"description"} <= set(shown)
    assert shown["model.num_experts"].endswith("[int, 0 to 1,048,576, default 64]")


def test_train_help_is_short_and_leads_to_the_sections(capsys: pytest.CaptureFixture[str]) -> None:
    sections = {key.partition(".")[0] for key in recipe_options() if "." in key}
    for words in (["--help"], ["-h"], ["--help", "--out", "x"], ["--recipe", "micro", "--help"]):
        out = page(capsys, "train", *words)
        assert out.count("\n") < 60 and "--model." not in out
        assert {line.split()[1] for line in out.splitlines() if line.startswith("  --help ")} == sections | {"all"}


def test_train_help_of_a_section_shows_its_values_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for topic in ("model", "model.num_experts", "--model.num_experts"):
        shown = options(page(capsys, "train", "--recipe", "micro", "--help", topic))
        assert set(shown) == {key for key in recipe_options() if key.startswith("model.")}
        assert shown["model.num_experts"].endswith("default 64]")
    assert main(["train", "--help", "modle"]) == 2
    assert capsys.readouterr().err == "gossamer: --help modle: no section of a recipe; did you mean 'model'?\n"


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_lines_fit_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in (["serve", "--help"], ["train", "--help", "training"]):
        assert max(map(len, page(capsys, *words).splitlines())) <= min(max(columns, 60), 110)
