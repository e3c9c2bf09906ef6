"""Which recipe a run begins or goes on with, and who holds its folder."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gossamer import files
from gossamer.cli import main
from gossamer.errors import UserError
from gossamer.run import loop
from gossamer.run.start import claimed, fresh_recipe, require_unclaimed, resumed_recipe
from gossamer.train.recipe import load_recipe, recipe_file, to_yaml
from gossamer.train.world import SINGLE_PROCESS


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
    ("key", "value"),
    [
        ("model.num_experts", 8),
        ("corpus.paths", ["elsewhere"]),
        ("corpus.tokenizer", "char"),
        ("corpus.errors", "replace"),
        ("training.batch_size", 1),
        ("optimizer.learning_rate", 1e-4),
    ],
)
def test_what_is_fixed_is_refused(run: Path, key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^--{key} is fixed for the run in {run}; "):
        resumed_recipe(run, None, {key: value})


def test_another_recipe_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match=r"^--recipe micro: the run in .* was begun by another recipe"):
        resumed_recipe(run, "micro", {})


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--resume: no run in "):
        resumed_recipe(tmp_path, None, {})


def test_a_folder_in_use_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"already holds a run; --resume goes on with it"):
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


# One trainer for a run, however it ends.

BUSY = "is being trained by another process; wait for its end, or begin another run with --out DIR"
HOLD = """
import sys, time
from pathlib import Path
from gossamer.run.start import claimed
from gossamer.train.world import SINGLE_PROCESS
with claimed(Path(sys.argv[1]), SINGLE_PROCESS):
    print("held", flush=True)
    time.sleep(600)
"""

needs_locks = pytest.mark.skipif(files.fcntl is None, reason="this system has no such locks")


@pytest.fixture
def holder(tmp_path):
    """Another process, which holds the run in tmp_path/run."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


@needs_locks
def test_a_run_has_one_trainer_until_that_is_killed(holder, tiny_recipe, tmp_path):
    run = tmp_path / "run"
    for resume in (False, True):
        with pytest.raises(UserError, match=f"^{run} {BUSY}$"):
            loop.train(tiny_recipe, run, resume)
    with pytest.raises(UserError, match=BUSY):
        require_unclaimed(run)
    assert [path.name for path in run.iterdir()] == [".lock"]
    holder.kill()
    holder.wait()
    require_unclaimed(run)
    loop.train(replace(tiny_recipe, training=replace(tiny_recipe.training, steps=1)), run)


@needs_locks
@pytest.mark.parametrize("options", [["--recipe", "nano"], ["--resume"]], ids=str)
def test_the_command_line_says_so(holder, tiny_recipe, tmp_path, capsys, options):
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(tiny_recipe))
    assert main(["train", *options, "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"gossamer: {tmp_path / 'run'} {BUSY}\n"


@needs_locks
@pytest.mark.slow
def test_every_process_under_torchrun_says_so(holder, tiny_recipe, tmp_path):
    run, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(tiny_recipe))
    (run / "config.yaml").write_text(to_yaml(tiny_recipe))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "gossamer.cli", "train", "--resume", "--out", str(run)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    assert done.stderr.count(f"gossamer: {run} {BUSY}") == 2, done.stderr


def test_nothing_is_left_where_nothing_was_begun(tmp_path):
    def fail(run: Path):
        with pytest.raises(UserError, match="mistake"), claimed(run, SINGLE_PROCESS):
            raise UserError("mistake")

    fail(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "there").mkdir()
    fail(tmp_path / "there")
    assert not list((tmp_path / "there").iterdir())
    (tmp_path / "there" / "config.yaml").touch()
    fail(tmp_path / "there")
    assert (tmp_path / "there" / "config.yaml").exists()


def test_without_locks_nobody_is_kept_out(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with claimed(tmp_path, SINGLE_PROCESS), claimed(tmp_path, SINGLE_PROCESS):
        require_unclaimed(tmp_path)


@needs_locks
def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def refuse(file, kind):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with claimed(tmp_path, SINGLE_PROCESS), claimed(tmp_path, SINGLE_PROCESS):
        require_unclaimed(tmp_path)


def test_what_a_killed_trainer_left_goes_when_the_run_is_next_claimed(tmp_path):
    (tmp_path / "config.yaml").touch()
    (tmp_path / ".tmp-00000001-model").mkdir()
    (tmp_path / ".tmp-00000001-model" / "model.safetensors").write_text("half")
    (tmp_path / ".tmp-00000002-report.html").touch()  # perhaps another process writes it now
    with claimed(tmp_path, SINGLE_PROCESS):
        assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", ".lock", ".tmp-00000002-report.html"}
