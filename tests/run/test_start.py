"""Which recipe a run begins or continues with."""

from pathlib import Path

import pytest

from gossamer.errors import UserError
from gossamer.run.start import fresh_recipe, resumed_recipe
from gossamer.train.recipe import load_recipe, recipe_file, to_yaml


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the nano recipe with three values of its own."""
    text = tmp_path / "text.txt"
    text.write_text("text")
    folder = tmp_path / "run"
    own = {"training.steps": 7, "model.num_experts": 4, "corpus.paths": [str(text)]}
    recipe = fresh_recipe(folder, "nano", own)
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(recipe))
    return folder


def test_a_resumed_run_keeps_its_own_recipe(run: Path) -> None:
    assert resumed_recipe(run, None, {}) == load_recipe(run / "config.yaml")
    assert resumed_recipe(run, "nano", {}).model.num_experts == 4


def test_a_resumed_run_may_go_on_longer_and_tell_more(run: Path) -> None:
    resumed = resumed_recipe(run, None, {"training.steps": 99, "training.log_every": 1})
    assert (resumed.training.steps, resumed.training.log_every) == (99, 1)


def test_a_run_of_an_earlier_release_goes_on(run: Path) -> None:
    saved = run / "config.yaml"
    text = saved.read_text()
    assert "  bigram_steps: 0\n" in text and "  best_checkpoint_by: ''\n" in text
    saved.write_text(text.replace("bigram_steps: 0", "pair_steps: 20").replace("best_checkpoint_by: ''", "best_by: a"))
    resumed = resumed_recipe(run, "nano", {"training.steps": 99})
    assert (resumed.training.bigram_steps, resumed.training.best_checkpoint_by) == (20, "a")
    assert resumed.training.steps == 99
    with pytest.raises(UserError, match=r"^training\.pair_steps is now called training\.bigram_steps$"):
        resumed_recipe(run, None, {"training.pair_steps": 20})


def test_the_same_command_can_be_repeated(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    same = {"training.steps": 7, "model.num_experts": 4, "corpus.paths": ["text.txt"]}
    assert resumed_recipe(run, "nano", same) == resumed_recipe(run, None, {})


@pytest.mark.parametrize(
    ("key", "value", "flag"),
    [
        ("model.num_experts", 8, "model.num_experts"),
        ("corpus.paths", ["elsewhere"], "data"),
        ("corpus.tokenizer", "char", "tokenizer"),
        ("corpus.errors", "replace", "errors"),
        ("training.batch_size", 1, "training.batch_size"),
        ("optimizer.learning_rate", 1e-4, "optimizer.learning_rate"),
    ],
)
def test_what_is_fixed_is_refused(run: Path, key: str, value: object, flag: str) -> None:
    with pytest.raises(UserError, match=rf"^--{flag} is fixed for the run in {run}; "):
        resumed_recipe(run, None, {key: value})


def test_another_recipe_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match=r"^--recipe micro: the run in .* was begun by another recipe"):
        resumed_recipe(run, "micro", {})


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--resume: no run in "):
        resumed_recipe(tmp_path, None, {})


def test_a_folder_in_use_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"already holds a run; continue it with --resume"):
        fresh_recipe(run, "nano", {})
    with pytest.raises(UserError, match="is not empty and holds no run"):
        fresh_recipe(tmp_path, "nano", {})
    with pytest.raises(UserError, match="is a file"):
        fresh_recipe(tmp_path / "text.txt", "nano", {})


def test_text_that_the_recipe_names_and_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = (
        rf"^input.txt: no such file or folder; it is the corpus.paths of {recipe_file('shakespeare-char')}, .* --data"
    )
    with pytest.raises(UserError, match=told):
        fresh_recipe(tmp_path / "run", "shakespeare-char", {})
    fresh_recipe(tmp_path / "run", "shakespeare-char", {"corpus.paths": ["elsewhere.txt"]})
    (tmp_path / "input.txt").touch()
    fresh_recipe(tmp_path / "run", "shakespeare-char", {})
    (tmp_path / "own.yaml").write_text("corpus: {paths: [hf:a/b]}")
    fresh_recipe(tmp_path / "run", "own.yaml", {})


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()  # of a start that was killed
    assert fresh_recipe(tmp_path, "nano", {}) == load_recipe("nano")


def test_paths_that_exist_become_absolute_and_others_stay_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    wanted = {"corpus.paths": ["here.txt", "nowhere.txt", "hf:a/b", ""], "corpus.tokenizer": "bpe"}
    corpus = fresh_recipe(tmp_path / "run", "nano", wanted).corpus
    assert corpus.paths == (str(tmp_path / "here.txt"), "nowhere.txt", "hf:a/b", "")
    assert corpus.tokenizer == "bpe"


def test_what_is_for_tuning_is_refused(run: Path) -> None:
    recipe = run.parent / "tuning.yaml"
    recipe.write_text("tuning:\n  rank: 8\n")
    with pytest.raises(UserError, match=r"tuning\.yaml: has the section tuning, which is for gossamer tune$"):
        fresh_recipe(run.parent / "new", str(recipe), {})
    (run / "config.yaml").write_text(to_yaml(load_recipe(recipe)))
    with pytest.raises(UserError, match=r"^--resume: the run in .* is a tuning; continue it with gossamer tune$"):
        resumed_recipe(run, None, {})
